"""Worker processes for rewards: a deadline for every call, SIGKILL for what outlives it, a new process then.

    pool = Pool([FileFunction(path, name, text)], [5.0]); pool.run([(0, {"completion": "…"})]) -> [Reply]

A call that times out, crashes its process or takes too much memory costs that process and nothing else.
Threads and `ProcessPoolExecutor` cannot do this: neither can end a call that does not return. The workers are
fresh interpreters, not forks: nothing of the trainer (CUDA, its memory, its locks) is in them.

Deadlines count the time a call could have used, which is wall time less the time its process waited for a CPU
(`/proc/PID/schedstat`): a busy machine changes no verdict, and a call that sleeps is still ended. Where the
system does not tell (it is not Linux), they count wall time.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from lgrpo_lite.errors import DataError
from lgrpo_lite.rewards.worker import spent

Fault = Literal["timeout", "error", "crash"]
Call = tuple[int, Mapping[str, Any]]  # which function, and its arguments


class Loadable(Protocol):
    """What becomes a function inside a worker."""

    def load(self) -> Callable: ...


POLL = 0.05  # seconds between two looks at the deadlines
START_LIMIT = 120.0  # seconds a worker may take to import what it needs
START_TRIES = 3
MOST_WORKERS = 16  # by default: a container may see all CPUs of a machine and be given a few
ROUNDS = 100  # of killing what a worker has started, each up to POLL long
MARK = "LGRPO_LITE_REWARD_OF"  # in the environment of all that workers start: the pid of the trainer
GRACE = 0.2  # a process that waits for a CPU is charged for that wait until it gets one
# seconds after which a call's memory is looked at; RLIMIT_DATA bounds what one process takes before
LONG = 0.5
DEFAULT_MEMORY = 4.0  # GiB


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gave, or why it gave nothing. `seconds`: used by the call, waits for a CPU left out."""

    value: Any
    seconds: float
    fault: Fault | None = None
    note: str = ""  # of a fault, for the log
    verifier_faults: int = 0  # answers on which the math verifier failed, which it calls wrong


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen
    connection: Connection
    began: float  # what `spent` said of it when it was started, or its call was handed over
    limit: float = START_LIMIT
    ready: bool = False  # its imports are done
    call: int | None = None  # None: idle
    # processes that its imports started, which live as long as it does
    kept: set[int] = field(default_factory=set)

    @property
    def busy(self) -> bool:
        return not self.ready or self.call is not None

    @property
    def used(self) -> float:
        """Seconds of its call, or of its start, without waits for a CPU."""
        return max(0.0, spent(self.process.pid) - self.began)


