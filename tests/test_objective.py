"""Identities of the objectives: limits are bit-equal, what cannot teach costs nothing,
what is missing is not a zero.
"""

import itertools
import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import groups_of, value_and_grads

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.objective.advantage import centred
from lgrpo_lite.objective.named import NAMED, complete
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.objective.select import SELECT, places
from lgrpo_lite.objective.weight import grpo_lambda, prefix_share, top_entropy
from lgrpo_lite.recipe.algorithm import (
    Algorithm,
    Cispo,
    Clip,
    Kl,
    LengthPreference,
    Residual,
    Select,
    Shaped,
    Trace,
)
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
                "rewards": draw(
                    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(lengths), max_size=len(lengths))
                ),
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


@given(case=cases(most=1))
def test_one_group_has_one_token_mean(case):
    same(Algorithm(reduce="group_token_mean"), Algorithm(reduce="token_mean"), case)


@given(case=cases())
def test_trace_and_weight_modes_agree_on_policy(case):
    on_policy = [c | {"old_logp": c["logp"]} for c in case]
    grads = [
        value_and_grads(
            objective(Algorithm(trace=Trace(mode=mode))), groups_of(on_policy), torch.float64
        ).logp_grad
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
    # which pulls towards its anchor all the same
    assert (batch is not None) == (parts.surrogate == "residual")


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
    # three rewards are missing: nothing to compare with
    assert not everything.admit(Group(prompt, (one,), missing=3))
    assert everything.admit(Group(prompt, (one, one)))
    assert not varied.admit(Group(prompt, (one, one)))
    assert varied.admit(Group(prompt, (one, zero)))


def test_rollout_correction_is_capped_and_neutral_when_the_sampler_agrees():
    case = [
        {"lengths": [2, 2], "rewards": [1, 0], "logp": [[-1.0, -1.0]] * 2, "old_logp": [[-1.0, -1.0]] * 2}
    ]
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
    expected = [
        [1 / sum(other[: t + 1] == a[: t + 1] for other in answers) for t in range(len(a))] for a in answers
    ]
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


# ------------------------------------------------------------------------------------------- limits of the related algorithms


@given(case=cases())
def test_lambda_zero_is_the_token_mean_bit_for_bit(case):
    for reduce in ("token_mean", "group_token_mean"):
        same(Algorithm(reduce=reduce, length_preference=LengthPreference()), Algorithm(reduce=reduce), case)


@given(case=cases())
def test_prefixes_that_nobody_shares_change_nothing(case):
    number = iter(range(10_000))
    apart = [c | {"token_ids": [[next(number) for _ in range(n)] for n in c["lengths"]]} for c in case]
    same(
        Algorithm(prefix_share=True, kl=Kl(coef=0.04, weighted=True)),
        Algorithm(kl=Kl(coef=0.04, weighted=True)),
        apart,
    )
    assert (
        objective(Algorithm(prefix_share=True, kl=Kl(coef=0.1))).batch(groups_of(apart).groups).weight == 1
    ).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_rebel_over_all_pairs_is_the_centred_square(size):
    """mean over pairs of (Δ_i - Δ_j - η(R_i - R_j))² = 2G/(G-1) · mean of the centred
    square; bit for bit in powers of two.
    """
    generator = torch.Generator().manual_seed(size)
    lengths = [1 + i % 3 for i in range(size)]
    eighths = [(torch.randint(-16, 16, (2, n), generator=generator).double() / 8) for n in lengths]
    rewards = [float(i % 3 == 0) for i in range(size)]
    case = {
        "lengths": lengths,
        "rewards": rewards,
        "logp": [x[0].tolist() for x in eighths],
        "old_logp": [x[1].tolist() for x in eighths],
    }
    parts = complete(Algorithm(use="rebel"), "here")
    ours = value_and_grads(objective(parts), groups_of([case]), torch.float64)
    logp = [x[0].clone().requires_grad_() for x in eighths]
    drift = torch.stack([(now - x[1]).sum() for now, x in zip(logp, eighths, strict=True)])
    pairs = [(drift[i] - drift[j] - (rewards[i] - rewards[j])) ** 2 for i in range(size) for j in range(i)]
    loss = sum(pairs) / len(pairs)
    loss.backward()
    theirs = torch.cat([x.grad for x in logp])
    torch.testing.assert_close(ours.logp_grad, theirs, rtol=1e-13, atol=1e-15)
    assert ours.loss == pytest.approx(loss.item(), rel=1e-13)
    plain = parts.model_copy(update={"residual": parts.residual.model_copy(update={"pairs": False})})
    centred = value_and_grads(objective(plain), groups_of([case]), torch.float64)
    factor = 2 * size / (size - 1)
    if size == 2:  # the factor is 4 and every number an eighth: nothing is rounded
        assert torch.equal(ours.logp_grad, centred.logp_grad * factor) and torch.equal(ours.logp_grad, theirs)
    torch.testing.assert_close(ours.logp_grad, centred.logp_grad * factor, rtol=1e-14, atol=1e-16)
    assert ours.loss == pytest.approx(centred.loss * factor, rel=1e-14)


@pytest.mark.parametrize("beta", [15.0, 16.0, 1.0])
@pytest.mark.parametrize(
    ("lengths", "rewards"), [([1, 2, 4, 8], [1, 0, 0, 1]), ([4, 4], [0, 1]), ([8, 1, 2, 2], [1, 1, 0, 0])]
)
def test_the_first_gradient_of_flowrl_is_that_of_grpo(lengths, rewards, beta):
    """θ = old = reference: 2β times GRPO's gradient, bit for bit where lengths are powers of two."""
    case = [{"lengths": lengths, "rewards": rewards}, {"lengths": lengths[::-1], "rewards": rewards}]
    flow = complete(Algorithm(use="flowrl_group", advantage_eps=1e-4, residual=Residual(target=beta)), "here")
    ours = value_and_grads(objective(flow), groups_of(case), torch.float64).logp_grad
    grpo = value_and_grads(objective(Algorithm()), groups_of(case), torch.float64).logp_grad
    assert torch.equal(ours, 2 * beta * grpo)


@given(case=cases())
def test_the_first_gradient_of_flowrl_is_that_of_grpo_for_any_lengths(case):
    still = [{key: c[key] for key in ("lengths", "rewards")} for c in case]
    flow = complete(Algorithm(use="flowrl_group", advantage_eps=1e-4), "here")
    ours = value_and_grads(objective(flow), groups_of(still), torch.float64).logp_grad
    grpo = value_and_grads(objective(Algorithm()), groups_of(still), torch.float64).logp_grad
    torch.testing.assert_close(ours, 30 * grpo, rtol=1e-12, atol=1e-13)


@given(case=cases())
def test_other_limits(case):
    same(Algorithm(select=Select(keep=1.0)), Algorithm(), case)  # nothing is pruned
    same(Algorithm(reduce="micro_token_mean"), Algorithm(reduce="group_token_mean"), case)
    same(Algorithm(clip=Clip(dual=1e9)), Algorithm(), case)
    same(Algorithm(refine_best={}, shaped=Shaped()), Algorithm(refine_best={}), case)  # no answer was refined
    still = [c | {"old_logp": c["logp"]} for c in case]
    unbounded = Cispo(cap=1e9)
    left, right = (
        value_and_grads(objective(parts), groups_of(still), torch.float64).logp_grad
        for parts in (Algorithm(surrogate="cispo", cispo=unbounded), Algorithm(surrogate="unclipped"))
    )
    torch.testing.assert_close(left, right, rtol=1e-14, atol=1e-16)
    one = value_and_grads(objective(Algorithm(ratio="sequence")), groups_of(still), torch.float64).logp_grad
    torch.testing.assert_close(one, right, rtol=1e-13, atol=1e-16)


def test_a_dual_clip_bounds_the_loss_of_bad_answers():
    case = [{"lengths": [1, 1], "rewards": [0, 1], "logp": [[0.0], [-1.0]], "old_logp": [[-3.0], [-1.0]]}]
    plain, dual = (
        value_and_grads(
            objective(Algorithm(advantage="mean_only", clip=Clip(dual=c))), groups_of(case), torch.float64
        )
        for c in (None, 3.0)
    )
    assert plain.logp_grad[0] > 0 and dual.logp_grad[0] == 0
    assert dual.loss == pytest.approx(-(3 * -0.5 + 0.5) / 2)


def test_top_entropy_takes_a_share_of_each_answer():
    entropy = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.3], dtype=torch.float64)
    seq = torch.tensor([0, 0, 0, 1, 1])
    assert top_entropy(entropy, seq, 0.5).tolist() == [0, 1, 1, 1, 0]
    assert top_entropy(entropy, seq, 0.01).tolist() == [0, 1, 0, 1, 0]


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=7), st.floats(0.1, 1.0))
def test_selections_keep_what_they_say(rewards, keep):
    for rule in SELECT.values():
        advantage = centred(rewards)
        kept = rule(advantage, rewards, places(len(rewards), keep))
        assert kept == sorted(set(kept)) and len(kept) == max(1, int(len(rewards) * keep + 1e-9))
        left = [abs(a) for i, a in enumerate(advantage) if i not in kept]
        if rule is SELECT["top_abs"] and left:
            assert min(abs(advantage[i]) for i in kept) >= max(left)
        if rule is SELECT["max_variance"]:
            best = max(statistics.pvariance(c) for c in itertools.combinations(rewards, len(kept)))
            assert statistics.pvariance([rewards[i] for i in kept]) == pytest.approx(best, abs=1e-12)


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize(
    "case",
    [
        [{"lengths": [3, 2], "rewards": [-5.0, -1.0]}],  # negative rewards
        [{"lengths": [3, 0], "rewards": [1.0, 0.0]}],  # an empty answer
        [{"lengths": [0, 0], "rewards": [1.0, 0.0]}],  # nothing but empty answers
        [
            {"lengths": [2], "rewards": [1.0]},
            {"lengths": [2, 3], "rewards": [0.0, 1.0]},
        ],  # a group with one member left
        [{"lengths": [2, 2], "rewards": [1e6, -1e6]}],
        [{"lengths": [1, 1], "rewards": [1.0, 1.0 + 1e-12]}],
    ],
    ids=["negative", "empty", "all-empty", "one-left", "huge", "nearly-equal"],
)
def test_bad_input_gives_finite_numbers(name, case):
    parts = complete(Algorithm(use=name), "here")
    if parts.advantage == "beta":
        case = [c | {"rewards": [float(r > 0) for r in c["rewards"]]} for c in case]
    out = value_and_grads(objective(parts), groups_of(case), torch.float64)
    assert math.isfinite(out.loss) and out.logp_grad.isfinite().all()
    assert out.lam_grad is None or out.lam_grad.isfinite()


