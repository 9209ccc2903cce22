"""Numbers as people write them, read digit by digit into exact fractions, within bounds."""

# ruff: noqa: SIM905

import re
from fractions import Fraction

_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
COUNTS = {word: count for count, word in enumerate(_NUMERALS)}
MAX_DIGITS = 400  # longer numbers are compared as text
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_EQUALS = re.compile(r"=\s*([-+\d.,/]+)\s*=\s*\$?\s*$")


def as_number(text: str) -> Fraction | None:
    """An exact value for `1,234`, `$5`, `12.50`, `3/4`, `1.2e4`, `35%` (as 35); None for anything else."""
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = text.strip().strip("$").rstrip(".%")
    text = text.replace("\\$", "").replace("\\%", "")
    text = text.replace("\u2212", "-").strip()
    if not text or len(text) > MAX_DIGITS:
        return None
    top, slash, bottom = text.partition("/")
    numerator = _literal(top)
    denominator = _literal(bottom) if slash else Fraction(1)
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _literal(text: str) -> Fraction | None:
    digits = text.strip()
    return Fraction(digits.replace(",", "")) if _NUMBER.fullmatch(digits) else None


def contradicted(before: str, number: str) -> bool:
    """Whether a number stands behind another that it is told to equal: x = 6 = 5."""
    equal = _EQUALS.search(before)
    if equal is None:
        return False
    value = as_number(equal[1])
    return value is not None and value != as_number(number)
