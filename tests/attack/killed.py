"""A run that ends itself in the middle of a phase, as the kernel ends it: no handler, no clean-up, no last word.

    python -m tests.attack.killed --at PHASE NUMBER seconds|changes AMOUNT --tell FILE recipe tiny-math …

It is `lgrpo-lite`, told when to die: AMOUNT seconds after the NUMBERth time that PHASE begins (counted from 0), or
before the AMOUNTth change of a file of the run folder since then. FILE holds what each phase took,
a line each: its name, seconds, changes of files; the last line is the phase that was never left.
"""

import argparse
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Phases:
    """Hears of every phase, writes each one down once it is over, and kills in the one that is asked for."""

    def __init__(self, asked: tuple[str, int, str, float] | None, tell: Path, runs: str):
        self.asked = asked
        self.runs = runs
        self.tell = tell.open("w")
        self.seen: Counter[str] = Counter()
        self.name = "starting"
        self.changes = 0
        self.left = 0  # changes of files until the kill; 0: none is asked for
        self.began = time.perf_counter()
        self.tell.write(self.name)
        self.tell.flush()
        self._armed()

    def begin(self, name: str) -> None:
        if name == self.name:
            return
        took = time.perf_counter() - self.began
        self.tell.write(f"\t{took:.6f}\t{self.changes}\n{name}")
        self.tell.flush()
        self.name, self.began, self.changes = name, time.perf_counter(), 0
        self._armed()

    def _armed(self) -> None:
        number = self.seen[self.name]
        self.seen[self.name] += 1
        if self.asked is None or self.asked[:2] != (self.name, number):
            return
        _, _, kind, amount = self.asked
        if kind == "changes":
            self.left = int(amount)
        else:  # the default of this signal ends a process where it stands
            signal.setitimer(signal.ITIMER_REAL, max(amount, 1e-6))

    def hear(self, event: str, details: tuple) -> None:
        """An audit hook: before each change of a file of the run folder."""
        changing = event in CHANGING
        if event == "open":
            _, mode, flags = details
            changing = bool(flags & WRITING) if mode is None else any(letter in mode for letter in "wax+")
        if not changing or not str(details[0]).startswith(self.runs):
            return
        self.changes += 1
        if self.left == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left = max(0, self.left - 1)


def heard(phases: Phases) -> None:
    """Every phase that the run folder is told of is told to `phases` first."""
    from lgrpo_lite.folder.folder import RunFolder

    def before(method: Callable) -> Callable:
        def call(self: RunFolder, name: str, *more: object, **named: object) -> object:
            phases.begin(name)
            return method(self, name, *more, **named)

        return call

    RunFolder.set_status = before(RunFolder.set_status)
    RunFolder.at = before(RunFolder.at)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", nargs=4)
    parser.add_argument("--tell", type=Path, required=True)
    parser.add_argument("--runs", required=True)
    asked, argv = parser.parse_known_args()
    at = None
    if asked.at:
        name, number, kind, amount = asked.at
        at = (name, int(number), kind, float(amount))
    phases = Phases(at, asked.tell, asked.runs)
    heard(phases)
    sys.addaudithook(phases.hear)
    from lgrpo_lite.cli.main import main as lgrpo_lite

    code = lgrpo_lite([*argv, "--runs", asked.runs])
    phases.begin("over")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
