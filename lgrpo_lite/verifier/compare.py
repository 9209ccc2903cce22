"""Whether two trees are the same answer: lists, sets, tuples, relations, intervals,
matrices, measures, words, expressions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lgrpo_lite.verifier.chains import agreed
from lgrpo_lite.verifier.constants import same_up_to_constants
from lgrpo_lite.verifier.families import listed, same_families
from lgrpo_lite.verifier.leniency import Leniency
from lgrpo_lite.verifier.lists import (
    alike_in_form,
    brackets,
    coordinates_of,
    elements,
    is_one_tuple,
    literals,
    names_tell_nothing,
    tuple_members,
    unnamed_on_one_side,
    without_domains,
)
from lgrpo_lite.verifier.matrices import (
    as_column,
    as_matrix,
    is_determinant,
    multiplies_transposes,
    worked_out,
)
from lgrpo_lite.verifier.measures import MEASURES, same_measure
from lgrpo_lite.verifier.ratios import same_ratios
from lgrpo_lite.verifier.relations import assigned, same_relation, tells_set, value_of, values_of
from lgrpo_lite.verifier.rounding import rounded_alike
from lgrpo_lite.verifier.solutions import same_solutions, solutions
from lgrpo_lite.verifier.spelling import words
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.values import equal, variables

_SETS = frozenset(["cup", "cap", "minus", "domain", "empty", "builder"])


def same(p: Node, g: Node, policy: Leniency) -> bool:
    """Whether the prediction `p` is the gold `g`. Undecided when neither yes nor no could be established."""
    if p == g:
        return True
    plain, plain_gold = settled(p, policy), settled(g, policy)
    if plain is None or plain_gold is None:
        return False
    if plain == plain_gold:
        return True
    for decides in (same_families, same_up_to_constants):
        decided = decides(plain, plain_gold)
        if decided is not None:
            return decided
    return _compared(listed(plain), listed(plain_gold), policy)


def _compared(p: Node, g: Node, policy: Leniency) -> bool:
    """As the first row of COMPARED that holds for the two."""
    one_relation = (p[0] == "rel") != (g[0] == "rel")
    if one_relation and (tells_set(p) or tells_set(g)):
        p, g = value_of(p), value_of(g)
    kinds = {p[0], g[0]}
    for holds_for, compare in COMPARED:
        if holds_for(kinds, p, g):
            return compare(p, g, policy)
    return "tuple" not in kinds and _same_values(p, g, policy)


def settled(node: Node, policy: Leniency) -> Node | None:
    """A chain such as x = 2 + 3 = 5 without what it only rounds; None when its sides differ."""
    if node[0] != "rel":
        return node
    return agreed(node, lambda a, b: same(a, b, policy))


def _in_order(mine: Sequence[Node], gold: Sequence[Node], policy: Leniency) -> bool:
    if len(mine) != len(gold):
        return False
    pairs = zip(mine, gold, strict=True)
    return all(same(a, b, policy) for a, b in pairs)


def _same_lists(p: Node, g: Node, policy: Leniency) -> bool:
    """Lists, sets, and answers with ±: element by element, in any order unless one was meant."""
    sets = "set" in (p[0], g[0])
    literal = _same_literals(p, g, policy, sets=sets)
    if literal is not None:
        return literal
    if _lists_solutions(p) or _lists_solutions(g):
        return same_solutions(p, g)
    return _same_elements(p, g, policy, sets=sets)


def _same_elements(p: Node, g: Node, policy: Leniency, *, sets: bool) -> bool:
    mine, gold = _elements(p, policy), _elements(g, policy)
    if p[0] == "list" and _one_answer_in_forms(mine, gold, policy):
        return True
    mine, gold = without_domains(mine, gold), without_domains(gold, mine)
    mine, gold = alike_in_form(mine, gold)
    my_names = list(map(assigned, mine))
    gold_names = list(map(assigned, gold))
    if names_tell_nothing(my_names, gold_names):
        mine = list(map(value_of, mine))
        gold = list(map(value_of, gold))
    if len(mine) != len(gold):
        if p[0] == "list" and is_one_tuple(gold):
            coordinates = tuple_members(gold[0])
            return coordinates is not None and _in_order(mine, coordinates, policy)
        if g[0] == "list" and is_one_tuple(mine):
            coordinates = tuple_members(mine[0])
            return coordinates is not None and _in_order(coordinates, gold, policy)
        if not sets:
            return False
        return _each_among(mine, gold, policy) and _each_among(gold, mine, policy)
    order_was_meant = policy.order == "same" and not sets
    if order_was_meant or unnamed_on_one_side(my_names, gold_names):
        return _in_order(mine, gold, policy)
    return _matched(mine, gold, policy)


def _elements(node: Node, policy: Leniency) -> list[Node]:
    """The elements, chains of equalities settled; one that contradicts itself is left, and equals nothing."""
    found = []
    for element in elements(node):
        plain = settled(element, policy)
        found.append(element if plain is None else plain)
    return found


def _same_literals(p: Node, g: Node, policy: Leniency, *, sets: bool) -> bool | None:
    """Of plain numbers alone, more than two of them, where a quick look decides; None where it does not."""
    mine, gold = literals(p), literals(g)
    if not mine or not gold or len(mine) <= 2:
        return None
    if sets:
        return set(mine) == set(gold)
    if policy.order == "same":
        return mine == gold
    return sorted(mine) == sorted(gold)


def _lists_solutions(node: Node) -> bool:
    """Whether a list describes one set, as x < 3 or x > 5 does."""
    return node[0] == "list" and solutions(node) is not None


def _one_answer_in_forms(mine: Sequence[Node], gold: Sequence[Node], policy: Leniency) -> bool:
    """15 39/40 or 639/40: a list all of whose members are the one gold."""
    if len(gold) != 1 or len(set(mine)) <= 1:
        return False
    strict = replace(policy, units="compare", percent="fraction")  # 5 or 500% are two answers
    first, *others = mine
    return all(same(form, gold[0], policy) for form in mine) and all(
        same(form, first, strict) for form in others
    )


def _each_among(members: Sequence[Node], others: Sequence[Node], policy: Leniency) -> bool:
    return all(any(same(member, other, policy) for other in others) for member in members)


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
    both_relations = p[0] == "rel" and g[0] == "rel"
    if not both_relations and (assigned(p) or assigned(g)):
        return any(same(mine, gold, policy) for mine in values_of(p) for gold in values_of(g))
    if solutions(p) is not None and solutions(g) is not None:
        return same_solutions(p, g)
    if both_relations:
        named, gold_named = coordinates_of(p), coordinates_of(g)
        if named and gold_named:
            return _matched(named, gold_named, policy)
        return same_relation(p, g, lambda a, b: same(a, b, policy))
    if _is_membership(p) and _is_set(g):
        _, _, _, container = p
        return same(container, g, policy)
    if _is_membership(g) and _is_set(p):
        _, _, _, container = g
        return same(p, container, policy)
    if p[0] != g[0] or p[0] not in _SETS:
        return False
    return _same_parts(p, g, policy)


def _is_membership(node: Node) -> bool:
    return node[:2] == ("rel", ("in",))


def _is_set(node: Node) -> bool:
    return node[0] in ("set", "tuple") or node[0] in _SETS


def _same_parts(p: Node, g: Node, policy: Leniency) -> bool:
    """Two nodes of one kind, part by part; the name of a domain is a text."""
    if len(p) != len(g):
        return False
    for a, b in zip(p[1:], g[1:], strict=True):
        alike = same(a, b, policy) if isinstance(a, tuple) else a == b
        if not alike:
            return False
    return True


def _same_measures(p: Node, g: Node, policy: Leniency) -> bool:
    return same_measure(p, g, policy, lambda a, b: same(a, b, policy))


def _same_matrices(p: Node, g: Node, policy: Leniency) -> bool:
    if is_determinant(p) != is_determinant(g):
        return same(worked_out(p), worked_out(g), policy)
    mine, gold = as_matrix(p) or as_column(p), as_matrix(g) or as_column(g)
    if mine is None or gold is None:
        return False
    _, rows, *bars = mine
    _, gold_rows, *gold_bars = gold
    if bars != gold_bars or len(rows) != len(gold_rows):
        return False
    pairs = zip(rows, gold_rows, strict=True)
    return all(_in_order(row, gold_row, policy) for row, gold_row in pairs)


def _same_ratios(p: Node, g: Node, policy: Leniency) -> bool:
    return same_ratios(p, g)


def _same_values(p: Node, g: Node, policy: Leniency) -> bool:
    """Equal values; or, under rounding `gold`, a value that rounds to the gold decimal,
    or a printed float of the gold.
    """
    if multiplies_transposes(p) or multiplies_transposes(g):
        return False  # A^T B^T is no B^T A^T, and equal trees were found before
    if equal(p, g):
        return True
    if policy.rounding == "none" or variables(p) or variables(g):
        return False
    return rounded_alike(p, g)


def _same_tuples(p: Node, g: Node, policy: Leniency) -> bool:
    if brackets(p) != brackets(g):
        return False
    _, _, _, *members = p
    _, _, _, *gold_members = g
    return _in_order(members, gold_members, policy)


def _same_bases(p: Node, g: Node, policy: Leniency) -> bool:
    """Another base, or none, is another answer."""
    if p[0] != g[0]:
        return False
    _, _, base = p
    _, _, gold_base = g
    return base == gold_base and equal(p, g)


def _same_words(p: Node, g: Node, policy: Leniency) -> bool:
    if p[0] != g[0]:
        return False
    _, spelled = p
    _, gold_spelled = g
    return words(spelled) == words(gold_spelled)


def _never_same(p: Node, g: Node, policy: Leniency) -> bool:
    return False


def _ambiguous(node: Node) -> bool:
    if node[0] in ("rel", "tuple", "matrix", "list", "set"):
        return False
    return holds(node, "pm")


def _is_list(kinds: set[str], p: Node, g: Node) -> bool:
    if kinds & {"list", "set"}:
        return True
    return _ambiguous(p) or _ambiguous(g)


def _is_statement(kinds: set[str], p: Node, g: Node) -> bool:
    if "rel" in kinds or kinds & _SETS:
        return True
    return kinds == {"tuple"} and brackets(p) != brackets(g)


def _is_matrix(kinds: set[str], p: Node, g: Node) -> bool:
    return "matrix" in kinds or bool(as_matrix(p) or as_matrix(g))


def _both_tuples(kinds: set[str], p: Node, g: Node) -> bool:
    return kinds == {"tuple"}


def _of_kinds(*names: str) -> Callable[[set[str], Node, Node], bool]:
    return lambda kinds, p, g: bool(kinds & set(names))


HoldsFor = Callable[[set[str], Node, Node], bool]
Compare = Callable[[Node, Node, Leniency], bool]
# What two trees are compared as: the first row that holds for them.
COMPARED: tuple[tuple[HoldsFor, Compare], ...] = (
    (_is_list, _same_lists),
    (_is_statement, _same_statements),
    (_of_kinds(*MEASURES), _same_measures),
    (_both_tuples, _same_tuples),
    (_is_matrix, _same_matrices),
    (_of_kinds("base"), _same_bases),
    (_of_kinds("ratio"), _same_ratios),
    (_of_kinds("text"), _same_words),
    (_of_kinds("inf"), _never_same),
)
