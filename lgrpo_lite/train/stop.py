"""How a run is asked to stop: the two-stage Ctrl-C, SIGTERM, the time limit. No torch here."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lgrpo_lite.errors import EXIT_HANGUP, EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT

CODES = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED, signal.SIGHUP: EXIT_HANGUP}
STREAMS = 256  # file descriptors among which those of a terminal are looked for


class StopRequest:
    """Ctrl-C, SIGTERM or a terminal that goes away (SIGHUP) asks; the loop stops after the step and saves. A
    second one ends the process at once.

    `exit_code` is None until something asked: 130 (SIGINT), 143 (SIGTERM), 129 (SIGHUP), 75 (time limit).
    Under `nohup`, which has SIGHUP ignored, it stays ignored.
    """

    def __init__(self, time_limit_minutes: float | None = None):
        self.exit_code: int | None = None
        self._deadline = time.monotonic() + 60 * time_limit_minutes if time_limit_minutes else math.inf
        self._before: dict[int, Any] = {}
        self._terminals: set[int | None] = set()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            return self  # signals are the main thread's: there only the time limit asks
        self._terminals = {_terminal_of(stream) for stream in (0, 1, 2)} - {None}
        for number in CODES:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
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
        code = CODES[signal.Signals(number)]
        if number == signal.SIGHUP:
            _let_go_of(self._terminals)
        if self.exit_code in CODES.values():
            raise Stopped(code)
        self.exit_code = code
        text = "\nfinishing this step, then saving; once more to stop now\n"
        with suppress(OSError):
            os.write(2, text.encode())  # print() is not safe inside a signal handler


def _terminal_of(stream: int) -> int | None:
    """The device behind a stream that is a terminal."""
    with suppress(OSError):
        if os.isatty(stream):
            return os.fstat(stream).st_rdev
    return None


def _let_go_of(terminals: set[int | None]) -> None:
    """What is printed there goes nowhere from here on: every write to a terminal that is gone fails. The view
    keeps streams of it under other numbers.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(STREAMS):
        with suppress(OSError):
            if os.fstat(stream).st_rdev in terminals:
                os.dup2(nowhere, stream)
    os.close(nowhere)


@contextmanager
def stopping() -> Iterator[None]:
    """Inside it SIGTERM and SIGHUP raise Stopped, as Ctrl-C raises KeyboardInterrupt: for work that saves
    nothing on the way. Those that follow are let pass, since by then it is being cleaned up. Outside the main
    thread nothing changes; under `nohup` SIGHUP stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = {_terminal_of(stream) for stream in (0, 1, 2)} - {None}
    asked = False

    def stop(number: int, _frame) -> None:
        nonlocal asked
        if number == signal.SIGHUP:
            _let_go_of(terminals)
        if not asked:
            asked = True
            raise Stopped(CODES[signal.Signals(number)])

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(BaseException):
    """The second signal of a training, or the first inside `stopping`: unwinds everything (the terminal is
    restored), nothing more is saved.
    """

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code
