"""The atoms of an expression: numbers, symbols, brackets, LaTeX commands, matrices.
Each is read at a parser's cursor.
"""
# ruff: noqa: SIM905

from fractions import Fraction
from typing import TYPE_CHECKING

from lgrpo_lite.verifier.tokens import FUNCTIONS, GREEK, Token, Unreadable
from lgrpo_lite.verifier.tree import Node

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
    found = [token.value]
    while p.next.kind == "text":
        found.append(p.next.value)
        p.at += 1
    return ("text", " ".join(found))


def number(p: "Parser", token: Token) -> Node:
    if not p.raised and p.take("_"):
        p.take("(")
        sub = p.argument(whole=True)
        if sub[0] == "text" and sub[1].lower() in _BASES:
            return ("base", token.value, _BASES.index(sub[1].lower()) + 2)
        if sub[0] != "n" or not token.value.isdigit() or len(token.value) > 1000:
            raise Unreadable
        return ("base", token.value, int(sub[1]))
    return ("n", token.number, token.value)


def symbol(p: "Parser", name: str) -> Node:
    if p.take("_"):
        name += "_" + p.raw()
    if p.next.value == "(" and p.next.glued and p.peek(1).kind == "number" and p.peek(2).value == ")":
        name += f"({p.peek(1).value})"  # I(0) is a value of I, no product
        p.at += 3
    return ("const", name) if name in ("e", "i") else ("v", name)


def bracket(p: "Parser", opening: str) -> Node:
    if opening == "|":
        p.bars += 1
        node = ("call", "abs", p.sum())
        p.bars -= 1
        p.need("|")
        return node
    if opening not in _CLOSERS:
        raise Unreadable
    bars, ratios = p.bars, p.ratios
    p.bars, p.ratios = int(opening == "\\{"), opening != "\\{"
    if opening == "\\{" and p.take("\\}"):
        p.bars, p.ratios = bars, ratios
        return ("empty",)
    inner = p.items()
    if opening == "\\{" and p.take("|", ":"):
        p.bars = 0
        inner = ("builder", inner, p.items())
    p.bars, p.ratios = bars, ratios
    closing = p.need(*_CLOSERS[opening])
    if inner[0] == "builder":
        return inner
    found = inner[2:] if inner[0] == "list" else (inner,)
    if opening == "\\{":
        return ("set", *found)
    if inner[0] != "list":
        return inner
    return ("set", *found) if opening == "{" else ("tuple", opening, closing, *found)


def command(p: "Parser", name: str) -> Node:
    if name == "frac":
        return ("/", p.argument(), p.argument())
    if name == "sqrt":
        degree: Node | None = None
        if p.take("["):
            degree = p.items()
            p.need("]")
        return ("call", "root", p.argument(whole=True), degree or ("n", Fraction(2), "2"))
    if name == "binom":
        return ("call", "binom", p.argument(), p.argument())
    if name == "pi":
        return ("const", "pi")
    if name in ("infty", "emptyset"):
        return ("inf",) if name == "infty" else ("empty",)
    if name == "abs":
        return ("call", "abs", p.primary())
    if name in ROUND:
        inner = p.items()
        p.need(ROUND[name])
        inner = inner[2:] if inner[0] == "list" else (inner,)
        return ("tuple", "(", ")", *inner) if name == "langle" else ("call", name[1:], *inner)
    if name == "begin":
        return matrix(p)
    if name in ("sum", "prod"):
        return series(p, name)
    if name in FUNCTIONS:
        return function(p, name)
    if name in ACCENTS:
        sub = p.raw()
        return ("domain", sub) if name == "mathbb" else symbol(p, f"{name}({sub})")
    if name in GREEK:
        return symbol(p, "\\" + name)
    raise Unreadable


def function(p: "Parser", name: str) -> Node:
    exponent, base = None, None
    for _ in range(2):
        if p.take("^"):
            exponent = p.argument(whole=True)
        if p.take("_"):
            base = p.argument(whole=True)
    if p.next.value in ("(", "[", "{"):
        inner = p.primary()
    else:
        inner = p.power() if p.next.value != "-" else p.factor()
        while p.opens(inner) and p.next.value not in FUNCTIONS:
            inner = ("*", inner, p.power())
    found = inner[3:] if inner[0] == "tuple" else (inner,)
    if exponent == ("neg", ("n", Fraction(1), "1")):
        return ("call", "arc" + name, *found)
    node = ("call", name, *found, *([base] if base else []))
    return ("^", node, exponent) if exponent else node


def series(p: "Parser", name: str) -> Node:
    """A sum or product over k=a to b."""
    p.need("_")
    first = p.argument()
    p.need("^")
    last = p.argument(whole=True)
    if first[0] != "rel" or first[1] != ("=",) or first[2][0] != "v":
        raise Unreadable
    return ("series", name, first[2][1], first[3], last, p.product())


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


READ = {
    "number": number,
    "symbol": lambda p, token: symbol(p, token.value),
    "text": text,
    "sign": lambda p, token: bracket(p, token.value),
    "command": lambda p, token: command(p, token.value),
}
