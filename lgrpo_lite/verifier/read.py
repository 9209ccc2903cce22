"""A text as the trees it may mean: 1,234 is a number or a list,
1000,99 beside 1000.99 has a decimal comma.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from lgrpo_lite.verifier.answers import MAX_ANSWER
from lgrpo_lite.verifier.notation import plainly
from lgrpo_lite.verifier.parse import Parser
from lgrpo_lite.verifier.plain_numbers import COUNTS
from lgrpo_lite.verifier.spelling import spell, words
from lgrpo_lite.verifier.tokens import Unreadable, tokens
from lgrpo_lite.verifier.tree import Node

_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:\d+,\d{1,2}|\d+,\d{4,}|0,\d+)(?:\s*\\?%)?")
_DECIMAL_POINT = re.compile(r"[-+]?\d*\.\d+(?:\s*\\?%)?")
# beside 150 cm, 1.5 m is no 1.5 times m
_LETTER_UNIT = re.compile(r"([-+]?\d[\d.,]*(?: ?\\times ?10 ?\^ ?(?:\d|\{ ?-?\d+ ?\}))?) ([mgshlLCJNWVKF])")
_MONEY = re.compile(r"\\\$|[€£¥]|^\s*\$\s*\d[^$]*$")
_GROUPED = re.compile(r"\d,[1-9]\d{2}")
_BRACKETED = re.compile(r"\(\s*[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?\s*\)")
_NESTED = re.compile(r"(\(\(+)([^(),;]+)(\)\)+)")  # ((5)) is (5)
_OPENING = ("(", "[", "\\{")
# 2A7_{16}, (1101)_2: what has a letter has a digit too, or A_{11} were no variable
_BASED = re.compile(
    r"\(?\{?((?=[A-F{} ]*\d|[{} ]*[A-F]{2,}[{} ]*\)?\}?_)[0-9A-F{} ]{1,60})\)?\}?_ ?\{? ?\(?(\d{1,2})\)? ?\}?"
)
_ZEROS = re.compile(r",0\d\d")  # no element of a list is written so
_ANOTHER_CHOICE = re.compile(r"\b(?:or|wrong|not|incorrect)\b|\([A-J]\)")
_OPTION = re.compile(r"^(?:the )?(?:option|choice|letter)\s+(?=\(?[A-J]\b)", re.IGNORECASE)
_CHOICE = re.compile(
    r"\(([A-J])\)(?:\s+[\w\\(-].*)?|([A-J])(?:\s*[).:]\s+\S.*|[).:]?[^\x00-\x7f].*)?", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A text in the one spelling, and the trees it may mean; none where it is no mathematics read here."""

    spelled: str
    trees: tuple[Node, ...]
    money: str = ""  # the sign of a currency that stood in it, which the spelling leaves out

    def beside(self, other: "Reading") -> tuple[Node, ...]:
        """The trees it may mean beside the other: 1,22 is a list, and 1.22 beside a decimal with a point;
        0,5 may be 0.5; 1.5 m is a length beside 150 cm.
        """
        if self.is_grouped and other.spelled.startswith(_OPENING):  # 1,234 is no (1, 234)
            return self.trees[:1]
        letter_unit = _LETTER_UNIT.fullmatch(self.spelled)
        if letter_unit and other.trees and other.trees[0][0] == "unit":
            measure = _tree(rf"{letter_unit[1]}\text{{{letter_unit[2]}}}", True)
            return self.trees if measure is None else (measure,)
        if not _DECIMAL_COMMA.fullmatch(self.spelled):
            return self.trees
        if not _DECIMAL_POINT.fullmatch(other.spelled) and not self.spelled.lstrip("+-").startswith("0,"):
            return self.trees
        decimal = _tree(self.spelled.replace(",", "."), True)
        return self.trees if decimal is None else (*self.trees, decimal)

    @property
    def is_grouped(self) -> bool:
        """Whether it is one number with its digits in groups, which is a list too."""
        return len(self.trees) == 2 and self.trees[0][0] in ("n", "neg") and self.trees[1][0] == "list"

    def for_number(self, gold: "Reading") -> tuple[Node, ...]:
        """The trees of an answer beside its gold: digits in groups inside brackets, (1,234), are a number
        where the gold is one with its digits in groups.
        """
        if not gold.is_grouped or not _BRACKETED.fullmatch(self.spelled):
            return self.beside(gold)
        number = _tree(self.spelled.strip("()"), True)
        return self.trees if number is None else (number,)

    @property
    def choice(self) -> str | None:
        """The letter of a multiple-choice answer: B, (B), (B) 4."""
        bare = re.sub(r"^\\text\{([^{}]*)\}", r"\1", self.spelled).replace("**", "").strip()
        bare = _OPTION.sub("", bare).lstrip()
        if len(bare) == 2:  # B) and (B
            bare = bare.strip("()")
        match = _CHOICE.fullmatch(bare) if len(bare) <= 200 else None
        if match is None:
            return None
        bracketed, letter = match.groups()
        behind = bare[match.end(1 if bracketed else 2) :]
        return None if _ANOTHER_CHOICE.search(behind) else bracketed or letter


@lru_cache(maxsize=512)
def read(answer: str) -> Reading:
    """Never raises. Beyond MAX_ANSWER characters a text is only ever equal to itself."""
    if len(answer) > MAX_ANSWER:
        return Reading(answer.strip(), ())
    spelled = spell(answer)
    notation = plainly(spelled)
    distinct = dict.fromkeys(_trees(notation))
    money = _MONEY.search(answer)
    return Reading(spelled, tuple(distinct), money=money[0].strip().strip("\\")[0] if money else "")


def _trees(spelled: str) -> list[Node]:
    if not spelled:
        return []
    counted = COUNTS.get(words(spelled))
    if counted is not None:
        return [("n", Fraction(counted), str(counted))]
    based = _BASED.fullmatch(spelled.replace("\\text", ""))
    if based:
        return _in_base(*based.groups())
    nested = _NESTED.fullmatch(spelled)
    if nested and len(nested[1]) == len(nested[3]):
        spelled = f"({nested[2]})"
    if _BRACKETED.fullmatch(spelled) and _ZEROS.search(spelled):  # (10,000) is no (10, 0)
        spelled = spelled.strip("()")
    if _SPACED.fullmatch(spelled):
        spelled = spelled.replace(" ", "")
    trees = [_tree(spelled, True)]
    if _GROUPED.search(spelled) and not _ZEROS.search(spelled):
        trees.append(_tree(spelled, False))
    return [tree for tree in trees if tree is not None]


def _in_base(numeral: str, base: str) -> list[Node]:
    """The number that digits and letters are in a base; none where one of them is no digit of it."""
    digits = re.sub(r"[{} ]", "", numeral)
    try:
        int(digits, int(base))
    except ValueError:
        return []
    return [("base", digits, int(base))]


def _tree(spelled: str, thousands: bool) -> Node | None:
    try:
        return Parser(tokens(spelled, thousands=thousands)).answer()
    except (Unreadable, RecursionError):
        return None
