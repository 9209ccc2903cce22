"""Repeating decimals that are written another way: 0.272727..., 0.(3), 0.\\dot{1}\\dot{8}."""

import re

_TRAILING_OFF = re.compile(r"(?<![\d.])(\d*)\.(\d{2,40}) ?(?:\.\.\.|\\(?:[lc]?dots)(?![a-zA-Z]))")
_BRACKETED = re.compile(r"(?<![\d.])(\d+)\.\((\d{1,20})\)")
_DOTTED = re.compile(r"\.(\d{0,20})\\dot ?\{?(\d)\}? ?(\d{0,20})\\dot ?\{?(\d)\}?")


def repeated(text: str) -> str:
    """The text with its repeating decimals as 0.\\overline{3}; what does not repeat stays."""
    if "dot" in text or "..." in text:
        text = _TRAILING_OFF.sub(_cycle, text)
        text = _DOTTED.sub(r".\1\\overline{\2\3\4}", text)
    return _BRACKETED.sub(r"\1.\\overline{\2}", text)


def _cycle(match: re.Match[str]) -> str:
    """The shortest cycle that ends the digits: seen twice, or three times if one digit behind others."""
    whole, digits = match.groups()
    for length in range(1, len(digits) // 2 + 1):
        cycle = digits[-length:]
        count = 1
        while digits.endswith(cycle * (count + 1)):
            count += 1
        head = digits[: len(digits) - length * count]
        if count >= (3 if length == 1 and head else 2):
            return f"{whole}.{head}\\overline{{{cycle}}}"
    return match[0]
