"""The value of a tree at a point: an exact fraction where it is one, else hundreds of
digits; Undecided beyond the bounds.

Bounds are on size, not on time: no value has more than MAX_BITS bits, and one evaluation handles at most
MAX_WORK bits.
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

    mp = MPContext()
    mp.prec = bits
    return mp


class Evaluation:
    """Evaluates trees with `point` for the variables, at `bits` of precision; `largest`
    is the largest value on the way.
    """

    def __init__(self, point: Mapping[str, Fraction], bits: int):
        self.point = point
        self.bits = bits
        self.work = 0
        self.largest = 1.0

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
        """Both as fractions, or both as numbers of mpmath."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a, b
        return self.inexact(a), self.inexact(b)

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
        base = self.mp.e if a == ("const", "e") else self.value(a)
        exponent = self.value(b)
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = self.exact_power(base, exponent)
            if exact is not None:
                return exact
        if base == 0:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            raise Undecided
        if isinstance(exponent, Fraction) and exponent.denominator % 2 and self.is_negative(base):
            size = self.power_of(-base, exponent)  # (-8)^{1/3} is -2, as the cube root of -8
            return -size if exponent.numerator % 2 else size
        return self.power_of(base, exponent)

    def is_negative(self, value: Value) -> bool:
        return not isinstance(value, self.mp.mpc) and value < 0

    def power_of(self, base: Value, exponent: Value) -> Value:
        base, exponent = self.inexact(base), self.inexact(exponent)
        if abs(exponent) * (abs(self.mp.mag(base)) + 1) > SMALL:
            raise Undecided
        return self.mp.power(base, exponent)

    def exact_power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        """The power when it is a fraction."""
        if exponent.denominator == 1:
            return self.whole_power(base, exponent.numerator)
        odd = exponent.denominator % 2 == 1
        if exponent.denominator >= 1000 or not base or (base < 0 and not odd):
            return None
        root = exact_root(abs(base), exponent.denominator)
        if root is None:
            return None
        return self.whole_power(-root if base < 0 else root, exponent.numerator)

    def whole_power(self, base: Fraction, n: int) -> Fraction:
        if base == 0 and n <= 0:
            raise Undecided
        if abs(base) == 1:
            return base ** (n % 2)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(n) * bits > MAX_BITS:
            raise Undecided
        return base**n

    def root(self, a: Node, degree: Node) -> Value:
        base, n = self.value(a), self.value(degree)
        if not isinstance(n, Fraction) or n.denominator != 1 or not 1 <= n <= 1000:
            raise Undecided
        n = int(n)
        odd = n % 2 == 1
        if isinstance(base, Fraction) and (base >= 0 or odd):
            size = exact_root(abs(base), n)
            if size is None:
                size = self.mp.root(self.inexact(abs(base)), n)
            return -size if base < 0 else size
        base = self.inexact(base)
        if odd and not isinstance(base, self.mp.mpc) and base < 0:
            return -self.mp.root(-base, n)
        return self.mp.root(base, n)

    def factorial(self, a: Node) -> Value:
        if a[0] == "!":
            raise Undecided  # 5!! is another function
        n = self.value(a)
        if not _is_whole(n) or not 0 <= n <= 5000:
            raise Undecided
        self.work += 50 * int(n)
        return Fraction(math.factorial(int(n)))

    def binomial(self, a: Node, b: Node) -> Value:
        n, k = self.value(a), self.value(b)
        if not _is_whole(n) or not _is_whole(k) or n < 0 or k < 0:
            raise Undecided
        if k > n:
            return Fraction(0)
        factors = min(k, n - k)
        if factors * n.numerator.bit_length() > MAX_BITS:
            raise Undecided
        return Fraction(math.comb(int(n), int(k)))

    def call(self, name: str, *arguments: Node) -> Value:
        if name in _SPECIAL:
            return _SPECIAL[name](self, *arguments)
        if name in _LOGS:
            return self.logarithm(name, *arguments)
        if len(arguments) != 1 or name not in _ONE:
            raise Undecided
        x = self.inexact(self.value(arguments[0]))
        bound = SMALL if name in ("exp", "sinh", "cosh") else 2.0**60
        if abs(x) > bound:
            raise Undecided
        return getattr(self.mp, _ONE[name])(x)

    def logarithm(self, name: str, a: Node, base: Node | None = None) -> Value:
        x = self.value(a)
        if not x:
            raise Undecided
        below = None
        if base:
            below = self.value(base)
        elif name == "lg":
            below = Fraction(10)
        if isinstance(x, Fraction) and isinstance(below, Fraction):
            exact = _exact_log(x, below)
            if exact is not None:
                return exact
        if isinstance(x, Fraction):
            if x == 1:
                return Fraction(0)
            x = self.mp.mpf(x.numerator) / x.denominator
        natural = self.mp.log(x)
        if below is None:
            return natural
        return natural / self.mp.log(self.inexact(below))

    def rounded(self, a: Node, up: bool) -> Value:
        x = self.value(a)
        if isinstance(x, Fraction):
            return Fraction(math.ceil(x) if up else math.floor(x))
        if isinstance(x, self.mp.mpc) or abs(x) > 2.0**60:
            raise Undecided
        if abs(x - self.mp.nint(x)) < 2.0**-60:
            raise Undecided
        below = int(self.mp.floor(x))
        return Fraction(below + 1 if up else below)

    def whole_numbers(self, combine: Any, *arguments: Node) -> Value:
        values = [self.value(a) for a in arguments]
        if not values or not all(map(_is_whole, values)):
            raise Undecided
        return Fraction(combine(*(x.numerator for x in values)))

    def extreme(self, choose: Any, *arguments: Node) -> Value:
        values = [self.value(a) for a in arguments]
        if not values or any(isinstance(x, self.mp.mpc) for x in values):
            raise Undecided
        return choose(values)

    def series(self, kind: str, name: str, first: Node, last: Node, term: Node) -> Value:
        low, high = self.value(first), self.value(last)
        if not _is_whole(low) or not _is_whole(high):
            raise Undecided
        if not 0 <= high - low < MAX_TERMS:
            raise Undecided
        outside = self.point
        total: Value = Fraction(1 if kind == "prod" else 0)
        for k in range(int(low), int(high) + 1):
            self.point = {**outside, name: Fraction(k)}
            a, b = self.pair(total, self.value(term))
            total = self.bounded(a + b if kind == "sum" else a * b)
        self.point = outside
        return total

    def base(self, digits: str, base: int) -> Value:
        if not 2 <= base <= 36:
            raise Undecided
        return Fraction(int(digits, base))

    def variable(self, name: str) -> Value:
        if name not in self.point:
            raise Undecided
        return self.point[name]

    def degrees(self, a: Node) -> Value:
        return self.inexact(self.value(a)) * self.mp.pi / 180


