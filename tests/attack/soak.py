"""Hours of one run, looked at from outside: does anything grow that should not?

    python -m tests.attack.soak --hours 2 --out build/soak.json

Two things run side by side, each in a process of its own: `tiny-math` with the reward `math` and no last step, and
a pool of reward workers that judge answers of every kind. Every ten seconds their memory (private bytes of
all their processes), file descriptors, threads, processes and, of the run, its folder and /dev/shm are written
down. After a warm-up (a quarter of the time) each is fitted by a line over what was done: steps, calls.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from .marked import living, marked, stamp

EVERY = 10.0  # seconds between two looks
WARM_UP = 0.25  # of the time
WINDOWS = 12  # means of windows are fitted: neighbouring looks are no independent draws
T_95 = 2.228  # Student's t of 10 degrees of freedom, two-sided 95 %
FLAT = ("descriptors", "threads", "processes", "shm_files")

RUN = [
    "recipe", "tiny-math", "train.steps=1000000", "train.eval_every=50", "eval.k=1", "data.eval.limit=32",
    "rollout.prompts_per_step=8", "rewards=[{use: math}]", "--ui", "plain", "--name", "soak",
]  # fmt: skip


def look(process: psutil.Process) -> dict[str, float]:
    """What a process and all below it hold now. Private: bytes that nobody else maps, in MB; own: of the first."""
    private, own, descriptors, threads, processes = 0, 0, 0, 0, 0
    shared: set[str] = set()
    for one in (process, *process.children(recursive=True)):
        try:
            held = one.memory_full_info().uss
            private += held
            if one == process:
                own = held
            descriptors += one.num_fds()
            threads += one.num_threads()
            processes += 1
            shared |= {part.path for part in one.memory_maps() if part.path.startswith("/dev/shm/")}
        except psutil.Error:  # it ended meanwhile
            continue
    return {
        "private_mb": private / 1e6,
        "own_mb": own / 1e6,
        "descriptors": descriptors,
        "threads": threads,
        "processes": processes,
        "shm_files": len(shared),  # those that they map: others use /dev/shm too
    }


def line(done: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of `values` over `done`, by least squares of the means of windows, and the half width of its 95 %
    interval. Fewer looks than windows: (nan, inf).
    """
    if len(done) < WINDOWS:
        return math.nan, math.inf
    x = np.array([part.mean() for part in np.array_split(np.asarray(done, float), WINDOWS)])
    y = np.array([part.mean() for part in np.array_split(np.asarray(values, float), WINDOWS)])
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    left = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt((left**2).sum() / (WINDOWS - 2) / spread)
    return float(slope), T_95 * error


