"""Whether what stands behind an answer takes it back: Wait, that's wrong; or offers another: or maybe 8."""

import re

_VERDICT = (
    r"(?:\w+ly\s+|all\s+)?(?:wrong|incorrect|false|mistaken|an? (?:error|mistake)|"
    r"not\s+(?:\w+ly\s+|quite\s+)?(?:right|correct|true|valid|it|the (?:\w+ )?answer))\b"
    r"(?!\s+(?:to|that|for|if|when|unless)\b)"  # it is not true that ...
)
_SUBJECT = (
    r"(?:this|that|it|which|(?:this|that|the|my) (?:\w+ )?(?:answer|result|value))"
    r"(?:\s+(?:is|was|must be|seems|looks)|['’]s)\s+"
)
_LEADING = (
    r"(?:(?:but|and|though|although|wait|no|oops|hmm|sorry|actually|however|hold on|unfortunately)\b"
    r"[\s,.!…-]*)*"
)
_ERRED = r"(?:I|we) (?:have |must have )?(?:made|see) (?:an?|my|our|some) (?:\w+ )?(?:error|mistake)"
_TAKEN_BACK = re.compile(
    rf"[\s$.,;:!*)}}\]\\(–—-]*{_LEADING}(?:{_SUBJECT}{_VERDICT}|{_ERRED})|"
    rf"[\s$.*)}}\]\\]*(?:[–—(]|--?)\s*{_VERDICT}|"
    r"[\s$.,;!*)}\]\\–—-]*(?:actually,? no|no,? (?:wait|sorry)|(?:wait|sorry),? no|nope|"
    r"no,? (?:it|the (?:\w+ )?answer)(?:['’]s| is| should be| must be))\b",
    re.IGNORECASE,
)
_INSIDE = re.compile(
    rf"(?:[,;(]|\bbut\b)\s*{_LEADING}{_SUBJECT}{_VERDICT}|\bbut {_LEADING}{_ERRED}", re.IGNORECASE
)
_CORRECTION = re.compile(r"\n[\s*]*(?:correction\s*:|oops\b|scratch that)", re.IGNORECASE)
_OR_ELSE = re.compile(
    r"[\s$.,;(]*(?:or(?: (?:perhaps|maybe|possibly|else|even|(?:it )?(?:could|might|may) (?:also )?be))?|"
    r"but (?:it |perhaps )?(?:(?:could|might|may) (?:also )?be|maybe|perhaps)|/)[\s:$(]*",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"[\s$,(]*(?:\\text\s*\{\s*)?\bor(?: (?:perhaps|maybe|possibly))?\b[\s$}]*"
    r"([-+]?(?:\d[\d,]*(?:\.\d+)?|\\[dt]?frac\{\d+\}\{\d+\})(?:/\d+)?\\?%?)[\s$)}]*(?:[.,;!]?\s*(?:\n|$)|[.;!]\s)"
)


def taken_back(after: str) -> bool:
    """Whether a text begins by calling what stands before it wrong."""
    return _TAKEN_BACK.match(after[:120]) is not None


def takes_back(sentence: str) -> bool:
    """Whether a sentence itself calls its answer wrong: 7, which is incorrect."""
    return _INSIDE.search(sentence[:600]) is not None


def corrected(answer: str, after: str) -> bool:
    """Whether a text that goes on behind a stated answer says that it is wrong after all."""
    bare = answer.strip("$*. ")
    verdict = r"[\s$*]*(?:is|was)\s+(?:\w+ly\s+)?(?:wrong|incorrect|not (?:right|correct))\b"
    wrong = rf"(?<![\w.]){re.escape(bare)}{verdict}"
    return (
        len(bare) <= 40 and (re.search(wrong, after[:2000]) or _CORRECTION.search(after[:2000])) is not None
    )


def or_else(between: str) -> bool:
    """Whether what stands between two answers makes the second no more than a possibility."""
    return _OR_ELSE.fullmatch(between) is not None


def another(after: str) -> str | None:
    """The second answer that a text offers right behind the first: or 13."""
    match = _ANOTHER.match(after[:80])
    return match[1] if match else None
