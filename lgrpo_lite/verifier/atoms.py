"""The atoms of an expression: numbers, symbols, brackets, LaTeX commands, matrices.
Each is read at a parser's cursor.
"""
# ruff: noqa: SIM905

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from lgrpo_lite.verifier.tokens import FUNCTIONS, GREEK, Token, Unreadable
from lgrpo_lite.verifier.tree import Node, holds, rebuilt

if TYPE_CHECKING:
    from lgrpo_lite.verifier.parse import Parser

_BASES = "two three four five six seven eight nine ten eleven twelve".split()
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",)}
ACCENTS = frozenset(
    "overline vec hat bar dot ddot tilde widehat widetilde overrightarrow angle triangle mathbb prime".split()
)
ROUND = {"lfloor": "rfloor", "lceil": "rceil", "langle": "rangle"}
_MATRICES = frozenset("matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix array".split())


def text(p: "Parser", token: Token) -> Node:
    words = [token.value]
    while p.next.kind == "text":
        words.append(p.next.value)
        p.position += 1
    return ("text", " ".join(words))


def number(p: "Parser", token: Token) -> Node:
    digits = token.value
    if p.raised or not p.take("_"):
        return ("n", token.number, digits)
    p.take("(")
    base = p.argument(whole=True)
    if base[0] == "text" and base[1].lower() in _BASES:
        return ("base", digits, _BASES.index(base[1].lower()) + 2)
    if base[0] != "n" or not digits.isdigit() or len(digits) > 1000:
        raise Unreadable
    return ("base", digits, int(base[1]))


def symbol(p: "Parser", name: str) -> Node:
    if p.take("_"):
        name += "_" + p.raw()
    if p.next.value == "(" and p.next.glued and p.peek(1).kind == "number" and p.peek(2).value == ")":
        name += f"({p.peek(1).value})"  # I(0) is a value of I, no product
        p.position += 3
    kind = "const" if name in ("e", "i") else "v"
    return (kind, name)


def bracket(p: "Parser", opening: str) -> Node:
    if opening == "|":
        p.bars += 1
        node = ("call", "abs", p.sum())
        p.bars -= 1
        p.need("|")
        return node
    if opening not in _CLOSERS:
        raise Unreadable
    braces = opening == "\\{"
    bars, ratios = p.bars, p.ratios
    p.bars, p.ratios = int(braces), not braces
    if braces and p.take("\\}"):
        p.bars, p.ratios = bars, ratios
        return ("empty",)
    inner = p.items()
    if braces and p.take("|", ":"):
        p.bars = 0
        inner = ("builder", inner, p.items())
    p.bars, p.ratios = bars, ratios
    closing = p.need(*_CLOSERS[opening])
    if inner[0] == "builder":
        return inner
    if braces:
        return ("set", *_members(inner))
    if inner[0] != "list":
        return inner
    if opening == "{":
        return ("set", *_members(inner))
    return ("tuple", opening, closing, *_members(inner))


def _members(node: Node) -> tuple[Node, ...]:
    return node[2:] if node[0] == "list" else (node,)


def command(p: "Parser", name: str) -> Node:
    if name in _COMMANDS:
        return _COMMANDS[name](p)
    if name in ROUND:
        inner = p.items()
        p.need(ROUND[name])
        return ("call", name[1:], *_members(inner))
    if name in FUNCTIONS:
        return function(p, name)
    if name in ("overline", "bar"):
        conjugate = _conjugate(p)
        if conjugate is not None:
            return conjugate
    if name in ACCENTS:
        return symbol(p, f"{name}({p.raw()})")
    if name in GREEK:
        return symbol(p, "\\" + name)
    raise Unreadable


def _conjugate(p: "Parser") -> Node | None:
    """The conjugate of a complex number that follows in braces, as in \\overline{3 + 4i}; None of anything
    else, which is left unread.
    """
    begin = p.position
    inside = p.argument() if p.next.value == "{" else None
    conjugate = inside and _mirrored(inside)
    if conjugate is None or conjugate == inside or holds(conjugate, "v") or holds(conjugate, "tuple"):
        p.position = begin
        return None
    return conjugate


