"""Shows a run while it runs: the live view on a terminal, one line a step anywhere else."""

import contextlib
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

from lgrpo_lite.cli.terminal.output import console, restore, say
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, step_line
from lgrpo_lite.types import StepRecord

REFRESH_SECONDS = 0.25
LINES = 256  # steps that are held for plain lines: those since the last look, and all of a short run
TOLD_AGAIN = ("warning", "step_refused", "alarm")  # once more when the screen is gone
EVENTS = {  # by kind; what an event does not hold is None
    "warning": "warning: {message}",
    "note": "note: {message}",
    "chosen": "note: {key} is {value}: {why}",
    "alarm": "ALARM {name} at step {step}: {what} -> {fix}",
    "step_refused": "warning: step {step} refused: {reason}; the policy is unchanged",
    "resumed": "resumed after step {step}",
}


def can_draw() -> bool:
    """Whether the live view belongs here: both streams on a terminal that moves its cursor, colour wanted,
    not inside CI.
    """
    screen = console(sys.stderr)
    terminal = screen.is_terminal and sys.stdout.isatty() and not screen.is_dumb_terminal
    return terminal and not os.environ.get("CI") and not os.environ.get("NO_COLOR")


class Screen:
    """`with Screen(folder, "auto"):` follows the folder. Steps are lines on stdout, all else goes to stderr.

    auto: live where `can_draw`, else plain. Live is a process of its own (`cli.terminal.live`); meanwhile
    what this process and its libraries print goes to `log`. A view that fails is replaced by plain lines.
    """

    def __init__(self, path: Path, mode: str, *, log: Path | None = None, fresh_only: bool = False):
        if mode == "auto":
            mode = "live" if can_draw() else "plain"
        self.mode = mode
        self.path, self.log = path, log
        self.tail = Tail(path, kept=LINES)
        self.shown = {"records": 0, "evals": 0, "events": 0}
        # a resumed run has lines already; those it makes again after rewinding are shown again
        if fresh_only:
            self._mark(self.tail.refresh())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="screen", daemon=True)
        self._view: subprocess.Popen | None = None
        self._own: tuple[int, int] | None = None  # stdout and stderr, while they point to the log
        self._restored, self._turn = False, threading.Lock()

    def __enter__(self) -> "Screen":
        if self.mode == "live" and not sys.stderr.isatty():
            say("no terminal for the live view; plain lines instead", file=sys.stderr)
            self.mode = "plain"
        if self.mode == "live":
            command = [sys.executable, "-m", "lgrpo_lite.cli.terminal.live", str(self.path)]
            self._view = subprocess.Popen(command, stdin=subprocess.PIPE)
            self._quiet()
        if self.mode != "none":
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._end_view()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    # ------------------------------------------------------------------------------------------- live

    def _quiet(self) -> None:
        """Prints of this process and its libraries go to the log: on the view they would be smears."""
        if self.log is None:
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self._own = os.dup(1), os.dup(2)
        file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.close(file)

    def _loud(self) -> None:
        """The view is gone: the terminal is this process's again."""
        with self._turn:
            if self._own is not None:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, own in enumerate(self._own, 1):
                    os.dup2(own, number)
                    os.close(own)
                self._own = None
            if self._view is not None and self._view.returncode not in (0, 1) and not self._restored:
                self._restored = True  # it was killed, and could not put the terminal in order
                restore(sys.stderr)

    def _end_view(self) -> None:
        if self._view is None:
            return
        assert self._view.stdin is not None, "it was made with a pipe"
        self._view.stdin.close()
        try:
            self._view.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._view.kill()
            self._view.wait()
        self._loud()

    # ------------------------------------------------------------------------------------------- plain

    def _follow(self) -> None:
        if self._view is not None:
            self._view.wait()
            if self._done.is_set() or self._view.returncode == 0:
                self._told_again(self.tail.refresh())
                return
            self._loud()
        while not self._done.wait(REFRESH_SECONDS):
            self._print(self.tail.refresh())
        self._print(self.tail.refresh())

    def _told_again(self, run: RunView) -> None:
        self._done.wait()
        for event in run.events[self.shown["events"] :]:
            if event.get("kind") in TOLD_AGAIN:
                say(_event(event), file=sys.stderr)

    def _mark(self, run: RunView) -> None:
        self.shown = {"records": run.step, "evals": len(run.evals), "events": len(run.events)}

    def _print(self, run: RunView) -> None:
        self.shown["records"] = min(self.shown["records"], run.step)
        self.shown["evals"] = min(self.shown["evals"], len(run.evals))
        for event in run.events[self.shown["events"] :]:
            if text := _event(event):
                say(text, file=sys.stderr)
        for row in run.evals[self.shown["evals"] :]:
            say(_evaluation(row), file=sys.stderr)
        sys.stderr.flush()
        with contextlib.suppress(BrokenPipeError):  # `| head`: the reader has seen enough, the run goes on
            for record in run.records:
                if record.step > self.shown["records"]:
                    say(step_line(record, run.steps, _seconds_left(record, run.steps)))
            sys.stdout.flush()
        self._mark(run)


def _seconds_left(record: StepRecord, steps: int) -> float | None:
    """If every further step takes as long as this one."""
    if not record.seconds:
        return None
    return sum(record.seconds.values()) * (steps - record.step)


def _evaluation(row: dict) -> str:
    accuracy, error = row.get("accuracy"), row.get("stderr")
    greedy, length = row.get("greedy"), row.get("length")
    parts = [f"eval step {row.get('step')}"]
    if isinstance(accuracy, int | float):
        interval = f"±{error:.3f}" if isinstance(error, int | float) else ""
        parts.append(f"accuracy {accuracy:.3f}{interval}")
    if isinstance(greedy, int | float):
        parts.append(f"greedy {greedy:.3f}")
    if isinstance(length, int | float):
        parts.append(f"len {length:.1f}")
    return " | ".join(parts)


def _progress(event: dict) -> str:
    of, left = event.get("of"), event.get("left")
    text = f"{event.get('what')}: {event.get('done')}"
    if of:
        text += f"/{of}"
    if isinstance(left, int | float):
        text += f", {duration(left)} left"
    return text


def _event(event: dict) -> str | None:
    kind = str(event.get("kind"))
    if kind in EVENTS:
        return EVENTS[kind].format_map(defaultdict(lambda: None, event))
    if kind == "progress":
        return _progress(event)
    if kind == "prompts_left_out":
        why = event.get("reason") or f"longer than {event.get('limit')} tokens"
        return f"note: {event.get('count')} prompts left out: {why}"
    return None
