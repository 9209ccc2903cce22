"""Answers with constants that are free: y = C_1 e^x + C_2 e^{-x}, x^2/2 + C, f(x) = cx for any real c.

What a constant is called, and how the constants are chosen, is no part of the answer: two are the same where
they describe the same functions. Where constants enter linearly that is a question of rank:
f_0 + c_1 f_1 + ... and g_0 + d_1 g_1 + ... are one space where the f_i span what the g_i span, and
f_0 - g_0 lies in it.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations
from typing import Any

from lgrpo_lite.verifier.evaluate import Evaluation, Undecided
from lgrpo_lite.verifier.relations import assigned, substituted, value_of
from lgrpo_lite.verifier.tree import Node, contains
from lgrpo_lite.verifier.values import LOW, Point, equal, needs_positive, variables

_INDEXED = re.compile(r"[cC]_\{?\d\}?")
_ARGUMENTS = frozenset("xytuzsr") | {"\\theta"}
_IMAGINARY = ("const", "i")
MAX_CONSTANTS = 4
SPARE_POINTS = 3  # more than there are functions
FAR = 2.0**40  # no answer's numbers are as large beside the gold's
TINY = 2.0**-120  # of what is 0 at LOW bits

Row = list[Any]


def same_up_to_constants(p: Node, g: Node) -> bool | None:
    """Whether both describe the same functions of one variable, whatever their constants are called; None
    where the gold has no free constant that is known as one, or the answer none.
    """
    (p, declared), (g, gold_declared) = _without_declarations(p), _without_declarations(g)
    if not _one_name(assigned(p), assigned(g)):
        return None
    p, g = value_of(p), value_of(g)
    if "rel" in (p[0], g[0]) or "list" in (p[0], g[0]):
        return None
    gold_free = gold_declared & variables(g) or _free(g)
    others = variables(g) - gold_free
    free = variables(p) - others
    if not gold_free or not free or len(others) != 1 or not others <= _ARGUMENTS:
        return None
    if max(len(free), len(gold_free)) > MAX_CONSTANTS or (declared and not declared & free):
        return None
    if contains(p, _IMAGINARY) and not contains(g, _IMAGINARY):
        return None
    try:
        return _same_functions(p, sorted(free), g, sorted(gold_free), *others)
    except Undecided:  # as where a constant is divided by
        return None


def _one_name(name: str | None, gold_name: str | None) -> bool:
    return not name or not gold_name or name == gold_name or ("(" in name) != ("(" in gold_name)


def _without_declarations(node: Node) -> tuple[Node, frozenset[str]]:
    """The one statement of a list that says nothing else but c in R, and the names it says that of."""
    if node[0] != "list":
        return node, frozenset()
    names, rest = set(), []
    for member in node[2:]:
        if member[:2] == ("rel", ("in",)) and member[2][0] == "v" and member[3] == ("domain", "R"):
            names.add(member[2][1])
        else:
            rest.append(member)
    return (rest[0], frozenset(names)) if len(rest) == 1 and names else (node, frozenset())


def _free(node: Node) -> frozenset[str]:
    """The free constants of a gold answer: c_1, C_2; a C that is added to the whole, a C or c beside powers
    of e. What other letters stand for, nobody knows.
    """
    names = variables(node)
    indexed = frozenset(name for name in names if _INDEXED.fullmatch(name))
    if indexed:
        return indexed
    if node[0] == "+" and ("v", "C") in node[1:]:
        return frozenset("C")
    return names & frozenset("cC") if ("const", "e") in _bases(node) else frozenset()


def _bases(node: Node) -> list[Node]:
    """What is raised to a power with a variable in it."""
    found = [node[1]] if node[0] == "^" and variables(node[2]) else []
    for child in node:
        if isinstance(child, tuple) and child:
            found += _bases(child)
    return found


def _same_functions(p: Node, free: list[str], g: Node, gold_free: list[str], other: str) -> bool:
    many = len(free) + len(gold_free) + SPARE_POINTS
    # on both sides of 0, but where a root or a logarithm wants a positive number
    sign = 1 if needs_positive(p) or needs_positive(g) else -1
    points = [{other: sign**i * Fraction(5 * i + 3, 11)} for i in range(many)]
    mine, gold = _rows(p, free, points), _rows(g, gold_free, points)
    if mine is None or gold is None:
        return _same_by_names(p, free, g, gold_free)
    fixed, spanned = mine
    gold_fixed, gold_spanned = gold
    size, gold_size = (
        max(map(abs, [value for row in (one, *rows) for value in row])) for one, rows in (mine, gold)
    )
    if size > FAR * (1 + gold_size) or gold_size > FAR * (1 + size):
        return False  # beside 10^50 every function would be TINY
    gap = [_difference(a, b) for a, b in zip(fixed, gold_fixed, strict=True)]
    ranks = {
        len(free),
        len(gold_free),
        _rank(spanned),
        _rank(gold_spanned),
        _rank([*spanned, *gold_spanned]),
        _rank([*gold_spanned, gap]),
    }
    return len(ranks) == 1


def _difference(a: Any, b: Any) -> Any:
    """a - b, which is 0 where it is TINY."""
    gap = a - b
    return gap if abs(gap) > TINY * (1 + abs(a)) else 0 * gap


def _rows(node: Node, free: list[str], points: list[Point]) -> tuple[Row, list[Row]] | None:
    """f_0 and the f_i at the points; None where the constants do not enter linearly."""
    fixed: Row = []
    spanned: list[Row] = [[] for _ in free]
    units = [[int(i == j) for j in range(len(free))] for i in range(len(free))]
    mixed = [3 + 2 * i for i in range(len(free))]
    for point in points:
        none = _value(node, point, free, [0] * len(free))
        one_each = [_value(node, point, free, unit) - none for unit in units]
        expected = none + sum(c * part for c, part in zip(mixed, one_each, strict=True))
        if abs(_value(node, point, free, mixed) - expected) > TINY * (1 + abs(expected)):
            return None
        fixed.append(none)
        for row, part in zip(spanned, one_each, strict=True):
            row.append(part)
    return fixed, spanned


def _value(node: Node, point: Point, free: list[str], constants: Sequence[int]) -> Any:
    chosen = {name: Fraction(c) for name, c in zip(free, constants, strict=True)}
    run = Evaluation({**point, **chosen}, LOW)
    return run.inexact(run.value(node))


def _rank(rows: list[Row]) -> int:
    """By elimination; each row is measured by its own largest number, beside which what is TINY is 0."""
    left = []
    for row in rows:
        size = max(map(abs, row))
        if size:
            left.append([value / size for value in row])
    rank = 0
    for column in range(len(left[0]) if left else 0):
        pivot = max(range(rank, len(left)), key=lambda i: abs(left[i][column]), default=None)
        if pivot is None or abs(left[pivot][column]) <= TINY:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        for i in range(rank + 1, len(left)):
            factor = left[i][column] / left[rank][column]
            left[i] = [a - factor * b for a, b in zip(left[i], left[rank], strict=True)]
        rank += 1
    return rank


def _same_by_names(p: Node, free: list[str], g: Node, gold_free: list[str]) -> bool:
    """Of constants that do not enter linearly: whether other names make them equal."""
    if len(free) != len(gold_free):
        return False
    for names in permutations(gold_free):
        renamed = {mine: ("v", name) for mine, name in zip(free, names, strict=True)}
        try:
            if equal(substituted(p, renamed), g):
                return True
        except Undecided:
            continue
    return False
