"""What a line says beside its answer: (as a check, ...), the square of 8, rather than 21, end of proof."""

import re

_TAG = re.compile(r"\\tag\*?\s*\{[^{}]*\}")
_END_OF_PROOF = re.compile(
    r"\s*(?:\$\s*\\(?:blacksquare|square|qed|Box)\s*\$|\\(?:blacksquare|square|qed|Box)(?![a-zA-Z])|[∎■□])[\s.]*$"
)
_OR = re.compile(r"(?<!\s)\s+\((or\s[^()]{1,60})\)(?=[\s.*]*$)", re.IGNORECASE)  # 5/2 (or 2.5)
# what opens one that adds nothing: 5 (or 7), (which is wrong) and (mod 7) change the answer
_BRACKET = re.compile(
    r"(?<!\s)\s+\((?:as a check|check|since|because|see|by|using|recall|note)\b"
    r"[^()]*(?:\([^()]*\)[^()]*)*\)[\s.*]*$",
    re.IGNORECASE,
)
_APPOSITION = re.compile(
    r",\s+(?:the|its|being the|which is the)\s+(?:[a-z]+\s+){1,4}of\b"
    r"(?:(?!\b(?:is|are|and|so|or|gives|but|not|which|solutions|roots|values)\b)[^=;])*$",
    re.IGNORECASE,
)
_RATHER = re.compile(
    r"\s+(?:rather than|instead of|as opposed to)\s+[^\s,]{1,30}(?:,.*|\.)?$", re.IGNORECASE | re.DOTALL
)
_ASIDES = (_BRACKET, _APPOSITION, _RATHER)
_SAYS_SOMETHING = re.compile(r"\d|\$|\\\(")
_CHECKED = re.compile(
    r"(?:\n|(?<=[.!$)*]) )[ \t]*(?:\*\*|#+ ?)?(?:verification|check|common mistakes?|remark)\s*(?:\*\*)?\s*:",
    re.IGNORECASE,
)
# a check that finds a fault, or goes on to an answer
_FINDS = re.compile(
    r"\b(?:no|not|wrong|fails?|incorrect|instead|actually|so|hence|therefore|thus)\b|n['’]t\b|≠|\\ne",
    re.IGNORECASE,
)


def without_aside(line: str) -> str:
    """The line up to what it adds to its answer; the whole where nothing would be left that could be one."""
    line = _OR.sub(r" \1", _END_OF_PROOF.sub("", _TAG.sub("", line)))
    for aside in _ASIDES:
        kept = aside.sub("", line)
        if kept != line and _SAYS_SOMETHING.search(kept):
            line = kept
    return line


def without_check(text: str) -> str:
    """The text up to a "Verification:" or "Common mistake:" behind an answer, which it leaves as it is."""
    checked = _CHECKED.search(text, max(0, len(text) - 2000))
    if checked is None or _FINDS.search(text, checked.end()):
        return text
    before = text[: checked.start()]
    return before if _SAYS_SOMETHING.search(before) else text
