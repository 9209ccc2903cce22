"""Identities of the objectives: limits are bit-equal, what cannot teach costs nothing, what is missing is not a zero."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import groups_of, value_and_grads

from lgrpo_lite.algorithm import Algorithm, Clip, Kl, LengthPreference, Trace
from lgrpo_lite.objective.named import NAMED, complete
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.objective.weight import grpo_lambda, prefix_share
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score


@st.composite
def cases(draw, most: int = 4):
    """Ragged groups with random rewards and log-probs; old and reference are drifted."""
    out = []
    for _ in range(draw(st.integers(1, most))):
        lengths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
        noise = [torch.randn(3, n, generator=generator, dtype=torch.float64) for n in lengths]
        out.append(
            {
                "lengths": lengths,
                "rewards": draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(lengths), max_size=len(lengths))),
                "logp": [(-1 - x[0].abs()).tolist() for x in noise],
                "old_logp": [(-1 - x[0].abs() + 0.1 * x[1]).tolist() for x in noise],
                "ref_logp": [(-1 - x[0].abs() + 0.3 * x[2]).tolist() for x in noise],
            }
        )
    return out


def objective(parts: Algorithm) -> Objective:
    return Objective(parts, max_new_tokens=16, hidden=4, dtype=torch.float64)


def same(left: Algorithm, right: Algorithm, case: list[dict]) -> None:
    a, b = (value_and_grads(objective(parts), groups_of(case), torch.float64) for parts in (left, right))
    assert a.loss == b.loss
    assert torch.equal(a.logp_grad, b.logp_grad)


@given(case=cases())
def test_a_trace_without_decay_is_grpo(case):
    still = Trace(lambda_=0.0, style="recent")
    same(Algorithm(kl=Kl(coef=0.04), trace=still), Algorithm(kl=Kl(coef=0.04)), case)


@given(case=cases())
def test_lambda_zero_is_the_token_mean_of_groups(case):
    kind = {"reduce": "group_token_mean", "kl": Kl(coef=0.02, weighted=True)}
    left = value_and_grads(objective(Algorithm(**kind, length_preference=LengthPreference())), groups_of(case), torch.float64)
    right = value_and_grads(objective(Algorithm(**kind)), groups_of(case), torch.float64)
    torch.testing.assert_close(left.logp_grad, right.logp_grad, rtol=1e-14, atol=1e-15)


@given(case=cases(most=1))
def test_one_group_has_one_token_mean(case):
    same(Algorithm(reduce="group_token_mean"), Algorithm(reduce="token_mean"), case)


@given(case=cases())
def test_trace_and_weight_modes_agree_on_policy(case):
    on_policy = [c | {"old_logp": c["logp"]} for c in case]
    grads = [
        value_and_grads(objective(Algorithm(trace=Trace(mode=mode))), groups_of(on_policy), torch.float64).logp_grad
        for mode in ("trace", "weight")
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


@given(case=cases(), name=st.sampled_from(sorted(NAMED)), budget=st.integers(1, 60))
def test_any_split_gives_the_same_gradient(case, name, budget):
    parts = complete(Algorithm(use=name), "here")
    if parts.advantage == "beta":
        case = [c | {"rewards": [float(r > 0) for r in c["rewards"]]} for c in case]
    whole = value_and_grads(objective(parts), groups_of(case), torch.float64)
    split = value_and_grads(objective(parts), groups_of(case), torch.float64, budget=budget)
    torch.testing.assert_close(split.logp_grad, whole.logp_grad, rtol=1e-13, atol=1e-15)
    assert split.loss == pytest.approx(whole.loss, rel=1e-12, abs=1e-14)
    if whole.lam_grad is not None:
        torch.testing.assert_close(split.lam_grad, whole.lam_grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", [name for name, row in sorted(NAMED.items()) if row().compares_answers])
def test_equal_rewards_teach_nothing(name):
    case = groups_of([{"lengths": [3, 5], "rewards": [1, 1]}, {"lengths": [2, 2], "rewards": [0, 0]}])
    parts = complete(Algorithm(use=name, kl=Kl(coef=0.0)), "here")
    batch = objective(parts).batch(case.groups)
    assert (batch is not None) == (parts.surrogate == "residual")  # which pulls towards its anchor all the same


def test_a_silent_group_counts_in_the_normaliser_but_sees_no_forward():
    loud, silent = {"lengths": [3, 5], "rewards": [1, 0]}, {"lengths": [4, 4], "rewards": [1, 1]}
    parts = Algorithm(reduce="token_mean")
    alone, both = (objective(parts).batch(groups_of(c).groups) for c in ([loud], [loud, silent]))
    assert both.num_tokens == alone.num_tokens == 8
    torch.testing.assert_close(both.coef, alone.coef * 8 / 16)


def test_a_kl_trains_silent_groups_too():
    case = groups_of([{"lengths": [3, 5], "rewards": [1, 1]}])
    assert objective(Algorithm(kl=Kl(coef=0.1))).batch(case.groups).num_tokens == 8


def test_truncated_answers_can_be_left_out():
    case = groups_of([{"lengths": [3, 5], "rewards": [1, 0]}])
    group = case.groups[0]
    cut = Rollout(group.prompt, Completion((1, 2), (0.0, 0.0), "", "length", 0), Score(0.0, Outcome.wrong))
    batch = objective(Algorithm(mask_truncated=True)).batch([Group(group.prompt, (*group.rollouts, cut))])
    assert batch.row.tolist() == [0, 1]
    assert batch.step_length.tolist() == [3, 5, 2]


def test_admission():
    prompt = Prompt("0", "?", (1,), "")
    one = Rollout(prompt, Completion((1,), (0.0,), "", "stop", 0), Score(1.0, Outcome.ok))
    zero = Rollout(prompt, Completion((1,), (0.0,), "", "stop", 0), Score(0.0, Outcome.wrong))
    everything, varied = objective(Algorithm()), objective(Algorithm(admit="varied"))
    assert not everything.admit(Group(prompt, (one,), missing=3))  # three rewards are missing: nothing to compare with
    assert everything.admit(Group(prompt, (one, one)))
    assert not varied.admit(Group(prompt, (one, one)))
    assert varied.admit(Group(prompt, (one, zero)))


def test_rollout_correction_is_capped_and_neutral_when_the_sampler_agrees():
    case = [{"lengths": [2, 2], "rewards": [1, 0], "logp": [[-1.0, -1.0]] * 2, "old_logp": [[-1.0, -1.0]] * 2}]
    same(Algorithm(), Algorithm(rollout_correction=None), case)
    batch = objective(Algorithm()).batch(groups_of(case).groups)
    far = torch.full_like(batch.sampler_logp, -9.0)
    from dataclasses import replace

    logp = torch.full((4,), -1.0, dtype=torch.float64, requires_grad=True)
    for sampler, factor in ((batch.sampler_logp, 1.0), (far, 2.0)):
        loss, _ = objective(Algorithm()).forward(logp, replace(batch, sampler_logp=sampler))
        grad = torch.autograd.grad(loss, logp)[0]
        torch.testing.assert_close(grad, -batch.coef * batch.advantage * factor)


def test_the_clip_counts_what_it_silences():
    case = [{"lengths": [1, 1], "rewards": [1, 0], "logp": [[0.0], [-2.0]], "old_logp": [[-1.0], [-1.0]]}]
    o = objective(Algorithm(clip=Clip(low=0.2, high=0.2)))
    batch = o.batch(groups_of(case).groups)
    from dataclasses import replace

    _, seen = o(torch.tensor([0.0, -2.0], dtype=torch.float64), replace(batch, old_logp=batch.sampler_logp))
    assert (seen["clip_high"], seen["clip_low"]) == (1.0, 1.0)


@given(answers=st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=6))
def test_prefix_share_counts_shared_prefixes(answers):
    expected = [[1 / sum(other[: t + 1] == a[: t + 1] for other in answers) for t in range(len(a))] for a in answers]
    assert prefix_share(answers) == expected


def test_lambda_that_weighs_like_grpo():
    length = torch.tensor([312, 355, 401, 298, 512, 768, 289, 340])
    assert grpo_lambda(length, torch.zeros_like(length), 1 / 9) == pytest.approx(-3.3, abs=0.05)


@pytest.mark.parametrize(("normalizer", "lam"), [("softmax", 1.0), ("power", 1.0), ("power", -3.0)])
def test_weights_of_a_group_sum_to_its_size(normalizer, lam):
    o = objective(Algorithm(length_preference=LengthPreference(lambda_init=lam, normalizer=normalizer)))
    length, group = torch.tensor([3, 9, 4, 7, 7]), torch.tensor([0, 0, 0, 1, 1])
    f = o.preference(length, group)
    assert f[:3].sum().item() == pytest.approx(3)
    assert f[3:].tolist() == pytest.approx([1, 1])
    assert (f[1] > f[0]) == (lam > 0)
