"""The run folder: the only thing a run leaves behind, and the only thing the monitor reads.

config.yaml  config.resolved.yaml  env.json  STATUS.json  metrics.jsonl  events.jsonl  evals.jsonl
completions/step-000037.jsonl.gz  checkpoints/…  logs/attempt_1/main.log  export/…  report.md
"""

import dataclasses
import gzip
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.machine.disk import FULL, finite, lock, objects, plain, text_of, write_over, write_whole
from lgrpo_lite.monitor.alarms import Alarms
from lgrpo_lite.monitor.health import BEAT, ENDED, process_start
from lgrpo_lite.progress import Progress, listening
from lgrpo_lite.types import StepRecord

OURS = {
    "completions",
    "checkpoints",
    "logs",
    "code",
    "config.yaml",
    "env.json",
    "STATUS.json",
    "events.jsonl",
}
JOURNALS = ("metrics.jsonl", "evals.jsonl", "events.jsonl")  # appended to as the run goes
TELL = 10.0  # seconds between two lines that say how far long work is; shorter work gets none


class Curves(Protocol):
    """Who else wants the numbers of a run (`folder.sinks`)."""

    def log(self, record: StepRecord) -> None: ...

    def evaluation(self, row: dict[str, Any]) -> None: ...


class RunFolder:
    """Appends lines and replaces small files whole: what was written stays readable after a kill."""

    def __init__(self, path: Path):
        self.path = path
        self.attempt = 1
        self._lock = None
        self._status: dict[str, Any] = {}
        self._process = {
            "pid": os.getpid(),
            "began": process_start(os.getpid()),
            "host": socket.gethostname(),
        }
        self._writing = threading.Lock()
        self._fresh = threading.Event()  # the status changed since it was written
        self._told: dict[str, float] = {}  # when each long work was last told of
        self._alarms = Alarms({})
        self.curves: Curves | None = None

    # ------------------------------------------------------------------------------------------- opening

    def open(self) -> None:
        """Create what is missing and take the lock; another living process in the folder: ConfigError."""
        try:
            for part in ("", "completions", "checkpoints", "logs"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            for name in (".lock", *JOURNALS):
                plain(self.path / name)
        except OSError as error:
            what = f"cannot write the run folder: {error.strerror}"
            fix = "choose another place with --runs DIR"
            raise ConfigError(what, where=str(error.filename or self.path), fix=fix) from None
        fix = "wait for it, stop it, or give this run another --name"
        self._lock = lock(self.path, "another process is training in this run folder", fix)
        earlier = [path.name.removeprefix("attempt_") for path in (self.path / "logs").glob("attempt_*")]
        self.attempt = 1 + max((int(number) for number in earlier if number.isdecimal()), default=0)
        self.log_path.parent.mkdir()
        latest = self.path / "logs" / "latest"
        with suppress(OSError):  # a file system without links
            latest.unlink(missing_ok=True)
            latest.symlink_to(self.log_path.parent.name)

    def close(self) -> None:
        """Give the lock back; nothing is written from here on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self, *, keep_log: bool) -> Path | None:
        """Remove a folder whose run never began; where its log is then, beside the folder, if it is kept."""
        log = self.path.with_name(f"{self.path.name}.log")
        kept = False
        with suppress(OSError):
            if keep_log and self.log_path.exists():
                self.log_path.replace(log)
                kept = True
            shutil.rmtree(self.path)
        return log if kept else None

    @property
    def log_path(self) -> Path:
        return self.path / "logs" / f"attempt_{self.attempt}" / "main.log"

    @property
    def started(self) -> bool:
        """Whether a run lives here already (its resolved recipe was written)."""
        return (self.path / "config.resolved.yaml").exists()

    @property
    def foreign(self) -> bool:
        """Whether the folder holds anything that a run's start does not leave behind."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir() if not path.name.startswith(".")}
        return bool(names - OURS)

    @property
    def status(self) -> dict[str, Any]:
        """STATUS.json; empty when there is none or it is foreign."""
        try:
            status = json.loads(text_of(self.path / "STATUS.json"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    # ------------------------------------------------------------------------------------------- writing

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole."""
        write_whole(self.path / name, text)

    def set_status(self, state: str, step: int, exit_code: int | None = None, **more: Any) -> None:
        """What the run does now; STATUS.json, replaced whole. Times are Unix times but for `began`:
        the process's start, in seconds after the machine's.

        state: starting, loading, evaluating, looking for a signal, estimating values, proving the
        rollouts, training, saving, exporting; done, stopped or failed with an exit code. `more`
        stays until it is given again.
        """
        change = {"state": state, "step": step, "exit_code": exit_code, "phase": None, "progress": None}
        if state in ENDED:
            change["stopping"] = None
        self._moved(change | more)
        self._write_status(sync=True)

    def at(self, phase: str) -> None:
        """What a step is at: sync, rollout, reward, score, update. The next heartbeat writes it down."""
        self._moved({"phase": phase})

    def hear(self, work: Progress) -> None:
        """Progress of long work, for the status, and now and then for events.jsonl."""
        now = time.time()
        row = {"what": work.what, "done": work.done, "of": work.of, "left": work.left}
        self._moved({"progress": None if work.finished else row})
        if now - self._told.setdefault(work.what, now) > TELL:
            self._told[work.what] = now
            self.event("progress", **row)
        if work.finished:
            self._told.pop(work.what, None)

    @contextmanager
    def alive(self, stopping: Callable[[], bool]) -> Iterator[None]:
        """Inside it the run shows that it lives: a heartbeat every second, and how far long work is."""
        over = threading.Event()

        def beat() -> None:
            last = 0.0
            while not over.wait(BEAT / 4):
                if stopping() and not self._status.get("stopping"):
                    self._moved({"stopping": True})
                if self._fresh.is_set() or time.monotonic() - last >= BEAT:
                    last = time.monotonic()
                    try:
                        self._write_status(sync=False)
                    except OSError:  # a full disk ends a run where it matters, not here
                        logging.exception("no heartbeat")

        self._status.pop("stopping", None)
        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            with listening(self.hear):
                yield
        finally:
            over.set()
            thread.join()

    def _moved(self, change: dict[str, Any]) -> None:
        self._status |= change | {"moved": time.time()}
        self._fresh.set()

    def _write_status(self, *, sync: bool) -> None:
        with self._writing:
            self._fresh.clear()
            row = self._status | self._process | {"heartbeat": time.time()}
            row = {key: value for key, value in row.items() if value is not None or key == "exit_code"}
            text = json.dumps(finite(row), allow_nan=False)
            try:
                write_whole(self.path / "STATUS.json", text, sync=sync)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                write_over(self.path / "STATUS.json", text)

    def event(self, kind: str, **more: Any) -> None:
        """One line of events.jsonl: what happened, beside the steps."""
        row = {"time": time.time(), "attempt": self.attempt, "kind": kind}
        self._append("events.jsonl", row | more)

    def follow(self, recipe: dict[str, Any], curves: "Curves | None" = None) -> None:
        """From here on every recorded step is looked at for alarms, the folder's earlier steps first; and
        `curves` gets steps and evaluations too.
        """
        self._alarms = Alarms(recipe)
        self.curves = curves
        for row in self.rows("metrics.jsonl"):
            with suppress(TypeError):  # a foreign line
                self._alarms.look(StepRecord.from_json(row))
        self._status["alarms"] = self._raised()

    def _raised(self) -> list[dict[str, Any]]:
        """Every alarm of the run, for the status."""
        return [dataclasses.asdict(alarm) for alarm in self._alarms.tally.values()]

    def record(self, record: StepRecord, samples: Sequence[dict[str, Any]] = ()) -> None:
        """One line of metrics.jsonl, the step's samples (`folder.samples`) in their own file, its alarms."""
        standing = self._alarms.look(record)
        earlier = {row["name"] for row in self._status.get("alarms", ())}
        for alarm in standing:
            if alarm.name not in earlier:
                self.event("alarm", step=record.step, **dataclasses.asdict(alarm))
        self._moved({"alarms": self._raised()})
        record = dataclasses.replace(record, alarms=tuple(alarm.name for alarm in standing))
        if samples:
            self._write_samples(record.step, samples)
        self._append("metrics.jsonl", dataclasses.asdict(record) | {"time": time.time()})
        if self.curves is not None:
            self.curves.log(record)

    def _write_samples(self, step: int, samples: Sequence[dict[str, Any]]) -> None:
        final = self.path / "completions" / f"step-{step:06d}.jsonl.gz"
        fresh = final.with_suffix(".new")
        text = "".join(_line(row) for row in samples)
        # no time in it: a run that was stopped and went on ends with the same bytes
        fresh.write_bytes(gzip.compress(text.encode("utf-8"), 5, mtime=0))
        os.replace(fresh, final)

    def evaluation(self, row: dict[str, Any]) -> None:
        self._append("evals.jsonl", row | {"time": time.time()})
        if self.curves is not None:
            self.curves.evaluation(row)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file; a line cut short by a kill is not one."""
        path = self.path / name
        if not path.is_file():
            return []
        lines = path.read_text("utf-8", errors="replace").splitlines()
        return list(objects(lines))

    def rewind(self, step: int, *, evaluated: bool) -> None:
        """Forget steps after `step`, and evaluations after it or, unless `evaluated`, of it: the resumed run
        makes them again, with equal numbers. Steps that a power cut took are named in events.jsonl.
        """
        steps = self._keep("metrics.jsonl", step)
        self._keep("evals.jsonl", step if evaluated else step - 1)
        lost = sorted(set(range(1, step + 1)) - steps)
        if lost:
            message = f"metrics.jsonl lacks {len(lost)} of {step} steps, from {lost[0]} to {lost[-1]}"
            self.event("warning", message=f"{message}: they were trained, their records were lost")

    def _keep(self, name: str, last: int) -> set[int]:
        """Drop a file's rows after step `last`, foreign ones, and all but the newest of a step. The steps
        that stay.
        """
        kept = {row["step"]: row for row in self.rows(name) if type(row.get("step")) is int}
        kept = {step: row for step, row in kept.items() if step <= last}
        if (self.path / name).exists():
            self.write(name, "".join(_line(row) for row in kept.values()))
        return set(kept)

    def sync(self) -> None:
        """What was appended is on the disk, as durable as the checkpoint that comes next."""
        for name in JOURNALS:
            with suppress(FileNotFoundError), (self.path / name).open("rb") as file:
                os.fsync(file.fileno())

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(finite(row), ensure_ascii=False, allow_nan=False)
    # half a surrogate pair, which no UTF-8 has, as JSON's own escape
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
