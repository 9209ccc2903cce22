"""What a text is read as: nested tuples whose first element names the node.

("n", value, digits), ("v", name), ("const", "pi" | "e" | "i"), ("+", *), ("*", a, b), ("/", a, b), ("^", a, b), ("neg", a),
("pm", sign, a), ("call", name, *), ("!", a), ("base", digits, base), ("deg", a), ("%", a), ("unit", a, words), ("ratio", *),
("series", "sum" | "prod", name, first, last, term), ("rel", ops, *), ("cup" | "cap" | "minus", a, b), ("inf",), ("empty",),
("domain", name), ("tuple", open, close, *), ("set", *), ("builder", a, condition), ("list", joined by, *), ("matrix", rows),
("text", words).
"""

from typing import Any

Node = tuple[Any, ...]


def holds(node: Any, kind: str) -> bool:
    """Whether a node of the kind is in the tree."""
    return isinstance(node, tuple) and bool(node) and (node[0] == kind or any(holds(child, kind) for child in node))
