"""How well the policy of a run solves its held-out problems: k samples of each at the
recipe's temperature, and one greedy.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lgrpo_lite import progress
from lgrpo_lite.engines.base import SamplingParams, share_of
from lgrpo_lite.errors import DataError
from lgrpo_lite.evaluation.figures import Estimate, Problem, estimates, figures, table
from lgrpo_lite.evaluation.results import write_samples
from lgrpo_lite.evaluation.sampling import scored, ticking
from lgrpo_lite.train.run import Run

BLOCK = 64  # problems between two looks at whether to stop


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


def evaluate(
    run: Run, step: int, stop: Callable[[], bool] = lambda: False, keep: Path | None = None
) -> Evaluation | None:
    """Score the evaluation prompts; None when `stop` said so before the end, or when there are none.

    Random numbers are its own (the seed and nothing else), so evaluating never changes the
    training that follows, and two evaluations of one policy agree. The samples go to the file
    `keep`. No reward at all: DataError.
    """
    settings, limit = run.recipe.eval, run.recipe.model.max_new_tokens
    sampled = settings.k / (settings.k + settings.greedy)  # share of a problem's answers that are samples
    problems: list[Problem] = []
    greedy: list[Problem] = []
    devices = [run.policy.device] if run.policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices), run.engine.serving(run.policy) as sampler:
        torch.manual_seed(run.recipe.seed + 1)
        tools = run.tools(sampler)
        for begin in range(0, len(run.eval_prompts), BLOCK):
            if stop():
                return None
            block = run.eval_prompts[begin : begin + BLOCK]
            tick = ticking("evaluating", begin, len(block), len(run.eval_prompts))
            sampling = SamplingParams(settings.temperature, limit, tick=share_of(tick, 0.0, sampled))
            problems += scored(block, sampler.generate(block, settings.k, sampling), tools)
            if settings.greedy:
                sampling = SamplingParams(0.0, limit, tick=share_of(tick, sampled, 1 - sampled))
                greedy += scored(block, sampler.generate(block, 1, sampling), tools)
    if not problems:
        return None
    progress.told("evaluating", len(run.eval_prompts), len(run.eval_prompts))
    if keep is not None:
        write_samples(keep, problems)
    return _summary(run, step, problems, greedy)


def _summary(run: Run, step: int, problems: list[Problem], greedy: list[Problem]) -> Evaluation:
    found = figures(problems, categories=False)
    if found is None:
        fix = "look into logs/ for the reward's fault"
        raise DataError(
            "every reward of the evaluation is missing", where=run.recipe.where("rewards"), fix=fix
        )
    settings = run.recipe.eval
    scores = [score for score in table(problems, settings.k)["avg"] if score == score]
    first = [float(m) for p in greedy for m in p.marks]
    single = estimates(np.array([first]))[0] if first else None
    # k rewards of no problem came back: what is known of one sample
    whole = found.pass_at.get(found.k) or found.avg
    named = {"accuracy": found.avg, "pass_at_k": whole, "maj": found.maj, "greedy": single}
    return Evaluation(
        step=step,
        problems=len(scores),
        k=settings.k,
        temperature=settings.temperature,
        accuracy=found.avg.value,
        stderr=statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0,
        greedy=_value(single),
        pass_at_k=whole.value,
        maj=_value(found.maj),
        length=found.length,
        truncated=found.truncated,
        unparsable=found.unparsable,
        missing=found.missing,
        intervals={name: (e.low, e.high) for name, e in named.items() if e is not None},
    )


def score_of(result: Evaluation, metric: str) -> float | None:
    """What `train.keep.metric` names; a checkpoint is the best one by it."""
    by = {"avg": result.accuracy, "pass": result.pass_at_k, "maj": result.maj, "greedy": result.greedy}
    return by[metric]


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value
