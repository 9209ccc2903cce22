"""Training curves: what a run came to, and several runs side by side. Pure functions of RunView; no files, no
drawing.
"""

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.monitor.alarms import standing
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import evaluations, interval
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.recipe.marks import flat
from lgrpo_lite.types import StepRecord

MOST = 2000  # points of a curve
END = 0.1  # share of the steps that "at the end" means
# train.keep.metric -> evals.jsonl
METRICS = {"avg": "accuracy", "pass": "pass_at_k", "maj": "maj", "greedy": "greedy"}
# say nothing of a curve
SILENT = ("recipe", "log", "train.time_limit", "train.save_every", "train.keep", "export", "schema")
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Best:
    """The evaluation that is the best by `train.keep.metric`; of equals the first."""

    value: float
    step: int
    metric: str  # avg, pass, maj, greedy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. None: it has no such figure."""

    name: str  # of its folder
    path: str
    state: str  # of its health
    algorithm: str
    model: str
    settings: dict[str, Any]  # those that are not the same in all runs of the comparison
    step: int
    steps: int
    reward: float | None  # mean over the last 10 % of its steps
    best: Best | None
    length: float | None  # mean tokens of an answer over the last 10 %
    tokens: int  # sampled
    hours: float  # of steps and evaluations; pauses between two attempts are not in it
    length_lambda: float | None  # at the end
    skipped: int  # steps without an update
    alarms: tuple[str, ...]


def signal(record: StepRecord) -> float | None:
    """Share of groups with two different rewards."""
    return record.groups_mixed / record.groups if record.groups else None


CURVES: dict[str, Callable[[StepRecord], float | None]] = {
    "reward": lambda r: r.reward,
    "tokens of an answer": lambda r: r.length,
    "groups with a signal": signal,
    "λ": lambda r: r.length_lambda,
}


def points(
    records: Sequence[StepRecord], of: Callable[[StepRecord], float | None], most: int = MOST
) -> list[Point]:
    """(step, value) of the records that have one; of more than `most`, means of as many neighbours, at their
    last step.
    """
    values = [(record.step, finite(of(record))) for record in records]
    path = [(step, value) for step, value in values if value is not None]
    if len(path) <= most:
        return path
    edges = [round(i * len(path) / most) for i in range(most + 1)]
    return [_mean_point(path[a:b]) for a, b in itertools.pairwise(edges)]


def _mean_point(part: Sequence[Point]) -> Point:
    last_step, _ = part[-1]
    return last_step, statistics.fmean(value for _, value in part)


def best_of(run: RunView) -> Best | None:
    """None without evaluations that have the metric."""
    metric = str(run.get("train.keep.metric", "avg"))
    return best_row(run.evals, metric if metric in METRICS else "avg")


def best_row(rows: Sequence[dict[str, Any]], metric: str) -> Best | None:
    """`best_of` on rows of evals.jsonl, foreign ones passed over."""
    scored = []
    for row in rows:
        score = finite(row.get(METRICS[metric]))
        step = finite(row.get("step"))
        if score is not None and step is not None:
            scored.append((score, int(step)))
    if not scored:
        return None
    value, step = max(scored, key=lambda pair: (pair[0], -pair[1]))
    return Best(value, step, metric)


def outcomes(runs: Sequence[RunView]) -> list[Outcome]:
    """One for each run, in order, with the settings in which they differ. Wants runs that were read whole."""
    settings = differing([run.recipe for run in runs])
    return [_outcome(run, own) for run, own in zip(runs, settings, strict=True)]


def _outcome(run: RunView, settings: dict[str, Any]) -> Outcome:
    records = run.records
    count = max(1, round(END * len(records)))
    last = records[-count:]
    seconds = sum(sum(map(_positive, record.seconds.values())) for record in records)
    seconds += sum(_positive(row.get("seconds")) for row in run.evals)
    lambdas = [record.length_lambda for record in records if finite(record.length_lambda) is not None]
    return Outcome(
        name=run.path.name or str(run.path),
        path=str(run.path),
        state=run.health.state,
        algorithm=str(run.get("algorithm.use", "?")),
        model=str(run.get("model.id", "?")),
        settings=settings,
        step=run.step,
        steps=run.steps,
        reward=_mean(r.reward for r in last),
        best=best_of(run),
        length=_mean(r.length for r in last),
        tokens=sum(r.rollout_tokens for r in records),
        hours=seconds / 3600,
        length_lambda=lambdas[-1] if lambdas else None,
        skipped=sum(r.skipped is not None for r in records),
        alarms=tuple(raised.name for raised in standing(run)),
    )


def differing(recipes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each recipe the settings, by dotted key, in which not all agree; names, logs and what changes no
    curve left out.
    """
    settings = [flat(recipe) for recipe in recipes]
    keys = sorted({key for one in settings for key in one})
    unequal = [key for key in keys if not _silent(key) and _differs(key, settings)]
    return [{key: one.get(key) for key in unequal} for one in settings]


def _silent(key: str) -> bool:
    return any(key == silent or key.startswith(f"{silent}.") for silent in SILENT)


def _differs(key: str, settings: Sequence[dict[str, Any]]) -> bool:
    return any(one.get(key) != settings[0].get(key) for one in settings)


def held_out(run: RunView) -> list[tuple[int, float, float, float]]:
    """(step, avg@k, low, high) of every evaluation; without an interval both ends are the value."""
    rows = []
    for row in evaluations(run):
        step = finite(row.get("step"))
        accuracy = row["accuracy"]
        if step is not None:
            low, high = interval(row, "accuracy") or (accuracy, accuracy)
            rows.append((int(step), float(accuracy), low, high))
    return rows


def _mean(values) -> float | None:
    numbers = [value for value in map(finite, values) if value is not None]
    return statistics.fmean(numbers) if numbers else None


def _positive(value: Any) -> float:
    return max(0.0, finite(value) or 0.0)
