"""Run folders written down by hand, for tests of what reads them: small, complete, and
with whatever is wrong on purpose.
"""

import dataclasses
import gzip
import json
import socket
import time
from pathlib import Path
from typing import Any

from lgrpo_lite.types import StepRecord

RECIPE = """
recipe: {name: tiny-math}
seed: 0
model: {id: "builtin:tiny-math", weights: fp32}
train: {steps: 40, keep: {metric: avg}}
algorithm: {use: length_preference, reduce: group_token_mean}
optim: {lr: 0.001}
"""
SAMPLE = {
    "prompt_id": "p-1", "prompt": "47+36=?", "reference": "83", "completion": "40+30=70\n#### 83", "reward": 1.0,
    "parts": {"numeric": 1.0}, "outcome": "ok", "tokens": 4, "finish_reason": "stop", "given": 0, "off": False,
    "pieces": ["40+30", "=70\n", "#### ", "83"], "credit": [0.9, 0.3, -0.2, 0.0],
}  # fmt: skip


def record(step: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl; the reward is the step's hundredth."""
    made = StepRecord(
        step=step, policy_version=step, reward=step / 100, reward_std=0.4, groups=16, groups_mixed=8, length=20.0 + step,
        truncated=0.0, length_lambda=0.01 * step, rollout_tokens=1000, seconds={"rollout": 0.8, "update": 0.2},
    )  # fmt: skip
    return dataclasses.asdict(made) | more


def evaluation(step: int, accuracy: float, **more: Any) -> dict[str, Any]:
    """A line of evals.jsonl."""
    ends = {"accuracy": [accuracy - 0.05, accuracy + 0.05]}
    return {"step": step, "problems": 256, "k": 4, "temperature": 1.0, "accuracy": accuracy, "stderr": 0.01, "length": 22.0,
            "truncated": 0.0, "missing": 0, "intervals": ends, "seconds": 3.0} | more  # fmt: skip


def written(
    path: Path, *, steps: int = 12, recipe: str = RECIPE, evals=((0, 0.4), (12, 0.9)), **status: Any
) -> Path:
    """A run that is done, unless `status` says otherwise."""
    (path / "completions").mkdir(parents=True)
    (path / "config.resolved.yaml").write_text(recipe)
    known = {
        "state": "done",
        "step": steps,
        "exit_code": 0,
        "heartbeat": time.time(),
        "host": socket.gethostname(),
        "alarms": [],
    }
    (path / "STATUS.json").write_text(json.dumps(known | status))
    lines(path / "metrics.jsonl", [record(i) for i in range(1, steps + 1)])
    lines(path / "evals.jsonl", [evaluation(*row) for row in evals])
    lines(path / "events.jsonl", [{"kind": "warning", "message": "a warning", "attempt": 1, "time": 1.0}])
    if steps:
        sampled(path, steps, [SAMPLE])
    return path


def lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sampled(path: Path, step: int, rows) -> Path:
    """A completions file."""
    file = path / "completions" / f"step-{step:06d}.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return file
