"""Is the merged model the policy? Greedy tokens and logits of both, on the same prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Largest accepted mean |Δlogit|, and least accepted share of positions with the same top token, by what the
# merged weights are rounded to; logits are computed in float32. The mean, because rounded weights move the
# worst of 10^5 logits far, while a wrong merge moves all of them. What all logits of a position share is left
# out: no probability knows it, and rounding moves it most (SmolLM2: 0.073 with it, 0.026 without).
TOLERANCE = {
    torch.float32: (1e-3, 0.999),
    torch.float16: (0.03, 0.99),
    torch.bfloat16: (0.2, 0.95),
}  # fmt: skip
ROUNDED = (0.3, 0.9)  # LLM.int8 rounds activations too, as no merged model does


@dataclass(frozen=True, slots=True)
class Comparison:
    """What merge_report.json holds."""

    prompts: int
    tokens: int  # completion positions compared
    greedy_equal: int  # prompts whose greedy answers (in slices: next tokens) are the same, token for token
    same_top: float  # share of positions, along the policy's greedy answer, with the same most likely token
    max_logit_diff: float
    mean_logit_diff: float
    tolerance: float | None  # on mean_logit_diff; None: reported only
    passed: bool
    compared: str = "whole"  # or "in slices": number by number, and along the ends of prompts
    tensors: int = 0  # in slices: how many were read back and are what they should be


def limits(
    dtype: torch.dtype, weights: str, tolerance: float | None, *, judged: bool
) -> tuple[float | None, float]:
    """(accepted mean |Δlogit|, least share of the same top token); None: not `judged`, reported only."""
    usual, least = ROUNDED if weights == "int8" else TOLERANCE[dtype]
    if not judged:
        return None, least
    return usual if tolerance is None else tolerance, least


@torch.no_grad()
def compare(
    policy_logits: Callable[[Tensor], Tensor],
    merged_logits: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    policy_answers: Sequence[Sequence[int]],
    merged_answers: Sequence[Sequence[int]],
    *,
    tolerance: float | None,
    least_same_top: float,
    tensors: int = 0,
) -> Comparison:
    """Logits are compared where they predict the policy's greedy answer, but for what all of a position
    share. Anything not finite fails. tensors: those that were compared number by number before.
    """
    worst = total = 0.0
    same = count = values = 0
    for prompt, answer in zip(prompts, policy_answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        begin = len(prompt) - 1
        window = slice(begin, begin + len(answer))
        ours = policy_logits(ids)[0, window].float().cpu()
        theirs = merged_logits(ids)[0, window].float().cpu()
        diff = ours - theirs
        diff = (diff - diff.mean(-1, keepdim=True)).abs()
        largest = diff.max().item() if torch.isfinite(diff).all() else float("inf")
        worst = max(worst, largest)
        total += diff.sum().item()
        values += diff.numel()
        agree = ours.argmax(-1) == theirs.argmax(-1)
        same += int(agree.sum())
        count += len(answer)
    equal = [list(a) == list(b) for a, b in zip(policy_answers, merged_answers, strict=True)]
    same_top = same / count
    mean = total / values
    finite = worst < float("inf")
    within = tolerance is None or (mean <= tolerance and same_top >= least_same_top)
    return Comparison(
        prompts=len(prompts),
        tokens=count,
        greedy_equal=sum(equal),
        same_top=same_top,
        max_logit_diff=worst if finite else -1.0,
        mean_logit_diff=mean if finite else -1.0,
        tolerance=tolerance,
        passed=finite and within,
        compared="in slices" if tensors else "whole",
        tensors=tensors,
    )
