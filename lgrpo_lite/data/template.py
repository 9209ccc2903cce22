"""A question -> the token ids the model reads: by its chat template, plain text, or a user's Jinja file."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, nearest
from lgrpo_lite.recipe.schema import Data

NAMED = ("chat", "plain")
SHOWN = ("question", "messages")  # one of which a template file reads
SYSTEM = ("system", "developer")  # roles of the one who instructs
# what a template is given in any case, or what transformers takes for itself
RESERVED = (
    "messages", "question", "system", "conversation", "add_generation_prompt", "continue_final_message",
    "chat_template", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "strftime_now", "bos_token", "eos_token",
)  # fmt: skip
Messages = tuple[tuple[str, str], ...]


def tokens(question: str, data: Data, tokenizer, messages: Messages = ()) -> tuple[int, ...]:
    """The ids the model reads. `messages`: the chat a question came in; data.system precedes one without.

    `plain`: the system text, the examples and the question, a line break after each, and before all of it the
    token that begins a text where the tokenizer puts one there. `chat`: the model's template. A file: see
    `compiled`. Then data.prefill.
    """
    text = written(question, data, tokenizer, messages)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = first_token(tokenizer) if data.template == "plain" else None
    if begin is not None:
        ids = [begin, *ids]
    return tuple(ids)


def bare(data: Data) -> Data:
    """The same for a question that is not of the recipe: without its examples and the answer's beginning."""
    return data.model_copy(update={"few_shot": None, "prefill": None})


def written(question: str, data: Data, tokenizer, messages: Messages = ()) -> str:
    """The text whose tokens the model reads."""
    turns = chat(question, data, messages)
    if data.template == "plain":
        text = "".join(f"{said}\n" for _, said in turns)
    else:
        text = rendered(question, turns, data, tokenizer)
    return text + (data.prefill or "")


def chat(question: str, data: Data, messages: Messages = ()) -> Messages:
    """The turns the model is asked in: a system message first, then the examples, then the question's own."""
    turns = list(messages or (("user", question),))
    if data.system and turns[0][0] not in SYSTEM:
        turns.insert(0, ("system", data.system))
    instructing = 0
    while instructing < len(turns) and turns[instructing][0] in SYSTEM:
        instructing += 1
    examples = []
    for shot in data.few_shot or ():
        examples += [("user", shot.question), ("assistant", shot.answer)]
    return (*turns[:instructing], *examples, *turns[instructing:])


def question_of(turns: Messages) -> str:
    """A chat as a person reads it: the user's turn, or with more turns all but the system's, each under its
    role.
    """
    asked = [(role, text) for role, text in turns if role not in SYSTEM]
    if len(asked) == 1:
        return asked[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in asked)


def first_token(tokenizer) -> int | None:
    """The token that begins a text, where the tokenizer puts one there by itself or is set to (Gemma, Llama);
    None for one that has none or does not use it (Qwen).
    """
    begin = tokenizer.bos_token_id
    if begin is None:
        return None
    own = tokenizer("a")["input_ids"]
    wanted = bool(getattr(tokenizer, "add_bos_token", False)) or (len(own) > 0 and own[0] == begin)
    return begin if wanted else None


def check_template(data: Data, where: Callable[[str], str]) -> None:
    """No name and no file, or arguments that it does not read: ConfigError. A file that does not compile or
    shows no question: DataError. Whether the model's own reads them, `check_model` knows.
    """
    place = where("data.template")
    given = dict(data.chat_template_kwargs or {})
    for name in given:
        if name in RESERVED:
            what = f"a template has {name} from the chat itself"
            raise ConfigError(what, where=where(f"data.chat_template_kwargs.{name}"), fix="remove it")
    if data.template not in NAMED:
        compiled(data.template, place)
        check_read(given, Path(data.template).read_text("utf-8"), data.template, where)
    elif data.template == "plain":
        check_read(given, "", "plain", where)


