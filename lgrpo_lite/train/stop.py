"""How a run is asked to stop: the two-stage Ctrl-C, SIGTERM, the time limit. No torch here."""

import math
import os
import signal
import threading
import time
from typing import Any

from lgrpo_lite.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT


class StopRequest:
    """Ctrl-C or SIGTERM asks; the loop stops after the step and saves. A second one ends the process at once.

    `exit_code` is None until something asked: 130 (SIGINT), 143 (SIGTERM), 75 (time limit).
    """

    def __init__(self, time_limit_minutes: float | None = None):
        self.exit_code: int | None = None
        self._deadline = time.monotonic() + 60 * time_limit_minutes if time_limit_minutes else math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # signals are the main thread's: there only the time limit asks
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
