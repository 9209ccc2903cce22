"""Rewards -> advantages. Host-side float64: groups are small and this number scales everything.

A brick takes the groups of a step and the parts of the algorithm, and gives per group one credit per rollout:
a number, or one number per token.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.algorithm import ADVANTAGES, Algorithm
from lgrpo_lite.types import Group, Rollout

Credit = float | list[float]
Advantage = Callable[[Sequence[Group], Algorithm], list[list[Credit]]]


def mean_std(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = (R_i - mean R)/(std R + eps), std sample or population (GRPO,
    arXiv:2402.03300). Equal rewards give zeros.
    """
    return [list(standardised(g.rewards, parts.advantage_std, parts.advantage_eps)) for g in groups]


def mean_only(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i - mean R (Dr. GRPO, arXiv:2503.20783). Equal rewards give exact zeros."""
    return [list(centred(g.rewards)) for g in groups]


def leave_one_out(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i - mean of the others = G/(G-1) (R_i - mean R) (RLOO,
    arXiv:2402.14740). One answer alone gives 0.
    """
    return [[a * len(g.rewards) / max(1, len(g.rewards) - 1) for a in centred(g.rewards)] for g in groups]


def beta(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = (R_i - p)/f(p; 1 + a/3, 1 + b/3), f the Beta density, p a group's success
    rate (BNPO, arXiv:2506.02864).

    a, b are the moments of p ~ Beta(a, b) over the groups of the step. All p equal: f = 1, so A = R - p. a =
    b = 3/2 divides by sqrt(p(1-p)), which is GRPO up to a constant. Rewards are 0 or 1, else ConfigError.
    """
    odd = next((r for g in groups for r in g.rewards if r not in (0.0, 1.0)), None)
    if odd is not None:
        fix = "use one reward of weight 1 that gives 0 or 1, or another advantage"
        raise ConfigError(
            f"advantage beta met the reward {odd:g}, it is for 0 and 1", where="algorithm.advantage", fix=fix
        )
    rate = [statistics.fmean(g.rewards) for g in groups]
    a, b = beta_moments(rate)
    scales = [beta_density(p, 1 + a / 3, 1 + b / 3) for p in rate]
    return [
        [x / scale if x else 0.0 for x in centred(g.rewards)] for g, scale in zip(groups, scales, strict=True)
    ]


def reward(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i, no baseline (REBEL, arXiv:2404.16767, whose loss takes differences itself)."""
    return [list(g.rewards) for g in groups]


def value_cache(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i - V*(prompt), V* estimated once under the reference (A*-PO, arXiv:2505.20686)."""
    known = [0.0 if g.value is None else g.value for g in groups]
    assert all(g.value is not None for g in groups), (
        "algorithm.value_cache fills every group; check demands it"
    )
    return [[r - v for r in g.rewards] for g, v in zip(groups, known, strict=True)]


def next_value(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A of step i = r_i + V(s_{i+1}) - V(s_i), r on the last step, V past the end 0; all
    tokens of a step share it (VinePPO).

    arXiv:2410.01679. The steps telescope: Σ_i A_i = R - V(prompt). Then `probe_values.whiten` over the
    sampled tokens of probed answers; answers that were not probed keep A = 0.
    """
    kind = parts.probe_values.whiten if parts.probe_values else "none"
    # guidance without a loss is left out of the statistics
    context = not (parts.guide and parts.guide.train_guidance)
    rollouts = [r for g in groups for r in g.rollouts]
    credit = {id(r): step_credit(r) for r in rollouts}
    probed = [(credit[id(r)], r.completion.given if context else 0) for r in rollouts if r.values is not None]
    flat = iter(whitened([a for row, first in probed for a in row[first:]], kind))
    for row, first in probed:
        row[first:] = [next(flat) for _ in row[first:]]
    return [[credit[id(r)] for r in g.rollouts] for g in groups]


ADVANTAGE: dict[str, Advantage] = {name: globals()[name] for name in ADVANTAGES}


def apart(
    groups: Sequence[Group], brick: Callable[[Sequence[Group]], list[list[Credit]]]
) -> list[list[Credit]]:
    """The brick on the guided and the unguided answers of each group as if they were
    two groups; in the group's order.
    """
    halves = [
        replace(g, rollouts=tuple(r for r in g.rollouts if (r.completion.given > 0) == guided))
        for g in groups
        for guided in (True, False)
    ]
    filled = [half for half in halves if half.rollouts]
    credit = {id(half): iter(row) for half, row in zip(filled, brick(filled), strict=True)}
    return [
        [next(credit[id(halves[2 * n + (r.completion.given == 0)])]) for r in g.rollouts]
        for n, g in enumerate(groups)
    ]


# ------------------------------------------------------------------------------------------- on plain numbers


def centred(rewards: Sequence[float]) -> list[float]:
    """R - mean R; equal rewards give exact zeros, however the mean rounds."""
    if len(set(rewards)) <= 1:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    return [r - mean for r in rewards]


def standardised(rewards: Sequence[float], std: str, eps: float) -> list[float]:
    """(R - mean R)/(std R + eps); zeros for equal rewards, eps = 0 included."""
    if len(set(rewards)) <= 1:
        return [0.0] * len(rewards)
    spread = {"sample": statistics.stdev, "population": statistics.pstdev}[std](rewards)
    return [a / (spread + eps) for a in centred(rewards)]


def floored(credit: Credit, floor: float | None) -> Credit:
    """max(A, floor), after normalisation (GRPO-λ, arXiv:2510.00194, floor -0.1).
    floor None returns A unchanged.
    """
    if floor is None:
        return credit
    return [max(a, floor) for a in credit] if isinstance(credit, list) else max(credit, floor)


def beta_moments(rates: Sequence[float]) -> tuple[float, float]:
    """a, b of the Beta distribution with the mean and population variance of `rates`; (0,
    0), a flat f, without variance.
    """
    mean = statistics.fmean(rates)
    variance = statistics.pvariance(rates)
    if variance <= 0:
        return 0.0, 0.0
    total = max(0.0, mean * (1 - mean) / variance - 1)
    return mean * total, (1 - mean) * total


def beta_density(p: float, alpha: float, beta: float) -> float:
    """p^(α-1) (1-p)^(β-1) / B(α, β) for α, β >= 1; at p of 0 or 1 the advantage is 0 whatever this gives.

    In logarithms: rates that nearly coincide make α and β thousands.
    """
    if p <= 0 or p >= 1:
        return 1.0
    norm = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return math.exp(norm + (alpha - 1) * math.log(p) + (beta - 1) * math.log1p(-p))


def step_values(values: Sequence[float], steps: int, reward: float) -> list[float]:
    """V at the start of each step and past the last: the estimates, then `reward` where there are none, then
    0.
    """
    known = list(values[:steps])
    return [*known, *[reward] * (steps - len(known)), 0.0]


def step_credit(rollout: Rollout) -> list[float]:
    """A per token of one rollout. No estimates at all (an unprobed group): zeros."""
    count = len(rollout.completion.token_ids)
    if rollout.values is None or not rollout.spans:
        return [0.0] * count
    value = step_values(rollout.values, len(rollout.spans), rollout.reward)
    tokens = [0.0] * count
    for i, (begin, end) in enumerate(rollout.spans):
        last = rollout.reward if i == len(rollout.spans) - 1 else 0.0
        tokens[begin:end] = [last + value[i + 1] - value[i]] * (end - begin)
    return tokens


def whitened(advantages: Sequence[float], kind: str) -> list[float]:
    """standard: (A - mean)/sqrt(var + 1e-8), sample variance; scale: A/sqrt(mean A² +
    1e-8), so that 0 stays 0; none: A.
    """
    if kind == "none" or len(advantages) < 2:
        return list(advantages)
    if kind == "scale":
        rms = math.sqrt(statistics.fmean(a * a for a in advantages) + 1e-8)
        return [a / rms for a in advantages]
    mean = statistics.fmean(advantages)
    scale = math.sqrt(statistics.variance(advantages, mean) + 1e-8)
    return [(a - mean) / scale for a in advantages]
