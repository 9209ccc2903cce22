"""TrainBatch: the completions of a step, end to end, with every number that the update needs decided.

Letters used in shapes throughout the package:
    P prompts · G group · S sequences of this batch · R rollouts of the whole step · N model tokens · T
    completion tokens V vocabulary · D hidden
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Sequences end to end, no padding. A split keeps `coef`, step_*: sums over micro-batches are exact."""

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
    old_logp: Float[Tensor, " T"] | None = None  # at the start of the batch; None: this is the first update
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
        first = count.cumsum(0) - count
        tokens, seq = ranges(first[keep], count[keep])
        length = self.length[keep]
        model, _ = ranges(self.start[keep], length)
        start = length.cumsum(0) - length
        at = self.at[tokens] - self.start[keep][seq] + start[seq]
        return replace(
            self,
            input_ids=self.input_ids[model],
            start=start,
            length=length,
            row=self.row[keep],
            off=self.off[keep],
            at=at,
            seq=seq,
            token_ids=self.token_ids[tokens],
            advantage=self.advantage[tokens],
            weight=self.weight[tokens],
            coef=self.coef[tokens],
            sampler_logp=self.sampler_logp[tokens],
            old_logp=None if self.old_logp is None else self.old_logp[tokens],
            ref_logp=None if self.ref_logp is None else self.ref_logp[tokens],
        )

    def tokens_of(self, rows: Int[Tensor, " K"]) -> Int[Tensor, " M"]:
        """Which of the completion tokens belong to the sequences `rows`, in their order."""
        count = torch.bincount(self.seq, minlength=self.num_sequences)
        first = count.cumsum(0) - count
        tokens, _ = ranges(first[rows], count[rows])
        return tokens

    @property
    def context(self) -> Int[Tensor, " S"]:
        """Tokens before the first one that is trained: prompt, and guidance that is context."""
        count = torch.bincount(self.seq, minlength=self.num_sequences)
        first = count.cumsum(0) - count
        return self.at[first] - self.start + 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A rollout as it is trained."""

    rollout: Rollout
    credit: float | list[float]  # its advantage: one for all tokens, or one a token
    shown: int  # first tokens of the answer that are context, as its prompt is
    group: int

    @property
    def length(self) -> int:
        """Tokens that are trained."""
        return len(self.rollout.completion.token_ids) - self.shown

    @property
    def token_ids(self) -> Sequence[int]:
        return self.rollout.completion.token_ids[self.shown :]

    def per_token(self) -> list[float]:
        """The credit of each token that is trained."""
        if isinstance(self.credit, list):
            return self.credit[self.shown :]
        return [self.credit] * self.length


def flatten(
    answers: Sequence[Answer], keep: Sequence[int], coef: Float[Tensor, " R"], dtype: torch.dtype
) -> TrainBatch:
    """The answers `keep`, end to end. `coef` is of all answers, as the step's lengths in a batch are."""
    kept = [answers[i] for i in keep]
    context = torch.tensor([len(a.rollout.prompt.token_ids) + a.shown for a in kept])
    length = torch.tensor([a.length for a in kept])
    total = context + length
    start = total.cumsum(0) - total
    at, seq = ranges(start + context - 1, length)  # a token is predicted one place before it stands
    input_ids = [(*a.rollout.prompt.token_ids, *a.rollout.completion.token_ids) for a in kept]
    token_ids = [a.token_ids for a in kept]
    advantage = [a.per_token() for a in kept]
    sampler_logp = [_sampler_logp(a.rollout, a.length) for a in kept]
    return TrainBatch(
        input_ids=torch.tensor(_end_to_end(input_ids)),
        start=start,
        length=total,
        row=torch.tensor(keep),
        at=at,
        token_ids=torch.tensor(_end_to_end(token_ids)),
        seq=seq,
        advantage=torch.tensor(_end_to_end(advantage), dtype=dtype),
        weight=torch.ones(len(seq), dtype=dtype),
        coef=coef[keep].to(dtype)[seq],
        sampler_logp=torch.tensor(_end_to_end(sampler_logp), dtype=dtype),
        off=torch.tensor([a.rollout.off for a in kept]),
        step_length=torch.tensor([a.length for a in answers]),
        step_group=torch.tensor([a.group for a in answers]),
    )


def for_scoring(pairs: Sequence[tuple[Prompt, Completion]], dtype: torch.dtype = torch.float32) -> TrainBatch:
    """Answers to be scored and not trained: no credit, in the order of the pairs, each a group of its own."""
    nothing = Score(0.0, Outcome.wrong)
    rollouts = [Rollout(prompt, completion, nothing) for prompt, completion in pairs]
    answers = [Answer(rollout, 0.0, 0, i) for i, rollout in enumerate(rollouts)]
    everyone = list(range(len(answers)))
    return flatten(answers, everyone, torch.ones(len(answers)), dtype)


def _end_to_end(rows: Sequence[Sequence]) -> list:
    return list(chain.from_iterable(rows))


def _sampler_logp(rollout: Rollout, count: int) -> list[float]:
    """Log-probs of the last `count` tokens under the sampler; NaN: given, or seen under another prompt."""
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
    """Tokens of each sequence as one zero-padded row, and each token's offset. `seq` never decreases."""
    count = torch.bincount(seq, minlength=num)
    offset, _ = ranges(torch.zeros_like(count), count)
    longest = int(count.max()) if len(seq) else 0
    rows = values.new_zeros(num, longest)
    return rows.index_put((seq, offset), values), offset
