"""The reward `code`: what solves its tests scores 1, nothing else does, and nothing leaves the sandbox."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.rewards.bubblewrap import AUDIT_ARCH, rules_for
from lgrpo_lite.rewards.code import code, code_in, fault_of_tests, missing_sandbox, read_tests
from lgrpo_lite.rewards.sandbox import Limits, Sandbox, SandboxFault, open_sandbox, run_program
from lgrpo_lite.types import Outcome


def _no_bubblewrap() -> str | None:
    try:
        open_sandbox("bwrap", None)
    except EnvironmentFault as fault:
        return fault.what
    return None


WHY_NOT = _no_bubblewrap()
boxed = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
RIGHT, WRONG, UNPARSABLE = (1.0, Outcome.ok), (0.0, Outcome.wrong), (0.0, Outcome.unparsable)
ADD = "assert add(2, 3) == 5\nassert add(-1, 1) == 0"


def block(text: str) -> str:
    return f"Here it is:\n```python\n{text}\n```\nDone."


# ------------------------------------------------------------------------------------------- finding code and tests


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("```python\na\n```", ("a\n", True)),
        ("```python\na\n```\nbetter:\n```python\nb\n```", ("b\n", True)),
        ("```py\na\n```\noutput:\n```\n5\n```", ("a\n", True)),
        ("```\na\n```\n```text\nb\n```", ("b\n", True)),
        ("thinking\n```python\na", ("a", True)),  # cut off, or never closed
        ("a = 1", ("a = 1", False)),
        ("", ("", False)),
        ("```", ("", True)),
    ],
)
def test_code_in(completion, found):
    assert code_in(completion) == found


def test_code_is_found_in_linear_time():
    began = time.process_time()
    code_in("```python\n" * 400_000)
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        (ADD, None),
        (json.dumps([{"input": "1\n", "output": "2"}]), None),
        (json.dumps(["assert f(1) == 2", "assert f(2) == 3"]), None),
        (json.dumps([{"output": "2"}]), None),
        ("", "no tests"),
        ("[]", "no tests"),
        ("17", "no tests"),
        (json.dumps([{"stdin": "1"}]), "are texts"),
        (json.dumps([{"input": 1, "output": 2}]), "are texts"),
        ("assert f(1) ==", "invalid syntax"),
    ],
)
def test_tests_that_cannot_be_used_are_named(reference, fault):
    found = fault_of_tests(reference)
    assert found is None if fault is None else fault in found


def test_a_list_of_asserts_is_test_code():
    assert read_tests('["assert f(1) == 2", "assert f(2) == 3"]') == "assert f(1) == 2\nassert f(2) == 3"


# ------------------------------------------------------------------------------------------- right and wrong

SOLUTIONS = {
    "function": ("def add(a, b):\n    return a + b", ADD),
    "list of asserts": ("def f(x): return x + 1", '["assert f(1) == 2", "assert f(2) == 3"]'),
    "class": (
        "class Stack:\n  def __init__(self): self.items = []\n  def push(self, x): self.items.append(x)\n"
        "  def pop(self):\n    if not self.items: raise IndexError('empty')\n    return self.items.pop()\n"
        "  def __len__(self): return len(self.items)",
        "s = Stack()\ns.push(3); s.push((1, 2))\nassert len(s) == 2 and s.pop() == (1, 2) and isinstance(s, Stack)\n"
        "assert s.items == [3]\ns.pop()\ntry:\n  s.pop()\n  assert False\nexcept IndexError as e:\n  assert str(e) == 'empty'",
    ),
    "exception of its own": (
        "class Bad(ValueError): pass\ndef f(x): raise Bad('no')",
        "try:\n  f(1)\n  assert 0\nexcept Bad as e:\n  assert isinstance(e, ValueError)",
    ),
    "in place": (
        "def sort(a): a.sort()\ndef turn(m): m[:] = [list(r) for r in zip(*m[::-1])]",
        "a = [3, 1, 2]\nsort(a)\nassert a == [1, 2, 3]\nm = [[1, 2], [3, 4]]\nturn(m)\nassert m == [[3, 1], [4, 2]]",
    ),
    "generator": ("def gen(n):\n  for i in range(n): yield i * i", "assert list(gen(4)) == [0, 1, 4, 9] and 9 in gen(5)"),
    "callback": ("def ap(f, xs): return [f(x) for x in xs]", "assert ap(lambda v: v + 1, [1, 2]) == [2, 3]"),
    "objects of the tests": (
        "def rev(h):\n  p = None\n  while h: h.next, p, h = p, h, h.next\n  return p",
        "class Node:\n  def __init__(s, v, n=None): s.val, s.next = v, n\nh = rev(Node(1, Node(2, Node(3))))\n"
        "assert [h.val, h.next.val, h.next.next.val] == [3, 2, 1] and h.next.next.next is None",
    ),
    "operators among its own": (
        "class V:\n  def __init__(s, x): s.x = x\n  def __add__(s, o): return V(s.x + o.x)\n"
        "  def __eq__(s, o): return s.x == o.x",
        "assert V(1) + V(2) == V(3) and V(1) != V(2) and (V(1) + V(2)).x == 3",
    ),
    "every plain type": (
        "def g(): return {1: (2, [3]), 'a': {4}, b'x': 1 + 2j, None: float('inf'), 2**70: range(3), True: -0.5}",
        "assert g() == {1: (2, [3]), 'a': {4}, b'x': 1 + 2j, None: float('inf'), 2**70: range(3), True: -0.5}",
    ),
    "its imports": ("import math\ndef f(x): return math.sqrt(x)", "assert math.isclose(f(2), math.sqrt(2))"),
    "check(candidate)": ("def f(x): return x + 1", "def check(candidate):\n  assert candidate(1) == 2\ncheck(f)"),
    "functions of tests": ("def f(x): return x + 1", "from solution import f\ndef test_a():\n  assert f(1) == 2"),
    "program": (
        "a, b = map(int, input().split())\nprint(a + b)",
        '[{"input": "2 3", "output": "5\\n"}, {"input": "4 5", "output": "9"}]',
    ),
    "main": ("def main(): print(int(input()) * 2)\nif __name__ == '__main__': main()", '[{"input": "21", "output": "42"}]'),
    "threads": (
        "import threading\nout = []\ndef f():\n  t = threading.Thread(target=lambda: out.append(7))\n  t.start(); t.join()\n"
        "  return out",
        "assert f() == [7]",
    ),
}  # fmt: skip


@boxed
@pytest.mark.parametrize(("text", "tests"), SOLUTIONS.values(), ids=SOLUTIONS)
def test_a_solution_passes(text, tests):
    assert code(block(text), tests) == RIGHT


FAULTY = {
    "wrong": ("def add(a, b): return a - b", ADD),
    "one of two wrong": ("def add(a, b): return 5", ADD),
    "raises": ("def add(a, b): raise ValueError", ADD),
    "no such function": ("def plus(a, b): return a + b", ADD),
    "no Python": ("def add(a, b) return a + b", ADD),
    "the second test function": (
        "def f(x): return 2",
        "def test_a():\n  assert f(1) == 2\ndef test_b():\n  assert f(2) == 3",
    ),
    "one output": ("print(5)", '[{"input": "2 3", "output": "5"}, {"input": "4 5", "output": "9"}]'),
    "right output, then an error": ("print(5)\n1 / 0", '[{"input": "", "output": "5"}]'),
    "no end": ("while True: pass", ADD),
    "sleeps": ("def add(a, b):\n  import time\n  time.sleep(1000)", ADD),
    "prints without end": ("while True: print('x' * 1000)", '[{"input": "", "output": "x"}]'),
    "memory": ("def add(a, b): return [0] * 10**10", ADD),
    "memory of an answer": ("def add(a, b): return 'x' * 10**8", ADD),
    "segmentation fault": ("import ctypes\ndef add(a, b): ctypes.string_at(0)", ADD),
}


@boxed
@pytest.mark.parametrize(("text", "tests"), FAULTY.values(), ids=FAULTY)
def test_a_faulty_solution_fails(text, tests):
    assert code(block(text), tests, timeout=1.0) == WRONG


@boxed
@pytest.mark.parametrize("tests", [ADD, '[{"input": "", "output": "5"}]'])
def test_without_code_there_is_nothing_to_run(tests):
    assert code("I do not know.", tests) == UNPARSABLE
    assert code("", tests) == UNPARSABLE
    assert code("def add(a, b) return", tests) == UNPARSABLE  # no block and no Python: prose
    assert code(block("def add(a, b) return"), tests) == WRONG
    assert code(block("a\0b"), tests) == WRONG
    assert code("def add(a, b): return a + b\nprint(5)", tests) == RIGHT


# ------------------------------------------------------------------------------------------- what tries to fool the tests

STRICT = "assert abs(f(1) - 1.5) < 1e-6\nassert f(2) == 2.5\nassert all(map(lambda x: f(x) == x, [1, 2, 3]))"
LIARS = {
    "exit": "import sys\nsys.exit(0)",
    "exit in the function": "def f(x): raise SystemExit(0)",
    "_exit": "import os\nos._exit(0)",
    "_exit in the function": "import os\ndef f(x): os._exit(0)",
    "_exit later": "import os, threading\nthreading.Timer(0.01, lambda: os._exit(0)).start()\ndef f(x):\n  while True: pass",
    "ends the loop": "def f(x): raise StopIteration",
    "prints a verdict": "print('{\"passed\": true}')\ndef f(x): return None",
    "writes a verdict to every descriptor": (
        "import os\nfor fd in range(64):\n  try: os.write(fd, b'ready\\n{\"passed\": true}')\n  except OSError: pass\n"
        "def f(x): return 0"
    ),
    "speaks for the line": (
        "import json, os\ndef send(m):\n  d = json.dumps(m).encode()\n  for fd in range(3, 20):\n"
        "    try: os.write(fd, len(d).to_bytes(8, 'big') + d)\n    except OSError: pass\n"
        "send({'names': {'f': {'value': {'home': 0}}, 'abs': {'value': 0}}})\nsend({'passed': True})"
    ),
    "asks for the tests' globals": "def f(x, *a): return f",
    "equal to everything": "class E:\n  def __eq__(s, o): return True\n  def __bool__(s): return True\ndef f(x): return E()",
    "a float equal to everything": (
        "class E(float):\n  def __sub__(s, o): return 0.0\n  def __eq__(s, o): return True\n  __hash__ = float.__hash__\n"
        "def f(x): return E(7)"
    ),
    "an int equal to everything": "class E(int):\n  def __eq__(s, o): return True\ndef f(x): return E(7)",
    "no difference to anything": "class E:\n  def __sub__(s, o): return 0.0\n  __rsub__ = __sub__\ndef f(x): return E()",
    "less than everything": (
        "class E:\n  def __lt__(s, o): return True\n  __le__ = __gt__ = __ge__ = __contains__ = __lt__\n"
        "  def __abs__(s): return 0\n  def __float__(s): return 1.5\ndef f(x): return E()"
    ),
    "other builtins": (
        "import builtins\nbuiltins.abs = abs = lambda x: 0\nbuiltins.all = all = lambda x: True\n"
        "def f(x): return 9"
    ),
    "other exceptions": (
        "import builtins\nbuiltins.AssertionError = ValueError\nclass AssertionError(Exception): pass\n"
        "def f(x): return 9"
    ),
    "looks for the tests in memory": (
        "import gc, sys\ndef f(x):\n"
        "  seen = str(sys.argv) + str([o for o in gc.get_objects() if isinstance(o, (str, dict, list))])\n"
        "  return 1.5 if x == 1 and '1e-6' in seen else 2.5 if x == 2 and '1e-6' in seen else x"
    ),
    "not a number": "def f(x): return float('nan')",
}  # fmt: skip


@boxed
@pytest.mark.parametrize("text", LIARS.values(), ids=LIARS)
def test_a_solution_cannot_say_that_it_is_right(text):
    assert code(block(text), STRICT, timeout=1.5) == WRONG


REACHES = {
    "globals of a function": ("def ap(f): return f.__globals__ and 1", "assert ap(lambda v: v) == 1"),
    "frame of a generator": ("def ap(g): return g.gi_frame and 1", "assert ap(i for i in [1]) == 1"),
    "private attribute": ("def ap(o): return o._x and 1", "class C: _x = 1\nassert ap(C()) == 1"),
    "attribute of a module": ("def ap(m): return m.sep and 1", "import os\nassert ap(os) == 1"),
}


@boxed
@pytest.mark.parametrize(("text", "tests"), REACHES.values(), ids=REACHES)
def test_what_the_tests_hand_over_opens_no_way_to_them(text, tests):
    assert code(block(text), tests) == WRONG


@boxed
def test_arguments_are_not_changed_by_what_returns_a_value():
    assert (
        code(block("def f(a):\n  a.clear()\n  return []"), "a = [3, 1, 2]\nassert f(a) == sorted(a)") == WRONG
    )


@boxed
@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("assert f(1) ==", "no Python"),
        ("assert 1 == 1", "never call the solution"),
        ("def check(candidate):\n  assert candidate(1) == 1", r"check \(line 1\) .* never call it"),
    ],
)
def test_tests_that_test_nothing_are_a_fault_of_the_data(tests, words):
    with pytest.raises(ValueError, match=words):
        code(block("def f(x): return x"), tests)


# ------------------------------------------------------------------------------------------- the walls

LOOKS = """
import json, os, socket, sys
def tries(what):
    try:
        return repr(what())
    except BaseException as error:
        return type(error).__name__
