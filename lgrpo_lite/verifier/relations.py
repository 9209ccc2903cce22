"""Equations and inequalities: the same up to a constant factor; and what x = 5 assigns."""

from collections.abc import Callable
from fractions import Fraction

from lgrpo_lite.verifier.evaluate import Evaluation, Undecided
from lgrpo_lite.verifier.tree import Node
from lgrpo_lite.verifier.values import LOW, Point, equal, points, variables

_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def assigned(node: Node) -> str | None:
    """The name that `name = value` gives a value to, as x, f(x), (x, y) or NO/BO; None when
    the node is no such statement.
    """
    sides = _sides(node)
    return None if sides is None else sides[0]


def value_of(node: Node) -> Node:
    """What an assignment assigns, the set of `x in {1, 2}`; any other node as it is."""
    if node[0] == "rel" and node[1] == ("in",) and node[3][0] == "set":
        return node[3]
    sides = _sides(node)
    return node if sides is None else sides[1]


def _sides(node: Node) -> tuple[str, Node] | None:
    if node[0] != "rel" or set(node[1]) != {"="}:
        return None
    first, last = node[2], node[-1]
    for name, value in ((first, last), (last, first)):
        if (found := _name(name)) and not (variables(value) & variables(name) and name[0] == "v"):
            return found, value
    return None


def _name(node: Node) -> str | None:
    """How an unknown is called, if the tree is a name: a variable, words, a function of
    variables, a ratio of segments.
    """
    if node[0] in ("v", "text"):
        return node[1]
    if node[0] == "tuple" and all(part[0] == "v" for part in node[3:]):
        return "(" + ",".join(part[1] for part in node[3:]) + ")"
    if node[0] == "*" and _function(node[1]) and (node[2][0] == "v" or _name(node[2]) or _plain(node[2])):
        return f"{node[1]}{node[2]}"
    if node[0] == "*" and node[1] == ("v", "\\Delta") and node[2][0] == "v":
        return "\\Delta" + node[2][1]
    names = variables(node)
    if (
        (node[0] in ("*", "/", "ratio") or node[:2] == ("call", "abs"))
        and names
        and all(name.isupper() or name.startswith("overline") for name in names)
    ):
        return str(node)
    return None


def _function(node: Node) -> bool:
    """f, f', f^{-1}, a single letter."""
    return (
        node[0] == "v"
        or (node[0] == "call" and node[1] == "'")
        or (node[0] == "^" and node[1][0] == "v" and node[2][0] == "neg")
    )


def _plain(node: Node) -> bool:
    return node[0] == "n" or (node[0] == "tuple" and all(_plain(part) or part[0] == "v" for part in node[3:]))


def same_relation(p: Node, g: Node, same: Callable[[Node, Node], bool]) -> bool:
    """Whether two relations say the same: side by side, mirrored, or p's
    difference a constant multiple of g's.
    """
    if (
        p[1] == g[1]
        and len(p) == len(g)
        and all(_safe(same, a, b) for a, b in zip(p[2:], g[2:], strict=True))
    ):
        return True
    mirrored = tuple(_FLIPPED.get(op, "") for op in reversed(p[1]))
    if mirrored == g[1] and all(_safe(same, a, b) for a, b in zip(reversed(p[2:]), g[2:], strict=True)):
        return True
    names = assigned(p), assigned(g)
    if (
        all(names)
        and names[0] != names[1]
        and any("(" in str(name) for name in names)
        and not all("(" in str(n) for n in names)
    ):
        return same(value_of(p), value_of(g))  # y = ... and f(x) = ...
    if len(p) != 4 or len(g) != 4 or "in" in (*p[1], *g[1]):
        return False
    factor = _factor(("+", p[2], ("neg", p[3])), ("+", g[2], ("neg", g[3])))
    return factor is not None and (p[1][0] if factor > 0 else _FLIPPED[p[1][0]]) == g[1][0]


def _safe(same: Callable[[Node, Node], bool], a: Node, b: Node) -> bool:
    try:
        return same(a, b)
    except Undecided:
        return False


def _factor(a: Node, b: Node) -> Fraction | float | None:
    """c with a = c b for all values of the variables, c not 0; None when there is none."""
    names = variables(a) | variables(b)
    if not names or variables(a) != variables(b):
        return None
    anchor: Point | None = None
    for point in points(a, b):
        try:
            run = Evaluation(point, LOW)
            x, y = run.value(a), run.value(b)
        except Undecided:
            continue
        if x and y:
            anchor = point
            break
    if anchor is None:
        return None
    at = {name: ("n", value, "") for name, value in anchor.items()}
    held_a, held_b = _at(a, at), _at(b, at)
    if not equal(("*", a, held_b), ("*", b, held_a)):
        return None
    sign = run.inexact(x) / run.inexact(y)
    return None if isinstance(sign, run.mp.mpc) else float(sign)


def _at(node: Node, values: dict[str, Node]) -> Node:
    """The tree with values for its variables."""
    if node[0] == "v":
        return values.get(node[1], node)
    return tuple(_at(child, values) if isinstance(child, tuple) and child else child for child in node)
