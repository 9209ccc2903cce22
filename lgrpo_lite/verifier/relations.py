"""Equations and inequalities: the same up to a constant factor; and what x = 5 assigns."""

import re
from collections.abc import Callable
from fractions import Fraction

from lgrpo_lite.verifier.evaluate import Evaluation, Undecided, Value
from lgrpo_lite.verifier.tree import Node, rebuilt
from lgrpo_lite.verifier.values import LOW, equal, points, variables

Same = Callable[[Node, Node], bool]
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_VERDICTS = frozenset(["yes", "no", "not", "true", "false", "none"])  # words that are answers, not names
_SEGMENTS = ("overline", "angle", "triangle")
_FUNCTIONS = frozenset("fghFGPQW")  # of which f(x) is no product
_ARGUMENTS = frozenset("xyztnmkrsu")  # which stand for any number, as a, b and A do not
_RATIOS = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_DELTA = ("v", "\\Delta")


def assigned(node: Node) -> str | None:
    """The name that `name = value` gives a value to, as x, f(x), (x, y) or NO/BO; None when
    the node is no such statement.
    """
    assignment = _assignment(node)
    return None if assignment is None else assignment[0]


def tells_set(node: Node) -> bool:
    """Whether a relation says which set something is, or is in: S = {1, 2}, x in (0, 1)."""
    return node[:2] == ("rel", ("in",)) or (node[0] == "rel" and value_of(node)[0] == "set")


def value_of(node: Node) -> Node:
    """What an assignment assigns, the set of `x in {1, 2}`; any other node as it is."""
    if node[:2] == ("rel", ("in",)):
        _, _, _, container = node
        if container[0] == "set":
            return container
    assignment = _assignment(node)
    return node if assignment is None else assignment[1]


def values_of(node: Node) -> list[Node]:
    """As `value_of`; both sides of an equality between two names: AF^2 + BF^2 = 3R^2 tells either."""
    if node[:2] == ("rel", ("=",)) and len(node) == 4:
        _, ops, left, right = node
        back = _assignment(("rel", ops, right, left))
        if _total_name(left) and back and back[1] == left:
            return [left, right]
    return [value_of(node)]


def _assignment(node: Node) -> tuple[str, Node] | None:
    """The name and the value of `name = value` or `value = name`."""
    if node[0] != "rel" or set(node[1]) != {"="}:
        return None
    _, _, first, *_, last = node
    for unknown, value in ((first, last), (last, first)):
        name = _matrix_name(unknown) if value[0] == "matrix" else _name(unknown)
        in_itself = unknown[0] == "v" and variables(value) & variables(unknown)
        if name and not in_itself:
            return name, value
    for total, value in ((first, last), (last, first)):
        name = _total_name(total)
        if name and not variables(value) & variables(total):
            return name, value
    return None


def _matrix_name(node: Node) -> str | None:
    """A, A^n or AB, which a matrix is told to be."""
    named = node[1] if node[0] == "^" else node
    letters = variables(named) if node[0] in ("*", "^") else ()
    return str(node) if letters and all(letter.isupper() for letter in letters) else _name(node)


def _total_name(node: Node) -> str | None:
    """m + n, 100m + n, ab, a/b: a value of several unknowns, of which no other is told."""
    if node[0] not in ("+", "*", "/") or len(variables(node)) < 2:
        return None
    return str(node).replace("(", "[") if _is_linear(node) else None


def _is_linear(node: Node) -> bool:
    """Whether a tree has nothing but unknowns and whole factors, added, multiplied, divided."""
    if node[0] == "+":
        terms = [term for term in node[1:] if term != ("const", "e")]  # a + b + c + d + e
        return all(map(_is_linear, terms)) and not any(term[0] == "n" for term in terms)
    if node[0] in ("*", "/"):
        return all(map(_is_linear, node[1:]))
    if node[0] == "^" and node[2][0] == "n":  # AF^2, m^2 + n^2; x^2 + y^2 = 1 is a circle
        return _is_linear(node[1]) and all(name.isupper() or name in "abckmnpq" for name in variables(node))
    return node[0] == "v" or (node[0] == "n" and "." not in node[2])


