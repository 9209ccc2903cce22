"""The checksum of frozen weights: every bit counts, and nothing else does."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import tiny_recipe

import lgrpo_lite.policy.fingerprint as module
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import probe

WEIGHTS = ["fp32", "bf16", "fp16", "int8", "nf4"]
BATCH = probe(256, ((5, 6), (7, 3)))


def scored(policy: Policy) -> torch.Tensor:
    return policy.logprobs(BATCH).logp


def loaded(weights: str) -> Policy:
    """After a first pass, as any policy is before it is proved: only then does LLM.int8 keep
    its row scales where they stay.
    """
    policy = Policy.load(tiny_recipe(f"model.weights={weights}"))
    with torch.no_grad():
        scored(policy)
    return policy


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    return {weights: loaded(weights) for weights in WEIGHTS}


def frozen(policy: Policy) -> dict[str, torch.Tensor]:
    """Every tensor that a frozen weight consists of, found without the code under test."""
    found = {name: p.data for name, p in policy.model.named_parameters() if not p.requires_grad}
    for name, p in policy.model.named_parameters():
        if (state := getattr(p, "quant_state", None)) is not None:
            found |= {
                f"{name} absmax": state.absmax,
                f"{name} nested absmax": state.state2.absmax,
                f"{name} offset": state.offset,
            }
    for name, layer in policy.model.named_modules():
        if name.endswith("base_layer") and hasattr(layer, "state"):
            found[f"{name} scale"] = layer.state.SCB
    return found


def flipped(tensor: torch.Tensor, element: int, bit: int) -> None:
    """Flip one bit in place; twice gives the tensor back."""
    raw = tensor.view(-1).view(torch.uint8)
    width = tensor.element_size()
    raw[(element % tensor.numel()) * width + bit // 8 % width] ^= 1 << bit % 8


def parts(kind: str) -> list[str]:
    return {"nf4": [" absmax", " nested absmax", " offset"], "int8": [" scale"]}.get(kind, [])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_same_weights_have_the_same_checksum(policies, weights):
    own = fingerprint(policies[weights].model)
    assert own == fingerprint(loaded(weights).model) and len(own) == 32 and int(own, 16)
    assert own not in [fingerprint(policies[other].model) for other in WEIGHTS if other != weights]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_one_flipped_bit_of_any_tensor_shows(policies, weights):
    policy = policies[weights]
    own, tensors = fingerprint(policy.model), frozen(policy)
    assert all(any(name.endswith(part) for name in tensors) for part in parts(weights))
    for number, (name, tensor) in enumerate(tensors.items()):
        flipped(tensor, 31 * number, number)
        assert fingerprint(policy.model) != own, name
        flipped(tensor, 31 * number, number)
    assert fingerprint(policy.model) == own


@pytest.mark.parametrize("weights", ["fp32", "int8", "nf4"])
@settings(max_examples=40)
@given(tensor=st.integers(0, 10**4), element=st.integers(0, 10**6), bit=st.integers(0, 31))
@example(tensor=0, element=0, bit=0)
@example(tensor=0, element=-1, bit=31)
def test_any_bit_anywhere_shows(policies, weights, tensor, element, bit):
    policy = policies[weights]
    tensors = list(frozen(policy).values())
    picked, own = tensors[tensor % len(tensors)], fingerprint(policy.model)
    flipped(picked, element, bit)
    assert fingerprint(policy.model) != own
    flipped(picked, element, bit)
    assert fingerprint(policy.model) == own


@pytest.mark.parametrize("weights", WEIGHTS)
def test_training_the_adapter_does_not_show(weights):
    policy = loaded(weights)
    own, before = fingerprint(policy.model), [p.detach().clone() for p in policy.trainable()]
    scored(policy).mean().backward()
    torch.optim.AdamW(policy.trainable(), lr=1e-3).step()
    assert any(not torch.equal(p, old) for p, old in zip(policy.trainable(), before, strict=True))
    assert fingerprint(policy.model) == own


@pytest.mark.parametrize("weights", WEIGHTS)
def test_modes_and_passes_do_not_show(weights):
    policy = loaded(weights)
    own = fingerprint(policy.model)
    for mode in (policy.model.train, policy.model.eval):
        mode()
        assert fingerprint(policy.model) == own
        scored(policy).mean().backward()
        with torch.no_grad(), policy.reference():
            scored(policy)
        assert fingerprint(policy.model) == own


@pytest.mark.parametrize("chunk", [1 << 9, 1000, 1 << 30])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_does_not_depend_on_how_much_is_read_at_once(policies, monkeypatch, weights, chunk):
    own = fingerprint(policies[weights].model)
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert fingerprint(policies[weights].model) == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64])
def test_places_count(dtype):
    """Changes that cancel in a plain sum, and two numbers that change places."""

    class Frozen(torch.nn.Module):
        def __init__(self, *values):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(values).to(dtype), requires_grad=False)

    own = fingerprint(Frozen(1, 2, 3, 4))
    assert own == fingerprint(Frozen(1, 2, 3, 4))
    assert own not in [
        fingerprint(Frozen(*values)) for values in ((2, 1, 3, 4), (1, 3, 2, 4), (4, 2, 3, 1), (2, 2, 2, 4))
    ]


def test_only_frozen_weights_count():
    layer = torch.nn.Linear(3, 2)
    own = fingerprint(layer)
    layer.weight.data.zero_()
    assert fingerprint(layer) == own == "0" * 32
    layer.weight.requires_grad_(False)
    layer.weight.data.fill_(1.0)
    assert fingerprint(layer) != own


def test_int8_scales_count_before_the_first_pass():
    policy = Policy.load(tiny_recipe("model.weights=int8"))
    own = fingerprint(policy.model)
    scored(policy)
    assert fingerprint(policy.model) == own
