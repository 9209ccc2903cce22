"""Is the run alive? From STATUS.json, a clock and, on the machine that trains, its process. No GPU, no
training.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lgrpo_lite.monitor.numbers import finite

BEAT = 1.0  # seconds between two heartbeats of a process that trains
SILENT = 4.0  # seconds without one, from another machine: it is gone, or the network is slow
STUCK = 3.0  # medians of a step without any progress …
AT_LEAST = 60.0  # … and so many seconds, since short steps vary
UNIX = 1e9  # seconds: what was written before `began` counted from the machine's start
ENDED = ("done", "stopped", "failed")
# by exit code
STOPPED = {
    129: "stopped when its terminal was closed",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
    75: "stopped at its time limit",
}


@dataclass(frozen=True, slots=True)
class Health:
    """`state`: starting, live, stuck, silent (no heartbeat), killed, done, stopped or failed."""

    state: str
    why: str = ""  # one sentence for people, empty while all is well
    resume: str = ""  # the command that goes on, where there is something to go on with

    @property
    def ended(self) -> bool:
        """Nothing will be added to the folder by itself."""
        return self.state in (*ENDED, "killed")


def health(status: dict[str, Any], path: Path, now: float, step_seconds: float | None) -> Health:
    """`step_seconds`: median time of a step, if known. Never raises, whatever the file holds."""
    if not status:
        return Health("starting")
    state = status.get("state")
    resume = str(status.get("resume") or f"… --name {path.name} --resume auto")
    if state in ENDED:
        return Health(str(state), _ended(status), "" if state == "done" else resume)
    beat = _since(status.get("heartbeat"), now)
    host = status.get("host")
    if host in (None, socket.gethostname()):
        if not _runs(status):
            why = f"the process is gone without a word, {_ago(beat)} after its last sign of life"
            return Health("killed", why, resume)
        if beat > AT_LEAST / 2:
            why = f"no sign of life for {_ago(beat)}, though its process is there: stopped or hung"
            return Health("silent", why, resume)
    elif beat > SILENT:
        why = f"no sign of life from {host} for {_ago(beat)}: killed, or out of reach"
        return Health("silent", why, resume)
    still = _since(status.get("moved"), now)
    if still > max(AT_LEAST, STUCK * (step_seconds or 0.0)):
        return Health("stuck", f"{status.get('phase') or state} for {_ago(still)} without progress", resume)
    return Health("live")


def process_start(pid: int) -> float | None:
    """When a process began, so that another one with its number is not taken for it; None: there is none.

    Seconds after the machine's start: they stay where its clock is set, and psutil's Unix time does not.
    """
    try:
        boot = psutil.boot_time()
        return psutil.Process(pid).create_time() - boot
    except (psutil.Error, ValueError, OverflowError):
        return None


def _runs(status: dict[str, Any]) -> bool:
    pid = status.get("pid")
    if not isinstance(pid, int) or pid < 1:
        return False
    began = process_start(pid)
    if began is None:
        return False
    try:
        zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    written = finite(status.get("began"))
    if written is not None and written > UNIX:
        written -= psutil.boot_time()
    same = written is None or abs(began - written) < 2.0
    return same and not zombie


def _ended(status: dict[str, Any]) -> str:
    state = status.get("state")
    code = status.get("exit_code")
    if state == "stopped":
        return STOPPED.get(code, "stopped") if isinstance(code, int) else "stopped"
    return f"failed, exit {code}" if state == "failed" else ""


def _since(moment: Any, now: float) -> float:
    """Seconds since then; none where a file does not say when."""
    moment = finite(moment)
    return 0.0 if moment is None else now - moment


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
