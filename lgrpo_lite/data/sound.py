"""What a model's template does to the parts of a chat: none may be lost, and its answers have to end."""

from collections.abc import Callable, Iterable

from lgrpo_lite.data.template import NAMED, SYSTEM, Messages, chat, check_read, no_chat_template, rendered
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Data

QUESTION, ANSWER = "What is 12 + 9?", "It is 21"


def check_model(data: Data, tokenizer, where: Callable[[str], str]) -> None:
    """What can be known of the template once the model's tokenizer is there.

    A model without one, a template that loses the question, the system message or an example: DataError. An
    argument that it does not read: ConfigError.
    """
    if data.template == "plain":
        return
    if data.template == "chat":
        if not tokenizer.chat_template:
            raise no_chat_template()
        check_read(data.chat_template_kwargs or {}, tokenizer.get_chat_template(), "of the model", where)
    check_shown(chat(QUESTION, data), data, tokenizer, where("data.system"))


def check_shown(turns: Messages, data: Data, tokenizer, place: str) -> None:
    """A chat of which the template loses something: DataError at that place."""
    question = turns[-1][1]
    text = rendered(question, turns, data, tokenizer)
    lost = None
    if turns[0][0] in SYSTEM and text == _without_system(turns, data, tokenizer):
        lost = "the system message"
    for role, said in turns[1:] if turns[0][0] in SYSTEM else turns:
        if lost is None and "".join(said.split()) not in "".join(text.split()):
            lost = f"what the {role} says ({said[:40]!r})"
    if lost is None:
        return
    if data.template not in NAMED:
        fix = "show every entry of messages in it, or question and system"
    else:
        fix = "put those words into the question, or give a Jinja file that shows them as data.template"
    what = f"the template drops {lost}: the model would never read it"
    raise DataError(what, where=f"{place}, data.template={data.template}", fix=fix)


def ends(
    data: Data, tokenizer, end_ids: Iterable[int], own: int | None, settings: Iterable[int]
) -> list[str]:
    """What a person should know of the tokens that end an answer. `end_ids`: all that do; `own` is the
    tokenizer's, `settings` those of the model's generation settings.
    """
    lines = []

    def named(ids: Iterable[int]) -> str:
        return ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids))

    settings = frozenset(settings)
    if own is not None and settings and own not in settings:
        both = (
            f"the tokenizer's end token is {named([own])}, that of the generation settings {named(settings)}"
        )
        lines.append(f"{both}: each of them ends an answer")
    last = _end_of_answers(data, tokenizer)
    if last is not None and last not in frozenset(end_ids):
        stop = f"set rollout.stop='[\"{tokenizer.convert_ids_to_tokens(last)}\"]'"
        never = f"the template ends an answer with {named([last])}, which is no end token of the model"
        lines.append(f"{never} ({named(end_ids)}): answers would run on to the limit; {stop}")
    return lines


def _without_system(turns: Messages, data: Data, tokenizer) -> str | None:
    """The chat without what comes from the system; None where the template refuses that."""
    rest = [turn for turn in turns if turn[0] not in SYSTEM]
    try:
        return rendered(turns[-1][1], rest, data.model_copy(update={"system": None}), tokenizer)
    except DataError:
        return None


def _end_of_answers(data: Data, tokenizer) -> int | None:
    """The special token that the template puts behind a turn of the assistant; None: none, or unknown."""
    if data.template == "plain":
        return None
    turns = (("user", QUESTION), ("assistant", ANSWER))
    try:
        text = rendered(QUESTION, turns, data, tokenizer, answering=False)
    except DataError:  # it refuses an answer at the end
        return None
    _, found, behind = text.rpartition(ANSWER)
    if not found:
        return None
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in special), None)
