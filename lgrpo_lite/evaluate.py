"""How well the policy solves problems: mean over k samples at the recipe's temperature, and one greedy answer each."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lgrpo_lite.diagnostics import pass_at_k
from lgrpo_lite.engines.base import Sampler, SamplingParams
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Completion, Outcome, Prompt

BLOCK = 64  # problems between two looks at whether to stop


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of evals.jsonl. Shares are of completions; `stderr` is that of `accuracy` over problems."""

    step: int
    problems: int
    k: int
    temperature: float
    accuracy: float  # avg@k: share of samples that are right
    stderr: float
    greedy: float | None
    pass_at_k: float  # share of problems that one of the k samples solves
    length: float  # mean completion tokens of the samples
    truncated: float
    missing: int  # rewards that timed out or failed; they count neither way


def evaluate(run: Run, step: int, stop: Callable[[], bool] = lambda: False) -> Evaluation | None:
    """Score the evaluation prompts; None when `stop` said so before the end, or when there are none.

    Random numbers are its own (the seed and nothing else), so evaluating never changes the training that follows, and two
    evaluations of one policy agree.
    """
    settings, limit = run.recipe.eval, run.recipe.model.max_new_tokens
    sampled: list[tuple[float, list[Completion]]] = []
    greedy: list[float] = []
    solved: list[list[bool]] = []
    missing = 0
    devices = [run.policy.device] if run.policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices), run.engine.serving(run.policy) as sampler:
        torch.manual_seed(run.recipe.seed + 1)
        for begin in range(0, len(run.eval_prompts), BLOCK):
            if stop():
                return None
            block = run.eval_prompts[begin : begin + BLOCK]
            answers = sampler.generate(block, settings.k, SamplingParams(settings.temperature, limit))
            for completions, marks in zip(answers, _right(run, sampler, block, answers), strict=True):
                missing += len(completions) - len(marks)
                if marks:
                    solved.append(marks)
                    sampled.append((statistics.fmean(marks), completions))
            if settings.greedy:
                best = sampler.generate(block, 1, SamplingParams(0.0, limit))
                greedy += [mark for marks in _right(run, sampler, block, best) for mark in marks]
    if not sampled:
        return None
    scores = [score for score, _ in sampled]
    completions = [c for _, answers in sampled for c in answers]
    return Evaluation(
        step=step,
        problems=len(sampled),
        k=settings.k,
        temperature=settings.temperature,
        accuracy=statistics.fmean(scores),
        stderr=statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0,
        greedy=statistics.fmean(greedy) if greedy else None,
        pass_at_k=statistics.fmean(pass_at_k(len(marks), sum(marks), len(marks)) for marks in solved),
        length=statistics.fmean(len(c.token_ids) for c in completions),
        truncated=statistics.fmean(c.finish_reason == "length" for c in completions),
        missing=missing,
    )


def _right(run: Run, sampler: Sampler, prompts: Sequence[Prompt], answers: Sequence[Sequence[Completion]]) -> list[list[bool]]:
    scores = run.reward.scores(prompts, answers, run.tools(sampler).judge)
    return [[score.outcome is Outcome.ok for score in row if score.value is not None] for row in scores]
