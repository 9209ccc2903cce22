"""Where an answer stands in a text, and which number it is. Used for gold answers and for completions alike.

Nothing here evaluates anything: numbers are read digit by digit into exact fractions, within bounds, and
every search is linear in the text, so no text can hang it.
"""
# ruff: noqa: SIM905

import re
from fractions import Fraction

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
_COUNTS = "zero one two three four five six seven eight nine ten eleven twelve".split()
# "Three trucks are needed": the subject is the answer
_COUNTED = re.compile(r"(?:" + "|".join(_COUNTS) + r")\b", re.IGNORECASE)
_NAMED = re.compile(r"\\text\w*\s*\{[^{}]*\}|\\(?:begin|end)\s*\{\w*\}(?:\{[^{}]*\})?")
_NO_PROSE = frozenset("and or pi sqrt sin cos tan cot sec csc ln log exp infinity".split())
_SENTENCE = re.compile(r"[.!?](?:\*\*)?\s+(?=[A-Z\u4e00-\u9fff])|。")
_REASON = re.compile(r",?\s+(?:because|since|as required)\b", re.IGNORECASE)
_HEDGE = re.compile(
    r"^(?:therefore|thus|hence|so|then|probably|approximately|about|exactly|simply|equal to|just)\b[,:]?\s*",
    re.I,
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
    found = _marked(text, "gsm8k") or _replaced(text) or _marked(text, "all boxed")
    if found is not None and (inner := _stated(found)):
        return inner  # \boxed{\text{The answer is } 5}
    if found is None and (tags := _TAG.findall(text)):
        found = tags[-1].strip() or None
    return found or _stated(text)


def bare(text: str) -> str:
    """A text that is an answer and nothing else, without a word like `therefore` or `Result:` before it."""
    return _LABEL.sub("", _HEDGE.sub("", text.strip()))


def _said(text: str) -> str:
    """The end of the text, without thoughts and without what stands after the turn's
    end; nothing while still thinking.
    """
    text = text[-MAX_TEXT:].rpartition("</think>")[2]
    if "<think>" in text:
        return ""
    for stop in _STOPS:
        parts = text.partition(stop)
        text = parts[0] if parts[0].strip() else parts[2]
    return text


def _marked(text: str, extract: str) -> str | None:
    if extract == "gsm8k":
        found = _GSM8K.findall(text)
        return found[-1].strip() or None if found else None
    if extract == "all boxed":
        return _all_boxed(text)
    boxed = last_boxed(text)
    return None if boxed is None else boxed.strip() or None


def _replaced(text: str) -> str | None:
    """A "final answer is" after the last box, with an answer of its own, replaces it."""
    if boxes := _boxes(text):
        rest = text[boxes[-1][1] :]
        if match := _FINAL.search(rest):
            return _stated(rest[match.start() :])
    return None


def _stated(text: str) -> str | None:
    """After the last "answer is" that is not "answer is not"."""
    for match in reversed(list(_SAYS.finditer(text))):
        rest = text[match.end() : match.end() + 4000].lstrip()
        if rest and not rest.lower().startswith("not "):
            return _in_sentence(rest)
    return None


def _in_sentence(rest: str) -> str | None:
    """The answer at the beginning of `rest`: its first formula, or its first sentence; of
    prose the last formula or number.
    """
    opened = re.match(r"\$\$?|\\\(|\\\[", rest)
    first = _FORMULA.match(rest) if opened else None
    first = first if first and _content(first) else None
    line = rest.partition("\n")[0]
    sentence = _CONTRAST.split(_SENTENCE.split(line, maxsplit=1)[0], maxsplit=1)[0]
    if first and (first.end() > len(line) or not re.search(r"\$|\\\(", line[first.end() : len(sentence)])):
        tail = sentence[first.end() :].strip(" .*\\]$)") if first.end() < len(line) else ""
        return _content(first) + (f" {tail}" if 0 < len(tail) <= 12 else "")
    sentence = _HEDGE.sub("", _REASON.split(sentence, maxsplit=1)[0])
    if is_prose(sentence):
        return _last_formula(sentence)
    return sentence.strip().strip("*_` ").rstrip(".").strip("*_` ") or None


def _last_line(text: str) -> str | None:
    """The last formula or number of the last line that has one; a bare line of text is no answer."""
    lines = [line for line in text[-4000:].splitlines() if re.search(r"\w", line)]
    if not lines:
        return None
    last = _LABEL.sub("", lines[-1].strip()).strip("`")
    if (counted := _COUNTED.match(last)) and is_prose(last):
        return str([*_COUNTS].index(counted[0].lower()))
    if as_number(last) is not None:
        return last
    if not _plain_words(last) and not _FORMULA.search(last):
        equals = last.rpartition("=")
        return equals[2].strip() if equals[0].strip() and as_number(equals[2]) is not None else None
    return _last_formula(last)


def _last_formula(line: str) -> str | None:
    formulas = [
        m for m in _FORMULA.finditer(line) if not _DENIED.search(line[max(0, m.start() - 40) : m.start()])
    ]
    found = [(m.end(), content) for m in formulas if (content := _content(m))]
    numbers = list(_IN_PROSE.finditer(line))
    if found and (not numbers or found[-1][0] >= numbers[-1].end() or not is_prose(line)):
        return found[-1][1]
    # a number is an answer only in the last sentence, and only of one
    sentence = _SENTENCE.split(line.strip())[-1]
    numbers = list(_IN_PROSE.finditer(sentence)) if is_prose(sentence) else []
    if not numbers or _DENIED.search(sentence[max(0, numbers[-1].start() - 40) : numbers[-1].start()]):
        return None
    return numbers[-1][0].strip()


def _content(match: re.Match[str]) -> str:
    """What stands between the signs of a formula; nothing where two dollar signs are
    prices with words between them.
    """
    content = next(group for group in match.groups() if group is not None).strip()
    return "" if content.endswith(("=", "+", "-", "*", "/", ",")) or _plain_words(content) >= 2 else content


def is_prose(text: str) -> bool:
    """Whether a text has three plain words or more outside its formulas."""
    return _plain_words(_FORMULA.sub(" ", text[:4000])) >= 3


def _plain_words(text: str) -> int:
    return sum(word.lower() not in _NO_PROSE for word in _WORD.findall(_NAMED.sub(" ", text)))


def as_number(text: str) -> Fraction | None:
    """An exact value for `1,234`, `$5`, `12.50`, `3/4`, `1.2e4`, `35%` (as 35); None for anything else."""
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = (
        text.strip()
        .strip("$")
        .rstrip(".%")
        .replace("\\$", "")
        .replace("\\%", "")
        .replace("\u2212", "-")
        .strip()
    )
    if not text or len(text) > MAX_DIGITS:
        return None
    top, slash, bottom = text.partition("/")
    if not _NUMBER.fullmatch(top.strip()) or (slash and not _NUMBER.fullmatch(bottom.strip())):
        return None
    numerator = Fraction(top.strip().replace(",", ""))
    denominator = Fraction(bottom.strip().replace(",", "")) if slash else Fraction(1)
    return numerator / denominator if denominator else None


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` or `\\fbox{}` whose braces balance, the
    innermost one; None when there is none.
    """
    boxes = _boxes(text)
    return boxes[-1][2] if boxes else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and content of every box that holds no other box, in one pass over the braces."""
    found: list[tuple[int, int, str]] = []
    opened: list[
        tuple[int, int]
    ] = []  # of each open brace: where its box begins, or -1, and where its content does
    for match in _BRACES.finditer(text):
        sign = match[0]
        if sign == "}":
            begin, inside = opened.pop() if opened else (-1, 0)
            if begin >= 0 and not (found and found[-1][0] > begin):
                found.append((begin, match.end(), text[inside : match.start()]))
        elif sign == "{" or len(sign) > 2:
            opened.append((match.start() if len(sign) > 2 else -1, match.end()))
    return found


def _all_boxed(text: str) -> str | None:
    """The last box, with those before it that only a comma, `and` or `or` parts from it; a box
    cut off at the end of the text.
    """
    boxes = _boxes(text)
    if not boxes:
        start = max(text.rfind("\\boxed{"), text.rfind("\\boxed {"))
        rest = text[start:].partition("{")[2].strip().rstrip("$.").strip("{} ") if start >= 0 else ""
        return rest if rest and "\n" not in rest and len(rest) <= 200 else None
    while boxes and _DENIED.search(text[max(0, boxes[-1][0] - 40) : boxes[-1][0]]):
        boxes.pop()
    if not boxes:
        return None
    joined, begin = boxes[-1][2], boxes[-1][0]
    for before, end, content in reversed(boxes[-20:-1]):
        between = text[end:begin]
        if (
            len(between) > 60
            or not re.fullmatch(r",?(?:and|or)?|;", _BETWEEN.sub("", between))
            or not re.search("[,;a]|or", between)
        ):
            break
        joined, begin = f"{content}, {joined}", before
    return joined.strip() or None


def normal(answer: str) -> str:
    """A form that does not depend on spelling: answers that differ in it only get the same
    text. For votes, not for verdicts.

    A number or fraction of integers is its exact value, words are without case, all else
    is without spaces. Linear time.
    """
    if len(answer) > MAX_ANSWER:
        return answer.strip()
    spelled = spell(answer)
    named, _, value = spelled.partition("=")
    if value and re.fullmatch(r"\s*\\?[a-zA-Z]\w*\s*", named):
        spelled = value.strip()
    if (number := as_number(spelled)) is not None:
        return str(number)
    if (match := _FRACTION.fullmatch(spelled)) and len(spelled) <= MAX_DIGITS and int(match[3]):
        return str(Fraction(int(match[2]), int(match[3])) * (-1 if match[1] == "-" else 1))
    if not re.search(r"[\\^_=+/*]|\d", spelled.replace("\\text", "")):
        return words(spelled)
    return spelled.replace(" ", "")