def judged(rows: Sequence[dict[str, float]], unit: str) -> dict[str, object]:
    """Slopes after the warm-up, and whether what should be flat is.

    Memory is flat when the interval of its slope reaches 0 or below, over all of the time or over its second
    half: an allocator that settles late is no leak.
    """
    warm = rows[int(len(rows) * WARM_UP) :]
    done = [row["done"] for row in warm]
    memory = [row["private_mb"] for row in warm]
    slope, half = line(done, memory)
    late = len(warm) // 2
    late_slope, late_half = line(done[late:], memory[late:])
    ends = {}
    for name in FLAT:
        counts = [row[name] for row in warm]
        quarter = max(1, len(counts) // 4)
        ends[name] = (median(counts[:quarter]), max(counts), median(counts[-quarter:]))
    return {
        "unit": unit,
        "done": done[-1],
        "done_after_warm_up": done[-1] - done[0],
        "memory_mb": [memory[0], max(memory), memory[-1]],
        "kb_per_unit": [1000 * (slope - half), 1000 * slope, 1000 * (slope + half)],
        "kb_per_unit_second_half": [
            1000 * (late_slope - late_half),
            1000 * late_slope,
            1000 * (late_slope + late_half),
        ],
        "memory_is_flat": slope - half <= 0 or late_slope - late_half <= 0,
        "first_most_last": ends,
        "rest_is_flat": all(last <= first for first, _, last in ends.values()),
    }


def steps_of(folder: Path) -> int:
    """How many lines metrics.jsonl has."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:
        return 0


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def calls_of(counted: Path) -> int:
    try:
        return int(counted.read_text())
    except FileNotFoundError:
        return 0


def soak(seconds: float, runs: Path, python: str, overrides: Sequence[str]) -> dict[str, object]:
    """Start both, look at them until the time is over, end them, fit."""
    counted = runs / "calls"
    mark, environment = marked()
    log = (runs / "out.log").open("w")
    run = subprocess.Popen(
        [python, "-m", "lgrpo_lite", *RUN, *overrides, "--runs", str(runs)],
        stdout=log, stderr=log, env=environment,
    )  # fmt: skip
    pool = subprocess.Popen([python, "-m", "tests.attack.judging", str(counted)], env=environment)
    folder = runs / "soak"
    seen: dict[str, list[dict[str, float]]] = {"run": [], "workers": []}
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        time.sleep(EVERY)
        if run.poll() is not None or pool.poll() is not None:
            raise SystemExit(f"ended early: run {run.poll()}, pool {pool.poll()}; see {runs}/out.log")
        at = round(time.monotonic() - began, 1)
        of_run = look(psutil.Process(run.pid)) | {"at": at, "done": steps_of(folder)}
        if len(seen["run"]) % 30 == 0:
            of_run["folder_bytes"] = size_of(folder)
        seen["run"].append(of_run)
        seen["workers"].append(look(psutil.Process(pool.pid)) | {"at": at, "done": calls_of(counted)})
    pool.terminate()
    run.send_signal(signal.SIGINT)
    code = run.wait(120)
    pool.wait(60)
    held = [(row["done"], row["folder_bytes"]) for row in seen["run"] if "folder_bytes" in row]
    (first, small), (last, large) = held[0], held[-1]
    return stamp() | {
        "hours": seconds / 3600,
        "exit_code": code,
        "run": judged(seen["run"], "step"),
        "workers": judged(seen["workers"], "call"),
        "folder_bytes_per_step": (large - small) / max(1, last - first),
        "left_behind": [process.pid for process in living(mark)],
        "looks": seen,
    }


def _interval(values: Sequence[float]) -> str:
    """A slope and its interval, with as many digits as it needs."""
    low, slope, high = values
    digits = 2 if max(-low, high) >= 0.01 else 5
    return f"{slope:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def told(report: dict[str, object]) -> list[str]:
    """One line a holder."""
    lines = []
    for name in ("run", "workers"):
        row = report[name]
        slope, late = _interval(row["kb_per_unit"]), _interval(row["kb_per_unit_second_half"])
        verdict = "flat" if row["memory_is_flat"] else "GROWS"
        others = "flat" if row["rest_is_flat"] else f"GROWS: {row['first_most_last']}"
        lines.append(
            f"{name:8}{row['done']:>9} {row['unit']}s  memory {verdict}: {slope} kB a {row['unit']},"
            f" second half {late}, descriptors, threads, processes {others}"
        )
    lines.append(
        f"folder   {report['folder_bytes_per_step']:,.0f} bytes a step; run ended {report['exit_code']}"
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("build/soak.json"))
    parser.add_argument("overrides", nargs="*", help="settings of the run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        report = soak(asked.hours * 3600, Path(runs), sys.executable, asked.overrides)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(report | {"looks": None}, indent=1))
    asked.out.with_suffix(".looks.json").write_text(json.dumps(report["looks"]))
    print("\n".join(told(report)))
    sound = report["exit_code"] == 130 and not report["left_behind"]
    for name in ("run", "workers"):
        sound = sound and report[name]["memory_is_flat"] and report[name]["rest_is_flat"]
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
