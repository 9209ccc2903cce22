"""Runs a class of cases in a worker process under a watchdog, and says what came of them.

The worker is forked, does case after case, and is started again after a hang, a death, or a few hundred
cases. A case that does not end in time is tried once more before it counts: the machine may be busy.
"""

import faulthandler
import importlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import case
from .case import Told
from .marked import stamp

FORK = multiprocessing.get_context("fork")
CASES_A_WORKER = 400
WARM_SECONDS = 120.0
HEADROOM = 6 << 30  # bytes of address space over what a worker has: a bomb ends the worker, not the machine


@dataclass
class Report:
    """Of a class: how many cases, what came of them, which took longest, and what was wrong."""

    name: str
    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    worst_case: int = 0
    peak: int = 0  # MiB that a case took at most
    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        kinds: Counter[str] = Counter()
        for outcome, count in self.outcomes.items():
            kinds[outcome.partition(":")[0]] += count
        common = ", ".join(f"{kind} x{count}" for kind, count in kinds.most_common(6))
        worst = f"worst {self.worst:.2f} s (case {self.worst_case}), most {self.peak} MiB"
        faulty = len({fault["case"] for fault in self.faults})
        return f"{self.name:10} {self.cases} cases, {len(self.outcomes)} outcomes ({common}); {worst}; {faulty} with faults"

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": self.cases,
            "outcomes": dict(self.outcomes.most_common()),
            "worst_seconds": round(self.worst, 3),
            "worst_case": self.worst_case,
            "most_mib": self.peak,
            "seconds": round(self.seconds, 1),
            "faults": self.faults,
        }


def case_random(seed: int, name: str, number: int) -> random.Random:
    """All that a case is comes from this."""
    return random.Random(f"{seed}/{name}/{number}")


def run_class(name: str, module: str, cases: range, seed: int) -> Report:
    """All the cases of a class. Each fault is printed as it is found."""
    kind = importlib.import_module(module, __package__)
    report = Report(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", ignore_cleanup_errors=True) as scratch:
        place = Path(scratch)
        prepared = kind.prepare(place)
        worker = None
        for number in cases:
            if stopped:
                break
            if worker is None or worker.done >= CASES_A_WORKER:
                if worker is not None:
                    worker.end()
                worker = Worker(kind, name, seed, prepared, place)
            told, seconds, mebibytes = worker.case(number)
            if told is None:
                worker = Worker(kind, name, seed, prepared, place)
                told, seconds, mebibytes = worker.case(number)
            if told is None:
                told = Told("no end", (f"no end after {kind.SECONDS:g} s, twice",))
                worker = None
            elif told.outcome == "died":
                worker = None
            _add(report, number, told, seconds, mebibytes, kind.MEMORY)
        if worker is not None:
            worker.end()
    report.seconds = time.monotonic() - began
    return report


def _add(report: Report, number: int, told: Told, seconds: float, mebibytes: int, most: int) -> None:
    report.cases += 1
    report.outcomes[told.outcome] += 1
    report.peak = max(report.peak, mebibytes)
    if seconds > report.worst:
        report.worst, report.worst_case = seconds, number
    faults = list(told.faults)
    if mebibytes > most:
        faults.append(f"took {mebibytes} MiB, more than {most}")
    for fault in faults:
        report.faults.append({"case": number, "fault": fault})
        print(f"{report.name} --case {number}: {ascii(fault)[1:-1]}", file=sys.stderr, flush=True)


stopped: list[int] = []  # signals: a run that is ended reports what it has done


def stop_gently() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))


class Worker:
    """A process that does cases of one class."""

    def __init__(self, kind: Any, name: str, seed: int, prepared: Any, place: Path):
        self.seconds, self.done = kind.SECONDS, 0
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=_serve, args=(theirs, kind, name, seed, prepared, place))
        self.process.start()
        theirs.close()
        if not self.pipe.poll(WARM_SECONDS) or self.pipe.recv() != "ready":
            self.kill()
            raise RuntimeError(f"the worker of {name} did not start")

    def case(self, number: int) -> tuple[Told | None, float, int]:
        """What came of it, its seconds and MiB; None: it did not end in time, and the worker is gone."""
        self.done += 1
        began = clock(self.process.pid)
        self.pipe.send(number)
        while not self.pipe.poll(0.2):
            if clock(self.process.pid) - began > self.seconds:
                self.kill()
                return None, self.seconds, 0
        try:
            told, seconds, mebibytes = self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            return Told("died", (f"the process ended with {code}",)), 0.0, 0
        return told, seconds, mebibytes

    def kill(self) -> None:
        """The worker and whatever it started."""
        if self.process.pid is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def end(self) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.kill()


def _serve(pipe: Any, kind: Any, name: str, seed: int, prepared: Any, place: Path) -> None:
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _settle()
    if hasattr(kind, "warm"):
        kind.warm(prepared)
    _bound_memory()
    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            os._exit(0)
        told, seconds, mebibytes = _measured(kind, name, number, seed, prepared, place)
        pipe.send((Told(told.outcome, told.faults), seconds, mebibytes))


def _settle() -> None:
    """Nothing asks a network, and nothing reads a keyboard."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "dumb"}
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)


def _bound_memory() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, now + HEADROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _measured(
    kind: Any, name: str, number: int, seed: int, prepared: Any, place: Path
) -> tuple[Told, float, int]:
    folder = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=place))
    before = os.getcwd()
    os.chdir(folder)
    held = _peak_from_here()
    began = clock(os.getpid())
    try:
        told = kind.attack(case_random(seed, name, number), folder, prepared)
    except BaseException as error:
        told = Told("raised", (f"raised {type(error).__name__}: {str(error)[:300]}",), traceback.format_exc())
    seconds = clock(os.getpid()) - began
    mebibytes = (_status("VmHWM") - held) >> 10
    os.chdir(before)
    shutil.rmtree(folder, ignore_errors=True)
    return told, seconds, mebibytes


def clock(pid: int | None) -> float:
    """Seconds that pass for a process: those it waits for a CPU, on a machine that is busy, are left out."""
    try:
        waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # it is gone
        waited = 0.0
    return time.monotonic() - waited


def _peak_from_here() -> int:
    """KiB that this process holds; its peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    return 0


def repeat(name: str, module: str, number: int, seed: int) -> Told:
    """One case in this process, which shows everything: a hang as the stack it hangs in, which ends it."""
    kind = importlib.import_module(module, __package__)
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", ignore_cleanup_errors=True) as scratch:
        prepared = kind.prepare(Path(scratch))
        _settle()
        if hasattr(kind, "warm"):
            kind.warm(prepared)
        console = os.fdopen(os.dup(2), "w")  # a case may move descriptor 2
        case.shows.append(console)
        faulthandler.dump_traceback_later(kind.SECONDS, file=console, exit=True)
        told, seconds, mebibytes = _measured(kind, name, number, seed, prepared, Path(scratch))
        faulthandler.cancel_dump_traceback_later()
    print(told.shown.encode("utf-8", "backslashreplace").decode())
    print(f"--- {told.outcome}, {seconds:.2f} s, {mebibytes} MiB")
    print("\n".join(f"fault: {ascii(fault)[1:-1]}" for fault in told.faults) or "no fault")
    return told


def write(reports: list[Report], seed: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = stamp() | {"seed": seed, "classes": {report.name: report.as_json() for report in reports}}
    path.write_text(json.dumps(text, indent=1) + "\n")
