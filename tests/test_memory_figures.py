"""What a run says of a GPU's memory beside vLLM, whose pools torch goes on
counting after they were given back.
"""

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from lgrpo_lite.policy import memory
from lgrpo_lite.policy.memory import Pools, free_bytes, loaded_bytes, measured, pools

MIB = 1 << 20
TOTAL, CONTEXT = 24 << 30, 450 * MIB
GPU = torch.device("cuda", 0)


@dataclass
class Segment:
    """Of torch's; `pool` (0, 0) is the ordinary one. `mapped` is known to the driver alone."""

    address: int
    total: int
    used: int
    pool: tuple[int, int] = (0, 0)
    mapped: bool = True


@dataclass
class Ledger:
    """A card and torch's figures of it. vLLM's allocator with the names of vllm/device_allocator/cumem.py."""

    segments: dict[str, Segment] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # of vLLM's own segments
    peak: int = 0
    snapshots: int = 0

    # torch.cuda

    def mem_get_info(self, *_):
        return TOTAL - CONTEXT - sum(s.total for s in self.segments.values() if s.mapped), TOTAL

    def memory_reserved(self, *_):
        return sum(s.total for s in self.segments.values())

    def memory_allocated(self, *_):
        return sum(s.used for s in self.segments.values())

    def max_memory_allocated(self, *_):
        return max(self.peak, self.memory_allocated())

    def reset_peak_memory_stats(self, *_):
        self.peak = self.memory_allocated()

    def memory_snapshot(self):
        self.snapshots += 1
        return [
            {"address": s.address, "total_size": s.total, "allocated_size": s.used, "segment_pool_id": s.pool}
            for s in self.segments.values()
        ]

    # CuMemAllocator

    def get_current_usage(self):
        return sum(self.segments[name].total for name in self.tags)

    def discard(self, tag):
        self._map(tag, False)

    def wake_up(self, tag):
        self._map(tag, True)

    def _map(self, tag, mapped):
        for name in [name for name, own in self.tags.items() if own == tag]:
            self.segments[name].mapped = mapped

    # what happens

    def take(self, name, total, used, *, pool=(0, 0), tag=None, address=None):
        beyond = (1 << 50) + self.memory_reserved()  # no tensor of this process lies there
        self.segments[name] = Segment(beyond if address is None else address, total, used, pool)
        self.peak = max(self.peak, self.memory_allocated())
        if tag:
            self.tags[name] = tag

    def passed(self, size):
        """A pass had so many bytes in work, which torch keeps for the next."""
        self.take("pass", size, size)
        self.segments["pass"].used = 0


