"""The head of a GGUF file: its metadata and its table of tensors. No torch.

A file that is cut or broken is refused here, in milliseconds.
"""

import math
import os
import struct
from collections.abc import Mapping
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
