"""Tokens to a tree (tree.py), by recursive descent with bounded depth; Unreadable for what is no answer."""

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
_UNIT_ENDS = frozenset([",", ";", "and", "or", ")", "]", "}", "\\}", "=", "|", "cup"])
_SETS = {"cup": "cup", "cap": "cap", "setminus": "minus"}


class Parser:
    """A cursor over tokens. `bars`, `ratios`: whether | may open an absolute value and :
    divide, not so inside {x | ...}.

    `raised`: in the exponent of a variable, whose subscript may follow.
    """

    def __init__(self, tokens: Sequence[Token]):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.bars, self.ratios = 0, True
        self.raised = False

    @property
    def next(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else END

    def peek(self, ahead: int) -> Token:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else END

    def take(self, *values: str) -> str | None:
        """The next token's value if it is a sign or command among these, consumed."""
        token = self.next
        if token.kind in ("sign", "command") and token.value in values:
            self.at += 1
            return token.value
        return None

    def need(self, *values: str) -> str:
        found = self.take(*values)
        if found is None:
            raise Unreadable
        return found

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
        found, joined = [self.statement()], ","
        while by := self.take(",", ";", "and", "or", "wedge", "vee"):
            while more := self.take("and", "or", ","):
                by = more
            joined = {"wedge": "and", "vee": "or", ";": ","}.get(by, by) if joined == "," else joined
            found.append(self.statement())
        self.depth -= 1
        node = found[0] if len(found) == 1 else ("list", joined, *found)
        if infix := self.take("over", "choose"):  # {7 \\over 18}
            return ("/", node, self.items()) if infix == "over" else ("call", "binom", node, self.items())
        return node

    def statement(self) -> Node:
        found, ops = [self.union()], []
        while op := self.take(*RELATIONS):
            side = self.union()
            if op != "approx" or holds(found[-1], "v"):  # pi/2 ≈ 1.57 is pi/2
                ops.append(RELATIONS[op])
                found.append(side)
        return ("rel", tuple(ops), *found) if ops else found[0]

    def union(self) -> Node:
        node = self.ratio()
        while op := self.take(*_SETS):
            node = (_SETS[op], node, self.ratio())
        return node

    def ratio(self) -> Node:
        found = [self.sum()]
        while self.ratios and self.take(":"):
            found.append(self.sum())
        if len(found) > 1 and any(part[0] == "text" for part in found):
            raise Unreadable
        if len(found) > 1 and found[-1][0] == "unit":  # 6:00 pm
            return ("unit", ("ratio", *found[:-1], found[-1][1]), found[-1][2])
        return ("ratio", *found) if len(found) > 1 else found[0]

    def sum(self) -> Node:
        found = [self.signed()]
        while self.next.value in ("+", "-", "pm", "mp") and self.next.kind in ("sign", "command"):
            found.append(self.signed())
        return ("+", *found) if len(found) > 1 else found[0]

    def signed(self) -> Node:
        negative, choice = False, None
        while sign := self.take("+", "-", "pm", "mp"):
            negative ^= sign == "-"
            choice = {"pm": 1, "mp": -1}.get(sign, choice)
        node = self.product()
        if negative:  # the sign belongs to the value, not to its unit
            node = (
                (node[0], ("neg", node[1]), *node[2:]) if node[0] in ("unit", "deg", "%") else ("neg", node)
            )
        return ("pm", choice, node) if choice else node

    def product(self) -> Node:
        node = self.power()
        while True:
            if self.take("*", "cdot", "times"):
                node = ("*", node, self.factor())
            elif self.take("/", "div"):
                node = ("/", node, self.factor())
            elif self.take("bmod"):
                node = ("call", "mod", node, self.factor())
            elif self.take("pmod"):
                return ("unit", node, f"mod {self.argument(whole=True)}")
            elif self.next.kind == "text":
                return self.unit(node)
            elif mixed := self.mixed(node):
                node = mixed
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
        known = token.value in FUNCTIONS | GREEK | ACCENTS or token.value in (
            "pi",
            "frac",
            "sqrt",
            "binom",
            "begin",
            "sum",
            "prod",
            *ROUND,
        )
        return token.kind == "symbol" or (token.kind == "command" and known)

    def mixed(self, whole: Node) -> Node | None:
        """2\\frac{1}{3} or 2 1/3: an integer and a proper fraction of integers are added."""
        if whole[0] != "n" or "." in whole[2] or whole[1].denominator != 1:
            return None
        at = self.at
        if self.take("frac"):
            top, bottom = self.argument(), self.argument()
        elif self.next.kind == "number" and self.peek(1).value == "/" and self.peek(2).kind == "number":
            top, self.at = self.power(), self.at + 1
            bottom = self.power()
        else:
            return None
        plain = top[0] == bottom[0] == "n" and top[1].denominator == bottom[1].denominator == 1
        if not plain or self.next.value == "^":
            self.at = at
            return None
        if not 0 < top[1] < bottom[1]:  # 1 9/5 may be 14/5 or 9/5
            raise Unreadable
        return ("+", whole, ("/", top, bottom))

    def unit(self, node: Node) -> Node:
        """Everything up to the next separator, as words; Unreadable when it is no unit."""
        parts = []
        depth = 0
        while self.next.kind != "end" and (depth or self.next.value not in _UNIT_ENDS):
            depth += (self.next.value == "{") - (self.next.value == "}")
            glue = "" if self.next.kind == "sign" or (parts and parts[-1] in "^/") else " "
            parts.extend([glue, self.next.value])
            self.at += 1
        words = "".join(parts).replace("{", "").replace("}", "").strip()
        if not is_unit(words):
            raise Unreadable
        return ("unit", node, words)

    def power(self) -> Node:
        node = self.postfix(self.primary())
        if self.take("^"):
            if self.take("circ"):
                return ("deg", node)
            if self.primes():
                return self.postfix(("call", "'", node))
            self.raised = node[0] == "v"
            exponent = self.argument(whole=True)
            self.raised = False
            if node[0] == "v" and self.take("_"):  # v^2_0 is v_0^2
                node = ("v", f"{node[1]}_{self.raw()}")
            node = self.postfix(("^", node, exponent))
        return node

    def primes(self) -> bool:
        """Whether ^{\\prime} comes next, consumed."""
        if self.take("prime"):
            return True
        if self.next.value == "{" and self.peek(1).value == "prime" and self.peek(2).value == "}":
            self.at += 3
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
            rest = Token("number", token.value[1:], decimal(token.value[1:]), True)
            self.tokens = [*self.tokens[: self.at], rest, *self.tokens[self.at + 1 :]]
            return ("n", Fraction(int(token.value[0])), token.value[0])
        if not whole or token.value in ("(", "\\{"):
            return self.primary()
        node = self.primary()
        return ("^", node, self.argument(True)) if self.take("^") else node

    def primary(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable
        token = self.next
        self.at += 1
        if token.kind not in atoms.READ:
            raise Unreadable
        node = atoms.READ[token.kind](self, token)
        self.depth -= 1
        return node

    def raw(self) -> str:
        """The next group or token as it is typed."""
        if not self.take("{"):
            self.at += 1
            return self.tokens[self.at - 1].value if self.at <= len(self.tokens) else ""
        begin, depth = self.at, 1
        while depth:
            if self.next.kind == "end":
                raise Unreadable
            depth += (self.next.value == "{") - (self.next.value == "}")
            self.at += 1
        return "".join(token.value for token in self.tokens[begin : self.at - 1])
