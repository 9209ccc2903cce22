"""Programs for the reward `code`: solutions that are wrong and cheat, in every kind of test, and right ones.

A wrong solution never scores, whatever it fakes, patches, prints, forks or holds; a right one passes; nothing
outside the sandbox is touched, nothing is left running, and no more memory is held than allowed.
"""

import json
import random
import socket
from pathlib import Path
from typing import Any

import psutil

from lgrpo_lite.rewards import sandbox, watch
from lgrpo_lite.rewards.code import code

from .case import Told, about

from test_code import LIARS, RIGHT, WHY_NOT, block  # isort: skip
from test_code_memory import HOGS  # isort: skip

COUNT, SECONDS, MEMORY = 200, 40.0, 400
TIMEOUT, LIMIT = 5.0, 128  # of a program: seconds, MiB

# ------------------------------------------------------------------------------------------- tests

# of f(x) = x + 1, each false for every solution that is not; what they lean on is Python's
ASKS = [
    "f(2) == 3", "3 == f(2)", "not f(2) != 3", "f(2) - 3 == 0", "abs(f(2) - 3) < 1e-9", "math.isclose(f(2), 3)", "isclose(f(2), 3)", "Counter([f(2)]) == Counter([3])", "isinstance(f(2), int) and f(2) == 3",
    "f(2) in (3,)", "f(2) in {3: 1}", "[f(2)] == [3]", "(f(2), f(3)) == (3, 4)", "{'a': f(2)} == {'a': 3}", "{f(2)} == {3}", "all(f(x) == x + 1 for x in range(5))", "sorted([f(2), f(1)]) == [2, 3]",
    "sum(map(f, [1, 2])) == 5", "max(f(2), 0) == 3", "Fraction(f(2), 2) == Fraction(3, 2)", "f(f(1)) == 3", "round(f(2)) == 3", "f(2) <= 3 and f(2) >= 3", "json.dumps(f(2)) == '3'", "range(9)[f(2)] == 3",
    "'abcd'[f(2)] == 'd'", "type(f(2)) is int and f(2) == 3", "list(range(f(2))) == [0, 1, 2]", "f(2) * 2 == 6", "f(2) ** 2 == 9", "divmod(f(2), 2) == (1, 1)", "f(2) == f(1) + 1 == 3", "f(x=2) == 3",
    "not any(f(x) != x + 1 for x in (2, 3))", "[f(x) for x in (2, 3)] == [3, 4]", "next(iter([f(2)])) == 3", "f(2).bit_length() == 2 and f(2) == 3", "deepcopy([f(2)]) == [3]", "reduce(lambda a, b: a + b, [f(1), f(2)]) == 5",
]  # fmt: skip
KINDS = {
    "plain": "assert {ask}",
    "two plain": "assert f(1) == 2\nassert {ask}, 'no'",
    "a function": "def test_a(): assert f(1) == 2\ndef test_b():\n  assert {ask}",
    "called": "def test_b(): assert {ask}\ntest_b()",
    "a class": "class TestF:\n  def setup_method(self): self.x = 2\n  def test_a(self): assert f(1) == 2\n  def test_b(self): assert {ask}",
    "a class inside": "class TestF:\n  class TestInner:\n    def test_b(self): assert {ask}",
    "a static method": "class TestF:\n  @staticmethod\n  def test_b(): assert {ask}",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test_a(self): self.assertEqual(f(1), 2)\n  def test_b(self): self.assertTrue({ask})",
    "unittest, main": "import unittest\nclass T(unittest.TestCase):\n  def test_b(self): self.assertEqual(f(2), 3)\n  def test_c(self): self.assertTrue({ask})\nif __name__ == '__main__':\n  unittest.main()",
    "a subtest": "import unittest\nclass T(unittest.TestCase):\n  def test_b(self):\n    for x in (1, 2):\n      with self.subTest(x=x):\n        self.assertEqual(f(x), x + 1)\n        self.assertTrue({ask})",
    "async unittest": "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n  async def test_b(self): self.assertTrue({ask})",
    "async": "async def test_b(): assert {ask}",
    "a generator": "def test_a(): assert f(1) == 2\ndef test_b():\n  yield\n  assert {ask}",
    "a generator of calls": "def check(ask): assert ask()\ndef test_b():\n  for _ in (1, 2): yield check, lambda: {ask}",
    "a guard": "def check(): assert {ask}\nif __name__ == '__main__': check()",
    "a candidate": "def check(candidate):\n  assert candidate(2) == 3\n  assert {ask}\ncheck(f)",
    "a hook": "def test_a(): assert f(1) == 2\ndef teardown_module(m): assert {ask}",
    "under a condition": "if True:\n  def test_b(): assert {ask}",
    "try": "try:\n  ok = {ask}\nexcept Exception:\n  ok = False\nassert ok",
    "raise": "if not ({ask}):\n  raise ValueError('wrong')\nassert f(1) == 2",
    "a loop": "for _ in range(2):\n  assert {ask}",
    "solution": "import solution\nfrom solution import f\nassert solution.f(2) == 3\nassert {ask}",
}  # fmt: skip

