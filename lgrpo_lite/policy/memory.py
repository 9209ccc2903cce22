"""How much is recomputed in the backward pass: as many layers as the free memory asks
for, measured on the model itself.
"""

import gc
import os
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lgrpo_lite.errors import OutOfMemory

MARGIN = 0.7  # of the free memory may go to activations, in a model of which nothing more is known
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Recompute:
    """What was chosen and from which numbers; bytes."""

    layers: int  # checkpointed
    of: int
    tokens: int  # of the largest pass
    needed: int  # its activations without recomputing
    free: int

    def __str__(self) -> str:
        gib = 2**30
        return (
            f"recomputing {self.layers} of {self.of} layers: activations of a pass of {self.tokens:,} tokens"
            f" are {self.needed / gib:.2f} GiB, {self.free / gib:.2f} GiB are free"
        )


def collect() -> None:
    """What nothing refers to any longer goes back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """Memory that a pass could still take: on the GPU, or of the machine or its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        foreign = pools()
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached - (foreign.reserved - foreign.allocated)
    return _free_on_host()


def _free_on_host() -> int:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable"):
            free = int(line.split()[1]) * 1024
            break
    limit = _lines(CGROUP / "memory.max")
    used = _lines(CGROUP / "memory.current")
    if limit and used and limit[0].isdigit():
        free = min(free, int(limit[0]) - int(used[0]))
    return free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii").splitlines()
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Pools:
    """What torch's figures contain of memory that no pass can have: pools of vLLM and CUDA graphs. Bytes.

    vLLM keeps weights, keys and values in pools of its own allocator (vllm/device_allocator/cumem.py); what
    its CUDA graphs work in is a pool of torch's. torch counts a segment of any pool in memory_reserved, and
    each tensor in it in memory_allocated and max_memory_allocated, until the tensor is collected. vLLM's
    `discard` and `sleep` give a segment back to the driver without a word to torch: mem_get_info has it as
    free, torch's three figures stay as they were, and so they do for free segments that vLLM trims. A free
    block of a pool serves no one but that pool.
    """

    reserved: int = 0  # of memory_reserved, mapped or not
    allocated: int = 0  # of memory_allocated and, since vLLM is there, of max_memory_allocated
    begins: tuple[int, ...] = ()  # addresses of the segments, ascending
    ends: tuple[int, ...] = ()

    def hold(self, address: int) -> bool:
        """Whether that address lies in one of the pools."""
        segment = bisect_right(self.begins, address) - 1
        return segment >= 0 and address < self.ends[segment]


def pools() -> Pools:
    """All pools of this process; none where vLLM is not there."""
    module = sys.modules.get("vllm.device_allocator.cumem")
    allocator = module.CuMemAllocator.instance if module else None
    return _pools(allocator.get_current_usage()) if allocator else Pools()


@lru_cache(maxsize=1)
def _pools(usage: int) -> Pools:
    """Kept while vLLM has `usage` bytes, asleep or awake: they change as it starts and ends.

    A snapshot takes a while.
    """
    segments = [s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) != (0, 0)]
    segments.sort(key=lambda s: s["address"])
    return Pools(
        reserved=sum(s["total_size"] for s in segments),
        allocated=sum(s["allocated_size"] for s in segments),
        begins=tuple(s["address"] for s in segments),
        ends=tuple(s["address"] + s["total_size"] for s in segments),
    )


