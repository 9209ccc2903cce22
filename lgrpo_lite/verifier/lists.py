"""What a list or set holds: its elements, its plain numbers, the names its elements are given."""

import re
from collections.abc import Sequence
from fractions import Fraction

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.tree import Node, holds, rebuilt

_OF_BOTH = re.compile(r"_\d,\d$")  # x_{1,2}
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
            values += [signs_chosen(member, 1), signs_chosen(member, -1)]
        else:
            values.append(member)
    return values


def _members(node: Node) -> tuple[Node, ...]:
    if node[0] == "list":
        return node[2:]
    if node[0] == "set":
        return node[1:]
    return (node,)


def signs_chosen(node: Node, upper: int) -> Node:
    """The node with every ± as + (upper 1) or - (upper -1)."""
    if node[0] == "pm":
        _, sign, operand = node
        operand = signs_chosen(operand, upper)
        return operand if sign * upper > 0 else _opposite(operand)
    return rebuilt(node, lambda child: signs_chosen(child, upper))


def _opposite(node: Node) -> Node:
    """The node negated, a tuple in each of its coordinates."""
    if node[0] != "tuple":
        return ("neg", node)
    kind, opening, closing, *coordinates = node
    return (kind, opening, closing, *(("neg", coordinate) for coordinate in coordinates))


def alike_in_form(mine: list[Node], gold: list[Node]) -> tuple[list[Node], list[Node]]:
    """Two answers written alike: (p, q) = (2, 3) beside p = 2, q = 3 is coordinate by coordinate, as is
    x = y = 5, and x = 1, y = 2 or x = 3, y = 4 beside tuples is one tuple for each.
    """
    for _ in range(2):
        if len(mine) == 1 and len(gold) > 1 and gold[0][0] != "tuple":
            mine = coordinates_of(mine[0]) or _each_named(mine[0]) or mine
        if len(mine) > len(gold) and all(node[0] == "tuple" for node in gold):
            mine = _in_turns(mine) or mine
        mine, gold = gold, mine
    return mine, gold


def without_domains(mine: list[Node], gold: list[Node]) -> list[Node]:
    """2k pi, k in Z, without where k is from, where the gold does not say it."""
    if any(map(_is_domain, gold)):
        return mine
    kept = [node for node in mine if not _is_domain(node)]
    return kept or mine


def _is_domain(node: Node) -> bool:
    return node[:2] == ("rel", ("in",)) and node[2][0] == "v" and node[3][0] == "domain"


def coordinates_of(node: Node) -> list[Node] | None:
    """p = 2 and q = 3 of (p, q) = (2, 3); None of anything else."""
    if node[:2] != ("rel", ("=",)):
        return None
    _, _, names, values = node
    if names[0] != "tuple" or values[0] != "tuple" or len(names) != len(values):
        return None
    pairs = list(zip(names[3:], values[3:], strict=True))
    if any(name[0] != "v" for name, _ in pairs):
        return None
    return [("rel", ("=",), name, value) for name, value in pairs]


def _each_named(node: Node) -> list[Node] | None:
    """x = 5 and y = 5 of x = y = 5."""
    if node[0] != "rel" or set(node[1]) != {"="}:
        return None
    _, _, *names, value = node
    if any(name[0] != "v" for name in names) or holds(value, "v"):
        return None
    return [("rel", ("=",), name, value) for name in names]


def _in_turns(members: list[Node]) -> list[Node] | None:
    """Assignments whose names come round again, as tuples in the order of the names."""
    if any(member[:2] != ("rel", ("=",)) or member[2][0] != "v" for member in members):
        return None
    names = [member[2] for member in members]
    size = len(dict.fromkeys(names))
    if size < 2 or len(members) % size or names != names[:size] * (len(members) // size):
        return None
    tuples = []
    for begin in range(0, len(members), size):
        values = [member[3] for member in members[begin : begin + size]]
        tuples.append(("tuple", "(", ")", *values))
    return tuples


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
    distinct = {
        name.partition("_")[0] for name in first if name is not None
    }  # the roots x_1, x_2 have no order
    return len(distinct) > 1 and not any(second)


def names_tell_nothing(mine: Sequence[str | None], gold: Sequence[str | None]) -> bool:
    """Whether the names of unknowns may be left out: one side has none, or there is but one, which may have
    an index where the other side has not: x_1 and x_2 beside x.
    """
    my_names = {_OF_BOTH.sub("", name) for name in mine if name}
    gold_names = {_OF_BOTH.sub("", name) for name in gold if name}
    if not my_names or not gold_names or len(my_names | gold_names) == 1:
        return True
    unindexed = {name.partition("_")[0] for name in my_names | gold_names}
    return len(unindexed) == 1 and unindexed in (my_names, gold_names)


def is_one_tuple(members: Sequence[Node]) -> bool:
    return len(members) == 1 and members[0][0] == "tuple"


def tuple_members(node: Node) -> list[Node] | None:
    """Of a tuple in round brackets, which a bare list may give too; None of one in others."""
    _, _, _, *coordinates = node
    listed = brackets(node) == ("[", "]") and len(coordinates) > 2  # no interval
    return coordinates if listed or brackets(node) == ("(", ")") else None


def brackets(node: Node) -> tuple[str, str]:
    _, opening, closing, *_ = node
    return opening, closing
