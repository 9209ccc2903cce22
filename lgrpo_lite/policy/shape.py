"""A model as numbers, from its config.json: a folder's, one in the Hub's cache, or one
of models/shapes. No torch here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.machine.hub import cached_snapshot
from lgrpo_lite.policy.families import (
    FAMILIES,
    LOADED_BESIDE,
    Block,
    Family,
    Linear,
    blocks_of,
    heads_of,
    vision_of,
)
from lgrpo_lite.policy.gguf import is_gguf, local_file, on_hub, read_header
from lgrpo_lite.policy.gguf_config import config_of_header
from lgrpo_lite.recipe.schema import Model

BUILTIN = "builtin:"  # before the name of a model inside the package


@dataclass(frozen=True, slots=True)
class Shape:
    """`saved` is how a checkpoint was quantised, if it was; `beside`: elements of each parameter that is
    loaded beside the language model; `unknown`: what these numbers leave out, in sentences.
    """

    layers: int
    hidden: int
    inner: int  # of a token: where there are experts, of all that it takes
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None  # longest sequence, tokens
    tied: bool
    family: Family
    blocks: tuple[Block, ...]
    saved: Mapping[str, Any] | None = None
    beside: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Any, where: str = "model.id") -> "Shape":
        """From config.json as a mapping, or transformers' config. A type that is no row of FAMILIES, or a
        config that leaves a size out: ConfigError.
        """
        whole = config if isinstance(config, Mapping) else config.to_dict()
        c = settings(whole)
        kind = _text_type(c)
        if kind not in FAMILIES:
            what = f"the memory of a model of type {kind!r} is not known{nearest(kind, FAMILIES)}"
            raise ConfigError(what, where=where, fix=f"plan one of: {', '.join(sorted(FAMILIES))}")
        try:
            return cls._of(FAMILIES[kind], whole, _whole(FAMILIES[kind], whole, c))
        except (KeyError, TypeError, ZeroDivisionError, ValueError) as error:
            what = f"the config of a model of type {kind!r} is not whole: {error!r}"
            raise ConfigError(what, where=where, fix="download it again") from None

    @classmethod
    def _of(cls, family: Family, whole: Mapping[str, Any], c: Mapping[str, Any]) -> "Shape":
        heads, kv_heads, head_dim = heads_of(c)
        blocks = blocks_of(family, c)
        each = c["num_experts_per_tok"] if family.experts else 1
        beside, unknown = _beside(whole, c)
        if family.unmeasured:
            unknown.append(family.unmeasured)
        saved = whole.get("quantization_config") or c.get("quantization_config")
        method = (saved or {}).get("quant_method", "bitsandbytes")
        if method != "bitsandbytes":
            unknown.append(f"it was saved as {method}, which is not trained here: plan the model before that")
        return cls(
            len(blocks),
            c["hidden_size"],
            each * c["intermediate_size"],
            heads,
            kv_heads,
            head_dim,
            c["vocab_size"],
            c.get("max_position_embeddings"),
            bool(c.get("tie_word_embeddings")),
            family,
            blocks,
            saved,
            tuple(beside),
            tuple(unknown),
        )

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Of the block with most: what a pass takes is counted as if all were like it."""
        return max(self.blocks, key=lambda block: block.numbers).linears

    @property
    def named_linears(self) -> Iterator[tuple[str, Linear]]:
        """Every linear layer of every block, as transformers names it."""
        for i, block in enumerate(self.blocks):
            for linear in block.linears:
                yield f"model.layers.{i}.{linear.name}", linear

    @property
    def largest(self) -> int:
        """Numbers of the largest linear layer."""
        return max(linear.numbers for linear in self.linears)

    @property
    def attending(self) -> int:
        """Layers that keep keys and values of every token."""
        return sum(block.attends for block in self.blocks)

    @property
    def rest(self) -> int:
        """Numbers outside of linear layers: norms, biases, embeddings, a head not tied to them, what is
        loaded beside the language model.
        """
        return sum(sum(block.rest) for block in self.blocks) + sum(self.outer) + sum(self.beside)

    @property
    def outer(self) -> list[int]:
        """Elements of each parameter outside the blocks: last norm, embeddings, a head not tied to them."""
        return [self.hidden] + [self.vocabulary * self.hidden] * (1 if self.tied else 2)

    @property
    def parameters(self) -> list[int]:
        """Elements of every parameter."""
        sizes = [*self.outer, *self.beside]
        for block in self.blocks:
            sizes += [linear.numbers for linear in block.linears]
            sizes += block.rest
        return sizes


