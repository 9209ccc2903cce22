"""Sets of real numbers, however they are written: intervals, unions, inequalities, x in
..., {x | ...}, excluded points.
"""

from dataclasses import dataclass

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.linear import TWO, side_of, solved
from lgrpo_lite.verifier.lists import signs_chosen
from lgrpo_lite.verifier.pieces import (
    INF,
    MAX_PIECES,
    MINUS_INF,
    ZERO,
    Piece,
    complement,
    from_on,
    intersection,
    merged,
    mirrored,
    same_piece,
    up_to,
)
from lgrpo_lite.verifier.relations import function_value
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import constant

_MIRRORED = str.maketrans("<>", "><")


@dataclass(frozen=True, slots=True)
class Solutions:
    """A union of pieces, and the variable that was named, if one was."""

    pieces: tuple[Piece, ...]
    name: str | None = None


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
    sides = tuple(function_value(side) for side in sides)
    if ops == ("in",) and sides[0][0] == "v":
        return _membership(*sides)
    if not any(side[0] == "v" for side in sides):
        return _solved(ops, sides)
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
        return Solutions((up_to(bound, False), from_on(bound, False)), name)
    if op.startswith("<"):
        return Solutions((up_to(bound, op == "<="),), name)
    return Solutions((from_on(bound, op == ">="),), name)


def _solved(ops: tuple[str, ...], sides: tuple[Node, ...]) -> Solutions | None:
    """A relation in which one side holds the variable, and not alone; None of any other."""
    varied = [index for index, side in enumerate(sides) if holds(side, "v")]
    if len(varied) != 1 or ops == ("in",) or "=" in ops:
        return None
    place = varied[0]
    side = side_of(sides[place])
    if side is None:
        return None
    bounds = []
    for bound in (*sides[:place], *sides[place + 1 :]):
        rooted = _rooted(bound) if side.form == "square" else bound
        if rooted is None:
            return None
        bounds.append(rooted)
    bounds.insert(place, side.variable)
    described = _relation(ops, tuple(bounds))
    if described is None:
        return None
    pieces = list(described.pieces)
    if side.form != "itself":
        negative = [mirrored(piece) for piece in pieces]
        right = intersection(pieces, [from_on(ZERO, True)])
        left = intersection(negative, [up_to(ZERO, True)])
        pieces = [*left, *right]
    return Solutions(tuple(solved(piece, side) for piece in pieces), described.name)


def _rooted(bound: Node) -> Node | None:
    """The square root of a bound of a square; None of a negative one."""
    return ("call", "root", bound, TWO) if constant(bound) >= 0 else None


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
            pieces = intersection(pieces, other.pieces)
        else:
            pieces = intersection(pieces, complement(other.pieces))
        if len(pieces) > MAX_PIECES:
            raise Undecided
    return Solutions(tuple(pieces), names.pop() if names else None)


def same_solutions(p: Node, g: Node) -> bool:
    """Whether two trees describe the same set; of two named variables, of the same one."""
    a, b = solutions(p), solutions(g)
    if a is None or b is None:
        return False
    if a.name and b.name and a.name != b.name:
        return False
    mine, gold = a.pieces, b.pieces
    if len(mine) != 1 or len(gold) != 1:
        mine, gold = merged(mine), merged(gold)
    if len(mine) != len(gold):
        return False
    pairs = zip(mine, gold, strict=True)
    return all(same_piece(piece, other) for piece, other in pairs)
