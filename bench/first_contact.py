"""What a first run on a card would find out, worth most first, in under nine minutes and
one JSON. Use first_contact.sh.

    python bench/first_contact.py [--out FILE]               bench/baselines/first-contact-gpu.json, and a copy in $OUT, if set
    python bench/first_contact.py --dry-run [--out FILE]     every part's tiny form on any machine: build/first-contact-cpu.json

A part is a process with a time limit of its own; one that fails or takes too long is told so in the JSON, and
the next one starts. Where the time of all is over, the rest is not started. Exit: 0 when every part ended
well, else 1; the JSON is there in either case, and is written anew after each part.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import measure
import torch

from lgrpo_lite.machine.doctor import used_gpu
from lgrpo_lite.machine.facts import read_machine

ROOT = Path(__file__).parent.parent
DEADLINE = 520  # seconds for all: nine minutes, less the unpacking of the kit
PATIENCE = 10  # times as long may a dry run take: it shows that all ends well, and the machine may be busy
SHORTEST = 15  # seconds; with less left nothing is started
LAST = 15  # lines of a part that did not end well


@dataclass(frozen=True, slots=True)
class Part:
    """`limit`: seconds. `tiny`: the command of a dry run. {out} in a command is the part's own folder."""

    name: str
    limit: float
    command: tuple[str, ...]
    tiny: tuple[str, ...]


TESTS = ("-m", "pytest", "tests/test_gpu.py", "-v", "-p", "no:cacheprovider", "--junitxml={out}/tests.xml")
RECIPE = ("bench/gpu_check.py", "--engine", "transformers")
PARTS = (
    Part("tests", 100, TESTS, TESTS),
    Part("recipe", 210, (*RECIPE, "--tokens", "128"), (*RECIPE, "--tiny")),
    Part("fit", 200, ("bench/fit.py", "--answers", "1024,4096"), ("bench/fit.py", "--tiny")),
    Part(
        "head",
        60,
        ("bench/loss.py", "--rounds", "3", "--peers", "naive,chunk_checkpoint,trl"),
        ("bench/loss.py", "--quick", "--rounds", "1", "--peers", "naive,trl", "--dtypes", "float32"),
    ),
    Part(
        "update",
        90,
        ("bench/step.py", "--quick", "--rounds", "3"),
        ("bench/step.py", "--tiny", "--rounds", "1"),
    ),
)


def contact(parts: Sequence[Part], out: Path, *, dry: bool, deadline: float = DEADLINE) -> bool:
    """Run the parts one after the other, each result into `out` at once. Whether all ended well."""
    until = time.monotonic() + deadline
    result = here() | {"dry_run": dry, "parts": {part.name: {"state": "not started"} for part in parts}}
    for part in parts:
        measure.write(out, result)
        limit = min(part.limit, until - time.monotonic())
        if limit < min(SHORTEST, part.limit):
            continue
        result["parts"][part.name] = found = run(part.tiny if dry else part.command, limit)
        print(
            f"{part.name}: {found['state']}, {found['seconds']:.0f} s",
            *found.get("said", ()),
            sep="\n    ",
            flush=True,
        )
    measure.write(out, result)
    return all(found["state"] == "ok" for found in result["parts"].values())


def here() -> dict[str, Any]:
    """Card, driver, date, versions. Takes nothing of the GPU."""
    gpu = used_gpu(read_machine())
    card = (
        {"card": gpu.name, "driver": gpu.driver, "card_gib": gpu.total and gpu.total / 2**30}
        if gpu
        else {"card": None}
    )
    python = ".".join(map(str, sys.version_info[:3]))
    versions = {"python": python} | measure.versions() | {"cuda": torch.version.cuda or "none"}
    return card | {"date": time.strftime("%Y-%m-%d"), "versions": versions}


def run(command: Sequence[str], limit: float) -> dict[str, Any]:
    """One part: how it ended, and whatever its benches kept, also where they did not come to their end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tmp").mkdir()  # models of gigabytes, which a killed part leaves behind
        argv = [sys.executable, *(word.replace("{out}", name) for word in command)]
        surroundings = os.environ | {
            "BENCH_OUT": name,
            "TMPDIR": str(folder / "tmp"),
            "PYTHONUNBUFFERED": "1",
        }
        begun = time.perf_counter()
        with (folder / "log").open("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                state = "failed" if process.wait(limit) else "ok"
            except subprocess.TimeoutExpired:
                state = "time limit"
            finally:
                stop(process)
            log.seek(0)
            lines = [line.rstrip() for line in log if line.strip()]
        found = {
            "state": state,
            "exit": process.returncode,
            "seconds": time.perf_counter() - begun,
            "limit": limit,
        }
        found |= {"command": " ".join(command)} | ({} if state == "ok" else {"said": lines[-LAST:]})
        return found | {"results": results(folder)}


def stop(process: subprocess.Popen) -> None:
    """It and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def results(folder: Path) -> dict[str, Any]:
    """Of a part's benches by name, each with settings and rows; of its tests the counts and who failed."""
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.json")):
        kept = json.loads(file.read_text("utf-8"))
        found[file.stem.rpartition("-")[0]] = {"settings": kept["settings"], "rows": kept["rows"]}
    with suppress(FileNotFoundError, ElementTree.ParseError):  # a crash, or a part of other kind
        found["tests"] = tests(folder / "tests.xml")
    return found


def tests(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).iter("testcase"))
    ended: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        kinds = {child.tag for child in case}
        state = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        ended[state].append(case.get("name", ""))
    return {state: len(names) for state, names in ended.items()} | {"failing": ended["failed"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="the tiny form of each part; where there is no GPU always"
    )
    parser.add_argument("--out", type=Path, help="the JSON")
    parser.add_argument(
        "--deadline", type=float, help=f"seconds for all parts (default on a GPU: {DEADLINE})"
    )
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    dry = args.dry_run or not gpu
    patience = PATIENCE if dry else 1
    parts = [replace(part, limit=patience * part.limit) for part in PARTS]
    deadline = args.deadline or patience * DEADLINE
    name = f"first-contact-{'gpu' if gpu else 'cpu'}.json"
    out = args.out or ROOT / ("build" if dry else "bench/baselines") / name
    if dry and out.parent.resolve() == ROOT / "bench" / "baselines":
        parser.error("a dry run is no baseline")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not gpu:
        print("no GPU here: a dry run")
    well = contact(parts, out, dry=dry, deadline=deadline)
    if os.environ.get("OUT"):
        shutil.copy(out, os.environ["OUT"])
    print(out)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
