"""The objective: groups of scored rollouts -> TrainBatch -> loss. Read `forward` first;
it is every algorithm of NAMED.

    loss = - Σ coef · weight · f · gain  +  β Σ coef · KL  -  entropy_coef Σ coef · H

`coef` is the normaliser of the whole step, so the sum over micro-batches is the
loss of the step under any split.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lgrpo_lite.batch import Answer, TrainBatch, flatten
from lgrpo_lite.objective import own, trace
from lgrpo_lite.objective.advantage import ADVANTAGE, Credit, by_guidance, floored
from lgrpo_lite.objective.kl import KL
from lgrpo_lite.objective.log_z import LogZ
from lgrpo_lite.objective.reduce import REDUCE
from lgrpo_lite.objective.select import places, selected
from lgrpo_lite.objective.surrogate import SURROGATE, Terms, shaped
from lgrpo_lite.objective.weight import LengthPreference, prefix_share, top_entropy
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.plugin import found
from lgrpo_lite.types import Group


class Objective(nn.Module):
    """One row of parts, composed. `parameters()` are λ and the log Z head, with optimisers of their own."""

    def __init__(
        self,
        parts: Algorithm,
        *,
        max_new_tokens: int,
        hidden: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        """`parts` is complete (`objective.named.complete`); `hidden` is the policy's width, for a log Z head.

        `dtype` is that of advantages, weights and coefficients.
        """
        super().__init__()
        self.parts, self.dtype = parts, dtype
        advantage = found(parts.advantage, ADVANTAGE, "algorithm.advantage", "advantage")
        surrogate = found(parts.surrogate, SURROGATE, "algorithm.surrogate", "surrogate")
        self.advantage = own.advantage(parts.advantage, advantage)
        self.surrogate = own.surrogate(parts.surrogate, surrogate)
        self.constant = parts.reduce_constant or max_new_tokens
        self.preference = LengthPreference(parts.length_preference) if parts.length_preference else None
        self.log_z = LogZ(hidden, dtype) if hidden and parts.learns_log_z else None

    @property
    def length_lambda(self) -> float | None:
        """λ of the token preference, if there is one."""
        return None if self.preference is None else self.preference.lam.item()

    @property
    def lambda_grad(self) -> float | None:
        """∂loss/∂λ gathered since the gradients were last cleared."""
        if self.preference is None or self.preference.lam.grad is None:
            return None
        return self.preference.lam.grad.item()

    @property
    def log_z_grad(self) -> float | None:
        """Norm of the log Z head's gradient gathered since the gradients were last cleared."""
        if self.log_z is None:
            return None
        norms = [p.grad.norm() for p in self.log_z.parameters() if p.grad is not None]
        return torch.stack(norms).norm().item() if norms else None

    def silence(self, sampled: Sequence[Group]) -> str:
        """Why a step has nothing to train."""
        if not any(g.rollouts for g in sampled):
            return "every reward is missing"
        if self.parts.compares_answers:
            return "no group had two different rewards"
        return "no answer has an advantage"

    # ------------------------------------------------------------ which answers

    def admit(self, group: Group) -> bool:
        """Whether a group enters the step: answers to compare, different rewards where the row asks it."""
        least = 2 if self.parts.compares_answers else 1
        if len(group.rollouts) < least:
            return False
        return {"all": True, "varied": group.varied, "mixed": group.mixed}[self.parts.admit]

    def wanted(self, groups: Sequence[Group], prompts_per_step: int, answers: int) -> int:
        """Further prompts to draw: for groups not admitted, and with `select.refill` for pruned answers.

        `answers` is the size of a group as it is trained, without drafts.
        """
        select = self.parts.select
        if select is None or not select.refill or not groups:
            return max(0, prompts_per_step - len(groups))
        teach = [g for g in groups if g.varied or not self.parts.compares_answers]
        kept = sum(places(len(g.rollouts), select.keep) for g in teach)
        lacking = max(0, prompts_per_step * answers - kept)
        return -(-lacking // places(answers, select.keep))

    # ------------------------------------------------------------------------------------------- credit

    def batch(self, groups: Sequence[Group]) -> TrainBatch | None:
        """Credit, pruning and normalisation of a step, settled once. None when no token would get a gradient.

        Pruned answers (`select`) are gone: lengths, groups and normalisers are those of the answers that
        stay. One that stays but can teach nothing (A = 0, no pull to the reference, no entropy bonus; or
        truncated under mask_truncated) counts in the normaliser and in its group's lengths, but never sees a
        forward pass: the gradient is the same without.
        """
        parts = self.parts
        answers = self._answers(groups)
        keep = [i for i, answer in enumerate(answers) if self._teaches(answer)]
        if not keep:
            return None
        length = torch.tensor([answer.length for answer in answers])
        group = torch.tensor([answer.group for answer in answers])
        if parts.select and parts.select.scope == "batch":
            group = torch.zeros_like(group)
        coef = REDUCE[parts.reduce](length, group, self.constant, parts.reduce_rows)
        batch = flatten(answers, keep, coef, self.dtype)
        weight = self._trace_weight(batch)
        if parts.prefix_share:
            weight = weight * torch.tensor(_shares(answers, keep), dtype=self.dtype)
        return replace(batch, weight=weight)

    def _answers(self, groups: Sequence[Group]) -> list[Answer]:
        """The answers that stay, in the order of the groups, with their credit."""
        parts = self.parts
        trains_guidance = parts.guide and parts.guide.train_guidance
        credits, staying = self.credit(groups)
        answers = []
        for number, (group, credit, rows) in enumerate(zip(groups, credits, staying, strict=True)):
            for i in rows:
                rollout = group.rollouts[i]
                shown = 0 if trains_guidance else rollout.completion.given
                advantage = floored(credit[i], parts.advantage_floor)
                answers.append(Answer(rollout, advantage, shown, number))
        return answers

    def _teaches(self, answer: Answer) -> bool:
        """Whether any token of it would get a gradient."""
        masked = self.parts.mask_truncated and answer.rollout.completion.finish_reason == "length"
        if answer.length <= 0 or masked:
            return False
        return self.parts.trains_all or _size(answer.credit) != 0.0

    def credit(self, groups: Sequence[Group]) -> tuple[list[list[Credit]], list[list[int]]]:
        """Advantages of every rollout, and per group the rollouts that stay.

        Guided ones have a baseline of their own if `guide.baseline` says so.
        """
        parts = self.parts
        if parts.guide is not None and parts.guide.baseline == "separate":
            credits = by_guidance(groups, lambda halves: self.advantage(halves, parts))
        else:
            credits = self.advantage(groups, parts)
        sizes = [[_size(credit) for credit in row] for row in credits]
        rewards = [g.rewards for g in groups]
        return credits, selected(sizes, rewards, parts.select)

    # ------------------------------------------------------------------------------------------- loss

    def forward(
        self,
        logp: Float[Tensor, " T"],
        b: TrainBatch,
        entropy: Float[Tensor, " T"] | None = None,
        prompt_hidden: Float[Tensor, "S D"] | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """Loss of one micro-batch, and sums over its tokens for the record. Both add up over the
        micro-batches of a step (but for disagreement_max and ratio_max, maxima).

        `entropy` is read by top_entropy and entropy_coef; `prompt_hidden`, the mean hidden state of each
        answer's prompt, by the log Z head.
        """
        parts = self.parts
        old = logp.detach() if b.old_logp is None else b.old_logp
        gain, counts = self._gain(logp, old, b, prompt_hidden)
        weight = self._weight(b, entropy)
        # answers trained under another prompt have no log-prob of their own sampling
        sampled = ~b.sampler_logp.isnan()
        difference = torch.where(sampled, old - b.sampler_logp, 0.0)
        # the engine's numerics against the trainer's: truncated importance weight
        if parts.rollout_correction:
            gain = gain * difference.exp().clamp(max=parts.rollout_correction.cap)
        loss = -(b.coef * weight * gain).sum()
        if parts.kl.coef:
            assert b.ref_logp is not None, "the step adds the reference's log-probs where a KL is asked for"
            divergence = KL[parts.kl.estimator](logp, b.ref_logp)
            bounded = divergence if parts.kl.max is None else divergence.clamp(max=parts.kl.max)
            kl_weight = weight if parts.kl.weighted else 1.0
            loss = loss + parts.kl.coef * (b.coef * bounded * kl_weight).sum()
            counts = counts | {"kl": divergence}
        if parts.entropy_coef:
            assert entropy is not None, "the policy gives entropies with its log-probs"
            loss = loss - parts.entropy_coef * (b.coef * entropy).sum()
        counts = counts | self._disagreement(difference, sampled)
        sums = {name: float(values.detach().sum()) for name, values in counts.items()}
        sums["ratio_max"] = float((logp.detach() - old).max().exp())
        sums["disagreement_max"] = float(difference.detach().abs().max())
        return loss, sums

    def _gain(
        self, logp: Tensor, old: Tensor, b: TrainBatch, prompt_hidden: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the surrogate gives each token, and what the record counts of it."""
        parts = self.parts
        log_z = None
        if self.log_z is not None and prompt_hidden is not None:
            log_z = self.log_z(prompt_hidden).to(logp.device)
        log_ratio = self._log_ratio(logp - old, b)
        gain, counts = self.surrogate(Terms(logp, old, log_ratio, b, parts, log_z))
        if parts.shaped is not None:
            off_policy = shaped(Terms(logp, old, logp - old, b, parts))
            gain = torch.where(b.off[b.seq], off_policy, gain)
        return gain, counts

    def _weight(self, b: TrainBatch, entropy: Tensor | None) -> Tensor:
        """The batch's weights, times those that λ and the entropies give."""
        weight = b.weight
        if self.preference is not None:
            per_answer = self.preference(b.step_length, b.step_group).to(weight.dtype)
            weight = weight * per_answer[b.row[b.seq]]
        if self.parts.top_entropy is not None:
            assert entropy is not None, "the policy gives entropies with its log-probs"
            weight = weight * top_entropy(entropy, b.seq, self.parts.top_entropy)
        return weight

    def _disagreement(self, d: Tensor, sampled: Tensor) -> dict[str, Tensor]:
        """By token, d = log-prob of the trainer minus the sampler's: |d|; e^d - 1 - d, whose mean estimates
        KL(sampler ‖ trainer); e^|d| - 1, the factor by which a probability is off; and which tokens the
        correction bounds."""
        cap = self.parts.rollout_correction.cap if self.parts.rollout_correction else math.inf
        size = d.abs()
        return {
            "disagreement": size,
            "mismatch_kl": d.exp() - 1 - d,
            "token_mult_error": size.exp() - 1,
            "capped": d.exp() > cap,
            "sampled": sampled,
        }

    def _log_ratio(self, x: Tensor, b: TrainBatch) -> Tensor:
        t = self.parts.trace
        if self.parts.ratio == "sequence":  # GSPO, arXiv:2507.18071: exp of the mean log-ratio of the answer
            total = torch.zeros(b.num_sequences, dtype=x.dtype, device=x.device).index_add(0, b.seq, x)
            return (total / torch.bincount(b.seq, minlength=b.num_sequences))[b.seq]
        if t is None or t.mode != "trace":
            return x
        return trace.accumulate(x, b.seq, decay=t.gamma * t.lambda_, style=t.style, floor=t.floor)

    def _trace_weight(self, b: TrainBatch) -> Tensor:
        """What the trace multiplies a token's term by: other modes, and the mean `normalize` takes out."""
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


def _size(credit: Credit) -> float:
    """The number an answer is ranked and skipped by: A, or the largest |A| of its tokens."""
    if isinstance(credit, list):
        return max((abs(a) for a in credit), default=0.0)
    return credit


def _shares(answers: Sequence[Answer], keep: Sequence[int]) -> list[float]:
    """Process-set share of each token of the answers `keep`, among all answers of its group."""
    shares: list[list[float]] = []
    for _, group in groupby(answers, key=lambda answer: answer.group):
        shares += prefix_share([answer.rollout.completion.token_ids for answer in group])
    return [share for i in keep for share in shares[i][answers[i].shown :]]
