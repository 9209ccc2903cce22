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
    """A_i = R_i - mean of the others = G/(G-1) (R_i - mean R) (RLOO, arXiv:2402.14740). One alone gives 0."""
    credits = []
    for g in groups:
        size = len(g.rewards)
        credits.append([a * size / max(1, size - 1) for a in centred(g.rewards)])
    return credits


def beta(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = (R_i - p)/f(p; 1 + a/3, 1 + b/3), f the Beta density, p a group's success
    rate (BNPO, arXiv:2506.02864).

    a, b are the moments of p ~ Beta(a, b) over the groups of the step. All p equal: f = 1, so A = R - p. a =
    b = 3/2 divides by sqrt(p(1-p)), which is GRPO up to a constant. Rewards are 0 or 1, else ConfigError.
    """
    others = [r for g in groups for r in g.rewards if r not in (0.0, 1.0)]
    if others:
        what = f"advantage beta met the reward {others[0]:g}, it is for 0 and 1"
        fix = "use one reward of weight 1 that gives 0 or 1, or another advantage"
        raise ConfigError(what, where="algorithm.advantage", fix=fix)
    rates = [statistics.fmean(g.rewards) for g in groups]
    a, b = beta_moments(rates)
    credits = []
    for g, p in zip(groups, rates, strict=True):
        density = beta_density(p, 1 + a / 3, 1 + b / 3)
        credits.append([x / density if x else 0.0 for x in centred(g.rewards)])
    return credits


def reward(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i, no baseline (REBEL, arXiv:2404.16767, whose loss takes differences itself)."""
    return [list(g.rewards) for g in groups]


def value_cache(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A_i = R_i - V*(prompt), V* estimated once under the reference (A*-PO, arXiv:2505.20686)."""
    credits = []
    for g in groups:
        assert g.value is not None, "algorithm.value_cache fills every group; check demands it"
        credits.append([r - g.value for r in g.rewards])
    return credits


def next_value(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
    """A of step i = r_i + V(s_{i+1}) - V(s_i), r on the last step, V past the end 0; all
    tokens of a step share it (VinePPO).

    arXiv:2410.01679. The steps telescope: Σ_i A_i = R - V(prompt). Then `probe_values.whiten` over the
    sampled tokens of probed answers; answers that were not probed keep A = 0.
    """
    kind = parts.probe_values.whiten if parts.probe_values else "none"
    # guidance without a loss is left out of the statistics
    trains_guidance = parts.guide and parts.guide.train_guidance
    credits = [[step_credit(r) for r in g.rollouts] for g in groups]
    probed, sampled = [], []
    for g, rows in zip(groups, credits, strict=True):
        for r, row in zip(g.rollouts, rows, strict=True):
            if r.values is not None:
                first = 0 if trains_guidance else r.completion.given
                probed.append((row, first))
                sampled += row[first:]
    values = iter(whitened(sampled, kind))
    for row, first in probed:
        row[first:] = [next(values) for _ in row[first:]]
    return [list(rows) for rows in credits]


ADVANTAGE: dict[str, Advantage] = {name: globals()[name] for name in ADVANTAGES}


def by_guidance(
    groups: Sequence[Group], brick: Callable[[Sequence[Group]], list[list[Credit]]]
) -> list[list[Credit]]:
    """The brick on the guided and the unguided answers of each group as if they were two groups.

    In the group's order.
    """
    halves, homes = [], []
    for number, g in enumerate(groups):
        for guided in (True, False):
            indices = [i for i, r in enumerate(g.rollouts) if (r.completion.given > 0) == guided]
            if indices:
                halves.append(replace(g, rollouts=tuple(g.rollouts[i] for i in indices)))
                homes.append((number, indices))
    credits: list[list[Credit]] = [[0.0] * len(g.rollouts) for g in groups]
    for (number, indices), row in zip(homes, brick(halves), strict=True):
        for i, credit in zip(indices, row, strict=True):
            credits[number][i] = credit
    return credits


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
    """max(A, floor), after normalisation (GRPO-λ, arXiv:2510.00194, floor -0.1). None: A unchanged."""
    if floor is None:
        return credit
    if isinstance(credit, list):
        return [max(a, floor) for a in credit]
    return max(credit, floor)


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
    """V at the start of each step and past the last: the estimates, `reward` where there are none, then 0."""
    known = list(values[:steps])
    return [*known, *[reward] * (steps - len(known)), 0.0]


def step_credit(rollout: Rollout) -> list[float]:
    """A per token of one rollout. No estimates at all (an unprobed group): zeros."""
    count = len(rollout.completion.token_ids)
    if rollout.values is None or not rollout.spans:
        return [0.0] * count
    value = step_values(rollout.values, len(rollout.spans), rollout.reward)
    tokens = [0.0] * count
    last = len(rollout.spans) - 1
    for i, (begin, end) in enumerate(rollout.spans):
        reward = rollout.reward if i == last else 0.0
        credit = reward + value[i + 1] - value[i]
        tokens[begin:end] = [credit] * (end - begin)
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
