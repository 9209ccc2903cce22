"""Where an answer stands in a text, and which number it is. Used for gold answers and for completions alike.

Nothing here evaluates anything: numbers are read digit by digit into exact fractions, within bounds, and
every search is linear in the text, so no text can hang it.
"""

import re

from lgrpo_lite.verifier.asides import without_aside, without_check
from lgrpo_lite.verifier.boxes import MAX_BETWEEN, all_boxed, boxes_of, last_boxed, makes_list, without_lead
from lgrpo_lite.verifier.denials import (
    denied_after,
    disowned,
    gives_up,
    is_asked,
    is_denied,
    is_known_before,
    is_label,
    is_no_amount,
    last_factual,
)
from lgrpo_lite.verifier.derivations import derived
from lgrpo_lite.verifier.plain_numbers import COUNTS, as_number, contradicted
from lgrpo_lite.verifier.prose import CHINESE, FORMULA, is_prose, plain_words
from lgrpo_lite.verifier.retractions import corrected, taken_back, takes_back
from lgrpo_lite.verifier.several import offers_either, several_said
from lgrpo_lite.verifier.tails import of_one_turn, without_courtesy, without_where
from lgrpo_lite.verifier.units import KNOWN

MAX_TEXT = 200_000  # characters from the end of a completion in which its answer is looked for
MAX_SENTENCE = 2000  # characters of a sentence whose last number is looked for
MAX_STATED = 200  # statements of an answer, from the last one, of which all may be taken back
MAX_ANSWER = 50_000  # characters of an answer that is spelled anew
_GSM8K = re.compile(r"####\s*([^\n]*)")
_TAG = re.compile(r"<(?:final_)?answer>([^<]*)</", re.IGNORECASE)
_IN_JSON = re.compile(
    r'"(?:final[ _]?)?answer"\s*:\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",{}\[\]]+)(?=\s*(?:[}\n]|,\s*"|$)))',
    re.IGNORECASE,
)
# a formula on lines of its own at the end
_DISPLAYED = re.compile(
    r"(?:\$\$[ \t]*\n([^$]{1,1000})\$\$|\\\[[ \t]*\n((?:(?!\\\[|\\begin).){1,1000}?)\\\])[\s.]*$", re.DOTALL
)
_SAYS = re.compile(
    r"(?:\b(?:final )?answers?\b[\s*_}]{0,6}"
    r"(?:(?:(?:would|should|must|will)\s+)?(?:is|are|be|equals)\b\s*:?|[:：=])|"
    r"\b(?:respuesta|resposta|risposta|réponse|antwort|ответ|lösung)(?: (?:correct[ao]|finale?|corretta))?"
    r"[\s*_]{0,6}[:：]|答案[\s*_}]{0,6}(?:应该|应|就|即)?(?:(?:是|约为|约等于|为|等于)\s*[:：]?|[:：=])|^答\s*[:：])"
    r"[\s*_}]*(?:(?=\S)|$)|^A: *",
    re.IGNORECASE | re.MULTILINE,
)
_NO_ANSWER = re.compile(
    r"(?:\w+ly )?(?:not|never|neither|anything but|other than|no longer|hardly)\b", re.IGNORECASE
)
_A_VALUE = re.compile(r"\d|\\|[=(]|^[A-Za-z]$|^(?:yes|no|true|false|none)\b", re.IGNORECASE)
_FINAL = re.compile(r"\bfinal answer is\b", re.IGNORECASE)
_IN_PROSE = re.compile(
    r"(?<![A-Za-z0-9_.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
    r"(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)
# "Three trucks are needed": the subject is the answer; not of "three hundred trucks", "three or four trucks"
_COUNTED = re.compile(
    rf"(?:{'|'.join(COUNTS)})\b(?![\s-]+(?:plus|minus|times|divided|over|mod|or|to|and|point|by|out|of|more|less|fewer|"
    r"hundred|thousand|million|billion|trillion|dozen|per|percent|half|halves|thirds?|fourths?|quarters?|fifths?|"
    r"squared|cubed|factorial|choose)\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?](?:\*\*)?\s+(?=[A-Z\u4e00-\u9fff])|[。！．]")
# what a number at the end of a sentence of few words is
_IS = re.compile(
    r"(?:\b(?:is|are|was|were|equals?|gets?|got|have|has|gives?|obtain|makes?|costs?|"
    r"needs?|takes?|took|pays?|paid|spends?|spent|earns?|earned|receives?|owes?|saves?|saved|weighs?|sells?|sold|buys|bought|"
    r"uses?|used|reads?|walks?|runs?|drives?|scores?|remains?|leaves?|totals?)\b|=|:)[\s*]*\\?\$?\s*$",
    re.IGNORECASE,
)
_UNIT = re.compile(r"\s?([a-zA-Z]{2,12})[\s.*)]*")
_REASON = re.compile(
    r",?\s+(?:because|since|as (?:required|claimed|desired|expected|needed|wanted|shown))\b", re.IGNORECASE
)
_FOR_ALL = re.compile(r"\bfor (?:all|any|every|each|some)\b[\w\s]{0,40}$", re.IGNORECASE)
_CONDITIONAL = re.compile(r"\bif\b.*\b(?:otherwise|or else|whatever)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"^(?:(?:(?:therefore|thus|hence|so|then),? )?(?:(?:we|I) (?:get|have|find|obtain|conclude)(?: that)?|"
    r"(?:this|which|it) (?:gives|yields|equals))|"
    r"therefore|thus|hence|so|then|probably|approximately|about|exactly|simply|equal to|given by|just)\b"
    r"[,:]?\s*",
    re.IGNORECASE,
)
# Result: 42
_LABEL = re.compile(
    r"^(?:result|final|solution|ans|option|choice)\b\s*(?:is\b|[:=])?\s*(?=\S)", re.IGNORECASE
)
_CONTRAST = re.compile(
    r",\s*(?:(?:and |but )?not|that is|i\.e\.|which (?:is|equals)|or equivalently)(?!\w)|"
    r"\s+(?:rather than|instead of|as opposed to)\b",
    re.IGNORECASE,
)  # 5, not 6; 5/2, that is 2.5


def final_answer(text: str, extract: str = "final") -> str | None:
    """The answer a completion commits to, or None. What stands before `</think>` is no commitment.

    `gsm8k`: after the last `####`. `boxed`: inside the last `\\boxed{}`. `final`: the first of these that is
    there, else in the last `<answer>`, after the last "answer is", "Answer:" or "A:"; else what ends the last
    line: a formula or a number, or "Three trucks ..." at its beginning.
    """
    text = said(text)
    if extract != "final":
        return _marked(text, extract)
    return marked_in(text) or last_said(text)


def committed(text: str) -> str | None:
    """The answer that stands where an answer is marked as such, as `final_answer` with
    `final` but without the last line.
    """
    return marked_in(said(text))


def marked_in(text: str) -> str | None:
    """As `committed`, of the end of a text as `said` gives it."""
    marked = _marked(text, "gsm8k") or _replaced(text) or _marked(text, "all boxed")
    if marked is not None:
        return _stated(marked) or without_lead(marked)  # \boxed{\text{The answer is } 5}
    tags = _TAG.findall(text)
    tagged = tags[-1].strip() if tags else ""
    return tagged or _in_json(text) or _stated(text)


def _in_json(text: str) -> str | None:
    """The last value of "answer": ... in JSON; None where an answer is stated behind it."""
    values = list(_IN_JSON.finditer(text))
    if not values or _SAYS.search(text, values[-1].end()):
        return None
    quoted, literal = values[-1][1] or "", values[-1][2]
    return quoted.replace("\\\\", "\\").strip() or literal or None


def bare(text: str) -> str:
    """A text that is an answer and nothing else, without a word like `therefore` or `Result:` before it."""
    return _LABEL.sub("", _HEDGE.sub("", text.strip()))


def said(text: str) -> str:
    """The end of the text, without thoughts, what stands after the turn's end; nothing while
    still thinking.
    """
    text = text[-MAX_TEXT:].rpartition("</think>")[2]
    if "<think>" in text:
        return ""
    return of_one_turn(text)


def _marked(text: str, extract: str) -> str | None:
    if extract == "gsm8k":
        after_hashes = _GSM8K.findall(text)
        return after_hashes[-1].strip() or None if after_hashes else None
    if extract == "all boxed":
        return all_boxed(text) or None
    boxed = last_boxed(text) or ""
    return boxed.strip() or None


def _replaced(text: str) -> str | None:
    """A "final answer is" after the last box, with an answer of its own, replaces it."""
    boxes = boxes_of(text)
    if not boxes:
        return None
    rest = text[boxes[-1].end :]
    final = _FINAL.search(rest)
    replacing = _stated(rest[final.start() :]) if final else None
    is_value = replacing and _A_VALUE.search(replacing)  # as "The final answer is positive" is not
    return replacing if is_value else None


def _stated(text: str) -> str | None:
    """After the last "answer is" that is not "answer is not"; "A:" is the first option where "B:" follows."""
    other_option = max(text.rfind("\nB: "), text.rfind(" B: "))
    for match in reversed(list(_SAYS.finditer(text))[-MAX_STATED:]):
        begin = match.end()
        rest = text[begin : begin + 4000].lstrip()
        before = text[max(0, match.start() - 80) : match.start()]
        if not rest or _NO_ANSWER.match(rest) or disowned(before):
            continue
        if match[0].startswith("A:") and begin < other_option:
            continue
        if not is_asked(text, begin) and not _is_retracted(rest):
            answer = _in_sentence(rest)
            if answer is None or not corrected(answer, rest):
                return answer
    return None


def _is_retracted(rest: str) -> bool:
    """Whether the sentence that begins with an answer, or the next one, calls it wrong."""
    sentence = _SENTENCE.split(rest.partition("\n")[0], maxsplit=1)[0]
    return bool(_CONDITIONAL.search(sentence)) or takes_back(sentence) or taken_back(rest[len(sentence) :])


def _in_sentence(rest: str) -> str | None:
    """The answer at the beginning of `rest`: its first formula, or its first sentence; of
    prose the last formula or number.
    """
    line = rest.partition("\n")[0]
    sentence = _SENTENCE.split(line, maxsplit=1)[0]
    sentence = without_aside(_CONTRAST.split(sentence, maxsplit=1)[0])
    first = FORMULA.match(rest)
    content = _content(first) if first else ""
    if first and content and not denied_after(rest, first.end()):
        tail = sentence[first.end() :]
        if not re.search(r"\$|\\\(", tail):
            unit = tail.strip(" .*\\]$)")
            return f"{content} {unit}" if 0 < len(unit) <= 12 else content
    sentence = _HEDGE.sub("", _REASON.split(sentence, maxsplit=1)[0])
    if is_prose(sentence) or len(CHINESE.findall(sentence)) > 1:
        return _last_formula(sentence)
    sentence = sentence.strip().strip("*_` ")
    if not sentence.endswith("..."):  # 7... is no 7
        sentence = sentence.rstrip(".")
    return sentence.strip("*_` ") or None


def last_said(text: str) -> str | None:
    """The last formula or number of the last line that has one, courtesies left out; a bare line of text is
    no answer.
    """
    text = without_check(without_courtesy(text))[-4000:]
    displayed = _DISPLAYED.search(text)
    if displayed:
        return without_aside(displayed[1] or displayed[2]).strip(" \n.")
    if "\\end{" in text:
        found = derived(text)
        if found is not None:
            return found
    lines = text.splitlines()
    worded = [line for line in lines if re.search(r"\w", line)]
    if not worded:
        return None
    last = without_aside(without_where(_LABEL.sub("", worded[-1].strip())))
    last = last.strip("`* ")
    counted = _COUNTED.match(last)
    calculates = "=" in last or len(_SENTENCE.split(last)) > 1  # One part is 165 / 11 = 15.
    if counted and is_prose(last) and not (calculates and _last_number(last)):
        word = counted[0].lower()
        return str(COUNTS[word])
    if as_number(last) is not None:
        return last
    if plain_words(last) or FORMULA.search(last) or CHINESE.search(last):
        return _last_formula(last)
    left, _, right = last.rpartition("=")
    is_equation = left.strip() and as_number(right) is not None
    return right.strip() if is_equation and not contradicted(f"{left}=", right) else None


def _last_formula(line: str) -> str | None:
    """The last formula of a line, or the last number of its last sentence where no formula follows it."""
    formula, formula_end, listed = "", 0, ""
    for match in FORMULA.finditer(line):
        content = _content(match)
        if formula and _FOR_ALL.search(line[formula_end : match.start()]):
            continue
        denied = is_denied(line, *match.span()) or is_no_amount(line[: match.start()], "")
        if content and not denied and not is_asked(line, match.end()):
            between = line[formula_end : match.start()]
            goes_on = formula and _go_on(formula, between, content)
            listed = f"{listed}, {content}" if goes_on else content  # $x = 1$ and $x = 2$
            formula, formula_end = listed, match.end()
    if formula:
        number = _last_number(line)
        if number is None or formula_end >= number.end() or not is_prose(line):
            sentence = _SENTENCE.split(line[:formula_end])[-1]
            behind = line[formula_end:]
            surrendered = gives_up(sentence, len(sentence)) or gives_up(behind, len(behind))
            return None if surrendered else formula
    return _number_said(last_factual(_SENTENCE.split(line.strip().rstrip("。！．"))))


def _go_on(formula: str, between: str, following: str) -> bool:
    """Whether two formulas are one list: $x = 1$ and $x = 2$, $1$ or $2$, $m = 1$ and $n = 2$; of
    "with $T = 1$, $x = 2$" the second alone is the answer.
    """
    if len(between) > MAX_BETWEEN or not makes_list(between):
        return False
    name, named, _ = formula.rpartition("=")
    name = _last_name(name)
    other, also_named, _ = following.partition("=")
    if named and not also_named:
        return "or" in between  # $x = 1$ or $2$
    if named != also_named:
        return False
    if not named or _without_index(name) == _without_index(other):
        return True
    both_letters = len(name.strip()) == len(other.strip()) == 1
    return both_letters and "and" in between and "," not in between


def _without_index(name: str) -> str:
    """x of x_1."""
    return name.strip().partition("_")[0]


def _last_name(named: str) -> str:
    """The name that stands last before an equals sign: y of x = 1, y; (m, n) whole."""
    named = named.rpartition("=")[2].rstrip()
    opening = named.rfind("(") if named.endswith(")") else -1
    return named[opening:] if opening >= 0 else named.rpartition(",")[2]


def _number_said(sentence: str) -> str | None:
    """The last number of a sentence that says one: not one that denies it, asks, or gives up."""
    sentence = sentence[-MAX_SENTENCE:]
    number = _told_number(sentence)
    if number is None or offers_either(sentence) or _CONDITIONAL.search(sentence):
        return None
    several = several_said(sentence)
    if several is not None and not gives_up(sentence, len(sentence)):
        return several
    before = sentence[: number.start()]
    worded = is_prose(sentence) or len(CHINESE.findall(sentence)) > 0 or _IS.search(before)
    if not worded or is_label(before) or is_no_amount(before, number[0]) or contradicted(before, number[0]):
        return None
    begin, end = _enclosing(sentence, *number.span())
    if is_denied(sentence, begin, end) or is_asked(sentence, end):
        return None
    if gives_up(sentence, number.end()) or _is_disowned(sentence):
        return None
    after = sentence[number.end() :]
    if after.startswith(("...", "\u2026")) and number[0].strip().isdigit():
        return None
    return f"{number[0].strip()} {_unit_of(after)}".rstrip()


def _unit_of(after: str) -> str:
    """The unit that ends a sentence behind its number: 180 minutes."""
    match = _UNIT.fullmatch(after)
    return match[1] if match and match[1] in KNOWN else ""


def _enclosing(sentence: str, begin: int, end: int) -> tuple[int, int]:
    """Where the formula or box begins and ends that a number stands in; without one, the number itself."""
    before = sentence[:begin]
    if before.count("$") % 2:
        closing = sentence.find("$", end)
        return before.rindex("$"), end if closing < 0 else closing + 1
    box = before.rfind("boxed{")
    if box >= 0 and "}" not in before[box:]:
        return before.rfind("\\", 0, box), end
    return begin, end


def _is_disowned(sentence: str) -> bool:
    """I doubt that the answer is 5."""
    return any(disowned(sentence[: match.start()]) for match in _SAYS.finditer(sentence))


def _told_number(sentence: str) -> re.Match[str] | None:
    """The last number that a sentence tells: not one of what it knew before, as in over the 9 days, or the
    600-litre tank, where it has another.
    """
    numbers = list(_IN_PROSE.finditer(sentence))
    told = [number for number in numbers if not is_known_before(sentence, *number.span())]
    return (told or numbers or [None])[-1]


def _last_number(text: str) -> re.Match[str] | None:
    return [None, *_IN_PROSE.finditer(text)][-1]


def _content(match: re.Match[str]) -> str:
    """What stands between the signs of a formula; nothing where two dollar signs are
    prices with words between them.
    """
    content = next(group for group in match.groups() if group is not None).strip()
    goes_on = content.endswith(("=", "+", "-", "*", "/", ","))
    return "" if goes_on or plain_words(content) >= 2 else content
