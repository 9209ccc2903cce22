"""Whether there is anything to learn from: groups sampled before training -> a Baseline, and where there is
no signal, the likeliest cause.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Group, Outcome, Rollout

MOST = 0.5  # a share from which on something is the likeliest cause
Z = 1.959964  # 95 %


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
    fault: str = ""  # of a reward, the first, with FILE:LINE

    def lines(self) -> list[str]:
        """For a person."""
        if self.solved is None:
            return [
                f"{self.answers} answers to {self.prompts} prompts, every reward missing",
                *self._faults(),
            ]
        mix = f"{self.groups_right} all right, {self.groups_mixed} mixed, {self.groups_wrong} all wrong"
        interval = f"95 % interval {self.solved_low:.1%} to {self.solved_high:.1%}"
        size = f"({self.answers} answers to {self.prompts} prompts)"
        unusable = f"no answer found {self.unparsable:.1%}   missing rewards {self.missing}"
        return [
            f"solved      {self.solved:.1%}, {interval}  {size}",
            f"groups      {mix}; {self.groups_varied} with two different rewards",
            f"truncated   {self.truncated:.1%}   {unusable}",
            f"length      {self.length:.1f} tokens",
            *self._faults(),
        ]

    def _faults(self) -> list[str]:
        return [f"first fault {self.fault}"] if self.fault else []


def has_signal(groups: Iterable[Group], recipe: Recipe) -> bool:
    """Two different rewards in one group; among all answers, where the algorithm
    does not compare those of a group.
    """
    groups = list(groups)
    if recipe.algorithm.compares_answers:
        return any(group.varied for group in groups)
    return len({reward for group in groups for reward in group.rewards}) > 1


def summary(groups: Sequence[Group], signal: bool, fault: str = "") -> Baseline:
    by_group = [_own(group) for group in groups]
    rollouts = [rollout for own in by_group for rollout in own]
    outcomes = [rollout.score.outcome for rollout in rollouts]
    rates = [_share(own, Outcome.ok) for own in by_group if own]
    low, high = _interval(rates, len(rollouts)) if rates else (None, None)
    return Baseline(
        prompts=len(groups),
        answers=sum(len(group.rollouts) + group.missing for group in groups),
        missing=sum(group.missing for group in groups),
        solved=_mean([outcome is Outcome.ok for outcome in outcomes]),
        solved_low=low,
        solved_high=high,
        truncated=_mean([rollout.completion.finish_reason == "length" for rollout in rollouts]),
        unparsable=_mean([outcome is Outcome.unparsable for outcome in outcomes]),
        length=_mean([len(rollout.completion.token_ids) for rollout in rollouts]),
        groups_right=rates.count(1.0),
        groups_mixed=sum(0 < rate < 1 for rate in rates),
        groups_wrong=rates.count(0.0),
        groups_varied=sum(group.varied for group in groups),
        signal=signal,
        fault=fault,
    )


def _own(group: Group) -> list[Rollout]:
    """The answers that the policy gave by itself: to the prompt that is trained, without guidance."""
    return [r for r in group.rollouts if not r.off and not r.completion.given]


def cause(baseline: Baseline, recipe: Recipe) -> tuple[str, str]:
    """Why there is no signal, likeliest first, and what to do about it."""
    limit = recipe.model.max_new_tokens
    if baseline.missing > MOST * baseline.answers or baseline.solved is None:
        why = f"{baseline.missing} of {baseline.answers} rewards are missing: the reward itself is at fault"
        return (
            f"{why}, first at {baseline.fault}" if baseline.fault else why,
            "mend it and try it with `lgrpo-lite reward test RECIPE`; a run's logs/ have the whole traceback",
        )
    assert baseline.truncated is not None and baseline.unparsable is not None, "known where solved is"
    if baseline.solved == 1:
        return "every answer is right: the problems are too easy for this model", "train on harder problems"
    if baseline.solved == 0 and baseline.truncated >= MOST:
        return (
            f"{baseline.truncated:.0%} of the answers are cut at {limit} tokens before they end",
            f"raise model.max_new_tokens (now {limit}), or ask for shorter answers in data.system",
        )
    if baseline.solved == 0 and baseline.unparsable >= MOST:
        return (
            f"{baseline.unparsable:.0%} of the answers hold no final answer where the reward looks for it",
            "ask for that form in data.system (data.template=chat for an instruct model), or set"
            " rewards.0.extract to the form",
        )
    if baseline.solved == 0:
        return (
            "the answers can be read and none is right: the problems are too hard, or the gold answers"
            " are wrong",
            "see that `lgrpo-lite reward test RECIPE` passes; then use easier problems or a larger model",
        )
    if baseline.groups_mixed:
        return (
            "some answers are right and some are wrong, and all get the same reward",
            "look at rewards.N.weight: parts that cancel each other, or a first reward of weight 0",
        )
    return (
        "every prompt is solved always or never, so that no group has two different rewards",
        "raise rollout.group_size or rollout.temperature, or use problems in between",
    )


def demand_signal(baseline: Baseline, recipe: Recipe) -> None:
    """DataError (exit 5) that names the likeliest cause, where there is nothing to learn from."""
    if baseline.signal:
        return
    why, fix = cause(baseline, recipe)
    what = f"no signal in {baseline.answers} answers to {baseline.prompts} prompts: {why}"
    raise DataError(
        what,
        where="the baseline, before step 1",
        fix=f"{fix}; safety.baseline_check=false trains all the same",
    )


def as_json(baseline: Baseline) -> dict[str, Any]:
    return dataclasses.asdict(baseline)


def _share(rollouts: Sequence[Rollout], outcome: Outcome) -> float:
    return statistics.fmean(rollout.score.outcome is outcome for rollout in rollouts)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _interval(rates: Sequence[float], answers: int) -> tuple[float, float]:
    """Wilson's 95 % interval for as many independent answers as these are worth, by how much prompts differ;
    at least one a prompt, and no more than that where no prompt differs from another."""
    p, prompts = statistics.fmean(rates), len(rates)
    error = statistics.stdev(rates) / math.sqrt(prompts) if prompts > 1 else 0.0
    n = min(max(p * (1 - p) / error**2, prompts), answers) if error else prompts
    centre = p + Z**2 / (2 * n)
    spread = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
