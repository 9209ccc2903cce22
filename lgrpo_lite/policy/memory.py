"""How much is recomputed in the backward pass: as many layers as the free memory asks for, measured on the model itself."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

MARGIN = 0.8  # of the free memory may go to activations
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Recompute:
    """What was chosen and from which numbers; bytes."""

    layers: int  # checkpointed
    of: int
    needed: int  # activations of one pass without recomputing
    free: int

    def __str__(self) -> str:
        gib = 2**30
        return (
            f"recomputing {self.layers} of {self.of} layers: activations of a pass are {self.needed / gib:.2f} GiB,"
            f" {self.free / gib:.2f} GiB are free"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that a pass could still take: on the GPU, or of the machine or its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = [line for line in _lines(Path("/proc/meminfo")) if line.startswith("MemAvailable")]
    if available:
        free = int(available[0].split()[1]) * 1024
    limit, used = (_lines(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").splitlines()
    except OSError:
        return []


def tile_bytes(free: int) -> int:
    """Logits that may be held at once: a power of two near 1/64 of the free memory, 4 to 32 MiB. 32 is fast enough anywhere."""
    return 1 << min(25, max(22, (free // 64).bit_length() - 1))


class Saved:
    """Context manager: counts the bytes that autograd keeps for the backward pass, parameters not included."""

    def __init__(self, model: torch.nn.Module):
        self._own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        self._found: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    @property
    def bytes(self) -> int:
        return sum(self._found.values())

    def _pack(self, kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._found[storage.data_ptr()] = storage.nbytes()
        return kept

    def __enter__(self) -> "Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def layers_of(base) -> list[GradientCheckpointingLayer]:
    return [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute(base, count: int) -> None:
    """Checkpoint the first `count` layers, each by itself; a gradient is the same with any count."""
    if not count:
        base.gradient_checkpointing_disable()
        return
    base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers_of(base)[count:]:
        layer.gradient_checkpointing = False


def fitting(needed: int, kept: int, layers: int, free: int) -> int:
    """Fewest layers to checkpoint so that a pass fits. `needed`: its bytes without any; `kept`: of one checkpointed layer."""
    room, each = MARGIN * free, needed / max(1, layers)
    for count in range(layers):
        again = each if count else 0.0  # one layer is alive a second time while it is recomputed
        if (layers - count) * each + count * kept + again <= room:
            return count
    return layers


def loaded_bytes(network: Any) -> tuple[int, int]:
    """(base, adapter) of a network: parameters, buffers and what bitsandbytes holds beside them, each storage once."""
    adapter = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for n, t in network.named_parameters() if "lora_" in n
    }
    held = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            held += [state.absmax, state.code, *([state.offset, state.state2.absmax, state.state2.code] if state.nested else [])]
        int8 = getattr(module, "state", None)
        held += [t for t in (getattr(int8, "SCB", None), getattr(getattr(module, "weight", None), "SCB", None)) if t is not None]
    everything = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for at, size in everything.items() if at not in adapter), sum(adapter.values())


def measured(policy: Any, moments: Iterable[Tensor]) -> dict[str, int]:
    """Bytes now, by what holds them. `host`: resident memory of this process; `host_free`: what it could still take.

    On a GPU also `activations` (the most that was held beside the rest since the last call), `cached` (by PyTorch, for reuse),
    `other` (the sampler's and other processes') and `free`; there weights, adapter and optimizer are on the GPU.
    """
    weights, adapter = loaded_bytes(policy.model)
    found = {"weights": weights, "adapter": adapter, "optimizer": sum(t.untyped_storage().nbytes() for t in moments)}
    if policy.device.type == "cuda":
        held = sum(found.values())
        free, total = torch.cuda.mem_get_info(policy.device)
        reserved, peak = torch.cuda.memory_reserved(policy.device), torch.cuda.max_memory_allocated(policy.device)
        torch.cuda.reset_peak_memory_stats(policy.device)
        found["activations"] = max(0, peak - held)
        found["cached"] = max(0, reserved - max(peak, held))
        found |= {"other": max(0, total - free - reserved), "free": free}
    return found | {"host": psutil.Process().memory_info().rss, "host_free": free_bytes(torch.device("cpu"))}
