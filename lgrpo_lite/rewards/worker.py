"""A process that scores: reads (function, arguments), answers (value, seconds, note, faults of the verifier).

Its parent imports it for `spent`. Light to import: what a reward needs is imported by the reward.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from lgrpo_lite.recipe.plugin import from_text

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # <sys/prctl.h>
MAX_NOTE = 4000  # characters of a traceback
VERIFIER = "lgrpo_lite.verifier.verify"
CALLERS = (__file__, str(Path(__file__).with_name("mark.py")))  # between a process and a reward


@dataclass(frozen=True, slots=True)
class FileFunction:
    """A user's function as its file was when the run began, also for processes that start later."""

    path: str
    name: str
    text: bytes

    def load(self) -> Callable:
        return from_text(self.text, self.path, self.name, where=f"{self.path}:{self.name}")


def spent(pid: int) -> float:
    """Seconds on a clock of the process that stops while it waits for a CPU. Only differences count."""
    try:
        fields = Path(f"/proc/{pid}/schedstat").read_bytes().split()
        waited = int(fields[1]) / 1e9
    except (OSError, ValueError, IndexError):
        waited = 0.0
    return time.monotonic() - waited


def main(fd: int) -> None:
    """Serve the pool at the other end until it closes."""
    connection = Connection(fd)
    parent, memory, functions = connection.recv()
    _contain(parent, memory)
    try:
        loaded = [f.load() for f in functions]
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}"[:MAX_NOTE] or "?")
        return
    connection.send("")
    while True:
        try:
            index, arguments = connection.recv()
        except EOFError:
            return
        faults = _verifier_faults()
        began = spent(os.getpid())
        value, note = _call(loaded[index], arguments)
        used = spent(os.getpid()) - began
        faults = _verifier_faults() - faults
        try:
            connection.send((value, used, note, faults))
        except (TypeError, AttributeError, ValueError) as error:  # what it returned cannot be sent
            note = f"a reward returned {type(value).__name__}: {error}"
            connection.send((None, used, note[:MAX_NOTE], faults))


def _verifier_faults() -> int:
    """Answers so far on which the math verifier failed. It is imported by the rewards that use it alone."""
    verifier = sys.modules.get(VERIFIER)
    return 0 if verifier is None else verifier.faults.total()


def _call(function: Callable, arguments: dict[str, Any]) -> tuple[Any, str]:
    """What the function returned, or the traceback of what it raised, SystemExit and the like included."""
    try:
        return function(**arguments), ""
    except BaseException as error:
        lines = traceback.format_exception(type(error), error, _inside(error.__traceback__))
        return None, "".join(lines).rstrip()[-MAX_NOTE:] or "?"


def _inside(frames: TracebackType | None) -> TracebackType | None:
    """The frames of a reward, without those that called it; None where its answer was refused here."""
    while frames is not None and frames.tb_frame.f_code.co_filename in CALLERS:
        frames = frames.tb_next
    return frames


def _contain(parent: int, memory: int) -> None:
    """End with the parent, adopt orphans, and take no more than `memory` bytes of data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force already
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:  # it ended before it could be tied to
        os._exit(1)