# ------------------------------------------------------------------------------------------- cheats

YES = "lambda *a, **k: True"
EQUAL = "\n  def __eq__(s, o): return True\n  def __ne__(s, o): return False\n  __le__ = __ge__ = __lt__ = __gt__ = __contains__ = __eq__\n  def __hash__(s): return 7\n  def __bool__(s): return True"
ANYTHING = (
    EQUAL
    + "\n  def __getattr__(s, n): return s\n  def __call__(s, *a, **k): return s\n  def __sub__(s, o): return 0\n  __rsub__ = __sub__\n  def __abs__(s): return 0\n  def __iter__(s): return iter(())\n  def __len__(s): return 0"
)
# what f gives, which is wrong, or all of it
GIVES = {
    "another number": "2", "nothing": "None", "itself": "f", "not a number": "float('nan')", "NotImplemented": "NotImplemented", "a type": "int", "Ellipsis": "...", "deep": "f(x)", "a huge number": "10 ** 100000",
    "a long text": "'x' * 10 ** 8", "a file": "open('/dev/null')", "_exit": "__import__('os')._exit(0)", "exit": "exit(0)", "sleep": "__import__('time').sleep(99)", "a lambda": "lambda *a: 3", "a module": "__import__('os')",
}  # fmt: skip
FUNCTIONS = {
    "exit": "def f(x): raise SystemExit(0)", "interrupt": "def f(x): raise KeyboardInterrupt", "stop": "def f(x): raise StopIteration", "the end of a generator": "def f(x): raise GeneratorExit", "an assertion": "def f(x): raise AssertionError",
    "skip": "import unittest\ndef f(x): raise unittest.SkipTest('x')", "an error equal to all": f"class E(BaseException):{EQUAL}\ndef f(x): raise E()", "a coroutine": "async def f(x): return 9", "a generator": "def f(x): yield 9",
    "no end": "def f(x):\n  while True: pass", "equal to everything": f"class E:{EQUAL}\ndef f(x): return E()", "anything": f"class E:{ANYTHING}\ndef f(x): return E()", "an int equal to everything": f"class E(int):{EQUAL}\ndef f(x): return E(7)",
    "a float": f"class E(float):{ANYTHING}\ndef f(x): return E(7)", "a str": f"class E(str):{EQUAL}\ndef f(x): return E('q')", "a list": f"class E(list):{EQUAL}\ndef f(x): return E([7])", "a tuple": f"class E(tuple):{EQUAL}\ndef f(x): return E((7,))",
    "a dict": f"class E(dict):{EQUAL}\ndef f(x): return E(a=7)", "a fraction": f"import fractions\nclass E(fractions.Fraction):{EQUAL}\ndef f(x): return E(7)", "says it is an int": f"class E:{ANYTHING}\n  __class__ = int\ndef f(x): return E()",
    "an index": f"class E:{EQUAL}\n  def __index__(s): return 9\n  __int__ = __index__\ndef f(x): return E()", "a number of its own": f"import numbers\nclass E(int):{EQUAL}\n  def __index__(s): return 8\n  __int__ = __float__ = __round__ = __index__\ndef f(x): return E(7)",
    "a class equal to all": "class M(type):\n  def __eq__(s, o): return True\n  __hash__ = type.__hash__\n  def __instancecheck__(s, o): return True\nclass E(metaclass=M): pass\ndef f(x): return E",
    "pickles as code": f"class E:{EQUAL}\n  def __reduce__(s): return (exec, ('import os; os._exit(0)',))\ndef f(x): return E()", "a deep list": "def f(x):\n  x = []\n  for _ in range(100000): x = [x]\n  return x", "a loop of lists": "def f(x):\n  x = []; x.append(x)\n  return x",
    "the tests' constants": "import sys\ndef f(x):\n  g = sys._getframe()\n  while g:\n    if 'tests' in g.f_code.co_filename: return 3\n    g = g.f_back\n  return 0", "the tests in memory": "import gc\ndef f(x):\n  seen = str([o for o in gc.get_objects() if isinstance(o, (str, tuple, dict))])\n  return x + 1 if 'f(' + str(x) + ') ==' in seen else 0",
    "the globals of whoever calls": "import sys\ndef f(x):\n  g = sys._getframe()\n  while g:\n    for k in list(g.f_globals):\n      if not k.startswith('__') and k not in ('f', 'sys') and callable(g.f_globals[k]): g.f_globals[k] = lambda *a, **k: True\n    g = g.f_back\n  return 9",
    "a callable": f"class E:{EQUAL}\n  def __call__(s, x): return s\nf = E()", "a property": f"class E:{EQUAL}\n  def __getattribute__(s, n): return lambda *a, **k: True\ndef f(x): return E()", "another at each call": f"n = 0\nclass E(int):{EQUAL}\ndef f(x):\n  global n\n  n += 1\n  return E(n)",
}  # fmt: skip
PREAMBLES = {
    "nothing": "", "exit": "import sys; sys.exit(0)", "_exit": "import os; os._exit(0)", "atexit": "import atexit, os\natexit.register(os._exit, 0)", "a later exit": "import os, threading\nthreading.Timer(0.05, os._exit, (0,)).start()",
    "an alarm": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(signal.ITIMER_REAL, 0.1)", "kills its parent": "import os, signal\nfor p in (os.getppid(), 1, 2, 3, -1):\n  try: os.kill(p, signal.SIGKILL)\n  except OSError: pass",
    "prints": "print('{\"passed\": true}')\nimport sys\nprint('passed', file=sys.stderr)", "writes everywhere": "import os\nfor fd in range(64):\n  try: os.write(fd, b'{\"passed\": true}\\n')\n  except OSError: pass",
    "speaks for the line": "import json, os\nd = json.dumps({'passed': True}).encode()\nfor fd in range(3, 64):\n  try: os.write(fd, len(d).to_bytes(8, 'big') + d)\n  except OSError: pass", "closes everything": "import os\nos.closerange(0, 99)",
    "other builtins": "import builtins\nfor n in ('abs', 'all', 'any', 'isinstance', 'max', 'round', 'hash', 'type', 'sorted', 'sum', 'range', 'map'):\n  setattr(builtins, n, lambda *a, **k: True)", "another assertion": "import builtins\nbuiltins.AssertionError = Exception\nclass AssertionError(BaseException): pass",
    "another import": "import builtins\nbuiltins.__import__ = lambda *a, **k: None", "another class": "import builtins\nbuiltins.__build_class__ = lambda *a, **k: None", "another compile": "import builtins\nbuiltins.compile = builtins.exec = builtins.eval = lambda *a, **k: None",
    "another unittest": f"import unittest\nfor n in dir(unittest.TestCase):\n  if n.startswith('assert'): setattr(unittest.TestCase, n, {YES})", "a module unittest": "import sys, types\nm = sys.modules['unittest'] = types.ModuleType('unittest')\nm.TestCase = object\nm.main = print\nunittest = m",
    "a module pytest": f"import sys, types\nm = sys.modules['pytest'] = types.ModuleType('pytest')\nm.main = m.raises = {YES}", "a class math": f"class math: isclose = staticmethod({YES})", "a function isclose": f"isclose = {YES}",
    "fakes of names": f"class Fake:{EQUAL}\n  def __init__(s, *a, **k): pass\nCounter = Fraction = deque = Decimal = datetime = Fake\ndeepcopy = reduce = {YES}", "a module json": f"import sys, types\njson = sys.modules['json'] = types.ModuleType('json')\njson.dumps = json.loads = {YES}",
    "another math": f"import math\nmath.isclose = {YES}", "another Counter": "import collections\ncollections.Counter.__eq__ = lambda *a: True", "another asyncio": "import asyncio\nasyncio.run = lambda c: c.close()",
    "every module": f"import sys\nfor m in list(sys.modules.values()):\n  for n in ('run', 'check', 'same', 'equal', 'verdict', 'send', 'loads', 'compare'):\n    try:\n      if hasattr(m, n): setattr(m, n, {YES})\n    except Exception: pass",
    "a trace": "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\nsys.excepthook = lambda *a: None", "all objects": "import gc\nfor o in gc.get_objects():\n  if isinstance(o, dict) and 'passed' in o: o['passed'] = True",
    "the main module": "import __main__, sys\nfor n in list(vars(__main__)):\n  if not n.startswith('__'): setattr(__main__, n, lambda *a, **k: True)", "no errors": "import ctypes\nctypes.pythonapi.PyErr_Clear()", "another int": "import ctypes\nctypes.memset(id(3) + 24, 9, 1)",
    "a crash": "import ctypes\nctypes.string_at(0)", "recursion": "import sys\nsys.setrecursionlimit(10 ** 8)", "forks": "import os\ntry:\n  while os.fork(): pass\nexcept OSError: pass", "threads": "import threading, time\nfor _ in range(3000):\n  try: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n  except RuntimeError: break",
    "a program": "import subprocess\ntry: subprocess.run(['sh', '-c', 'echo x > CANARY; kill -9 $PPID'])\nexcept OSError: pass", "a file": "for p in ('CANARY', '/etc/passwd', '/tmp/tests.py', '/tmp/solution.py', 'tests.py', '/proc/self/mem', '/proc/1/mem', '/dev/sda'):\n  try: open(p, 'w').write('x')\n  except OSError: pass",
    "reads everything": "import os, glob\nfor p in glob.glob('/**', recursive=False) + glob.glob('/proc/*/environ') + glob.glob('/proc/*/cmdline') + ['CANARY']:\n  try: print(open(p).read(99))\n  except OSError: pass", "the network": "import socket\ntry: socket.create_connection(('127.0.0.1', PORT), 0.2).send(b'x')\nexcept OSError: pass",
    "a mount": "import ctypes\nc = ctypes.CDLL(None)\nc.unshare(0x10020000); c.mount(b'x', b'/tmp', b'tmpfs', 0, 0); c.chroot(b'/tmp'); c.ptrace(16, 1, 0, 0)", "links": "import os\ntry:\n  os.symlink('CANARY', '/tmp/a'); open('/tmp/a', 'w').write('x')\nexcept OSError: pass",
    "signals": "import signal\nfor s in range(1, 64):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError, ValueError): pass", "limits": "import resource\nfor r in range(16):\n  try: resource.setrlimit(r, (-1, -1))\n  except (OSError, ValueError): pass", "a stop": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "a decorator of all": "import sys\nsys.modules[__name__].__class__ = type('M', (type(sys),), {'__getattr__': lambda s, n: s})", "a module of its own": "import sys\nsys.modules['solution'] = sys.modules['tests'] = type('S', (), {'f': staticmethod(lambda *a: 3)})",
    "del": "class D:\n  def __del__(s):\n    import os; os._exit(0)\nd = D()", "hooks of imports": "import sys\nsys.meta_path.insert(0, type('F', (), {'find_spec': staticmethod(lambda *a: sys.exit(0))}))", "path": "import sys\nopen('/tmp/math.py', 'w').write('isclose = lambda *a: True')\nsys.path.insert(0, '/tmp')",
}  # fmt: skip
# around a right f: what honest answers have
HONEST = ["", "import math", "import math, sys\nsys.setrecursionlimit(5000)", "from collections import Counter, deque", "from typing import *", "import asyncio", "print('hello')", "if __name__ == '__main__':\n  print(f(1))", "class Node:\n  pass", "import random\nrandom.seed(0)", "f2 = lambda x: x"]  # fmt: skip
MEMORY_BODIES = {name: text for name, (text, _) in HOGS.items()}


