"""What a step says about itself: groups, batch and sums -> StepRecord."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.objective.weight import grpo_lambda
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Group, Outcome, Rollout, StepRecord


class Clock:
    """Seconds by phase: `with clock("rollout"): …` adds up."""

    def __init__(self):
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began


class Sums(defaultdict[str, float]):
    """What micro-batches tell about their tokens, added up over a step; of names that end in _max, the largest."""

    def __init__(self):
        super().__init__(float)

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            self[name] = max(self[name], value) if name.endswith("_max") else self[name] + value


SAMPLED = ("disagreement", "mismatch_kl", "token_mult_error", "capped")  # of tokens whose sampling log-prob is known


def summarise(
    step: int,
    run: Run,
    sampled: Sequence[Group],
    groups: Sequence[Group],
    draws: int,
    tools: Tools,
    clock: Clock,
    lr: float,
    batch: TrainBatch | None = None,
    loss: float | None = None,
    grad_norm: float | None = None,
    sums: Sums | None = None,
    *,
    skipped: str | None = None,
) -> StepRecord:
    """Statistics of everything sampled and, where an update is made, of what is trained. λ is the one before the update."""
    rollouts = [r for g in sampled for r in g.rollouts]
    rewards = [r.reward for r in rollouts]
    right = [r for r in rollouts if r.score.outcome is Outcome.ok]
    wrong = [r for r in rollouts if r.score.outcome is not Outcome.ok]
    solved = [sum(r.score.outcome is Outcome.ok for r in g.rollouts) for g in sampled]
    per_token = _per_token(sums, batch)
    parts: dict[str, list[float]] = defaultdict(list)  # a reward of the user's own may name others each time
    for r in rollouts:
        for name, value in r.score.parts.items():
            parts[name].append(value)
    return StepRecord(
        step=step,
        policy_version=run.policy.version,
        skipped=skipped,
        reward=_mean(rewards),
        reward_std=statistics.pstdev(rewards) if rewards else None,
        reward_parts={name: statistics.fmean(values) for name, values in parts.items()},
        solved=len(right) / len(rollouts) if rollouts else None,
        missing=sum(g.missing for g in sampled),
        reward_timeouts=tools.tally.faults["timeout"],
        reward_crashes=tools.tally.faults["crash"],
        reward_errors=tools.tally.faults["error"],
        reward_p50=tools.tally.quantile(0.5),
        reward_p95=tools.tally.quantile(0.95),
        groups=len(sampled),
        groups_mixed=sum(g.varied for g in sampled),
        groups_right=sum(n == len(g.rollouts) > 0 for n, g in zip(solved, sampled, strict=True)),
        groups_wrong=sum(n == 0 < len(g.rollouts) for n, g in zip(solved, sampled, strict=True)),
        draws=draws,
        length=_mean(_lengths(rollouts)),
        length_right=_mean(_lengths(right)),
        length_wrong=_mean(_lengths(wrong)),
        truncated=_mean([r.completion.finish_reason == "length" for r in rollouts]),
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        length_lambda=run.objective.length_lambda,
        length_lambda_grad=run.objective.lambda_grad,
        rollout_tokens=tools.count["tokens"],
        rollout_answers=tools.count["answers"],
        guide_tokens=run.plan.guide_length.length if run.plan.guide_length else None,
        trained_tokens=batch.num_tokens if batch else 0,
        seconds=dict(clock.seconds),
        disagreement_max=sums["disagreement_max"] if sums is not None and sums["sampled"] else None,
        **{name: per_token.get(name) for name in ("clip_low", "clip_high", "kl", "entropy", *SAMPLED)},
        **_token_preference(run, batch),
    )


def _per_token(sums: Sums | None, batch: TrainBatch | None) -> dict[str, float]:
    """Means over the trained tokens; the disagreement over those whose sampling log-prob belongs to the trained prompt."""
    if sums is None or batch is None:
        return {}
    count = {name: sums["sampled"] if name in SAMPLED else batch.num_tokens for name in sums if name != "sampled"}
    return {name: sums[name] / size for name, size in count.items() if size}


def _token_preference(run: Run, batch: TrainBatch | None) -> dict[str, float]:
    """The weight λ gives the shortest, median and longest answer of a group, averaged over groups."""
    preference = run.objective.preference
    if preference is None or batch is None:
        return {}
    weight = preference(batch.step_length, batch.step_group).tolist()
    by_group = defaultdict(list)
    for length, group, f in zip(batch.step_length.tolist(), batch.step_group.tolist(), weight, strict=True):
        by_group[group].append((length, f))
    ranked = [sorted(answers) for answers in by_group.values()]
    return {
        "weight_short": statistics.fmean(g[0][1] for g in ranked),
        "weight_median": statistics.fmean(g[len(g) // 2][1] for g in ranked),
        "weight_long": statistics.fmean(g[-1][1] for g in ranked),
        "length_lambda_grpo": grpo_lambda(batch.step_length, batch.step_group, preference.settings.r),
    }


def _lengths(rollouts: Sequence[Rollout]) -> list[int]:
    return [len(r.completion.token_ids) - r.completion.given for r in rollouts]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
