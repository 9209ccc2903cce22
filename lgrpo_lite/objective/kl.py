"""Estimators of KL(policy || reference) per token, from d = logp_ref - logp (Schulman,
"Approximating KL divergence").
"""

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logp: Float[Tensor, " T"], ref: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """-d: unbiased, high variance, may be negative."""
    return logp - ref


def k2(logp: Float[Tensor, " T"], ref: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """d²/2: biased, low variance."""
    return (ref - logp).square() / 2


def k3(logp: Float[Tensor, " T"], ref: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """exp(d) - d - 1: unbiased, never negative (GRPO's choice).
    d is bounded by 20 so that exp stays finite.
    """
    d = (ref - logp).clamp(max=20.0)
    return torch.expm1(d) - d


KL = {f.__name__: f for f in (k1, k2, k3)}
