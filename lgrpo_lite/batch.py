"""TrainBatch: the completions of a step, end to end, with every number that the update needs decided.

Letters used in shapes throughout the package:
    P prompts · G group · S sequences of this batch · R rollouts of the whole step · N model tokens · T
    completion tokens V vocabulary · D hidden
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Sequences laid end to end, no padding. A split keeps `coef` and the step_* fields, so
    sums over micro-batches are exact.
    """

    input_ids: Int[Tensor, " N"]  # prompt and completion of each sequence
    start: Int[Tensor, " S"]  # where a sequence begins in input_ids
    length: Int[Tensor, " S"]  # its tokens, prompt included
    row: Int[Tensor, " S"]  # which rollout of the step it is, of those that were not pruned
    at: Int[Tensor, " T"]  # position in input_ids whose output predicts this token
    token_ids: Int[Tensor, " T"]  # the predicted completion tokens
    seq: Int[Tensor, " T"]  # which sequence of this batch a token belongs to
    advantage: Float[Tensor, " T"]  # A
    weight: Float[Tensor, " T"]  # fixed token weights, 1 unless a part says otherwise
    coef: Float[Tensor, " T"]  # the normaliser: the loss is a plain sum of coef · weight · gain
    # log-prob under the policy that sampled, by the engine; NaN: not of this prompt
    sampler_logp: Float[Tensor, " T"]
    off: Bool[Tensor, " S"]  # answers sampled under another prompt than they are trained under
    step_length: Int[Tensor, " R"]  # completion tokens of each such rollout, without guidance that is context
    step_group: Int[Tensor, " R"]  # its group
    old_logp: Float[Tensor, " T"] | None = (
        None  # at the start of the batch; None: this very update is the first
    )
    ref_logp: Float[Tensor, " T"] | None = None  # under the reference; None: no KL asked for
    # how the policy lays these sequences out for its forward pass: a key of lgrpo_lite.layout.LAYOUT
    layout: str = "rows"

    @property
    def num_sequences(self) -> int:
        return len(self.start)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def select(self, keep: Int[Tensor, " K"]) -> "TrainBatch":
        """The sequences `keep` (indices into S, any order). Step-wide fields stay whole."""
        count = torch.bincount(self.seq, minlength=self.num_sequences)
        tokens, seq = ranges((count.cumsum(0) - count)[keep], count[keep])
        length = self.length[keep]
        model, _ = ranges(self.start[keep], length)
        start = length.cumsum(0) - length
        at = self.at[tokens] - self.start[keep][seq] + start[seq]
        per_token = {
            name: None if getattr(self, name) is None else getattr(self, name)[tokens]
            for name in ("token_ids", "advantage", "weight", "coef", "sampler_logp", "old_logp", "ref_logp")
        }
        return replace(
            self,
            input_ids=self.input_ids[model],
            start=start,
            length=length,
            row=self.row[keep],
            off=self.off[keep],
            at=at,
            seq=seq,
            **per_token,
        )

    def tokens_of(self, rows: Int[Tensor, " K"]) -> Int[Tensor, " M"]:
        """Which of the completion tokens belong to the sequences `rows`, in their order."""
        count = torch.bincount(self.seq, minlength=self.num_sequences)
        return ranges((count.cumsum(0) - count)[rows], count[rows])[0]

    @property
    def context(self) -> Int[Tensor, " S"]:
        """Tokens before the first one that is trained: prompt, and guidance that is context."""
        count = torch.bincount(self.seq, minlength=self.num_sequences)
        return self.at[count.cumsum(0) - count] - self.start + 1


def flatten(
    rollouts: Sequence[Rollout],
    keep: Sequence[int],
    shown: Sequence[int],
    credits: Sequence[float | list[float]],
    coef: Float[Tensor, " R"],
    length: Int[Tensor, " R"],
    group: Int[Tensor, " R"],
    dtype: torch.dtype,
) -> TrainBatch:
    """The rollouts `keep`, end to end. The first `shown` tokens of an answer are context,
    as its prompt is.
    """
    kept = [rollouts[i] for i in keep]
    context = torch.tensor([len(rollouts[i].prompt.token_ids) + shown[i] for i in keep])
    total = context + length[keep]
    start = total.cumsum(0) - total
    at, seq = ranges(start + context - 1, length[keep])  # a token is predicted one place before it stands
    answers = [rollouts[i].completion.token_ids[shown[i] :] for i in keep]
    advantage = [
        a for i, ids in zip(keep, answers, strict=True) for a in _per_token(credits[i], shown[i], len(ids))
    ]
    return TrainBatch(
        input_ids=torch.tensor([t for r in kept for t in (*r.prompt.token_ids, *r.completion.token_ids)]),
        start=start,
        length=total,
        row=torch.tensor(keep),
        at=at,
        token_ids=torch.tensor([t for ids in answers for t in ids]),
        seq=seq,
        advantage=torch.tensor(advantage, dtype=dtype),
        weight=torch.ones(len(seq), dtype=dtype),
        coef=coef[keep].to(dtype)[seq],
        sampler_logp=torch.tensor(
            [x for r, ids in zip(kept, answers, strict=True) for x in _sampled(r, len(ids))], dtype=dtype
        ),
        off=torch.tensor([r.off for r in kept]),
        step_length=length,
        step_group=group,
    )


def for_scoring(pairs: Sequence[tuple[Prompt, Completion]], dtype: torch.dtype = torch.float32) -> TrainBatch:
    """Answers to be scored and not trained: no credit, tokens in the order of the pairs,
    each answer a group.
    """
    rollouts = [Rollout(prompt, completion, Score(0.0, Outcome.wrong)) for prompt, completion in pairs]
    count, length = len(rollouts), torch.tensor([len(c.token_ids) for _, c in pairs])
    none, each = [0] * count, torch.arange(count)
    return flatten(rollouts, list(range(count)), none, [0.0] * count, torch.ones(count), length, each, dtype)


def _per_token(credit: float | list[float], shown: int, count: int) -> list[float]:
    return credit[shown:] if isinstance(credit, list) else [credit] * count


def _sampled(rollout: Rollout, count: int) -> list[float]:
    """Log-probs of the last `count` tokens under the sampler; NaN for those it was
    given, or saw under another prompt.
    """
    known = rollout.completion.logprobs or ()
    return [math.nan] * (count - len(known)) + list(known)


def ranges(
    start: Int[Tensor, " K"], length: Int[Tensor, " K"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """start[k], start[k]+1, … for each k, end to end, and which k each of them belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    offset = torch.arange(len(owner), device=length.device) - (length.cumsum(0) - length)[owner]
    return start[owner] + offset, owner


def rows_of(
    values: Float[Tensor, " T"], seq: Int[Tensor, " T"], num: int
) -> tuple[Float[Tensor, "S L"], Int[Tensor, " T"]]:
    """Tokens of each sequence as one zero-padded row, and each token's offset in
    its row. `seq` is non-decreasing.
    """
    count = torch.bincount(seq, minlength=num)
    offset, _ = ranges(torch.zeros_like(count), count)
    rows = values.new_zeros(num, int(count.max()) if len(seq) else 0)
    return rows.index_put((seq, offset), values), offset
