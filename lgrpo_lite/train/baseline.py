"""What the policy makes of the training prompts before it is trained: groups as the first steps would
sample them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lgrpo_lite import progress
from lgrpo_lite.evaluation.sampling import ticking
from lgrpo_lite.evaluation.signal import Baseline, has_signal, summary
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rollout.plan import RolloutPlan
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Group, Prompt

ROUNDS = 8  # of rollout.prompts_per_step prompts, before a run is told that there is no signal
WHAT = "looking for a signal"


def measure(
    run: Run, prompts: Sequence[Prompt], *, early: bool = False, stop: Callable[[], bool] = lambda: False
) -> Baseline | None:
    """Sample and score groups as training would, a step's worth at a time. None: `stop` said so.

    `early`: no further than the first round with a signal. Random numbers are its own (the seed and
    nothing else) and the run's stream of prompts is not touched, so that training after it is the
    training there would have been.
    """
    plan = _plain_plan(run.recipe)
    count = run.recipe.rollout.prompts_per_step
    devices = [run.policy.device] if run.policy.device.type == "cuda" else []
    groups: list[Group] = []
    with torch.random.fork_rng(devices), run.engine.serving(run.policy) as sampler:
        torch.manual_seed(run.recipe.seed + 2)
        tools = run.tools(sampler)
        for begin in range(0, len(prompts), count):
            if stop():
                return None
            block = prompts[begin : begin + count]
            groups += plan(block, _ticking(tools, begin, len(block), len(prompts)))
            if early and has_signal(groups, run.recipe):
                break
    progress.told(WHAT, len(prompts), len(prompts))
    return summary(groups, has_signal(groups, run.recipe), run.reward.first_fault)


def check_prompts(run: Run) -> list[Prompt]:
    """What a run looks at before its first step: the prompts of its first steps that it will not pass
    over.
    """
    store = run.plan.values
    count = ROUNDS * run.recipe.rollout.prompts_per_step
    if store is None:
        return run.prompts.first(count)
    left = [prompt for prompt in run.prompts.first() if not store.knows(prompt) or store.teaches(prompt)]
    return left[:count]


def due(recipe: Recipe, events: Iterable[dict[str, Any]]) -> bool:
    """Whether a run has yet to see a signal: it checks, and no attempt before this one found it."""
    if not recipe.safety.baseline_check:
        return False
    baselines = [event for event in events if event.get("kind") == "baseline"]
    return not any(baseline.get("signal") for baseline in baselines)


def _ticking(tools: Tools, begin: int, count: int, of: int) -> Tools:
    """The tools, whose engine tells how far it is with `count` prompts from `begin` on. A plan that samples
    more than once tells no step back.
    """
    tick = ticking(WHAT, begin, count, of)
    farthest = 0.0

    def forwards(share: float) -> None:
        nonlocal farthest
        farthest = max(farthest, share)
        tick(farthest)

    return replace(tools, sampling=replace(tools.sampling, tick=forwards))


def _plain_plan(recipe: Recipe) -> RolloutPlan:
    """The run's way to sample groups without what only annotates them, with a state of its own."""
    algorithm = recipe.algorithm.model_copy(update={"probe_values": None, "value_cache": None})
    return RolloutPlan(recipe.model_copy(update={"algorithm": algorithm}))
