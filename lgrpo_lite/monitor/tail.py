"""A run folder -> RunView. Reads only, tolerates everything: half-written lines, missing
and foreign files, a rewound run.
"""

import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lgrpo_lite.machine.disk import objects
from lgrpo_lite.monitor.health import Health, health
from lgrpo_lite.monitor.lines import Lines
from lgrpo_lite.types import StepRecord

KEPT = 4096  # steps of which all is known, at least; older ones are thinned out


@dataclass
class RunView:
    """All that a view, a report or a table needs of a run. Nothing here changes while it is drawn."""

    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)  # config.resolved.yaml
    status: dict[str, Any] = field(default_factory=dict)  # STATUS.json
    # one per step, in order, up to the last one; no gaps
    records: list[StepRecord] = field(default_factory=list)
    sparse: list[StepRecord] = field(default_factory=list)  # of steps before those, in order, with gaps
    evals: list[dict[str, Any]] = field(default_factory=list)  # one per evaluation, in order
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)  # completions of the newest step that has any
    sampled_at: int = 0  # that step
    unread: list[str] = field(default_factory=list)  # files that are there and are not what their name says
    now: float = 0.0  # Unix time at which all this was read
    health: Health = field(default_factory=lambda: Health("starting"))

    def get(self, key: str, default: Any = None) -> Any:
        """A dotted key of the recipe."""
        node: Any = self.recipe
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return default if node is None else node

    def number(self, key: str, default: float = 0) -> float:
        """A dotted key of the recipe that is a number; anything else: the default."""
        found = self.get(key)
        # NaN is not
        real = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e15
        return found if real else default

    @property
    def name(self) -> str:
        return str(self.get("recipe.name", self.path.name))

    @property
    def steps(self) -> int:
        return int(self.number("train.steps"))

    @property
    def step(self) -> int:
        return self.records[-1].step if self.records else 0

    def series(self, name: str) -> list[float | None]:
        """A field of the record over the whole run: the older steps by samples, so that a
        curve costs the same at any length.
        """
        return [getattr(r, name) for r in thinned([*self.sparse, *self.records], KEPT)]

    @property
    def step_seconds(self) -> float | None:
        """Median time of the last steps."""
        times = sorted(sum(r.seconds.values()) for r in self.records[-20:] if r.seconds)
        return times[len(times) // 2] if times else None

    @property
    def eta(self) -> float | None:
        """Seconds left, from the median of the last steps and what the last evaluation took."""
        if self.step_seconds is None:
            return None
        steps, every = max(0, self.steps - self.step), self.get("train.eval_every")
        evaluations = steps / every if isinstance(every, int) and every > 0 else bool(steps)
        took = next(
            (e["seconds"] for e in reversed(self.evals) if isinstance(e.get("seconds"), int | float)), 0.0
        )
        return self.step_seconds * steps + took * evaluations

    @property
    def warnings(self) -> list[dict[str, Any]]:
        return [e for e in self.events if e.get("kind") in ("warning", "step_refused", "failed")]


class Tail:
    """Follows a run folder: `refresh()` reads what is new since the last call, at a cost
    that does not grow with the run.

    `whole`: every line of every file, for reports and comparisons.
    """

    def __init__(self, path: Path, *, whole: bool = False):
        self.view = RunView(path)
        self._lines = {
            name: Lines(path / name, whole=whole or name == "evals.jsonl")
            for name in ("metrics.jsonl", "evals.jsonl", "events.jsonl")
        }
        self._whole = whole
        self._read: dict[str, tuple[int, int, int]] = {}  # small files as they were when they were read

    def refresh(self) -> RunView:
        view = self.view
        view.unread = []
        self._small("config.resolved.yaml", "recipe", lambda text: yaml.load(text, Loader=_LOADER))
        self._small("STATUS.json", "status", json.loads)
        self._metrics()
        for name, rows in (("evals.jsonl", view.evals), ("events.jsonl", view.events)):
            if (found := self._lines[name].read()) is not None:
                fresh, anew = found
                rows[:] = [*self._lines[name].sparse, *fresh] if anew else [*rows, *fresh]
        self._samples()
        view.now = time.time()
        view.health = health(view.status, view.path, view.now, view.step_seconds)
        return view

    def _metrics(self) -> None:
        found = self._lines["metrics.jsonl"].read()
        if found is None:
            return
        (fresh, anew), view = found, self.view
        records = [r for r in map(_record, fresh) if r is not None]
        if anew:
            view.sparse = [r for r in map(_record, self._lines["metrics.jsonl"].sparse) if r is not None]
            view.records = records
        else:
            view.records += records
        if not self._whole and len(view.records) > 2 * KEPT:  # a view that is left open for days
            view.sparse = thinned([*view.sparse, *view.records[:-KEPT]], KEPT // 8)
            view.records = view.records[-KEPT:]

    def _small(self, name: str, target: str, parse) -> None:
        """A small file, if it changed, into a field of the view; of one that cannot be
        read the last good reading stays.
        """
        path = self.view.path / name
        try:
            found = path.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._read.get(name) == stamp:
                return
            value = parse(path.read_text("utf-8"))
        except OSError:
            return
        except (ValueError, RecursionError, yaml.YAMLError):
            value = None
        if isinstance(value, dict):
            setattr(self.view, target, value)
            self._read[name] = stamp
        else:
            self.view.unread.append(name)

    def _samples(self) -> None:
        """The completions of the newest step that kept some: found by name, since a
        folder may hold 100,000 of them.
        """
        for record in reversed(self.view.records[-50:]):
            if record.step == self.view.sampled_at:
                return
            path = self.view.path / "completions" / f"step-{record.step:06d}.jsonl.gz"
            if path.exists():
                self.view.samples, self.view.sampled_at = completions(path), record.step
                return


def completions(path: Path) -> list[dict[str, Any]]:
    """The rows of a completions file; a foreign one has none."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return list(objects(file))
    except (OSError, EOFError, ValueError):
        return []


def thinned(records: Sequence[StepRecord], most: int) -> list[StepRecord]:
    """At most `most` of them, evenly, the last one always."""
    if len(records) <= most:
        return list(records)
    return [records[(i + 1) * len(records) // most - 1] for i in range(most)]


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NUMBERS = tuple(f.name for f in fields(StepRecord) if "float" in str(f.type) and "dict" not in str(f.type))
_COUNTS = tuple(f.name for f in fields(StepRecord) if str(f.type) == "<class 'int'>" or str(f.type) == "int")


def _record(row: dict[str, Any]) -> StepRecord | None:
    """A line of metrics.jsonl; None for a foreign one, whose fields are missing or
    not of the kind they should be.
    """
    try:
        record = StepRecord.from_json(row)
    except TypeError:
        return None
    ok = all(
        v is None or (isinstance(v, float | int) and abs(v) < 1e300)
        for v in map(record.__getattribute__, _NUMBERS)
    )
    ok = ok and all(isinstance(v, int) and abs(v) < 1e15 for v in map(record.__getattribute__, _COUNTS))
    ok = ok and all(_of_numbers(v) for v in (record.reward_parts, record.seconds, record.memory))
    ok = ok and isinstance(record.skipped, str | None) and isinstance(record.alarms, list | tuple)
    return record if ok else None


def _of_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, float | int) and abs(v) < 1e300 for v in value.values()
    )
