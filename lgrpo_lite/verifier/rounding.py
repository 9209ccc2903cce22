"""Whether a decimal is a value rounded, or a float of it as a program prints it."""

from fractions import Fraction

from lgrpo_lite.verifier.tree import Node
from lgrpo_lite.verifier.values import constant

FLOAT = 17  # significant digits of a double, the last of which may be off by one
PRINTED = 12  # significant digits from which a decimal is a printed float, not a rounded answer


def rounded_alike(p: Node, g: Node) -> bool:
    """Whether the prediction rounds to the gold decimal, or is a printed float of the gold."""
    decimals, significant = _digits(p)
    gold_decimals, gold_significant = _digits(g)
    if significant >= PRINTED:
        if _rounds(g, p, decimals) or (significant <= FLOAT and float(constant(p)) == float(constant(g))):
            return True
        return gold_significant >= 2 and _rounds(p, g, gold_decimals)
    if gold_significant >= PRINTED:
        return _rounds(p, g, gold_decimals)
    if gold_significant >= 3 and not _decimal_inside(p):
        return _rounds(p, g, gold_decimals)
    return False


def _digits(node: Node) -> tuple[int, int]:
    """Decimals and significant digits of a literal with a decimal point; 0 and 0 of anything else."""
    if node[0] == "neg":
        node = node[1]
    if node[0] != "n" or "." not in node[2]:
        return 0, 0
    digits = node[2].replace(",", "")
    if not digits.replace(".", "").isdigit():
        return 0, 0
    whole, _, decimals = digits.partition(".")
    significant = (whole + decimals).lstrip("0")
    return len(decimals), len(significant)


def literal_decimals(node: Node) -> int:
    """How many decimals a literal has; 0 of a whole number and of anything else."""
    decimals, _ = _digits(node)
    return decimals


def _decimal_inside(node: object) -> bool:
    if not isinstance(node, tuple) or not node:
        return False
    if node[0] == "n" and "." in node[2]:
        return True
    return any(_decimal_inside(child) for child in node[1:])


def _rounds(exact: Node, decimal: Node, decimals: int) -> bool:
    """Whether the two differ by half a unit of the last decimal or less."""
    gap = abs(constant(("+", exact, ("neg", decimal))))
    try:
        return gap <= Fraction(1, 2 * 10**decimals)
    except TypeError:  # a number of mpmath is not compared with a fraction
        return float(gap * 2 * 10**decimals) <= 1
