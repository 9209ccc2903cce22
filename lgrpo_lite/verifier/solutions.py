"""Sets of real numbers, however they are written: intervals, unions, inequalities, x in
..., {x | ...}, excluded points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.lists import signs_chosen
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import constant, equal

INF: Node = ("inf",)
MINUS_INF: Node = ("neg", INF)
ZERO: Node = ("n", Fraction(0), "0")
MAX_PIECES = 60
_MIRRORED = str.maketrans("<>", "><")


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval; a point when both ends are it."""

    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


@dataclass(frozen=True, slots=True)
class Solutions:
    """A union of pieces, and the variable that was named, if one was."""

    pieces: tuple[Piece, ...]
    name: str | None = None


def _up_to(high: Node, closed: bool) -> Piece:
    return Piece(MINUS_INF, False, high, closed)


def _from(low: Node, closed: bool) -> Piece:
    return Piece(low, closed, INF, False)


def solutions(node: Node) -> Solutions | None:
    """The set that a tree describes, or None when it describes none."""
    rule = _DESCRIBED.get(node[0])
    return None if rule is None else rule(node)


def _interval(node: Node) -> Solutions | None:
    if len(node) != 5:
        return None
    _, opening, closing, low, high = node
    return Solutions((Piece(low, opening == "[", high, closing == "]"),))


def _nothing(node: Node) -> Solutions:
    return Solutions(())


def _domain(node: Node) -> Solutions | None:
    _, name = node
    return Solutions((Piece(MINUS_INF, False, INF, False),)) if name == "R" else None


def _set(node: Node) -> Solutions:
    _, *members = node
    return Solutions(tuple(Piece(member, True, member, True) for member in members))


def _statement(node: Node) -> Solutions | None:
    _, ops, *sides = node
    return _relation(ops, tuple(sides))


def _operation(node: Node) -> Solutions | None:
    kind, left, right = node
    return _combined(kind, [solutions(left), solutions(right)])


def _list(node: Node) -> Solutions | None:
    """Inequalities joined by `and`, `or` or commas; excluded points are all excluded, whatever joins them."""
    _, joined, *parts = node
    if joined != "and" and all(map(_is_pair, parts)) and any(map(_is_surely_interval, parts)):
        return _combined("cup", [solutions(part) for part in parts])
    if not all(part[0] in ("rel", "cup") for part in parts):
        return None
    described = [_point(part) or solutions(part) for part in parts]
    points = [part[:2] == ("rel", ("=",)) for part in parts]
    if any(points) and (joined != "or" or all(points)):
        return None
    excluded = all(part[:2] == ("rel", ("!=",)) for part in parts)
    either = joined == "or" and not excluded
    return _combined("cup" if either else "cap", described)


def _is_pair(node: Node) -> bool:
    return node[0] == "tuple" and len(node) == 5


def _is_surely_interval(node: Node) -> bool:
    """Whether a pair can be no point: an end is infinite, or the brackets are not both round."""
    if not _is_pair(node):
        return False
    _, opening, closing, low, high = node
    return "[" in opening or "]" in closing or holds(low, "inf") or holds(high, "inf")


def _point(node: Node) -> Solutions | None:
    """What x = 1 describes beside inequalities."""
    if node[:2] != ("rel", ("=",)) or node[2][0] != "v" or holds(node[3], "v"):
        return None
    _, _, variable, value = node
    return Solutions((Piece(value, True, value, True),), variable[1])


def _builder(node: Node) -> Solutions | None:
    """{x | condition}; also {x in R | condition}. The name is bound, so it is left out."""
    _, variable, condition = node
    if variable[0] == "rel":
        _, ops, member, *domain = variable
        if ops == ("in",) and domain == [("domain", "R")]:
            variable = member
    if condition[:2] == ("list", ","):
        condition = ("list", "and", *condition[2:])
    described = solutions(condition)
    if described is None or variable[0] != "v" or described.name != variable[1]:
        return None
    return Solutions(described.pieces)


_DESCRIBED = {
    "tuple": _interval,
    "empty": _nothing,
    "domain": _domain,
    "set": _set,
    "rel": _statement,
    "builder": _builder,
    "cup": _operation,
    "cap": _operation,
    "minus": _operation,
    "list": _list,
}


def _relation(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    if ops == ("in",) and sides[0][0] == "v":
        return _membership(*sides)
    if any(_sized_variable(side) for side in sides):
        return _sized(ops, tuple(_sized_variable(side) or side for side in sides))
    if len(ops) == 2:
        return _chain(ops, sides)
    if len(ops) == 1:
        return _inequality(ops[0], *sides)
    return None


def _membership(variable: Node, container: Node) -> Solutions | None:
    """x in an interval or the like; x in {1, 2} is the values that x has, not a set."""
    described = solutions(container)
    if described is None or container[0] == "set":
        return None
    return Solutions(described.pieces, variable[1])


def _chain(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    """low < x < high, or high > x > low."""
    if set(ops) <= {">", ">="}:
        ops = tuple(op.translate(_MIRRORED) for op in reversed(ops))
        sides = sides[::-1]
    low, variable, high = sides
    if not set(ops) <= {"<", "<="} or variable[0] != "v":
        return None
    low_op, high_op = ops
    piece = Piece(low, low_op == "<=", high, high_op == "<=")
    return Solutions((piece,), variable[1])


def _inequality(op: str, left: Node, right: Node) -> Solutions | None:
    """x < bound, or bound > x, or x != bound."""
    if op not in ("<", "<=", ">", ">=", "!="):
        return None
    variable, bound = left, right
    if variable[0] != "v":
        variable, bound, op = right, left, op.translate(_MIRRORED)
    if variable[0] != "v" or bound[0] == "v":
        return None
    name = variable[1]
    if op == "!=" and holds(bound, "pm"):
        return _combined("cap", [_inequality(op, variable, signs_chosen(bound, sign)) for sign in (1, -1)])
    if op == "!=":
        return Solutions((_up_to(bound, False), _from(bound, False)), name)
    if op.startswith("<"):
        return Solutions((_up_to(bound, op == "<="),), name)
    return Solutions((_from(bound, op == ">="),), name)


def _sized_variable(node: Node) -> Node | None:
    """The variable x of |x|."""
    if node[:2] != ("call", "abs") or node[2][0] != "v":
        return None
    return node[2]


def _sized(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    """A relation of |x|: what it says of x, and of -x."""
    described = _relation(ops, sides)
    if described is None or ops == ("in",):
        return None
    mirrored = [_mirrored(piece) for piece in described.pieces]
    right = _intersection(described.pieces, [_from(ZERO, True)])
    left = _intersection(mirrored, [_up_to(ZERO, True)])
    return Solutions((*left, *right), described.name)


def _mirrored(piece: Piece) -> Piece:
    return Piece(_opposite(piece.high), piece.high_closed, _opposite(piece.low), piece.low_closed)


def _opposite(node: Node) -> Node:
    return INF if node == MINUS_INF else ("neg", node)


def _combined(kind: str, parts: list[Solutions | None]) -> Solutions | None:
    """The union (cup), intersection (cap) or difference (minus) of parts that name one variable at most."""
    known = [part for part in parts if part is not None]
    names = {part.name for part in known if part.name}
    if len(known) != len(parts) or not known or len(names) > 1:
        return None
    first, *others = known
    pieces = list(first.pieces)
    for other in others:
        if kind == "cup":
            pieces += other.pieces
        elif kind == "cap":
            pieces = _intersection(pieces, other.pieces)
        else:
            pieces = _intersection(pieces, _complement(other.pieces))
        if len(pieces) > MAX_PIECES:
            raise Undecided
    return Solutions(tuple(pieces), names.pop() if names else None)


def _position(node: Node) -> Any:
    """Where an end lies, to be ordered."""
    if node in (INF, ("+", INF)):
        return math.inf
    if node == MINUS_INF:
        return -math.inf
    return constant(node)


def _below(a: Node, b: Node) -> bool:
    x, y = _position(a), _position(b)
    if isinstance(x, float) or isinstance(y, float):  # an infinite end
        return x != y and (x == -math.inf or y == math.inf)
    if equal(a, b):
        return False
    gap = constant(("+", b, ("neg", a)))
    return float(gap) > 0


def _intersection(pieces: Sequence[Piece], others: Sequence[Piece]) -> list[Piece]:
    """The intersection of two unions."""
    common = []
    for a in pieces:
        for b in others:
            low, low_closed = _higher((a.low, a.low_closed), (b.low, b.low_closed))
            high, high_closed = _lower((a.high, a.high_closed), (b.high, b.high_closed))
            both_closed = low_closed and high_closed
            if _below(low, high) or (both_closed and not _below(high, low)):
                common.append(Piece(low, low_closed, high, high_closed))
    return common


def _higher(a: tuple[Node, bool], b: tuple[Node, bool]) -> tuple[Node, bool]:
    """The higher of two ends; of the same end, closed where both are."""
    (end, closed), (other, other_closed) = a, b
    if _below(end, other):
        return b
    if _below(other, end):
        return a
    return end, closed and other_closed


def _lower(a: tuple[Node, bool], b: tuple[Node, bool]) -> tuple[Node, bool]:
    """The lower of two ends; of the same end, closed where both are."""
    (end, closed), (other, other_closed) = a, b
    if _below(end, other):
        return a
    if _below(other, end):
        return b
    return end, closed and other_closed


def _complement(pieces: tuple[Piece, ...]) -> list[Piece]:
    outside = [Piece(MINUS_INF, False, INF, False)]
    for piece in pieces:
        below = _up_to(piece.low, not piece.low_closed)
        above = _from(piece.high, not piece.high_closed)
        outside = _intersection(outside, [below, above])
    return outside


def _merged(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Ordered, with pieces that touch joined."""
    if len(pieces) > MAX_PIECES:
        raise Undecided
    left, merged = list(pieces), []
    while left:
        lowest = left[0]
        for piece in left[1:]:
            if _below(piece.low, lowest.low):
                lowest = piece
        left.remove(lowest)
        if merged and not _apart(merged[-1], lowest):
            merged[-1] = _joined(merged[-1], lowest)
        else:
            merged.append(lowest)
    return merged


def _apart(piece: Piece, above: Piece) -> bool:
    """Whether a number lies between two pieces, at least the end that neither holds."""
    if _below(piece.high, above.low):
        return True
    return not _below(above.low, piece.high) and not (piece.high_closed or above.low_closed)


def _joined(piece: Piece, above: Piece) -> Piece:
    """The one piece that two are which touch or overlap."""
    low_closed = piece.low_closed
    if not low_closed and above.low_closed:
        low_closed = not _below(piece.low, above.low)
    higher = above if _below(piece.high, above.high) else piece
    high_closed = higher.high_closed
    if not high_closed and above.high_closed:
        high_closed = not _below(above.high, piece.high)
    return Piece(piece.low, low_closed, higher.high, high_closed)


def same_solutions(p: Node, g: Node) -> bool:
    """Whether two trees describe the same set; of two named variables, of the same one."""
    a, b = solutions(p), solutions(g)
    if a is None or b is None:
        return False
    if a.name and b.name and a.name != b.name:
        return False
    mine, gold = a.pieces, b.pieces
    if len(mine) != 1 or len(gold) != 1:
        mine, gold = _merged(mine), _merged(gold)
    if len(mine) != len(gold):
        return False
    pairs = zip(mine, gold, strict=True)
    return all(_same_piece(piece, other) for piece, other in pairs)


def _same_piece(piece: Piece, other: Piece) -> bool:
    if piece.low_closed != other.low_closed or piece.high_closed != other.high_closed:
        return False
    return _same_end(piece.low, other.low) and _same_end(piece.high, other.high)


def _same_end(a: Node, b: Node) -> bool:
    if a in (INF, MINUS_INF) or b in (INF, MINUS_INF):
        return a == b
    return equal(a, b)
