"""Families of answers with a whole number in them: x = pi/4 + k pi, k in Z; n = 3 (mod 7); k = 0, 1, 2.

Two linear families over all whole numbers are the same where each term of one is a term of the other: all
terms are looked at within one period that both have. Others are the same only term by term, as expressions.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from lgrpo_lite.verifier.evaluate import Undecided, context
from lgrpo_lite.verifier.lists import coordinates_of, elements
from lgrpo_lite.verifier.relations import assigned, substituted, value_of
from lgrpo_lite.verifier.tree import Node, holds, rebuilt
from lgrpo_lite.verifier.values import LOW, constant, equal, variables

MAX_LISTED = 100_000  # characters of all terms of a family that is listed
MAX_MODULUS = 30  # digits
MAX_TERMS = 60  # of both families in one period
WHOLE, NATURAL = "Z", "N"
_COUNTERS = frozenset("klmnj")  # what a family may count with that does not say over what
_MINUS_ONE = ("neg", ("n", Fraction(1), "1"))

Vector = tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The `terms` for every value of the `counter`: in Z, in N, or `over` the values listed."""

    terms: tuple[Node, ...]
    names: frozenset[str]  # what the terms are said to be, x or (x, y)
    counter: str
    over: str | tuple[Fraction, ...]


def family(node: Node, counters: frozenset[str] = frozenset()) -> Family | None:
    """The family that a tree describes, or None. counters: what may count although nothing says so."""
    congruent = _congruence(node)
    if congruent is not None:
        return congruent
    if node[0] == "builder":
        _, value, condition = node
        domain = _domain(condition)
        return domain and Family(tuple(elements(value)), frozenset(), *domain)
    members = list(node[2:]) if node[0] == "list" else [node]
    domain, terms = _parted(members)
    if domain is None:
        found = variables(node) & counters
        if len(found) != 1:
            return None
        (counter,) = found
        domain = counter, WHOLE
    counter, _ = domain
    values, value_names = _values(terms)
    if any(value[0] == "rel" or not variables(value) <= {counter} for value in values):
        return None
    counts = any(counter in variables(value) for value in values)
    return Family(values, value_names, *domain) if counts else None


def same_families(p: Node, g: Node) -> bool | None:
    """Whether two trees are one family; None where they are not both families. Where one of them does not say
    over what it counts, it is the other's only term by term, under any name for what counts.
    """
    mine, gold = family(p), family(g)
    if mine is None and gold is None:
        return None
    both_say = mine is not None and gold is not None
    mine = mine or family(p, _COUNTERS)
    gold = gold or (family(g, _COUNTERS) if holds(g, "const") else None)  # 2k pi counts, n may be any number
    if mine is None or gold is None or isinstance(mine.over, tuple) or isinstance(gold.over, tuple):
        return None
    if mine.names and gold.names and mine.names != gold.names:
        return False
    if mine.over != gold.over or _brackets(mine) != _brackets(gold):
        return False
    lines, gold_lines = (_lines(mine), _lines(gold)) if both_say and mine.over == WHOLE else (None, None)
    if lines is None or gold_lines is None:
        return _same_terms(mine, gold)
    return _same_lines(lines, gold_lines)


def listed(node: Node) -> Node:
    """A family over listed values as the set of its terms; any other node as it is."""
    found = family(node)
    if found is None or isinstance(found.over, str):
        return node
    if len(found.over) * len(str(found.terms)) > MAX_LISTED:
        raise Undecided
    terms = []
    for value in found.over:
        there = {found.counter: ("n", value, "")}
        terms += [substituted(term, there) for term in found.terms]
    return ("set", *terms)


def _congruence(node: Node) -> Family | None:
    """That of n = 3 (mod 7) and of n = 1, 4 (mod 5), where the last rest says the modulus of all."""
    members = node[2:] if node[0] == "list" else (node,)
    names = frozenset(name for name in map(assigned, members) if name)
    values = [value_of(member) for member in members]
    moduli = {
        value[2].removeprefix("mod ")
        for value in values
        if value[0] == "unit" and value[2].startswith("mod ")
    }
    if len(moduli) != 1 or values[-1][0] != "unit":
        return None
    (modulus,) = moduli
    rests: list[Node] = []
    for value in values:
        rests += elements(value[1] if value[0] == "unit" else value)
    if (
        len(names) > 1
        or not modulus.isdigit()
        or len(modulus) > MAX_MODULUS
        or any(variables(rest) for rest in rests)
    ):
        return None
    counted = ("*", ("n", Fraction(int(modulus)), modulus), ("v", "k"))
    return Family(tuple(("+", rest, counted) for rest in rests), names, "k", WHOLE)