def prepare(folder: Path) -> None:
    assert WHY_NOT is None, WHY_NOT
    for text in (
        *PREAMBLES.values(),
        *FUNCTIONS.values(),
        *HONEST,
        *(tests.format(ask=ASKS[0]) for tests in KINDS.values()),
    ):
        compile(text, "a case", "exec")  # what is no Python cheats nobody


def warm(prepared: None) -> None:
    sandbox.open_sandbox("auto", None)
    sandbox.Watch = Kept


class Kept(watch.Watch):
    """Remembers what its sandbox held."""

    opened: list["Kept"] = []  # noqa: RUF012

    def __init__(self, *given: Any):
        super().__init__(*given)
        Kept.opened.append(self)


def attack(draw: random.Random, folder: Path, prepared: None) -> Told:
    ask, kind = draw.choice(ASKS), draw.choice(sorted(KINDS))
    tests = KINDS[kind].format(ask=ask)
    if draw.random() < 0.1:
        tests = json.dumps([f"assert {ask}", "assert f(4) == 5"])
    canary = folder / "canary"
    canary.write_text("sings")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        name, text, right = solution(draw)
        text = text.replace("CANARY", str(canary)).replace("PORT", str(listening.getsockname()[1]))
        about(f"{name}\n{text}\n--- {kind}\n{tests}")
        Kept.opened.clear()
        outcome, faults = scored(text, tests, right)
        faults += outside(listening, canary)
    return Told(f"{'right' if right else 'wrong'}: {outcome}", tuple(faults), outcome)


