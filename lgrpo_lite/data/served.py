"""The template of a run as a chat template that others render: transformers, vLLM, a GGUF's reader.

A model that is served reads what it read in training: system message and all. A conversation that brings a
system message of its own keeps that.
"""

import json
from pathlib import Path
from typing import Any

from lgrpo_lite.recipe.schema import Data

PLAIN = "{%- for message in messages %}{{- message['content'] + '\\n' }}{%- endfor %}"
HAS_SYSTEM = "messages and messages[0]['role'] in ['system', 'developer']"


def chat_template(data: Data, tokenizer: Any) -> str | None:
    """Jinja text that gives, for one question as the user's turn, what `template.tokens` gives; None: the
    tokenizer's own does already.
    """
    if data.template == "plain":
        return _begun(data) + PLAIN
    if data.template != "chat":
        own = Path(data.template).read_text("utf-8").removesuffix("\n")
        asked = "{%- set question = messages[-1]['content'] %}"
        return f"{asked}{{%- set system = {_literal(data.system or '')} %}}{_begun(data)}{own}"
    begun = _begun(data)
    return f"{begun}{tokenizer.chat_template}" if begun else None


def _begun(data: Data) -> str:
    """Puts the run's system message before a conversation that has none."""
    if not data.system:
        return ""
    turn = f"[{{'role': 'system', 'content': {_literal(data.system)}}}]"
    return (
        f"{{%- if not ({HAS_SYSTEM}) %}}{{%- set messages = {turn} + messages %}}{{%- endif %}}"
        "{{- '' }}"  # what follows begins where it begins: after a tag Jinja would drop a line break
    )


def _literal(text: str) -> str:
    """As Jinja reads it; it takes the escapes of JSON, but of signs above U+FFFF only Python's."""
    return json.dumps(text, ensure_ascii=False)
