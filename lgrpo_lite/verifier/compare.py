"""Whether two trees are the same answer: lists, sets, tuples, relations, intervals,
matrices, measures, words, expressions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lgrpo_lite.verifier import units
from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.relations import assigned, same_relation, value_of
from lgrpo_lite.verifier.solutions import same_solutions, solutions
from lgrpo_lite.verifier.spelling import words
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import constant, equal, rational, variables

MAX_ELEMENTS = 200  # of a list that is compared element by element
PRINTED = 12  # significant digits from which a decimal is a printed float, not a rounded answer
_SETS = frozenset(["cup", "cap", "minus", "domain", "empty", "builder"])


@dataclass(frozen=True, slots=True)
class Leniency:
    """What users differ in; docs/rewards.md says what each choice means."""

    units: Literal["ignore", "compare"] = "ignore"
    percent: Literal["either", "fraction"] = "either"
    order: Literal["any", "same"] = "any"
    rounding: Literal["gold", "none"] = "gold"


def same(p: Node, g: Node, policy: Leniency) -> bool:
    """Whether the prediction `p` is the gold `g`. Undecided when neither yes nor no could be established."""
    if p == g:
        return True
    if (p[0] == "rel") != (g[0] == "rel") and ("in",) in (p[1], g[1]):
        p, g = value_of(p), value_of(g)
    kinds = {p[0], g[0]}
    for holds_for, compare in COMPARED:
        if holds_for(kinds, p, g):
            return compare(p, g, policy)
    return "tuple" not in kinds and _same_values(p, g, policy)


def _in_order(p: Sequence[Node], g: Sequence[Node], policy: Leniency) -> bool:
    return len(p) == len(g) and all(same(a, b, policy) for a, b in zip(p, g, strict=True))


def _ambiguous(node: Node) -> bool:
    return node[0] not in ("rel", "tuple", "matrix", "list", "set") and holds(node, "pm")


def _chosen(node: Node, upper: int) -> Node:
    """The node with every ± as + (upper 1) or - (upper -1)."""
    if node[0] == "pm":
        inner = _chosen(node[2], upper)
        return inner if node[1] * upper > 0 else ("neg", inner)
    return tuple(_chosen(child, upper) if isinstance(child, tuple) and child else child for child in node)


def elements(node: Node) -> list[Node]:
    """What a list or set holds, or the one answer; an element with ± counts twice.
    Names of unknowns are left out.
    """
    held = node[2:] if node[0] == "list" else node[1:] if node[0] == "set" else (node,)
    if len(held) > MAX_ELEMENTS:
        raise Undecided
    found = []
    for element in held:
        found.extend([_chosen(element, 1), _chosen(element, -1)] if holds(element, "pm") else [element])
    return found


def _same_lists(p: Node, g: Node, policy: Leniency) -> bool:
    """Lists, sets, and answers with ±: element by element, in any order unless one was meant."""
    sets = "set" in (p[0], g[0])
    literal = _same_literals(p, g, policy, sets=sets)
    if literal is not None:
        return literal
    if any(side[0] == "list" and solutions(side) is not None for side in (p, g)):
        return same_solutions(p, g)
    mine, gold = elements(p), elements(g)
    if p[0] == "list" and _one_answer_in_forms(mine, gold, policy):
        return True
    names = [assigned(e) for e in mine], [assigned(e) for e in gold]
    ordered = (policy.order == "same" and not sets) or _unnamed_on_one_side(*names)
    if _names_tell_nothing(*names):
        mine, gold = [value_of(e) for e in mine], [value_of(e) for e in gold]
    if len(mine) != len(gold):
        if len(gold) == 1 and gold[0][0] == "tuple" and p[0] == "list":
            return _same_point(mine, gold[0], policy)
        if len(mine) == 1 and mine[0][0] == "tuple" and g[0] == "list":
            return mine[0][1:3] == ("(", ")") and _in_order(mine[0][3:], gold, policy)
        if not sets:
            return False
        mine, gold = _distinct(mine, policy), _distinct(gold, policy)
    return _in_order(mine, gold, policy) if ordered else _matched(mine, gold, policy)


def _same_literals(p: Node, g: Node, policy: Leniency, *, sets: bool) -> bool | None:
    """Of plain numbers alone, more than two of them, where a quick look decides; None where it does not."""
    mine, gold = _literals(p), _literals(g)
    if not mine or not gold or len(mine) <= 2:
        return None
    if sets:
        return set(mine) == set(gold)
    return mine == gold if policy.order == "same" else sorted(mine) == sorted(gold)


def _one_answer_in_forms(mine: Sequence[Node], gold: Sequence[Node], policy: Leniency) -> bool:
    """15 39/40 or 639/40: a list all of whose members are the one gold."""
    return len(gold) == 1 and len(set(mine)) > 1 and all(same(e, gold[0], policy) for e in mine)


def _unnamed_on_one_side(*names: Sequence[str | None]) -> bool:
    """x=2, y=3 against (2,3) or 2,3: then the order is that of the names."""
    mine, gold = names
    return any(
        len({name for name in side if name is not None}) > 1 and not any(other)
        for side, other in ((mine, gold), (gold, mine))
    )


def _names_tell_nothing(*names: Sequence[str | None]) -> bool:
    """Whether the names of unknowns may be left out: one side has none, or there is but one."""
    return not all(any(side) for side in names) or len({name for side in names for name in side if name}) == 1


def _same_point(listed: Sequence[Node], point: Node, policy: Leniency) -> bool:
    """A bare list of coordinates against one point."""
    return point[1:3] == ("(", ")") and _in_order(listed, point[3:], policy)


def _literals(node: Node) -> list[Fraction] | None:
    """The values of a list or set of plain numbers."""
    if node[0] not in ("list", "set"):
        return None
    held = node[2:] if node[0] == "list" else node[1:]
    found = [
        part[1] if part[0] == "n" else -part[1][1] if part[0] == "neg" and part[1][0] == "n" else None
        for part in held
    ]
    return None if None in found else [value for value in found if value is not None]


def _distinct(items: Sequence[Node], policy: Leniency) -> list[Node]:
    found: list[Node] = []
    for item in items:
        if not any(same(item, other, policy) for other in found):
            found.append(item)
    return found


def _matched(mine: Sequence[Node], gold: Sequence[Node], policy: Leniency) -> bool:
    """Whether each element equals one of the other list, each used once."""
    if len(mine) != len(gold):
        return False
    left = list(gold)
    for item in mine:
        if item in left:
            left.remove(item)
            continue
        for other in left:
            if same(item, other, policy):
                left.remove(other)
                break
        else:
            return False
    return True


def _same_statements(p: Node, g: Node, policy: Leniency) -> bool:
    """Relations and sets of numbers: as solution sets, as relations, or the value that one side names."""
    both = p[0] == "rel" and g[0] == "rel"
    if not both and (assigned(p) or assigned(g)):
        return same(value_of(p), value_of(g), policy)
    if solutions(p) is not None and solutions(g) is not None:
        return same_solutions(p, g)
    if both:
        return same_relation(p, g, lambda a, b: same(a, b, policy))
    for side, other in ((p, g), (g, p)):
        if side[0] == "rel" and side[1] == ("in",) and other[0] in ("set", "tuple", *_SETS):
            return same(side[3], other, policy) if side is p else same(other, side[3], policy)
    if p[0] == g[0] and p[0] in _SETS:
        return len(p) == len(g) and all(
            same(a, b, policy) if isinstance(a, tuple) else a == b for a, b in zip(p[1:], g[1:], strict=True)
        )
    return False


def _same_measure(p: Node, g: Node, policy: Leniency) -> bool:
    """Values with units, degrees or percent. A measure that one side alone names
    is dropped, or read as a number.
    """
    (a, unit), (b, gold_unit) = measured(p), measured(g)
    if unit and gold_unit:
        size = units.factor(unit, gold_unit)
        if size is None:
            return False
        a = a if size == 1 else ("*", ("n", size, str(size)), a)
        return same(a, b, policy)
    if (unit or gold_unit) == "%":
        hundred = ("n", Fraction(100), "100")
        shares = (("/", a, hundred), b) if unit else (("*", a, hundred), b)
        return (policy.percent == "either" and same(a, b, policy)) or same(*shares, policy)
    if (unit or gold_unit) == "^circ":
        turn = ("/", ("const", "pi"), ("n", Fraction(180), "180"))
        angles = ("*", a, turn) if unit else a, b if unit else ("*", b, turn)
        return (policy.units == "ignore" and same(a, b, policy)) or same(*angles, policy)
    return policy.units == "ignore" and same(a, b, policy)


def measured(node: Node) -> tuple[Node, str]:
    """The bare value and its unit; a word like `million` is part of the value."""
    if node[0] == "%":
        return node[1], "%"
    if node[0] == "deg":
        return node[1], "^circ"
    if node[0] == "neg":
        value, unit = measured(node[1])
        return ("neg", value), unit
    if node[0] != "unit":
        return node, ""
    size, unit = units.multiple(node[2])
    value = node[1] if size == 1 else ("*", node[1], ("n", Fraction(size), str(size)))
    return value, "^circ" if unit.lower() in ("degree", "degrees") else unit


def _matrix(node: Node) -> Node | None:
    """The matrix a tree is, a scalar factor multiplied in."""
    if node[0] == "matrix":
        return node
    if node[0] == "neg" and (inner := _matrix(node[1])):
        return ("matrix", tuple(tuple(("neg", x) for x in row) for row in inner[1]), *inner[2:])
    if node[0] == "+" and all(parts := [_matrix(part) for part in node[1:]]):
        return _matrix_sum([part for part in parts if part])
    if node[0] in ("*", "/") and len(node) == 3:
        for i in (1, 2) if node[0] == "*" else (1,):
            if inner := _matrix(node[i]):
                return (
                    "matrix",
                    tuple(tuple((node[0], x, node[3 - i]) for x in row) for row in inner[1]),
                    *inner[2:],
                )
    return None


def _matrix_sum(parts: Sequence[Node]) -> Node | None:
    if len({(len(part[1]), *map(len, part[1]), *part[2:]) for part in parts}) != 1:
        return None
    rows = zip(*(part[1] for part in parts), strict=True)
    return (
        "matrix",
        tuple(tuple(("+", *entries) for entries in zip(*row, strict=True)) for row in rows),
        *parts[0][2:],
    )


def _same_matrices(p: Node | None, g: Node | None, policy: Leniency) -> bool:
    if p is None or g is None or p[2:] != g[2:] or len(p[1]) != len(g[1]):
        return False
    return all(_in_order(row, other, policy) for row, other in zip(p[1], g[1], strict=True))


def _same_ratios(p: Node, g: Node) -> bool:
    """a:b = c:d when the cross products agree; a clock time only equals itself;
    a:b is also the number a/b.
    """
    if p[0] != "ratio" or g[0] != "ratio":
        ratio, number = (p, g) if p[0] == "ratio" else (g, p)
        return len(ratio) == 3 and not _clock(ratio) and equal(("/", ratio[1], ratio[2]), number)
    if len(p) != len(g):
        return False
    if (_clock(p) and _clock(g)) or any(rational(part) == 0 for part in (*p[1:], *g[1:])):
        if not (_clock(p) and _clock(g)):
            return False
        return all(rational(a) == rational(b) for a, b in zip(p[1:], g[1:], strict=True))
    pairs = [(("*", p[i], g[1]), ("*", g[i], p[1])) for i in range(2, len(p))]
    return all(equal(a, b) for a, b in pairs)


def _clock(node: Node) -> bool:
    """Whether a ratio may be a time of day: minutes in two digits."""
    return all(part[0] == "n" for part in node[1:]) and all(
        len(part[2]) == 2 and part[1] < 60 for part in node[2:]
    )


def _same_values(p: Node, g: Node, policy: Leniency) -> bool:
    """Equal values; or, under rounding `gold`, a value that rounds to the gold decimal,
    or a printed float of the gold.
    """
    if equal(p, g):
        return True
    if policy.rounding == "none" or variables(p) or variables(g):
        return False
    digits, gold_digits = _digits(p), _digits(g)
    if digits and digits[1] >= PRINTED:
        return _rounds(g, p, digits[0]) or bool(
            gold_digits and gold_digits[1] >= 2 and _rounds(p, g, gold_digits[0])
        )
    if gold_digits and (gold_digits[1] >= PRINTED or (gold_digits[1] >= 3 and not _decimal_inside(p))):
        return _rounds(p, g, gold_digits[0])
    return False


def _digits(node: Node) -> tuple[int, int] | None:
    """Decimals and significant digits of a literal with a decimal point."""
    node = node[1] if node[0] == "neg" else node
    if node[0] != "n" or "." not in node[2] or not node[2].replace(".", "").replace(",", "").isdigit():
        return None
    whole, _, part = node[2].replace(",", "").partition(".")
    return len(part), len((whole + part).lstrip("0"))


def _decimal_inside(node: object) -> bool:
    return (
        isinstance(node, tuple)
        and bool(node)
        and ((node[0] == "n" and "." in node[2]) or any(_decimal_inside(child) for child in node[1:]))
    )


def _rounds(exact: Node, decimal: Node, places: int) -> bool:
    try:
        return abs(constant(("+", exact, ("neg", decimal)))) <= Fraction(1, 2 * 10**places)
    except TypeError:
        return float(abs(constant(("+", exact, ("neg", decimal)))) * 2 * 10**places) <= 1


def _is_list(kinds: set[str], p: Node, g: Node) -> bool:
    return bool(kinds & {"list", "set"}) or _ambiguous(p) or _ambiguous(g)


def _is_statement(kinds: set[str], p: Node, g: Node) -> bool:
    brackets_differ = p[0] == g[0] == "tuple" and p[1:3] != g[1:3]
    return "rel" in kinds or bool(kinds & _SETS) or brackets_differ


def _is_matrix(kinds: set[str], p: Node, g: Node) -> bool:
    return "matrix" in kinds or bool(_matrix(p) or _matrix(g))


def _of_kinds(*names: str) -> Callable[[set[str], Node, Node], bool]:
    return lambda kinds, p, g: bool(kinds & set(names))


def _same_tuples(p: Node, g: Node, policy: Leniency) -> bool:
    return p[1:3] == g[1:3] and _in_order(p[3:], g[3:], policy)


def _same_bases(p: Node, g: Node, policy: Leniency) -> bool:
    """Another base, or none, is another answer."""
    return p[0] == g[0] and p[2] == g[2] and equal(p, g)


def _same_words(p: Node, g: Node, policy: Leniency) -> bool:
    return p[0] == g[0] and words(p[1]) == words(g[1])


# What two trees are compared as: the first row that holds for them.
COMPARED: tuple[
    tuple[Callable[[set[str], Node, Node], bool], Callable[[Node, Node, Leniency], bool]], ...
] = (
    (_is_list, _same_lists),
    (_is_statement, _same_statements),
    (_of_kinds("unit", "deg", "%"), _same_measure),
    (lambda kinds, p, g: kinds == {"tuple"}, _same_tuples),
    (_is_matrix, lambda p, g, policy: _same_matrices(_matrix(p), _matrix(g), policy)),
    (_of_kinds("base"), _same_bases),
    (_of_kinds("ratio"), lambda p, g, policy: _same_ratios(p, g)),
    (_of_kinds("text"), _same_words),
    (_of_kinds("inf"), lambda p, g, policy: False),
)
