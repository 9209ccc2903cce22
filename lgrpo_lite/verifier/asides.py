"""What a line says beside its answer: (as a check, ...), the square of 8, rather than 21, end of proof."""

import re

_TAG = re.compile(r"\\tag\*?\s*\{[^{}]*\}")
_END_OF_PROOF = re.compile(
    r"\s*(?:\$\s*\\(?:blacksquare|square|qed|Box)\s*\$|\\(?:blacksquare|square|qed|Box)(?![a-zA-Z])|[∎■□])[\s.]*$"
)
_ASIDES = [
    re.compile(
        r"\s*\([A-Za-z][^()\s]*\s[^()]*(?:\([^()]*\)[^()]*)*\)[\s.*]*$"
    ),  # (or 2.5), (as a check, ...)
    re.compile(
        r",\s+(?:the|its|being the|which is the)\s+(?:[a-z]+\s+){1,4}of\b.*$", re.IGNORECASE | re.DOTALL
    ),
    re.compile(r",\s+(?:for which|whose)\b.*$", re.IGNORECASE | re.DOTALL),
    re.compile(
        r"\s+(?:rather than|instead of|as opposed to)\s+[^\s,]{1,30}(?:,.*|\.)?$", re.IGNORECASE | re.DOTALL
    ),
]
_SAYS_SOMETHING = re.compile(r"\d|\$|\\\(")
# what follows is no part of the answer that was given above it
_CHECKED = re.compile(
    r"(?:\n|(?<=[.!$)*]) )[ \t]*(?:\*\*|#+ ?)?(?:verification|check|common mistakes?|remark)\s*(?:\*\*)?\s*:",
    re.IGNORECASE,
)


def without_aside(line: str) -> str:
    """The line up to what it adds to its answer; the whole where nothing would be left that could be one."""
    line = _END_OF_PROOF.sub("", _TAG.sub("", line))
    for aside in _ASIDES:
        kept = aside.sub("", line)
        if kept != line and _SAYS_SOMETHING.search(kept):
            line = kept
    return line


def without_check(text: str) -> str:
    """The text up to a "Verification:" or "Common mistake:" behind an answer."""
    checked = _CHECKED.search(text, max(0, len(text) - 2000))
    if checked is None or not _SAYS_SOMETHING.search(text[: checked.start()]):
        return text
    return text[: checked.start()]
