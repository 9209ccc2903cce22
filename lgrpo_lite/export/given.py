"""The base model as it was given: its files, its tensors under their own names, its config as it is written.

What is exported is this, with the tensors in place that training changed. transformers may have read only a
part of it (the language model of one for text and images), and under other names.
"""

import json
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.dequantise import RECORD
from lgrpo_lite.policy.fetch import BESIDE, folder_of
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.schema import Model

# and what is of the base alone; its card says what the export's card takes from it
WRITTEN = ("config.json", "merge_report.json", "adapter_config.json", "README.md", RECORD)
INDEX = ".index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in transformers' order
DTYPE = ("dtype", "torch_dtype")
# what bitsandbytes keeps beside a quantised tensor NAME: NAME.absmax, …; for LLM.int8 in place of `.weight`
STATISTICS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".weight_format", ".SCB")
STATE = ".quant_state.bitsandbytes__"


class Given:
    """The files of a base model in `folder`. Without config or weights that can be read: ConfigError."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._opened: dict[Path, Any] = {}

    @classmethod
    def of(cls, model: Model, where: str = "model.id") -> "Given":
        """That of a recipe: a folder, one in the package, or one of the Hub, which is there by now."""
        folder = folder_of(locate(model.id, where, model.revision), model.revision)
        if folder is None:
            what = f"the files of {model.id} are not on this machine any more"
            raise ConfigError(what, where=where, fix="download it again")
        return cls(folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text("utf-8"))

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor, by the tensor's name; what stands beside a quantised one is no tensor."""
        return {name: file for name, file in self.stored.items() if not _is_statistic(name)}

    @cached_property
    def stored(self) -> dict[str, Path]:
        """The file of everything that is stored, by its name."""
        for name in WEIGHTS:
            whole, index = self.folder / name, self.folder / f"{name}{INDEX}"
            if whole.is_file():
                return dict.fromkeys(self._open(whole).keys(), whole)
            if index.is_file():
                weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
                return {tensor: self.folder / file for tensor, file in weight_map.items()}
        what = f"no weights: neither {' nor '.join(WEIGHTS)}"
        raise ConfigError(what, where=str(self.folder), fix="give a model folder with its weights")

    def _open(self, file: Path) -> Any:
        if file not in self._opened:
            if file.suffix == ".safetensors":
                self._opened[file] = safe_open(file, "pt")
            else:
                self._opened[file] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return self._opened[file]

    def _read(self, name: str) -> Tensor:
        opened = self._open(self.stored[name])
        return opened[name] if isinstance(opened, Mapping) else opened.get_tensor(name)

    def slice(self, name: str) -> Any:
        """Of anything in `stored`, read when it is indexed."""
        opened = self._open(self.stored[name])
        return opened[name] if isinstance(opened, Mapping) else opened.get_slice(name)

    def close(self) -> None:
        """The files, until one is asked for again: what was read of them leaves this process's memory."""
        self._opened.clear()

    def tensor(self, name: str) -> Tensor:
        """As it was given; a quantised one as the numbers it stands for."""
        tensor = self._read(name)
        scale = _scale_of(name)
        if scale in self.stored:
            return tensor.float() * (self._read(scale)[:, None] / 127)
        if f"{name}.absmax" not in self.stored:
            return tensor
        from bitsandbytes.functional import QuantState, dequantize_4bit

        statistics = {key: self._read(key) for key in self.stored if key.startswith(f"{name}.")}
        return dequantize_4bit(tensor, QuantState.from_dict(statistics, device=tensor.device))

    def is_quantised(self, name: str) -> bool:
        return _scale_of(name) in self.stored or f"{name}.absmax" in self.stored

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None of a quantised one, which lies packed."""
        if self.is_quantised(name):
            return None
        piece = self.slice(name)
        return tuple(piece.shape if isinstance(piece, Tensor) else piece.get_shape())

    def copy_files(self, out: Path) -> None:
        """To `out` all that is no weight and not written anew: a tokenizer, a processor of images, generation
        settings, a model's own code, its terms.
        """
        for pattern in BESIDE:
            for file in sorted(self.folder.glob(pattern)):
                if file.is_file() and file.name not in WRITTEN and not file.name.endswith(INDEX):
                    shutil.copyfile(file, out / file.name)

    def config_for(self, dtype: torch.dtype) -> dict[str, Any]:
        """Its own config, for weights of `dtype` that are not quantised."""
        config = {key: value for key, value in self.config.items() if key != "quantization_config"}
        name = str(dtype).removeprefix("torch.")
        keys = [key for key in DTYPE if key in config] or [DTYPE[0]]
        config |= dict.fromkeys(keys, name)
        text = config.get("text_config")
        if isinstance(text, dict):
            config["text_config"] = text | {key: name for key in DTYPE if key in text}
        return config


def _is_statistic(name: str) -> bool:
    return name.endswith(STATISTICS) or STATE in name


def _scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.SCB"
