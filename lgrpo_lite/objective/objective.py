"""The objective: groups of scored rollouts -> TrainBatch -> loss. Read `forward` first; it is every algorithm of NAMED.

    loss = - Σ coef · weight · f · gain  +  β Σ coef · KL

`coef` is the normaliser of the whole step, so the sum over micro-batches is the loss of the step under any split.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lgrpo_lite.batch import TrainBatch, ranges
from lgrpo_lite.config import Algorithm
from lgrpo_lite.objective import trace
from lgrpo_lite.objective.advantage import ADVANTAGE, floored
from lgrpo_lite.objective.penalty import KL
from lgrpo_lite.objective.reduce import REDUCE
from lgrpo_lite.objective.surrogate import clipped, ratio_of
from lgrpo_lite.objective.weight import LengthPreference, prefix_share
from lgrpo_lite.types import Group


class Objective(nn.Module):
    """One row of parts, composed. `parameters()` are the objective's own (λ), trained by their own optimiser."""

    def __init__(self, parts: Algorithm, *, max_new_tokens: int, dtype: torch.dtype = torch.float32):
        """`parts` is complete (`objective.named.complete`); `dtype` is that of advantages, weights and coefficients."""
        super().__init__()
        self.parts, self.dtype = parts, dtype
        self.constant = parts.reduce_constant or max_new_tokens
        self.preference = LengthPreference(parts.length_preference) if parts.length_preference else None

    @property
    def length_lambda(self) -> float | None:
        """λ of the token preference, if there is one."""
        return None if self.preference is None else self.preference.lam.item()

    @property
    def lambda_grad(self) -> float | None:
        """∂loss/∂λ gathered since the gradients were last cleared."""
        lam = None if self.preference is None else self.preference.lam
        return None if lam is None or lam.grad is None else lam.grad.item()

    def admit(self, group: Group) -> bool:
        """Whether a group enters the step: two answers to compare and, if asked for, two different rewards."""
        return len(group.rollouts) > 1 and (self.parts.admit == "all" or group.varied)

    def batch(self, groups: Sequence[Group]) -> TrainBatch | None:
        """Credit and normalisation of a step, settled once. None when no token would get a gradient.

        A rollout that can teach nothing (A = 0 and no KL, or truncated under mask_truncated) still counts in the
        normaliser and in its group's lengths, but never sees a forward pass: the gradient is the same without it.
        """
        parts = self.parts
        rollouts = [r for g in groups for r in g.rollouts]
        length = torch.tensor([len(r.completion.token_ids) for r in rollouts])
        group = torch.tensor([i for i, g in enumerate(groups) for _ in g.rollouts])
        centred = [ADVANTAGE[parts.advantage](g.rewards, parts.advantage_std) for g in groups]
        advantage = [a for row in centred for a in floored(row, parts.advantage_floor)]
        coef = REDUCE[parts.reduce](length, group, self.constant)
        keep = [
            i
            for i, r in enumerate(rollouts)
            if (advantage[i] != 0.0 or parts.kl.coef > 0)
            and not (parts.mask_truncated and r.completion.finish_reason == "length")
        ]
        if not keep:
            return None

        kept = [rollouts[i] for i in keep]
        prompt_length = torch.tensor([len(r.prompt.token_ids) for r in kept])
        answer_length = length[keep]
        total = prompt_length + answer_length
        start = total.cumsum(0) - total
        at, seq = ranges(start + prompt_length - 1, answer_length)  # a token is predicted one place before it stands
        batch = TrainBatch(
            input_ids=torch.tensor([t for r in kept for t in (*r.prompt.token_ids, *r.completion.token_ids)]),
            start=start,
            length=total,
            row=torch.tensor(keep),
            at=at,
            token_ids=torch.tensor([t for r in kept for t in r.completion.token_ids]),
            seq=seq,
            advantage=torch.tensor([advantage[i] for i in keep], dtype=self.dtype)[seq],
            weight=torch.ones(len(seq), dtype=self.dtype),
            coef=coef[keep].to(self.dtype)[seq],
            sampler_logp=torch.tensor([x for r in kept for x in r.completion.logprobs], dtype=self.dtype),
            step_length=length,
            step_group=group,
        )
        weight = self._trace_weight(batch)
        if parts.prefix_share:
            share = [s for g in groups for s in prefix_share([r.completion.token_ids for r in g.rollouts])]
            weight = weight * torch.tensor([s for i in keep for s in share[i]], dtype=self.dtype)
        return replace(batch, weight=weight)

    def forward(self, logp: Float[Tensor, " T"], b: TrainBatch) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss of one micro-batch, and sums over its tokens for the record. Both add up over the micro-batches of a step."""
        parts = self.parts
        old = logp.detach() if b.old_logp is None else b.old_logp
        weight = b.weight
        if self.preference is not None:
            weight = weight * self.preference(b.step_length, b.step_group).to(weight.dtype)[b.row[b.seq]]
        gain, seen = clipped(ratio_of(self._log_ratio(logp - old, b)), b.advantage, parts.clip.low, parts.clip.high)
        if parts.rollout_correction:  # the engine's numerics against the trainer's: truncated importance weight
            gain = gain * (old - b.sampler_logp).exp().clamp(max=parts.rollout_correction.cap)
        loss = -(b.coef * weight * gain).sum()
        if parts.kl.coef:
            assert b.ref_logp is not None, "the step adds the reference's log-probs where a KL is asked for"
            divergence = KL[parts.kl.estimator](logp, b.ref_logp)
            loss = loss + parts.kl.coef * (b.coef * divergence * (weight if parts.kl.weighted else 1.0)).sum()
            seen = seen | {"kl": divergence}
        seen = seen | {"disagreement": (old - b.sampler_logp).abs()}
        return loss, {name: float(values.detach().sum()) for name, values in seen.items()}

    def _log_ratio(self, x: Tensor, b: TrainBatch) -> Tensor:
        t = self.parts.trace
        if t is None or t.mode != "trace":
            return x
        return trace.accumulate(x, b.seq, decay=t.gamma * t.lambda_, style=t.style, floor=t.floor)

    def _trace_weight(self, b: TrainBatch) -> Tensor:
        """What the trace multiplies a token's term by: its other two modes, and the mean that `normalize` divides out."""
        t = self.parts.trace
        weight = torch.ones_like(b.weight)
        if t is None:
            return weight
        decay = t.gamma * t.lambda_
        if t.mode == "terminal":
            return trace.terminal(b.seq, decay=decay, dtype=self.dtype)
        credit = trace.column_sums(b.seq, decay=decay, style=t.style, floor=t.floor, dtype=self.dtype)
        if t.mode == "weight":
            weight = credit
        if t.normalize == "mean":
            total = torch.zeros(b.num_sequences, dtype=self.dtype).index_add(0, b.seq, credit)
            weight = weight / (total / torch.bincount(b.seq))[b.seq]
        return weight