def _name(node: Node) -> str | None:
    """How an unknown is called, if the tree is a name: a variable, words, a function of
    variables, a ratio of segments.
    """
    kind = node[0]
    if kind == "v" or (kind == "text" and node[1].lower() not in _VERDICTS):
        return node[1]
    if kind == "tuple":
        _, _, _, *members = node
        if all(kind == "v" for kind, *_ in members):
            return "(" + ",".join(name for _, name in members) + ")"
    if kind in ("cap", "cup", "minus") and all(side[0] == "v" and side[1].isupper() for side in node[1:]):
        return str(node).replace("(", "[")
    name = _product_name(node) if kind == "*" else None
    if node[:2] == ("call", "abs") and node[2][0] == "v":
        return f"|{node[2][1]}|"
    if kind == "/" and all(side[0] == "*" and _is_signal(side) for side in node[1:]):
        return str(node).replace("(", "[")
    if kind == "^" and node[1][:2] == ("call", "abs") and node[2][0] == "n":
        size = _name(node[1])
        return size and f"{size}^{node[2][2]}"
    if name is None and (_is_of_segments(node) or _is_of_angle(node)):
        name = str(node).replace("(", "[")  # no function of an argument
    return name


def _is_signal(node: Node) -> bool:
    """V_o(s), whose ratio to another such is a transfer function."""
    _, function, argument = node
    return function[0] == "v" and function[1][0].isupper() and argument in (("v", "s"), ("v", "z"))


def function_value(node: Node) -> Node:
    """f(x) as one variable; any other node as it is."""
    name = _product_name(node) if node[0] == "*" and len(node) == 3 else None
    return ("v", name) if name else node


def _product_name(node: Node) -> str | None:
    """f(x), which is read as a product, or a difference as in \\Delta x."""
    _, left, right = node
    if _is_function(left) and _is_argument(right):
        return f"{left}{right}"
    if left == _DELTA and right[0] == "v":
        return "\\Delta" + right[1]
    return None


def _is_function(node: Node) -> bool:
    """f, f', f^{-1}, a single letter."""
    if node[0] == "^":
        _, base, exponent = node
        return base[0] == "v" and exponent[0] == "neg"
    return node[0] == "v" or node[:2] == ("call", "'")


def _is_argument(node: Node) -> bool:
    return node[0] == "v" or bool(_name(node)) or (node[0] == "tuple" and _is_plain(node))


def _is_plain(node: Node) -> bool:
    """A number, or a tuple of numbers and variables."""
    if node[0] == "n":
        return True
    if node[0] != "tuple":
        return False
    _, _, _, *members = node
    return all(member[0] == "v" or _is_plain(member) for member in members)


def _is_of_segments(node: Node) -> bool:
    """A product, ratio or length of segments: all its names are like AB."""
    if node[0] not in ("*", "/", "ratio") and node[:2] != ("call", "abs"):
        return False
    names = variables(node)
    if not names:
        return False
    return all(name.isupper() or name.startswith(_SEGMENTS) for name in names)


def _is_of_angle(node: Node) -> bool:
    """\\tan\\alpha, a value that is asked for by name."""
    return node[0] == "call" and node[1] in _RATIOS and len(node) == 3 and node[2][0] == "v"


def same_relation(p: Node, g: Node, same: Same) -> bool:
    """Whether two relations say the same: side by side, mirrored, or p's
    difference a constant multiple of g's.
    """
    _, ops, *sides = _in_plain_terms(p)
    _, gold_ops, *gold_sides = _in_plain_terms(g)
    if ops == gold_ops and len(sides) == len(gold_sides) and _same_sides(sides, gold_sides, same):
        return True
    mirrored_ops = tuple(_FLIPPED.get(op, "") for op in reversed(ops))
    if mirrored_ops == gold_ops and _same_sides(sides[::-1], gold_sides, same):
        return True
    renamed = _renamed(p, g)
    if renamed is not None:
        return same(*renamed)
    if _one_is_a_function(assigned(p), assigned(g)):
        return same(value_of(p), value_of(g))  # y = ... and f(x) = ...
    if len(sides) != 2 or len(gold_sides) != 2 or "in" in (*ops, *gold_ops):
        return False
    factor = _factor(_difference(sides), _difference(gold_sides))
    if factor is None:
        return False
    op = ops[0] if factor > 0 else _FLIPPED[ops[0]]
    return op == gold_ops[0]


