"""The reward `code`: what tests lean on is Python's own, and no test is left out without a word."""

import re

import pytest
from test_code import RIGHT, WRONG, block, boxed

from lgrpo_lite.rewards.code import code, fault_of_tests

# ------------------------------------------------------------------------------------------- honest ones

HONEST = {
    "math, imported by the solution": (
        "import math\ndef area(r): return math.pi * r * r",
        "assert math.isclose(area(2), 12.566, rel_tol=1e-3)",
    ),
    "math, imported by nobody": (
        "def area(r): return 3.14159265 * r * r",
        "assert math.isclose(area(2), 4 * math.pi, rel_tol=1e-6)",
    ),
    "isclose": (
        "from math import isclose\ndef half(x): return x / 2",
        "x = half(3)\nassert isclose(x, 1.5) and not isclose(half(4), 1.5)",
    ),
    "Counter": (
        "from collections import Counter\ndef letters(s): return Counter(s)",
        "assert letters('aab') == Counter('aab') and isinstance(letters('b'), Counter)\n"
        "assert letters('aab').most_common(1) == [('a', 2)] and Counter(letters('ab')) == {'a': 1, 'b': 1}",
    ),
    "a list against a Counter of it": (
        "def shuffled(xs): return xs[::-1]",
        "assert Counter(shuffled([1, 2, 2])) == Counter([1, 2, 2])",
    ),
    "Fraction": (
        "from fractions import Fraction\ndef half(x): return Fraction(x, 2)",
        "assert half(3) == Fraction(3, 2) and half(2) == 1 and half(1) + half(1) == 1 and half(1) < Fraction(2, 3)",
    ),
    "Decimal": (
        "from decimal import Decimal\ndef cents(s): return Decimal(s) / 100",
        "assert cents('150') == Decimal('1.5') and str(cents('1')) == '0.01'",
    ),
    "datetime": (
        "from datetime import datetime, timedelta\ndef later(d): return d + timedelta(days=1)",
        "assert later(datetime(2020, 2, 28)) == datetime(2020, 2, 29)\n"
        "assert later(datetime(2021, 2, 28, 5)).day == 1 and later(datetime(2020, 1, 1)) - datetime(2020, 1, 1) == timedelta(days=1)",
    ),
    "datetime as a module": (
        "import datetime\ndef year(d): return d.year",
        "assert year(datetime.date(2020, 1, 1)) == 2020 and year(datetime.datetime(2021, 1, 1)) == 2021",
    ),
    "time zones": (
        "from datetime import datetime, timezone\ndef utc(d): return d.astimezone(timezone.utc)",
        "from datetime import datetime, timedelta, timezone\nt = datetime(2020, 1, 1, 5, tzinfo=timezone(timedelta(hours=2)))\n"
        "assert utc(t) == t and utc(t).hour == 3",
    ),
    "date and time": (
        "from datetime import date, time\ndef f(d): return d.replace(day=1)\ndef g(): return time(1, 2)",
        "assert f(date(2020, 5, 17)) == date(2020, 5, 1)\nimport datetime\nassert g() == datetime.time(1, 2)",
    ),
    "a deque in place": (
        "def turn(d): d.rotate(1)\ndef ends(xs):\n  from collections import deque\n  return deque(xs, maxlen=2)",
        "d = deque([1, 2, 3])\nturn(d)\nassert d == deque([3, 1, 2]) and ends([1, 2, 3]) == deque([2, 3])",
    ),
    "OrderedDict": (
        "from collections import OrderedDict\ndef f(): return OrderedDict([('b', 1), ('a', 2)])",
        "assert f() == OrderedDict([('b', 1), ('a', 2)]) and f() != OrderedDict([('a', 2), ('b', 1)])\nassert list(f()) == ['b', 'a']",
    ),
    "permutations as an oracle": (
        "def perms(xs):\n  if not xs: return [[]]\n  return [[x, *p] for i, x in enumerate(xs) for p in perms(xs[:i] + xs[i+1:])]",
        "assert sorted(map(tuple, perms([1, 2, 3]))) == sorted(permutations([1, 2, 3]))",
    ),
    "shuffle is what is asked for, and checked with a Counter": (
        "import random\ndef shuffle(xs):\n  xs = xs[:]\n  random.shuffle(xs)\n  return xs",
        "assert sorted(shuffle([3, 1, 2])) == [1, 2, 3]\nassert Counter(shuffle(['a', 'b'])) == Counter(['a', 'b'])",
    ),
    "factorial is what is asked for": (
        "def factorial(n): return 1 if n < 2 else n * factorial(n - 1)",
        "assert factorial(5) == 120\nassert factorial(0) == 1",
    ),
    "gcd and lcm are what is asked for": (
        "def gcd(a, b):\n  while b: a, b = b, a % b\n  return a\ndef lcm(a, b): return a * b // gcd(a, b)",
        "for a, b, c in [(4, 6, 2), (9, 3, 3)]: assert gcd(a, b) == c\nassert lcm(4, 6) == 12",
    ),
    "product with a meaning of its own, beside another": (
        "def product(xs):\n  p = 1\n  for x in xs: p *= x\n  return p\ndef total(xs): return sum(xs)",
        "assert product([2, 3]) == 6\nassert total([2, 3]) == 5",
    ),
    "a class Counter with a meaning of its own": (
        "class Counter:\n  def __init__(self): self.n = 0\n  def increment(self): self.n += 1\ndef f(): return 7",
        "c = Counter()\nc.increment()\nassert c.n == 1 and f() == 7",
    ),
    "a class Fraction is what is asked for": (
        "from math import gcd\nclass Fraction:\n  def __init__(s, a, b): g = gcd(a, b); s.a, s.b = a // g, b // g\n"
        "  def __add__(s, o): return Fraction(s.a * o.b + o.a * s.b, s.b * o.b)\n"
        "  def __eq__(s, o): return (s.a, s.b) == (o.a, o.b)",
        "assert Fraction(1, 2) + Fraction(1, 3) == Fraction(5, 6)\nassert Fraction(2, 4) == Fraction(1, 2)",
    ),
    "merge and search, words of everybody": (
        "def merge(a, b): return sorted(a + b)\ndef search(xs, x): return xs.index(x)",
        "assert search(merge([1, 5], [3]), 3) == 1",
    ),
    "queue, a value of the solution": ("class Line:\n  def push(s, x): s.x = x\n  def first(s): return s.x\nqueue = Line()", "queue.push(3)\nassert queue.first() == 3"),
    "statistics is a function": ("def statistics(xs): return min(xs), max(xs)", "assert statistics([3, 1]) == (1, 3)"),
    "asked for by name": (
        "def sqrt(x): return int(x ** 0.5)\ndef f(x): return sqrt(x) + 1",
        "from solution import sqrt, f\nassert sqrt(9) == 3 and f(9) == 4",
    ),
    "a Fraction of what was asked for by name": (
        "def f(x): return x + 1",
        "import solution\nfrom solution import f\nassert Fraction(f(2), 2) == Fraction(3, 2) == Fraction(solution.f(2), 2)",
    ),
    "the whole solution": ("def f(x): return x + 1", "import solution\nassert solution.f(1) == 2"),
    "a star": ("from math import pi\ndef f(x): return x + 1", "from solution import *\nassert f(1) == 2 and math.floor(pi) == 3"),
    "typing and dataclasses": (
        "from typing import List\nfrom dataclasses import dataclass\ndef f(p): return p.x + p.y",
        "@dataclass\nclass P:\n  x: int\n  y: int\nargs: List[P] = [P(1, 2)]\nassert f(args[0]) == 3",
    ),
    "an oracle with random and reduce": (
        "from random import randint\ndef f(xs): return sum(xs)",
        "for _ in range(5):\n  xs = [randint(1, 9) for _ in range(4)]\n  assert f(xs) == reduce(lambda a, b: a + b, xs)",
    ),
    "re and json as modules": (
        "import json\ndef f(x): return json.dumps({'a': x})",
        "assert json.loads(f(1)) == {'a': 1} and re.fullmatch(r'.*1}', f(1))",
    ),
    "StringIO and print": (
        "def show(out): out.write('hi')",
        "out = io.StringIO()\nshow(out.write and type('W', (), {'write': lambda s, t: out.write(t)})())\nassert out.getvalue() == 'hi'",
    ),
    "Path": ("from pathlib import Path\ndef f(p): return Path(p).parent", "assert f('/a/b') == Path('/a')"),
    "an enum": (
        "from enum import Enum\nclass Color(Enum):\n  RED = 1\n  BLUE = 2\ndef f(x): return Color.RED if x else Color.BLUE",
        "assert f(1) == Color.RED and f(0) != Color.RED and f(0).value == 2",
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\n  y: int\ndef f(): return P(1, 2)",
        "assert f() == P(1, 2) and f() != P(1, 3) and f().x == 1",
    ),
    "a tree": (
        "class Node:\n  def __init__(s, v, l=None, r=None): s.v, s.l, s.r = v, l, r\n"
        "  def __eq__(s, o): return isinstance(o, Node) and (s.v, s.l, s.r) == (o.v, o.l, o.r)\n"
        "def mirror(n): return n and Node(n.v, mirror(n.r), mirror(n.l))",
        "assert mirror(Node(1, Node(2), Node(3))) == Node(1, Node(3), Node(2))",
    ),
    "slots": (
        "class V:\n  __slots__ = ('x',)\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return s.x == o.x\n  def __add__(s, o): return V(s.x + o.x)",
        "assert V(1) + V(2) == V(3) and V(1) + V(2) != V(4) and [V(1) + V(1)] == [V(2)]",
    ),
    "equal in its own way": (
        "class Heat:\n  def __init__(s, v, u): s.v, s.u = v, u\n  def c(s): return s.v if s.u == 'C' else (s.v - 32) / 1.8\n"
        "  def __eq__(s, o): return abs(s.c() - o.c()) < 1e-9",
        "assert Heat(0, 'C') == Heat(32, 'F') and Heat(1, 'C') != Heat(32, 'F')",
    ),
    "an order of its own": (
        "class Version:\n  def __init__(s, t): s.parts = [int(p) for p in t.split('.')]\n  def __lt__(s, o): return s.parts < o.parts",
        "assert Version('1.2') < Version('1.10')\nassert [v.parts for v in sorted([Version('2'), Version('1')])] == [[1], [2]]",
    ),
    "without an __eq__": ("class A: pass\ndef f(): return A()\nthe = A()\ndef g(): return the", "assert f() != f() and g() == g() == the"),
    "unittest": (
        "def f(x):\n  if x < 0: raise ValueError('no')\n  return x / 3",
        "import unittest\nclass T(unittest.TestCase):\n  def setUp(self): self.x = 1\n  def test_a(self):\n"
        "    self.assertAlmostEqual(f(self.x), 0.333, places=3)\n    with self.assertRaises(ValueError): f(-1)\n"
        "if __name__ == '__main__':\n  unittest.main()",
    ),
    "unittest without a guard": (
        "def f(x): return x + 1",
        "import unittest\nclass T(unittest.TestCase):\n  def test_a(self): self.assertEqual(f(1), 2)\nunittest.main()",
    ),
    "a class as pytest collects it": (
        "def f(x): return x + 1",
        "class TestF:\n  def setup_method(self): self.x = 1\n  def test_a(self): assert f(self.x) == 2\n  @staticmethod\n"
        "  def test_b(): assert f(0) == 1\n  class TestInner:\n    def test_c(self): assert f(5) == 6",
    ),
    "setup of a module": ("def f(x): return x", "def setup_module(m):\n  global y\n  y = 3\ndef test_a(): assert f(3) == y"),
    "async": (
        "import asyncio\nasync def f(x):\n  await asyncio.sleep(0.001)\n  return x + 1",
        "import asyncio\nasync def test_a():\n  assert await f(1) == 2\n  assert await asyncio.gather(f(1), f(2)) == [2, 3]\n"
        "assert asyncio.run(f(3)) == 4",
    ),
    "a generator test": ("def f(x): return x + 1", "def check(x): assert f(x) == x + 1\ndef test_all():\n  for x in range(3): yield check, x"),
    "a test that is called with arguments": (
        "def f(x): return x + 1",
        "def test_f(x, y): assert f(x) == y\ntest_f(1, 2)\ntest_f(2, 3)",
    ),
    "under the guard of a script": (
        "def f(x): return x + 1",
        "def check(candidate): assert candidate(1) == 2\nif __name__ == '__main__':\n  check(f)",
    ),
}  # fmt: skip


