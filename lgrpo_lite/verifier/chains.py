"""Chains of equalities: x = 2 + 3 = 5 says 5, pi/2 ≈ 1.57 says pi/2, and x = 6 = 5 says nothing."""

from collections.abc import Callable, Sequence

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.rounding import literal_decimals
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import constant

Same = Callable[[Node, Node], bool]
_SLACK = 1 + 1e-9  # for halves in floating point
_ROUGHLY = 0.01  # of the value, where what it is rounded to is no plain number


def agreed(node: Node, same: Same) -> Node | None:
    """A relation without the sides that are only rounded; of constants alone, the last of them.

    None when two constants in it differ, or one is rounded to what it does not round to. Relations other than
    equalities are left as they are.
    """
    _, ops, *sides = node
    if not set(ops) <= {"=", "~"}:
        return node
    exact = sides
    if "~" in ops:
        first = ops.index("~") + 1
        exact, rounded = sides[:first], sides[first:]
        if not all(_rounds_to(exact[-1], side) for side in rounded):
            return None
    if exact[-1][0] == "unit" and exact[-1][2].startswith("mod"):  # congruent sides differ
        return node
    constants = [side for side in exact if _is_constant(side)]
    if not _all_alike(constants, same):
        return None
    if len(constants) == len(exact) or _is_identity(exact, same):
        return exact[-1]
    return ("rel", ops[: len(exact) - 1], *exact)


def _is_identity(sides: Sequence[Node], same: Same) -> bool:
    """Whether an expression is worked out: 40r^9 / 8r^4 = 5r^5. A name alone is given a value."""
    first, *others = sides
    if first[0] not in ("+", "*", "/", "^") or not others:
        return False
    try:
        return all(same(first, other) for other in others)
    except (Undecided, OverflowError, TypeError):
        return False


def _is_constant(node: Node) -> bool:
    """Whether a side is a value rather than a name, or words."""
    return not holds(node, "v") and not holds(node, "text")


def _all_alike(constants: Sequence[Node], same: Same) -> bool:
    if len(constants) < 2:
        return True
    *others, last = constants
    return all(_alike(other, last, same) for other in others)


def _alike(a: Node, b: Node, same: Same) -> bool:
    """Whether two sides are the same, or a decimal is the other nearly, as in 4.9^2 = 24."""
    try:
        if same(a, b):
            return True
        if not _is_decimal(a) and not _is_decimal(b):
            return False
        gap, size = _gap(a, b)
        return gap <= _ROUGHLY * size
    except (Undecided, OverflowError, TypeError):
        return False


def _is_decimal(node: object) -> bool:
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "n":
        return "." in node[2] or "e" in node[2].lower()
    return any(map(_is_decimal, node))


def _gap(a: Node, b: Node) -> tuple[float, float]:
    """How far two values are apart, and the size of the second."""
    gap = constant(("+", _bare(a), ("neg", _bare(b))))
    return float(abs(gap)), float(abs(constant(_bare(b))))


def _rounds_to(exact: Node, rounded: Node) -> bool:
    """Whether a value is about the other: rounded to its last digit that counts, or cut off there; 1234 is
    about 1200, and 5 is not about 6.
    """
    if not _is_constant(rounded):
        return False
    try:
        gap, size = _gap(exact, rounded)
        unit = _last_digit(rounded)
        if unit is None:
            return gap <= _ROUGHLY * size
        cut_off = unit < 1 and float(abs(constant(_bare(exact)))) > size
        if cut_off:
            return gap < unit / _SLACK
        return gap <= unit / 2 * _SLACK
    except (Undecided, OverflowError, TypeError):
        return exact == rounded


def _bare(node: Node) -> Node:
    """The value of a measure, without its unit."""
    while node[0] in ("unit", "deg"):
        node = node[1]
    return node


def _last_digit(node: Node) -> float | None:
    """What the value may be off by, for a number that is written out."""
    node = _bare(node)
    if node[0] == "neg":
        node = node[1]
    if node[0] != "n":
        return None
    decimals = literal_decimals(node)
    if decimals:
        return 10.0**-decimals
    digits = node[2].replace(",", "")
    zeros = len(digits) - len(digits.rstrip("0"))
    return 10.0 ** min(zeros, 3)