def _in_plain_terms(relation: Node) -> Node:
    """|u| < c as -c < u < c, and a derivative y'' as an unknown of its own."""
    _, ops, *sides = relation
    sides = [_with_derivatives_named(side) for side in sides]
    if len(sides) == 2 and ops[0] in (">", ">="):
        ops, sides = (_FLIPPED[ops[0]],), sides[::-1]
    if len(sides) == 2 and ops[0] in ("<", "<=") and sides[0][:2] == ("call", "abs"):
        inside, bound = sides[0][2], sides[1]
        ops, sides = ops * 2, [("neg", bound), inside, bound]
    return ("rel", ops, *sides)


def _with_derivatives_named(node: Node) -> Node:
    if node[:2] == ("call", "'"):
        inside = _with_derivatives_named(node[2])
        return ("v", inside[1] + "'") if inside[0] == "v" else node
    return rebuilt(node, _with_derivatives_named)


def _renamed(p: Node, g: Node) -> tuple[Node, Node] | None:
    """The values of f(n) = n and f(x) = x in one variable: what an argument is called says nothing.
    None where they are no values of one function, or both name the argument alike.
    """
    mine, gold = _function_value(p), _function_value(g)
    if mine is None or gold is None:
        return None
    (name, argument, value), (gold_name, gold_argument, gold_value) = mine, gold
    if name != gold_name or argument == gold_argument:
        return None
    if gold_argument in variables(value) or argument in variables(gold_value):
        return None
    return substituted(value, {argument: ("v", gold_argument)}), gold_value


def _function_value(node: Node) -> tuple[str, str, Node] | None:
    """f, x and the value of f(x) = value; f is a letter, and so is x."""
    _, ops, *sides = node
    if ops != ("=",) or sides[0][0] != "*":
        return None
    (_, function, argument), value = sides
    if (
        function[0] != "v"
        or function[1] not in _FUNCTIONS
        or argument[0] != "v"
        or argument[1] not in _ARGUMENTS
    ):
        return None
    if function[1] in variables(value):
        return None
    return function[1], argument[1], value


def _same_sides(sides: list[Node], gold_sides: list[Node], same: Same) -> bool:
    pairs = zip(sides, gold_sides, strict=True)
    return all(_safe(same, side, gold_side) for side, gold_side in pairs)


def _safe(same: Same, a: Node, b: Node) -> bool:
    try:
        return same(a, b)
    except Undecided:
        return False


def _one_is_a_function(name: str | None, other: str | None) -> bool:
    """Whether both relations name a value, one of them as f(x)."""
    if not name or not other or name == other or "[" in (name[0], other[0]):
        return False
    if ("(" in name) == ("(" in other):
        return False
    function = name if "(" in name else other
    if re.match(r"\('v', '[ABCDK]'\)", function):  # C x is no value of a function C
        return False
    argument = re.search(r"\('v', '(\w+)'\)$", function)
    return argument is None or argument[1] in _ARGUMENTS


def _difference(sides: list[Node]) -> Node:
    left, right = sides
    return ("+", left, ("neg", right))


def _factor(a: Node, b: Node) -> Fraction | float | None:
    """c with a = c b for all values of the variables, c not 0; None when there is none."""
    names = variables(a)
    if not names or names != variables(b):
        return None
    anchor = _anchor(a, b)
    if anchor is None:
        return None
    run, x, y = anchor
    literals = {name: ("n", value, "") for name, value in run.point.items()}
    a_there, b_there = substituted(a, literals), substituted(b, literals)
    if not equal(("*", a, b_there), ("*", b, a_there)):
        return None
    quotient = run.inexact(x) / run.inexact(y)
    return None if isinstance(quotient, run.mp.mpc) else float(quotient)


def _anchor(a: Node, b: Node) -> tuple[Evaluation, Value, Value] | None:
    """The first point at which neither is 0, and their values there."""
    for point in points(a, b):
        run = Evaluation(point, LOW)
        try:
            x, y = run.value(a), run.value(b)
        except Undecided:
            continue
        if x and y:
            return run, x, y
    return None


def substituted(node: Node, literals: dict[str, Node]) -> Node:
    """The tree with values for its variables."""
    if node[0] == "v":
        _, name = node
        return literals.get(name, node)
    return rebuilt(node, lambda child: substituted(child, literals))