def solution(draw: random.Random) -> tuple[str, str, bool]:
    """Its name, its text, and whether it is right."""
    chosen = draw.random()
    if chosen < 0.25:
        before, after = draw.choice(HONEST[:7]), draw.choice(HONEST[6:])
        return "honest", f"{before}\ndef f(x):\n  return x + 1\n{after}", True
    if chosen < 0.35:
        name = draw.choice(sorted(MEMORY_BODIES))
        return name, f"def f(x):\n  exec({MEMORY_BODIES[name]!r}, {{}})\n  return 9", False
    if chosen < 0.45:
        name = draw.choice(sorted(LIARS))
        return name, LIARS[name] + ("" if "def f(" in LIARS[name] else "\ndef f(x): return 9"), False
    names = draw.sample(sorted(PREAMBLES), draw.choice([1, 1, 2]))
    end = draw.choice(sorted(FUNCTIONS) + sorted(GIVES))
    function = FUNCTIONS.get(end) or f"def f(x): return {GIVES[end]}"
    text = "\n".join(PREAMBLES[name] for name in names)
    return f"{names}, {end}", f"{text}\n{function}", False


def scored(text: str, tests: str, right: bool) -> tuple[str, list[str]]:
    try:
        verdict = code(block(text), tests, timeout=TIMEOUT, memory_mb=LIMIT)
    except (ValueError, sandbox.SandboxFault) as error:  # missing, with its reason
        return "missing", [f"missing, of a right one: {error}"] if right else []
    if right and verdict != RIGHT:
        return "wrong", ["a right one does not pass"]
    if not right and verdict[0] > 0:
        return "passed", ["a wrong one passes"]
    return str(verdict[1]), []


def outside(listening: socket.socket, canary: Path) -> list[str]:
    faults = []
    if canary.read_text() != "sings" or [file.name for file in canary.parent.iterdir()] != ["canary"]:
        faults.append("a file outside was touched")
    try:
        listening.accept()
        faults.append("it came through to a socket outside")
    except BlockingIOError:
        pass
    left = [process.name() for process in psutil.Process().children(recursive=True)]
    if left:
        faults.append(f"left running: {left}")
    most = max((watched.held for watched in Kept.opened), default=0)
    if most > 1.1 * (LIMIT << 20):
        faults.append(f"held {most >> 20} MiB of {LIMIT}")
    return faults
