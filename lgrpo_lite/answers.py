"""Where an answer stands in a text, and which number it is. Used for gold answers and for completions alike.

Nothing here evaluates anything: numbers are read digit by digit into exact fractions, within bounds, so no text can hang it.
"""

import re
from fractions import Fraction

MAX_DIGITS = 400  # longer numbers are compared as text
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*)?(?:\.\d+|\d)(?:[eE][-+]?\d{1,3})?")
_GSM8K = re.compile(r"####\s*([^\n]*)")
_SAYS = re.compile(r"(?:final answer|answer)\s*(?:is|:|=)\s*([^\n]*)", re.IGNORECASE)


def final_answer(text: str, extract: str = "final") -> str | None:
    """The answer a completion commits to, or None.

    `gsm8k`: after the last `####`. `boxed`: inside the last `\\boxed{}`. `final`: the first of these that is there, else
    after the last "answer is"; a bare line of text is no answer, a bare number on the last line is.
    """
    if extract in ("final", "gsm8k") and (found := _GSM8K.findall(text)):
        return found[-1].strip() or None
    if extract in ("final", "boxed") and (boxed := last_boxed(text)) is not None:
        return boxed.strip() or None
    if extract == "final":
        if found := _SAYS.findall(text):
            return found[-1].strip().rstrip(".").strip() or None
        last = text.strip().rsplit("\n", 1)[-1].strip()
        return last if as_number(last) is not None else None
    return None


def as_number(text: str) -> Fraction | None:
    """An exact value for `1,234`, `$5`, `12.50`, `3/4`, `1.2e4`, `35%` (as 35); None for anything else."""
    text = text.strip().strip("$").rstrip(".%").replace("\\$", "").replace("\\%", "").replace("\u2212", "-").strip()
    if not text or len(text) > MAX_DIGITS:
        return None
    top, slash, bottom = text.partition("/")
    if not _NUMBER.fullmatch(top.strip()) or (slash and not _NUMBER.fullmatch(bottom.strip())):
        return None
    numerator = Fraction(top.strip().replace(",", ""))
    denominator = Fraction(bottom.strip().replace(",", "")) if slash else Fraction(1)
    return numerator / denominator if denominator else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` whose braces balance; None when there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[begin + 1 : i]
    return None
