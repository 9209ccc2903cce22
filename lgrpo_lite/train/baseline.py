"""What the policy makes of the training prompts before it is trained, and, where nothing would
teach it, the likeliest cause.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lgrpo_lite import progress
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rollout.plan import RolloutPlan
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Group, Outcome, Prompt

ROUNDS = 8  # of rollout.prompts_per_step prompts, before a run is told that there is no signal
MOST = 0.5  # a share from which on something is the likeliest cause
Z = 1.959964  # 95 %
WHAT = "looking for a signal"


@dataclass(frozen=True, slots=True)
class Baseline:
    """Shares are of the answers with a reward that the policy gave on its own, but for
    `missing`, a count of all answers.
    """

    prompts: int
    answers: int  # sampled
    missing: int  # without a reward: timeouts and faults of the reward
    solved: float | None  # share with outcome ok
    solved_low: float | None  # 95 % interval, for the prompts as a sample of the data
    solved_high: float | None
    truncated: float | None  # cut at model.max_new_tokens
    unparsable: float | None  # no answer was found
    length: float | None  # mean tokens
    groups_right: int  # every answer solves it
    groups_mixed: int
    groups_wrong: int
    groups_varied: int  # two different rewards: what a group-relative advantage learns from
    signal: bool  # whether there is anything to learn from

    def lines(self) -> list[str]:
        """For a person."""
        if self.solved is None:
            return [f"{self.answers} answers to {self.prompts} prompts, every reward missing"]
        mix = f"{self.groups_right} all right, {self.groups_mixed} mixed, {self.groups_wrong} all wrong"
        return [
            (
                f"solved      {self.solved:.1%}, 95 % interval {self.solved_low:.1%} to"
                f" {self.solved_high:.1%}  ({self.answers} answers to {self.prompts} prompts)"
            ),
            f"groups      {mix}; {self.groups_varied} with two different rewards",
            (
                f"truncated   {self.truncated:.1%}   no answer found {self.unparsable:.1%}   missing rewards"
                f" {self.missing}"
            ),
            f"length      {self.length:.1f} tokens",
        ]


def measure(
    run: Run, prompts: Sequence[Prompt], *, early: bool = False, stop: Callable[[], bool] = lambda: False
) -> Baseline | None:
    """Sample and score groups as training would, a step's worth at a time. None: `stop` said so.

    `early`: no further than the first round with a signal. Random numbers are its own (the seed and
    nothing else) and the run's stream of prompts is not touched, so that training after it is the
    training there would have been.
    """
    plan, count = _plain_plan(run.recipe), run.recipe.rollout.prompts_per_step
    devices = [run.policy.device] if run.policy.device.type == "cuda" else []
    groups: list[Group] = []
    with torch.random.fork_rng(devices), run.engine.serving(run.policy) as sampler:
        torch.manual_seed(run.recipe.seed + 2)
        tools = run.tools(sampler)
        for begin in range(0, len(prompts), count):
            if stop():
                return None
            progress.told(WHAT, begin, len(prompts))
            groups += plan(prompts[begin : begin + count], tools)
            if early and has_signal(groups, run.recipe):
                break
    progress.told(WHAT, len(prompts), len(prompts))
    return summary(groups, has_signal(groups, run.recipe))


def check_prompts(run: Run) -> list[Prompt]:
    """What a run looks at before its first step: the prompts of its first steps that it will not pass
    over.
    """
    store, count = run.plan.values, ROUNDS * run.recipe.rollout.prompts_per_step
    if store is None:
        return run.prompts.first(count)
    every = run.prompts.first(len(run.prompts.prompts))
    return [p for p in every if not (store.knows(p) and not store.teaches(p))][:count]


def has_signal(groups: Iterable[Group], recipe: Recipe) -> bool:
    """Two different rewards in one group; among all answers, where the algorithm
    does not compare those of a group.
    """
    groups = list(groups)
    if recipe.algorithm.compares_answers:
        return any(group.varied for group in groups)
    return len({reward for group in groups for reward in group.rewards}) > 1


def summary(groups: Sequence[Group], signal: bool) -> Baseline:
    own = [[r for r in g.rollouts if not r.off and not r.completion.given] for g in groups]
    rates = [
        statistics.fmean(r.score.outcome is Outcome.ok for r in rollouts) for rollouts in own if rollouts
    ]
    rollouts = [r for group in own for r in group]
    low, high = _interval(rates, len(rollouts)) if rates else (None, None)
    return Baseline(
        prompts=len(groups),
        answers=sum(len(g.rollouts) + g.missing for g in groups),
        missing=sum(g.missing for g in groups),
        solved=_share(r.score.outcome is Outcome.ok for r in rollouts),
        solved_low=low,
        solved_high=high,
        truncated=_share(r.completion.finish_reason == "length" for r in rollouts),
        unparsable=_share(r.score.outcome is Outcome.unparsable for r in rollouts),
        length=_share(len(r.completion.token_ids) for r in rollouts),
        groups_right=rates.count(1.0),
        groups_mixed=sum(0 < rate < 1 for rate in rates),
        groups_wrong=rates.count(0.0),
        groups_varied=sum(g.varied for g in groups),
        signal=signal,
    )


def cause(found: Baseline, recipe: Recipe) -> tuple[str, str]:
    """Why there is no signal, likeliest first, and what to do about it."""
    model = recipe.model
    look = "try the reward with `lgrpo-lite reward test RECIPE`; a run's logs/ say what went wrong"
    if found.missing > MOST * found.answers or found.solved is None:
        return f"{found.missing} of {found.answers} rewards are missing: the reward itself is at fault", look
    assert found.truncated is not None and found.unparsable is not None, "known where solved is"
    if found.solved == 1:
        return "every answer is right: the problems are too easy for this model", "train on harder problems"
    if found.solved == 0 and found.truncated >= MOST:
        fix = (
            f"raise model.max_new_tokens (now {model.max_new_tokens}), or ask for shorter answers in"
            " data.system"
        )
        return (
            f"{found.truncated:.0%} of the answers are cut at {model.max_new_tokens} tokens before they end",
            fix,
        )
    if found.solved == 0 and found.unparsable >= MOST:
        fix = (
            "ask for that form in data.system (data.template=chat for an instruct model), or set"
            " rewards.0.extract to the form"
        )
        return (
            f"{found.unparsable:.0%} of the answers hold no final answer where the reward looks for it",
            fix,
        )
    if found.solved == 0:
        fix = "see that `lgrpo-lite reward test RECIPE` passes; then use easier problems or a larger model"
        return (
            (
                "the answers can be read and none is right: the problems are too hard, or the gold answers"
                " are wrong"
            ),
            fix,
        )
    if found.groups_mixed:
        fix = "look at rewards.N.weight: parts that cancel each other, or a first reward of weight 0"
        return "some answers are right and some are wrong, and all get the same reward", fix
    fix = "raise rollout.group_size or rollout.temperature, or use problems in between"
    return "every prompt is solved always or never, so that no group has two different rewards", fix


def demand_signal(found: Baseline, recipe: Recipe) -> None:
    """DataError (exit 5) that names the likeliest cause, where there is nothing to learn from."""
    if found.signal:
        return
    why, fix = cause(found, recipe)
    what = f"no signal in {found.answers} answers to {found.prompts} prompts: {why}"
    raise DataError(
        what,
        where="the baseline, before step 1",
        fix=f"{fix}; safety.baseline_check=false trains all the same",
    )


def due(recipe: Recipe, events: Iterable[dict[str, Any]]) -> bool:
    """Whether a run has yet to see a signal: it checks, and no attempt before this one found it."""
    seen = any(event.get("kind") == "baseline" and event.get("signal") for event in events)
    return recipe.safety.baseline_check and not seen


def as_json(found: Baseline) -> dict[str, Any]:
    return dataclasses.asdict(found)


def _plain_plan(recipe: Recipe) -> RolloutPlan:
    """The run's way to sample groups without what only annotates them, with a state of its own."""
    algorithm = recipe.algorithm.model_copy(update={"probe_values": None, "value_cache": None})
    return RolloutPlan(recipe.model_copy(update={"algorithm": algorithm}))


def _share(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.fmean(values) if values else None


def _interval(rates: Sequence[float], answers: int) -> tuple[float, float]:
    """Wilson's 95 % interval for as many independent answers as these are worth, by how much prompts differ;
    at least one a prompt, and no more than that where no prompt differs from another."""
    p, prompts = statistics.fmean(rates), len(rates)
    error = statistics.stdev(rates) / math.sqrt(prompts) if prompts > 1 else 0.0
    n = min(max(p * (1 - p) / error**2, prompts), answers) if error else prompts
    centre, spread = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, (centre - spread) / (1 + Z**2 / n)), min(1.0, (centre + spread) / (1 + Z**2 / n))
