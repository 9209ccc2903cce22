"""Tokens to a tree (tree.py), by recursive descent with bounded depth; Unreadable for what is no answer."""

import re
from collections.abc import Sequence
from fractions import Fraction

from lgrpo_lite.verifier import atoms
from lgrpo_lite.verifier.atoms import ACCENTS, ROUND
from lgrpo_lite.verifier.tokens import FUNCTIONS, GREEK, Token, Unreadable, decimal
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.units import is_unit

MAX_DEPTH = 60
END = Token("end", "")
RELATIONS = {
    "=": "=",
    "<": "<",
    ">": ">",
    "le": "<=",
    "ge": ">=",
    "ne": "!=",
    "in": "in",
    "approx": "=",
    "equiv": "=",
}
_JOINED_BY = {"wedge": "and", "vee": "or", ";": ","}
_POWER = re.compile(r"(?:\^\{?-?|/)$")  # m/s, s^{-1}
_UNIT_ENDS = frozenset([",", ";", "and", "or", ")", "]", "}", "\\}", "=", "|", "cup"])
_SUBTRACTED_FROM = frozenset(["domain", "set", "cup", "cap", "minus"])
_SETS = {"cup": "cup", "cap": "cap", "setminus": "minus"}
_FACTORS = frozenset(
    ["pi", "frac", "sqrt", "binom", "begin", "sum", "prod", *ROUND, *FUNCTIONS, *GREEK, *ACCENTS]
)
_CHOICES = {"pm": 1, "mp": -1}


