"""What keeps a fault from becoming a broken run: finite checks before every update, and the two-stage Ctrl-C."""

import math
import os
import signal
import time
from typing import Any

from lgrpo_lite.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT

MAX_REFUSED = 3  # steps in a row without a finite loss before the run gives up


class NonFinite(Exception):
    """A number of the update is NaN or infinite. Raised before any parameter moved."""


def check_finite(step: int, **numbers: float | None) -> None:
    """Raise NonFinite naming the first number that is not finite."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise NonFinite(f"{name} is {value} at step {step}")


class StopRequest:
    """Ctrl-C or SIGTERM asks; the loop stops after the step and saves. A second one ends the process at once.

    `exit_code` is None until something asked: 130 (SIGINT), 143 (SIGTERM), 75 (time limit).
    """

    def __init__(self, time_limit_minutes: float | None = None):
        self.exit_code: int | None = None
        self._deadline = time.monotonic() + 60 * time_limit_minutes if time_limit_minutes else math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop now; true from the first signal or the time limit on."""
        if self.exit_code is None and time.monotonic() > self._deadline:
            self.exit_code = EXIT_TIME_LIMIT
        return self.exit_code is not None

    def _asked(self, number: int, _frame) -> None:
        code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        if self.exit_code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise Stopped(code)
        self.exit_code = code
        text = "\nfinishing this step, then saving; once more to stop now\n"
        os.write(2, text.encode())  # print() is not safe inside a signal handler


class Stopped(BaseException):
    """The second signal: unwinds everything (the terminal is restored), nothing more is saved."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code
