"""What a panel is, and what all of them read."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.text import Text

from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.types import StepRecord

EMPTY = StepRecord(0, 0)
WINDOW = 400  # steps of a curve that a field of the record does not hold
TREND = 10  # steps that a mean of "now" or of "at first" is taken over
# lines in their order, each with its rank: where not all have room, the lowest ranks stay
Ranked = list[tuple[int, Text]]


@dataclass(frozen=True, slots=True)
class Panel:
    """What stands in the rule above it, and its lines; a frame cuts both to their place."""

    title: Text | str
    lines: list[Text]


def last(run: RunView) -> StepRecord:
    return run.records[-1] if run.records else EMPTY


def ranked(rank: int, lines: Iterable[Text]) -> Ranked:
    return [(rank, line) for line in lines]