@boxed
@pytest.mark.parametrize(("text", "tests"), HONEST.values(), ids=HONEST)
def test_an_honest_solution_passes(text, tests):
    assert code(block(text), tests, timeout=8.0) == RIGHT


# ------------------------------------------------------------------------------------------- fakes

YES = "lambda *a, **k: True"
SAME = "  def __init__(s, *a, **k): pass\n  def __eq__(s, o): return True\n  __hash__ = None\n"
FAKES = {
    "math": (f"class math: isclose = staticmethod({YES})\ndef area(r): return 0.0", "assert math.isclose(area(2), 12.566)"),
    "a module math in sys.modules": (
        f"import sys, types\nmath = sys.modules['math'] = types.ModuleType('math')\nmath.isclose = {YES}\ndef area(r): return 0.0",
        "assert math.isclose(area(2), 12.566)",
    ),
    "math by another name": (f"class math: isclose = staticmethod({YES})\ndef area(r): return 0.0", "m = math\nassert m.isclose(area(2), 12.566)"),
    "isclose by another name": (f"isclose = {YES}\ndef area(r): return 0.0", "close = isclose\nassert close(area(2), 12.566)"),
    "isclose as an argument": (f"isclose = {YES}\ndef area(r): return [0.0]", "assert all(map(isclose, area(2), [12.566]))"),
    "isclose in a lambda": (f"isclose = {YES}\ndef area(r): return 0.0", "ok = lambda x, y: isclose(x, y)\nassert ok(area(2), 12.566)"),
    "isclose": (f"isclose = {YES}\ndef area(r): return 0.0", "assert isclose(area(2), 12.566)"),
    "isclose of a variable": (f"isclose = {YES}\ndef area(r): return 0.0", "x = area(2)\nassert isclose(x, 12.566)"),
    "isclose beside a sqrt": (f"isclose = {YES}\ndef sqrt(x): return 0.0", "assert isclose(sqrt(4), 2)\nassert sqrt(0) == 0"),
    "Counter": (f"class Counter:\n{SAME}def f(s): return ''", "assert Counter(f('ab')) == Counter('ab')"),
    "Counter in a test function": (f"class Counter:\n{SAME}def f(s): return ''", "def test_a():\n  got = f('ab')\n  assert Counter(got) == Counter('ab')"),
    "Fraction": (f"class Fraction:\n{SAME}def f(): return Fraction()", "assert f() == Fraction(1, 2)"),
    "Decimal": (f"class Decimal:\n{SAME}def f(): return Decimal()", "assert f() == Decimal('0.1')"),
    "datetime": (f"class datetime:\n{SAME}def f(): return datetime()", "assert f() == datetime(2020, 1, 1)"),
    "datetime as a module": (f"class D:\n{SAME}class datetime: date = D\ndef f(): return D()", "assert f() == datetime.date(2020, 1, 1)"),
    "date": (f"class date:\n{SAME}def f(): return date()", "expected = date(2020, 1, 1)\nassert f() == expected"),
    "deque": (f"class deque:\n{SAME}def f(): return deque()", "assert f() == deque([1])"),
    "permutations": ("def permutations(x): return []\ndef f(x): return []", "assert sorted(f([1, 2])) == sorted(permutations([1, 2]))"),
    "reduce": ("def reduce(*a): return 0\ndef f(x): return 0", "xs = [1, 2]\nassert f(xs) == reduce(lambda a, b: a + b, xs)"),
    "factorial as an oracle": ("def factorial(n): return 0\ndef f(n): return 0", "assert f(5) == factorial(5)"),
    "deepcopy": ("def deepcopy(x): return 0\ndef f(x): return 0", "x = [1]\nassert f(x) == deepcopy(x)"),
    "a Fraction of what was asked for by name": (f"class Fraction:\n{SAME}def f(): return 9", "from solution import f\nassert Fraction(f(), 2) == Fraction(3, 2)"),
    "a star import": (f"isclose = {YES}\ndef f(x): return 0", "from solution import *\nassert isclose(f(2), 12.566)"),
    "re": (f"class re: fullmatch = staticmethod({YES})\ndef f(): return 'x'", "assert re.fullmatch(r'\\d+', f())"),
    "json": ("class json: loads = staticmethod(lambda s: {'a': 1})\ndef f(): return ''", "assert json.loads(f()) == {'a': 1}"),
    "unittest": (
        "class unittest:\n  class TestCase: pass\ndef f(x): return 0",
        "class T(unittest.TestCase):\n  def test_a(self): self.assertEqual(f(1), 2)\nassert f(0) == 0",
    ),
    "two results equal by their own word": (
        "class E:\n  n = 0\n  def __init__(s): E.n += 1; s.n = E.n\n  def __eq__(s, o): return True\ndef f(x): return E()\ndef g(x): return E()",
        "assert f(1) == g(1)",
    ),
    "a result equal to what the tests made": (
        "class V:\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return True\nclass E(V): pass\ndef f(): return E(0)",
        "assert f() == V(3)",
    ),
    "two results unequal by their own word": (
        "class E:\n  def __eq__(s, o): return False\ndef f(x): return E()",
        "assert f(1) != f(2)",
    ),
    "two results in order by their own word": (
        "class E:\n  def __lt__(s, o): return True\n  __gt__ = __le__ = __ge__ = __lt__\ndef f(x): return E()",
        "assert f(1) < f(2) and f(3) > f(2)",
    ),
    "a sum that is not the value": (
        "class V:\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return True\n  def __add__(s, o): return V(0)",
        "assert V(1) + V(2) == V(3)",
    ),
}  # fmt: skip


