"""Pieces of the real line: intervals with open and closed ends, and what is made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.tree import Node
from lgrpo_lite.verifier.values import constant, equal

INF: Node = ("inf",)
MINUS_INF: Node = ("neg", INF)
ZERO: Node = ("n", Fraction(0), "0")
MAX_PIECES = 60


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval; a point when both ends are it."""

    low: Node
    low_closed: bool
    high: Node
    high_closed: bool


def up_to(high: Node, closed: bool) -> Piece:
    return Piece(MINUS_INF, False, high, closed)


def from_on(low: Node, closed: bool) -> Piece:
    return Piece(low, closed, INF, False)


def mirrored(piece: Piece) -> Piece:
    return Piece(_opposite(piece.high), piece.high_closed, _opposite(piece.low), piece.low_closed)


def _opposite(node: Node) -> Node:
    return INF if node == MINUS_INF else ("neg", node)


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


def intersection(pieces: Sequence[Piece], others: Sequence[Piece]) -> list[Piece]:
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


def complement(pieces: tuple[Piece, ...]) -> list[Piece]:
    outside = [Piece(MINUS_INF, False, INF, False)]
    for piece in pieces:
        below = up_to(piece.low, not piece.low_closed)
        above = from_on(piece.high, not piece.high_closed)
        outside = intersection(outside, [below, above])
    return outside


def merged(pieces: tuple[Piece, ...]) -> list[Piece]:
    """Ordered, with pieces that touch joined."""
    if len(pieces) > MAX_PIECES:
        raise Undecided
    left, whole = list(pieces), []
    while left:
        lowest = left[0]
        for piece in left[1:]:
            if _below(piece.low, lowest.low):
                lowest = piece
        left.remove(lowest)
        if whole and not _apart(whole[-1], lowest):
            whole[-1] = _joined(whole[-1], lowest)
        else:
            whole.append(lowest)
    return whole


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


def same_piece(piece: Piece, other: Piece) -> bool:
    if piece.low_closed != other.low_closed or piece.high_closed != other.high_closed:
        return False
    return _same_end(piece.low, other.low) and _same_end(piece.high, other.high)


def _same_end(a: Node, b: Node) -> bool:
    if a in (INF, MINUS_INF) or b in (INF, MINUS_INF):
        return a == b
    return equal(a, b)
