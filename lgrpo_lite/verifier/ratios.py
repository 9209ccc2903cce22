"""Whether two ratios are the same: by cross products, as a time of day, or as the number a/b."""

from lgrpo_lite.verifier.tree import Node
from lgrpo_lite.verifier.values import equal, rational


def same_ratios(p: Node, g: Node) -> bool:
    """a:b = c:d when the cross products agree; a clock time only equals itself; a:b is also a/b."""
    if p[0] != "ratio":
        return _is_quotient(g, p)
    if g[0] != "ratio":
        return _is_quotient(p, g)
    if len(p) != len(g):
        return False
    _, *terms = p
    _, *gold_terms = g
    pairs = list(zip(terms, gold_terms, strict=True))
    if _is_clock(p) and _is_clock(g):
        return all(rational(term) == rational(gold_term) for term, gold_term in pairs)
    if any(rational(term) == 0 for term in (*terms, *gold_terms)):
        return False
    (first, gold_first), *others = pairs

    def cross_products_agree(term: Node, gold_term: Node) -> bool:
        return equal(("*", term, gold_first), ("*", gold_term, first))

    return all(cross_products_agree(term, gold_term) for term, gold_term in others)


def _is_quotient(ratio: Node, number: Node) -> bool:
    if len(ratio) != 3 or _is_clock(ratio):
        return False
    _, top, bottom = ratio
    return equal(("/", top, bottom), number)


def _is_clock(ratio: Node) -> bool:
    """Whether a ratio may be a time of day: minutes in two digits."""
    _, *terms = ratio
    if any(term[0] != "n" for term in terms):
        return False
    _, *minutes = terms
    return all(len(digits) == 2 and value < 60 for _, value, digits in minutes)
