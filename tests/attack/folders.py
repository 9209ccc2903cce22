"""Run folders: a real run of tiny-math, copied and damaged; then looked at by every command that looks at
runs, reported on, and resumed.

Who looks changes nothing and ends with a code of its own. A resume refuses, or goes on from a checkpoint that
is byte for byte one of the run's; every FULL-th case it goes on to the end, which must be the run's own end.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from .case import ROOT, Said, Told, about, captured, command, faults_of_text
from .harm import harm

COUNT, SECONDS, MEMORY = 1000, 60.0, 1500
FULL = 40  # of so many cases one is resumed to its end
PICTURED = 16  # of so many cases one is drawn, which takes seconds
SLOW = 5.0  # seconds that a look may take
SETTINGS = (
    "train.steps=4", "train.save_every=1", "train.keep.last=9", "rollout.prompts_per_step=4", "rollout.group_size=4",
    "data.train.limit=64", "data.eval.limit=8", "eval.k=1",
)  # fmt: skip
LOST = ("checkpoints/step-000003", "checkpoints/step-000004", "export", "evals/step-000004.jsonl.gz")


@dataclass(frozen=True)
class Runs:
    """A run that is done, and the same one as a kill at step 3 leaves it."""

    recipe: Path
    done: Path
    killed: Path


def prepare(folder: Path) -> Runs:
    import_module("lgrpo_lite.cli.main")  # the workers have what they need of it
    from lgrpo_lite.recipe.read import load_recipe

    runs = folder / "base"
    recipe = folder / "r.yaml"
    recipe.write_text(load_recipe("tiny-math", list(SETTINGS)).to_yaml(), "utf-8")
    words = [
        sys.executable,
        "-m",
        "lgrpo_lite",
        "train",
        str(recipe),
        "--runs",
        str(runs),
        "--name",
        "done",
        "--ui",
        "none",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, capture_output=True, env=environment)
    shutil.copytree(runs / "done", runs / "killed", symlinks=True)
    for name in LOST:
        part = runs / "killed" / name
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    (runs / "killed" / "checkpoints" / "latest").unlink()
    (runs / "killed" / "checkpoints" / "latest").symlink_to("step-000002")
    status = yaml.safe_load((runs / "killed" / "STATUS.json").read_text())
    status |= {"state": "training", "step": 3, "exit_code": None, "pid": 2**22 + 1}
    (runs / "killed" / "STATUS.json").write_text(yaml.safe_dump(status, default_flow_style=True, width=10**6))
    return Runs(recipe, runs / "done", runs / "killed")


def attack(draw: random.Random, folder: Path, prepared: Runs) -> Told:
    base = draw.choice([prepared.done, prepared.killed])
    path = folder / "runs" / "one"
    shutil.copytree(base, path, symlinks=True)
    harms = [harm(draw, path) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
    about(f"{base.name}: {harms}")
    faults: list[str] = []
    shown: list[str] = []
    before = snapshot(path)
    drawn = draw.randrange(PICTURED) == 0
    for argv in looks(draw, path, prepared, folder, drawn=drawn):
        began = time.process_time(), time.monotonic()
        said = command(*argv)
        faults += [f"{argv[0]}: {fault}" for fault in said.faults]
        if time.process_time() - began[0] > SLOW or time.monotonic() - began[1] > 6 * SLOW:
            faults.append(f"{argv[0]} took {time.monotonic() - began[1]:.0f} s")
        shown.append(f"--- {argv}\n{said}")
    changed = differences(before, snapshot(path))
    if changed:
        faults.append(f"looking changed {changed}")
    with pictures(drawn):
        faults += reported(path)
    whole = draw.randrange(FULL) == 0
    told = resumed_to_its_end(prepared, folder) if whole else resumed(prepared, folder)
    return Told(told.outcome, (*faults, *told.faults), "\n".join([*shown, told.shown]))


def looks(draw: random.Random, path: Path, prepared: Runs, folder: Path, *, drawn: bool) -> list[list[str]]:
    """One form of every command that looks at a run."""
    once = [
        "watch",
        str(path),
        "--svg",
        str(folder / "view.svg"),
        "--size",
        draw.choice(["120x40", "80x24", "40x10", "200x60"]),
    ]
    step = draw.choice([[], [], ["--step", "2"], ["--step", "4", "--json"], ["--json"], ["--prompt", "1"]])
    other = [str(path), str(prepared.done)]
    draw.shuffle(other)
    return [
        once,
        ["show", str(path), *step],
        ["runs", "--runs", str(path.parent), *draw.choice([[], ["--json"]])],
        ["compare", *other, *(["--out", str(folder / "out")] if drawn else draw.choice([[], ["--json"]]))],
    ]


def pictures(drawn: bool) -> Any:
    """Whether a report has its picture."""
    return (
        contextlib.nullcontext() if drawn else mock.patch("lgrpo_lite.monitor.plots.available", lambda: False)
    )


def reported(path: Path) -> list[str]:
    """A report never raises, and names what it could not read."""
    from lgrpo_lite.folder.report import write_report

    with captured() as said:
        write_report(path)
    faults = list(faults_of_text("report.md", text_of(path / "report.md")))
    if "Traceback" in said["err"] and "Error: [Errno" not in said["err"]:
        faults.append(f"report: {said['err'].strip().splitlines()[-1][:300]}")
    return faults


def text_of(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() and not path.is_symlink() else ""


# ------------------------------------------------------------------------------------------- what is there


def snapshot(path: Path) -> dict[str, Any]:
    """Everything that looking must leave as it is: kinds, sizes, times of writing, links, bytes."""
    found = {}
    for file in sorted(path.rglob("*")):
        seen = file.lstat()
        row: tuple[Any, ...] = (seen.st_mode, seen.st_size, seen.st_mtime_ns)
        if file.is_symlink():
            row = (seen.st_mode, os.readlink(file))
        elif file.is_file():
            row = (*row, digest(file))
        elif file.is_dir():
            row = (seen.st_mode,)
        found[str(file.relative_to(path))] = row
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


# ------------------------------------------------------------------------------------------- resuming


@functools.cache
def built(recipe: Path) -> Any:
    """The run that checkpoints are loaded into, once a worker."""
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.recipe.read import load_recipe
    from lgrpo_lite.train.build import build

    with captured():
        return build(check(load_recipe(str(recipe))))


def warm(prepared: Runs) -> None:
    built(prepared.recipe)


def resumed(prepared: Runs, folder: Path) -> Told:
    """What `train --resume auto` does before its first step."""
    from lgrpo_lite.errors import LgrpoError
    from lgrpo_lite.folder.opening import open_run
    from lgrpo_lite.machine.disk import disk_fault
    from lgrpo_lite.train.loop import _resume

    run = built(prepared.recipe)
    path = folder / "runs" / "one"
    opened = None
    with captured() as said:
        try:
            opened, goes_on = open_run(run.recipe, path.parent, "one", "auto")
            if not goes_on:
                return Told("begins", (), "")
            state = _resume(run, opened)
            opened.follow(run.recipe.model_dump(mode="json", by_alias=True))
        except Exception as error:
            fault = error if isinstance(error, LgrpoError) else disk_fault(error, path)
            if fault is None:
                return Told("raised", (f"resume: unexpected {type(error).__name__}: {str(error)[:300]}",), "")
            return Told(
                f"refused {fault.exit_code}: {fault.what[:40]}",
                tuple(faults_of_text("resume", str(fault))),
                str(fault),
            )
        finally:
            if opened is not None:
                opened.close()
    return Told(f"resumed at {state.step}", tuple(wrong_at(prepared, path, state)), said["err"])


def wrong_at(prepared: Runs, path: Path, state: Any) -> list[str]:
    """The step it goes on from is the run's own: its files, its state, and all rows up to it."""
    from lgrpo_lite.policy.checkpoint import broken

    faults = []
    name = f"checkpoints/step-{state.step:06d}"
    here, there = path / name, prepared.done / name
    if state.step == 0 and broken(here) is not None:  # nothing is whole: from the start
        return faults
    if here.exists():
        faults += [f"resume: goes on from other bytes: {part}" for part in different(there, here)]
        if (path / "checkpoints" / "latest").resolve() != here.resolve():
            faults.append("resume: latest is not the checkpoint it goes on from")
    elif state.step or dataclasses.asdict(state)["prompts_drawn"]:
        faults.append(f"resume: goes on from step {state.step}, which is not there")
    return faults


