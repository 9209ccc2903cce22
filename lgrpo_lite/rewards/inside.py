"""What runs inside a sandbox, sent there as text (`rewards/sandbox.py`).

Standard library only, any Python from 3.8 on.

    python -c THIS program|solution|tests MEMORY SECONDS

program   the text on stdin is a program; what follows it on stdin is its input
solution  the text defines functions, which the other side may call
tests     the text is test code; names it does not define are Python's (`leaning.py`), or the solution's,
          which stands in another sandbox
"""

import builtins
import importlib
import json
import os
import resource
import sys
import types

# where this runs, these files are one text
from lgrpo_lite.rewards.collected import RAN, read, run
from lgrpo_lite.rewards.leaning import STANDARD, Fault, of_python
from lgrpo_lite.rewards.peer import Peer, Remote, exactly

NOT_PYTHON = 97  # exit code of a program that does not compile
MAX_FILE, MAX_FILES, MAX_PROCESSES, MAX_SIGNALS = 16 << 20, 64, 64, 1024


def _module(name):
    module = sys.modules[name] = types.ModuleType(name)
    return module


def program(text):
    try:
        code = compile(text, "solution.py", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        os._exit(NOT_PYTHON)
    sys.argv = ["solution.py"]
    exec(code, _module("__main__").__dict__)


def solution(text):
    peer = Peer(*_line(), trusting=True)
    module = _module("solution")
    try:
        exec(compile(text, "solution.py", "exec"), module.__dict__)
        names = {}
        for name, value in list(module.__dict__.items()):
            # the tests' len() is Python's, whatever the solution says
            if not name.startswith("__") and not hasattr(builtins, name):
                names[name] = _described(peer, value)
        peer.send({"names": names})
    except BaseException as error:
        peer.send({"died": _short(error), "syntax": isinstance(error, SyntaxError)})
        return
    while True:
        peer.answer(peer.receive())


def _described(peer, value):
    """What the tests' side makes the same name of (`_theirs`)."""
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if isinstance(value, type) and issubclass(value, Exception):
        return {"exception": [c.__name__ for c in value.__mro__]}
    return {"value": peer.pack(value)}


def _short(error):
    return f"{type(error).__name__}: {str(error)[:200]}"


def tests(text):
    verdict = os.dup(2)
    peer = Peer(*_line(), trusting=False)
    try:
        result = _judge(peer, text)
    except Fault as fault:
        result = {"fault": str(fault)}
    except BaseException as error:
        result = {"failed": _short(error)}
    os.write(verdict, json.dumps(result).encode())
    os._exit(0)


def _judge(peer, text):
    hello = peer.receive()
    tree, names = read(text)
    pythons = of_python(text, tree)
    if "names" not in hello:
        why = str(hello.get("died"))[:300]
        return {"failed": why, "syntax": hello.get("syntax") is True}
    theirs = _module("solution")
    module = _module("tests")
    for name, what in hello["names"].items():
        value = _theirs(peer, name, what)
        known = hasattr(builtins, name) or name in pythons or name.startswith("__")
        if value is not None and not known:
            setattr(theirs, name, value)
            setattr(module, name, value)
    module.__dict__.update(pythons)
    ran = set()
    setattr(module, RAN, ran.add)
    exec(compile(tree, "tests.py", "exec"), module.__dict__)
    run(module, names, ran)
    if not peer.asked:
        raise Fault("the tests never call the solution")
    return {"passed": True}


def _theirs(peer, name, what):
    if "value" in what:
        value = peer.unpack(what["value"])
        # what the tests make of a class of the solution is theirs to compare; a function's results are not
        named_as_class = name[:1].isupper() and name != "Solution"
        return Remote(*value._lgrpo[:2], "class") if isinstance(value, Remote) and named_as_class else value
    if "module" in what:  # tests may lean on the imports of the text they were written for
        package = what["module"].partition(".")[0]
        return importlib.import_module(what["module"]) if package in STANDARD else None
    bases = [getattr(builtins, n, None) for n in what["exception"]]
    base = next(b for b in bases if isinstance(b, type) and issubclass(b, Exception))
    peer.raises[name] = type(name, (base,), {})
    return peer.raises[name]


def _line():
    """The descriptors of stdin and stdout for our own use; for the code they lead nowhere."""
    ends = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    return ends


def main(role, memory, seconds):
    limits = {
        "AS": memory,
        "CPU": seconds,
        "FSIZE": MAX_FILE,
        "NOFILE": MAX_FILES,
        "NPROC": MAX_PROCESSES,
        "CORE": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": MAX_SIGNALS,
    }
    for name, most in limits.items():
        kind = getattr(resource, "RLIMIT_" + name, None)
        if kind is not None:
            resource.setrlimit(kind, (most, most))
    size = int.from_bytes(exactly(0, 8), "big")
    text = exactly(0, size).decode("utf-8", "replace")
    os.write(2, b"ready\n")  # until here a failure is the sandbox's
    if role == "program":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    part = {"program": program, "solution": solution, "tests": tests}[role]
    part(text)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
