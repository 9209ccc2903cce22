"""The letter of a multiple-choice answer in prose: can't be A or B, so C."""

import re

from lgrpo_lite.verifier.retractions import taken_back

_LETTER = re.compile(r"(?<![A-Za-z0-9_'’$\\])\(?([A-J])\)?(?![A-Za-z0-9_'’(=^])")
_SEVERAL = re.compile(
    r"(?<![A-Za-z0-9_'’])\(?[A-J]\)?"
    r"(?:\s*(?:,\s*(?:and|or|nor)?|/|\band\b|\bor\b|\bnor\b)\s*\(?[A-J]\)?(?![A-Za-z0-9_'’]))+"
)
_CLAUSES = re.compile(
    r"[,;:.!。，；：]\s*|"
    r"\b(?=(?:so|hence|therefore|thus|but|because|since|then|while|whereas|and it|and so|which)\b)|"
    r"(?=所以|因此|因为|故|而)",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"\b(?:not|cannot|never|neither|nor|rul(?:e|es|ed|ing)|eliminat\w*|exclud\w*|except|without|wrong|incorrect|"
    r"discard\w*|reject\w*|doubt\w*|unlike|but|if|false|instead|than|either|between|both|maybe)\b|n['’]t\b|不|错|排除",
    re.IGNORECASE,
)
_REASON = re.compile(r"\s*(?:because|since|as|if|因为)\b", re.IGNORECASE)
_CUE = re.compile(
    r"(?:\b(?:is|be|it['’]s|that['’]s|options?|choices?|answers?|choose|chose|chosen|pick|select|selected|with|so|hence|"
    r"thus|therefore|correct|letter|say|bet|for|only|remains|leaves|leaving)|选|选择|选项|是|为|[:：])\s*[:：]?\s*(?:[\s*$(（]|\\(?:text|math)[a-z]*\{)*$",
    re.IGNORECASE,
)
_CONFIRMED = re.compile(
    r"[\s*$)）.]*(?:(?:is|must be|has to be|looks?|seems?)\s+(?:the\s+)?(?:\w+ly\s+)?(?:only\s+)?"
    r"(?:correct|right|true|answer|best)|正确)",
    re.IGNORECASE,
)
_ALONE = re.compile(r"^[^\w\n]{0,9}(?:(?:or|and) )?[A-J][^\w\n]{0,9}$", re.MULTILINE)
_ONLY = re.compile(r"[^\w?？]{0,9}([A-J])[^\w?？]{0,9}")
MAX_CHOSEN = 400


def chosen_letter(text: str) -> str | None:
    """The letter that the last sentence of a text settles on: the last one that is not denied, is no part of
    a list, and has words beside it which choose. None where there is none; a question chooses nothing.
    """
    *others, last = text.rstrip()[-MAX_CHOSEN:].rpartition("\n")
    alone = _ONLY.fullmatch(last)
    if alone and not _ALONE.search("".join(others)):
        return alone[1]
    sentence = _last_sentence(text[-MAX_CHOSEN:])
    if sentence.rstrip(' "*)').endswith(("?", "？")):
        return None
    sentence = _SEVERAL.sub("…", sentence)
    begin, chosen, reasoned = 0, None, False
    ends = [match.start() for match in _CLAUSES.finditer(sentence) if match.start()]
    for end in [*ends, len(sentence)]:
        clause = sentence[begin:end]
        cue = sentence[max(0, begin - 40) : begin]
        begin = end
        if _REASON.match(clause):
            reasoned = True
            continue
        if reasoned:  # since B is too small, C
            cue = "so "
        reasoned = False
        chosen = _of_clause(clause.lstrip(",;:.!。，；： "), cue) or chosen
    return chosen


def _of_clause(clause: str, cue: str) -> str | None:
    opening = re.match(r"but\b", clause, re.IGNORECASE)
    said = clause[opening.end() :] if opening else clause
    if _DENIES.search(said):
        return None
    for match in reversed(list(_LETTER.finditer(said))):
        before = said[: match.start()]
        if _CONFIRMED.match(said, match.end()) or _CUE.search(before or cue):
            return match[1]
    return None


def _last_sentence(text: str) -> str:
    """The last sentence that has a letter of a choice."""
    sentences = re.split(r"(?<=[.!?。？！])\s+(?=[A-Z(])|\n", text)
    for sentence in reversed(sentences):
        if _LETTER.search(sentence):
            return sentence
    return ""


_OPENING = re.compile(
    r"\s*\(?\**([A-J])\**(?:[).:]?\s*\n|"
    r"\)?(?: [^\s,]{1,20})?(?:, ?(?:because|since|not)\b|， ?(?:因为|不是|而不是)))"
)


def opening_letter(text: str) -> str | None:
    """The letter that stands alone at the beginning, before what explains it; None where another letter
    stands alone behind it, or it is taken back.
    """
    match = _OPENING.match(text)
    if match is None:
        return None
    rest = text[match.end() :][:4000]
    if not match[0].endswith("\n"):
        rest = rest.partition("\n")[2]
    return None if _ALONE.search(rest) or taken_back(rest) else match[1]
