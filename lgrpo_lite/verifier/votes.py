"""A form of an answer by which votes are counted."""

import re
from fractions import Fraction

from lgrpo_lite.verifier.answers import MAX_ANSWER
from lgrpo_lite.verifier.plain_numbers import MAX_DIGITS, as_number
from lgrpo_lite.verifier.spelling import spell, words

_FRACTION = re.compile(r"([-+]?)\s*\\frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def normal(answer: str) -> str:
    """A form that does not depend on spelling: answers that differ in it only get the same text.
    For votes, not for verdicts.

    A number or fraction of integers is its exact value, words are without case, all else is without spaces.
    Linear time.
    """
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    spelled = spell(answer)
    named, _, value = spelled.partition("=")
    if value and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*", named):
        spelled = value.strip()
    number = as_number(spelled)
    if number is None:
        number = _latex_fraction(spelled)
    if number is not None:
        return str(number)
    if not re.search(r"[\\^_=+/*]|\d", spelled.replace("\\text", "")):
        return words(spelled)
    return spelled.replace(" ", "")


def _latex_fraction(spelled: str) -> Fraction | None:
    """The value of `\\frac{1}{2}`, with a sign or without."""
    match = _FRACTION.fullmatch(spelled)
    if match is None or len(spelled) > MAX_DIGITS:
        return None
    sign, top, bottom = match.groups()
    if not int(bottom):
        return None
    value = Fraction(int(top), int(bottom))
    return -value if sign == "-" else value
