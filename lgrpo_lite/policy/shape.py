"""A model as numbers, from its config.json: a folder's, one in the Hub's cache, or one
of models/shapes. No torch here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from lgrpo_lite.errors import ConfigError, nearest
from lgrpo_lite.policy.gguf import config_of_header, is_gguf, local_file, on_hub, read_header
from lgrpo_lite.recipe.schema import Model


class Linear(NamedTuple):
    """A linear layer of a block; layers of one `source` read the same tensor."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    source: str

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Family:
    """What a model type adds to Llama's block; a text names the key of its config that decides."""

    qkv_bias: bool | str = "attention_bias"
    o_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = False
    head_norms: bool = False
    fused: bool = False


FAMILIES = {
    "llama": Family(mlp_bias="mlp_bias"),
    "granite": Family(mlp_bias="mlp_bias"),
    "smollm3": Family(mlp_bias="mlp_bias"),
    "mistral": Family(False, False),
    "phi3": Family(False, False, fused=True),
    "qwen2": Family(True, False),
    "qwen3": Family(head_norms=True),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """`linears` are those of one block; `saved` is how a checkpoint was quantised, if it was."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int | None  # longest sequence, tokens
    tied: bool
    head_norms: bool
    linears: tuple[Linear, ...]
    saved: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, config: Any, where: str = "model.id") -> "Shape":
        """From config.json as a mapping, or transformers' config. A type not in FAMILIES: ConfigError."""
        c = settings(config)
        kind = str(c.get("model_type"))
        if kind not in FAMILIES:
            what = f"the memory of a model of type {kind!r} is not known{nearest(kind, FAMILIES)}"
            raise ConfigError(what, where=where, fix=f"plan one of: {', '.join(sorted(FAMILIES))}")
        heads, kv_heads, head_dim = heads_of(c)
        return cls(
            c["num_hidden_layers"],
            c["hidden_size"],
            c["intermediate_size"],
            heads,
            kv_heads,
            head_dim,
            c["vocab_size"],
            c.get("max_position_embeddings"),
            bool(c.get("tie_word_embeddings")),
            FAMILIES[kind].head_norms,
            tuple(_linears(FAMILIES[kind], c)),
            c.get("quantization_config"),
        )

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def largest(self) -> int:
        """Numbers of the largest linear layer."""
        return max(linear.numbers for linear in self.linears)

    @property
    def vectors(self) -> list[int]:
        """Elements of each norm and bias of one block. A norm of heads has a weight for each of a head's."""
        norms = [self.hidden] * 2
        if self.head_norms:
            norms += [self.head_dim] * 2
        return norms + [linear.outputs for linear in self.linears if linear.bias]

    @property
    def outer(self) -> list[int]:
        """Elements of each parameter outside the blocks: last norm, embeddings, a head not tied to them."""
        return [self.hidden] + [self.vocabulary * self.hidden] * (1 if self.tied else 2)

    @property
    def parameters(self) -> list[int]:
        """Elements of every parameter."""
        return ([linear.numbers for linear in self.linears] + self.vectors) * self.layers + self.outer


def settings(config: Any) -> Mapping[str, Any]:
    """Those of the language model: a model for text and images keeps them in a section of their own."""
    whole = config if isinstance(config, Mapping) else config.to_dict()
    return whole.get("text_config") or whole


def heads_of(c: Mapping[str, Any]) -> tuple[int, int, int]:
    """Query heads, heads of keys and values, and the width of one."""
    heads = c["num_attention_heads"]
    kv_heads = c.get("num_key_value_heads") or heads
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    return heads, kv_heads, head_dim


def _linears(family: Family, c: Mapping[str, Any]) -> Iterator[Linear]:
    def has(bias: bool | str) -> bool:
        return bool(c.get(bias)) if isinstance(bias, str) else bias

    heads, kv_heads, head_dim = heads_of(c)
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    query, key = heads * head_dim, kv_heads * head_dim
    if family.fused:
        attention = {"qkv": query + 2 * key}
        mlp = {"gate_up": 2 * inner}
    else:
        attention = {"q": query, "k": key, "v": key}
        mlp = {"gate": inner, "up": inner}
    for name, width in attention.items():
        yield Linear(f"self_attn.{name}_proj", hidden, width, has(family.qkv_bias), "attention")
    yield Linear("self_attn.o_proj", query, hidden, has(family.o_bias), "heads")
    for name, width in mlp.items():
        yield Linear(f"mlp.{name}_proj", hidden, width, has(family.mlp_bias), "mlp")
    yield Linear("mlp.down_proj", inner, hidden, has(family.mlp_bias), "inner")


# ------------------------------------------------------------ where a config stands


def find_config(model: Model, where: str = "model.id") -> dict[str, Any]:
    """config.json of the recipe's model, what a GGUF file amounts to, or the shape of that name in the
    package. None of them: ConfigError.
    """
    if is_gguf(model.id) and on_hub(model.id) is None:
        return config_of_header(read_header(local_file(model.id, where), where), where)
    path = _config_path(model)
    if path is None:
        known = ", ".join(sorted(shapes()))
        what = f"{model.id} is not on this machine, and its shape is not among: {known}"
        raise ConfigError(what, where=where, fix="give a folder with its config.json, or download it")
    if isinstance(path, dict):
        return path
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        what = f"cannot read the model's config: {error}"
        raise ConfigError(what, where=str(path), fix="download it again") from None


def shapes() -> dict[str, dict[str, Any]]:
    """Configs in the package by model id, without -Instruct: an instructed model has its base's shape."""
    folder = resources.files("lgrpo_lite") / "models" / "shapes"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    configs = [json.loads(file.read_text("utf-8")) for file in files]
    return {config["_name_or_path"].removesuffix("-Instruct"): config for config in configs}


def _config_path(model: Model) -> Path | dict[str, Any] | None:
    if model.id.startswith("builtin:"):
        models = Path(str(resources.files("lgrpo_lite"))) / "models"
        path = models / model.id.removeprefix("builtin:") / "config.json"
        return path if os.path.isfile(path) else None
    for path in (Path(model.id) / "config.json", *_cached(model)):
        if os.path.isfile(path):  # where pathlib raises on a name that is too long
            return path
    return shapes().get(model.id.removesuffix("-Instruct"))


def _cached(model: Model) -> Iterator[Path]:
    """Where huggingface_hub would keep it; its own rules, without importing it."""
    home = os.environ.get("HF_HOME")
    if not home:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = Path(cache).expanduser() / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = hub / f"models--{model.id.replace('/', '--')}"
    revision = model.revision or "main"
    reference = folder / "refs" / revision
    if os.path.isfile(reference):
        revision = reference.read_text("utf-8").strip()
    yield folder / "snapshots" / revision / "config.json"
