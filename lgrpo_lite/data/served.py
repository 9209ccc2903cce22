"""The template of a run as a chat template that others render: transformers, vLLM, a GGUF's reader.

A model that is served reads what it read in training: system message, examples, the answer's beginning,
thinking switched as it was. A conversation with a system message of its own keeps that, who names an argument
of the template is obeyed, and a template that reads the clock reads the one of the day.
"""

import json
from pathlib import Path
from typing import Any

from lgrpo_lite.data.template import first_token
from lgrpo_lite.recipe.schema import Data

PLAIN = "{%- for message in messages %}{{- message['content'] + '\\n' }}{%- endfor %}"
INSTRUCTED = "messages and messages[0]['role'] in ['system', 'developer']"


def chat_template(data: Data, tokenizer: Any) -> str | None:
    """Jinja text that gives, for one question as the user's turn, what `template.tokens` gives; None: the
    tokenizer's own does already.
    """
    begun = _arguments(data) + _turns(data)
    if data.template == "chat":
        if not begun and not data.prefill:
            return None
        own = str(tokenizer.chat_template)
    elif data.template == "plain":
        own = PLAIN if first_token(tokenizer) is None else "{{- bos_token }}" + PLAIN
    else:
        own = Path(data.template).read_text("utf-8")
        own_or = f"messages[0]['content'] if {INSTRUCTED} else {_literal(data.system or '')}"
        begun = f"{{%- set system = {own_or} %}}{_asked()}{begun}"
    if begun:
        begun += "\n"  # trimmed after a tag: what follows stands at the beginning of a line, as it did
    if data.prefill:
        own = own.removesuffix("\n") + f"{{{{ {_literal(data.prefill)} if add_generation_prompt else '' }}}}"
    return begun + own


def _asked() -> str:
    return "{%- set question = messages[-1]['content'] %}"


def _arguments(data: Data) -> str:
    """data.chat_template_kwargs, where whoever renders it names no others."""
    given = data.chat_template_kwargs or {}
    parts = [
        f"{{%- if {name} is not defined %}}{_set(name, value)}{{%- endif %}}" for name, value in given.items()
    ]
    return "".join(parts)


def _turns(data: Data) -> str:
    """The run's system message, where a conversation has none, and its examples after that."""
    text = ""
    if data.system:
        turn = [{"role": "system", "content": data.system}]
        text += (
            f"{{%- if not ({INSTRUCTED}) %}}{{%- set messages = {_literal(turn)} + messages %}}{{%- endif %}}"
        )
    shots = []
    for shot in data.few_shot or ():
        shots.append({"role": "user", "content": shot.question})
        shots.append({"role": "assistant", "content": shot.answer})
    if shots:
        text += f"{{%- set instructing = 1 if {INSTRUCTED} else 0 %}}"
        around = f"messages[:instructing] + {_literal(shots)} + messages[instructing:]"
        text += f"{{%- set messages = {around} %}}"
    return text


def _set(name: str, value: Any) -> str:
    return f"{{%- set {name} = {_literal(value)} %}}"


def _literal(value: Any) -> str:
    """As Jinja writes it. It takes the escapes of JSON, but of signs above U+FFFF only Python's."""
    if isinstance(value, dict):
        items = [f"{_literal(key)}: {_literal(item)}" for key, item in value.items()]
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
