"""Rows, packed and shared prompt are one computation: the same loss and gradients, fewer tokens."""

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support import tiny_recipe
from test_exact import COMBINED, groups
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.layout import LAYOUT, clusters, micro_rows, packed, rows, shared, size_of, split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.load import head_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import check_head, probe, prove, usable_layouts
from lgrpo_lite.recipe.algorithm import Algorithm

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip


def made(config_class, model_class, dtype=torch.float64, *, targets="all-linear", **more) -> Policy:
    """A small model with an adapter whose B is not zero."""
    torch.manual_seed(0)
    base = (
        model_class(config_class(**SMALL | {"initializer_range": 0.2} | more)).to(dtype).requires_grad_(False)
    )
    model = get_peft_model(base, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return Policy(model, None, temperature=0.8, dtype=dtype)


@cache
def policy(dtype) -> Policy:
    p = made(Qwen2Config, Qwen2ForCausalLM, dtype)
    assert attention.install(p.base) is None
    return p


def step(p: Policy, parts: Algorithm, these, budget: int, layout: str):
    """Loss, ∂θ and ∂λ of a step in one layout."""
    objective = Objective(parts, max_new_tokens=16, dtype=p.dtype)
    p.model.zero_grad(set_to_none=True)
    batch, loss = objective.batch(these), 0.0
    if batch is None:
        return None
    for _, micro in split(batch, budget, (layout,)):
        scored = p.logprobs(micro)
        part, _ = objective(scored.logp, micro, scored.entropy)
        part.backward()
        loss += part.item()
    lam = objective.preference.lam.grad if objective.preference else torch.zeros(())
    return torch.tensor(loss), torch.cat([x.grad.flatten() for x in p.trainable()]), lam.clone()


SHAPES = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=4)


BONUS = Algorithm(reduce="token_mean", rollout_correction=None, entropy_coef=0.01)


