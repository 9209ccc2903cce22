"""How far long work is. Whoever does it says so here; whoever runs it listens, as with a log.

    with listening(print_it):                    # a run folder, a line on a terminal
        for done, part in enumerate(parts):
            progress.told("merging", done, len(parts))

Without a listener nothing happens. Time left is estimated from what this process has done of it so far.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`of` None: how much there is to do is not known."""

    what: str  # the work, as a person would say it: "loading weights"
    done: int
    of: int | None
    left: float | None  # seconds, None: cannot be told yet

    @property
    def finished(self) -> bool:
        return self.of is not None and self.done >= self.of


Listener = Callable[[Progress], None]
_listeners: list[Listener] = []
_began: dict[str, tuple[float, int]] = {}


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Inside it `listener`, and none further out, hears of all work, from whatever thread does it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def told(what: str, done: int, of: int | None = None) -> None:
    """`done` of `of` parts are done. A first call, or one with no more done than the first, begins anew."""
    now = time.monotonic()
    began, first = _began.get(what, (now, done))
    if done <= first:
        began, first = now, done
        _began[what] = now, done
    made = done - first
    left = None
    if of is not None and made:
        left = (now - began) / made * (of - done)
    if of is not None and done >= of:
        _began.pop(what, None)
    if _listeners:
        _listeners[-1](Progress(what, done, of, left))