def grow_segments() -> None:
    """torch's memory on a GPU grows and shrinks by pages from here on, unless the user's settings
    of its allocator say otherwise.

    In whole segments the inputs of recomputed layers lie two or three to a piece that an MLP's tensor left,
    and what remains of each serves nobody: 6 % of them are lost at 7B, 35 % at 14B. Harmless where it was
    called before; without a GPU nothing.
    """
    own = any(os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    if torch.cuda.is_available() and not own:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def out_of_memory(error: Exception) -> bool:
    """Whether that is what an error says, of a GPU or of a CPU's allocator."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return any(word in str(error) for word in words)


@contextmanager
def room_told(what: str, where: str, fix: str) -> Iterator[None]:
    """Memory that ends inside it is an OutOfMemory (exit 4): `what` does not fit, and why in the error's own
    words.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        why = str(error).strip().split(". ")[0] or type(error).__name__
        raise OutOfMemory(f"{what} does not fit into memory: {why}", where=where, fix=fix) from error


def tile_bytes(free: int) -> int:
    """Logits held at once: a power of two near 1/64 of the free memory, 4 to 32 MiB, which is fast enough."""
    power = (free // 64).bit_length() - 1
    return 1 << min(25, max(22, power))


class Saved:
    """Context manager: counts the bytes that autograd keeps for the backward pass beside parameters."""

    def __init__(self, model: torch.nn.Module):
        # FakeTensors have no address
        self._own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
        self._bytes_of: dict[int, int] = {}  # by storage
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    @property
    def bytes(self) -> int:
        return sum(self._bytes_of.values())

    def _pack(self, kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage._cdata not in self._own:
            self._bytes_of[storage._cdata] = storage.nbytes()
        # a node that keeps its own output would keep itself, and all before it, for good
        return kept.detach()

    def __enter__(self) -> "Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def layers_of(base) -> list[GradientCheckpointingLayer]:
    """Those that text passes through: of a model for images and text not the tower of the images."""
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    return [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute(base, count: int) -> None:
    """Checkpoint the first `count` layers, each by itself; a gradient is the same with any count."""
    if not count:
        base.gradient_checkpointing_disable()
        return
    base.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers_of(base)[count:]:
        layer.gradient_checkpointing = False


def fitting(layer: int, kept: int, layers: int, room: int) -> int:
    """Fewest layers to checkpoint so that `layers` of them fit into `room` bytes.

    layer: what one keeps for the backward pass; kept: what one that is checkpointed keeps. When that one is
    computed again the others are through, so it takes no room beside them.
    """
    for count in range(layers):
        if (layers - count) * layer + count * kept <= room:
            return count
    return layers


def loaded_bytes(network: Any) -> tuple[int, int]:
    """(base, adapter) of a network: parameters, buffers and what bitsandbytes holds, each storage once."""
    base, adapter = _storages(network)
    return sum(base.values()), sum(adapter.values())


def _storages(network: Any) -> tuple[dict[int, int], dict[int, int]]:
    """(base, adapter) of a network: the bytes of each storage by its address."""
    adapter = _by_address(t for name, t in network.named_parameters() if "lora_" in name)
    tensors = [*network.parameters(), *network.buffers()]
    for module in network.modules():
        tensors += _statistics(module)
    everything = _by_address(tensors)
    base = {address: size for address, size in everything.items() if address not in adapter}
    return base, adapter


def _by_address(tensors: Iterable[Tensor]) -> dict[int, int]:
    storages = [t.untyped_storage() for t in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _statistics(module: Any) -> list[Tensor]:
    """What bitsandbytes keeps beside a layer's quantised weight."""
    weight = getattr(module, "weight", None)
    tensors = []
    state = getattr(weight, "quant_state", None)
    if state is not None:
        tensors += [state.absmax, state.code]
        if state.nested:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
    scales = [getattr(getattr(module, "state", None), "SCB", None), getattr(weight, "SCB", None)]
    tensors += [scale for scale in scales if scale is not None]
    return tensors


def measured(policy: Any, moments: Iterable[Tensor]) -> dict[str, int]:
    """Bytes now, by what holds them. `host`: resident memory of this process; `host_free`: left to it.

    On a GPU also `activations` (the most that was held beside the rest since the last call), `cached` (by
    PyTorch, for reuse), `other` (the sampler's and other processes') and `free`; there weights, adapter and
    optimizer are on the GPU. Weights that the policy shares with vLLM count as weights, all else in vLLM's
    pools that is mapped as `other`.
    """
    base, adapter = _storages(policy.model)
    optimizer = sum(t.untyped_storage().nbytes() for t in moments)
    by_holder = {"weights": sum(base.values()), "adapter": sum(adapter.values()), "optimizer": optimizer}
    if policy.device.type == "cuda":
        foreign = pools()
        shared = sum(size for address, size in base.items() if foreign.hold(address))
        lasting = sum(by_holder.values()) - shared
        free, total = torch.cuda.mem_get_info(policy.device)
        reserved = torch.cuda.memory_reserved(policy.device) - foreign.reserved
        peak = torch.cuda.max_memory_allocated(policy.device) - foreign.allocated
        torch.cuda.reset_peak_memory_stats(policy.device)
        by_holder["activations"] = max(0, peak - lasting)
        by_holder["cached"] = max(0, reserved - max(peak, lasting))
        by_holder["other"] = max(0, total - free - reserved - shared)
        by_holder["free"] = free
    by_holder["host"] = psutil.Process().memory_info().rss
    by_holder["host_free"] = free_bytes(torch.device("cpu"))
    return by_holder
