"""A question -> the token ids the model reads: by its chat template, plain text, or a user's Jinja file."""

import json
import os
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, nearest
from lgrpo_lite.recipe.schema import Data

NAMED = ("chat", "plain")
SHOWN = ("question", "messages")  # one of which a template file reads
Messages = tuple[tuple[str, str], ...]


def tokens(question: str, data: Data, tokenizer, messages: Messages = ()) -> tuple[int, ...]:
    """The ids the model reads. `messages`: the chat a question came in; data.system precedes one without.

    `plain`: system text and question, a line break after each. `chat`: the model's template. A file: see
    `compiled`.
    """
    messages = messages or (("user", question),)
    turns = [{"role": role, "content": text} for role, text in messages]
    if data.system and turns[0]["role"] not in ("system", "developer"):
        turns.insert(0, {"role": "system", "content": data.system})
    if data.template == "plain":
        text = "".join(turn["content"] + "\n" for turn in turns)
    else:
        text = _rendered(question, turns, data, tokenizer)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_template(data: Data, where: str) -> None:
    """No name and no file: ConfigError. A file that does not compile or shows no question: DataError."""
    if data.template not in NAMED:
        compiled(data.template, where)


@lru_cache(maxsize=8)
def compiled(path: str, where: str = "data.template") -> Any:
    """A Jinja file, read once a process and rendered in Jinja's sandbox as transformers does chat templates.

    It sees `messages` (role and content, the system's first), `question`, `system` (data.system or empty),
    `bos_token`, `eos_token`, `add_generation_prompt` and `strftime_now`, so the file of a model's chat
    template fits too. One line break at its end is not part of it.
    """
    if not os.path.isfile(path):
        close = nearest(path, NAMED)
        fix = "use chat, plain, or the path of a Jinja file, relative to the current folder"
        raise ConfigError(f"no template {path!r}{close}", where=where, fix=fix)
    try:
        from jinja2 import TemplateError, meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        fix = 'pip install "lgrpo-lite[train]"'
        raise EnvironmentFault("a template file needs the package jinja2", where=where, fix=fix) from None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _as_json
    try:
        text = Path(path).read_text("utf-8")
        read = meta.find_undeclared_variables(environment.parse(text))
        template = environment.from_string(text)
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


def now() -> datetime:
    """The time to the second, as it was when this process first asked."""
    return _asked_first()


@cache
def _asked_first() -> datetime:
    return datetime.now().replace(microsecond=0)


def _rendered(question: str, turns: list[dict[str, str]], data: Data, tokenizer) -> str:
    # what transformers gives to templates beside the chat; it would read the clock of the machine
    clock = (data.date or now()).strftime
    fix = "set data.system=null where the model knows no system message, or data.template to another"
    try:
        if data.template == "chat":
            if not tokenizer.chat_template:
                raise _no_chat_template()
            return tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, strftime_now=clock
            )
        fix = "mend the template"
        return compiled(data.template).render(
            messages=turns,
            question=question,
            system=data.system or "",
            add_generation_prompt=True,
            bos_token=tokenizer.bos_token or "",
            eos_token=tokenizer.eos_token or "",
            strftime_now=clock,
        )
    except (DataError, EnvironmentFault):
        raise
    except Exception as error:  # a template is a program: it may raise anything, and says so in its own words
        what = f"the template refuses a question: {error}"
        raise DataError(what, where=f"data.template={data.template}", fix=fix) from error


def _no_chat_template() -> DataError:
    fix = "set data.template=plain, or use an instruct model"
    return DataError("the model has no chat template", where="data.template=chat", fix=fix)


def _as_json(value: Any, **options: Any) -> str:
    """As transformers has the filter `tojson`: Jinja's own writes what HTML wants."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _raise(message: str) -> None:
    raise ValueError(message)
