"""What is wrong with a run, by its records alone: symptom, numbers, next step.
docs/failures.md has a section for each alarm.

An alarm's condition holds at a step or not (`symptoms`); it is raised the first time, counted from
then on, and stays in the tally when it is mended. All of it is a fold over the records, so a resumed
run tells what it told before.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.monitor import symptoms
from lgrpo_lite.monitor.symptoms import Alarm
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.trend import number
from lgrpo_lite.types import StepRecord

NAMES = (
    "no_signal", "truncation", "entropy_collapse", "disagreement", "lambda_clamp", "dominated_weights",
    "reward_faults",
    "memory_slope", "heartbeat",
)  # fmt: skip

LEVELS: dict[str, tuple[float, float, float, float]] = {  # bad below, doubtful below, doubtful from, bad from
    "truncated": (-1, -1, 0.3, symptoms.TRUNCATED),
    "no_signal": (
        -1,
        -1,
        1 - symptoms.SIGNAL,
        1 - symptoms.SIGNAL_LEARNED,
    ),  # share of groups that teach nothing
    "clip": (-1, -1, 0.1, 0.3),  # share of trained tokens, low and high together
    "kl": (-math.inf, -math.inf, 0.5, 2.0),
    "disagreement": (-1, -1, 0.02, 0.1),
    "token_mult_error": (-1, -1, 0.02, symptoms.MULT_ERROR),
    "mismatch_kl": (-math.inf, -math.inf, symptoms.MISMATCH_KL / 4, symptoms.MISMATCH_KL),
    "grad_norm": (-1, 1e-3, 1.0, 10.0),
    "entropy": (-1, symptoms.ENTROPY, 0.5, math.inf),
    "weight_ratio": (
        1 / symptoms.WEIGHT_RATIO,
        1 / 3,
        3.0,
        symptoms.WEIGHT_RATIO,
    ),  # of the longest to the shortest answers
    "reward_share": (-1, -1, 0.3, 0.6),  # share of a step's time that rewards take
}


def level(name: str, value: Any) -> str:
    """good, warn or bad; empty for a figure without limits, and for no number."""
    found, limits = number(value), LEVELS.get(name)
    if found is None or limits is None:
        return ""
    low, doubtful_low, doubtful, high = limits
    return (
        "bad"
        if found < low or found >= high
        else "warn"
        if found < doubtful_low or found >= doubtful
        else "good"
    )


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm over a run: steps at which its condition held, the first and the last of
    them, and the last one's words.
    """

    name: str
    count: int
    first: int
    last: int
    what: str
    fix: str


class Alarms:
    """Folds over a run's records, in order. `recipe`: the resolved recipe,
    or whatever part of it is known.
    """

    def __init__(self, recipe: dict[str, Any]):
        self.tally: dict[str, Raised] = {}
        self._checks = [kind(recipe) for kind in symptoms.CHECKS]

    def look(self, record: StepRecord) -> list[Alarm]:
        """The alarms whose condition holds at this step. A figure that is
        missing or no number is passed over.
        """
        found = [alarm for check in self._checks if (alarm := check(record)) is not None]
        for alarm in found:
            before = self.tally.get(alarm.name)
            count, first = (before.count, before.first) if before else (0, record.step)
            self.tally[alarm.name] = Raised(alarm.name, count + 1, first, record.step, alarm.what, alarm.fix)
        return found


# the last run that had to be folded: a view asks several times a second
_folded: tuple[Any, list[Raised]] = (None, [])


def standing(run: RunView) -> list[Raised]:
    """A run's alarms: those of its STATUS.json, else of its records; and
    `heartbeat`, which no record can raise.
    """
    global _folded
    told = run.status.get("alarms")
    if isinstance(told, list):
        found = [raised for row in told if (raised := _read(row)) is not None]
    else:
        state = (run.path, run.recipe, len(run.records), run.records[-1:])
        if _folded[0] != state:
            _folded = state, fold(run.recipe, run.records)
        found = list(_folded[1])
    if run.health.state in ("silent", "killed", "stuck"):
        fix = run.health.resume or "see the end of logs/ in the run folder"
        found.append(Raised("heartbeat", 1, run.step, run.step, run.health.why, fix))
    return found


def fold(recipe: dict[str, Any], records: Iterable[StepRecord]) -> list[Raised]:
    """The tally of a run's records."""
    alarms = Alarms(recipe)
    for record in records:
        alarms.look(record)
    return list(alarms.tally.values())


def _read(row: Any) -> Raised | None:
    """A row of STATUS.json; None for a foreign one."""
    try:
        found = Raised(**row)
    except TypeError:
        return None
    numbers = all(type(value) is int for value in (found.count, found.first, found.last))
    return (
        found
        if numbers and all(isinstance(words, str) for words in (found.name, found.what, found.fix))
        else None
    )
