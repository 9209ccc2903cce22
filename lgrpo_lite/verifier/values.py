"""Whether two expressions are equal: exactly as fractions, else to hundreds of digits at
several points of their variables.

Two different analytic expressions agree at a random point with probability zero; here the points are fixed
rationals.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any
from zlib import crc32

from lgrpo_lite.verifier.evaluate import Evaluation, Undecided, Value
from lgrpo_lite.verifier.tree import Node

Point = dict[str, Fraction]
LOW, HIGH = 256, 1024  # bits: most differ at LOW already; equal is only what agrees at both
GUARD = 64  # bits left to rounding
POINTS = 3
STEPS = 1999  # largest natural number for a variable that is rounded; all points count then
_ROUNDED = frozenset(["floor", "ceil", "mod", "gcd", "lcm"])
_REAL_DOMAIN = frozenset(["root", "log", "ln", "lg"])  # functions whose arguments are taken to be positive


def variables(node: Any) -> frozenset[str]:
    """The names of the variables in a tree."""
    if not isinstance(node, tuple) or not node:
        return frozenset()
    if node[0] == "v":
        return frozenset([node[1]])
    return frozenset().union(*map(variables, _children(node)))


def _children(node: Node) -> list[Any]:
    return [child for child in node if isinstance(child, tuple)]


def equal(a: Node, b: Node) -> bool:
    """Whether two expressions have the same value wherever they have one. Undecided when no point decides it.

    Variables are real; positive where one stands under a root or in a logarithm, natural where
    one is rounded or in a factorial.
    """
    if a == b:
        return True
    names = variables(a) | variables(b)
    decided = 0
    stepped = STEPS in (_largest_natural(a), _largest_natural(b))
    for point in points(a, b):
        try:
            if not equal_at(a, b, point):
                return False
            decided += 1
        except Undecided:
            if not names:
                raise
        if decided >= POINTS and not stepped:
            return True
    if not decided or (names and decided < 2):
        raise Undecided
    return True


def points(a: Node, b: Node) -> Iterator[Point]:
    """Where two expressions are compared; without variables there is one point."""
    names = variables(a) | variables(b)
    bounds = [bound for bound in (_largest_natural(a), _largest_natural(b)) if bound]
    largest = min(bounds, default=0)
    positive = needs_positive(a) or needs_positive(b)
    for number in range(_how_many(names, largest)):
        negative = number % 2 == 1 and not positive
        yield _point(names, number, negative=negative, largest=largest)


def _how_many(names: frozenset[str], largest: int) -> int:
    if not names:
        return 1
    if largest == STEPS:
        return 40
    return 24 if largest else 8


def equal_at(a: Node, b: Node, point: Point) -> bool:
    """Equality at one point: exact, or to HIGH - GUARD bits of the largest value on the way."""
    low = Evaluation(point, LOW)
    x, y = low.value(a), low.value(b)
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    if not _close(low, x, y):
        return False
    high = Evaluation(point, HIGH)
    if not _close(high, high.value(a), high.value(b)):
        return False
    if high.largest > HIGH / 4:
        raise Undecided
    return True


def _close(run: Evaluation, x: Value, y: Value) -> bool:
    x, y = run.inexact(x), run.inexact(y)
    gap = abs(x - y)
    if not gap:
        return True
    return float(run.mp.mag(gap)) < run.largest - run.bits + GUARD


def constant(node: Node) -> Value:
    """The value of an expression without variables, at LOW precision, for sorting;
    Undecided when it is not real.
    """
    run = Evaluation({}, LOW)
    value = run.value(node)
    if not isinstance(value, Fraction) and isinstance(value, run.mp.mpc):
        raise Undecided
    return value


def rational(node: Node) -> Fraction | None:
    """The exact value of an expression that is a fraction."""
    try:
        value = Evaluation({}, LOW).value(node)
    except Undecided:
        return None
    return value if isinstance(value, Fraction) else None


def _seed(text: str) -> int:
    """A number that is the same for a text in every process."""
    return crc32(text.encode("utf-8", "replace"))


@lru_cache(maxsize=1024)
def _coordinate(name: str, number: int) -> Fraction:
    numerator = _seed(f"{name} {number}") % 9973 + 307
    return Fraction(numerator, 4001 if number % 4 < 2 else 11003)


def _point(names: frozenset[str], number: int, *, negative: bool, largest: int) -> Point:
    if largest == STEPS and number < 24:  # every step of a rounded value
        return {name: Fraction(number + 1 + _seed(name) % 7) for name in names}
    if largest:
        return {name: Fraction(_seed(f"{name} {number}") % largest + 1) for name in names}
    point = {name: _coordinate(name, number) for name in names}
    if negative:  # of every other variable
        for name in sorted(names)[number // 2 % 2 :: 2]:
            point[name] = -point[name]
    return point


def _largest_natural(node: Any) -> int:
    """The largest natural number for the variables where one is rounded, or stands in
    a factorial; 0 where none does.
    """
    if not isinstance(node, tuple) or not node:
        return 0
    bounds = [*map(_largest_natural, _children(node))]
    if variables(node):
        if node[0] == "!" or node[:2] == ("call", "binom"):
            bounds.append(29)
        elif node[0] == "call" and node[1] in _ROUNDED:
            bounds.append(STEPS)
    return min((bound for bound in bounds if bound), default=0)


def needs_positive(node: Any) -> bool:
    """Whether a variable stands under a root, in a logarithm or below a power that is no integer."""
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "call" and node[1] in _REAL_DOMAIN and variables(node):
        return True
    if node[0] == "^":
        _, base, exponent = node
        if variables(base) and not _is_integer(exponent):
            return True
    return any(map(needs_positive, _children(node)))


def _is_integer(exponent: Node) -> bool:
    if exponent[0] not in ("n", "neg"):
        return False
    value = rational(exponent)
    return value is not None and value.denominator == 1
