"""The trainer's base model on vLLM's own tensors: one copy of the weights serves sampling and training.

A parameter of the transformers model is a view of the vLLM parameter that holds it. vLLM fuses
layers (q, k, v are one qkv_proj; gate and up are one), so most views are slices; a 4-bit slice comes
with its own quantisation state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Unshareable(Exception):
    """Why the weights of this model cannot be viewed; its text ends a sentence."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A view of a vLLM parameter, and for 4-bit weights what turns its bytes into numbers."""

    data: Tensor
    quant_state: Any = None


def share(served: nn.Module, net: nn.Module, compute_dtype: torch.dtype) -> None:
    """Put vLLM's tensors into `net`, a transformers model of the same architecture on the meta device.

    Nothing is copied: every parameter of `net` has the data pointer of the one that vLLM samples
    with, and is frozen. Unshareable, with `net` in no usable state, if any parameter has no
    counterpart of the right shape.
    """
    table = {name.replace(".base_layer", ""): parameter for name, parameter in served.named_parameters()}
    fused = {}
    for whole, parts in getattr(served, "packed_modules_mapping", {}).items():
        fused |= dict.fromkeys(parts, (whole, parts))
    for path, module in list(net.named_modules()):
        for leaf, empty in list(module.named_parameters(recurse=False)):
            if path.endswith("lm_head") and f"{path}.{leaf}" not in table:
                continue  # tied to the embedding
            piece = _find(table, fused, net, path, leaf)
            if piece.quant_state is not None:
                set_linear4bit(net, path, module, piece, compute_dtype)
            else:
                set_plain(net.get_submodule(path), path, leaf, empty, piece.data)
    net.tie_weights()  # pyright: ignore[reportCallIssue]
    missing = [name for name, parameter in net.named_parameters() if parameter.is_meta]
    if missing:
        raise Unshareable(f"vLLM's model has no {missing[0]}")


def _find(table: dict, fused: dict, net: nn.Module, path: str, leaf: str) -> Piece:
    whole = table.get(f"{path}.{leaf}")
    if whole is not None:
        return next(_pieces(whole, [whole.shape[0]]))
    above, _, last = path.rpartition(".")
    name, parts = fused.get(last, (None, []))
    whole = table.get(f"{above}.{name}.{leaf}")
    if whole is None:
        raise Unshareable(f"vLLM's model has no {path}.{leaf}")
    layers = [net.get_submodule(f"{above}.{part}") for part in parts]
    sizes = [getattr(layer, leaf).shape[0] for layer in layers]
    return list(_pieces(whole, sizes))[parts.index(last)]


def _pieces(whole: Tensor, sizes: list[int]) -> Iterator[Piece]:
    """The parts of a vLLM parameter, in order. `sizes`: rows of each; 4-bit ones know theirs, in bytes."""
    states = getattr(whole, "bnb_quant_state", None)
    if states is None:
        parts = whole.data.split(sizes) if sum(sizes) == len(whole) else [whole.data]
        yield from map(Piece, parts)
        return
    offsets = whole.bnb_shard_offsets.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    for number, (begin, end) in enumerate(pairwise(offsets)):
        yield Piece(whole.data[begin:end], states[number])


def set_plain(module: nn.Module, path: str, leaf: str, empty: Tensor, data: Tensor) -> None:
    """Put `data` in the place of the parameter `leaf`, which is `empty`. Another shape: Unshareable."""
    if isinstance(module, nn.Embedding) or path.endswith("lm_head"):
        data = data[: len(empty)]  # vLLM pads the vocabulary
    if data.shape != empty.shape:
        shapes = f"{tuple(data.shape)} in vLLM, {tuple(empty.shape)} in transformers"
        raise Unshareable(f"{path}.{leaf} is {shapes}")
    setattr(module, leaf, nn.Parameter(data, requires_grad=False))


def set_linear4bit(
    net: nn.Module, path: str, module: nn.Module, piece: Piece, compute_dtype: torch.dtype
) -> None:
    """Replace a linear layer by bitsandbytes' 4-bit one around the packed bytes; its bias is set later."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    assert isinstance(module, nn.Linear), "only linear layers are quantised"
    state = piece.quant_state
    if tuple(state.shape) != (module.out_features, module.in_features):
        raise Unshareable(f"{path} has another shape in vLLM")
    with torch.device("meta"):
        layer = Linear4bit(
            module.in_features, module.out_features, module.bias is not None, compute_dtype, quant_type="nf4"
        )
    options: dict[str, Any] = {
        "quant_state": state,
        "quant_type": "nf4",
        "bnb_quantized": True,
        "module": layer,
    }
    layer.weight = Params4bit(piece.data, requires_grad=False, **options)
    layer.quant_state = state  # pyright: ignore[reportAttributeAccessIssue]
    net.set_submodule(path, layer)
