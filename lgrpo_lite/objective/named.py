"""What an algorithm's name stands for: a row of parts. The one table of names; it validates, lists and documents.

A row is a value of `config.Algorithm`. `objective.Objective` composes the functions the parts name; no code anywhere asks
which algorithm it is running. Torch is not needed to read a row.

Common form, per token t of answer i in group x (letters as in batch.py):

    loss = - Σ coef · weight · min(ρ A, clip(ρ, 1-low, 1+high) A)  +  β Σ coef · KL
"""

from typing import Any

from lgrpo_lite.config import Algorithm, Clip, Kl, LengthPreference, Trace
from lgrpo_lite.errors import ConfigError, nearest


def grpo() -> Algorithm:
    """GRPO (arXiv:2402.03300): A = (R - mean)/(std + 1e-4), each answer a mean over its tokens, KL to the reference.

    Limit: one update per batch, β = 0: policy gradient with a group baseline.
    """
    return Algorithm(use="grpo", advantage="mean_std", reduce="sequence_mean", kl=Kl(coef=0.04))


def dapo() -> Algorithm:
    """DAPO (arXiv:2503.14476): a mean over all tokens of the step, clip-higher, groups without two rewards drawn again.

    Limit: equal lengths, clip high 0.2, admit all: GRPO without KL.
    """
    return Algorithm(use="dapo", reduce="token_mean", clip=Clip(low=0.2, high=0.28), admit="varied")


def dr_grpo() -> Algorithm:
    """Dr. GRPO (arXiv:2503.20783): A = R - mean, tokens summed over a constant M instead of the answer's length.

    Limit: equal lengths L and M = L: GRPO without the standard deviation.
    """
    return Algorithm(use="dr_grpo", advantage="mean_only", reduce="constant")


def length_preference() -> Algorithm:
    """λ-GRPO (arXiv:2510.06870): each answer's tokens weigh f = G softmax(h^λ), h = 1 + r z, z the standardised length.

    λ is learned by its own SGD from the same loss. Limit: λ = 0 gives f = 1, the token mean of each group (DAPO's rule).
    """
    return Algorithm(use="length_preference", reduce="group_token_mean", length_preference=LengthPreference())


def trace() -> Algorithm:
    """GRPO-λ (arXiv:2510.00194): ρ_t = exp(Σ_{j≤t} W[t,j] Δlogp_j), eligibility traces of decay b = γλ; A ≥ -0.1.

    Limit: λ = 0, style recent, no advantage floor: GRPO.
    """
    return Algorithm(use="trace", advantage_floor=-0.1, trace=Trace(), kl=Kl(coef=0.04))


NAMED = {row.__name__: row for row in (grpo, dapo, dr_grpo, length_preference, trace)}


def complete(algorithm: Algorithm, where: str) -> Algorithm:
    """Lay the keys a recipe sets over the row it names. Unknown name: ConfigError that gives the nearest one."""
    if algorithm.use not in NAMED:
        known = list(NAMED)
        raise ConfigError(
            f"unknown algorithm {algorithm.use!r}{nearest(algorithm.use, known)}",
            where=where,
            fix=f"algorithm.use is one of: {', '.join(known)}",
        )
    row = NAMED[algorithm.use]().model_dump(by_alias=True)
    return Algorithm.model_validate(_overlay(row, algorithm.model_dump(by_alias=True, exclude_unset=True)))


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged
