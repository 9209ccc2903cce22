"""Sets of real numbers, however they are written: intervals, unions, inequalities, x in
..., {x | ...}, excluded points.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.tree import Node
from lgrpo_lite.verifier.values import constant, equal

INF: Node = ("inf",)
MINUS_INF: Node = ("neg", INF)
MAX_PIECES = 60


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


def solutions(node: Node) -> Solutions | None:
    """The set that a tree describes, or None when it describes none."""
    kind = node[0]
    if kind == "tuple" and len(node) == 5:
        return Solutions((Piece(node[3], node[1] == "[", node[4], node[2] == "]"),))
    if kind == "empty":
        return Solutions(())
    if kind == "domain" and node[1] == "R":
        return Solutions((Piece(MINUS_INF, False, INF, False),))
    if kind == "set":
        return Solutions(tuple(Piece(x, True, x, True) for x in node[1:]))
    if kind == "rel":
        return _relation(node[1], node[2:])
    if kind == "builder":
        return _builder(node[1], node[2])
    if kind in ("cup", "cap", "minus"):
        return _combined(kind, [solutions(node[1]), solutions(node[2])])
    if kind == "list" and all(part[0] in ("rel", "cup") for part in node[2:]):
        parts = [solutions(part) for part in node[2:]]
        inequalities = all(part[0] != "rel" or part[1] != ("=",) for part in node[2:])
        excluded = all(part[0] == "rel" and part[1] == ("!=",) for part in node[2:])
        joined = (
            "cup"
            if node[1] == "or" and not excluded
            else "cap"
            if node[1] == "and" or excluded or inequalities
            else ""
        )
        return _combined(joined, parts) if joined and inequalities else None
    return None


def _relation(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    if ops == ("in",) and sides[0][0] == "v":
        inner = solutions(sides[1])
        return None if inner is None or sides[1][0] == "set" else Solutions(inner.pieces, sides[0][1])
    if any(_size(side) for side in sides):
        return _sized(ops, tuple(_size(side) or side for side in sides))
    if len(ops) == 2 and set(ops) <= {">", ">="}:
        ops, sides = tuple(op.replace(">", "<") for op in reversed(ops)), tuple(reversed(sides))
    if len(ops) == 2 and set(ops) <= {"<", "<="} and sides[1][0] == "v":
        return Solutions((Piece(sides[0], ops[0] == "<=", sides[2], ops[1] == "<="),), sides[1][1])
    if len(ops) != 1 or ops[0] not in ("<", "<=", ">", ">=", "!="):
        return None
    op, (left, right) = ops[0], sides
    if left[0] != "v":
        left, right, op = right, left, op.translate(str.maketrans("<>", "><"))
    if left[0] != "v" or right[0] == "v":
        return None
    if op == "!=":
        return Solutions((Piece(MINUS_INF, False, right, False), Piece(right, False, INF, False)), left[1])
    if op.startswith("<"):
        return Solutions((Piece(MINUS_INF, False, right, op == "<="),), left[1])
    return Solutions((Piece(right, op == ">=", INF, False),), left[1])


def _size(node: Node) -> Node | None:
    """The variable x of |x|."""
    return node[2] if node[:2] == ("call", "abs") and node[2][0] == "v" else None


def _sized(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    """A relation of |x|: what it says of x, and of -x."""
    found = _relation(ops, sides)
    if found is None or ops == ("in",):
        return None
    mirrored = tuple(
        Piece(_opposite(p.high), p.high_closed, _opposite(p.low), p.low_closed) for p in found.pieces
    )
    zero: Node = ("n", Fraction(0), "0")
    right = _cut(found.pieces, [Piece(zero, True, INF, False)])
    left = _cut(mirrored, [Piece(MINUS_INF, False, zero, True)])
    return Solutions((*left, *right), found.name)


def _opposite(node: Node) -> Node:
    return INF if node == MINUS_INF else ("neg", node)


def _builder(variable: Node, condition: Node) -> Solutions | None:
    """{x | condition}; also {x in R | condition}. The name is bound, so it is left out."""
    name = (
        variable[2]
        if variable[0] == "rel" and variable[1] == ("in",) and variable[3] == ("domain", "R")
        else variable
    )
    found = solutions(
        ("list", "and", *condition[2:]) if condition[0] == "list" and condition[1] == "," else condition
    )
    return None if found is None or found.name != name[1] else Solutions(found.pieces)


def _combined(kind: str, parts: list[Solutions | None]) -> Solutions | None:
    known = [part for part in parts if part is not None]
    names = {part.name for part in known if part.name}
    if len(known) != len(parts) or not known or len(names) > 1:
        return None
    pieces = list(known[0].pieces)
    for part in known[1:]:
        if kind == "cup":
            pieces += part.pieces
        else:
            pieces = _cut(pieces, part.pieces if kind == "cap" else _complement(part.pieces))
        if len(pieces) > MAX_PIECES:
            raise Undecided
    return Solutions(tuple(pieces), names.pop() if names else None)


def _place(node: Node) -> Any:
    """Where an end lies, to be ordered."""
    if node in (INF, MINUS_INF):
        return float("inf") if node == INF else float("-inf")
    if node == ("+", INF):
        return float("inf")
    return constant(node)


def _below(a: Node, b: Node) -> bool:
    x, y = _place(a), _place(b)
    if isinstance(x, float) or isinstance(y, float):
        return x != y and (x == float("-inf") or y == float("inf"))
    return not equal(a, b) and float(constant(("+", b, ("neg", a)))) > 0


def _cut(pieces: Any, others: Any) -> list[Piece]:
    """The intersection of two unions."""
    found = []
    for a in pieces:
        for b in others:
            low, low_closed = _inner((a.low, a.low_closed), (b.low, b.low_closed), lower=True)
            high, high_closed = _inner((a.high, a.high_closed), (b.high, b.high_closed), lower=False)
            if _below(low, high) or (low_closed and high_closed and not _below(high, low)):
                found.append(Piece(low, low_closed, high, high_closed))
    return found


def _inner(a: tuple[Node, bool], b: tuple[Node, bool], *, lower: bool) -> tuple[Node, bool]:
    if _below(a[0], b[0]):
        return b if lower else a
    if _below(b[0], a[0]):
        return a if lower else b
    return a[0], a[1] and b[1]


def _complement(pieces: tuple[Piece, ...]) -> list[Piece]:
    found = [Piece(MINUS_INF, False, INF, False)]
    for piece in pieces:
        sides = [
            Piece(MINUS_INF, False, piece.low, not piece.low_closed),
            Piece(piece.high, not piece.high_closed, INF, False),
        ]
        found = _cut(found, sides)
    return found


def _merged(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Ordered, with pieces that touch joined."""
    if len(pieces) > MAX_PIECES:
        raise Undecided
    left, found = list(pieces), []
    while left:
        first = left[0]
        for piece in left[1:]:
            if _below(piece.low, first.low):
                first = piece
        left.remove(first)
        last = found[-1] if found else None
        if (
            last is None
            or _below(last.high, first.low)
            or (not _below(first.low, last.high) and not (last.high_closed or first.low_closed))
        ):
            found.append(first)
            continue
        low_closed = last.low_closed or (first.low_closed and not _below(last.low, first.low))
        higher = first if _below(last.high, first.high) else last
        high_closed = higher.high_closed or (first.high_closed and not _below(first.high, last.high))
        found[-1] = Piece(last.low, low_closed, higher.high, high_closed)
    return found


def same_solutions(p: Node, g: Node) -> bool:
    """Whether two trees describe the same set; of two named variables, of the same one."""
    a, b = solutions(p), solutions(g)
    if a is None or b is None or (a.name and b.name and a.name != b.name):
        return False
    mine, gold = a.pieces, b.pieces
    if len(mine) != 1 or len(gold) != 1:
        mine, gold = _merged(mine), _merged(gold)
    return len(mine) == len(gold) and all(
        (x.low_closed, x.high_closed) == (y.low_closed, y.high_closed)
        and _same_end(x.low, y.low)
        and _same_end(x.high, y.high)
        for x, y in zip(mine, gold, strict=True)
    )


def _same_end(a: Node, b: Node) -> bool:
    infinite = [node in (INF, MINUS_INF) for node in (a, b)]
    return a == b if any(infinite) else equal(a, b)