def different(there: Path, here: Path) -> list[str]:
    """Files of a folder of the untouched run that are not the same here."""
    files = [
        file.relative_to(there)
        for file in sorted(there.rglob("*"))
        if file.is_file() and file.name not in ("README.md", "SHA256SUMS")
    ]
    return [
        str(file)
        for file in files
        if not (here / file).is_file() or digest(here / file) != digest(there / file)
    ]


def resumed_to_its_end(prepared: Runs, folder: Path) -> Told:
    path = folder / "runs" / "one"
    argv = [
        "train",
        str(prepared.recipe),
        "--runs",
        str(path.parent),
        "--name",
        "one",
        "--resume",
        "auto",
        "--ui",
        "none",
    ]
    said: Said = command(*argv)
    faults = [f"resume: {fault}" for fault in said.faults]
    if said.code == 0:
        for part in ("checkpoints/step-000004", "export/adapter", "export/merged"):
            faults += [
                f"resume: ended with other bytes: {part}/{name}"
                for name in different(prepared.done / part, path / part)
            ]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        status = yaml.safe_load((path / "STATUS.json").read_text())
        if said.code == 0 and status.get("state") != "done":
            faults.append(f"resume: ended, and its state is {status.get('state')}")
    return Told(f"to its end, exit {said.code}", tuple(faults), str(said))
