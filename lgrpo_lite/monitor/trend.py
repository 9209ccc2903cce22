"""How a figure of a run moves: its mean now and at the beginning, and whether it grows without end."""

import itertools
from collections import deque
from collections.abc import Sequence

SLOPE_STEPS, BLOCKS = 50, 5  # how many steps a growth is looked for in, in how many parts
# bytes a step, and growth over SLOPE_STEPS as a share of what was taken: less is no leak
SLOPE, SLOPE_SHARE = (0.2e6, 0.01)
# a part rises by this share of the mean rise at least; the later half by this share of the earlier one
RISE, LATER = (0.25, 2 / 3)


class Recent:
    """Mean of the last `size` values, and of a run's first `start`."""

    def __init__(self, size: int, start: int):
        self.values: deque[float] = deque(maxlen=size)
        self._first: list[float] = []
        self._start = start

    def add(self, value: float) -> None:
        self.values.append(value)
        if len(self._first) < self._start:
            self._first.append(value)

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def began(self) -> float:
        return sum(self._first) / len(self._first)

    @property
    def settled(self) -> bool:
        """Whether the beginning is over."""
        return len(self._first) == self._start


class Growth:
    """Does a level of bytes rise steadily? By the least value of each fifth of the last SLOPE_STEPS.

    So peaks do not count, nor a saw's teeth of up to 40 steps; a warm-up flattens, and a leak does not.
    """

    def __init__(self):
        self.values: deque[float] = deque(maxlen=SLOPE_STEPS)

    def add(self, value: float) -> float | None:
        """Bytes a step, None while it does not rise."""
        values = self.values
        values.append(value)
        least = max(SLOPE * SLOPE_STEPS, SLOPE_SHARE * values[0])
        if len(values) < SLOPE_STEPS or value - values[0] < least / 2:
            return None
        size = SLOPE_STEPS // BLOCKS
        levels = list(values)
        floors = [min(levels[begin : begin + size]) for begin in range(0, SLOPE_STEPS, size)]
        rate = (floors[-1] - floors[0]) / (SLOPE_STEPS - size)
        return rate if rate * SLOPE_STEPS >= least and _steady(floors) else None


def _steady(floors: Sequence[float]) -> bool:
    """Every part lies above the one before, and the later half rises about as fast."""
    rises = [b - a for a, b in itertools.pairwise(floors)]
    half = len(rises) // 2
    early = sum(rises[:half])
    late = sum(rises[half:])
    every_part_rises = min(rises) >= RISE * sum(rises) / len(rises)
    return every_part_rises and late >= LATER * early
