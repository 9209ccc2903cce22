"""The value of a tree at a point: an exact fraction where it is one, else hundreds of
digits; Undecided beyond the bounds.

Bounds are on size, not on time: no value has more than MAX_BITS bits, and one evaluation
handles at most MAX_WORK bits.
"""
# ruff: noqa: SIM905

import math
import operator
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from lgrpo_lite.verifier.tree import Node

MAX_BITS = 70_000  # 10^20000, 2006!
MAX_WORK = 4_000_000
MAX_TERMS = 1000  # of a sum or product
# |log2| beyond which an exact value does not enter floating point, where it would be lost beside others
SMALL = 300

Value = Any  # Fraction, or a number of mpmath


class Undecided(Exception):
    """The value is out of bounds, has no meaning, or is not a number."""


@lru_cache(maxsize=4)
def context(bits: int) -> Any:
    from mpmath.ctx_mp import MPContext

    made = MPContext()
    made.prec = bits
    return made


class Evaluation:
    """Evaluates trees with `point` for the variables, at `bits` of precision; `largest`
    is the largest value on the way.
    """

    def __init__(self, point: Mapping[str, Fraction], bits: int):
        self.point, self.bits = point, bits
        self.work, self.largest = 0, 1.0

    @property
    def mp(self) -> Any:
        return context(self.bits)

    def value(self, node: Node) -> Value:
        rule = _RULES.get(node[0])
        if rule is None:
            raise Undecided
        try:
            return self.bounded(rule(self, *node[1:]))
        except (ValueError, ZeroDivisionError, OverflowError, TypeError, ArithmeticError) as error:
            raise Undecided from error

    def bounded(self, value: Value) -> Value:
        """Counts the work; Undecided when a value or the work is too large."""
        if isinstance(value, Fraction):
            bits = value.numerator.bit_length() + value.denominator.bit_length()
            if bits > MAX_BITS:
                raise Undecided
        else:
            if not self.mp.isfinite(value):
                raise Undecided
            bits = 2000
            if value:
                self.largest = max(self.largest, float(self.mp.mag(value)))
        self.work += bits
        if self.work > MAX_WORK:
            raise Undecided
        return value

    def inexact(self, value: Value) -> Any:
        """As a number of mpmath; a fraction that would be lost beside ordinary values is Undecided."""
        if not isinstance(value, Fraction):
            return value
        if value and abs(value.numerator.bit_length() - value.denominator.bit_length()) > SMALL:
            raise Undecided
        return self.mp.mpf(value.numerator) / value.denominator

    def pair(self, a: Value, b: Value) -> tuple[Value, Value]:
        return (
            (a, b)
            if isinstance(a, Fraction) and isinstance(b, Fraction)
            else (self.inexact(a), self.inexact(b))
        )

    def add(self, *nodes: Node) -> Value:
        total: Value = Fraction(0)
        for node in nodes:
            a, b = self.pair(total, self.value(node))
            total = self.bounded(a + b)
        return total

    def multiply(self, a: Node, b: Node) -> Value:
        left, right = self.pair(self.value(a), self.value(b))
        return left * right

    def divide(self, a: Node, b: Node) -> Value:
        top, bottom = self.pair(self.value(a), self.value(b))
        if not bottom:
            raise Undecided
        return top / bottom

    def power(self, a: Node, b: Node) -> Value:
        base, exponent = (self.mp.e if a == ("const", "e") else self.value(a)), self.value(b)
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return self.whole_power(base, exponent.numerator)
            root = (
                exact_root(base, exponent.denominator) if base > 0 and exponent.denominator < 1000 else None
            )
            if root is not None:
                return self.whole_power(root, exponent.numerator)
        if base == 0:
            return Fraction(0) if isinstance(exponent, Fraction) and exponent > 0 else _undecided()
        base, exponent = self.inexact(base), self.inexact(exponent)
        if abs(exponent) * (abs(self.mp.mag(base)) + 1) > SMALL:
            raise Undecided
        return self.mp.power(base, exponent)

    def whole_power(self, base: Fraction, n: int) -> Fraction:
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if (abs(base) != 1 and abs(n) * size > MAX_BITS) or (n < 0 and not base) or (n == 0 and not base):
            raise Undecided
        return base ** (n % 2 if abs(base) == 1 else n)

    def root(self, a: Node, degree: Node) -> Value:
        base, n = self.value(a), self.value(degree)
        if not isinstance(n, Fraction) or n.denominator != 1 or not 1 <= n <= 1000:
            raise Undecided
        n = int(n)
        if isinstance(base, Fraction):
            negative = base < 0 and n % 2 == 1
            found = exact_root(abs(base), n) if base >= 0 or negative else None
            if found is not None:
                return -found if negative else found
            if negative:
                return -self.mp.root(self.inexact(-base), n)
        base = self.inexact(base)
        if n % 2 == 1 and not isinstance(base, self.mp.mpc) and base < 0:
            return -self.mp.root(-base, n)
        return self.mp.root(base, n)

    def factorial(self, a: Node) -> Value:
        if a[0] == "!":
            raise Undecided  # 5!! is another function
        n = self.value(a)
        if isinstance(n, Fraction) and n.denominator == 1:
            if not 0 <= n <= 5000:
                raise Undecided
            self.work += 50 * int(n)
            return Fraction(math.factorial(int(n)))
        return _undecided()

    def binomial(self, a: Node, b: Node) -> Value:
        n, k = self.value(a), self.value(b)
        if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1:
            least = min(k, n - k)
            if n < 0 or not 0 <= k <= n:
                return Fraction(0) if 0 <= n < k else _undecided()
            if least * n.numerator.bit_length() > MAX_BITS:
                raise Undecided
            return Fraction(math.comb(int(n), int(k)))
        return _undecided()

    def call(self, name: str, *arguments: Node) -> Value:
        if name in _SPECIAL:
            return _SPECIAL[name](self, *arguments)
        if name in _LOGS:
            return self.logarithm(name, *arguments)
        if len(arguments) != 1 or name not in _ONE:
            raise Undecided
        x = self.inexact(self.value(arguments[0]))
        if abs(x) > 2.0**60 or (name in ("exp", "sinh", "cosh") and abs(x) > SMALL):
            raise Undecided
        return getattr(self.mp, _ONE[name])(x)

    def logarithm(self, name: str, a: Node, base: Node | None = None) -> Value:
        x = self.value(a)
        if not x:
            raise Undecided
        below = self.value(base) if base else Fraction(10) if name == "lg" else None
        if (
            isinstance(x, Fraction)
            and isinstance(below, Fraction)
            and (found := _exact_log(x, below)) is not None
        ):
            return found
        if isinstance(x, Fraction) and x == 1:
            return Fraction(0)
        found = self.mp.log(self.mp.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x)
        return found if below is None else found / self.mp.log(self.inexact(below))

    def rounded(self, a: Node, up: bool) -> Value:
        x = self.value(a)
        if not isinstance(x, Fraction):
            if isinstance(x, self.mp.mpc) or abs(x) > 2.0**60 or abs(x - self.mp.nint(x)) < 2.0**-60:
                raise Undecided
            x = Fraction(int(self.mp.floor(x)) + (1 if up else 0))
        return Fraction(math.ceil(x) if up else math.floor(x))

    def whole_numbers(self, combine: Any, *arguments: Node) -> Value:
        found = [self.value(a) for a in arguments]
        if not found or any(not isinstance(x, Fraction) or x.denominator != 1 for x in found):
            raise Undecided
        return Fraction(combine(*(x.numerator for x in found)))

    def extreme(self, choose: Any, *arguments: Node) -> Value:
        found = [self.value(a) for a in arguments]
        if not found or any(isinstance(x, self.mp.mpc) for x in found):
            raise Undecided
        return choose(found)

    def series(self, kind: str, name: str, first: Node, last: Node, term: Node) -> Value:
        low, high = self.value(first), self.value(last)
        whole = (
            isinstance(low, Fraction)
            and isinstance(high, Fraction)
            and low.denominator == high.denominator == 1
        )
        if not whole or not 0 <= high - low < MAX_TERMS:
            raise Undecided
        outside, total = self.point, Fraction(kind == "prod")
        for k in range(int(low), int(high) + 1):
            self.point = {**outside, name: Fraction(k)}
            a, b = self.pair(total, self.value(term))
            total = self.bounded(a + b if kind == "sum" else a * b)
        self.point = outside
        return total

    def base(self, digits: str, base: int) -> Value:
        return Fraction(int(digits, base)) if 2 <= base <= 36 else _undecided()


