"""Policy-gradient surrogates: (ratio, advantage) -> gain per token, to be maximised."""

import torch
from jaxtyping import Float
from torch import Tensor

LOG_RATIO_BOUND = 20.0  # exp() stays finite; far outside any clip range


def ratio_of(log_ratio: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """exp of a bounded log-ratio. Zero gives exactly 1."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def clipped(
    ratio: Float[Tensor, " T"], advantage: Float[Tensor, " T"], low: float, high: float
) -> tuple[Float[Tensor, " T"], dict[str, Float[Tensor, " T"]]]:
    """min(ρA, clip(ρ, 1-low, 1+high) A) (PPO, arXiv:1707.06347), and which tokens the bounds silenced (1 or 0).

    ρ = 1: the gain is A and its gradient A; ties keep the gradient.
    """
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    silenced = {
        "clip_low": ((ratio < 1 - low) & (advantage < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + high) & (advantage > 0)).to(ratio.dtype),
    }
    return gain, silenced