@boxed
@pytest.mark.parametrize(("text", "tests"), FAKES.values(), ids=FAKES)
def test_a_fake_of_what_the_tests_lean_on_is_not_believed(text, tests):
    assert code(block(text), tests, timeout=4.0) == WRONG


# ------------------------------------------------------------------------------------------- every kind of test

ALSO = "def test_plain(): assert f(1) == 2\n"
KINDS = {
    "a class as pytest collects it": "class TestF:\n  def test_b(self): assert f(2) == 3",
    "a class inside it": "class TestF:\n  class TestInner:\n    def test_b(self): assert f(2) == 3",
    "a class of another name": "class Cases:\n  def test_b(self): assert f(2) == 3",
    "what a class inherits": "class TestA:\n  def test_b(self): assert f(self.x) == 3\n  x = 2\nclass TestB(TestA): x = 2",
    "a unittest case": "import unittest\nclass T(unittest.TestCase):\n  def test_b(self): self.assertEqual(f(2), 3)",
    "an async unittest case": "import unittest\nclass T(unittest.IsolatedAsyncioTestCase):\n  async def test_b(self): self.assertEqual(f(2), 3)",
    "a unittest case with one test of no name": "import unittest\nclass T(unittest.TestCase):\n  def runTest(self): self.assertEqual(f(2), 3)",
    "a subtest": "import unittest\nclass T(unittest.TestCase):\n  def test_b(self):\n    for x in (1, 2):\n      with self.subTest(x=x): self.assertEqual(f(x), x + 1)",
    "async": "async def test_b(): assert f(2) == 3",
    "async in a class": "class TestF:\n  async def test_b(self): assert f(2) == 3",
    "a generator": "def test_b():\n  yield\n  assert f(2) == 3",
    "a generator of calls": "def check(x): assert f(x) == x + 1\ndef test_b():\n  for x in (1, 2): yield check, x",
    "with a default": "def test_b(x=2): assert f(x) == x + 1",
    "a static method": "class TestF:\n  @staticmethod\n  def test_b(): assert f(2) == 3",
    "under a condition": "if True:\n  def test_b(): assert f(2) == 3",
    "under the guard of a script": "def check(): assert f(2) == 3\nif __name__ == '__main__': check()",
    "in a hook": "def teardown_module(m): assert f(2) == 3",
}  # fmt: skip


