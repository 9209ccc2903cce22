"""The run folder: the only thing a run leaves behind, and the only thing the monitor reads.

config.yaml  config.resolved.yaml  env.json  STATUS.json  metrics.jsonl  events.jsonl  evals.jsonl
completions/step-000037.jsonl.gz  checkpoints/…  logs/attempt_1/main.log  export/…  report.md
"""

import dataclasses
import fcntl
import gzip
import json
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.types import Group, StepRecord


class RunFolder:
    """Appends lines and replaces small files whole; what was written stays readable after a kill at any moment."""

    def __init__(self, path: Path):
        self.path = path
        self.attempt = 1
        self._lock = None

    # ------------------------------------------------------------------------------------------- opening

    def open(self) -> None:
        """Create what is missing and take the lock; another living process in the folder: ConfigError."""
        try:
            for part in ("", "completions", "checkpoints", "logs"):
                (self.path / part).mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("w")
        except OSError as error:
            fix = "choose another place with --runs DIR"
            raise ConfigError(f"cannot write the run folder: {error.strerror}", where=str(self.path), fix=fix) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            fix = "wait for it, stop it, or give this run another --name"
            raise ConfigError("another process is training in this run folder", where=str(self.path), fix=fix) from None
        self.attempt = 1 + len(list((self.path / "logs").glob("attempt_*")))
        self.log_path.parent.mkdir()

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
        ours = {"completions", "checkpoints", "logs", "config.yaml", "env.json", "STATUS.json", "events.jsonl"}
        names = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        return any(name not in ours and not name.startswith(".") for name in names)

    @property
    def status(self) -> dict[str, Any]:
        """STATUS.json; empty when there is none or it is foreign."""
        try:
            found = json.loads((self.path / "STATUS.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    # ------------------------------------------------------------------------------------------- writing

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole."""
        write_whole(self.path / name, text)

    def set_status(self, state: str, step: int, exit_code: int | None = None, **more: Any) -> None:
        """state: starting, evaluating, training, exporting, done, stopped, failed. The heartbeat is Unix time."""
        row = {"state": state, "step": step, "pid": os.getpid(), "heartbeat": time.time(), "exit_code": exit_code}
        self.write("STATUS.json", json.dumps(row | more, allow_nan=False))

    def event(self, kind: str, **more: Any) -> None:
        """One line of events.jsonl: what happened, beside the steps."""
        self._append("events.jsonl", {"time": time.time(), "attempt": self.attempt, "kind": kind} | more)

    def record(self, record: StepRecord, groups: list[Group], keep: int) -> None:
        """One line of metrics.jsonl, and up to `keep` of the step's completions, right ones and wrong ones mixed."""
        if keep:
            self._completions(record.step, groups, keep)
        self._append("metrics.jsonl", dataclasses.asdict(record) | {"time": time.time()})

    def evaluation(self, row: dict[str, Any]) -> None:
        self._append("evals.jsonl", row | {"time": time.time()})

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a JSONL file; a line cut short by a kill is not one."""
        path = self.path / name
        rows = []
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def rewind(self, step: int) -> None:
        """Forget steps and evaluations after `step`: the resumed run makes them again, with the same numbers."""
        for name in ("metrics.jsonl", "evals.jsonl"):
            if (self.path / name).exists():
                kept = [row for row in self.rows(name) if row.get("step", 0) <= step]
                self.write(name, "".join(_line(row) for row in kept))

    def _append(self, name: str, row: dict[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(_line(row))

    def _completions(self, step: int, groups: list[Group], keep: int) -> None:
        rollouts = [r for g in groups for r in g.rollouts]
        ranked = sorted(rollouts, key=lambda r: -r.reward)
        picked = [ranked[i // 2] if i % 2 == 0 else ranked[-1 - i // 2] for i in range(min(keep, len(ranked)))]
        rows = [
            {
                "prompt_id": r.prompt.id, "prompt": r.prompt.text, "reference": r.prompt.reference,
                "completion": r.completion.text, "reward": r.reward, "parts": r.score.parts, "outcome": r.score.outcome,
                "tokens": len(r.completion.token_ids), "finish_reason": r.completion.finish_reason,
                "policy_version": r.completion.policy_version, "given": r.completion.given, "off": r.off,
            }
            for r in picked
        ]  # fmt: skip
        final = self.path / "completions" / f"step-{step:06d}.jsonl.gz"
        fresh = final.with_suffix(".new")
        with gzip.open(fresh, "wt", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
        os.replace(fresh, final)


def write_whole(path: Path, text: str) -> None:
    """Write or replace a file: after a kill at any moment it is the old one or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def differences(old: str, new: str, free: Iterable[str]) -> list[str]:
    """Settings that differ between two texts of YAML or JSON, as `key: old -> new`; keys below `free` may differ."""
    import yaml

    before, after = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    keys = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if not k.startswith(tuple(free))]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{prefix}.{i}").items()}
    return {prefix: value}
