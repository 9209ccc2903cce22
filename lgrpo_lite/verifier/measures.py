"""What was measured, and in which unit."""

from fractions import Fraction

from lgrpo_lite.verifier import units
from lgrpo_lite.verifier.tree import Node


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