def settings(config: Any) -> Mapping[str, Any]:
    """Those of the language model: a model for text and images keeps them in a section of their own."""
    whole = config if isinstance(config, Mapping) else config.to_dict()
    return whole.get("text_config") or whole


def _text_type(c: Mapping[str, Any]) -> str:
    """The type of the language model; a config of text and images may leave out that it is one of text."""
    kind = str(c.get("model_type"))
    return f"{kind}_text" if f"{kind}_text" in FAMILIES else kind


def _whole(family: Family, whole: Mapping[str, Any], c: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the language model with what its config leaves out."""
    said = {key: value for key, value in c.items() if value is not None}
    tied = {"tie_word_embeddings": whole["tie_word_embeddings"]} if "tie_word_embeddings" in whole else {}
    return {**family.defaults, **tied, **said}


def _beside(whole: Mapping[str, Any], c: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """(elements of what is loaded beside the language model, what is not known of it)."""
    kind = whole.get("model_type")
    if "text_config" not in whole or (kind in LOADED_BESIDE and LOADED_BESIDE[kind] is None):
        return [], []
    if kind not in LOADED_BESIDE:
        return [], [f"what a model of type {kind!r} has beside its language model is not counted"]
    note = "its vision tower is counted as frozen; an adapter on all linear layers has some there too"
    return vision_of(whole, c["hidden_size"]), [note]


# ------------------------------------------------------------ where a config stands


def find_config(model: Model, where: str = "model.id") -> dict[str, Any]:
    """config.json of the recipe's model, what a GGUF file amounts to, or the shape of that name in the
    package. None of them: ConfigError.
    """
    if is_gguf(model.id) and on_hub(model.id) is None:
        return config_of_header(read_header(local_file(model.id, where), where), where)
    path = _config_path(model)
    if path is None and model.id.startswith(("/", ".")):
        fix = "give a folder with its config.json"
        raise ConfigError(f"there is no {model.id}/config.json", where=where, fix=fix)
    if path is None:
        known = ", ".join(sorted(shapes()))
        what = f"{model.id} is not on this machine, and its shape is not among: {known}"
        raise ConfigError(what, where=where, fix=FETCH)
    if isinstance(path, dict):
        return path
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        what = f"cannot read the model's config: {error}"
        raise ConfigError(what, where=str(path), fix="download it again") from None


FETCH = (
    "give a folder with its config.json; `lgrpo-lite plan … --fetch-config` reads that file of the Hub alone"
)


def is_known(model: Model) -> bool:
    """Whether `find_config` finds one."""
    return _config_path(model) is not None


def shapes() -> dict[str, dict[str, Any]]:
    """Configs in the package by model id, without -Instruct: an instructed model has its base's shape."""
    folder = resources.files("lgrpo_lite") / "models" / "shapes"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    configs = [json.loads(file.read_text("utf-8")) for file in files]
    return {config["_name_or_path"].removesuffix("-Instruct"): config for config in configs}


def _config_path(model: Model) -> Path | dict[str, Any] | None:
    folder = builtin_folder(model.id) if model.id.startswith(BUILTIN) else Path(model.id)
    if model.id.startswith(BUILTIN):
        return folder / "config.json" if folder else None
    for path in (folder, cached_snapshot(os.environ, model.id, model.revision)):
        if path is not None and os.path.isfile(path / "config.json"):  # pathlib raises on a name too long
            return path / "config.json"
    return shapes().get(model.id.removesuffix("-Instruct"))


def builtin_folder(name: str) -> Path | None:
    """The folder of `builtin:NAME` inside the package; None where there is none."""
    models = Path(str(resources.files("lgrpo_lite"))) / "models"
    folder = models / name.removeprefix(BUILTIN)
    return folder if os.path.isfile(folder / "config.json") else None
