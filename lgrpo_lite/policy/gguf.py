"""The head of a GGUF file: its metadata, its table of tensors, and the config.json they amount to. No torch.

A file that is cut, in parts, or of a kind that would come over wrong is refused here, in milliseconds: what
transformers' loader does not read from a GGUF it leaves out without a word.
"""

import math
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError

ENDING = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
WHOLE = "download it again, and compare its sha256 with the one on its page"
FOLDER = "use the folder or the Hub name of the model it was made from"
# of a value: its type's number -> how struct reads it
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
# of a tensor: its type's number -> name, numbers a block, bytes a block
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
# architecture of a file -> model_type and class of transformers; a test holds each to known weights
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
# a setting of the file -> the key of config.json
SETTINGS = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length")
# settings that are read below, one by one
OTHERS = (
    "vocab_size", "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "attention.value_length",
    "attention.sliding_window", "rope.scaling.type", "rope.scaling.factor",
)  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"  # a tensor that is no weight: what Llama 3.x does to its positions
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA_27B = 62  # layers; its attention is scaled by a number that the file does not hold


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file: its type, its shape in torch's order, where its bytes begin in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    size: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture"))

    def setting(self, name: str, default: Any = None) -> Any:
        """Of the architecture: `block_count` is llama.block_count in a Llama."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    @property
    def stored_as(self) -> str:
        """The types of its weights, the one with the most numbers first: 'Q4_1, Q8_0'. Norms do not count."""
        numbers: dict[str, int] = {}
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                numbers[tensor.kind] = numbers.get(tensor.kind, 0) + tensor.numbers
        return ", ".join(sorted(numbers, key=lambda kind: -numbers[kind]))

    @property
    def quantised(self) -> bool:
        return any(tensor.kind not in FLOATS for tensor in self.tensors.values())

    @property
    def numbers(self) -> int:
        return sum(tensor.numbers for tensor in self.tensors.values())


# ------------------------------------------------------------ what model.id may be


def is_gguf(model_id: str) -> bool:
    """A GGUF file by its name: a local one or `owner/repo/file.gguf` of the Hub."""
    return model_id.lower().endswith(ENDING)


def on_hub(model_id: str) -> tuple[str, str] | None:
    """(repository, file in it) of `owner/repo/file.gguf`; None: it can only be a path."""
    parts = model_id.split("/")
    if len(parts) < 3 or not all(parts) or parts[0] in (".", "..", "~") or os.path.exists(model_id):
        return None
    return "/".join(parts[:2]), "/".join(parts[2:])


def check_gguf(model_id: str, where: str) -> None:
    """All that can be said of a GGUF without loading it; nothing of another model, or of one on the Hub.

    A file that is not there, a folder in its place, a broken or cut file, one that would come over wrong:
    ConfigError.
    """
    if is_gguf(model_id) and on_hub(model_id) is None:
        config_of_header(read_header(local_file(model_id, where), where), where)


def local_file(model_id: str, where: str) -> Path:
    """The path of a GGUF on this machine. Not there or not a file: ConfigError."""
    path = Path(model_id).expanduser()
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        what, fix = f"{model_id} is a folder, not a GGUF file", "name the file in it, or rename the folder"
    else:
        what, fix = f"no file {model_id}", "give the path of a GGUF file, or owner/repo/file.gguf of the Hub"
    raise ConfigError(what, where=where, fix=fix)


# ------------------------------------------------------------ the head of a file


def read_header(path: Path, where: str = "model.id") -> Header:
    """Metadata and table of tensors. Not a GGUF, broken, cut or one of several parts: ConfigError."""
    try:
        state = path.stat()
        return _header(path.resolve(), state.st_size, state.st_mtime_ns)
    except (struct.error, OverflowError, MemoryError, RecursionError):  # counts and lengths of nothing
        what = f"{path} is broken: it ends inside its own metadata"
        raise ConfigError(what, where=where, fix=WHOLE) from None
    except (OSError, ValueError) as error:
        what = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(what, where=where, fix=WHOLE) from None


@lru_cache(maxsize=4)
def _header(path: Path, size: int, _changed: int) -> Header:
    if size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as blob:
        if blob[:4] != MAGIC:
            raise ValueError("it does not begin with the letters GGUF, so it is no GGUF file")
        reader = _Reader(blob, 4)
        version = reader.number("I")
        if version not in VERSIONS:
            raise ValueError(f"it is GGUF version {version}, versions 2 and 3 are read")
        tensors, settings = reader.number("Q"), reader.number("Q")
        metadata = {}
        for _ in range(settings):
            key = reader.text()
            metadata[key] = reader.value(reader.number("I"))
        entries = [reader.entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its tensors are aligned to {alignment!r} bytes")
        begin = -(-reader.at // alignment) * alignment
    table = {}
    for name, shape, kind, offset in entries:
        if kind not in TYPES:
            raise ValueError(f"its tensor {name} is of type {kind}, which is not known")
        title, block, width = TYPES[kind]
        table[name] = Stored(title, shape, begin + offset, math.prod(shape) // block * width)
    end = max((tensor.begin + tensor.size for tensor in table.values()), default=0)
    if end > size:
        raise ValueError(f"it is cut: {size:,} bytes of {end:,}")
    return Header(path, metadata, table)


class _Reader:
    """Reads on from `at`. Past the end: struct.error."""

    def __init__(self, blob: mmap, at: int):
        self.blob = blob
        self.at = at

    def number(self, form: str) -> Any:
        [value] = self.numbers(form, 1)
        return value

    def numbers(self, form: str, count: int) -> tuple:
        layout = f"<{count}{form}"
        values = struct.unpack_from(layout, self.blob, self.at)
        self.at += struct.calcsize(layout)
        return values

    def text(self) -> str:
        length = self.number("Q")
        if self.at + length > len(self.blob):
            raise struct.error("past the end")
        self.at += length
        return self.blob[self.at - length : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"a setting is of type {kind}, which is not known")
        inner, count = self.number("I"), self.number("Q")
        if count > len(self.blob):  # each takes a byte at least
            raise struct.error("past the end")
        if inner in NUMBERS:
            return self.numbers(NUMBERS[inner], count)
        return [self.value(inner) for _ in range(count)]

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        shape = self.numbers("Q", self.number("I"))
        kind, offset = self.number("I"), self.number("Q")
        return name, shape[::-1], kind, offset  # ggml counts the dimension that moves fastest first


# ------------------------------------------------------------ the config that it amounts to


def config_of_header(header: Header, where: str = "model.id") -> dict[str, Any]:
    """config.json of the file. A part, an adapter, a family that is not read, a setting that would be lost:
    ConfigError.
    """
    _whole_model(header, where)
    if header.architecture not in FAMILIES:
        what = f"a GGUF of the architecture {header.architecture!r} is not read"
        raise ConfigError(what, where=where, fix=f"{FOLDER}; read are: {', '.join(FAMILIES)}")
    for name in NEEDED:
        if not isinstance(header.setting(name), int) or header.setting(name) < 1:
            raise ConfigError(f"{header.path} names no {name}", where=where, fix=WHOLE)
    lost = _lost(header)
    if lost:
        what = f"{header.path} sets what would be lost: {', '.join(lost)}"
        raise ConfigError(what, where=where, fix=FOLDER)
    model_type, name = FAMILIES[header.architecture]
    config: dict[str, Any] = {"model_type": model_type, "architectures": [name]}
    for setting, key in SETTINGS.items():
        value = header.setting(setting)
        if value is not None:
            config[key] = _short(value) if isinstance(value, float) else value
    config["vocab_size"] = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config |= (
        _gemma3(header) if header.architecture == "gemma3" else {"rope_parameters": _rope(header, where)}
    )
    return config


def _whole_model(header: Header, where: str) -> None:
    parts = header.metadata.get("split.count", 0)
    if parts > 1:
        what = f"{header.path} is one of {parts} parts"
        fix = "join them with llama.cpp's `llama-gguf-split --merge`, and name the result"
        raise ConfigError(what, where=where, fix=fix)
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or not header.tensors:
        what = f"{header.path} holds {'no weights' if not header.tensors else f'no model but: {kind}'}"
        raise ConfigError(what, where=where, fix="name the GGUF of the language model")


def _lost(header: Header) -> list[str]:
    """Settings that change what the model computes and that nobody reads."""
    prefix = f"{header.architecture}."
    known = (*SETTINGS, *OTHERS)
    lost = [
        key for key in header.metadata if key.startswith(prefix) and key.removeprefix(prefix) not in known
    ]
    heads = header.setting("attention.head_count")
    width = header.setting("attention.key_length", header.setting("embedding_length") // heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if header.setting(name, width) != width:
            lost.append(prefix + name)
    scaling = header.setting("rope.scaling.type", "none")
    if scaling not in ("none", "linear" if header.architecture == "gemma3" else "none"):
        lost.append(prefix + "rope.scaling.type")
    windowed = header.setting("attention.sliding_window", 0)
    if windowed and header.architecture != "gemma3":
        lost.append(prefix + "attention.sliding_window")
    if header.architecture == "gemma3" and header.setting("block_count") == GEMMA_27B:
        lost.append("the scale of Gemma 3 27B's attention")
    return lost


def _rope(header: Header, where: str) -> dict[str, Any]:
    """Of a Llama 3.x from the factors in the file: they are held to the rule that they were made by."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": _short(header.setting("rope.freq_base", 1e4)),
    }
    stored = header.tensors.get(ROPE_FACTORS)
    if stored is None:
        return rope
    if stored.kind != "F32":
        raise ConfigError(f"{header.path} holds {ROPE_FACTORS} in {stored.kind}", where=where, fix=FOLDER)
    with header.path.open("rb") as file:
        file.seek(stored.begin)
        factors = struct.unpack(f"<{stored.numbers}f", file.read(stored.size))
    rope |= {"rope_type": "llama3", "factor": round(max(factors), 4), **LLAMA3}
    expected = llama3_factors(rope, 2 * stored.numbers)
    if any(abs(a - b) > 1e-3 * b for a, b in zip(factors, expected, strict=True)):
        what = f"{header.path} scales its positions by factors that are not those of a Llama 3"
        raise ConfigError(what, where=where, fix=FOLDER)
    return rope


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> list[float]:
    """What the frequency of each pair of a head's dimensions is divided by, under `rope_type: llama3`."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, head_dim, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)  # of a wave, in tokens
        smooth = min(max((original / length - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return factors


def _gemma3(header: Header) -> dict[str, Any]:
    everywhere: dict[str, Any] = {"rope_type": "default"}
    if header.setting("rope.scaling.type", "none") == "linear":
        everywhere = {"rope_type": "linear", "factor": _short(header.setting("rope.scaling.factor", 1.0))}
    everywhere["rope_theta"] = _short(header.setting("rope.freq_base", 1e6))
    near = {"rope_type": "default", "rope_theta": _short(header.setting("rope.freq_base_swa", 1e4))}
    window = header.setting("attention.sliding_window")
    return {
        "rope_parameters": {"full_attention": everywhere, "sliding_attention": near},
        "query_pre_attn_scalar": header.setting("attention.key_length", 256),
        **({"sliding_window": window} if window else {}),
    }


def _short(value: float) -> float:
    """The shortest decimal that is this 32-bit number: 1e-06 and not 9.999999974752427e-07."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        with suppress(OverflowError):
            if struct.pack("<f", short) == struct.pack("<f", value):
                return short
    return value
