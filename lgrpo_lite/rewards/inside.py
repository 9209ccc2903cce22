"""What runs inside a sandbox, sent there as text (`rewards/sandbox.py`).

Standard library only, any Python from 3.8 on.

    python -c THIS program|solution|tests MEMORY SECONDS

program   the text on stdin is a program; what follows it on stdin is its input
solution  the text defines functions, which the other side may call
tests     the text is test code; names it does not define are the solution's, which stands in another sandbox
"""

import builtins
import importlib
import json
import os
import resource
import sys
import types

from lgrpo_lite.rewards.peer import Peer, exactly  # there both files are one text

NOT_PYTHON = 97  # exit code of a program that does not compile
MAX_FILE, MAX_FILES, MAX_PROCESSES = 16 << 20, 64, 64


class Fault(Exception):
    """The tests themselves are no good: that is nobody's wrong answer."""


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
    try:
        code = compile(text, "tests.py", "exec")
    except (SyntaxError, ValueError) as error:
        raise Fault(f"the tests are no Python: {error}") from None
    if "names" not in hello:
        why = str(hello.get("died"))[:300]
        return {"failed": why, "syntax": hello.get("syntax") is True}
    theirs = _module("solution")
    module = _module("tests")
    for name, what in hello["names"].items():
        value = _theirs(peer, name, what)
        if value is not None and not hasattr(builtins, name) and not name.startswith("__"):
            setattr(theirs, name, value)
            setattr(module, name, value)
    exec(code, module.__dict__)
    for name, value in list(module.__dict__.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType):
            value()
    if not peer.asked:
        raise Fault("the tests never call the solution")
    return {"passed": True}


def _theirs(peer, name, what):
    if "value" in what:
        return peer.unpack(what["value"])
    if "module" in what:  # tests may lean on the imports of the text they were written for
        known = getattr(sys, "stdlib_module_names", ("math", "collections", "itertools"))
        package = what["module"].partition(".")[0]
        return importlib.import_module(what["module"]) if package in known else None
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
    }
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (most, most))
    size = int.from_bytes(exactly(0, 8), "big")
    text = exactly(0, size).decode("utf-8", "replace")
    os.write(2, b"ready\n")  # until here a failure is the sandbox's
    if role == "program":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    run = {"program": program, "solution": solution, "tests": tests}[role]
    run(text)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
