"""Whether prose says that what stands in it is no answer: denied, asked about, or the writer gives up."""

import re

from lgrpo_lite.verifier.retractions import taken_back

_NOT = r"(?:\b(?:not|cannot|never|neither|nor|isnt|cant)\b|n['’]t\b)"
_FILLER = (
    r"be|been|equal|equals|to|possibly|actually|really|simply|definitely|necessarily|likely|exactly|just|the|a|an|"
    r"answer|solution|result|value|correct|right|final|is|are|it|that|true|think|believe|say|longer|option|"
    r"choice|choose|pick|select|have|has|need|use|get|take|find|want|give|make|contain|require|reach|cost|spend|buy|earn|pay"
)
_BEFORE = re.compile(
    rf"(?:{_NOT}(?:\s+(?:{_FILLER})\b){{0,8}}|"
    r"\b(?:anything but|other than|rather than|instead of|unlike|no longer|hardly)|\\neq?(?![a-z])|≠)"
    r"\s*:?(?:[\s$(*\[\\]|boxed\s*\{)*$",
    re.IGNORECASE,
)
_NOT_IN_CHINESE = re.compile(
    r"(?:不(?:可能|应该|应|会|能)?(?:是|为|等于|选|选择|需要|用)|并非|而非|不等于)(?:[\s$(（*\[\\]|boxed\s*\{)*$"
)
_AFTER = re.compile(
    r"\s*(?:attempts|tries)\b|"
    r"[\s$*.,)}\]\\]{0,8}(?:(?:is|was|are|would be|must be)\s+(?:\w+ly\s+)?"
    r"(?:(?:not|never)\s+(?:\w+ly\s+)?"
    r"(?:the (?:\w+ )?(?:answer|solution|result|value|case|one)|"
    r"(?:an? )?(?:correct|right|valid|possible|true|answer|solution)|our|my|it)\b|"
    r"(?:also\s+)?(?:wrong|incorrect|false|impossible|invalid|extraneous|rejected|excluded))|"
    r"(?:isn['’]t|(?:cannot|can['’]t|can not|won['’]t|couldn['’]t) be)\s+"
    r"(?:the|right|correct|it|true|our|obtained|reached|attained|achieved|represented|made)\b|"
    r"(?:do(?:es)?|did)(?: not|n['’]t)\s+(?:work|satisfy|hold|fit|count|make sense|solve)\b|"
    r"fails?(?:\s+(?:to|the|because|since|as)\b|\s*[.,;]|$)|"
    r"is (?:too (?:small|large|big|low|high)|not (?:in|among) the)\b|"
    r"(?:不是|是错|错误|不正确|不对))",
    re.IGNORECASE,
)
_ASKED = re.compile(r"[\s$*.)}\]\\\"'，,]{0,8}[?？]")
_ASKED_ON = re.compile(r"[^.。!！\n?？]{0,200}(?:[?？]|吗)")
_DISOWNED = re.compile(
    r"(?:\b(?:wrong|incorrect|false|untrue|doubt|unlikely|impossible|if|whether|suppose|assume|assuming|pretend|"
    r"no way|(?:assume|suppose), for (?:the sake of )?(?:a )?contradiction,)|(?:\bnot|n['’]t|\bnever)\s+"
    r"(?:true|think|believe|say|claim|mean|sure|certain|clear|know|correct|the case))"
    r"(?:\s+that)?(?:\s+(?:the|my|our|its))?(?:\s+(?:final|correct|right))?\s*$",
    re.IGNORECASE,
)
_CANNOT = (
    r"(?:(?:do|does|did|could|would|can|is|are|was|am)(?:\s*n['’]?o?t|n['’]t)|can['’]t|cannot|"
    r"unable to|not able to|fail(?:ed|s)? to|impossible to|hard to|no way to|never)"
)
_DOING = (
    r"(?:know|find|solve|determined?|decided?|figure|say|tell|computed?|calculated?|answer(?:ed)?|completed?|"
    r"finish|work|conclude|see how|understand|remember|proceed|continue|found|solved|known|deduced?|inferred|"
    r"recall|give)"
)
_GIVES_UP = re.compile(
    rf"\b(?:give|gave|giving|given) up\b|\b{_CANNOT}\s+(?:\w+\s+){{0,2}}?{_DOING}\b|\bnot enough\b|"
    r"\binsufficient\b|\bunclear\b|\bno idea\b|\bno clue\b|"
    r"(?:\b(?:is|are|remains?)|^) ?(?:unknown|undetermined|indeterminate)\b|"
    r"\bnot (?:sure|certain)\b|\bunsure\b|\buncertain\b|\bstuck\b|\bapologi[sz]e\b|\bran out\b|"
    r"\bsorry\b(?!,? (?:it|that|the (?:\w+ )?answer|I mean)\b)|"
    r"\bout of time\b|"
    r"\b(?:needs?|needed|requires?) more\b|"
    r"\bmore (?:data|information|details|facts|conditions) (?:is|are) (?:needed|required|necessary)\b|"
    r"\b(?:skip|skipping)\b|\bno (?:answer|conclusion|solution was)\b|"
    r"\b(?:wrong|false|incorrect|untrue|impossible|doubt|not true) that\b|n['’]t true that\b|\bno way\b|"
    r"\b(?:need|have|let me|let us|let['’]s) (?:to )?(?:check|verify|try|think|recheck|redo|start)\b|"
    r"\bhopeless\b|\btoo (?:hard|difficult)\b|"
    r"\bno (?:lo )?sé\b|\bweiß (?:es )?nicht\b|\bne sais pas\b|\bне знаю\b|"
    r"不知道|无法|不确定|不清楚|放弃|不会做|做不出|没有足够|解不出|不能确定",
    re.IGNORECASE,
)
_ON_THE_OTHER_HAND = re.compile(
    r"\b(?:but|so|however|hence|therefore|thus|still|anyway|nevertheless|and we get|which gives)\b|"
    r"但|所以|因此",
    re.IGNORECASE,
)
_PROGRAM = re.compile(
    r"(?<!\\)\b(?:import|exec|eval|lambda|DROP TABLE|SELECT \*|sudo|__\w+__)\b|"
    r"\b(?:print|exit|quit|open|system)\("
)
_LABEL = re.compile(
    r"\b(?:steps?|questions?|problems?|exercises?|pages?|lines?|chapters?|sections?|figures?|attempts?)"
    r"\s*#?\s*$",
    re.IGNORECASE,
)


