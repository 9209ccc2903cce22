"""How a chat template writes its turns, found out from what it renders.

A template that is Jinja has to become one of Go for Ollama. What it says is not read: it is asked to render a
few conversations, and what stands around their texts is how it writes turns. So system message, examples and
the answer's beginning, which an export carries in its template, are found like the template's own words. A
template whose turns are not independent of each other cannot be written so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Message = dict[str, str]  # role and content, as templates have it
Render = Callable[[Sequence[Message], bool], str]  # a conversation, and whether an answer is to begin

# texts that no template has of its own and none changes
SYSTEM, QUESTION, ANSWER, SECOND = "Zsystem0Z", "Zquestion1Z", "Zanswer2Z", "Zquestion3Z"
AROUND = "\n\t ", " \t\n"  # what a template that trims takes away


class _Unlike(Exception):
    """The template is not of the form that Turns has."""


@dataclass(frozen=True)
class Turn:
    """What stands before and after a turn's text, and whether the white space at its ends is taken away."""

    before: str
    after: str
    trimmed: bool = False


@dataclass(frozen=True)
class Turns:
    """A conversation is its system message, or `opening` where it begins with none; then its turns; then
    `answer`. `system` and `later` are None where the template refuses a system message there.

    `opening_opens`, `system_opens`: what stands before the first question is in `opening` and in
    `system.after` already. `only_last`: of all turns but the system message it shows the last alone, as
    `user`.
    """

    opening: str
    system: Turn | None
    user: Turn
    assistant: Turn
    later: Turn | None  # a system message that is not the first
    answer: str
    opening_opens: bool = False
    system_opens: bool = False
    only_last: bool = False


def find_turns(render: Render) -> Turns | None:
    """None for a template of another form. What it refuses may raise anything."""
    try:
        return _found(render)
    except _Unlike:
        return None
    except Exception:  # a template is a program: one that refuses the simplest chat is of no form
        return None


def _found(render: Render) -> Turns:
    asked, answered, again = _user(QUESTION), _assistant(ANSWER), _user(SECOND)
    opening, end = _around(render([asked], True), QUESTION)
    if QUESTION not in render([asked, answered, again], True):
        return _only_last(render, opening, end)
    _, closed = _around(render([asked], False), QUESTION)
    *_, ended = _around(render([asked, answered], False), QUESTION, ANSWER)
    _, to_answer, to_question, _ = _around(render([asked, answered, again], True), QUESTION, ANSWER, SECOND)
    after_user = closed if to_answer.startswith(closed) and end.startswith(closed) else ""
    after_assistant = ended if to_question.startswith(ended) else ""
    user = Turn(
        to_question.removeprefix(after_assistant),
        after_user,
        _trims(lambda text: render([_user(text)], True), QUESTION),
    )
    assistant = Turn(
        to_answer.removeprefix(after_user),
        after_assistant,
        _trims(lambda text: render([asked, _assistant(text), again], True), ANSWER),
    )
    opening_opens = not opening.endswith(user.before)
    system = _system(render)
    system_opens = system is not None and not system.after.endswith(user.before)
    if system is not None and not system_opens:
        system = Turn(system.before, system.after.removesuffix(user.before), system.trimmed)
    return Turns(
        opening if opening_opens else opening.removesuffix(user.before),
        system,
        user,
        assistant,
        _later(render, user, assistant),
        end.removeprefix(after_user),
        opening_opens,
        system_opens,
    )


def _only_last(render: Render, opening: str, end: str) -> Turns:
    trimmed = _trims(lambda text: render([_user(text)], True), QUESTION)
    return Turns(
        opening, _system(render), Turn("", "", trimmed), Turn("", ""), None, end, True, True, only_last=True
    )


def _system(render: Render) -> Turn | None:
    """That before a question, whose own beginning is in `after`; None: the template refuses it."""
    try:
        text = render([_instructs(SYSTEM), _user(QUESTION)], True)
    except Exception:  # a template is a program: it may raise anything
        return None
    before, after, _ = _around(text, SYSTEM, QUESTION)
    trimmed = _trims(lambda text: render([_instructs(text), _user(QUESTION)], True), SYSTEM)
    return Turn(before, after, trimmed)


def _later(render: Render, user: Turn, assistant: Turn) -> Turn | None:
    def asked(text: str) -> str:
        chat = [_user(QUESTION), _assistant(ANSWER), _instructs(text), _user(SECOND)]
        return render(chat, True)

    try:
        text = asked(SYSTEM)
    except Exception:  # a template is a program: it may raise anything
        return None
    _, _, before, after, _ = _around(text, QUESTION, ANSWER, SYSTEM, SECOND)
    if not before.startswith(assistant.after) or not after.endswith(user.before):
        raise _Unlike
    return Turn(before.removeprefix(assistant.after), after.removesuffix(user.before), _trims(asked, SYSTEM))


def _trims(asked: Callable[[str], str], text: str) -> bool:
    before, after = AROUND
    return before + text + after not in asked(before + text + after)


def _around(text: str, *marks: str) -> list[str]:
    """What stands before, between and after the marks, each of which is there once, in this order."""
    parts = []
    for mark in marks:
        if text.count(mark) != 1:
            raise _Unlike
        part, _, text = text.partition(mark)
        parts.append(part)
    return [*parts, text]


def _instructs(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
