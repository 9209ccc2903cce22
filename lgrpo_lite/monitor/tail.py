"""A run folder -> RunView. Reads only, tolerates everything: half-written lines, missing and foreign files, a rewound run."""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lgrpo_lite.types import StepRecord


@dataclass
class RunView:
    """All that a view, a report or a table needs of a run."""

    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)  # config.resolved.yaml
    status: dict[str, Any] = field(default_factory=dict)  # STATUS.json
    records: list[StepRecord] = field(default_factory=list)  # one per step, in order
    evals: list[dict[str, Any]] = field(default_factory=list)  # one per evaluation, in order
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)  # completions of the newest step

    def get(self, key: str, default: Any = None) -> Any:
        """A dotted key of the recipe."""
        node: Any = self.recipe
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return default if node is None else node

    @property
    def name(self) -> str:
        return self.get("recipe.name", self.path.name)

    @property
    def steps(self) -> int:
        return self.get("train.steps", 0)

    @property
    def step(self) -> int:
        return self.records[-1].step if self.records else 0

    @property
    def eta(self) -> float | None:
        """Seconds left, from the median of the last steps."""
        times = sorted(sum(r.seconds.values()) for r in self.records[-20:] if r.seconds)
        return times[len(times) // 2] * max(0, self.steps - self.step) if times else None

    @property
    def warnings(self) -> list[dict[str, Any]]:
        return [e for e in self.events if e.get("kind") in ("warning", "step_refused", "failed")]


class Tail:
    """Follows a run folder: `refresh()` reads what is new since the last call."""

    def __init__(self, path: Path):
        self.view = RunView(path)
        self._lines = {name: _Lines(path / name) for name in ("metrics.jsonl", "evals.jsonl", "events.jsonl")}
        self._sampled: Path | None = None

    def refresh(self) -> RunView:
        view = self.view
        if not view.recipe:
            view.recipe = _mapping(view.path / "config.resolved.yaml", yaml.safe_load)
        view.status = _mapping(view.path / "STATUS.json", json.loads) or view.status
        if (rows := self._lines["metrics.jsonl"].read()) is not None:
            view.records = [r for r in map(_record, rows) if r is not None]
        if (rows := self._lines["evals.jsonl"].read()) is not None:
            view.evals = rows
        if (rows := self._lines["events.jsonl"].read()) is not None:
            view.events = rows
        newest = max((view.path / "completions").glob("step-*.jsonl.gz"), default=None)
        if newest is not None and newest != self._sampled:
            self._sampled, view.samples = newest, _samples(newest)
        return view


class _Lines:
    """The objects of a growing JSONL file; None while nothing changed. A file that shrank is read anew."""

    def __init__(self, path: Path):
        self.path, self.rows, self.offset, self.inode = path, [], 0, None

    def read(self) -> list[dict[str, Any]] | None:
        rewound = False
        try:
            with self.path.open("rb") as file:
                inode = (self.path.stat().st_ino, self.path.stat().st_dev)
                if inode != self.inode or self.path.stat().st_size < self.offset:
                    self.rows, self.offset, self.inode, rewound = [], 0, inode, True
                file.seek(self.offset)
                fresh = file.read()
        except OSError:
            return None
        whole = fresh[: fresh.rfind(b"\n") + 1]
        if not whole and not rewound:
            return None
        self.offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                self.rows.append(row)
        return self.rows


def _record(row: dict[str, Any]) -> StepRecord | None:
    try:
        return StepRecord.from_json(row)
    except TypeError:
        return None


def _mapping(path: Path, parse) -> dict[str, Any]:
    try:
        found = parse(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _samples(path: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError):
        return []
