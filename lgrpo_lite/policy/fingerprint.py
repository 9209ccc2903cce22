"""A checksum of frozen weights: two numbers that any change of a bit moves, read in place."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 1 << 22  # elements that are widened to 64 bits at once


@torch.no_grad()
def fingerprint(module: nn.Module) -> str:
    """Of all parameters that are not trained, with the quantisation states of 4-bit ones; 32 hex digits.

    Per tensor Σ x_i and Σ (i + 1) x_i over its bytes as integers, modulo 2^64, chained in the order of the
    names. A change of one element always shows.
    """
    total = [0, 0]
    for _, tensor in sorted(_frozen(module), key=lambda pair: pair[0]):
        for k, part in enumerate(_sums(tensor)):
            total[k] = (total[k] * 1_000_003 + part) % 2**64
    return "".join(f"{t:016x}" for t in total)


def _frozen(module: nn.Module):
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            continue
        yield name, parameter
        for key, value in _states(parameter):
            yield f"{name}.{key}", value
    layer: Any
    # LLM.int8 moves the scale of a row from the weight to the layer at the first pass
    for name, layer in module.named_modules():
        state = getattr(layer, "state", None)
        if state is not None and hasattr(layer.weight, "SCB"):
            yield f"{name}.scale", layer.weight.SCB if state.SCB is None else state.SCB


def _states(parameter: Any) -> Iterator[tuple[str, Tensor]]:
    """The quantisation states of a 4-bit parameter: its own, or of each expert that lies in it."""
    states = getattr(parameter, "quant_state", None) or getattr(parameter, "bnb_quant_state", None)
    if not states:
        return
    if not isinstance(states, dict):
        states = {0: states}
    for number, state in sorted(states.items()):
        nested = getattr(state, "state2", None)
        tensors = {
            "absmax": state.absmax,
            "offset": state.offset,
            "absmax2": nested.absmax if nested else None,
        }
        for key, tensor in tensors.items():
            if tensor is not None:
                yield f"{number}.{key}", tensor


def _sums(tensor: Tensor) -> tuple[int, int]:
    flat = tensor.detach().reshape(-1)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    whole = flat.view(integers[flat.element_size()])
    plain = weighted = 0
    for begin in range(0, len(whole), CHUNK):
        part = whole[begin : begin + CHUNK].to(torch.int64)
        place = torch.arange(begin + 1, begin + 1 + len(part), device=part.device)
        plain += int(part.sum())
        weighted += int((part * place).sum())
    return plain % 2**64, weighted % 2**64