class Pool:
    """`functions` and `timeouts` (seconds) by index. `memory`: GiB that a worker and all it starts may take.

    Workers start with the first call. The process that opens a pool must be the one that uses it.
    """

    def __init__(
        self,
        functions: Sequence[Loadable],
        timeouts: Sequence[float],
        *,
        workers: int | None = None,
        memory: float = DEFAULT_MEMORY,
        log: Path | None = None,
    ):
        self.functions = list(functions)
        self.timeouts = list(timeouts)
        self.memory = memory
        self.size = workers or min(MOST_WORKERS, _cpus())
        self.log = log  # what workers print; None: nowhere
        self.started = 0  # processes so far
        self._failures = 0  # to start, in a row
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def run(self, calls: Sequence[Call], sizes: Sequence[int] | None = None) -> list[Reply]:
        """Every call's reply, in order. A worker that cannot even start: DataError.

        `sizes`: how many answers a call is about, each with its deadline; one if not given.
        """
        sizes = sizes or [1] * len(calls)
        replies: list[Reply | None] = [None] * len(calls)
        waiting = deque(range(len(calls)))
        looked = time.monotonic()
        try:
            while waiting or any(w.call is not None for w in self._workers):
                self._grow(len(waiting))
                self._hand_out(waiting, calls, sizes)
                busy = {w.connection: w for w in self._workers if w.busy}
                for connection in wait(list(busy), POLL):
                    self._receive(busy[connection], replies)  # pyright: ignore[reportArgumentType]
                if time.monotonic() - looked >= POLL:
                    self._end_overdue(replies)
                    looked = time.monotonic()
        except BaseException:  # Ctrl-C in the middle: no reply may be taken for one of the next calls
            self.close()
            raise
        self._tidy()
        return [reply for reply in replies if reply is not None]

    def close(self) -> None:
        """End all workers and what they started."""
        _end_all(self._workers)

    def _grow(self, waiting: int) -> None:
        """Start what is missing, all at once: imports take longer than most calls."""
        idle = sum(not w.busy or not w.ready for w in self._workers)
        for _ in range(min(self.size - len(self._workers), waiting - idle)):
            self._workers.append(self._start())

    def _hand_out(self, waiting: deque[int], calls: Sequence[Call], sizes: Sequence[int]) -> None:
        for worker in [w for w in self._workers if not w.busy]:
            if not waiting:
                return
            function, arguments = calls[waiting[0]]
            try:
                worker.connection.send((function, dict(arguments)))
            except OSError:  # it died while idle: a thread or a child of an earlier call did it
                self._end(worker, crashed=True)
                continue
            worker.call = waiting.popleft()
            worker.limit = self.timeouts[function] * sizes[worker.call]
            worker.began = spent(worker.process.pid)

    def _receive(self, worker: _Worker, replies: list[Reply | None]) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            used, call = worker.used, worker.call
            death = f"its process ended with {_exit(worker.process)}"
            self._end(worker, crashed=True)
            if call is None:
                self._failed_to_start(f"{death} while it imported the rewards")
            else:
                replies[call] = Reply(None, used, "crash", death)
            return
        if worker.call is not None:
            value, seconds, note, faults = message
            replies[worker.call] = Reply(value, seconds, "error" if note else None, note, faults)
            worker.call = None
        elif message:
            self._end(worker)
            self._failed_to_start(message)
        else:
            worker.ready = True
            self._failures = 0
            worker.kept = {child.pid for child in _children(worker.process.pid)}

    def _failed_to_start(self, problem: str) -> None:
        self._failures += 1
        if self._failures >= START_TRIES:
            fix = "look into logs/ (rewards.log), and run the file with python"
            raise DataError(f"a reward's process cannot start: {problem}", where="rewards", fix=fix)

    def _end_overdue(self, replies: list[Reply | None]) -> None:
        for worker in [w for w in self._workers if w.busy]:
            used, call = worker.used, worker.call
            fault, note = self._excess(worker, used)
            if fault is None:
                continue
            self._end(worker)
            if call is None:
                self._failed_to_start(note)
            else:
                replies[call] = Reply(None, used, fault, note)

    def _excess(self, worker: _Worker, used: float) -> tuple[Fault | None, str]:
        """What the worker takes too much of, in words; None where it keeps its limits."""
        if used > worker.limit + GRACE:
            return "timeout", f"it took more than {worker.limit:g} s"
        if used > LONG:
            memory = _memory(worker.process.pid)
            if memory > self.memory:
                return "error", f"it took {memory:.1f} GiB, more than safety.reward_memory_gb={self.memory:g}"
        return None, ""

    def _tidy(self) -> None:
        """After a batch: a worker that has grown, or whose calls left something running, is ended."""
        for worker in list(self._workers):
            running = {child.pid for child in _children(worker.process.pid)}
            left = running - worker.kept
            if worker.ready and (left or _memory(worker.process.pid) > self.memory / 2):
                self._end(worker)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        paths = f"import sys; sys.path[:] = {sys.path!r}"
        serve = f"from lgrpo_lite.rewards.worker import main; main({theirs.fileno()})"
        env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONFAULTHANDLER": "1", MARK: str(os.getpid())}
        with open(self.log or os.devnull, "ab") as log, theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{paths}; {serve}"],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
            )
        self.started += 1
        with contextlib.suppress(OSError):  # it died at once, which `_receive` finds
            memory = int(self.memory * 2**30)
            ours.send((os.getpid(), memory, self.functions))
        return _Worker(process, ours, spent(process.pid))

    def _end(self, worker: _Worker, *, crashed: bool = False) -> None:
        self._workers.remove(worker)
        _end(worker)
        if crashed:
            _kill(_strays({w.process.pid for w in self._workers}))


def _cpus() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        _end(workers.pop())


def _end(worker: _Worker) -> None:
    """SIGKILL to the process and all its descendants.

    They go first, while it stands still: it adopts what loses its parent, so that none leaves the tree
    between two looks.
    """
    pid = worker.process.pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    for _ in range(ROUNDS):
        children = _children(pid)
        if not children:
            break
        _kill(children)
        psutil.wait_procs(children, timeout=POLL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    worker.process.wait()
    worker.connection.close()


def _children(pid: int) -> list[psutil.Process]:
    """All living descendants. A worker adopts its orphans (`worker.main`), so that none
    leaves the tree by a double fork.

    A look takes milliseconds. A process that it lists and finds dead may have forked in between, and that
    child is on no list: nobody lives only where two looks find the same dead.
    """
    known_dead: set[int] = set()
    for _ in range(ROUNDS):
        living, dead = _look(pid)
        if living or dead <= known_dead:
            return living
        known_dead = dead
    return []


def _look(pid: int) -> tuple[list[psutil.Process], set[int]]:
    """The living and the dead (not yet waited for) among the descendants that one listing shows."""
    living, dead = [], set()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.status() == psutil.STATUS_ZOMBIE:
                    dead.add(child.pid)
                else:
                    living.append(child)
    return living, dead


def _strays(workers: set[int]) -> list[psutil.Process]:
    """What a worker that died by itself has left: processes with our mark that no living worker started."""
    known = set(workers)
    for pid in workers:
        known |= {child.pid for child in _children(pid)}
    own = str(os.getpid())
    strays = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in known and process.environ().get(MARK) == own:
                strays.append(process)
    return strays


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _memory(pid: int) -> float:
    """GiB resident, children included."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total / 2**30


def _exit(process: subprocess.Popen) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    code = process.returncode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
