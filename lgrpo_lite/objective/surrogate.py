"""Surrogates: (log-probs, log-ratio, advantages) -> gain per token, to be maximised,
and what the record counts of it.

`x` is the log-ratio as the ratio brick made it; ρ = exp(x). A brick that speaks of whole answers (`residual`)
gives each of an answer's tokens the answer's gain: under `sequence_mean` these add up to one term an answer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.recipe.algorithm import SURROGATES, Algorithm

LOG_RATIO_BOUND = 20.0  # exp() stays finite; far outside any clip range


@dataclass(frozen=True, slots=True)
class Terms:
    """What a surrogate may read."""

    logp: Float[Tensor, " T"]  # of the policy, with gradient
    old: Float[Tensor, " T"]  # of the policy that sampled, at the trainer's numerics
    x: Float[Tensor, " T"]  # log-ratio to old: token, sequence or trace
    batch: TrainBatch
    parts: Algorithm
    log_z: Float[Tensor, " S"] | None = None  # per answer, with gradient; where a head is trained


Surrogate = Callable[[Terms], tuple[Tensor, dict[str, Tensor]]]


def ratio_of(log_ratio: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """exp of a bounded log-ratio. Zero gives exactly 1."""
    return log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def clipped(t: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """min(ρA, clip(ρ, 1-low, 1+high) A) (PPO, arXiv:1707.06347); which tokens the bounds silence, 1 or 0.

    ρ = 1: the gain is A and its gradient A; ties keep the gradient. dual c: not below c·A where A < 0
    (arXiv:1912.09729).
    """
    ratio, advantage, clip = ratio_of(t.x), t.batch.advantage, t.parts.clip
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage)
    if clip.dual is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, clip.dual * advantage), gain)
    return gain, {
        "clip_low": ((ratio < 1 - clip.low) & (advantage < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + clip.high) & (advantage > 0)).to(ratio.dtype),
    }


def unclipped(t: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """ρA. With one update per batch: the policy gradient."""
    return ratio_of(t.x) * t.batch.advantage, {}


def cispo(t: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """stopgrad(min(max(ρ, floor), cap)) A log π (CISPO, arXiv:2506.13585): the weight is
    capped, no token loses its gradient.

    ρ = 1: the policy gradient. The cap bounds ρ itself, not ρ - 1.
    """
    ratio, bound = ratio_of(t.x.detach()), t.parts.cispo
    counts = {"clip_high": (ratio > bound.cap).to(ratio.dtype)}
    if bound.floor is not None:
        counts["clip_low"] = (ratio < bound.floor).to(ratio.dtype)
    weight = ratio.clamp(min=bound.floor, max=bound.cap)
    return weight * t.batch.advantage * t.logp, counts


def shaped(t: Terms) -> Tensor:
    """π/(π+γ) A (RGR-GRPO, arXiv:2511.12344): rare tokens learn most, the slope γπ/(π+γ)² in log π peaks at π
    = γ.

    form old: π/(π_old+γ), as the paper prints it, which damps rare tokens.
    """
    shape = t.parts.shaped
    assert shape is not None, "asked for where parts.shaped is set"
    p = t.logp.exp()
    below = p if shape.form == "self" else t.old.exp()
    return p / (below + shape.gamma) * t.batch.advantage


def residual(t: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """-w (slope S - target A + c)², S an answer's log-ratio to the anchor.

    REBEL (arXiv:2404.16767), A*-PO (arXiv:2505.20686) and FlowRL (arXiv:2509.15207) are this loss. c = 0; or
    the group's mean taken off (constant for the gradient, which loses nothing: inside a group it cancels); or
    log Z of a head. w = 1, or the answer's ratio clipped to 1 ± is_clip, detached. pairs: factor 2G/(G-1),
    the mean over all pairs of the group.
    """
    b, r = t.batch, t.parts.residual
    anchor = t.old if r.anchor == "old" else b.ref_logp
    assert anchor is not None, "the step adds the reference's log-probs where the anchor is the reference"
    drift = _per_answer(t.logp - anchor, b)
    count = torch.bincount(b.seq, minlength=b.num_sequences)
    if r.length_norm:
        drift = drift / count
    first = count.cumsum(0) - count
    missed = r.slope * drift - r.target * b.advantage[first]
    if r.centre == "group":
        missed = missed - _group_mean(missed.detach(), b)
    elif r.centre == "learned":
        assert t.log_z is not None, "the policy hands over the prompt's hidden states where a head is trained"
        missed = missed + t.log_z
    loss = missed.square()
    if r.is_clip is not None:
        ratio = ratio_of(_per_answer(t.x.detach(), b))
        weight = ratio.clamp(1 - r.is_clip, 1 + r.is_clip)
        loss = loss * (weight if r.is_form == "clipped" else weight * ratio)
    if r.pairs:
        size = _group_size(b).to(loss.dtype)
        loss = loss * (2 * size / (size - 1).clamp(min=1))
    return -loss[b.seq], {"residual": missed.abs()[b.seq]}


SURROGATE: dict[str, Surrogate] = {name: globals()[name] for name in SURROGATES}


def _per_answer(values: Tensor, b: TrainBatch) -> Tensor:
    total = torch.zeros(b.num_sequences, dtype=values.dtype, device=values.device)
    return total.index_add(0, b.seq, values)


def _group_size(b: TrainBatch) -> Tensor:
    """Trained answers of each answer's group; micro-batches keep such groups whole."""
    _, group, count = torch.unique(b.step_group[b.row], return_inverse=True, return_counts=True)
    return count[group]


def _group_mean(values: Tensor, b: TrainBatch) -> Tensor:
    """Mean over the answers of each group, of those in this batch: micro-batches keep such groups whole."""
    _, group = torch.unique(b.step_group[b.row], return_inverse=True)
    total = torch.zeros(int(group.max()) + 1, dtype=values.dtype)
    total = total.index_add(0, group, values)
    return (total / torch.bincount(group))[group]
