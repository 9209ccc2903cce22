"""Sums and lists that are shown in part: 1 + 2 + … + n is n + … + 2 + 1, and no 1 + 2 + … + m."""

from collections.abc import Callable, Sequence

from lgrpo_lite.verifier.relations import value_of
from lgrpo_lite.verifier.tree import Node, holds

Same = Callable[[Node, Node], bool]
DOTS: Node = ("dots",)
ENOUGH = 3  # terms that both sides show, for the ones left out to be told


def same_shown(p: Node, g: Node, same: Same) -> bool:
    """Whether two trees with dots in them show the same: term by term, a sum from either end."""
    if not holds(p, "dots") and not holds(g, "dots"):
        return same(p, g)
    if (p[0] == "rel") != (g[0] == "rel"):
        p, g = value_of(p), value_of(g)
    if p[0] != g[0]:
        return False
    if DOTS in p and DOTS in g and p[0] in ("+", "list"):
        return _same_terms(p, g, same)
    return _same_parts(p, g, same)


def _same_parts(p: Node, g: Node, same: Same) -> bool:
    if len(p) != len(g):
        return False
    for part, gold_part in zip(p[1:], g[1:], strict=True):
        both_nodes = isinstance(part, tuple) and isinstance(gold_part, tuple) and part and gold_part
        alike = same_shown(part, gold_part, same) if both_nodes else part == gold_part
        if not alike:
            return False
    return True


def _same_terms(p: Node, g: Node, same: Same) -> bool:
    begin = 1 if p[0] == "+" else 2  # a list says first what joins it
    terms, gold_terms = list(p[begin:]), list(g[begin:])
    if terms.count(DOTS) != 1 or gold_terms.count(DOTS) != 1:
        return False
    if _agree(terms, gold_terms, same):
        return True
    return p[0] == "+" and _agree(terms[::-1], gold_terms, same)


def _agree(terms: Sequence[Node], gold_terms: Sequence[Node], same: Same) -> bool:
    """Whether what both show before the dots is the same, and what both show after them."""
    cut, gold_cut = terms.index(DOTS), gold_terms.index(DOTS)
    before = list(zip(terms[:cut], gold_terms[:gold_cut], strict=False))
    after = list(zip(terms[:cut:-1], gold_terms[:gold_cut:-1], strict=False))
    if len(terms) != len(gold_terms) and len(before) + len(after) < ENOUGH:
        return False
    if cut != gold_cut and bool(terms[cut + 1 :]) != bool(gold_terms[gold_cut + 1 :]):
        return False
    return all(same_shown(term, gold_term, same) for term, gold_term in [*before, *after])
