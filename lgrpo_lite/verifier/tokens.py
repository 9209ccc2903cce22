"""Spelled answers as tokens: numbers, commands, symbols, words and signs, in one pass."""

# ruff: noqa: SIM905

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lgrpo_lite.verifier.units import KNOWN

MAX_TOKENS = 12_000
MAX_DIGITS = 20_000
CHUNK = 4000  # Python reads no longer integer from a text

FUNCTIONS = frozenset(
    (
        "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth ln log exp lg "
        "asin acos atan asinh acosh atanh arsinh arcosh artanh arcsinh arccosh arctanh min max gcd lcm det "
        "deg Re Im"
    ).split()
)
GREEK = frozenset(
    (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar vartheta varrho"
    ).split()
)
_INFINITY = ("inf", "infinity", "infty", "oo")
# What is a command without its backslash too.
_PLAIN = {
    **{name: name for name in (*FUNCTIONS, *GREEK, "pi", "sqrt", "and", "or", "cup", "binom", "abs")},
    **dict.fromkeys(_INFINITY, "infty"),
}
_JOINTS = {
    "and": "and",
    "or": "or",
    "und": "and",
    "oder": "or",
    "et": "and",
    "ou": "or",
    "и": "and",
    "или": "or",
}
_CLOCK = re.compile(r"\d{1,2}:\d{2} ?(?:[ap]m)?", re.IGNORECASE)
_NEVER_RAISED = frozenset(["mL", "ml", "mg", "hr"])  # 2mL^2 is 2 m L^2
_ENGLISH = frozenset("not no nor non but if is the for all any".split())

Kind = Literal["number", "command", "symbol", "text", "sign", "end"]


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    value: str
    number: Fraction | None = None
    glued: bool = False  # no space before it


class Unreadable(Exception):
    """The text is no answer that this package reads."""


_GROUPS = r"\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?"
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<repeating>\d*\.\d*(?:\\overline|\\dot|\\bar)\s*\{?\s*\d+\s*\}?)"
    rf"|(?P<grouped>{_GROUPS})|(?P<number>\d+\.\d+|\d+\.(?!\.)|\.\d+|\d+)"
    r"|\\text\s*\{(?P<text>[^{}]*)\}|\\(?P<command>[a-zA-Z]+)|(?P<open>\\\{)|(?P<close>\\\})|(?P<row>\\\\)|(?P<letters>[a-zA-Z]+)"
    r"|(?P<sign>\*\*|<=|>=|[-+*/^_=<>()\[\]{}|,;:!%&'.])"
)
_EXPONENT = re.compile(r"[eE][-+]?\d{1,4}(?![\d.a-zA-Z])")
_EULER = re.compile(r"(?<![a-zA-Z0-9.\\])e(?![a-zA-Z])")  # beside which 2e+1 is no 20
_SIGN = {"**": "^", "<=": "le", ">=": "ge"}
_OPENING = frozenset(["(", "[", "{", "\\{"])
_CLOSING = frozenset([")", "]", "}", "\\}"])
_MEASURES = re.compile(r"[\s/*^0-9-]+")  # what parts the units of m/s


def tokens(spelled: str, *, thousands: bool = True) -> list[Token]:
    """The tokens of a spelled text; Unreadable for a sign that no answer has, and beyond MAX_TOKENS.

    `thousands`: 1,234 outside brackets is one number; otherwise two elements.
    """
    read: list[Token] = []
    position, depth, glued = 0, 0, False
    euler = _EULER.search(spelled) is not None
    while position < len(spelled):
        match = _TOKEN.match(spelled, position)
        if match is None or len(read) >= MAX_TOKENS:
            raise Unreadable
        kind, value = str(match.lastgroup), match[0]
        if kind == "grouped" and (depth or not thousands):
            kind = "number"
            value, _, _ = value.partition(",")
        position = match.start() + len(value)
        exponent = _EXPONENT.match(spelled, position) if kind == "number" and not euler else None
        if exponent:
            value += exponent[0]
            position = exponent.end()
        if kind in ("sign", "open", "close"):
            depth += (value in _OPENING) - (value in _CLOSING)
        if kind in ("text", "command"):
            value = match[kind]
        if kind == "letters" and value in _NEVER_RAISED and spelled.startswith("^", position):
            read += _symbols(value, glued)
        elif kind != "space":
            read += _read(kind, value, read, glued)
        glued = kind != "space"
    return read