@settings(max_examples=40)
@given(
    shape=SHAPES,
    seed=st.integers(0, 999),
    parts=st.sampled_from([COMBINED, BONUS]),
    budget=st.sampled_from([1, 40, 200, 10**9]),
    layout=st.sampled_from(["packed", "shared"]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
# Rows cut in other ways differ as much in float32. In float64 transformers' norms still compute in float32,
# and add up the gradients of a shared prompt there.
def test_every_layout_has_the_same_loss_and_gradients(shape, seed, budget, layout, parts, dtype):
    p, these = policy(dtype), groups(shape, seed)
    whole = step(p, parts, these, 10**9, "rows")
    other = step(p, parts, these, budget, layout)
    assert (whole is None) == (other is None)
    if whole is not None and other is not None:
        for a, b in zip(whole, other, strict=True):
            near = 1e-6 if dtype == torch.float32 else 1e-12 if layout == "packed" else 3e-7
            assert (a - b).norm() <= near * (1 + a.norm())


def test_the_mean_prompt_state_is_the_same():
    p = policy(torch.float64)
    batch = probe(64)
    means = []
    for layout in LAYOUT:
        (_, micro), *rest = split(batch, 10**9, (layout,))
        assert not rest
        hidden = p.logprobs(micro, prompt_hidden=True).prompt_hidden
        means.append(hidden[micro.row.argsort()])
    for other in means[1:]:
        torch.testing.assert_close(other, means[0], rtol=1e-10, atol=1e-12)


@given(
    shape=SHAPES,
    seed=st.integers(0, 99),
    budget=st.integers(1, 200),
    layout=st.sampled_from(list(LAYOUT)),
    whole=st.booleans(),
)
def test_a_split_is_a_partition_within_its_budget(shape, seed, budget, layout, whole):
    batch = Objective(Algorithm(entropy_coef=0.1), max_new_tokens=40).batch(groups(shape, seed))
    parts = micro_rows(batch, budget, layout, whole_groups=whole)
    assert sorted(s for part in parts for s in part) == list(range(batch.num_sequences))
    size = size_of(batch, layout)
    group = batch.step_group[batch.row].tolist()
    for part in parts:
        alone = len({group[s] for s in part}) == 1 if whole else len(part) == 1
        assert size(part) <= budget or alone
    if whole:
        homes = [{i for i, part in enumerate(parts) if any(group[s] == g for s in part)} for g in set(group)]
        assert all(len(home) == 1 for home in homes)


def test_what_the_model_is_given():
    # two answers to a prompt of 3, one to a prompt of 2; last tokens are left out
    batch = probe(64, ((3, 2), (3, 1), (2, 4)))
    assert rows(batch).input_ids.shape == (3, 5)
    assert packed(batch).input_ids.shape == (1, 4 + 3 + 5)
    laid = shared(batch)
    assert laid.input_ids.shape == (1, 3 + 1 + 0 + 2 + 3)
    assert laid.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert [tuple(s) for s in laid.segments] == [
        (0, 3, 0, 0),
        (3, 1, 0, 3),
        (4, 0, 0, 3),
        (4, 2, 0, 0),
        (6, 3, 4, 2),
    ]
    assert clusters(batch) == [[0, 1], [2]]
    assert [size_of(batch, layout)([0, 1, 2]) for layout in LAYOUT] == [15, 12, 9]
    for layout in LAYOUT.values():
        laid = layout(batch)
        read = laid.input_ids.flatten()[laid.place[batch.at]]
        assert torch.equal(read, batch.input_ids[batch.at])


def test_auto_takes_the_fewest_tokens():
    layouts = tuple(LAYOUT)

    def chosen(*answers):
        return split(probe(64, answers), 10**9, layouts)[0][1].layout

    assert chosen((30, 10), (30, 10), (30, 10)) == "shared"
    # equal lengths, nothing shared: no gathering to pay for
    assert chosen((10, 10), (11, 9), (12, 8)) == "rows"
    assert chosen((4, 50), (5, 3), (6, 10), (7, 4)) == "packed"


@pytest.mark.parametrize(
    ("config", "model", "more", "layouts"),
    [
        (LlamaConfig, LlamaForCausalLM, {}, ("rows", "packed", "shared")),
        (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}, ("rows", "packed", "shared")),
        (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 3.0}, ("rows", "packed", "shared")),
        (CohereConfig, CohereForCausalLM, {"logit_scale": 0.25}, ("rows", "packed", "shared")),
        (MistralConfig, MistralForCausalLM, {"sliding_window": 512}, ("rows", "packed", "shared")),
        (MistralConfig, MistralForCausalLM, {"sliding_window": 100}, ("rows", "packed", "shared")),
        (MistralConfig, MistralForCausalLM, {"sliding_window": 15}, ("rows",)),
        (LlamaConfig, LlamaForCausalLM, {"attention_dropout": 0.1}, ("rows",)),
        (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 4.0, "sliding_window": 512}, ("rows",)),
    ],
)
def test_what_other_models_allow(config, model, more, layouts):
    p = made(config, model, **more)
    p.model.eval()
    check_head(p, "model.id")
    usable, refused = usable_layouts(p)
    assert usable == layouts
    assert set(refused) == set(LAYOUT) - set(layouts)
    batch = probe(64)
    for layout in usable:
        for _, micro in split(batch, 10**9, (layout,)):
            logp = p.logprobs(micro).logp.split(torch.bincount(micro.seq).tolist())
            for s in range(micro.num_sequences):
                ids = micro.input_ids[micro.start[s] : micro.start[s] + micro.length[s]]
                scores = (p.model(input_ids=ids[None]).logits[0] / p.temperature).log_softmax(-1)
                first = int(micro.context[s])
                expected = scores[first - 1 : -1].gather(1, ids[first:, None])[:, 0]
                torch.testing.assert_close(logp[s], expected, rtol=1e-9, atol=1e-11)


def test_an_adapter_on_the_head_learns_too():
    p = made(LlamaConfig, LlamaForCausalLM, targets=["q_proj", "lm_head"])
    check_head(p, "model.id")
    batch = probe(64)
    (own,) = [x for name, x in p.model.named_parameters() if "lm_head.lora_A" in name]
    mine = torch.autograd.grad(p.logprobs(batch).logp.sum(), own)[0]
    truth = 0.0
    for s in range(batch.num_sequences):
        ids = batch.input_ids[batch.start[s] : batch.start[s] + batch.length[s]]
        first = int(batch.context[s])
        scores = (p.model(input_ids=ids[None]).logits[0] / p.temperature).log_softmax(-1)
        truth = truth + scores[first - 1 : -1].gather(1, ids[first:, None]).sum()
    torch.testing.assert_close(mine, torch.autograd.grad(truth, own)[0], rtol=1e-8, atol=1e-10)
    with p.reference():
        assert torch.equal(head_of(p.base).weight, p.base.lm_head.get_base_layer().weight)


