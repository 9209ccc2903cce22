"""Is the merged model the policy? Greedy tokens and logits of both, on the same prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Largest accepted mean |Δlogit|, and least accepted share of positions with the same top token. The mean,
# because a bf16 logit near 30 is itself rounded to 1/8, so that the worst of 10^5 says little, while a
# wrong merge moves all of them.
TOLERANCE = {torch.float32: (1e-3, 0.999), torch.float16: (0.03, 0.99), torch.bfloat16: (0.2, 0.95)}
ROUNDED = (0.3, 0.9)  # LLM.int8 rounds activations too, as no merged model does


@dataclass(frozen=True, slots=True)
class Comparison:
    """What merge_report.json holds."""

    prompts: int
    tokens: int  # completion positions compared
    greedy_equal: int  # prompts whose greedy answers are the same, token for token
    same_top: float  # share of positions, along the policy's greedy answer, with the same most likely token
    max_logit_diff: float
    mean_logit_diff: float
    tolerance: float | None  # on mean_logit_diff; None: reported only
    passed: bool


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
) -> Comparison:
    """Logits are compared where they predict the policy's greedy answer. Anything not finite fails."""
    worst, total, same, count = 0.0, 0.0, 0, 0
    values = 0
    for prompt, answer in zip(prompts, policy_answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        window = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ours, theirs = (f(ids)[0, window].float().cpu() for f in (policy_logits, merged_logits))
        diff = (ours - theirs).abs()
        worst = max(worst, diff.max().item()) if torch.isfinite(diff).all() else float("inf")
        total, values = total + diff.sum().item(), values + diff.numel()
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(answer)
    same_top = same / count
    finite = worst < float("inf")
    within = tolerance is None or (total / values <= tolerance and same_top >= least_same_top)
    return Comparison(
        prompts=len(prompts),
        tokens=count,
        greedy_equal=sum(list(a) == list(b) for a, b in zip(policy_answers, merged_answers, strict=True)),
        same_top=same_top,
        max_logit_diff=worst if finite else -1.0,
        mean_logit_diff=total / values if finite else -1.0,
        tolerance=tolerance,
        passed=finite and within,
    )