class Parser:
    """A cursor over tokens. `bars`, `ratios`: whether | may open an absolute value and :
    divide, not so inside {x | ...}.

    `raised`: in the exponent of a variable, whose subscript may follow.
    """

    def __init__(self, tokens: Sequence[Token]):
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.ratios = True
        self.raised = False

    @property
    def next(self) -> Token:
        return self.tokens[self.position] if self.position < len(self.tokens) else END

    def peek(self, ahead: int) -> Token:
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else END

    def take(self, *values: str) -> str | None:
        """The next token's value if it is a sign or command among these, consumed."""
        token = self.next
        if token.kind in ("sign", "command") and token.value in values:
            self.position += 1
            return token.value
        return None

    def need(self, *values: str) -> str:
        value = self.take(*values)
        if value is None:
            raise Unreadable
        return value

    def answer(self) -> Node:
        node = self.items()
        if self.next.kind != "end":
            raise Unreadable
        return node

    def items(self) -> Node:
        """Statements joined by commas, `and`, `or`; one alone is itself. A leading ≈ is left out."""
        self.take("approx")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        statements, joined = [self.statement()], ","
        while by := self.take(",", ";", "and", "or", "wedge", "vee"):
            while more := self.take("and", "or", ","):
                by = more
            if joined == ",":
                joined = _JOINED_BY.get(by, by)
            statements.append(self.statement())
        self.depth -= 1
        node = ("list", joined, *statements) if len(statements) > 1 else statements[0]
        if self.take("over"):  # {7 \\over 18}
            return ("/", node, self.items())
        if self.take("choose"):
            return ("call", "binom", node, self.items())
        return node

    def statement(self) -> Node:
        sides, ops = [self.union()], []
        while op := self.take(*RELATIONS):
            side = self.union()
            # pi/2 ≈ 1.57, where x ≈ 1.57 says what x is
            rounds = op == "approx" and not holds(sides[-1], "v") and not holds(side, "v")
            ops.append("~" if rounds else RELATIONS[op])
            sides.append(side)
        return ("rel", tuple(ops), *sides) if ops else sides[0]

    def union(self) -> Node:
        node = self.ratio()
        while op := self.take(*_SETS):
            node = (_SETS[op], node, self.ratio())
        return node

    def ratio(self) -> Node:
        terms = [self.sum()]
        while self.ratios and self.take(":"):
            terms.append(self.sum())
        if len(terms) == 1:
            return terms[0]
        if any(term[0] == "text" for term in terms):
            raise Unreadable
        *first, last = terms
        if last[0] == "unit":  # 6:00 pm
            _, value, unit = last
            return ("unit", ("ratio", *first, value), unit)
        return ("ratio", *terms)

    def sum(self) -> Node:
        terms = [self.signed()]
        while self.next.value in ("+", "-", "pm", "mp") and self.next.kind in ("sign", "command"):
            terms.append(self.signed())
        if len(terms) == 1:
            return terms[0]
        removed = terms[1][1] if terms[1][0] == "neg" else None
        if len(terms) == 2 and removed and terms[0][0] in _SUBTRACTED_FROM and removed[0] == "set":
            return ("minus", terms[0], removed)  # the real numbers but 2
        return ("+", *map(_as_name, terms))

    def signed(self) -> Node:
        negative, choice = False, None
        while sign := self.take("+", "-", "pm", "mp"):
            negative ^= sign == "-"
            choice = _CHOICES.get(sign, choice)
        node = self.product()
        if negative:
            node = _negated(node)
        return ("pm", choice, node) if choice else node

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.take("*", "cdot", "times"):
                node = ("*", _as_name(node), _as_name(self.factor()))
            elif self.take("/", "div"):
                node = _quotient(node, self.factor())
            elif self.take("bmod"):
                node = ("call", "mod", node, self.factor())
            elif self.take("pmod"):
                modulus = self.argument(whole=True)
                return ("unit", node, f"mod {modulus[2] if modulus[0] == 'n' else modulus}")
            elif self.next.kind == "text":
                return self.unit(node)
            elif mixed := self.mixed(node):
                node = self.postfix(mixed)
            elif self.opens(node):
                node = ("*", node, self.power())
            else:
                return node

    def factor(self) -> Node:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        node = self.power()
        return ("neg", node) if negative else node

    def opens(self, before: Node) -> bool:
        """Whether the next token begins a factor of an implicit product."""
        token = self.next
        if before[0] == "text":
            return False
        if token.kind == "number":
            return before[0] not in ("n", "base")
        if token.kind == "sign":
            return token.value in ("(", "[", "{") or (token.value == "|" and not self.bars)
        if token.kind == "command":
            return token.value in _FACTORS
        return token.kind == "symbol"

    def mixed(self, whole: Node) -> Node | None:
        """2\\frac{1}{3} or 2 1/3: an integer and a proper fraction of integers are added."""
        if not _is_integer(whole) or "." in whole[2]:
            return None
        begin = self.position
        if self.take("frac"):
            top, bottom = self.argument(), self.argument()
        elif self.next.kind == "number" and self.peek(1).value == "/" and self.peek(2).kind == "number":
            top = self.power()
            self.position += 1
            bottom = self.power()
        else:
            return None
        if not _is_integer(top) or not _is_integer(bottom) or self.next.value == "^":
            self.position = begin
            return None
        if not 0 < top[1] < bottom[1]:  # 1 9/5 may be 14/5 or 9/5
            raise Unreadable
        return ("+", whole, ("/", top, bottom))

    def unit(self, node: Node) -> Node:
        """Everything up to the next separator, as words; Unreadable when it is no unit."""
        parts = []
        depth = 0
        while self.next.kind != "end" and (depth or self.next.value not in _UNIT_ENDS):
            token = self.next
            depth += _nesting(token)
            glued = token.kind == "sign" or _POWER.search("".join(parts[-6:]))
            parts += ["" if glued else " ", token.value]
            self.position += 1
        words = "".join(parts)
        words = words.replace("{", "").replace("}", "").strip()
        if not is_unit(words):
            raise Unreadable
        if node[0] == "%" and words.startswith("of "):  # of what it is a share, and no number
            *_, whole = words.split()
            if len(whole) == 1 or any(character.isdigit() for character in words):  # of x, of 50
                raise Unreadable
            return node
        return ("unit", node, words)

    def power(self) -> Node:
        node = self.postfix(self.primary())
        if not self.take("^"):
            return node
        if self.take("circ"):
            return ("deg", node)
        if self.primes():
            return self.postfix(("call", "'", node))
        self.raised = node[0] == "v"
        exponent = self.argument(whole=True)
        self.raised = False
        if node[0] == "v" and self.take("_"):  # v^2_0 is v_0^2
            node = ("v", f"{node[1]}_{self.raw()}")
        return self.postfix(("^", node, exponent))

    def primes(self) -> bool:
        """Whether ^{\\prime} comes next, consumed."""
        if self.take("prime"):
            return True
        if self.next.value == "{" and self.peek(1).value == "prime" and self.peek(2).value == "}":
            self.position += 3
            return True
        return False

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                node = ("!", node)
            elif self.take("%"):
                node = ("%", node)
            elif self.take("'"):
                node = ("call", "'", node)
            else:
                return node

    def argument(self, whole: bool = False) -> Node:
        """What a command takes: a group, or one token; of digits the first, unless `whole`."""
        if self.take("{"):
            node = self.items()
            self.need("}")
            return node
        if whole and (sign := self.take("-", "+")):
            node = self.argument(whole)
            return ("neg", node) if sign == "-" else node
        token = self.next
        if token.kind == "number" and not whole and token.value.isdigit() and len(token.value) > 1:
            return self.first_digit(token.value)
        node = self.primary()
        if not whole or token.value in ("(", "\\{"):
            return node
        return ("^", node, self.argument(True)) if self.take("^") else node

    def first_digit(self, digits: str) -> Node:
        """The first digit of the next token, of which the others are left."""
        first, others = digits[0], digits[1:]
        rest = Token("number", others, decimal(others), True)
        self.tokens = list(self.tokens)
        self.tokens[self.position] = rest
        return ("n", Fraction(int(first)), first)

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        token = self.next
        self.position += 1
        if token.kind not in atoms.READ:
            raise Unreadable
        node = atoms.READ[token.kind](self, token)
        self.depth -= 1
        return node

    def raw(self) -> str:
        """The next group or token as it is typed."""
        if not self.take("{"):
            token = self.next
            self.position += 1
            return token.value
        begin, depth = self.position, 1
        while depth:
            if self.next.kind == "end":
                raise Unreadable
            depth += _nesting(self.next)
            self.position += 1
        inside = self.tokens[begin : self.position - 1]
        return "".join(token.value for token in inside)


def _negated(node: Node) -> Node:
    """The sign belongs to the value, not to its unit."""
    if node[0] not in ("unit", "deg", "%"):
        return ("neg", node)
    kind, value, *unit = node
    return (kind, ("neg", value), *unit)


def _as_name(node: Node) -> Node:
    """Words in a sum or product are the name of a value: base × height."""
    return ("v", node[1].lower()) if node[0] == "text" else node


def _quotient(top: Node, bottom: Node) -> Node:
    """1/2% is half a percent."""
    if top[0] == "n" and bottom[0] == "%":
        return ("%", ("/", top, bottom[1]))
    return ("/", _as_name(top), _as_name(bottom))


def _is_integer(node: Node) -> bool:
    return node[0] == "n" and node[1].denominator == 1


def _nesting(token: Token) -> int:
    """1 of an opening brace, -1 of a closing one."""
    return (token.value == "{") - (token.value == "}")