def _parted(members: list[Node]) -> tuple[tuple[str, str | tuple[Fraction, ...]] | None, list[Node]]:
    """What the members say of a counter, and the other members."""
    for i, member in enumerate(members):
        domain = _domain(member)
        if domain is None:
            continue
        counter, over = domain
        rest = i + 1
        if isinstance(over, tuple):
            while rest < len(members) and (value := _whole(members[rest])) is not None:
                over = (*over, value)
                rest += 1
            if len(over) < 2:
                continue
        return (counter, over), [*members[:i], *members[rest:]]
    return None, members


def _domain(node: Node) -> tuple[str, str | tuple[Fraction, ...]] | None:
    """k and Z of k in Z, k and the first value of k = 0, 1, 2."""
    if node[0] != "rel" or len(node) != 4 or node[2][0] != "v":
        return None
    _, ops, (_, counter), right = node
    if ops == ("in",) and right in (("domain", WHOLE), ("domain", NATURAL)):
        return counter, right[1]
    if ops == ("in",) and right[0] == "set":
        values = [_whole(member) for member in right[1:]]
        return (counter, tuple(v for v in values if v is not None)) if None not in values else None
    first = _whole(right) if ops == ("=",) and counter in _COUNTERS else None
    return None if first is None else (counter, (first,))


def _whole(node: Node) -> Fraction | None:
    if node[0] == "neg":
        inside = _whole(node[1])
        return None if inside is None else -inside
    return node[1] if node[0] == "n" and node[1].denominator == 1 else None


def _values(terms: list[Node]) -> tuple[tuple[Node, ...], frozenset[str]]:
    """What the terms are, and what is said to be that; of x = 3 + 7t, y = 2 - 5t one pair, in the order of
    the names.
    """
    values: list[Node] = []
    if len(terms) == 1:
        terms = coordinates_of(terms[0]) or terms
    names = [assigned(term) for term in terms]
    known = frozenset(name for name in names if name)
    if len(known) == len(names) > 1:
        pairs = sorted(zip(map(str, names), map(value_of, terms), strict=True))
        return (("tuple", "(", ")", *(value for _, value in pairs)),), known
    for term in terms:
        values += elements(value_of(term))
    return tuple(values), frozenset(name.partition("_")[0] for name in known)


# ------------------------------------------------------------------------------------------- comparing


def _brackets(family: Family) -> set[Node]:
    """Those around the terms, of which intervals are open or closed."""
    return {term[:3] for term in family.terms if term[0] == "tuple"}


def _same_terms(mine: Family, gold: Family) -> bool:
    """Term by term, in any order, with one name for what counts."""
    renamed = {mine.counter: ("v", gold.counter)}
    left = [_vector(term) for term in gold.terms]
    for term in mine.terms:
        vector = _vector(substituted(term, renamed))
        found = [other for other in left if _equal(vector, other)]
        if not found:
            return False
        left.remove(found[0])
    return not left


def _lines(family: Family) -> list[tuple[Vector, Vector]] | None:
    """Where each term begins and what it gains with each count; None where one is not linear. A sign that
    changes with every count makes two of a term.
    """
    lines = []
    for term in family.terms:
        for line in _halves(term, family.counter) if holds(term, "^") else [term]:
            start = _vector(_at(line, family.counter, 0))
            step = _difference(_vector(_at(line, family.counter, 1)), start)
            counter = ("v", family.counter)
            linear = tuple(("+", a, ("*", counter, b)) for a, b in zip(start, step, strict=True))
            if not _equal(_vector(line), linear):
                return None
            if not any(constant(part) for part in step):
                return None
            lines.append((start, step))
    return lines


