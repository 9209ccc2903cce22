"""Whether two expressions are equal: exactly as fractions, else to hundreds of digits at
several points of their variables.

Two different analytic expressions agree at a random point with probability zero; here
the points are fixed rationals.
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
    return frozenset().union(*(variables(child) for child in node if isinstance(child, tuple)))


def equal(a: Node, b: Node) -> bool:
    """Whether two expressions have the same value wherever they have one. Undecided when no point decides it.

    Variables are real; positive where one stands under a root or in a logarithm, natural where
    one is rounded or in a factorial.
    """
    if a == b:
        return True
    names = variables(a) | variables(b)
    decided, stepped = 0, STEPS in (_counts(a), _counts(b))
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
    largest, positive = min(filter(None, (_counts(a), _counts(b))), default=0), _bounded(a) or _bounded(b)
    for number in range(1 if not names else 40 if largest == STEPS else 24 if largest else 8):
        yield _point(names, number, negative=number % 2 == 1 and not positive, largest=largest)


def equal_at(a: Node, b: Node, point: Point) -> bool:
    """Equality at one point: exact, or to HIGH - GUARD bits of the largest value on the way."""
    low = Evaluation(point, LOW)
    x, y = low.value(a), low.value(b)
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    if not _close(low, x, y):
        return False
    high = Evaluation(point, HIGH)
    x, y = high.value(a), high.value(b)
    if not _close(high, x, y):
        return False
    if high.largest > HIGH / 4:
        raise Undecided
    return True


def _close(run: Evaluation, x: Value, y: Value) -> bool:
    x, y = run.inexact(x), run.inexact(y)
    gap = abs(x - y)
    return not gap or float(run.mp.mag(gap)) < run.largest - run.bits + GUARD


def constant(node: Node) -> Value:
    """The value of an expression without variables, at LOW precision, for sorting;
    Undecided when it is not real.
    """
    run = Evaluation({}, LOW)
    found = run.value(node)
    if not isinstance(found, Fraction) and isinstance(found, run.mp.mpc):
        raise Undecided
    return found


def rational(node: Node) -> Fraction | None:
    """The exact value of an expression that is a fraction."""
    try:
        found = Evaluation({}, LOW).value(node)
    except Undecided:
        return None
    return found if isinstance(found, Fraction) else None


@lru_cache(maxsize=1024)
def _coordinate(name: str, number: int) -> Fraction:
    seed = crc32(f"{name} {number}".encode("utf-8", "replace"))
    return Fraction(seed % 9973 + 307, 4001 if number % 4 < 2 else 11003)


def _point(names: frozenset[str], number: int, *, negative: bool, largest: int) -> Point:
    if largest == STEPS and number < 24:  # every step of a rounded value
        return {name: Fraction(number + 1 + crc32(name.encode("utf-8", "replace")) % 7) for name in names}
    if largest:
        return {
            name: Fraction(crc32(f"{name} {number}".encode("utf-8", "replace")) % largest + 1)
            for name in names
        }
    signs = {
        name: -1 if negative and (i + number // 2) % 2 == 0 else 1 for i, name in enumerate(sorted(names))
    }
    return {name: signs[name] * _coordinate(name, number) for name in names}


def _counts(node: Any) -> int:
    """The largest natural number for the variables where one is rounded, or stands in
    a factorial; 0 where none does.
    """
    if not isinstance(node, tuple) or not node:
        return 0
    below = [_counts(child) for child in node if isinstance(child, tuple)]
    here = (
        29
        if node[0] == "!" or node[:2] == ("call", "binom")
        else STEPS
        if node[0] == "call" and node[1] in _ROUNDED
        else 0
    )
    found = [bound for bound in (*below, here if variables(node) else 0) if bound]
    return min(found) if found else 0


def _bounded(node: Any) -> bool:
    """Whether a variable stands under a root, in a logarithm or below a power that is no integer."""
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "call" and node[1] in _REAL_DOMAIN and variables(node):
        return True
    if (
        node[0] == "^"
        and variables(node[1])
        and not (
            node[2][0] in ("n", "neg")
            and rational(node[2]) is not None
            and (rational(node[2]) or Fraction(0)).denominator == 1
        )
    ):
        return True
    return any(_bounded(child) for child in node if isinstance(child, tuple))
