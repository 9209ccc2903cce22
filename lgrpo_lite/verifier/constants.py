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
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import LOW, equal, variables

_INDEXED = re.compile(r"[cCkK]_\{?\d\}?")
_ADDED = frozenset(["C", "c", "K"])
_ARGUMENTS = frozenset("xytuzsr") | {"\\theta"}
MAX_CONSTANTS = 4
SPARE_POINTS = 3  # more than there are functions
TINY = 2.0**-120  # of what is 0 at LOW bits

Row = list[Any]


def same_up_to_constants(p: Node, g: Node) -> bool | None:
    """Whether both describe the same functions, whatever their constants are called; None where the gold has
    no free constant, or the answer none.
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
    if not gold_free or not free or not others or max(len(free), len(gold_free)) > MAX_CONSTANTS:
        return None
    if declared and not declared & free:
        return None
    return _same_functions(p, sorted(free), g, sorted(gold_free), sorted(others))


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
    """The free constants of a gold answer: c_1, C_2; a C that is added to the whole or stands beside powers
    of e.
    """
    names = variables(node)
    indexed = frozenset(name for name in names if _INDEXED.fullmatch(name))
    if indexed:
        return indexed
    terms = node[1:] if node[0] == "+" else (node,)
    added = frozenset(term[1] for term in terms if term[0] == "v" and term[1] in _ADDED and len(terms) > 1)
    others = names - added
    if added and others & _ARGUMENTS and (len(others) == 1 or added.isdisjoint("c")):  # no ax^2 + bx + c
        return added
    with_powers = holds(node, "^") and holds(node, "const") and ("const", "e") in _bases(node)
    return names & _ADDED if with_powers else frozenset()


def _bases(node: Node) -> list[Node]:
    """What is raised to a power with a variable in it."""
    found = [node[1]] if node[0] == "^" and variables(node[2]) else []
    for child in node:
        if isinstance(child, tuple) and child:
            found += _bases(child)
    return found


def _same_functions(p: Node, free: list[str], g: Node, gold_free: list[str], others: list[str]) -> bool:
    rows, gold_rows = _rows(p, free, others, len(gold_free)), _rows(g, gold_free, others, len(free))
    if rows is None or gold_rows is None:
        return _same_by_names(p, free, g, gold_free)
    fixed, spanned = rows
    gold_fixed, gold_spanned = gold_rows
    rank = _rank(spanned)
    gap = [a - b for a, b in zip(fixed, gold_fixed, strict=True)]
    together = _rank([*spanned, *gold_spanned])
    return (
        rank == _rank(gold_spanned) == together == _rank([*gold_spanned, gap]) == len(gold_free) == len(free)
    )


def _rows(node: Node, free: list[str], others: list[str], more: int) -> tuple[Row, list[Row]] | None:
    """f_0 and the f_i at some points; None where the constants do not enter linearly."""
    fixed: Row = []
    spanned: list[Row] = [[] for _ in free]
    for number in range(len(free) + more + SPARE_POINTS):
        point = {name: Fraction(7 * i + 5 * number + 3, 11) for i, name in enumerate(others)}

        def value(constants: Sequence[int], point: dict[str, Fraction] = point) -> Any:
            chosen = {name: Fraction(c) for name, c in zip(free, constants, strict=True)}
            run = Evaluation({**point, **chosen}, LOW)
            return run.inexact(run.value(node))

        none = value([0] * len(free))
        one_each = [value([int(i == j) for j in range(len(free))]) - none for i in range(len(free))]
        mixed = [3 + 2 * i for i in range(len(free))]
        expected = none + sum(c * part for c, part in zip(mixed, one_each, strict=True))
        if abs(value(mixed) - expected) > TINY * (1 + abs(expected)):
            return None
        fixed.append(none)
        for row, part in zip(spanned, one_each, strict=True):
            row.append(part)
    return fixed, spanned


def _rank(rows: list[Row]) -> int:
    """By elimination; what is TINY beside the largest number is 0."""
    left = [list(row) for row in rows]
    largest = max((abs(value) for row in left for value in row), default=0)
    rank = 0
    for column in range(len(left[0]) if left else 0):
        pivot = max(range(rank, len(left)), key=lambda i: abs(left[i][column]), default=None)
        if pivot is None or abs(left[pivot][column]) <= TINY * largest:
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
