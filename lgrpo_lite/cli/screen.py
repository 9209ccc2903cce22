"""Shows a run while it runs: a thread that reads the run folder, draws on a terminal, prints plain lines elsewhere."""

import os
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, step_line
from lgrpo_lite.monitor.view import live

REFRESH_SECONDS = 0.25


class Screen:
    """`with Screen(folder, "auto"):` follows the folder on stderr. A fault in drawing falls back to plain lines, once told.

    auto: live on a terminal that can move its cursor and outside CI, else plain.
    """

    def __init__(self, path: Path, mode: str, *, fresh_only: bool = False):
        self.console = Console(stderr=True)
        self.mode = mode if mode != "auto" else "live" if self._can_draw() else "plain"
        self.tail = Tail(path)
        self.shown = {"records": 0, "evals": 0, "events": 0}
        if fresh_only:  # a resumed run has lines already; those it makes again after rewinding are shown again
            self._mark(self.tail.refresh())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="screen", daemon=True)

    def __enter__(self) -> "Screen":
        if self.mode != "none":
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _can_draw(self) -> bool:
        return self.console.is_terminal and not self.console.is_dumb_terminal and not os.environ.get("CI")

    def _follow(self) -> None:
        try:
            if self.mode == "live":
                self._draw()
        except Exception as error:  # whatever a terminal does to a view, training goes on
            print(f"the live view failed ({error!r}); plain lines from here", file=sys.stderr)
        while not self._done.wait(REFRESH_SECONDS):
            self._print(self.tail.refresh())
        self._print(self.tail.refresh())

    def _draw(self) -> None:
        with Live(console=self.console, screen=True, auto_refresh=False) as screen:
            while not self._done.wait(REFRESH_SECONDS):
                width, height = self.console.size
                screen.update(live(self.tail.refresh(), width, height), refresh=True)
        shown = self.shown["events"]
        self._mark(self.tail.refresh())
        self.shown["events"] = shown  # warnings are worth a second look once the screen is gone

    def _mark(self, run: RunView) -> None:
        self.shown = {"records": len(run.records), "evals": len(run.evals), "events": len(run.events)}

    def _print(self, run: RunView) -> None:
        self.shown |= {"records": min(self.shown["records"], len(run.records)), "evals": min(self.shown["evals"], len(run.evals))}
        for event in run.events[self.shown["events"] :]:
            if text := _event(event):
                print(text, file=sys.stderr)
        for row in run.evals[self.shown["evals"] :]:
            greedy = "" if row.get("greedy") is None else f" | greedy {row['greedy']:.3f}"
            text = (
                f"eval step {row['step']} | accuracy {row['accuracy']:.3f}±{row['stderr']:.3f}{greedy} | len {row['length']:.1f}"
            )
            print(text, file=sys.stderr)
        for record in run.records[self.shown["records"] :]:
            left = sum(record.seconds.values()) * (run.steps - record.step) if record.seconds else None
            print(step_line(record, run.steps, left), file=sys.stderr)
        sys.stderr.flush()
        self._mark(run)


def _event(event: dict) -> str | None:
    kind = event.get("kind")
    if kind in ("warning", "note"):
        return f"{kind}: {event.get('message')}"
    if kind == "step_refused":
        return f"warning: step {event.get('step')} refused: {event.get('reason')}; the policy is unchanged"
    if kind == "resumed":
        return f"resumed after step {event.get('step')}"
    if kind == "progress":
        return f"{event.get('what')}: {event.get('done')}/{event.get('of')}, {duration(event.get('left'))} left"
    if kind == "prompts_left_out":
        why = event.get("reason") or f"longer than {event.get('limit')} tokens"
        return f"note: {event.get('count')} prompts left out: {why}"
    return None
