"""A side of an inequality in which the unknown does not stand alone: 2x - 1, |x - 3|, (x + 1)^2."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lgrpo_lite.verifier.pieces import INF, MINUS_INF, ZERO, Piece
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import constant

ONE: Node = ("n", Fraction(1), "1")
TWO: Node = ("n", Fraction(2), "2")


@dataclass(frozen=True, slots=True)
class Side:
    """slope * variable + shift; of that, its absolute value or its square."""

    variable: Node
    slope: Node = ONE
    shift: Node = ZERO
    form: Literal["itself", "absolute", "square"] = "itself"


def side_of(node: Node) -> Side | None:
    """What a tree is as a side; None where it holds no variable, several, or another function of one."""
    if node[:2] == ("call", "abs"):
        return _of_form("absolute", node[2])
    if node[0] == "^" and node[2] == TWO:
        return _of_form("square", node[1])
    return _linear(node)


def _of_form(form: Literal["absolute", "square"], inside: Node) -> Side | None:
    linear = _linear(inside)
    return None if linear is None else Side(linear.variable, linear.slope, linear.shift, form)


def _linear(node: Node) -> Side | None:
    kind = node[0]
    if kind == "v":
        return Side(node)
    if kind == "neg":
        inner = _linear(node[1])
        return inner and Side(inner.variable, ("neg", inner.slope), ("neg", inner.shift))
    if kind == "+":
        return _sum(node)
    if kind in ("*", "/") and len(node) == 3:
        return _scaled(node)
    return None


def _sum(node: Node) -> Side | None:
    """A sum of which one term alone holds the variable."""
    _, *terms = node
    varied = [term for term in terms if holds(term, "v")]
    inner = _linear(varied[0]) if len(varied) == 1 else None
    if inner is None:
        return None
    rest = [term for term in terms if term is not varied[0]]
    return Side(inner.variable, inner.slope, ("+", inner.shift, *rest))


def _scaled(node: Node) -> Side | None:
    """A product with a constant, or a quotient by one."""
    kind, left, right = node
    if kind == "*" and not holds(left, "v"):
        left, right = right, left
    inner = _linear(left)
    if inner is None or holds(right, "v"):
        return None
    return Side(inner.variable, (kind, inner.slope, right), (kind, inner.shift, right))


def solved(piece: Piece, side: Side) -> Piece:
    """Where the variable is, when slope * variable + shift is in the piece. Undecided where the sign of the
    slope is; a slope of 0 is none.
    """
    low, high = _solved_end(piece.low, side), _solved_end(piece.high, side)
    if float(constant(side.slope)) > 0:
        return Piece(low, piece.low_closed, high, piece.high_closed)
    return Piece(high, piece.high_closed, low, piece.low_closed)


def _solved_end(end: Node, side: Side) -> Node:
    if end in (INF, ("+", INF), MINUS_INF):
        upwards = end != MINUS_INF
        return INF if upwards == (float(constant(side.slope)) > 0) else MINUS_INF
    if (side.slope, side.shift) == (ONE, ZERO):
        return end
    return ("/", ("+", end, ("neg", side.shift)), side.slope)
