"""How likely the answers are under the policy and under the base: one pass over them, without gradient."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.evaluation.figures import Problem, Sample
from lgrpo_lite.layout import split
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Completion, Prompt


def with_logprobs(
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Completion]],
    policy: Policy,
    micro_tokens: int,
    *,
    is_base: bool,
) -> list[Problem]:
    """The samples with their log-probs, at the temperature of `policy`, summed over the tokens and a token.

    `logp` is under the policy that was asked, `base_logp` with its adapter off. `is_base`: the base was
    asked, so the two are one and only the latter is there. A policy without an adapter has no base
    beside it: only the former is there.
    """
    pairs = [(prompt, answer) for prompt, row in zip(prompts, answers, strict=True) for answer in row]
    tuned = None if is_base else log_probs(policy, pairs, micro_tokens)
    base = None
    if policy.has_adapter:
        with policy.reference():
            base = log_probs(policy, pairs, micro_tokens)
    elif is_base:
        base = log_probs(policy, pairs, micro_tokens)
    unknown: list[float | None] = [None] * len(pairs)
    logps = zip(tuned or unknown, base or unknown, strict=True)  # in the order of the samples
    rows = []
    for problem in problems:
        samples = [_with_logps(sample, *next(logps)) for sample in problem.samples]
        rows.append(replace(problem, samples=tuple(samples)))
    return rows


def _with_logps(sample: Sample, tuned: float | None, base: float | None) -> Sample:
    def mean(total: float | None) -> float | None:
        return None if total is None else total / sample.tokens

    return replace(sample, logp=tuned, logp_mean=mean(tuned), base_logp=base, base_logp_mean=mean(base))


@torch.no_grad()
def log_probs(policy: Policy, pairs: Sequence[tuple[Prompt, Completion]], micro_tokens: int) -> list[float]:
    """Σ log π over the tokens of each answer, in passes of at most `micro_tokens` tokens."""
    batch = for_scoring(pairs)
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for rows, micro in split(batch, micro_tokens, policy.layouts_for(batch)):
        logp = policy.logprobs(micro).logp.double().cpu()
        sums = torch.zeros(len(rows), dtype=torch.float64)
        total[rows] = sums.index_add(0, micro.seq, logp)
    return total.tolist()