class Base(torch.nn.Module):
    """Two weights and an adapter; `at` is the first weight's address."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(4 * MIB // 4), requires_grad=False)
        self.own = torch.nn.Parameter(torch.empty(2 * MIB // 4), requires_grad=False)
        self.lora_A = torch.nn.Parameter(torch.empty(MIB // 4))
        self.at = self.weight.data_ptr()


@pytest.fixture
def ledger(monkeypatch):
    made = Ledger()
    for name in ("mem_get_info", "memory_reserved", "memory_allocated", "max_memory_allocated", "reset_peak_memory_stats",
                 "memory_snapshot"):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    memory._pools.cache_clear()
    yield made
    memory._pools.cache_clear()


@pytest.fixture
def with_vllm(ledger, monkeypatch):
    """A policy on vLLM's first weight, as after the engine's start; all sizes differ,
    so that none stands for another.
    """
    policy = SimpleNamespace(model=Base(), device=GPU)
    module = SimpleNamespace(CuMemAllocator=SimpleNamespace(instance=ledger))
    monkeypatch.setitem(sys.modules, "vllm.device_allocator.cumem", module)
    ledger.take("shared weight", 4 * MIB, 4 * MIB, pool=(1, 0), tag="weights", address=policy.model.at)
    ledger.take("vLLM's slots", 8 * MIB, 7 * MIB, pool=(1, 0), tag="weights")
    ledger.take("keys and values", 7000 * MIB, 7000 * MIB, pool=(2, 0), tag="kv_cache")
    # given back while vLLM started, counted by torch to the end
    ledger.take("trimmed", 20 * MIB, 0, pool=(1, 0))
    ledger.segments["trimmed"].mapped = False
    ledger.take("graphs", 900 * MIB, 0, pool=(0, 3))
    ledger.take("own", 6 * MIB, (2 + 1 + 2) * MIB)  # weight, adapter, moments
    ledger.reset_peak_memory_stats()
    return policy


def moments():
    return [torch.empty(MIB // 4), torch.empty(MIB // 4)]


@pytest.mark.parametrize("asleep", [False, True])
def test_activations_are_without_keys_and_values_and_the_parts_are_the_whole(ledger, with_vllm, asleep):
    if asleep:
        ledger.discard("kv_cache")
    ledger.passed(300 * MIB)
    found = measured(with_vllm, moments())
    assert found["weights"] == 6 * MIB and found["adapter"] == MIB and found["optimizer"] == 2 * MIB
    assert found["activations"] == 300 * MIB
    assert found["cached"] == MIB
    # MiB: what of vLLM's is mapped, but for the weight that is the policy's
    sampler = 8 + 900 + (0 if asleep else 7000)
    assert found["other"] == CONTEXT + sampler * MIB
    on_device = {name: size for name, size in found.items() if not name.startswith("host")}
    assert sum(on_device.values()) == TOTAL
    assert measured(with_vllm, moments())["activations"] == 0  # since the last call


def test_free_memory_has_neither_the_graphs_nor_slack_of_the_pools(ledger, with_vllm):
    for asleep in (False, True, False):
        (ledger.discard if asleep else ledger.wake_up)("kv_cache")
        ledger.passed(300 * MIB)
        free, _ = ledger.mem_get_info()
        assert free_bytes(GPU) == free + 300 * MIB + MIB
    ledger.discard("kv_cache")
    asleep = free_bytes(GPU)
    ledger.wake_up("kv_cache")
    assert asleep - free_bytes(GPU) == 7000 * MIB


def test_the_pools_are_looked_at_again_only_where_vllm_took_or_gave_something(ledger, with_vllm):
    first = pools()
    assert first == pools() and ledger.snapshots == 1
    ledger.discard("kv_cache")
    assert first == pools() and ledger.snapshots == 1
    assert (first.reserved, first.allocated) == (7932 * MIB, 7011 * MIB)
    # the engine is closed
    del (ledger.segments["keys and values"], ledger.tags["keys and values"], ledger.segments["graphs"])
    assert (pools().reserved, pools().allocated) == (32 * MIB, 11 * MIB)


@pytest.mark.parametrize("instance", ["no module", None])
def test_without_vllm_all_that_torch_has_is_ours(ledger, monkeypatch, instance):
    if instance is None:  # imported, and never started
        module = SimpleNamespace(CuMemAllocator=SimpleNamespace(instance=None))
        monkeypatch.setitem(sys.modules, "vllm.device_allocator.cumem", module)
    policy = SimpleNamespace(model=Base(), device=GPU)
    ledger.take("own", 10 * MIB, (6 + 1 + 2) * MIB)
    ledger.passed(300 * MIB)
    found = measured(policy, moments())
    assert (found["activations"], found["cached"], found["other"]) == (300 * MIB, MIB, CONTEXT)
    assert free_bytes(GPU) == ledger.mem_get_info()[0] + 301 * MIB
    assert pools() == Pools() and ledger.snapshots == 0


def test_an_address_is_in_a_pool_or_beside_it():
    found = Pools(0, 0, begins=(10, 30), ends=(20, 31))
    assert [at for at in range(40) if found.hold(at)] == [*range(10, 20), 30]
    assert not Pools().hold(10)


def test_loaded_bytes_are_those_of_base_and_adapter():
    assert loaded_bytes(Base()) == (6 * MIB, MIB)


def test_vllms_figure_counts_what_is_asleep():
    """Of its own source; that it is loaded is how `pools` knows of vLLM."""
    cumem = pytest.importorskip("vllm.device_allocator.cumem")
    data = {at: SimpleNamespace(handle=(0, 5, at, 0), is_asleep=at > 1) for at in (1, 2)}
    assert cumem.CuMemAllocator.get_current_usage(SimpleNamespace(pointer_to_data=data)) == 10
    assert pools() == Pools()  # loaded, and without an instance