def _read(kind: str, value: str, before: list[Token], glued: bool) -> list[Token]:
    """The tokens of one match, which for words and letters depend on what stands before them."""
    if kind in ("number", "grouped"):
        return [Token("number", value, decimal(value), glued)]
    if kind == "repeating":
        return [Token("number", value, _repeating(value), glued)]
    if kind == "text":
        return _text(value.strip(), before)
    if kind == "letters":
        return _letters(value, before, glued)
    if kind == "command":
        if value == "textdegree":
            return [Token("text", value)]
        return [Token("command", value, None, glued)]
    value = _SIGN.get(value, value)
    if value in ("le", "ge"):
        return [Token("command", value)]
    return [Token("sign", value, None, glued)]


def decimal(text: str) -> Fraction:
    """The exact value of digits, a point and a power of ten; Unreadable beyond MAX_DIGITS."""
    mantissa, _, power = text.replace(",", "").lower().partition("e")
    whole, _, decimals = mantissa.partition(".")
    if len(whole) + len(decimals) > MAX_DIGITS:
        raise Unreadable
    exponent = int(power or 0)
    if abs(exponent) > MAX_DIGITS:
        raise Unreadable
    digits = _integer(whole + decimals or "0")
    return digits * Fraction(10) ** (exponent - len(decimals))


def _integer(digits: str) -> int:
    value = 0
    for i in range(0, len(digits), CHUNK):
        piece = digits[i : i + CHUNK]
        value = value * 10 ** len(piece) + int(piece)
    return value


def _repeating(text: str) -> Fraction:
    head, _, tail = text.partition("\\")
    cycle = re.sub(r"\D", "", tail)
    if len(text) > 200:
        raise Unreadable
    _, _, decimals = head.partition(".")
    repeated = Fraction(int(cycle), 10 ** len(cycle) - 1)
    return decimal(head) + repeated / 10 ** len(decimals)


def _ends_with_value(before: list[Token]) -> bool:
    if not before:
        return False
    last = before[-1]
    if last.kind in ("number", "symbol", "text"):
        return True
    return last.value in _CLOSING or last.value == "pi"


def _text(words: str, before: list[Token]) -> list[Token]:
    """What stands in `\\text{}`: a unit or words, unless it is a number, a letter or a formula
    typed as text.
    """
    name = words.strip("., ")
    joint = _JOINTS.get(name.lower())
    if joint is not None:
        return [Token("command", joint)]
    if _CLOCK.fullmatch(name):
        return tokens(name)
    after_value = _ends_with_value(before)
    if name in KNOWN and after_value:
        return [Token("text", name)]
    if not name:
        return []
    if re.fullmatch(r"\\[a-zA-Z]+", name):  # \mathrm{\pi}
        return tokens(name)
    if name in _PLAIN:
        return [Token("command", _PLAIN[name])]
    counted = re.fullmatch(r"([-+]?[\d.,]*\d)\s+([a-zA-Z][a-zA-Z .^0-9]*)", name)
    if counted:
        number, counted_words = counted.groups()
        return [*tokens(number), Token("text", counted_words)]
    undotted = name.replace(".", "").lower()
    if undotted in ("am", "pm"):
        return [Token("text", undotted)]
    if after_value and all(unit in KNOWN for unit in _MEASURES.split(name) if unit):
        return [Token("text", name)]
    first, _, joined = name.rpartition(" ")
    if first and joined in ("and", "or"):  # 7 \text{ goats and } 4 \text{ cows}
        return [*_text(first, before), Token("command", joined)]
    if all(word in ("and", "or") for word in re.findall("[a-zA-Z]{2,}", name)):
        return tokens(name)
    return [Token("text", name)]


def _letters(run: str, before: list[Token], glued: bool) -> list[Token]:
    """Letters outside `\\text{}`: a name, a unit after a value, up to three variables, or a word."""
    if _is_known_unit(run) and _ends_with_value(before):
        return [Token("text", run)]
    if run in _PLAIN:
        return [Token("command", _PLAIN[run], None, glued)]
    if run.lower() in _ENGLISH:
        return [Token("text", run)]
    if len(run) <= 3 or (len(run) <= 5 and _joins(before, glued)):
        return _symbols(run, glued)
    return [Token("text", run)]


def _symbols(run: str, glued: bool) -> list[Token]:
    """Each letter as a variable of its own."""
    first, *others = run
    return [Token("symbol", first, glued=glued), *(Token("symbol", other, glued=True) for other in others)]


def _is_known_unit(run: str) -> bool:
    """Whether letters name a unit; a single one is a variable, and two count in their own case only."""
    if len(run) == 1:
        return False
    if run in KNOWN:
        return True
    return len(run) > 2 and run.lower() in KNOWN


def _joins(before: list[Token], glued: bool) -> bool:
    """Whether letters go on with a formula: not at its beginning, not after a symbol, and after
    a number or words only without a space.
    """
    if not before:
        return False
    kind = before[-1].kind
    return kind != "symbol" and (glued or kind not in ("number", "text"))