def _undecided() -> Any:
    raise Undecided


def exact_root(x: Fraction, n: int) -> Fraction | None:
    """The n-th root of x >= 0 when it is a fraction."""
    top, bottom = _whole_root(x.numerator, n), _whole_root(x.denominator, n)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(x: int, n: int) -> int | None:
    if n == 2:
        root = math.isqrt(x)
    elif x.bit_length() > 2000:
        raise Undecided
    else:
        root, step = 0, 1 << (x.bit_length() // n + 1)
        while step:
            if (root + step) ** n <= x:
                root += step
            step >>= 1
    return root if root**n == x else None


def _exact_log(x: Fraction, base: Fraction) -> Fraction | None:
    if (
        x <= 0
        or base <= 0
        or base == 1
        or x.numerator.bit_length() > 2000
        or base.numerator.bit_length() > 2000
    ):
        return None
    guess = round(
        (math.log(x.numerator) - math.log(x.denominator))
        / (math.log(base.numerator) - math.log(base.denominator))
    )
    return Fraction(guess) if abs(guess) < 10_000 and base**guess == x else None


_ONE = {
    name: name
    for name in "sin cos tan cot sec csc sinh cosh tanh coth exp acos asin atan acot asec acsc".split()
} | {f"arc{name}": f"a{name}" for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
_LOGS = ("ln", "log", "lg")
_SPECIAL = {
    "root": Evaluation.root,
    "binom": Evaluation.binomial,
    "abs": lambda self, a: abs(self.value(a)),
    "floor": lambda self, a: self.rounded(a, False),
    "ceil": lambda self, a: self.rounded(a, True),
    "gcd": lambda self, *a: self.whole_numbers(math.gcd, *a),
    "lcm": lambda self, *a: self.whole_numbers(math.lcm, *a),
    "mod": lambda self, a, b: self.whole_numbers(operator.mod, a, b),
    "min": lambda self, *a: self.extreme(min, *a),
    "max": lambda self, *a: self.extreme(max, *a),
}
_CONSTANTS = {"pi": lambda mp: +mp.pi, "e": lambda mp: +mp.e, "i": lambda mp: mp.mpc(0, 1)}
_RULES = {
    "n": lambda self, value, digits: value,
    "v": lambda self, name: self.point[name] if name in self.point else _undecided(),
    "const": lambda self, name: _CONSTANTS[name](self.mp),
    "+": Evaluation.add,
    "*": Evaluation.multiply,
    "/": Evaluation.divide,
    "^": Evaluation.power,
    "neg": lambda self, a: -self.value(a),
    "call": Evaluation.call,
    "!": Evaluation.factorial,
    "%": lambda self, a: self.value(a) / 100,
    "deg": lambda self, a: self.inexact(self.value(a)) * self.mp.pi / 180,
    "base": Evaluation.base,
    "series": Evaluation.series,
}
