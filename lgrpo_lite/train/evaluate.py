"""How well the policy of a run solves its held-out problems: k samples of each at the
recipe's temperature, and one greedy.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from lgrpo_lite import progress
from lgrpo_lite.engines.base import sampling_of, share_of
from lgrpo_lite.evaluation.figures import Problem
from lgrpo_lite.evaluation.held_out import Evaluation, evaluation_of
from lgrpo_lite.evaluation.results import write_samples
from lgrpo_lite.evaluation.sampling import scored, ticking
from lgrpo_lite.train.run import Run

BLOCK = 64  # problems between two looks at whether to stop


def evaluate(
    run: Run, step: int, stop: Callable[[], bool] = lambda: False, keep: Path | None = None
) -> Evaluation | None:
    """Score the evaluation prompts; None when `stop` said so before the end, or when there are none.

    Random numbers are its own (the seed and nothing else), so evaluating never changes the
    training that follows, and two evaluations of one policy agree. The samples go to the file
    `keep`. No reward at all: DataError.
    """
    settings = run.recipe.eval
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
            sampling = sampling_of(run.recipe, settings.temperature, tick=share_of(tick, 0.0, sampled))
            problems += scored(block, sampler.generate(block, settings.k, sampling), tools)
            if settings.greedy:
                sampling = sampling_of(run.recipe, 0.0, tick=share_of(tick, sampled, 1 - sampled))
                greedy += scored(block, sampler.generate(block, 1, sampling), tools)
    if not problems:
        return None
    progress.told("evaluating", len(run.eval_prompts), len(run.eval_prompts))
    if keep is not None:
        write_samples(keep, problems)
    return evaluation_of(step, problems, greedy, run.recipe, run.reward.first_fault)