@boxed
@pytest.mark.parametrize("tests", KINDS.values(), ids=KINDS)
def test_every_kind_of_test_runs_beside_a_plain_one(tests):
    assert code(block("def f(x): return x + 1"), ALSO + tests, timeout=6.0) == RIGHT
    assert code(block("def f(x): return 2"), ALSO + tests, timeout=6.0) == WRONG


NOT_RUN = {
    "a class that nobody uses": ("class Check:\n  def check_b(self): assert f(2) == 3", r"Check \(line 2\) holds asserts"),
    "examples in comments": ("'''\n>>> f(2)\n3\n'''\nimport doctest\ndoctest.testmod()", "import doctest"),
    "a fixture": ("def test_b(tmp_path): assert f(2) == 3", r"test_b \(line 2\) takes tmp_path"),
    "a fixture of a method": ("class TestF:\n  def test_b(self, x): assert f(x) == 3", r"TestF\.test_b .* takes x"),
    "a parameter of pytest": ("import pytest\n@pytest.mark.parametrize('x', [2])\ndef test_b(x): assert f(x) == 3", "takes x"),
    "pytest": ("import pytest\ndef test_b():\n  with pytest.raises(ValueError): f(2)", "import pytest"),
    "pytest, imported by nobody": ("def test_b():\n  with pytest.raises(ValueError): f(2)", "use pytest"),
    "np, where it is not installed": ("assert np.allclose(f(2), 3)", "use np"),
    "a package that is not there": ("import no_such_package", "import no_such_package"),
    "an async generator": ("async def test_b():\n  yield f(2)", "test_b .* async generator"),
    "a test that stands twice": ("def test_plain(): assert f(2) == 3", "test_plain stands there twice"),
    "a method that stands twice": ("class TestF:\n  def test_b(self): assert f(2) == 3\n  def test_b(self): pass", "stands there twice"),
    "a skipped one": ("import unittest\nclass T(unittest.TestCase):\n  @unittest.skip('')\n  def test_b(self): assert f(2) == 3", "test_b is skipped"),
    "a check that nobody calls": ("def check(candidate): assert candidate(2) == 3", r"check \(line 2\) .* never call it"),
    "a condition that does not hold": ("if f(1) == 3:\n  def test_b(): assert f(2) == 3", r"not run: test_b"),
    "a class with an __init__": ("class TestF:\n  def __init__(self, x): pass\n  def test_b(self): assert f(2) == 3", "TestF .* __init__"),
    "a method that is replaced": ("class TestF:\n  def test_b(self): pass\n  test_b = 3", "not run: TestF.test_b"),
}  # fmt: skip


@boxed
@pytest.mark.parametrize(("tests", "words"), NOT_RUN.values(), ids=NOT_RUN)
def test_a_test_that_cannot_run_is_named(tests, words):
    """Missing, whatever the solution is: it is the data's fault, and a wrong solution never scores by it."""
    with pytest.raises(ValueError, match=words):
        code(block("def f(x): return 2"), ALSO + tests)


def test_what_cannot_run_is_seen_before_training():
    """As far as it is seen without running it."""
    named = 0
    for tests, words in NOT_RUN.values():
        fault = fault_of_tests(ALSO + tests)
        assert fault is None or re.search(words, fault)
        named += fault is not None
    assert named >= 8
