"""The chat template of a run as one of Go's, which Ollama renders: the same text for every conversation.

It is written from what the run's own template renders (turns.py), and given only if both render the same
conversations to the same text, the run's questions among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from lgrpo_lite.data.served import chat_template
from lgrpo_lite.data.template import now
from lgrpo_lite.export.go_template import quoted, render
from lgrpo_lite.export.turns import Message, Render, Turn, Turns, find_turns
from lgrpo_lite.recipe.schema import Data

UNKNOWN = (
    "no TEMPLATE: the run's template is of no form that can be written for Ollama, which then guesses one or "
    "reads the GGUF's, by its version; compare its answers with those of llama-server"
)
DATED = "the run's template writes the date: under Ollama it stays {date:%Y-%m-%d}, as in training"
THOUGHTS = (
    "of earlier answers the run's template leaves out what was thought; Ollama does so for Qwen 3 alone"
)
# texts that both templates are tried with: white space at ends, what templates are made of, nothing
TEXTS = (
    "What is 2+3?",
    "\n {{ .System }} {% raw %} \n",
    'a "b" `c` \\n\n\n数学 \U0001f600',
    " x\t",
    "",
    "<|user|>",
)
SYSTEMS = (None, "Be brief.", "", " {{ x }}\n")


@dataclass(frozen=True)
class GoChat:
    """`template` is None for a run's template that cannot be written so. `notes`: what differs."""

    template: str | None
    notes: tuple[str, ...]


def go_chat(data: Data, tokenizer: Any, *, begins: bool, questions: Sequence[str] = ()) -> GoChat:
    """The template that an export of the run has, as one of Go's.

    begins: whether the reader of the GGUF file puts the token that begins a text before every prompt; the
    template leaves it out then. questions: tried beside TEXTS.
    """
    date = data.date or now()
    jinja = rendering(data, tokenizer, date)
    first = (tokenizer.bos_token or "") if begins else ""
    notes = []
    if begins and not (first and jinja([_said("user", "a")], True).startswith(first)):
        notes.append(f"llama.cpp and Ollama put {first!r} before every prompt, which the policy did not read")

    def without_first(chat: Sequence[Message], answering: bool) -> str:
        return jinja(chat, answering).removeprefix(first)

    turns = find_turns(without_first)
    if turns is None:
        return GoChat(None, (*notes, UNKNOWN))
    template = written(turns)
    if not same(template, without_first, data.system, questions):
        return GoChat(None, (*notes, UNKNOWN))
    if turns.system is None:
        notes.append("the model's template refuses system messages: under Ollama one is an error")
    another_day = rendering(data, tokenizer, date + timedelta(days=400))
    if another_day([_said("user", "a")], True) != jinja([_said("user", "a")], True):
        notes.append(DATED.format(date=date))
    thought = [
        _said("user", "a"),
        _said("assistant", "<think>\nZthoughtZ\n</think>\n\nYes."),
        _said("user", "b"),
    ]
    if not turns.only_last and "ZthoughtZ" not in jinja(thought, True):
        notes.append(THOUGHTS)
    return GoChat(template, tuple(notes))


def rendering(data: Data, tokenizer: Any, date: datetime) -> Render:
    """How transformers renders what an export has as its chat template."""
    template = chat_template(data, tokenizer)

    def rendered(chat: Sequence[Message], answering: bool) -> str:
        return tokenizer.apply_chat_template(
            list(chat),
            tokenize=False,
            add_generation_prompt=answering,
            chat_template=template,
            strftime_now=date.strftime,
        )

    return rendered


def same(template: str, jinja: Render, system: str | None, questions: Sequence[str]) -> bool:
    """Whether both give the same text for all conversations that `jinja` does not refuse."""
    for chat in [*_conversations(), *([_said("user", question)] for question in questions)]:
        try:
            expected = jinja(chat, True)
        except Exception:  # a template is a program: it may refuse a chat in any way
            continue
        try:
            if render(template, as_ollama_has_it(chat, system)) != expected:
                return False
        except ValueError:
            return False
    return True


def as_ollama_has_it(chat: Sequence[Message], system: str | None) -> dict[str, Any]:
    """What Ollama gives to a template: SYSTEM where a conversation does not begin with a system message, and
    neighbours of one role as one turn.
    """
    given = list(chat)
    if system and given[0]["role"] != "system":
        given.insert(0, _said("system", system))
    turns: list[dict[str, str]] = []
    for message in given:
        if turns and turns[-1]["Role"] == message["role"]:
            turns[-1]["Content"] += "\n\n" + message["content"]
        else:
            turns.append({"Role": message["role"], "Content": message["content"]})
    return {"Messages": turns}


