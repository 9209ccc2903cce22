"""A fault in a GGUF file, written over what stands there: as a converter could have made it, and said nothing."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np


def _set(reader: gguf.GGUFReader, key: str, value: float) -> None:
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value


def _swapped_tokens(reader: gguf.GGUFReader, one: str, other: str) -> None:
    """Two tokens of one letter change places."""
    field = reader.fields["tokenizer.ggml.tokens"]
    places = {}
    for i in field.data:
        places.setdefault(bytes(field.parts[i]).decode(), field.parts[i])
    first, second = places[one], places[other]
    first[:], second[:] = second.copy(), first.copy()


def _template(reader: gguf.GGUFReader) -> None:
    field = reader.fields["tokenizer.chat_template"]
    text = field.parts[field.data[0]]
    text[-1:] = np.frombuffer(b"?", np.uint8)


def _swapped_tensors(reader: gguf.GGUFReader, one: str, other: str) -> None:
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    kept = tensors[one].copy()
    tensors[one][:] = tensors[other]
    tensors[other][:] = kept


FAULTS: dict[str, Callable[[gguf.GGUFReader], None]] = {
    "tokenizer": lambda reader: _swapped_tokens(reader, "3", "8"),
    "template": _template,
    "eos": lambda reader: _set(reader, "tokenizer.ggml.eos_token_id", 12),
    "swapped tensor": lambda reader: _swapped_tensors(reader, "blk.0.attn_k.weight", "blk.1.attn_k.weight"),
    "context length": lambda reader: _set(reader, f"{_architecture(reader)}.context_length", 77),
    "norm": lambda reader: _set(reader, f"{_architecture(reader)}.attention.layer_norm_rms_epsilon", 1e-2),
    "rope": lambda reader: _set(reader, f"{_architecture(reader)}.rope.freq_base", 500.0),
}
OF_ADAPTER: dict[str, Callable[[gguf.GGUFReader], None]] = {
    "scale": lambda reader: _set(reader, "adapter.lora.alpha", 24.0),
    "swapped tensor": lambda reader: _swapped_tensors(
        reader, "blk.0.attn_k.weight.lora_b", "blk.1.attn_k.weight.lora_b"
    ),
}


def _architecture(reader: gguf.GGUFReader) -> str:
    field = reader.fields["general.architecture"]
    return bytes(field.parts[field.data[0]]).decode()


def plant(file: Path, fault: Callable[[gguf.GGUFReader], None]) -> None:
    reader = gguf.GGUFReader(file, "r+")
    fault(reader)
    reader.data.flush()
