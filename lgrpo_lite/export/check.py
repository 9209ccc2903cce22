"""Is what was exported all that was given, and does it read what the policy read?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.data.template import now, tokens
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.export.given import Given
from lgrpo_lite.recipe.schema import Data
from lgrpo_lite.types import Prompt

ASKED = 8  # prompts whose token ids are compared


def demand_whole(folder: Path, given: Given) -> None:
    """VerificationError where `folder` lacks a tensor that the base has, or its `architectures`."""
    architectures = json.loads((folder / "config.json").read_text("utf-8")).get("architectures")
    before = given.config.get("architectures")
    if before and architectures != before:
        raise _lost(f"architectures, which were {before} and are {architectures}", folder)
    written: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                written |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _lost(f"{file.name}, which cannot be read: {error}", folder) from error
    missing = sorted(given.files.keys() - written.keys())
    if missing:
        raise _lost(
            f"{len(missing)} of the {len(given.files)} tensors of its base, e.g. {missing[0]}", folder
        )
    for name in given.files:
        shape = given.shape(name)
        if shape is not None and shape != written[name]:
            raise _lost(f"the shape of {name}, which was {shape} and is {written[name]}", folder)


def model_class(folder: Path) -> Any:
    """The class that its `architectures` names, as those who serve it choose; else what fits its config."""
    architectures = json.loads((folder / "config.json").read_text("utf-8")).get("architectures") or [""]
    named = getattr(transformers, architectures[0], None)
    if named is None or not getattr(named, "can_generate", lambda: False)():
        return AutoModelForCausalLM
    return named


def demand_loaded(info: dict[str, Any], folder: Path) -> None:
    """VerificationError where loading made weights up, by transformers' `output_loading_info`."""
    made_up = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if made_up:
        raise _lost(f"{len(made_up)} weights that loading it would make up, e.g. {made_up[0]}", folder)


def demand_same_prompts(folder: Path, data: Data, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
    """VerificationError where the tokenizer in `folder`, by its chat template, gives a question other token
    ids than the policy read.
    """
    exported = AutoTokenizer.from_pretrained(folder)
    clock = (data.date or now()).strftime
    for prompt in prompts[:ASKED]:
        asked = [{"role": "user", "content": prompt.text}]
        try:
            text = exported.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True, strftime_now=clock
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise _other(f"its template fails in transformers: {error}", folder) from error
        ids = tuple(exported(text, add_special_tokens=False)["input_ids"])
        expected = tokens(prompt.text, data, tokenizer)
        if ids != expected:
            shown, wanted = exported.decode(ids), tokenizer.decode(expected)
            raise _other(f"by its chat template it reads {shown!r}, trained was {wanted!r}", folder)


def _other(what: str, folder: Path) -> VerificationError:
    fix = "nothing was written; report this template. What was trained is in the run's checkpoints"
    what = f"the export would not read what the policy read: {what}"
    return VerificationError(what, where=str(folder), fix=fix)


def _lost(what: str, folder: Path) -> VerificationError:
    fix = "nothing was written; report this model, or export adapter"
    return VerificationError(f"the export would lose {what}", where=str(folder), fix=fix)
