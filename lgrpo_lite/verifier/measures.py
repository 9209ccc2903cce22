"""What was measured, and in which unit; whether two measures are the same."""

from collections.abc import Callable
from fractions import Fraction

from lgrpo_lite.verifier import units
from lgrpo_lite.verifier.leniency import Leniency
from lgrpo_lite.verifier.tree import Node

MEASURES = frozenset(["unit", "deg", "%"])
_HUNDRED = ("n", Fraction(100), "100")
_ANGLES = {"^circ", "rad"}
_RADIANS = ("/", ("const", "pi"), ("n", Fraction(180), "180"))  # of one degree

Same = Callable[[Node, Node], bool]


def measured(node: Node) -> tuple[Node, str]:
    """The bare value and its unit; a word like `million` is part of the value."""
    kind = node[0]
    if kind == "%":
        return node[1], "%"
    if kind == "deg":
        return node[1], "^circ"
    if kind == "neg":
        value, unit = measured(node[1])
        return ("neg", value), unit
    if kind != "unit":
        return node, ""
    _, value, unit_words = node
    size, unit = units.multiple(unit_words)
    if size != 1:
        value = ("*", value, ("n", Fraction(size), str(size)))
    if unit.lower() in ("degree", "degrees"):
        unit = "^circ"
    return value, unit


def same_measure(p: Node, g: Node, policy: Leniency, same: Same) -> bool:
    """Values with units, degrees or percent. A measure that one side alone names
    is dropped, or read as a number.
    """
    value, unit = measured(p)
    gold, gold_unit = measured(g)
    if _is_heaped(value) or _is_heaped(gold):
        return False
    if unit and gold_unit:
        if {unit, gold_unit} == _ANGLES:
            return _in_radians(value, gold, same, mine=unit == "^circ")
        size = units.factor(unit, gold_unit)
        if size is None:
            return False
        if size != 1:
            value = ("*", ("n", size, str(size)), value)
        return same(value, gold)
    only_unit = unit or gold_unit
    if only_unit == "%":
        return _same_percent(value, gold, policy, same, mine=bool(unit))
    if only_unit == "^circ":
        return _same_angle(value, gold, policy, same, mine=bool(unit))
    return policy.units == "ignore" and same(value, gold)


def _is_heaped(node: Node) -> bool:
    """Whether a measured value is a measure of a measure itself: 5%%%. Each could be read in two ways."""
    return node[0] in MEASURES and node[1][0] in MEASURES


def _same_percent(value: Node, gold: Node, policy: Leniency, same: Same, *, mine: bool) -> bool:
    """Where one side alone, the prediction (`mine`) or the gold, has a sign of percent."""
    if policy.percent == "either" and same(value, gold):
        return True
    operation = "/" if mine else "*"
    return same((operation, value, _HUNDRED), gold)


def _same_angle(value: Node, gold: Node, policy: Leniency, same: Same, *, mine: bool) -> bool:
    """Where one side alone, the prediction (`mine`) or the gold, is in degrees."""
    if policy.units == "ignore" and same(value, gold):
        return True
    return _in_radians(value, gold, same, mine=mine)


def _in_radians(value: Node, gold: Node, same: Same, *, mine: bool) -> bool:
    """Where the prediction (`mine`) or the gold is in degrees, and the other in radians."""
    if mine:
        return same(("*", value, _RADIANS), gold)
    return same(value, ("*", gold, _RADIANS))
