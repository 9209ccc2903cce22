"""TrainBatch: the completions of a step, end to end, with every number that the update needs decided.

Letters used in shapes throughout the package:
    P prompts · G group · S sequences of this batch · R rollouts of the whole step · N model tokens · T completion tokens
    V vocabulary · D hidden
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """Sequences laid end to end, no padding. A split keeps `coef` and the step_* fields, so sums over micro-batches are exact."""

    input_ids: Int[Tensor, " N"]  # prompt and completion of each sequence
    start: Int[Tensor, " S"]  # where a sequence begins in input_ids
    length: Int[Tensor, " S"]  # its tokens, prompt included
    row: Int[Tensor, " S"]  # which rollout of the step it is
    at: Int[Tensor, " T"]  # position in input_ids whose output predicts this token
    token_ids: Int[Tensor, " T"]  # the predicted completion tokens
    seq: Int[Tensor, " T"]  # which sequence of this batch a token belongs to
    advantage: Float[Tensor, " T"]  # A
    weight: Float[Tensor, " T"]  # fixed token weights, 1 unless a part says otherwise
    coef: Float[Tensor, " T"]  # the normaliser: the loss is a plain sum of coef · weight · gain
    sampler_logp: Float[Tensor, " T"]  # log-prob under the policy that sampled, as the engine reported it
    step_length: Int[Tensor, " R"]  # completion tokens of every rollout of the step
    step_group: Int[Tensor, " R"]  # its group
    old_logp: Float[Tensor, " T"] | None = None  # at the start of the batch; None: this very update is the first
    ref_logp: Float[Tensor, " T"] | None = None  # under the reference; None: no KL asked for

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
            self, input_ids=self.input_ids[model], start=start, length=length, row=self.row[keep], at=at, seq=seq, **per_token
        )

    def micro_rows(self, budget: int) -> list[Int[Tensor, " _"]]:
        """Sequences grouped by similar length, at most `budget` padded tokens a group (at least one sequence)."""
        order = sorted(range(self.num_sequences), key=lambda s: -int(self.length[s]))
        parts: list[list[int]] = []
        for s in order:
            if parts and (len(parts[-1]) + 1) * int(self.length[parts[-1][0]]) <= budget:
                parts[-1].append(s)
            else:
                parts.append([s])
        return [torch.tensor(part) for part in parts]

    def split(self, budget: int) -> list["TrainBatch"]:
        """Micro-batches of whole sequences, at most `budget` padded tokens each."""
        return [self.select(rows) for rows in self.micro_rows(budget)]


def ranges(start: Int[Tensor, " K"], length: Int[Tensor, " K"]) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """start[k], start[k]+1, … for each k, end to end, and which k each of them belongs to."""
    owner = torch.repeat_interleave(torch.arange(len(length), device=length.device), length)
    offset = torch.arange(len(owner), device=length.device) - (length.cumsum(0) - length)[owner]
    return start[owner] + offset, owner


def rows_of(values: Float[Tensor, " T"], seq: Int[Tensor, " T"], num: int) -> tuple[Float[Tensor, "S L"], Int[Tensor, " T"]]:
    """Tokens of each sequence as one zero-padded row, and each token's offset in its row. `seq` is non-decreasing."""
    count = torch.bincount(seq, minlength=num)
    offset, _ = ranges(torch.zeros_like(count), count)
    rows = values.new_zeros(num, int(count.max()) if len(seq) else 0)
    return rows.index_put((seq, offset), values), offset
