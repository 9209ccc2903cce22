"""What a model's template does to the parts of a chat: none may be lost, and its answers have to end."""

from collections.abc import Callable, Iterable

from lgrpo_lite.data.template import (
    NAMED,
    SYSTEM,
    Messages,
    chat,
    check_read,
    first_token,
    names_read,
    no_chat_template,
    question_of,
    rendered,
    written,
)
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Data

QUESTION, ANSWER = "What is 12 + 9?", "It is 21"


def check_model(data: Data, tokenizer, where: Callable[[str], str]) -> None:
    """What can be known of the template once the model's tokenizer is there.

    A model without one, a template that loses the question, the system message or an example: DataError. An
    argument that it does not read: ConfigError. What it does to chats that rows bring, `Shown` knows.
    """
    if data.template == "plain":
        return
    if data.template == "chat":
        if not tokenizer.chat_template:
            raise no_chat_template()
        if data.chat_template_kwargs:
            check_read(data.chat_template_kwargs, _own_text(tokenizer), "of the model", where)
    Shown(data, tokenizer).check(chat(QUESTION, data), where("data.system"))


def _own_text(tokenizer) -> str:
    """The model's template. One that does not compile, or of several none for a chat: DataError."""
    try:
        text = tokenizer.get_chat_template()
        names_read(text)
    except Exception as error:
        what = f"the chat template of the model cannot be used: {error}"
        fix = "give a Jinja file as data.template"
        raise DataError(what, where="data.template=chat", fix=fix) from error
    return text


class Shown:
    """Looks whether a template shows every turn of a chat, once for each order of roles, and with words of
    its own: those of a row may be what a template rightly rewrites.
    """

    def __init__(self, data: Data, tokenizer):
        self.data = data
        self.tokenizer = tokenizer
        self._seen: set[tuple[str, ...]] = set()

    def check(self, turns: Messages, place: str) -> None:
        """A chat of which the template loses a turn: DataError at that place. One that it refuses passes: the
        row itself is told.
        """
        roles = tuple(role for role, _ in turns)
        if not roles or roles in self._seen:
            return
        self._seen.add(roles)
        made_up = tuple((role, f"{role} says {number} words") for number, role in enumerate(roles))
        try:
            text = rendered(question_of(made_up), made_up, self.data, self.tokenizer)
        except DataError:
            return
        lost = [i for i, (_, said) in enumerate(made_up) if _plain(said) not in _plain(text)]
        if lost:
            raise self._fault(turns[lost[0]], place)

    def _fault(self, turn: tuple[str, str], place: str) -> DataError:
        role, said = turn
        lost = "the system message" if role in SYSTEM else f"what the {role} says ({said[:40]!r})"
        if self.data.template not in NAMED:
            fix = "show every entry of messages in it, or question and system"
        else:
            fix = "put those words into the question, or give a Jinja file that shows them as data.template"
        what = f"the template drops {lost}: the model would never read it"
        return DataError(what, where=f"{place}, data.template={self.data.template}", fix=fix)


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def begins(data: Data, tokenizer) -> list[str]:
    """What a person should know of what stands before a question and before its answer."""
    if data.template == "plain":
        return []
    lines = []
    begin = first_token(tokenizer)
    try:
        text = written(QUESTION, data, tokenizer)
        lead = _unwritten_lead(data, tokenizer)
    except DataError:  # it refuses this question, and may take those of the data
        return []
    if begin is not None and tokenizer(text, add_special_tokens=False)["input_ids"][:1] != [begin]:
        token = tokenizer.convert_ids_to_tokens(begin)
        what = f"the tokenizer puts {token!r} before every text, and the template writes none"
        lines.append(f"{what}: many models read worse without it; put {{{{ bos_token }}}} at its beginning")
    if lead:
        what = (
            f"the template does not read add_generation_prompt: behind a question the model writes {lead!r}"
        )
        lines.append(f"{what} itself before it answers; let the template write it, as a file")
    return lines


def _unwritten_lead(data: Data, tokenizer) -> str:
    """What stands between a question and an answer in a whole chat and is not written before one begins."""
    asked = chat(QUESTION, data)
    text = rendered(QUESTION, asked, data, tokenizer)
    if text != rendered(QUESTION, asked, data, tokenizer, answering=False):
        return ""
    try:
        whole = rendered(QUESTION, (*asked, ("assistant", ANSWER)), data, tokenizer, answering=False)
    except DataError:  # it refuses an answer at the end
        return ""
    before, found, _ = whole.rpartition(ANSWER)
    if not found or not before.startswith(text):
        return ""
    lead = before[len(text) :].strip()
    return "" if lead in (data.prefill or "") else lead


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
