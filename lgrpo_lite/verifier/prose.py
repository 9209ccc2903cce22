"""How much of a text is prose: words outside its formulas, reasoning between them, Chinese."""
# ruff: noqa: SIM905

import re

FORMULA = re.compile(
    r"\$\$([^$]*)\$\$|\$((?:[^$\n]|\n(?![ \t]*\n))*)\$|\\\((.{0,2000}?)\\\)|\\\[(.{0,2000}?)\\\]", re.DOTALL
)
_WORD = re.compile(
    r"(?<![\\\w])(?:[A-Za-z]{3,}|is|it|we|he|of|to|in|so|as|at|be|by|an|on)(?![\w({])", re.IGNORECASE
)
_NAMED = re.compile(r"\\text\w*\s*\{[^{}]*\}|\\(?:begin|end)\s*\{\w*\}(?:\{[^{}]*\})?")
_NO_PROSE = frozenset("and or pi sqrt sin cos tan cot sec csc ln log exp infinity".split())
CHINESE = re.compile(r"[\u4e00-\u9fff]")
_CONCLUDED = re.compile(r"=[^=]{1,200}[,;] (?:so|thus|hence|therefore)\b[^=]{1,200}=")
_REASONING = re.compile(r"\b(?:so|thus|hence|therefore|then|gives|since|if|when)\b", re.IGNORECASE)


def is_prose(text: str) -> bool:
    """Whether a text has three plain words or more outside its formulas."""
    return plain_words(FORMULA.sub(" ", text[:4000])) >= 3


def concludes(text: str) -> bool:
    """Whether a short text has words of reasoning between formulas: $a = 3$, so $a^2 = 9$."""
    if _CONCLUDED.search(text[:4000]):
        return True
    rest, formulas = FORMULA.subn(" ", text[:4000])
    return formulas > 1 and _REASONING.search(rest) is not None


def plain_words(text: str) -> int:
    found_words = _WORD.findall(_NAMED.sub(" ", text))
    return sum(word.lower() not in _NO_PROSE for word in found_words)