def _halves(term: Node, counter: str) -> list[Node]:
    """A term with (-1)^n in it for even and for odd n, both with n for its half."""
    halves = []
    for parity in (0, 1):
        double = ("+", ("*", ("n", Fraction(2), "2"), ("v", counter)), ("n", Fraction(parity), str(parity)))
        signed = _signs_settled(term, counter, parity)
        if signed == term:
            return [term]
        halves.append(substituted(signed, {counter: double}))
    return halves


def _signs_settled(node: Node, counter: str, parity: int) -> Node:
    """The tree with (-1)^n, or (-1)^(n + 1), as the number that it is for an odd or an even n."""
    if node[0] == "^" and node[1] == _MINUS_ONE and counter in variables(node[2]):
        terms = node[2][1:] if node[2][0] == "+" else (node[2],)
        rest = [_whole(term) for term in terms if term != ("v", counter)]
        if len(rest) != len(terms) - 1 or None in rest:
            raise Undecided
        odd = (parity + sum(value for value in rest if value is not None)) % 2
        return _MINUS_ONE if odd else _MINUS_ONE[1]
    return rebuilt(node, lambda child: _signs_settled(child, counter, parity))


def _same_lines(lines: list[tuple[Vector, Vector]], gold: list[tuple[Vector, Vector]]) -> bool:
    """Whether every term of one is a term of the other, within a period of all."""
    _, unit = gold[0]
    ratios = [_ratio(step, unit) for _, step in (*lines, *gold)]
    if None in ratios:
        return False
    known = [abs(ratio) for ratio in ratios if ratio is not None]
    period = Fraction(
        math.lcm(*(ratio.numerator for ratio in known)), math.gcd(*(ratio.denominator for ratio in known))
    )
    if sum(period / ratio for ratio in known) > MAX_TERMS:
        raise Undecided
    mine = _within(lines, known[: len(lines)], period)
    others = _within(gold, known[len(lines) :], period)
    whole = _scaled(unit, period)
    return _covered(mine, others, whole) and _covered(others, mine, whole)


def _ratio(step: Vector, unit: Vector) -> Fraction | None:
    """What `step` is of `unit`, where that is a fraction."""
    if len(step) != len(unit):
        return None
    for a, b in zip(step, unit, strict=True):
        if constant(b):
            ratio = _fraction(constant(("/", a, b)))
            return ratio if ratio and _equal(step, _scaled(unit, ratio)) else None
    return None


def _fraction(value: Fraction | float) -> Fraction:
    return value if isinstance(value, Fraction) else Fraction(float(value)).limit_denominator(1000)


def _within(lines: list[tuple[Vector, Vector]], ratios: list[Fraction], period: Fraction) -> list[Vector]:
    terms = []
    for (start, step), ratio in zip(lines, ratios, strict=True):
        for count in range(int(period / ratio)):
            terms.append(_sum(start, _scaled(step, Fraction(count))))
    return terms


def _covered(terms: list[Vector], others: list[Vector], period: Vector) -> bool:
    return all(any(_congruent(term, other, period) for other in others) for term in terms)


def _congruent(a: Vector, b: Vector, period: Vector) -> bool:
    """Whether a - b is a whole multiple of the period."""
    if len(a) != len(b):
        return False
    gap = _difference(a, b)
    for part, whole in zip(gap, period, strict=True):
        if constant(whole):
            ratio = constant(("/", part, whole))
            nearest = round(ratio) if isinstance(ratio, Fraction) else int(context(LOW).nint(ratio))
            return _equal(gap, _scaled(period, Fraction(nearest)))
    return False


# ------------------------------------------------------------------------------------------- vectors


def _vector(node: Node) -> Vector:
    """The coordinates of a tuple; a number is a vector of one."""
    return node[3:] if node[0] == "tuple" else (node,)


def _at(node: Node, counter: str, value: int) -> Node:
    return substituted(node, {counter: ("n", Fraction(value), "")})


def _scaled(vector: Vector, factor: Fraction) -> Vector:
    return tuple(("*", ("n", factor, ""), part) for part in vector)


def _sum(a: Vector, b: Vector) -> Vector:
    return tuple(("+", x, y) for x, y in zip(a, b, strict=True))


def _difference(a: Vector, b: Vector) -> Vector:
    return tuple(("+", x, ("neg", y)) for x, y in zip(a, b, strict=True))


def _equal(a: Vector, b: Vector) -> bool:
    return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
