"""What a list or set holds: its elements, its plain numbers, the names its elements are given."""

from collections.abc import Sequence
from fractions import Fraction

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.tree import Node, holds

MAX_ELEMENTS = 200  # of a list that is compared element by element


def elements(node: Node) -> list[Node]:
    """What a list or set holds, or the one answer; an element with ± counts twice.
    Names of unknowns are left out.
    """
    members = _members(node)
    if len(members) > MAX_ELEMENTS:
        raise Undecided
    values = []
    for member in members:
        if holds(member, "pm"):
            values += [_signs_chosen(member, 1), _signs_chosen(member, -1)]
        else:
            values.append(member)
    return values


def _members(node: Node) -> tuple[Node, ...]:
    if node[0] == "list":
        return node[2:]
    if node[0] == "set":
        return node[1:]
    return (node,)


def _signs_chosen(node: Node, upper: int) -> Node:
    """The node with every ± as + (upper 1) or - (upper -1)."""
    if node[0] == "pm":
        _, sign, operand = node
        operand = _signs_chosen(operand, upper)
        return operand if sign * upper > 0 else ("neg", operand)
    children = []
    for child in node:
        is_node = isinstance(child, tuple) and child
        children.append(_signs_chosen(child, upper) if is_node else child)
    return tuple(children)


def literals(node: Node) -> list[Fraction] | None:
    """The values of a list or set of plain numbers; None of anything else."""
    if node[0] not in ("list", "set"):
        return None
    values = []
    for member in _members(node):
        value = _literal(member)
        if value is None:
            return None
        values.append(value)
    return values


def _literal(node: Node) -> Fraction | None:
    if node[0] == "neg":
        _, positive = node
        return -positive[1] if positive[0] == "n" else None
    return node[1] if node[0] == "n" else None


def unnamed_on_one_side(mine: Sequence[str | None], gold: Sequence[str | None]) -> bool:
    """x=2, y=3 against (2,3) or 2,3: then the order is that of the names."""
    return _only_first_named(mine, gold) or _only_first_named(gold, mine)


def _only_first_named(first: Sequence[str | None], second: Sequence[str | None]) -> bool:
    """Whether the first has several names, and the second none."""
    distinct = {name for name in first if name is not None}
    return len(distinct) > 1 and not any(second)


def names_tell_nothing(mine: Sequence[str | None], gold: Sequence[str | None]) -> bool:
    """Whether the names of unknowns may be left out: one side has none, or there is but one."""
    if not any(mine) or not any(gold):
        return True
    distinct = {name for name in (*mine, *gold) if name}
    return len(distinct) == 1
