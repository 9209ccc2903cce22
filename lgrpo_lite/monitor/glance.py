"""A run at a glance, for a table of many: from the ends of its files, in the same few milliseconds however
long it is.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lgrpo_lite.machine.disk import is_tree, objects, opened, text_of
from lgrpo_lite.monitor.curves import METRICS, Best, best_row
from lgrpo_lite.monitor.health import Health
from lgrpo_lite.monitor.health import health as health_of
from lgrpo_lite.monitor.lines import Lines
from lgrpo_lite.monitor.numbers import finite

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
END = 2**16  # bytes of metrics.jsonl that are read: some 30 steps


@dataclass(frozen=True, slots=True)
class Glance:
    """None, and a question mark for words: not known."""

    name: str  # of the folder
    path: str
    health: Health
    step: int
    steps: int | None
    algorithm: str
    model: str
    best: Best | None
    reward: float | None  # of the last step that had one
    seen: float  # Unix time of its last sign of life
    alarms: tuple[str, ...]


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, however broken."""
    return any((path / name).is_file() for name in ("STATUS.json", "config.resolved.yaml"))


def glance(path: Path) -> Glance:
    """Of a run folder. Missing and foreign files are passed over."""
    status = _read(path / "STATUS.json", json.loads)
    recipe = _read(path / "config.resolved.yaml", lambda text: yaml.load(text, Loader=_LOADER))
    rows = _last_rows(path / "metrics.jsonl")
    steps = _numbers(rows, "step")
    rewards = _numbers(rows, "reward")
    planned = finite(_inside(recipe, "train", "steps"))
    heartbeat = finite(status.get("heartbeat"))
    return Glance(
        name=path.name,
        path=str(path),
        health=health_of(status, path, time.time(), _median(rows)),
        step=int(steps[-1] if steps else 0),
        steps=None if planned is None else int(planned),
        algorithm=str(_inside(recipe, "algorithm", "use") or "?"),
        model=str(_inside(recipe, "model", "id") or "?"),
        best=_best(path, recipe),
        reward=rewards[-1] if rewards else None,
        seen=_touched(path) if heartbeat is None else heartbeat,
        alarms=_alarm_names(status.get("alarms")),
    )


def _best(path: Path, recipe: dict[str, Any]) -> Best | None:
    metric = _inside(recipe, "train", "keep", "metric")
    rows, _ = Lines(path / "evals.jsonl", whole=True).read() or ([], True)
    return best_row(rows, metric if isinstance(metric, str) and metric in METRICS else "avg")


def _alarm_names(alarms: Any) -> tuple[str, ...]:
    if not isinstance(alarms, list):
        return ()
    return tuple(str(alarm["name"]) for alarm in alarms if isinstance(alarm, dict) and "name" in alarm)


def _read(path: Path, parse) -> dict[str, Any]:
    try:
        value = parse(text_of(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) and is_tree(value) else {}


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines at the end of a JSONL file."""
    try:
        with opened(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - END))
            lines = file.read(END).split(b"\n")[:-1]
    except OSError:
        return []
    return list(objects(lines[1:] if size > END else lines))  # the first one is cut


def _numbers(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    values = [finite(row.get(name)) for row in rows]
    return [value for value in values if value is not None]


def _median(rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of a step, of the last ones."""
    times = []
    for row in rows[-20:]:
        phases = row.get("seconds")
        if isinstance(phases, dict) and phases:
            times.append(sum(finite(value) or 0.0 for value in phases.values()))
    times.sort()
    return times[len(times) // 2] if times else None


def _inside(recipe: dict[str, Any], *keys: str) -> Any:
    node: Any = recipe
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _touched(path: Path) -> float:
    """When a run without a heartbeat last wrote something."""
    times = [0.0]
    for name in ("STATUS.json", "metrics.jsonl", "config.resolved.yaml"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)