def _mirrored(node: Node) -> Node:
    """The node with -i for i."""
    if node == ("const", "i"):
        return ("neg", node)
    return rebuilt(node, _mirrored)


def root(p: "Parser") -> Node:
    degree: Node = ("n", Fraction(2), "2")
    if p.take("["):
        degree = p.items()
        p.need("]")
    return ("call", "root", p.argument(whole=True), degree)


def vector(p: "Parser") -> Node:
    inner = p.items()
    p.need("rangle")
    return ("tuple", "(", ")", *_members(inner))


def function(p: "Parser", name: str) -> Node:
    exponent, base = None, None
    for _ in range(2):
        if p.take("^"):
            exponent = p.argument(whole=True)
        if p.take("_"):
            base = p.argument(whole=True)
    arguments = _arguments(p)
    if exponent == ("neg", ("n", Fraction(1), "1")):
        return ("call", "arc" + name, *arguments)
    if base:
        arguments = (*arguments, base)
    node = ("call", name, *arguments)
    return ("^", node, exponent) if exponent else node


def _arguments(p: "Parser") -> tuple[Node, ...]:
    """What stands in brackets after a function; without any, the product up to the next function."""
    if p.next.value in ("(", "[", "{"):
        argument = p.primary()
    else:
        argument = p.factor() if p.next.value == "-" else p.power()
        while p.opens(argument) and p.next.value not in FUNCTIONS:
            argument = ("*", argument, p.power())
    if argument[0] == "set":  # \max\{a, b\}
        return argument[1:]
    return argument[3:] if argument[0] == "tuple" else (argument,)


def series(p: "Parser", name: str) -> Node:
    """A sum or product over k=a to b."""
    p.need("_")
    first = p.argument()
    p.need("^")
    last = p.argument(whole=True)
    if first[:2] != ("rel", ("=",)):
        raise Unreadable
    _, _, index, start = first
    if index[0] != "v":
        raise Unreadable
    return ("series", name, index[1], start, last, p.product())


def matrix(p: "Parser") -> Node:
    kind = p.raw()
    if kind not in _MATRICES:
        raise Unreadable
    if kind == "array" and p.next.value == "{":
        p.raw()
    rows: list[list[Node]] = [[]]
    while True:
        rows[-1].append(p.statement())
        if p.take("&"):
            continue
        if p.take("\\\\") and p.next.value != "end":
            rows.append([])
        elif p.take("end"):
            break
        elif p.next.kind == "end":
            raise Unreadable
    if p.raw() != kind:
        raise Unreadable
    bars = ("det",) if kind == "vmatrix" else ()
    return ("matrix", tuple(tuple(row) for row in rows), *bars)


_COMMANDS: dict[str, Callable[["Parser"], Node]] = {
    "frac": lambda p: ("/", p.argument(), p.argument()),
    "sqrt": root,
    "binom": lambda p: ("call", "binom", p.argument(), p.argument()),
    "pi": lambda p: ("const", "pi"),
    "infty": lambda p: ("inf",),
    **dict.fromkeys(("dots", "cdots", "ldots", "dotsb", "dotsc"), lambda p: ("dots",)),
    "emptyset": lambda p: ("empty",),
    "abs": lambda p: ("call", "abs", p.primary()),
    "langle": vector,
    "begin": matrix,
    "sum": lambda p: series(p, "sum"),
    "prod": lambda p: series(p, "prod"),
    "mathbb": lambda p: ("domain", p.raw()),
}

READ = {
    "number": number,
    "symbol": lambda p, token: symbol(p, token.value),
    "text": text,
    "sign": lambda p, token: bracket(p, token.value),
    "command": lambda p, token: command(p, token.value),
}