def test_beta_names_a_reward_it_cannot_take():
    with pytest.raises(ConfigError, match=r"0\.5"):
        objective(complete(Algorithm(use="bnpo"), "here")).batch(
            groups_of([{"lengths": [1, 1], "rewards": [0.5, 1.0]}]).groups
        )


def test_beta_with_rates_that_nearly_coincide():
    parts = complete(Algorithm(use="bnpo"), "here")
    groups = groups_of(
        [{"lengths": [1] * 64, "rewards": [float(i < right) for i in range(64)]} for right in (32, 33)]
    ).groups
    assert all(math.isfinite(a) for row in objective(parts).advantage(groups, parts) for a in row)


def test_pairs_are_those_of_trained_answers():
    case = groups_of([{"lengths": [2, 2, 2, 2], "rewards": [1, 0, 1, 0]}])
    group = case.groups[0]
    cut = [replace(r, completion=replace(r.completion, finish_reason="length")) for r in group.rollouts[2:]]
    parts = complete(Algorithm(use="rebel", mask_truncated=True), "here")
    batch = objective(parts).batch([replace(group, rollouts=(*group.rollouts[:2], *cut))])
    logp = torch.zeros(batch.num_tokens, dtype=torch.float64)
    loss, _ = objective(parts)(logp, replace(batch, old_logp=logp))
    # (1/2)² twice, times 2G/(G-1) of two answers, over the four of the group
    assert loss == pytest.approx(4 * 0.25 * 2 / 4)


