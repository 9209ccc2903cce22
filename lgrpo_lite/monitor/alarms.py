"""What is wrong with a run, by its records alone: symptom, numbers, next step. docs/failures.md has a section
for each alarm.

An alarm's condition holds at a step or not (`symptoms`); it is raised the first time, counted from
then on, and stays in the tally when it is mended. All of it is a fold over the records, so a resumed
run tells what it told before.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.monitor import symptoms
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.symptoms import Alarm
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.types import StepRecord

NAMES = (
    "no_signal", "truncation", "entropy_collapse", "disagreement", "lambda_clamp", "dominated_weights",
    "reward_faults",
    "memory_slope", "heartbeat",
)  # fmt: skip

LEVELS: dict[str, tuple[float, float, float, float]] = {  # bad below, doubtful below, doubtful from, bad from
    "truncated": (-1, -1, 0.3, symptoms.TRUNCATED),
    # share of groups that teach nothing
    "no_signal": (-1, -1, 1 - symptoms.SIGNAL, 1 - symptoms.SIGNAL_LEARNED),
    "clip": (-1, -1, 0.1, 0.3),  # share of trained tokens, low and high together
    "kl": (-math.inf, -math.inf, 0.5, 2.0),
    "disagreement": (-1, -1, 0.02, 0.1),
    "token_mult_error": (-1, -1, 0.02, symptoms.MULT_ERROR),
    "mismatch_kl": (-math.inf, -math.inf, symptoms.MISMATCH_KL / 4, symptoms.MISMATCH_KL),
    "grad_norm": (-1, 1e-3, 1.0, 10.0),
    "entropy": (-1, symptoms.ENTROPY, 0.5, math.inf),
    # of the longest to the shortest answers
    "weight_ratio": (1 / symptoms.WEIGHT_RATIO, 1 / 3, 3.0, symptoms.WEIGHT_RATIO),
    "reward_share": (-1, -1, 0.3, 0.6),  # share of a step's time that rewards take
}


def level(name: str, value: Any) -> str:
    """good, warn or bad; empty for a figure without limits, and for no number."""
    value, limits = finite(value), LEVELS.get(name)
    if value is None or limits is None:
        return ""
    bad_below, doubtful_below, doubtful_from, bad_from = limits
    if value < bad_below or value >= bad_from:
        return "bad"
    if value < doubtful_below or value >= doubtful_from:
        return "warn"
    return "good"


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm over a run: steps at which its condition held, the first and the last of them, and the last
    one's words.
    """

    name: str
    count: int
    first: int
    last: int
    what: str
    fix: str


class Alarms:
    """Folds over a run's records, in order. `recipe`: the resolved one, or whatever part of it is known."""

    def __init__(self, recipe: dict[str, Any]):
        self.tally: dict[str, Raised] = {}
        self._checks = [kind(recipe) for kind in symptoms.CHECKS]

    def look(self, record: StepRecord) -> list[Alarm]:
        """The alarms whose condition holds at this step. A missing figure, or no number, is passed over."""
        results = [check(record) for check in self._checks]
        alarms = [alarm for alarm in results if alarm is not None]
        for alarm in alarms:
            before = self.tally.get(alarm.name)
            self.tally[alarm.name] = Raised(
                name=alarm.name,
                count=before.count + 1 if before else 1,
                first=before.first if before else record.step,
                last=record.step,
                what=alarm.what,
                fix=alarm.fix,
            )
        return alarms


# the last run that had to be folded: a view asks several times a second
_folded: tuple[Any, list[Raised]] = (None, [])


def standing(run: RunView) -> list[Raised]:
    """A run's alarms: those of its STATUS.json, else of its records; and `heartbeat`, which no record can
    raise.
    """
    global _folded
    rows = run.status.get("alarms")
    if isinstance(rows, list):
        alarms = [alarm for alarm in map(_read, rows) if alarm is not None]
    else:
        state = (run.path, run.recipe, len(run.records), run.records[-1:])
        if _folded[0] != state:
            _folded = state, fold(run.recipe, run.records)
        alarms = list(_folded[1])
    if run.health.state in ("silent", "killed", "stuck"):
        fix = run.health.resume or "see the end of logs/ in the run folder"
        alarms.append(Raised("heartbeat", 1, run.step, run.step, run.health.why, fix))
    return alarms


def fold(recipe: dict[str, Any], records: Iterable[StepRecord]) -> list[Raised]:
    """The tally of a run's records."""
    alarms = Alarms(recipe)
    for record in records:
        alarms.look(record)
    return list(alarms.tally.values())


def _read(row: Any) -> Raised | None:
    """A row of STATUS.json; None for a foreign one."""
    try:
        alarm = Raised(**row)
    except TypeError:
        return None
    numbers = (alarm.count, alarm.first, alarm.last)
    words = (alarm.name, alarm.what, alarm.fix)
    if not all(type(number) is int for number in numbers):
        return None
    return alarm if all(isinstance(word, str) for word in words) else None
