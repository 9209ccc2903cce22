"""What the end of a text that marks no answer shows as one: in bold, under a heading, an equation alone."""

import re

from lgrpo_lite.verifier.boxes import MAX_BETWEEN, makes_list
from lgrpo_lite.verifier.denials import disowned, gives_up, is_asked, is_denied
from lgrpo_lite.verifier.prose import plain_words

MAX_SHOWN = 300
_BOLD = re.compile(r"(?<!\*)\*\*([^*\n]{1,300})\*\*(?!\*)")
_NOTHING_ELSE = re.compile(r"[\s.!)\]]*(?:\((?:for|since|because|as|see)\b[^()]{1,80}\)[\s.!]*)?")
_OR_ELSE = re.compile(r"\b(?:or|maybe|perhaps|possibly)\b", re.IGNORECASE)
_HEADED = re.compile(
    r"(?:^|\n)[ \t]*(?:#{1,6}|\*\*)[ \t]*(?:the )?(?:final |my )?(?:answer|result)s?[ \t]*(?:\*\*)?[ \t]*\n"
    r"\s*(\S[^\n]{0,299})$",
    re.IGNORECASE,
)
_ALONE = re.compile(
    r"(?:\\?[a-zA-Z]+|[\u03b1-\u03c9])(?:_\{?\w\}?)?(?:\(\w\))?\s*"  # x, \theta, x_1, f(x)
    r"(?:=|<|>|\u2208|\u2264|\u2265|\\in\b|\\[lg]eq?\b)[^=]{1,200}"
)


def shown_last(text: str) -> str | None:
    """The answer that a text ends with in bold, alone under the heading "Final answer", or as an equation on
    a line of its own, x = sqrt(2); None where its last line shows none, denies it, or asks.
    """
    text = text.rstrip()
    headed = _HEADED.search(text[-4 * MAX_SHOWN :])
    if headed:
        return None if gives_up(headed[1], len(headed[1])) else headed[1].replace("**", " ").strip()
    above, _, line = text[-4000:].rpartition("\n")
    bold = _last_bold(line)
    if bold is not None:
        return bold
    bare = line.strip().strip("*` .")
    alone = above.strip() and not disowned(above.rstrip()) and _ALONE.fullmatch(bare)
    return bare if alone and not plain_words(line) else None


def _last_bold(line: str) -> str | None:
    """What stands in bold at the end of a line, several with commas or `and` between them as one list."""
    spans = list(_BOLD.finditer(line))
    if not spans or not _NOTHING_ELSE.fullmatch(line, spans[-1].end()):
        return None
    *earlier, last = spans
    if is_denied(line, *last.span()) or is_asked(line, last.end()) or gives_up(line, len(line)):
        return None
    listed = [last]
    for span in reversed(earlier):
        between = line[span.end() : listed[0].start()]
        if len(between) > MAX_BETWEEN or not (makes_list(between) or _OR_ELSE.search(between)):
            break
        listed.insert(0, span)
    return ", ".join(span[1].strip().rstrip(".") for span in listed)
