"""What stands behind an answer and is none of it: the next turn of a chat, courtesies, a program."""

import re

_STOPS = (
    "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>", "<|user|>", "<|end|>", "<|eot|>",
    "<end_of_turn>", "<start_of_turn>", "<eos>", "<|start_header_id|>", "<｜User｜>",
    "<｜end▁of▁sentence｜>", "[INST]", "[/INST]",
)  # fmt: skip
_STOP = re.compile("|".join(map(re.escape, _STOPS)))
_TURN = re.compile(r"\n[ \t]*(?:\*\*|#+ ?)?(?:User|Human|Instruction) ?(?:\*\*)?:")
_COURTESY = re.compile(
    r"(?:(?<=[.!?。！\n$}\])*`])|(?<=[.!?] ))\s*(?:"
    r"I hope\b|Hope (?:this|that|it|you)\b|(?:Please )?(?:do )?let me know\b|(?:Please )?(?:do )?feel free\b|"
    r"Is there anything\b|Have a (?:great|nice|good|wonderful)\b|(?:Would|Do) you (?:like|want|have|need)\b|"
    r"If you(?: have|['’]d like| would like| need| want)\b|Thank you\b|Thanks\b|You['’]re welcome|"
    r"(?:I['’]m )?Happy to\b|Good luck\b|Best regards|Glad to\b|Any (?:other )?questions\b|"
    r"Don['’]t hesitate\b|I['’]m here to\b|希望|如果你|如果您|如有|如需|欢迎|祝)",
    re.IGNORECASE,
)
_ANSWERS = re.compile(r"boxed|####|\banswers?\b|<answer>|答案", re.IGNORECASE)
MAX_COURTESY = 600
# the minimum is 5 (attained at x = 2)
_ATTAINED = re.compile(
    r"\s*\((?:(?:which is )?(?:attained|reached|achieved|obtained)|at|when|for|where|if)\b"
    r"(?![^()]*\b(?:else|otherwise|actually)\b)[^()]*(?:\([^()]*\)[^()]*)*\)[\s.*]*$|"
    r",? (?:attained|reached|achieved|which occurs|occurring) (?:at|when|for|if)\b.{0,200}$",
    re.IGNORECASE,
)
_PROGRAM = re.compile(
    r"\n\s*```(?:python|py|sympy|javascript|js|c|cpp|java)\b[^`]*(?:```\s*)?$", re.IGNORECASE
)


def of_one_turn(text: str) -> str:
    """The text up to the end of its turn."""
    begin = 0
    for stop in _STOP.finditer(text):
        if text[begin : stop.start()].strip():
            text = text[begin : stop.start()]
            break
        begin = stop.end()
    else:
        text = text[begin:]
    turn = _TURN.search(text)
    if turn and text[: turn.start()].strip():
        return text[: turn.start()]
    return text


def without_courtesy(text: str) -> str:
    """The text without courtesies at its end, and without a program behind it."""
    text = _without_program(text)
    begin = max(0, len(text) - MAX_COURTESY)
    for match in _COURTESY.finditer(text, begin):
        if not _ANSWERS.search(text, match.start()) and re.search(r"\w", text[: match.start()]):
            return text[: match.start()]
    return text


def without_where(line: str) -> str:
    """A line without what it says behind its answer of where that is attained."""
    return _ATTAINED.sub("", line)


def _without_program(text: str) -> str:
    if text.lstrip().startswith("```") and _PROGRAM.fullmatch(f"\n{text.strip()}"):  # and nothing else
        return ""
    begin = text.rfind("\n```", 0, text.rfind("```"))
    if begin < 0:
        begin = text.rfind("\n```")
    if begin < 0 or not text[:begin].strip():
        return text
    return text[:begin] if _PROGRAM.match(text, begin) else text