def _is_whole(value: Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def exact_root(x: Fraction, n: int) -> Fraction | None:
    """The n-th root of x >= 0 when it is a fraction."""
    top, bottom = _whole_root(x.numerator, n), _whole_root(x.denominator, n)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(x: int, n: int) -> int | None:
    root = math.isqrt(x) if n == 2 else _floor_root(x, n)
    return root if root**n == x else None


def _floor_root(x: int, n: int) -> int:
    """The largest integer whose n-th power is at most x, bit by bit."""
    if x.bit_length() > 2000:
        raise Undecided
    root, step = 0, 1 << (x.bit_length() // n + 1)
    while step:
        if (root + step) ** n <= x:
            root += step
        step >>= 1
    return root


def _exact_log(x: Fraction, base: Fraction) -> Fraction | None:
    """The logarithm when it is an integer."""
    if x <= 0 or base <= 0 or base == 1:
        return None
    if x.numerator.bit_length() > 2000 or base.numerator.bit_length() > 2000:
        return None
    log_x = math.log(x.numerator) - math.log(x.denominator)
    log_base = math.log(base.numerator) - math.log(base.denominator)
    guess = round(log_x / log_base)
    if abs(guess) >= 10_000 or base**guess != x:
        return None
    return Fraction(guess)


_NAMES = (
    "sin cos tan cot sec csc sinh cosh tanh coth exp acos asin atan acot asec acsc asinh acosh atanh".split()
)
_ARC_NAMES = "sin cos tan cot sec csc sinh cosh tanh".split()
# Functions of one argument, and what mpmath calls them.
_ONE = {name: name for name in _NAMES}
_ONE |= {f"arc{name}": f"a{name}" for name in _ARC_NAMES}
_ONE |= {f"ar{name}": f"a{name}" for name in ("sinh", "cosh", "tanh")}
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
    "v": Evaluation.variable,
    "const": lambda self, name: _CONSTANTS[name](self.mp),
    "+": Evaluation.add,
    "*": Evaluation.multiply,
    "/": Evaluation.divide,
    "^": Evaluation.power,
    "neg": lambda self, a: -self.value(a),
    "call": Evaluation.call,
    "!": Evaluation.factorial,
    "%": lambda self, a: self.value(a) / 100,
    "deg": Evaluation.degrees,
    "base": Evaluation.base,
    "series": Evaluation.series,
}
