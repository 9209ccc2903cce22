"""Several numbers at the end of a sentence that are one answer: the roots are 7 and 9."""

import re

_NUMBER = r"(?:[a-zA-Z]\s*=\s*)?[-+\u2212]?(?:\d+(?:\.\d+)?(?:/\d+)?|\.\d+)"
_SEVERAL = re.compile(
    rf"\b(?:are|is)\s*:?\s*({_NUMBER}(?:(?:\s*,\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+){_NUMBER}){{1,12}})[\s.]*$"
)
_EITHER = re.compile(
    rf"{_NUMBER}\s+([a-zA-Z]+),?\s+or\s+(?:(?:perhaps|maybe|possibly|about|rather)\s+)?{_NUMBER}"
    r"(?:\s+([a-zA-Z]+))?[\s.]*$"
)


def offers_either(sentence: str) -> bool:
    """Whether a sentence ends on two amounts of one unit: 8 hours or 9 hours; not 2 hours or 120 minutes."""
    match = _EITHER.search(sentence[-300:])
    if match is None:
        return False
    unit, other = match.groups()
    return other is None or unit.rstrip("s") == other.rstrip("s")


def several_said(sentence: str) -> str | None:
    """The numbers as one list; None where the sentence ends otherwise, and for 1,234, which is one number."""
    match = _SEVERAL.search(sentence[-300:])
    if match is None or re.search(r"\d,\d", match[1]):
        return None
    return match[1]
