"""Where an answer stands in a text, and which number it is. Used for gold answers and for completions alike.

Nothing here evaluates anything: numbers are read digit by digit into exact fractions, within bounds, and
every search is linear in the text, so no text can hang it.
"""
# ruff: noqa: SIM905

import re
from fractions import Fraction
from typing import NamedTuple

from lgrpo_lite.verifier.spelling import spell, words

MAX_DIGITS = 400  # longer numbers are compared as text
MAX_TEXT = 200_000  # characters from the end of a completion in which its answer is looked for
MAX_ANSWER = 50_000  # characters of an answer that is spelled anew
_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_GSM8K = re.compile(r"####\s*([^\n]*)")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_TAG = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_SAYS = re.compile(
    r"(?:\b(?:final )?answers?\b|答案)[\s*_}]{0,6}(?:(?:is|are|be)\b\s*:?|[:：=])[\s*_}]*(?:(?=\S)|$)|^A: *",
    re.IGNORECASE | re.MULTILINE,
)
_DENIED = re.compile(r"\bnot\s*(?:[\s$(\[\\]|boxed\s*\{)*$", re.IGNORECASE)  # "is not \boxed{5}"
_FINAL = re.compile(r"\bfinal answer is\b", re.IGNORECASE)
_FORMULA = re.compile(r"\$\$([^$]*)\$\$|\$([^$]*)\$|\\\((.{0,2000}?)\\\)|\\\[(.{0,2000}?)\\\]", re.DOTALL)
_IN_PROSE = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)
_WORD = re.compile(
    r"(?<![\\\w])(?:[A-Za-z]{3,}|is|it|we|he|of|to|in|so|as|at|be|by|an|on)(?![\w({])", re.IGNORECASE
)
_NUMERALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_COUNTS = {word: count for count, word in enumerate(_NUMERALS)}
# "Three trucks are needed": the subject is the answer
_COUNTED = re.compile(rf"(?:{'|'.join(_NUMERALS)})\b", re.IGNORECASE)
_NAMED = re.compile(r"\\text\w*\s*\{[^{}]*\}|\\(?:begin|end)\s*\{\w*\}(?:\{[^{}]*\})?")
_NO_PROSE = frozenset("and or pi sqrt sin cos tan cot sec csc ln log exp infinity".split())
_SENTENCE = re.compile(r"[.!?](?:\*\*)?\s+(?=[A-Z\u4e00-\u9fff])|。")
_REASON = re.compile(r",?\s+(?:because|since|as required)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"^(?:therefore|thus|hence|so|then|probably|approximately|about|exactly|simply|equal to|just)\b[,:]?\s*",
    re.IGNORECASE,
)
# Result: 42
_LABEL = re.compile(r"^(?:result|solution|ans|option|choice)\b\s*(?:is\b|[:=])?\s*(?=\S)", re.IGNORECASE)
_CONTRAST = re.compile(r",\s*(?:and |but )?not\b", re.IGNORECASE)  # 5, not 6
_STOPS = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>")
_BETWEEN = re.compile(r"\\(?:text|mbox|quad|qquad|[()\[\],; ])|[\s${}.]")
_FRACTION = re.compile(r"([-+]?)\s*\\frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def final_answer(text: str, extract: str = "final") -> str | None:
    """The answer a completion commits to, or None. What stands before `</think>` is no commitment.

    `gsm8k`: after the last `####`. `boxed`: inside the last `\\boxed{}`. `final`: the first of these that is
    there, else in the last `<answer>`, after the last "answer is", "Answer:" or "A:"; else what ends the last
    line: a formula or a number, or "Three trucks ..." at its beginning.
    """
    text = _said(text)
    if extract != "final":
        return _marked(text, extract)
    return committed(text) or _last_line(text)


def committed(text: str) -> str | None:
    """The answer that stands where an answer is marked as such, as `final_answer` with
    `final` but without the last line.
    """
    text = _said(text)
    marked = _marked(text, "gsm8k") or _replaced(text) or _marked(text, "all boxed")
    if marked is not None:
        return _stated(marked) or marked  # \boxed{\text{The answer is } 5}
    tags = _TAG.findall(text)
    tagged = tags[-1].strip() if tags else ""
    return tagged or _stated(text)


def bare(text: str) -> str:
    """A text that is an answer and nothing else, without a word like `therefore` or `Result:` before it."""
    return _LABEL.sub("", _HEDGE.sub("", text.strip()))


def _said(text: str) -> str:
    """The end of the text, without thoughts and without what stands after the turn's end; nothing while
    still thinking.
    """
    text = text[-MAX_TEXT:].rpartition("</think>")[2]
    if "<think>" in text:
        return ""
    for stop in _STOPS:
        before, _, after = text.partition(stop)
        text = before if before.strip() else after
    return text


def _marked(text: str, extract: str) -> str | None:
    if extract == "gsm8k":
        after_hashes = _GSM8K.findall(text)
        return after_hashes[-1].strip() or None if after_hashes else None
    if extract == "all boxed":
        return _all_boxed(text) or None
    boxed = last_boxed(text) or ""
    return boxed.strip() or None


def _replaced(text: str) -> str | None:
    """A "final answer is" after the last box, with an answer of its own, replaces it."""
    boxes = _boxes(text)
    if not boxes:
        return None
    rest = text[boxes[-1].end :]
    final = _FINAL.search(rest)
    return _stated(rest[final.start() :]) if final else None


def _stated(text: str) -> str | None:
    """After the last "answer is" that is not "answer is not"."""
    for match in reversed(list(_SAYS.finditer(text))):
        begin = match.end()
        rest = text[begin : begin + 4000].lstrip()
        if rest and not rest.lower().startswith("not "):
            return _in_sentence(rest)
    return None


def _in_sentence(rest: str) -> str | None:
    """The answer at the beginning of `rest`: its first formula, or its first sentence; of
    prose the last formula or number.
    """
    line = rest.partition("\n")[0]
    sentence = _SENTENCE.split(line, maxsplit=1)[0]
    sentence = _CONTRAST.split(sentence, maxsplit=1)[0]
    first = _FORMULA.match(rest)
    content = _content(first) if first else ""
    if first and content:
        tail = sentence[first.end() :]
        if not re.search(r"\$|\\\(", tail):
            unit = tail.strip(" .*\\]$)")
            return f"{content} {unit}" if 0 < len(unit) <= 12 else content
    sentence = _HEDGE.sub("", _REASON.split(sentence, maxsplit=1)[0])
    if is_prose(sentence):
        return _last_formula(sentence)
    sentence = sentence.strip().strip("*_` ")
    return sentence.rstrip(".").strip("*_` ") or None


def _last_line(text: str) -> str | None:
    """The last formula or number of the last line that has one; a bare line of text is no answer."""
    lines = text[-4000:].splitlines()
    worded = [line for line in lines if re.search(r"\w", line)]
    if not worded:
        return None
    last = _LABEL.sub("", worded[-1].strip())
    last = last.strip("`")
    counted = _COUNTED.match(last)
    if counted and is_prose(last):
        word = counted[0].lower()
        return str(_COUNTS[word])
    if as_number(last) is not None:
        return last
    if _plain_words(last) or _FORMULA.search(last):
        return _last_formula(last)
    left, _, right = last.rpartition("=")
    is_equation = left.strip() and as_number(right) is not None
    return right.strip() if is_equation else None


def _last_formula(line: str) -> str | None:
    """The last formula of a line, or the last number of its last sentence where no formula follows it."""
    formula, formula_end = "", 0
    for match in _FORMULA.finditer(line):
        content = _content(match)
        if content and not _is_denied(line, match.start()):
            formula, formula_end = content, match.end()
    if formula:
        number = _last_number(line)
        if number is None or formula_end >= number.end() or not is_prose(line):
            return formula
    # a number is an answer only in the last sentence, and only of one
    sentence = _SENTENCE.split(line.strip())[-1]
    number = _last_number(sentence)
    if number is None or not is_prose(sentence) or _is_denied(sentence, number.start()):
        return None
    return number[0].strip()


def _last_number(text: str) -> re.Match[str] | None:
    numbers = list(_IN_PROSE.finditer(text))
    return numbers[-1] if numbers else None


def _is_denied(text: str, start: int) -> bool:
    """Whether "not" stands right before."""
    before = text[max(0, start - 40) : start]
    return _DENIED.search(before) is not None


def _content(match: re.Match[str]) -> str:
    """What stands between the signs of a formula; nothing where two dollar signs are
    prices with words between them.
    """
    content = next(group for group in match.groups() if group is not None).strip()
    goes_on = content.endswith(("=", "+", "-", "*", "/", ","))
    return "" if goes_on or _plain_words(content) >= 2 else content


def is_prose(text: str) -> bool:
    """Whether a text has three plain words or more outside its formulas."""
    return _plain_words(_FORMULA.sub(" ", text[:4000])) >= 3


def _plain_words(text: str) -> int:
    found_words = _WORD.findall(_NAMED.sub(" ", text))
    return sum(word.lower() not in _NO_PROSE for word in found_words)


def as_number(text: str) -> Fraction | None:
    """An exact value for `1,234`, `$5`, `12.50`, `3/4`, `1.2e4`, `35%` (as 35); None for anything else."""
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = text.strip().strip("$").rstrip(".%")
    text = text.replace("\\$", "").replace("\\%", "")
    text = text.replace("\u2212", "-").strip()
    if not text or len(text) > MAX_DIGITS:
        return None
    top, slash, bottom = text.partition("/")
    numerator = _literal(top)
    denominator = _literal(bottom) if slash else Fraction(1)
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _literal(text: str) -> Fraction | None:
    digits = text.strip()
    return Fraction(digits.replace(",", "")) if _NUMBER.fullmatch(digits) else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` or `\\fbox{}` whose braces balance, the innermost one; None when
    there is none.
    """
    boxes = _boxes(text)
    return boxes[-1].content if boxes else None


class _Box(NamedTuple):
    begin: int
    end: int
    content: str


def _boxes(text: str) -> list[_Box]:
    """Every box that holds no other box, in one pass over the braces."""
    boxes: list[_Box] = []
    # of each open brace: where its box begins, or -1, and where its content does
    opened: list[tuple[int, int]] = []
    for match in _BRACES.finditer(text):
        sign = match[0]
        if sign == "{":
            opened.append((-1, match.end()))
        elif sign == "}":
            begin, inside = opened.pop() if opened else (-1, 0)
            holds_another = boxes and boxes[-1].begin > begin
            if begin >= 0 and not holds_another:
                content = text[inside : match.start()]
                boxes.append(_Box(begin, match.end(), content))
        elif len(sign) > 2:  # \boxed{
            opened.append((match.start(), match.end()))
    return boxes


def _all_boxed(text: str) -> str:
    """The last box, with those before it that only a comma, `and` or `or` parts from it; a box
    cut off at the end of the text.
    """
    boxes = _boxes(text)
    if not boxes:
        return _cut_off_box(text)
    while boxes and _is_denied(text, boxes[-1].begin):
        boxes.pop()
    if not boxes:
        return ""
    *earlier, last = boxes[-20:]
    joined, begin = last.content, last.begin
    for box in reversed(earlier):
        if not _lists(text[box.end : begin]):
            break
        joined, begin = f"{box.content}, {joined}", box.begin
    return joined.strip()


def _lists(between: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    if len(between) > 60 or not re.search("[,;a]|or", between):
        return False
    return re.fullmatch(r",?(?:and|or)?|;", _BETWEEN.sub("", between)) is not None


def _cut_off_box(text: str) -> str:
    start = max(text.rfind("\\boxed{"), text.rfind("\\boxed {"))
    if start < 0:
        return ""
    _, _, rest = text[start:].partition("{")
    rest = rest.strip().rstrip("$.").strip("{} ")
    return rest if "\n" not in rest and len(rest) <= 200 else ""


def normal(answer: str) -> str:
    """A form that does not depend on spelling: answers that differ in it only get the same text.
    For votes, not for verdicts.

    A number or fraction of integers is its exact value, words are without case, all else is without spaces.
    Linear time.
    """
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    spelled = spell(answer)
    named, _, value = spelled.partition("=")
    if value and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*", named):
        spelled = value.strip()
    number = as_number(spelled)
    if number is None:
        number = _latex_fraction(spelled)
    if number is not None:
        return str(number)
    if not re.search(r"[\\^_=+/*]|\d", spelled.replace("\\text", "")):
        return words(spelled)
    return spelled.replace(" ", "")


def _latex_fraction(spelled: str) -> Fraction | None:
    """The value of `\\frac{1}{2}`, with a sign or without."""
    match = _FRACTION.fullmatch(spelled)
    if match is None or len(spelled) > MAX_DIGITS:
        return None
    sign, top, bottom = match.groups()
    if not int(bottom):
        return None
    value = Fraction(int(top), int(bottom))
    return -value if sign == "-" else value
