"""The gradient of a step through a real model, ∂λ included: the same for any
split, order of groups and padding.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from lgrpo_lite.layout import split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.algorithm import Algorithm, LengthPreference, Trace
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score

COMBINED = Algorithm(
    reduce="group_token_mean",
    length_preference=LengthPreference(lambda_init=0.7),
    trace=Trace(lambda_=0.9),
    rollout_correction=None,
)
TOKEN_MEAN = Algorithm(reduce="token_mean", rollout_correction=None)


@cache
def policy() -> Policy:
    """Two float64 layers with a LoRA adapter whose B is not zero."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config).double().requires_grad_(False)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return Policy(model, None, temperature=0.8, chunk=7, dtype=torch.float64)


def groups(shape: list[list[int]], seed: int) -> list[Group]:
    """One group per list of answer lengths; prompts differ in length between groups."""
    g = torch.Generator().manual_seed(seed)
    ids = lambda n: tuple(torch.randint(1, 32, (n,), generator=g).tolist())  # noqa: E731
    out = []
    for number, lengths in enumerate(shape):
        prompt = Prompt(str(number), "?", ids(1 + number % 4), "")
        rewards = torch.randint(0, 2, (len(lengths),), generator=g).tolist()
        rollouts = tuple(
            Rollout(prompt, Completion(ids(n), (-1.0,) * n, "", "stop", 0), Score(float(r), Outcome.ok))
            for n, r in zip(lengths, rewards, strict=True)
        )
        out.append(Group(prompt, rollouts))
    return out


@dataclass
class Gradients:
    loss: float
    theta: torch.Tensor
    lam: torch.Tensor


def gradients(parts: Algorithm, these: list[Group], budget: int, layouts=("rows",)) -> Gradients | None:
    p, objective = policy(), Objective(parts, max_new_tokens=16, dtype=torch.float64)
    p.model.zero_grad(set_to_none=True)
    batch = objective.batch(these)
    if batch is None:
        return None
    loss = 0.0
    for _, micro in split(batch, budget, layouts):
        part, _ = objective(p.logprobs(micro)[0], micro)
        part.backward()
        loss += part.item()
    lam = objective.preference.lam.grad if objective.preference else torch.zeros(())
    return Gradients(loss, torch.cat([x.grad.flatten() for x in p.trainable()]), lam.clone())


SHAPES = st.lists(st.lists(st.integers(1, 10), min_size=2, max_size=4), min_size=1, max_size=4)


@settings(max_examples=25)
@given(shape=SHAPES, seed=st.integers(0, 999), budget=st.integers(1, 64), shuffle=st.randoms(use_true_random=False),
       parts=st.sampled_from([COMBINED, TOKEN_MEAN]))  # fmt: skip
def test_split_order_and_padding_change_nothing(shape, seed, budget, shuffle, parts):
    these = groups(shape, seed)
    whole = gradients(parts, these, budget=10**9)  # one micro-batch: everything padded to the longest
    shuffled = list(these)
    shuffle.shuffle(shuffled)
    # 1: each row alone, no padding at all
    for other in (gradients(parts, these, budget), gradients(parts, shuffled, 1)):
        if whole is None:
            assert other is None
            continue
        assert other.loss == pytest.approx(whole.loss, rel=1e-11, abs=1e-13)
        torch.testing.assert_close(other.theta, whole.theta, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(other.lam, whole.lam, rtol=1e-9, atol=1e-12)


def test_logprobs_are_those_of_the_plain_model():
    p = policy()
    these = groups([[4, 7], [2, 3]], seed=3)
    batch = Objective(TOKEN_MEAN, max_new_tokens=16, dtype=torch.float64).batch(
        [
            Group(g.prompt, (replace_reward(g.rollouts[0], 1.0), replace_reward(g.rollouts[1], 0.0)))
            for g in these
        ]
    )
    logp, entropy, hidden = p.logprobs(batch, prompt_hidden=True)
    expected, spread = [], []
    for group in these:
        for rollout in group.rollouts:
            ids = torch.tensor([[*group.prompt.token_ids, *rollout.completion.token_ids]])
            scores = (p.model(input_ids=ids).logits[0] / p.temperature).log_softmax(-1)
            for t in range(len(group.prompt.token_ids), ids.shape[1]):
                expected.append(scores[t - 1, ids[0, t]])
                spread.append(-(scores[t - 1].exp() * scores[t - 1]).sum())
    torch.testing.assert_close(logp, torch.stack(expected), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropy, torch.stack(spread), rtol=1e-10, atol=1e-12)
    prompts = [torch.tensor([g.prompt.token_ids]) for g in these for _ in g.rollouts]
    means = [p.base.base_model(input_ids=ids).last_hidden_state[0].mean(0) for ids in prompts]
    torch.testing.assert_close(hidden, torch.stack(means), rtol=1e-10, atol=1e-12)


def test_the_reference_is_the_adapter_switched_off():
    p = policy()
    ids = torch.tensor([[1, 2, 3, 4]])
    on = p.model(input_ids=ids).logits
    with p.reference():
        off = p.model(input_ids=ids).logits
    assert not torch.equal(on, off)
    with p.model.disable_adapter():
        assert torch.equal(off, p.model(input_ids=ids).logits)


def replace_reward(rollout: Rollout, reward: float) -> Rollout:
    return Rollout(rollout.prompt, rollout.completion, Score(reward, Outcome.ok))