print(json.dumps({
    "user": os.getuid(), "environment": sorted(os.environ), "root": sorted(os.listdir("/")),
    "write": [tries(lambda: open(p, "w")) for p in ("/x", "/usr/x", "/dev/x", "/etc/x")],
    "tmp": tries(lambda: open("/tmp/x", "w").write("y")),
    "network": tries(lambda: socket.create_connection(("127.0.0.1", PORT), 1)), "fork": tries(os.fork),
    "packages": [p for p in sys.path if "site-packages" in p], "here": tries(lambda: open(HERE).read(1)),
}))
""".strip()  # fmt: skip


@boxed
def test_a_program_sees_nothing_and_changes_nothing(monkeypatch):
    import socket

    monkeypatch.setenv("A_SECRET", "of mine")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        names = {"HERE": repr(__file__), "PORT": str(listening.getsockname()[1])}
        text = "".join(f"{name} = {value}\n" for name, value in names.items()) + LOOKS
        ran = run_program(open_sandbox("bwrap", None), text, "", Limits(10, 512))
    seen = json.loads(ran.printed)
    assert ran.exit_code == 0
    assert "A_SECRET" not in seen["environment"] and "HOME" not in seen["environment"]
    assert set(seen["root"]) <= {
        "bin",
        "sbin",
        "lib",
        "lib32",
        "lib64",
        "usr",
        "etc",
        "dev",
        "tmp",
        "root",
        "home",
        "opt",
    }
    assert seen["write"] == ["OSError"] * 4 and seen["tmp"] == "1"
    assert seen["network"] in ("OSError", "ConnectionRefusedError") and seen["fork"] == "PermissionError"
    assert seen["packages"] == [] and seen["here"] == "FileNotFoundError" and seen["user"] == 65534


@boxed
def test_a_file_cannot_grow_beyond_its_limit_and_neither_can_all_of_them():
    text = (
        "import os\ntry:\n  open('/tmp/a', 'wb').write(bytes(20 << 20))\nexcept OSError as e: print(type(e).__name__)\n"
        "total = 0\ntry:\n  for i in range(50):\n"
        "    total += open(f'/tmp/{i}', 'wb', 0).write(bytes(8 << 20))\nexcept OSError: pass\n"
        "print(total <= 64 << 20)"
    )
    ran = run_program(open_sandbox("bwrap", None), text, "", Limits(10, 512))
    assert ran.printed.split() == ["OSError", "True"]


@boxed
def test_the_sandbox_ends_with_the_process_that_started_it(tmp_path):
    """A worker that is killed in the middle leaves nothing running."""
    mark = f"mark{os.getpid()}"
    program = f"import time\n{mark} = 1\nwhile True: time.sleep(0.1)"
    worker = f'from lgrpo_lite.rewards.code import code\ncode({block(program)!r}, \'[{{"output": "x"}}]\', timeout=1000.0)'
    process = subprocess.Popen([sys.executable, "-c", worker])
    pid = process.pid

    def boxes() -> list[int]:
        try:
            inside = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return [
                int(p)
                for child in inside
                for p in (child, *Path(f"/proc/{child}/task/{child}/children").read_text().split())
            ]
        except OSError:
            return []

    deadline = time.monotonic() + 60
    while len(boxes()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # past the probe
    running = boxes()
    os.kill(pid, signal.SIGKILL)
    process.wait()
    assert running
    while any(Path(f"/proc/{p}").exists() for p in running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{p}").exists() for p in running)


@boxed
def test_a_busy_machine_changes_no_verdict():
    """1 s of work under a limit of 3.5 s, beside eight processes that take every CPU."""
    work = "def f():\n  import time\n  while time.process_time() < 1.0: pass\n  return 7"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        assert code(block(work), "assert f() == 7", timeout=4.0) == RIGHT
        assert code(block("def f():\n  while True: pass"), "assert f() == 7", timeout=1.0) == WRONG
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("machine", AUDIT_ARCH)
def test_the_closed_calls_are_a_whole_program(machine):
    """Every jump lands inside, and the last word is to allow."""
    rules = rules_for(machine)
    rows = [rules[i : i + 8] for i in range(0, len(rules), 8)]
    for at, row in enumerate(rows):
        code_, jump_true, jump_false = int.from_bytes(row[:2], sys.byteorder), row[2], row[3]
        assert code_ in (0x20, 0x15, 0x35, 0x45, 0x06)
        assert at + 1 + max(jump_true, jump_false) < len(rows) or code_ == 0x06
    assert int.from_bytes(rows[-1][4:], sys.byteorder) == 0x7FFF0000


# ------------------------------------------------------------------------------------------- without a sandbox


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    open_sandbox.cache_clear()
    yield tmp_path
    open_sandbox.cache_clear()


def _install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\n{script}")
    (folder / name).chmod(0o755)


def test_without_a_sandbox_nothing_runs(nothing_installed):
    with pytest.raises(EnvironmentFault, match=r"bwrap: not installed; docker: .* names no image") as error:
        code(block("open('/tmp/escaped', 'w')"), ADD)
    assert error.value.exit_code == 3 and "apt-get install bubblewrap" in error.value.fix
    assert missing_sandbox([Reward(use="numeric")]) is None
    assert "no sandbox works here" in missing_sandbox([Reward(use="numeric"), Reward(use="code")]).what


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "import sys; sys.exit('bwrap: setting up uid map: Permission denied')",
            "setting up uid map: Permission denied",
        ),
        ("import sys; sys.exit('Unknown option --size')", "Unknown option --size"),
        ("pass", "nothing said"),
        ("import sys; sys.stderr.write('ready\\n'); print(43)", "printed '43"),
    ],
)
def test_a_sandbox_that_does_not_work_is_told_with_what_it_says(nothing_installed, script, words):
    _install(nothing_installed, "bwrap", script)
    with pytest.raises(EnvironmentFault, match=words):
        open_sandbox("bwrap", None)


def test_a_recipe_with_code_is_refused_before_it_starts(nothing_installed):
    from support import tiny_recipe

    from lgrpo_lite.checks.check import demand

    with pytest.raises(EnvironmentFault, match="no sandbox works here"):
        demand(tiny_recipe("rewards=[{use: code}]"))


STAND_IN = """
import os, sys
at = sys.argv.index("some-image")
assert sys.argv[1] == "run" and "--network" in sys.argv and sys.argv[at - 1] == "timeout", sys.argv
os.execv(sys.executable, [sys.executable, *sys.argv[at + 5:]])
"""


@pytest.mark.skipif(shutil.which("timeout") is None, reason="no timeout(1)")
def test_docker_is_asked_in_words_it_knows(nothing_installed):
    """The whole way through docker's command line, with a stand-in that runs the command outside: it shows
    the plumbing, not the walls."""
    _install(nothing_installed, "docker", STAND_IN)
    with pytest.raises(EnvironmentFault, match=r"docker: rewards\.N\.image names no image"):
        open_sandbox("docker", None)
    assert open_sandbox("auto", "some-image").kind == "docker"
    settings = {"sandbox": "docker", "image": "some-image"}
    assert code(block("def add(a, b): return a + b"), ADD, **settings) == RIGHT
    assert code(block("def add(a, b): return a * b"), ADD, **settings) == WRONG
    assert code(block("print(int(input()) + 1)"), '[{"input": "4", "output": "5"}]', **settings) == RIGHT


def test_a_sandbox_that_fails_later_leaves_the_reward_missing(nothing_installed):
    _install(nothing_installed, "bwrap", "import sys; sys.exit('no more namespaces')")
    with pytest.raises(SandboxFault, match="no more namespaces"):
        run_program(Sandbox("bwrap", None, 0.0), "print(1)", "", Limits(5, 512))