def test_a_head_that_does_something_else_is_noticed():
    p = made(GraniteConfig, GraniteForCausalLM, logits_scaling=3.0)
    p.base.lm_head.register_forward_hook(lambda module, inputs, out: out * 0.5)
    with pytest.raises(ConfigError, match="does more than is known here"):
        check_head(p, "model.id")


def test_a_broken_model_is_noticed():
    p = made(LlamaConfig, LlamaForCausalLM)
    p.base.model.norm.weight[3] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        check_head(p, "model.id")


def test_attention_that_leaks_is_noticed(monkeypatch):
    p = made(Qwen2Config, Qwen2ForCausalLM)
    monkeypatch.setattr(attention, "plan", lambda segments, real=attention.plan: real([_merged(segments)]))
    usable, refused = usable_layouts(p)
    assert usable == ("rows",)
    assert refused["packed"].startswith("an answer's log-probs depend on ")


def _merged(segments):
    return type(segments[0])(0, sum(s.length for s in segments))


# ------------------------------------------------------------------------------------------- variable-length attention


def by_hand(q, k, v, plan, scale):
    """What attention._varlen gives on a card: sequence by sequence, the end of the
    queries at the end of the keys.
    """
    outs = []
    for (first, last), (begin, end) in zip(
        pairwise(plan.ends_q.tolist()), pairwise(plan.ends_k.tolist()), strict=True
    ):
        mask = torch.ones(last - first, end - begin, dtype=torch.bool).tril(end - begin - (last - first))
        own, keys, values = (x.transpose(0, 1) for x in (q[first:last], k[begin:end], v[begin:end]))
        out = scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)


class Fails(torch.autograd.Function):
    """Right forwards only."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no kernel image for this card\nCUDA error")


class Halves(Fails):
    @staticmethod
    def backward(ctx, grad):
        return grad / 2


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (lambda out: out, None),
        (Fails.apply, "no kernel image for this card"),
        (Halves.apply, "its gradients differ from those of `rows` by 0."),
        (lambda out: out.flip(0), "an answer's log-probs depend on "),
        (lambda out: out * 1.1, "its log-probs differ from those of `rows` by "),
    ],
)
def test_variable_length_attention_is_tried_forwards_and_backwards(monkeypatch, turn, reason):
    p = made(Qwen2Config, Qwen2ForCausalLM)
    monkeypatch.setattr("lgrpo_lite.policy.layouts._may_varlen", lambda policy: True)
    monkeypatch.setattr(attention, "_varlen", lambda *given: turn(by_hand(*given)))
    usable, refused = usable_layouts(p)
    assert usable == ("rows", "packed", "shared")  # buckets do what it cannot
    assert p.varlen == (reason is None)
    assert [*refused] == ([] if reason is None else ["variable-length attention"])
    assert reason is None or refused["variable-length attention"].startswith(reason)
    assert all(x.grad is None for x in p.model.parameters())


@pytest.mark.parametrize("grouped", [True, False])
def test_keys_are_repeated_only_for_a_torch_that_takes_no_groups(monkeypatch, grouped):
    """4 heads of queries to 2 of keys. torch 2.11 has no `enable_gqa`."""
    heads = []

    def old(q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale, window_size):
        heads.append((q.shape[1], k.shape[1], v.shape[1]))
        return torch.zeros_like(q)

    def new(q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale, window_size, enable_gqa=False):
        assert enable_gqa
        return old(q, k, v, ends_q, ends_k, longest_q, longest_k, scale=scale, window_size=window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", new if grouped else old)
    # as it is, not as it was
    monkeypatch.setattr(attention, "_varlen_options", attention._varlen_options.__wrapped__)
    p = made(Qwen2Config, Qwen2ForCausalLM)
    assert attention.install(p.base) is None and attention.has_varlen()
    p.varlen = True
    for layout in ("packed", "shared"):
        (_, micro), *_ = split(probe(64), 10**9, (layout,))
        p.logprobs(micro)
    assert set(heads) == {(4, 2, 2) if grouped else (4, 4, 4)}


def test_a_layout_asked_for_and_not_possible():
    p = made(MistralConfig, MistralForCausalLM, sliding_window=64)
    recipe = tiny_recipe("memory.layout=shared")
    with pytest.raises(
        ConfigError, match="cannot be laid out as 'shared': it attends to 64 tokens back"
    ) as error:
        prove(p, recipe)
    assert error.value.where == "command line, memory.layout=shared"
    assert prove(p, tiny_recipe("memory.layout=rows")) == ()
    assert any("attends to 64 tokens back" in note for note in prove(p, tiny_recipe()))
