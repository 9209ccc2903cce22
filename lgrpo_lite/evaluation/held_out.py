"""The line of evals.jsonl: answers to the held-out problems -> accuracy, pass@k, maj@k, with intervals."""

import statistics
from dataclasses import dataclass

import numpy as np

from lgrpo_lite.errors import DataError
from lgrpo_lite.evaluation.figures import Estimate, Problem, estimates, figures, table
from lgrpo_lite.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One line of evals.jsonl. Shares are of completions; `stderr` is that of `accuracy` over problems."""

    step: int
    problems: int  # with at least one reward
    k: int
    temperature: float
    accuracy: float  # avg@k: share of samples that are right
    stderr: float
    greedy: float | None
    pass_at_k: float  # share of problems that one of the k samples solves
    # share of problems whose most frequent answer is right; None: the rewards read no answer
    maj: float | None
    length: float  # mean completion tokens of the samples
    truncated: float
    unparsable: float  # no answer was found
    missing: int  # rewards that timed out or failed; they count neither way
    # of accuracy, pass_at_k, maj, greedy: 95 %, bootstrap over problems
    intervals: dict[str, tuple[float, float]]


def evaluation_of(
    step: int, problems: list[Problem], greedy: list[Problem], recipe: Recipe, fault: str = ""
) -> Evaluation:
    """Figures of k sampled answers a problem, and of one greedy answer where there is one. No reward at
    all: DataError, with the first `fault` of a reward.
    """
    sampled = figures(problems, categories=False)
    if sampled is None:
        what = "every reward of the evaluation is missing" + (f": {fault}" if fault else "")
        fix = "mend the reward; logs/ have the whole traceback"
        raise DataError(what, where=recipe.where("rewards"), fix=fix)
    settings = recipe.eval
    scores = [score for score in table(problems, settings.k)["avg"] if not np.isnan(score)]
    marks = [float(mark) for problem in greedy for mark in problem.marks]
    single = estimates(np.array([marks]))[0] if marks else None
    # k rewards of no problem came back: what is known of one sample
    whole = sampled.pass_at.get(sampled.k) or sampled.avg
    named = {"accuracy": sampled.avg, "pass_at_k": whole, "maj": sampled.maj, "greedy": single}
    return Evaluation(
        step=step,
        problems=len(scores),
        k=settings.k,
        temperature=settings.temperature,
        accuracy=sampled.avg.value,
        stderr=statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0,
        greedy=_value(single),
        pass_at_k=whole.value,
        maj=_value(sampled.maj),
        length=sampled.length,
        truncated=sampled.truncated,
        unparsable=sampled.unparsable,
        missing=sampled.missing,
        intervals={name: (e.low, e.high) for name, e in named.items() if e is not None},
    )


def score_of(result: Evaluation, metric: str) -> float | None:
    """What `train.keep.metric` names; a checkpoint is the best one by it."""
    by = {"avg": result.accuracy, "pass": result.pass_at_k, "maj": result.maj, "greedy": result.greedy}
    return by[metric]


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value
