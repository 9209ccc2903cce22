"""Where the time of a training step goes, as ratios inside one run: `make bench`.

Each algorithm trains the tiny model for a few steps in one process; the median update time of `dapo`, which has neither a
trace nor a λ nor a reference pass, is the unit. Machines are shared and noisy: compare rows of one table only.
"""

import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe import load_recipe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.check import check
from lgrpo_lite.train.step import train_step

STEPS, WARMUP, UNIT = 8, 2, "dapo"


def measure(name: str, *overrides: str) -> dict[str, float]:
    """Median seconds of rollout, score (old and reference passes) and update over the measured steps."""
    run = build(check(load_recipe("tiny-math", [f"algorithm.use={name}", "data.eval=[]", *overrides])))
    seconds = []
    for step in range(1, WARMUP + STEPS + 1):
        record, _ = train_step(step, run)
        if step > WARMUP and record.skipped is None:
            seconds.append(record.seconds)
    return {phase: statistics.median(s.get(phase, 0.0) for s in seconds) for phase in ("rollout", "score", "update")}


def main() -> None:
    rows = {name: measure(name) for name in NAMED}
    rows["length_preference, nf4"] = measure("length_preference", "model.weights=nf4")
    unit = rows[UNIT]["update"]
    table = {name: {phase: round(value / unit, 2) for phase, value in row.items()} for name, row in rows.items()}
    print(f"{'(in updates of ' + UNIT + ')':26}" + "".join(f"{phase:>10}" for phase in ("rollout", "score", "update")))
    for name, row in table.items():
        print(f"{name:26}" + "".join(f"{value:10.2f}" for value in row.values()))
    versions = {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes", "lgrpo-lite")}
    out = Path(__file__).parent / "baselines" / "step-cpu.json"
    out.parent.mkdir(exist_ok=True)
    result = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "versions": versions, "unit": UNIT, "rows": table}
    out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
