"""The boxes of a text, `\\boxed{}` and `\\fbox{}`: where they are, and which of them are the answer."""

import re
from typing import NamedTuple

from lgrpo_lite.verifier.denials import is_denied
from lgrpo_lite.verifier.retractions import another, or_else

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_LEAD = re.compile(
    r"^\\text\s*\{\s*(?:the|its?|their|our)(?: [a-z]+){0,3} (?:is|are|equals)\s*:?\s*\}\s*(?=\S)",
    re.IGNORECASE,
)
MAX_BETWEEN = 60  # characters between two boxes of one list
_NAME = re.compile(r"(?<![\\\w])([a-zA-Z](?:_\{?\w\}?)?)\s*=\s*$")  # x = \boxed{1}
_SHARE = re.compile(r"[\s$]*(?:\\?%|(?:\\text\{\s*)?per ?cent\b)")
_PLAIN = re.compile(r"[-+\d.,/ ]+|[-+]?\\[dt]?frac\{\d+\}\{\d+\}")
_BETWEEN = re.compile(r"\\(?:text|mbox|quad|qquad|[()\[\],; ])|[\s${}.]")


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{}` or `\\fbox{}` whose braces balance, the innermost one; None when
    there is none.
    """
    boxes = boxes_of(text)
    return boxes[-1].content if boxes else None


class Box(NamedTuple):
    begin: int
    end: int
    content: str


def boxes_of(text: str) -> list[Box]:
    """Every box that holds no other box, in one pass over the braces."""
    boxes: list[Box] = []
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
                boxes.append(Box(begin, match.end(), content))
        elif len(sign) > 2:  # \boxed{
            opened.append((match.start(), match.end()))
    return boxes


def all_boxed(text: str) -> str:
    """The last box, with those before it that only a comma, `and` or `or` parts from it; a box
    cut off at the end of the text.
    """
    boxes = boxes_of(text)
    if not boxes:
        return _cut_off_box(text)
    while boxes and is_denied(text, boxes[-1].begin, boxes[-1].end):
        boxes.pop()
    if not boxes:
        return ""
    *earlier, last = boxes[-20:]
    listed = [last]
    for box in reversed(earlier):
        between = text[box.end : listed[0].begin]
        if len(between) > MAX_BETWEEN:
            break
        if not or_else(between) and not makes_list(_NAME.sub("", between)):
            break
        listed.insert(0, box)
    if len(listed) == 1:
        second = another(text[last.end :])
        if second is not None:
            return f"{last.content.strip()} or {second}"
        is_share = _PLAIN.fullmatch(last.content.strip()) and _SHARE.match(text, last.end)
        return last.content.strip() + ("%" if is_share else "")
    return ", ".join(_with_names(text, listed)).strip()


def _with_names(text: str, boxes: list[Box]) -> list[str]:
    """The contents, as x = 1 and y = 2 where each box has such a name before it."""
    names = [_NAME.search(text[max(0, box.begin - 20) : box.begin]) for box in boxes]
    contents = [box.content for box in boxes]
    if not all(names) or any("=" in content for content in contents):
        return contents
    pairs = zip(names, contents, strict=True)
    return [f"{name[1]} = {content}" for name, content in pairs if name]


def makes_list(between: str) -> bool:
    """Whether what stands between two boxes, or two formulas, makes them one list."""
    if not re.search("[,;a]|or", between):
        return False
    return re.fullmatch(r",?(?:and|or)?|;", _BETWEEN.sub("", between)) is not None


def without_lead(content: str) -> str:
    """The content of a box without "The value is" before it."""
    return _LEAD.sub("", content)


def _cut_off_box(text: str) -> str:
    start = max(text.rfind("\\boxed{"), text.rfind("\\boxed {"))
    if start < 0:
        return ""
    _, _, rest = text[start:].partition("{")
    rest = rest.strip().rstrip("$.").strip("{} ")
    return rest if "\n" not in rest and len(rest) <= 200 else ""
