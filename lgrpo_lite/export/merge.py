"""Merge an adapter into 16- or 32-bit weights, tensor by tensor in float32. Nothing merges into 4 bits.

W_merged = W + scale · B A

W is the weight the policy was trained on: dequantized where it is 4-bit, or the original's
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lgrpo_lite import progress

SHARD_BYTES = 2 * 1024**3


@torch.no_grad()
def merged_tensors(
    model: nn.Module,
    dtype: torch.dtype,
    original: Mapping[str, Tensor] | None = None,
    *,
    adapted: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """(name in the plain model, merged tensor on the CPU) for every weight, with or without an adapter.

    `original` replaces the base weights by name: the 16-bit checkpoint a 4-bit policy was quantised from.
    Tied weights come once. `adapted` false: the base alone. Told as "merging".
    """
    weights = list(_weights(model))
    for done, (name, parameter, module, holder) in enumerate(weights):
        progress.told("merging", done, len(weights))
        weight = original[name] if original is not None else dense(parameter, holder)
        if adapted and isinstance(module, LoraLayer) and name.endswith(".weight"):
            deltas = [_delta(module, adapter) for adapter in module.active_adapters]
            weight = weight.float() + sum(delta.to(weight.device) for delta in deltas)
        yield name, weight.to(dtype).cpu().contiguous()
    progress.told("merging", len(weights), len(weights))


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Any, nn.Module]]:
    """(name in the plain model, weight, its module, what holds it in that), once each; no adapter's own."""
    visited: set[int] = set()
    for path, module in model.named_modules():
        if "lora_" in path or path.endswith(".base_layer"):
            continue
        holder = module.get_base_layer() if isinstance(module, LoraLayer) else module
        for leaf, parameter in holder.named_parameters(recurse=False):
            if id(parameter) in visited:
                continue
            visited.add(id(parameter))
            name = f"{path}.{leaf}" if path else leaf
            yield plain_name(name), parameter, module, holder


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
