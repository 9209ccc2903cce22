"""Optimisers: their moments are there from the start, and change nothing of what is trained."""

import copy

import pytest
import torch
from support import tiny_recipe

from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.budget import moments_bytes
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.optim import Optimizers

USES = ["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
HEAD = "algorithm.use=flowrl"


def made(use: str = "adamw", *more: str) -> Optimizers:
    """Of a policy with tensors large enough for 8-bit moments."""
    recipe = tiny_recipe(f"optim.use={use}", "optim.weight_decay=0.1", "model.lora.rank=64", *more)
    policy = Policy.load(recipe)
    width = policy.base.get_output_embeddings().weight.shape[1]
    return Optimizers(
        recipe, policy, Objective(recipe.algorithm, max_new_tokens=recipe.model.max_new_tokens, hidden=width)
    )


def parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def lazy(use: str) -> torch.optim.Optimizer:
    """Of an equal policy, with nothing made yet."""
    optimizer = made(use).policy
    optimizer.state.clear()
    return optimizer


def step(optimizer: torch.optim.Optimizer, *numbers: int) -> None:
    for number in numbers:
        drawn = torch.Generator().manual_seed(number)
        for parameter in parameters(optimizer):
            parameter.grad = torch.randn(parameter.shape, generator=drawn)
        optimizer.step()


def same(one, other) -> bool:
    """Equal in every bit, type and key."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("use", USES)
def test_moments_made_early_train_the_same_and_are_saved_the_same(use):
    early, late = made(use).policy, lazy(use)
    for numbers in ([1], [2, 3]):
        step(early, *numbers)
        step(late, *numbers)
        assert all(torch.equal(a, b) for a, b in zip(parameters(early), parameters(late), strict=True))
        assert same(early.state_dict(), late.state_dict())


@pytest.mark.parametrize("done", [[], [1]], ids=["before its first step", "after it"])
@pytest.mark.parametrize("use", USES)
def test_a_resumed_run_goes_on_the_same(use, done):
    whole, resumed = made(use).policy, made(use).policy
    step(whole, *done)
    with torch.no_grad():
        for parameter, kept in zip(parameters(resumed), parameters(whole), strict=True):
            parameter.copy_(kept)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    step(whole, 5, 6)
    step(resumed, 5, 6)
    assert all(torch.equal(a, b) for a, b in zip(parameters(resumed), parameters(whole), strict=True))


def test_a_state_saved_before_there_were_moments_is_taken_too():
    early, late = made().policy, lazy("adamw")
    early.load_state_dict(late.state_dict())
    step(early, 1, 2)
    step(late, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(parameters(early), parameters(late), strict=True))


@pytest.mark.parametrize("use", ["adamw", "adamw_8bit"])
def test_the_memory_of_moments_is_taken_when_the_run_is_built(use):
    optimizer = made(use)
    at_first = [id(t) for t in optimizer.state_tensors()]
    sizes = [p.numel() for p in parameters(optimizer.policy)]
    found = {t.data_ptr(): t.numel() * t.element_size() for t in optimizer.state_tensors() if t.dim()}
    maps = {
        t.data_ptr() for s in optimizer.policy.state.values() for k, t in s.items() if k.startswith("qmap")
    }
    assert sum(size for at, size in found.items() if at not in maps) == moments_bytes(sizes, use)
    step(optimizer.policy, 1)
    assert [id(t) for t in optimizer.state_tensors()] == at_first


def test_those_of_the_head_too():
    optimizer = made("adamw", HEAD)
    assert optimizer.head is not None and set(optimizer.head.state) == set(parameters(optimizer.head))


# ------------------------------------------------------------------------------------------- a GPU we do not have


@pytest.mark.parametrize("use", USES)
def test_bitsandbytes_waits_for_the_gradients(monkeypatch, use):
    """Its kernels take no stream, so nothing else orders them after what runs on vLLM's."""
    optimizer, said = made(use), []
    optimizer.device = torch.device("cuda", 0)
    taken = optimizer.policy.step

    def stepped():
        said.append(
            "step"
            if len(optimizer.policy.state) == len(parameters(optimizer.policy))
            else "step without moments"
        )
        taken()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: said.append(f"wait for {device}"))
    monkeypatch.setattr(optimizer.policy, "step", stepped)
    for parameter in parameters(optimizer.policy):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert said == (["step"] if use == "adamw" else ["wait for cuda:0", "step"])