def _conversations() -> list[list[Message]]:
    """Such as ask for an answer: the last turn is the user's."""
    chats = []
    for system in SYSTEMS:
        begun = [] if system is None else [_said("system", system)]
        for number in range(len(TEXTS)):
            said = TEXTS[number:] + TEXTS[:number]
            roles = ("user", "assistant", "user", "assistant", "user")
            turns = [_said(role, text) for role, text in zip(roles, said, strict=False)]
            chats += [[*begun, turns[0]], [*begun, *turns]]
    chats.append([_said("assistant", "Hello."), _said("user", "Hi.")])
    chats.append(
        [_said("user", "Hi."), _said("assistant", "Yes?"), _said("system", " Now. "), _said("user", "2?")]
    )
    return chats


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


# ------------------------------------------------------------------------------------ written in Go

# white space at both ends, byte by byte: Go's templates have no function for it
TRIM = """{{ define "trim" }}{{ if not . }}\
{{ else if eq (slice . 0 1) SPACES }}{{ template "trim" (slice . 1) }}\
{{ else if eq (slice . (len (slice . 1))) SPACES }}{{ template "trim" (slice . 0 (len (slice . 1))) }}\
{{ else }}{{ . }}{{ end }}{{ end }}""".replace("SPACES", r'" " "\n" "\t" "\r" "\v" "\f"')
# an error of Go where the run's template raises one
REFUSED = '{{ slice "no system message" 99 }}'
LAST = "(index .Messages (len (slice .Messages 1))).Content"
AFTER_SYSTEM = '(and (eq $i 1) (eq (index $.Messages 0).Role "system"))'


def written(turns: Turns) -> str:
    """As a template of `.Messages` alone, which Ollama therefore renders once for a whole conversation."""
    parts = [turn for turn in (turns.system, turns.user, turns.assistant, turns.later) if turn]
    trim = TRIM if any(turn.trimmed for turn in parts) else ""
    system, opening = _turn(turns.system), literal(turns.opening)
    if turns.only_last:
        begun = "{{ if not $i }}" + _if_system(system, opening) + "{{ end }}"
        return trim + _ranged(begun) + _content(turns.user, LAST) + literal(turns.answer)
    if turns.later != turns.system:
        system = "{{ if $i }}" + _turn(turns.later) + "{{ else }}" + system + "{{ end }}"
    said = "{{ if not $i }}" + opening + "{{ end }}" if opening else ""
    said += '{{ if eq .Role "user" }}' + _header(turns) + _said_in(turns.user)
    said += '{{ else if eq .Role "assistant" }}' + _turn(turns.assistant) + "{{ end }}"
    return trim + _ranged(_if_system(system, said)) + literal(turns.answer)


def literal(text: str) -> str:
    """As it stands where a template and a Modelfile take it so, else as a string of Go."""
    shown = text.replace("\n", "").replace("\t", "")
    if shown.isprintable() and "{" not in text and '"""' not in text:
        return text
    return f"{{{{ {quoted(text)} }}}}"


def _ranged(body: str) -> str:
    return "{{ range $i, $_ := .Messages }}" + body + "{{ end }}"


def _if_system(then: str, otherwise: str) -> str:
    return '{{ if eq .Role "system" }}' + then + "{{ else }}" + otherwise + "{{ end }}"


def _header(turns: Turns) -> str:
    """What stands before a question, but where it was written with what precedes that."""
    before = literal(turns.user.before)
    begun = ["(not $i)"] if turns.opening_opens else []
    begun += [AFTER_SYSTEM] if turns.system_opens else []
    if not before or not begun:
        return before
    return "{{ if not (or " + " ".join(begun) + ") }}" + before + "{{ end }}"


def _turn(turn: Turn | None) -> str:
    return REFUSED if turn is None else literal(turn.before) + _said_in(turn)


def _said_in(turn: Turn) -> str:
    return _content(turn, ".Content") + literal(turn.after)


def _content(turn: Turn, value: str) -> str:
    return f'{{{{ template "trim" {value} }}}}' if turn.trimmed else f"{{{{ {value} }}}}"
