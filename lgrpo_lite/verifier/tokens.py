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
        "asin acos atan min max gcd lcm det deg Re Im"
    ).split()
)
GREEK = frozenset(
    (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar vartheta varrho"
    ).split()
)
_PLAIN = {**{name: name for name in FUNCTIONS | GREEK}, "pi": "pi", "sqrt": "sqrt", "and": "and", "or": "or",
"inf": "infty",
          "infinity": "infty", "infty": "infty", "cup": "cup", "binom": "binom", "oo": "infty",
          "abs": "abs"}  # fmt: skip

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
_SIGN = {"**": "^", "<=": "le", ">=": "ge"}


def tokens(spelled: str, *, thousands: bool = True) -> list[Token]:
    """The tokens of a spelled text; Unreadable for a sign that no answer has, and beyond MAX_TOKENS.

    `thousands`: 1,234 outside brackets is one number; otherwise two elements.
    """
    found: list[Token] = []
    at, depth, glued = 0, 0, False
    while at < len(spelled):
        match = _TOKEN.match(spelled, at)
        if match is None or len(found) >= MAX_TOKENS:
            raise Unreadable
        kind, value, at = str(match.lastgroup), match[0], match.end()
        if kind == "grouped" and (depth or not thousands):
            at = match.start() + value.index(",")
            kind, value = "number", spelled[match.start() : at]
        if kind == "number" and (power := _EXPONENT.match(spelled, at)):
            value, at = value + power[0], power.end()
        if kind in ("sign", "open", "close"):
            depth += (value in ("(", "[", "{", "\\{")) - (value in (")", "]", "}", "\\}"))
        if kind != "space":
            _add(found, kind, value if kind not in ("text", "command") else match[kind], glued)
        glued = kind != "space"
    return found


def _add(found: list[Token], kind: str, value: str, glued: bool) -> None:
    if kind in ("number", "grouped"):
        found.append(Token("number", value, decimal(value), glued))
    elif kind == "repeating":
        found.append(Token("number", value, _repeating(value), glued))
    elif kind == "text":
        found.extend(_text(value.strip(), found))
    elif kind == "command":
        found.append(
            Token("text", value) if value in ("textdegree",) else Token("command", value, None, glued)
        )
    elif kind == "letters":
        found.extend(_letters(value, found, glued))
    else:
        value = {"open": "\\{", "close": "\\}", "row": "\\\\"}.get(kind, _SIGN.get(value, value))
        found.append(Token("command", value) if value in ("le", "ge") else Token("sign", value, None, glued))


def decimal(text: str) -> Fraction:
    """The exact value of digits, a point and a power of ten; Unreadable beyond MAX_DIGITS."""
    mantissa, _, power = text.replace(",", "").lower().partition("e")
    whole, _, part = mantissa.partition(".")
    if len(whole) + len(part) > MAX_DIGITS or (power and abs(int(power)) > MAX_DIGITS):
        raise Unreadable
    return Fraction(_integer(whole + part or "0"), 1) * Fraction(10) ** (int(power or 0) - len(part))


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
    return decimal(head) + Fraction(int(cycle), 10 ** len(cycle) - 1) / 10 ** len(head.partition(".")[2])


def _follows_value(found: list[Token]) -> bool:
    return bool(found) and (
        found[-1].kind in ("number", "symbol", "text") or found[-1].value in (")", "}", "]", "\\}", "pi")
    )


def _text(words: str, found: list[Token]) -> list[Token]:
    """What stands in `\\text{}`: a unit or words, unless it is a number,
    a letter or a formula typed as text.
    """
    name = words.strip("., ")
    if name.lower() in ("and", "or"):
        return [Token("command", name.lower())]
    if name in KNOWN and _follows_value(found):
        return [Token("text", name)]
    if name in _PLAIN or not name:
        return [Token("command", _PLAIN[name])] if name else []
    if counted := re.fullmatch(r"([-+]?[\d.,]*\d)\s+([a-zA-Z][a-zA-Z .^0-9]*)", name):
        return [*tokens(counted[1]), Token("text", counted[2])]
    if name.replace(".", "").lower() in ("am", "pm"):
        return [Token("text", name.replace(".", "").lower())]
    measures = re.split(r"[\s/*^0-9-]+", name) if _follows_value(found) else []
    if measures and all(unit in KNOWN for unit in measures if unit):
        return [Token("text", name)]
    if all(word in ("and", "or") for word in re.findall("[a-zA-Z]{2,}", name)):
        return tokens(name)
    return [Token("text", name)]


def _letters(run: str, found: list[Token], glued: bool) -> list[Token]:
    """Letters outside `\\text{}`: a name, a unit after a value, up to three variables, or a word."""
    if len(run) > 1 and (run in KNOWN or (len(run) > 2 and run.lower() in KNOWN)) and _follows_value(found):
        return [Token("text", run)]
    if run in _PLAIN:
        return [Token("command", _PLAIN[run], None, glued)]
    if run.lower() in _ENGLISH:
        return [Token("text", run)]
    after = found[-1] if found else None
    loose = after is None or (after.kind in ("number", "text") and not glued)
    if len(run) <= 3 or (len(run) <= 5 and not loose and (after is None or after.kind != "symbol")):
        return [Token("symbol", letter, None, glued or i > 0) for i, letter in enumerate(run)]
    return [Token("text", run)]
