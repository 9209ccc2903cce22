"""Where the time of a training step goes, as ratios inside one run: `make bench`.

Every algorithm trains the tiny model, one step each in turn, so that all see the same machine; the median
update time of `dapo`, which has neither a trace nor a λ nor a reference pass, is the unit. Equal-reward
groups see no forward pass unless something pulls to the reference, so part of a ratio is how many tokens are
trained. Compare rows of one table only.
"""

import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from lgrpo_lite.checks.check import check
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.run import Run
from lgrpo_lite.train.step import train_step

STEPS, WARMUP, UNIT = 8, 2, "dapo"
CHEAP = {  # what keeps a step to the group's answers, or is the form meant for one GPU
    "dapo": ["rollout.max_redraw=0"],
    "cppo": ["algorithm.select.refill=false"],
    "vineppo": ["algorithm.probe_values={k: 3, max_states: 4, only: mixed, first: group_mean}"],
}
PHASES = ("rollout", "score", "update")


def started(name: str, *overrides: str) -> Run:
    """A run at its first step. Values of prompts are made up: the pre-pass is no part of a step."""
    settings = [f"algorithm.use={name}", "data.eval=[]", "train.steps=100", *CHEAP.get(name, []), *overrides]
    run = build(check(load_recipe("tiny-math", settings)))
    if run.plan.values:
        run.plan.values.rewards = {run.plan.values.key(p): [0.0, 1.0] for p in run.prompts.prompts}
    return run


def main() -> None:
    runs = {name: started(name) for name in NAMED}
    runs["length_preference, nf4"] = started("length_preference", "model.weights=nf4")
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for step in range(1, WARMUP + STEPS + 1):
        for name, run in runs.items():
            record, _ = train_step(step, run)
            if step > WARMUP and record.skipped is None:
                seconds[name].append(record.seconds)
    rows = {
        name: {p: statistics.median(s.get(p, 0.0) for s in found) for p in PHASES}
        for name, found in seconds.items()
    }
    unit = rows[UNIT]["update"]
    table = {
        name: {phase: round(value / unit, 2) for phase, value in row.items()} for name, row in rows.items()
    }
    print(f"{'(in updates of ' + UNIT + ')':26}" + "".join(f"{phase:>10}" for phase in PHASES))
    for name, row in table.items():
        print(f"{name:26}" + "".join(f"{value:10.2f}" for value in row.values()))
    versions = {
        package: version(package)
        for package in ("torch", "transformers", "peft", "bitsandbytes", "lgrpo-lite")
    }
    out = Path(__file__).parent / "baselines" / "named-cpu.json"
    out.parent.mkdir(exist_ok=True)
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "versions": versions,
        "unit": UNIT,
        "rows": table,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
