"""Merge an adapter into 16- or 32-bit weights, tensor by tensor in float32. Nothing merges into 4 bits.

W_merged = W + scale · B A

W is the weight the policy was trained on: dequantized where it is 4-bit, or the original's
"""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lgrpo_lite import progress
from lgrpo_lite.errors import VerificationError

SHARD_BYTES = 2 * 1024**3  # a shard is in memory until it is written

Here = Callable[[str], AbstractContextManager]  # inside it the weights of that unit are in memory


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter's place. Which tensor is there may change: one whose base is in files has none."""

    name: str  # in the plain model
    leaf: str
    holder: nn.Module
    adapters: tuple[Any, ...]  # PEFT's layers that change it, around its holder

    @property
    def value(self) -> Any:
        return self.holder._parameters[self.leaf]


@torch.no_grad()
def merged_tensors(
    model: nn.Module,
    dtype: torch.dtype,
    original: Callable[[str], Tensor] | None = None,
    here: Here = nullcontext,
    *,
    adapted: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, merged tensor on the CPU) for every weight, with or without an adapter.

    `original` gives base weights by name in place of the model's: those that a 4-bit policy was quantised
    from. `here` is entered for each unit, by `unit_of`. Tied weights come once. `adapted`
    false: the base alone. A number that `dtype` has no place for: VerificationError. Told as "merging".
    """
    weights = list(weights_of(model))
    _demand_all_adapters(model, weights)
    done = 0
    for unit, group in groupby(weights, key=lambda weight: unit_of(weight.name)):
        with here(unit):
            for one in group:
                progress.told("merging", done, len(weights))
                done += 1
                layers = one.adapters if adapted else ()
                yield one.name, _merged(one, layers, dtype, original)
    progress.told("merging", done, len(weights))


def _merged(
    one: Weight, layers: Sequence[Any], dtype: torch.dtype, original: Callable[[str], Tensor] | None
) -> Tensor:
    weight = original(one.name) if original else dense(one.value, one.holder)
    if layers:
        deltas = [_delta(layer, name) for layer in layers for name in layer.active_adapters]
        weight = weight.float() + sum(delta.to(weight.device) for delta in deltas)
    rounded = weight.to(dtype)
    if rounded.isinf().any() and weight.isfinite().all():
        largest = f"{weight.abs().max().item():.6g}, of which {str(dtype).removeprefix('torch.')} knows"
        what = f"{one.name} holds {largest} no more than {torch.finfo(dtype).max:g}"
        raise VerificationError(what, where="export.dtype", fix="export in bf16 or fp32: --dtype bf16")
    return rounded.cpu().contiguous()


def weights_of(model: nn.Module) -> Iterator[Weight]:
    """Every weight once, as the model has them; none of an adapter."""
    visited: set[int] = set()
    for path, module in model.named_modules():
        if "lora_" in path or path.endswith(".base_layer"):
            continue
        around = []
        holder: Any = module
        while isinstance(holder, LoraLayer):
            around.append(holder)
            holder = holder.base_layer
        for leaf, parameter in holder.named_parameters(recurse=False):
            if id(parameter) in visited:
                continue
            visited.add(id(parameter))
            name = f"{path}.{leaf}" if path else leaf
            # of experts that are one tensor, PEFT's layer says which; more than one may be around them
            changed_by = [layer for layer in around if getattr(layer, "parameter_name", "weight") == leaf]
            yield Weight(plain_name(name), leaf, holder, tuple(changed_by))


def _demand_all_adapters(model: nn.Module, weights: list[Weight]) -> None:
    """VerificationError where a part of the adapter changes none of the weights."""
    merged = {id(layer) for one in weights for layer in one.adapters}
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer) and id(module) not in merged:
            what = f"no weight is known that the adapter of {plain_name(path)} changes"
            raise VerificationError(what, where="export merged", fix="export adapter instead")


def layer_of(name: str) -> str:
    """The part of a parameter's name up to its first number, that of a layer; "" outside of all layers."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ""


def unit_of(name: str) -> str:
    """The path of the module whose weights are in memory together: a layer, or outside of all layers the one
    that holds the parameter of that name.
    """
    return layer_of(name) or name.rpartition(".")[0]


def _delta(module: Any, adapter: str) -> Tensor:
    # every peft layer with a weight has it, their common base has not
    return module.get_delta_weight(adapter).float()


def dense(parameter: Tensor, holder: nn.Module | None = None) -> Tensor:
    """A weight as an ordinary tensor: bitsandbytes ones are dequantized, in float32.

    In the 16 bits that the policy computes with they would lie on the grid that the merged ones are rounded
    to, and every change by less than half a step of it would be rounded away.
    """
    if parameter.dtype == torch.int8:
        scale = row_scale(parameter, holder).to(parameter.device).float()
        return parameter.data.float() * (scale[:, None] / 127)
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    exact = copy.copy(state)
    exact.dtype = torch.float32
    return dequantize_4bit(parameter.data, exact)


def row_scale(parameter: Any, holder: Any) -> Tensor:
    """The largest number of each row of an 8-bit weight; the first pass moves it to the layer's state."""
    return parameter.SCB if parameter.SCB is not None else holder.state.SCB


def plain_name(name: str) -> str:
    """A parameter's name without what peft put around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Safetensors files of at most `shard_bytes` (or one tensor), with an index when there are several."""
    shards: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if shard and size + bytes_ > shard_bytes:
            _flush(shard, folder, shards)
            shard = {}
            size = 0
        shard[name] = tensor
        size += bytes_
        total += bytes_
    _flush(shard, folder, shards)
    if len(shards) == 1:
        (folder / "part-00001").rename(folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, names in enumerate(shards, 1):
        part = folder / f"part-{i:05d}"
        final = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        part.rename(folder / final)
        index["weight_map"] |= dict.fromkeys(names, final)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def _flush(shard: dict[str, Tensor], folder: Path, shards: list[list[str]]) -> None:
    shards.append(list(shard))
    file = folder / f"part-{len(shards):05d}"
    save_file(shard, file, metadata={"format": "pt"})
