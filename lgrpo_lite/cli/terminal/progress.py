"""How far long work is, for commands without a run folder: a line on stderr that overwrites itself, or plain
ones.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from lgrpo_lite.cli.terminal.output import overwrite, say
from lgrpo_lite.progress import Progress, listening, told

REFRESH_SECONDS = 0.25
PLAIN_SECONDS = 10.0  # between two plain lines, and before the first: shorter work gets none


@contextmanager
def showing(*, as_json: bool) -> Iterator["Line"]:
    """Inside it stderr shows how far the work of this process is; nothing of it stays on a terminal. stdout
    is left alone.

    Drawn on a terminal that moves its cursor; plain outside one, in CI, with NO_COLOR, and beside `as_json`.
    """
    draw = not as_json and can_overwrite(sys.stderr)
    line = Line(sys.stderr, draw=draw, now=time.monotonic())
    over = threading.Event()

    def follow() -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone ends the line, not the work
            while not over.wait(REFRESH_SECONDS):
                line.show(time.monotonic())

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        with listening(line.hear):
            told("starting", 0)
            yield line
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError, ValueError), line.aside():
            pass


class Line:
    """The work that was told last. `now` is in seconds of any one clock."""

    def __init__(self, out: TextIO, *, draw: bool, now: float):
        self.out, self.draw = out, draw
        self._work: Progress | None = None
        self._began: float | None = None  # of the work that is shown
        self._last = now  # when a plain line was written
        self._shown = ""
        self._lock = threading.Lock()

    def hear(self, work: Progress) -> None:
        """A listener of `progress`."""
        with self._lock:
            if self._work is None or self._work.what != work.what:
                self._began = None
            self._work = work

    def show(self, now: float) -> None:
        """Draw the line anew, or write a plain one if it is time."""
        with self._lock:
            if self._work is None:
                return
            if self._began is None:
                self._began = now
            text = _text(self._work, now - self._began)
            if self.draw:
                self._redraw(text)
            elif now - self._last >= PLAIN_SECONDS and not self._work.finished:
                self._last = now
                say(text, file=self.out)
                self.out.flush()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside it the line is away, so that a command can print its own."""
        with self._lock:
            if self._shown:
                overwrite(self.out, "")
                self._shown = ""
            yield

    def _redraw(self, text: str) -> None:
        if text != self._shown:
            overwrite(self.out, text)
            self._shown = text


def _text(work: Progress, elapsed: float) -> str:
    from lgrpo_lite.monitor.text import duration

    if work.of is None:
        count = f" {work.done}," if work.done else ""
        return f"{work.what}:{count} {duration(elapsed)}"
    left = ""
    if work.left is not None and not work.finished:
        left = f", {duration(work.left)} left"
    return f"{work.what}: {work.done}/{work.of}{left}"


def can_overwrite(out: TextIO) -> bool:
    """Whether a line on `out` can overwrite itself: a terminal that moves its cursor, colour wanted, not
    inside CI.
    """
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    quiet = os.environ.get("CI") or os.environ.get("NO_COLOR")
    return out.isatty() and not dumb and not quiet
