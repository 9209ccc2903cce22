"""Every named algorithm on tiny-math with the same budget of sampled answers: held-out
accuracy and time, several seeds.

    python bench/algorithms.py [NAME …] [--seeds 0,1,2] [--runs DIR] [--out FILE]       train what is missing in DIR
    python bench/algorithms.py --table --out FILE                                       the table of stored results

Each run is a process of its own, and its folder is kept, so that a broken-off benchmark goes on where it was.
The interval is that of Student's t over the seeds. The time of a step is the ratio that bench/named.py
measured, all algorithms in turn in one
process: the seconds of these runs are kept, but other work on the machine is in them.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from lgrpo_lite.objective.named import NAMED

STEPS, BUDGET = 50, 6400  # 50 steps of 16 prompts with 8 answers
COMMON = [f"train.steps={STEPS}", "train.save_every=50", "export.formats=[]", "log.completions_per_step=0"]
SAME_BUDGET = {  # what an algorithm needs so that it samples no more answers than the others
    "dapo": ["rollout.max_redraw=0"],
    "cppo": ["algorithm.select.refill=false"],
    "a_star_po": ["rollout.group_size=1", "rollout.prompts_per_step=71", "data.train.limit=356"],
    "g2rpo_a": ["algorithm.guide={init: 24, max: 48}"],
    "vineppo": [
        "algorithm.probe_values={k: 3, max_states: 4, only: mixed, first: group_mean}",
        "rollout.prompts_per_step=8",
        "train.steps=36",
    ],
}
VARIANTS = {  # rows that differ in one part, to see what that part does
    "grpo, kl 0": ["algorithm.use=grpo", "algorithm.kl.coef=0"],
    "prefix_share, kl 0": ["algorithm.use=prefix_share", "algorithm.kl.coef=0"],
    "igrpo, when wrong": ["algorithm.use=igrpo", "algorithm.best_draft.when=wrong"],
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95 % of Student's t, by the number of seeds


def run(name: str, seed: int, runs: Path) -> dict:
    """Train once, or read what is there."""
    folder = runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    settings = [
        *COMMON,
        *VARIANTS.get(name, [f"algorithm.use={name}"]),
        f"seed={seed}",
        *SAME_BUDGET.get(name, []),
    ]
    command = [sys.executable, "-m", "lgrpo_lite", "recipe", "tiny-math", *settings]
    began = time.perf_counter()
    subprocess.run(
        [*command, "--runs", str(runs), "--name", folder.name, "--resume", "auto", "--json"],
        check=True,
        stdout=-3,
    )
    took = time.perf_counter() - began
    evals = [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = folder / "values.jsonl"
    before_step_1 = (
        sum(len(json.loads(line)["rewards"]) for line in values.read_text().splitlines())
        if values.exists()
        else 0
    )
    return {
        "algorithm": name, "seed": seed, "settings": settings, "before": evals[0]["accuracy"], "after": evals[-1]["accuracy"],
        "greedy": evals[-1]["greedy"], "answers": before_step_1 + sum(s["rollout_answers"] for s in steps),
        "trained_tokens": sum(s["trained_tokens"] for s in steps), "process_seconds": took,
        "seconds": {k: sum(s["seconds"].get(k, 0.0) for s in steps) for k in ("rollout", "reward", "score", "update")},
    }  # fmt: skip


def interval(values: list[float]) -> str:
    mean = statistics.fmean(values)
    half = (
        T95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
        if len(values) in T95
        else float("nan")
    )
    return f"{mean:.3f} ± {half:.3f}"


def step_times() -> dict[str, float]:
    """Sampling, scoring and updating of one step, in steps of `dapo`."""
    stored = json.loads((Path(__file__).parent / "baselines" / "named-cpu.json").read_text())["rows"]
    whole = {name: sum(phases.values()) for name, phases in stored.items()}
    return {name: seconds / whole["dapo"] for name, seconds in whole.items()}


def table(rows: list[dict]) -> str:
    lines = [
        "| algorithm | accuracy after | greedy | answers | trained tokens | time of a step |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    grouped = {name: [r for r in rows if r["algorithm"] == name] for name in (*NAMED, *VARIANTS)}
    time_of = step_times()
    for name, found in sorted(
        grouped.items(), key=lambda item: -statistics.fmean([r["after"] for r in item[1]] or [0])
    ):
        if found:
            mean = {k: statistics.fmean(r[k] for r in found) for k in ("greedy", "answers", "trained_tokens")}
            ratio = f"{time_of[name]:.2f}" if name in time_of else "–"
            lines.append(
                f"| `{name}` | {interval([r['after'] for r in found])} | {mean['greedy']:.3f} | {mean['answers']:,.0f} | "
                f"{mean['trained_tokens']:,.0f} | {ratio} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[*NAMED, *VARIANTS])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--out", type=Path, default=Path("bench/baselines/algorithms-cpu.json"))
    parser.add_argument(
        "--table", action="store_true", help="print the table of what is stored, train nothing"
    )
    args = parser.parse_args()
    stored = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    rows = {(r["algorithm"], r["seed"]): r for r in stored["rows"]}
    for seed in [] if args.table else map(int, args.seeds.split(",")):
        for name in args.names:
            if (name, seed) not in rows:
                rows[name, seed] = run(name, seed, args.runs)
                packages = {p: version(p) for p in ("torch", "transformers", "peft")}
                kept = {"budget": BUDGET, "packages": packages, "rows": [rows[key] for key in sorted(rows)]}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(kept, indent=1) + "\n")
                print(f"{name} seed {seed}: {rows[name, seed]['after']:.3f}", file=sys.stderr)
    print(table(list(rows.values())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
