"""The config.json that a GGUF file amounts to. No torch.

A file in parts, or of a kind that would come over wrong, is refused here: what transformers' loader does not
read from a GGUF it leaves out without a word.
"""

import math
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.gguf import FOLDER, WHOLE, Header, is_gguf, local_file, on_hub, read_header

# architecture of a file -> model_type and class of transformers; a test holds each to known weights
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
EPSILON = "attention.layer_norm_rms_epsilon"
WINDOW = "attention.sliding_window"
SCALING = "rope.scaling.type"  # of the settings that are read the only one that is a text
EMBEDDING = "token_embd.weight"
# a setting of the file -> the key of config.json
SETTINGS = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", EPSILON: "rms_norm_eps",
}  # fmt: skip
NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length")
# settings that are read below, one by one
OTHERS = (
    "vocab_size", "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "attention.value_length",
    WINDOW, "rope.scaling.factor", SCALING,
)  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"  # a tensor that is no weight: what Llama 3.x does to its positions
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
GEMMA_27B = 62  # layers; its attention is scaled by a number that the file does not hold


def check_gguf(model_id: str, where: str) -> None:
    """All that can be said of a GGUF without loading it; nothing of another model, or of one on the Hub.

    A file that is not there, a folder in its place, a broken or cut file, one that would come over wrong:
    ConfigError.
    """
    if is_gguf(model_id) and on_hub(model_id) is None:
        config_of_header(read_header(local_file(model_id, where), where), where)


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
    for name in (EPSILON, WINDOW) if header.architecture == "gemma3" else (EPSILON,):
        if header.setting(name) is None:  # a default would be another model
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
    config["vocab_size"] = _vocabulary(header, where)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config |= (
        _gemma3(header) if header.architecture == "gemma3" else {"rope_parameters": _rope(header, where)}
    )
    return config


def _vocabulary(header: Header, where: str) -> int:
    """Tokens of the tokenizer, which are the rows of the embedding."""
    tokens = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None:
        raise ConfigError(f"{header.path} lacks {EMBEDDING}", where=where, fix=WHOLE)
    if embedding.shape[0] != tokens:
        what = f"{header.path} has {tokens} tokens and embeds {embedding.shape[0]}"
        raise ConfigError(what, where=where, fix=FOLDER)
    return tokens


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
    for name in known:  # a list has a value for each layer
        if name != SCALING and not isinstance(header.setting(name, 0), int | float):
            lost.append(prefix + name)
    heads = header.setting("attention.head_count")
    width = header.setting("attention.key_length", header.setting("embedding_length") // heads)
    for name in ("rope.dimension_count", "attention.value_length"):
        if header.setting(name, width) != width:
            lost.append(prefix + name)
    scaling = header.setting(SCALING, "none")
    if scaling not in ("none", "linear" if header.architecture == "gemma3" else "none"):
        lost.append(prefix + SCALING)
    windowed = header.setting(WINDOW, 0)
    if windowed and header.architecture != "gemma3":
        lost.append(prefix + WINDOW)
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
    if header.setting(SCALING, "none") == "linear":
        everywhere = {"rope_type": "linear", "factor": _short(header.setting("rope.scaling.factor", 1.0))}
    everywhere["rope_theta"] = _short(header.setting("rope.freq_base", 1e6))
    near = {"rope_type": "default", "rope_theta": _short(header.setting("rope.freq_base_swa", 1e4))}
    window = header.setting(WINDOW)
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
