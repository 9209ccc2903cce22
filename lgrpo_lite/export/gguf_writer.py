"""A GGUF file of the models inside the package, whose tokenizer llama.cpp's script does not know: one token a
byte, nothing merged.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

ARCHITECTURES = {"Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2}
# a setting of the file <- the key of config.json
NUMBERS = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
}  # fmt: skip
FILE_TYPES = {torch.float16: gguf.LlamaFileType.MOSTLY_F16, torch.float32: gguf.LlamaFileType.ALL_F32}
NORMAL, CONTROL = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL


def knows(folder: Path) -> bool:
    """Whether the model in `folder` is one of these: its architecture, and a tokenizer of single bytes."""
    config = _json(folder / "config.json")
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer.get("model") or {}
    before = tokenizer.get("pre_tokenizer") or {}
    known = (config.get("architectures") or [None])[0] in ARCHITECTURES
    bytes_alone = model.get("type") == "BPE" and not model.get("merges")
    plain = before.get("type") == "ByteLevel" and not before.get("add_prefix_space")
    return bool(known and bytes_alone and plain and not tokenizer.get("normalizer"))


def write(folder: Path, out: Path, name: str, matrices: torch.dtype) -> None:
    """The model that `folder` holds in transformers' format, as `out`: its matrices in f16 or f32, the rest
    in f32.
    """
    config = _json(folder / "config.json")
    kind = ARCHITECTURES[config["architectures"][0]]
    architecture = gguf.MODEL_ARCH_NAMES[kind]
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[matrices])
    for setting, key in NUMBERS.items():
        writer.add_uint32(f"{architecture}.{setting}", config[key])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _vocabulary(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for tensor, numbers in _tensors(folder, matrices):
        found = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise RuntimeError(f"{tensor} has no name in a GGUF")
        writer.add_tensor(found, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    tokenizer = _json(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, NORMAL)
    for added in tokenizer["added_tokens"]:
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    numbers = {text: number for number, text in texts.items()}
    end = settings["eos_token"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([kinds.get(i, gguf.TokenType.UNUSED) for i in range(size)])
    writer.add_token_merges([f"{end} {end}"])  # there has to be one; no text holds these two as letters
    writer.add_eos_token_id(numbers[end])
    if settings.get("pad_token"):
        writer.add_pad_token_id(numbers[settings["pad_token"]])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text("utf-8"))


def _tensors(folder: Path, matrices: torch.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                tensor = opened.get_tensor(name)
                kind = matrices if tensor.ndim > 1 else torch.float32
                yield name, tensor.to(kind).numpy()


def _json(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}
