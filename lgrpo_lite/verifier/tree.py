"""What a text is read as: nested tuples whose first element names the node.

atoms      ("n", value, digits)  ("v", name)  ("const", "pi" | "e" | "i")  ("base", digits, base)  ("inf",)
sums       ("+", *)  ("*", a, b)  ("/", a, b)  ("^", a, b)  ("neg", a)  ("pm", sign, a)  ("!", a)  ("%", a)
calls      ("call", name, *)  ("series", "sum" | "prod", name, first, last, term)
measures   ("deg", a)  ("unit", a, words)  ("ratio", *)
relations  ("rel", ops, *)
sets       ("cup" | "cap" | "minus", a, b)  ("empty",)  ("domain", name)  ("set", *)
           ("builder", a, condition)
rows       ("tuple", open, close, *)  ("list", joined by, *)  ("matrix", rows)
left out   ("dots",)  in a sum or list that is shown in part
words      ("text", words)
"""

from collections.abc import Callable
from typing import Any

Node = tuple[Any, ...]


def holds(node: Any, kind: str) -> bool:
    """Whether a node of the kind is in the tree."""
    if not isinstance(node, tuple) or not node:
        return False
    return node[0] == kind or any(holds(child, kind) for child in node)


def contains(node: Any, part: Node) -> bool:
    """Whether a part is in the tree, or is the tree."""
    if not isinstance(node, tuple) or not node:
        return False
    return node == part or any(contains(child, part) for child in node)


def rebuilt(node: Node, change: Callable[[Node], Node]) -> Node:
    """The tree with each of its children changed; names and digits stay."""
    children = []
    for child in node:
        is_node = isinstance(child, tuple) and child
        children.append(change(child) if is_node else child)
    return tuple(children)
