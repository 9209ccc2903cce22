"""Rewards of one group -> one advantage per rollout. Host-side float64: groups are small and this number scales everything."""

import statistics
from collections.abc import Sequence

STD_EPS = 1e-4


def mean_std(rewards: Sequence[float], std: str = "sample") -> list[float]:
    """A_i = (R_i - mean R)/(std R + 1e-4), std sample or population (GRPO, arXiv:2402.03300). Equal rewards give zeros."""
    spread = {"sample": statistics.stdev, "population": statistics.pstdev}[std](rewards) if len(rewards) > 1 else 0.0
    return [a / (spread + STD_EPS) for a in mean_only(rewards)]


def mean_only(rewards: Sequence[float], std: str = "sample") -> list[float]:
    """A_i = R_i - mean R (Dr. GRPO, arXiv:2503.20783); `std` plays no part. Equal rewards give exact zeros."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    return [r - mean for r in rewards]


def floored(advantages: Sequence[float], floor: float | None) -> list[float]:
    """max(A_i, floor), after normalisation (GRPO-λ, arXiv:2510.00194, floor -0.1). floor None returns A unchanged."""
    return list(advantages) if floor is None else [max(a, floor) for a in advantages]


ADVANTAGE = {"mean_std": mean_std, "mean_only": mean_only}
