"""Recomputing by need: nothing changes but what is kept; the options of memory
and optimiser do what they say.
"""

import copy
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_recipe

from lgrpo_lite.layout import split
from lgrpo_lite.policy.memory import (
    Saved,
    fitting,
    free_bytes,
    grow_segments,
    layers_of,
    recompute,
    tile_bytes,
)
from lgrpo_lite.policy.prove import by_memory, probe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step

BATCH = ((20, 20), (20, 25), (9, 30))


def gradient(policy, layout="rows"):
    """∂ of a sum of log-probs, and the bytes kept for it."""
    policy.model.zero_grad(set_to_none=True)
    (_, micro), *_ = split(probe(256, BATCH), 10**9, (layout,))
    with Saved(policy.model) as saved:
        logp = policy.logprobs(micro).logp
    (logp * torch.arange(len(logp)).cos()).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable()]), saved.bytes


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
def test_recomputing_keeps_less_and_changes_nothing(weights, layout):
    policy = build(tiny_recipe(f"model.weights={weights}")).policy
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    results = []
    layers = len(layers_of(policy.base))
    for count in range(layers + 1):
        recompute(policy.base, count)
        assert [layer.gradient_checkpointing for layer in layers_of(policy.base)] == [
            i < count for i in range(layers)
        ]
        results.append(gradient(policy, layout))
    for grad, _ in results[1:]:
        assert torch.equal(grad, results[0][0])
    kept = [size for _, size in results]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < 0.5 * kept[0]


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_activations_in_cpu_memory_change_nothing(checkpointing):
    record = [
        train_step(
            1, build(tiny_recipe(f"memory.checkpointing={checkpointing}", f"memory.offload_activations={on}"))
        )[0]
        for on in ("true", "false")
    ]
    assert record[0].loss == record[1].loss
    assert record[0].grad_norm == record[1].grad_norm


GIB = 1 << 30


@pytest.mark.parametrize(
    ("layer", "kept", "room", "count"),
    [(0, 0, GIB, 0), (GIB, 0, 8 * GIB, 0), (GIB, 0, 7 * GIB, 1), (GIB, 0, 0, 8), (GIB, GIB // 8, 4 * GIB, 5)],
)
def test_fewest_layers_that_fit(layer, kept, room, count):
    assert fitting(layer, kept, 8, room) == count


@given(
    layer=st.integers(0, 1 << 36),
    kept=st.integers(0, 1 << 30),
    layers=st.integers(1, 80),
    room=st.integers(0, 1 << 40),
)
def test_one_layer_less_would_not_fit(layer, kept, layers, room):
    count = fitting(layer, kept, layers, room)

    def peak(k):
        return (layers - k) * layer + k * kept

    assert 0 <= count <= layers
    assert count == layers or peak(count) <= room
    assert all(peak(k) > room for k in range(count))


def test_the_estimate_is_what_a_pass_keeps():
    recipe = tiny_recipe("model.max_prompt_tokens=40", "model.max_new_tokens=60", "memory.micro_tokens=396")
    policy = build(recipe).policy
    recompute(policy.base, 0)
    (_, micro), *_ = split(probe(256, ((40, 60),) * 4), 10**9)
    with Saved(policy.model) as saved:
        policy.logprobs(micro)
    assert (found := by_memory(policy, recipe)).tokens == 4 * 99
    assert found.needed == pytest.approx(saved.bytes, rel=0.1)


def test_a_probe_that_does_not_fit_recomputes_everything(monkeypatch):
    import lgrpo_lite.policy.prove as prove

    def full(policy):
        raise torch.OutOfMemoryError("CUDA out of memory")

    recipe = tiny_recipe()
    policy = build(recipe).policy
    monkeypatch.setattr(prove, "kept_bytes", full)
    assert by_memory(policy, recipe).layers == len(layers_of(policy.base))


def test_the_largest_pass_is_at_least_one_answer():
    """A pass has whole answers, so that a long one is more than memory.micro_tokens: it counts."""
    recipe = tiny_recipe("memory.micro_tokens=32")
    assert (
        by_memory(build(recipe).policy, recipe).tokens
        == recipe.model.max_prompt_tokens + recipe.model.max_new_tokens - 1
    )


def test_a_full_machine_recomputes(monkeypatch):
    import lgrpo_lite.policy.prove as prove

    monkeypatch.setattr(prove, "free_bytes", lambda device: 1 << 20)
    run = build(tiny_recipe())
    assert all(layer.gradient_checkpointing for layer in layers_of(run.policy.base))
    assert any(note.startswith("recomputing") for note in run.notes)
    monkeypatch.undo()
    assert not any(layer.gradient_checkpointing for layer in layers_of(build(tiny_recipe()).policy.base))


def test_free_memory_is_a_number_of_this_machine():
    assert 1 << 20 < free_bytes(torch.device("cpu")) < 1 << 50
    assert [tile_bytes(n) >> 20 for n in (0, 1 << 28, 1 << 30, 1 << 34, 1 << 40)] == [4, 4, 16, 32, 32]


@pytest.mark.parametrize("use", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_other_optimisers_learn_and_are_saved_whole(use):
    """Against torch's AdamW on the same gradients, and after loading what was saved."""

    def started(use):
        # 8 bits are for tensors of 4096 elements and more
        run = build(tiny_recipe(f"optim.use={use}", "model.lora.rank=64"))
        run.optimizer.set_lr(50)
        return run

    def theta(run):
        return torch.cat([p.detach().flatten() for p in run.policy.trainable()])

    def steps(run, numbers):
        for number in numbers:
            g = torch.Generator().manual_seed(number)
            for p in run.policy.trainable():
                p.grad = torch.randn(p.shape, generator=g)
            run.optimizer.step()
        return theta(run)

    run, plain = started(use), started("adamw")
    before = theta(run)
    moved, expected = steps(run, [1, 2]) - before, steps(plain, [1, 2]) - before
    assert (moved - expected).norm() < 0.1 * expected.norm()
    moments = {
        t.dtype
        for state in run.optimizer.policy.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    }
    assert (torch.uint8 in moments) == ("8bit" in use)
    resumed = started(use)
    with torch.no_grad():
        for p, saved in zip(resumed.policy.trainable(), run.policy.trainable(), strict=True):
            p.copy_(saved)
    resumed.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    assert torch.equal(steps(resumed, [3]), steps(run, [3]))


@pytest.mark.parametrize(
    ("gpu", "name", "asked"),
    [
        (True, None, ["expandable_segments:True"]),
        (False, None, []),
        (True, "PYTORCH_CUDA_ALLOC_CONF", []),
        (True, "PYTORCH_ALLOC_CONF", []),
    ],
)
def test_segments_grow_on_a_gpu_unless_the_user_says_otherwise(monkeypatch, gpu, name, asked):
    for known in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(known, raising=False)
    if name:
        monkeypatch.setenv(name, "garbage_collection_threshold:0.8")
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", told.append)
    grow_segments()
    assert told == asked


def test_counting_what_autograd_keeps_keeps_nothing():
    policy = build(tiny_recipe()).policy
    recompute(policy.base, 0)
    kept = []

    def remember(module, given, out) -> None:
        kept.append(weakref.ref(out.untyped_storage()))

    hook = policy.base.base_model.layers[1].register_forward_hook(remember)
    with Saved(policy.model):
        scored = policy.logprobs(probe(256, BATCH))
    assert kept[0]() is not None
    del scored
    hook.remove()
    assert kept[0]() is None
