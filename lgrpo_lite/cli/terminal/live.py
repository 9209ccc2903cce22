"""Draws a run on a terminal: `watch` in its own process, and a training run through one that this module is.

    python -m lgrpo_lite.cli.terminal.live RUN      # draws on stderr until its standard input ends

A process of its own costs the training nothing, no fault in it can reach the training, and it survives a
SIGKILL of it: it then puts the terminal in order and says how to go on.
"""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.live import Live

from lgrpo_lite.cli.terminal.guard import guard
from lgrpo_lite.cli.terminal.output import console, say
from lgrpo_lite.cli.terminal.plain import PlainText
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.view import live

REFRESH_SECONDS = 0.25
# between two drawings of one size, whether or not the run wrote something: ages and times left move on
DRAW_SECONDS = 1.0


def follow(path: Path, terminal: PlainText, wait: Callable[[], bool]) -> RunView:
    """Draw until `wait`, which returns after REFRESH_SECONDS at most, says True, or until the run has ended;
    the last reading.
    """
    tail = Tail(path)
    view, size, drawn = tail.refresh(), (0, 0), 0.0
    with Live(console=terminal, screen=True, auto_refresh=False, vertical_overflow="crop") as screen:
        while True:
            now, current = time.monotonic(), (terminal.size.width, terminal.size.height)
            if current != size or now - drawn >= DRAW_SECONDS:
                size, drawn = current, now
                screen.update(live(view, *size), refresh=True)
            if view.health.ended or wait():
                return view
            view = tail.refresh()


def last_words(view: RunView) -> list[str]:
    """What to say of a run that has ended without saying so itself, or not to its end; empty for one that is
    well.
    """
    health = view.health
    if not health.why:
        return []
    lines = [f"{view.path.name}: {health.why}"]
    if health.state in ("failed", "killed", "silent", "stuck"):
        lines.append(f"  log  {view.path / 'logs'}")
    if health.resume:
        lines.append(f"  go on with: {health.resume}")
    return lines


def main() -> int:
    """The process that a training run starts. Ctrl-C is the training's to handle; the end of standard input
    ends this.
    """
    guard()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path, terminal = Path(sys.argv[1]), console(sys.stderr)
    over = False

    def wait() -> bool:
        nonlocal over
        ready, _, _ = select.select([sys.stdin], [], [], REFRESH_SECONDS)
        if ready and not over:
            over = not os.read(sys.stdin.fileno(), 1)
        return over

    try:
        follow(path, terminal, wait)
    except Exception as error:  # whatever a terminal does to a view, training goes on
        say(f"the live view failed ({error!r}); plain lines from here", file=sys.stderr)
        return 1
    time.sleep(0.1)  # a process that was killed is gone by now; one that ends well waits for this one
    view = Tail(path).refresh()
    if view.health.state == "killed":
        say(*last_words(view), file=sys.stderr)
    while not over:  # the run has ended for the reader, its process has not yet
        wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