_BOUND = re.compile(
    r"(?:\b(?:more|fewer|less|greater|larger|smaller|higher|lower) than|\balmost|\bnearly|"
    r"\bexceeds?|\babove|\bbelow|\bthan or equal to|\bexcept(?: for)?|"
    r"\b(?:square|cube|cube root|square root|multiple|divisor|factor|power) of|"
    r"\bno (?:\w+ )?(?:solutions?|values?|integers?|numbers?)\b[^,;.]*|"
    r"\bbetween [^.]{1,40} and|"
    r"^(?:if|suppose|supposing|assume|assuming|unless)\b(?: \S+){1,3} (?:is|was|were|equals?|=|take)|"
    r"(?:\bnot|n['’]t) (?:among|one of|any of)\b[^,;.]*)[\s$]*$",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(r"\d\s*[+×*·]\s*$")  # 1250 + 340 + 12
_WOULD_BE = re.compile(r"\b(?:if|had|with|without)\b[^.]*\bwould\b", re.IGNORECASE)
_EITHER = re.compile(
    r"(?<![\d.,/$])(?<![-+*/=] )\d+\$?(?: (\w+))?\s+(?:or|to)(?: (?:maybe|perhaps|possibly))?[\s$]*$"
)


def is_no_amount(before: str, number: str) -> bool:
    """Whether a number after `before` bounds the amount that is told, is supposed, or is the second
    of two that are offered: more than 7, if x were 7, 7 or 8.
    """
    if _BOUND.search(before[-60:]) or ("=" not in before and _UNFINISHED.search(before)):
        return True
    either = _EITHER.search(before[-60:])
    return bool(either and not either[1] and number.strip().isdigit())


def is_known_before(sentence: str, begin: int, end: int) -> bool:
    """Whether a number belongs to what the sentence speaks of, and is not what it tells: the 9 days, the
    600-litre tank, in 1748.
    """
    before, after = sentence[max(0, begin - 20) : begin], sentence[end : end + 20]
    of_what_is_there = re.search(r"\b(?:over|in|during|from|among|on|within|across)\s+the\s+$", before)
    if of_what_is_there and re.match(r"\s+[a-z]{3,}", after):
        return True
    if re.search(r"\bin\s+$", before) and re.fullmatch(r"1[5-9]\d\d|20\d\d", sentence[begin:end].strip()):
        return True
    return re.match(r"-[a-z]{3,}", after) is not None


def last_factual(sentences: list[str]) -> str:
    """The last sentence that is not about what would be if something were otherwise; or the last."""
    for sentence in reversed(sentences):
        if not _WOULD_BE.search(sentence):
            return sentence
    return sentences[-1]


def is_label(before: str) -> bool:
    """Whether a number after `before` counts places in a text: step 5, question 7."""
    return _LABEL.search(before[-40:]) is not None


def denied_before(text: str, start: int) -> bool:
    """Whether what stands right before denies: is not, isn't, cannot be, rather than."""
    before = text[max(0, start - 80) : start]
    return _BEFORE.search(before) is not None or _NOT_IN_CHINESE.search(before) is not None


def denied_after(text: str, end: int) -> bool:
    """Whether what stands right after denies, as "is not the answer", takes it back, or asks."""
    after = text[end : end + 40]
    if _AFTER.match(after) or _ASKED.match(after):
        return True
    return taken_back(text[end : end + 120])


def is_denied(text: str, start: int, end: int) -> bool:
    return denied_before(text, start) or denied_after(text, end)


def is_asked(text: str, start: int) -> bool:
    """Whether the sentence that goes on at `start` ends as a question."""
    return _ASKED_ON.match(text[start : start + 202]) is not None


def disowned(before: str) -> bool:
    """Whether a clause that ends in `before` takes back what comes: it is wrong that the answer ..."""
    return _DISOWNED.search(before[-80:]) is not None


def gives_up(sentence: str, end: int) -> bool:
    """Whether the writer gives up before `end`, and goes on with nothing; or writes a program."""
    if _PROGRAM.search(sentence):
        return True
    surrenders = list(_GIVES_UP.finditer(sentence))
    if not surrenders:
        return False
    taken_up = _ON_THE_OTHER_HAND.search(sentence, surrenders[-1].end())
    return taken_up is None or taken_up.end() > end