def check_read(given: Mapping[str, Any], text: str, name: str, where: Callable[[str], str]) -> None:
    """Arguments that the text of a template does not read: ConfigError."""
    read = names_read(text) if given else set()
    for key in given:
        if key not in read:
            others = ", ".join(sorted(read - {*RESERVED, "raise_exception"})) or "none"
            what = f"the template {name} does not read {key!r}{nearest(key, sorted(read))}"
            fix = f"remove it; names that it reads besides the chat: {others}"
            raise ConfigError(what, where=where(f"data.chat_template_kwargs.{key}"), fix=fix)


def names_read(text: str) -> set[str]:
    """What a template reads and does not set itself."""
    from jinja2 import meta

    return meta.find_undeclared_variables(_environment().parse(text))


@lru_cache(maxsize=8)
def compiled(path: str, where: str = "data.template") -> Any:
    """A Jinja file, read once a process and rendered in Jinja's sandbox as transformers does chat templates.

    It sees `messages` (role and content, the system's first), `question`, `system` (its text, or empty),
    `bos_token`, `eos_token`, `add_generation_prompt` and `strftime_now`, so the file of a model's chat
    template fits too. One line break at its end is not part of it.
    """
    if not os.path.isfile(path):
        close = nearest(path, NAMED)
        fix = "use chat, plain, or the path of a Jinja file, relative to the current folder"
        raise ConfigError(f"no template {path!r}{close}", where=where, fix=fix)
    try:
        from jinja2 import TemplateError
    except ImportError:
        fix = 'pip install "lgrpo-lite[train]"'
        raise EnvironmentFault("a template file needs the package jinja2", where=where, fix=fix) from None
    try:
        text = Path(path).read_text("utf-8")
        read = names_read(text)
        template = _environment().from_string(text)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else path
        what = f"the template does not compile: {error}"
        raise DataError(what, where=place, fix="mend the template") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the template: {error}", where=path, fix="a UTF-8 text file") from None
    if not read & set(SHOWN):
        what = "the template does not show the question"
        raise DataError(what, where=path, fix="put {{ question }} into it, or read messages")
    return template


def _environment() -> Any:
    """As transformers has it for the templates of models."""
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for trainers that read it; here it is text."""

        tags: ClassVar = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _as_json
    return environment


def now() -> datetime:
    """The time to the second, as it was when this process first asked."""
    return _asked_first()


@cache
def _asked_first() -> datetime:
    return datetime.now().replace(microsecond=0)


def rendered(
    question: str, turns: Sequence[tuple[str, str]], data: Data, tokenizer, *, answering: bool = True
) -> str:
    """A chat by a template of Jinja; `answering`: up to where the answer begins."""
    messages = [{"role": role, "content": text} for role, text in turns]
    # what transformers gives to templates beside the chat; it would read the clock of the machine
    clock = (data.date or now()).strftime
    given = data.chat_template_kwargs or {}
    fix = "set data.system=null where the model knows no system message, or data.template to another"
    try:
        if data.template == "chat":
            if not tokenizer.chat_template:
                raise no_chat_template()
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answering, strftime_now=clock, **given
            )
        fix = "mend the template"
        return compiled(data.template).render(
            **given,
            messages=messages,
            question=question,
            system="\n\n".join(text for _, text in takewhile(_instructs, turns)),
            add_generation_prompt=answering,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
            strftime_now=clock,
        )
    except (DataError, EnvironmentFault):
        raise
    except Exception as error:  # a template is a program: it may raise anything, and says so in its own words
        what = f"the template refuses a question: {error}"
        raise DataError(what, where=f"data.template={data.template}", fix=fix) from error


def _instructs(turn: tuple[str, str]) -> bool:
    return turn[0] in SYSTEM


def no_chat_template() -> DataError:
    """What to raise where `chat` is asked of a model that has none."""
    fix = "set data.template=plain, or use an instruct model"
    return DataError("the model has no chat template", where="data.template=chat", fix=fix)


def _as_json(value: Any, **options: Any) -> str:
    """As transformers has the filter `tojson`: Jinja's own writes what HTML wants."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise(message: str) -> None:
    raise ValueError(message)
