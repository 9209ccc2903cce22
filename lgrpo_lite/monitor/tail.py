"""A run folder -> RunView. Reads only, tolerates everything: half-written lines, missing and foreign files,
a rewound run.
"""

import gzip
import json
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lgrpo_lite.machine.disk import is_tree, objects, opened, text_of
from lgrpo_lite.monitor.health import Health, health
from lgrpo_lite.monitor.lines import Lines
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.types import StepRecord

KEPT = 4096  # steps that a view knows all of


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
        value = self.get(key)
        return default if finite(value, below=1e15) is None else value

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
        """A field of the record over the whole run: the older steps by samples, so that a curve costs the
        same at any length.
        """
        records = thinned([*self.sparse, *self.records], KEPT)
        return [getattr(record, name) for record in records]

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
        steps = max(0, self.steps - self.step)
        every = self.get("train.eval_every")
        evaluations = steps / every if isinstance(every, int) and every > 0 else bool(steps)
        times = (row.get("seconds") for row in reversed(self.evals))
        last = next((time for time in times if isinstance(time, int | float)), 0.0)
        return self.step_seconds * steps + last * evaluations

    @property
    def warnings(self) -> list[dict[str, Any]]:
        kinds = ("warning", "step_refused", "failed")
        return [event for event in self.events if event.get("kind") in kinds]


class Tail:
    """Follows a run folder: `refresh()` reads what is new since the last call, at a cost that does not grow
    with the run.

    `whole`: every line of every file, for reports and comparisons. `kept`: steps of which all is known, at
    least; older ones are thinned out.
    """

    def __init__(self, path: Path, *, whole: bool = False, kept: int = KEPT):
        self.view = RunView(path)
        self._kept = kept
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
        self._rows("evals.jsonl", view.evals)
        self._rows("events.jsonl", view.events)
        self._samples()
        view.now = time.time()
        view.health = health(view.status, view.path, view.now, view.step_seconds)
        return view

    def _rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        lines = self._lines[name]
        news = lines.read()
        if news is None:
            return
        fresh, anew = news
        rows[:] = [*lines.sparse, *fresh] if anew else [*rows, *fresh]

    def _metrics(self) -> None:
        lines = self._lines["metrics.jsonl"]
        view = self.view
        news = lines.read()
        if news is None:
            return
        fresh, anew = news
        if anew:
            view.sparse = _records(lines.sparse)
            view.records = _records(fresh)
        else:
            view.records += _records(fresh)
        if not self._whole and len(view.records) > 2 * self._kept:  # a view that is left open for days
            view.sparse = thinned([*view.sparse, *view.records[: -self._kept]], self._kept // 8)
            view.records = view.records[-self._kept :]

    def _small(self, name: str, target: str, parse) -> None:
        """A small file, if it changed, into a field of the view; of one that cannot be read the last good
        reading stays.
        """
        path = self.view.path / name
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if self._read.get(name) == stamp:
                return
            value = parse(text_of(path))
        except OSError:
            return
        except (ValueError, RecursionError, yaml.YAMLError):
            value = None
        if isinstance(value, dict) and is_tree(value):
            setattr(self.view, target, value)
            self._read[name] = stamp
        else:
            self.view.unread.append(name)

    def _samples(self) -> None:
        """The completions of the newest step that kept some: found by name, since a folder may hold 100,000
        of them.
        """
        for record in reversed(self.view.records[-50:]):
            if record.step == self.view.sampled_at:
                return
            path = self.view.path / "completions" / f"step-{record.step:06d}.jsonl.gz"
            if path.exists():
                self.view.samples = completions(path)
                self.view.sampled_at = record.step
                return


def completions(path: Path) -> list[dict[str, Any]]:
    """The rows of a completions file; a foreign one has none."""
    try:
        with opened(path) as packed, gzip.open(packed, "rt", encoding="utf-8") as file:
            return list(objects(file))
    except (OSError, EOFError, ValueError, zlib.error):
        return []


def thinned(records: Sequence[StepRecord], most: int) -> list[StepRecord]:
    """At most `most` of them, evenly, the last one always."""
    if len(records) <= most:
        return list(records)
    return [records[(i + 1) * len(records) // most - 1] for i in range(most)]


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TYPES = {field.name: str(field.type) for field in fields(StepRecord)}
_NUMBERS = tuple(name for name, kind in _TYPES.items() if "float" in kind and "dict" not in kind)
_COUNTS = tuple(name for name, kind in _TYPES.items() if kind in ("<class 'int'>", "int"))


def record_of(row: dict[str, Any]) -> StepRecord | None:
    """A line of metrics.jsonl; None for a foreign one, whose fields are missing or not of the kind they
    should be.
    """
    try:
        record = StepRecord.from_json(row)
    except TypeError:
        return None
    numbers = (getattr(record, name) for name in _NUMBERS)
    counts = (getattr(record, name) for name in _COUNTS)
    usable = (
        all(number is None or _is_number(number) for number in numbers)
        and all(map(_is_count, counts))
        and all(map(_of_numbers, (record.reward_parts, record.seconds, record.memory)))
        and isinstance(record.skipped, str | None)
        and isinstance(record.alarms, list | tuple)
    )
    return record if usable else None


def _records(rows: Iterable[dict[str, Any]]) -> list[StepRecord]:
    return [record for record in map(record_of, rows) if record is not None]


def _of_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 1e15


def _is_number(value: Any) -> bool:
    return finite(value, below=1e300) is not None
