"""A worked example: an algorithm of one's own, without a change to lgrpo-lite (docs/algorithms.md)."""

import statistics

from lgrpo_lite.algorithm import Algorithm


def relative(groups, parts):
    """A_i = (R_i - mean R)/mean R: hard questions, where the mean is small, weigh more."""
    mean = [statistics.fmean(g.rewards) for g in groups]
    return [[(r - m) / m if m else 0.0 for r in g.rewards] for g, m in zip(groups, mean, strict=True)]


def max_rl():
    """A token mean with that advantage, groups without two rewards drawn again."""
    return Algorithm(advantage=f"{__file__}:relative", admit="varied", reduce="token_mean")