def test_beta_with_one_success_rate_is_the_plain_difference():
    parts = complete(Algorithm(use="bnpo"), "here")
    group = groups_of([{"lengths": [1, 1], "rewards": [0.0, 1.0]}]).groups
    assert objective(parts).advantage(group, parts) == [[-0.5, 0.5]]


@pytest.mark.parametrize("lam", [-5.0, 5.0, 60.0, -1e6])
def test_lambda_at_its_bounds_gives_finite_gradients(lam):
    parts = Algorithm(
        reduce="group_token_mean", length_preference=LengthPreference(lambda_init=lam, clamp=None)
    )
    out = value_and_grads(
        objective(parts), groups_of([{"lengths": [1, 5, 9], "rewards": [1, 0, 0]}]), torch.float64
    )
    assert math.isfinite(out.loss) and out.lam_grad.isfinite() and out.logp_grad.isfinite().all()


def test_an_entropy_bonus_is_the_mean_entropy_by_the_same_normaliser():
    case = groups_of([{"lengths": [3, 5], "rewards": [1, 0]}, {"lengths": [2, 2], "rewards": [1, 1]}])
    parts = Algorithm(reduce="token_mean", rollout_correction=None)
    plain, bonus = (
        Objective(parts.model_copy(update={"entropy_coef": c}), max_new_tokens=8) for c in (0.0, 0.5)
    )
    assert plain.batch(case.groups).num_tokens == 8  # a group with one reward teaches nothing
    batch = bonus.batch(case.groups)
    assert batch.num_tokens == 12  # but it has an entropy
    logp, entropy = torch.zeros(12), torch.arange(12.0).requires_grad_()
    loss = bonus(logp, batch, entropy)[0]
    torch.testing.assert_close(loss, plain(logp, batch, entropy)[0] - 0.5 * entropy.mean())
    loss.backward()
    torch.testing.assert_close(entropy.grad, torch.full((12,), -0.5 / 12))
