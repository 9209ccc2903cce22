"""What looking costs: opening a folder of 100,000 steps, following it, and a step of training
with the live view and without.

    python bench/view.py                       # five minutes on two cores; writes bench/baselines/view-cpu.json

The training step is paired: blocks of steps with the view's process on a terminal and
without it, in turn, in one process.
"""

import argparse
import fcntl
import json
import os
import pty
import select
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

import psutil
import torch
from measure import keep

from lgrpo_lite.checks.check import check
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.folder.samples import samples
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step

STEPS = (100, 100_000)
FOLLOWED = 30  # seconds
SIZE = (120, 40)
BLOCKS, BLOCK = 40, 4  # of steps, with the view and without


class Shown:
    """`command` on a terminal of its own, what it draws thrown away; `first` is set with its first frame."""

    def __init__(self, command: list[str], **options):
        self.own, other = pty.openpty()
        fcntl.ioctl(self.own, termios.TIOCSWINSZ, struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {
            "TERM": "xterm-256color"
        }
        self.first, self.over = threading.Event(), False
        self.process = subprocess.Popen(
            command, stdout=other, stderr=other, env=environment, start_new_session=True, **options
        )
        os.close(other)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while not self.over:
            try:
                if select.select([self.own], [], [], 0.5)[0] and b"samples" in os.read(self.own, 1 << 20):
                    self.first.set()
            except OSError:
                return

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.over = True
        self.thread.join()
        os.close(self.own)


def watching(path: Path) -> dict[str, float]:
    """Seconds to the first frame and the share of a core that following takes, one
    step being written each second.
    """
    begin = time.perf_counter()
    shown = Shown([sys.executable, "-m", "lgrpo_lite", "watch", str(path)])
    shown.first.wait(60)
    opened = time.perf_counter() - begin
    process, line = psutil.Process(shown.process.pid), last_line(path)
    used = sum(process.cpu_times()[:2])
    begin, step = time.perf_counter(), line["step"]
    while time.perf_counter() - begin < FOLLOWED:
        step += 1
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line | {"step": step}) + "\n")
        time.sleep(1)
    spent = time.perf_counter() - begin
    share = (sum(process.cpu_times()[:2]) - used) / spent
    memory = process.memory_info().rss
    shown.end()
    return {"opened_s": opened, "share_of_a_core": share, "resident_mib": memory / 2**20}


def last_line(path: Path) -> dict:
    with (path / "metrics.jsonl").open("rb") as file:
        file.seek(-8192, 2)
        return json.loads(file.read().splitlines()[-1])


def lengthened(made: Path, steps: int, to: Path) -> Path:
    """A copy of a run's folder with so many steps, which says that this process trains it."""
    shutil.copytree(made, to, symlinks=True)
    rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    with (to / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(rows[i % len(rows)] | {"step": i + 1}) + "\n" for i in range(steps))
    last = to / "completions" / f"step-{steps:06d}.jsonl.gz"
    shutil.copy(sorted((made / "completions").glob("*.gz"))[-1], last)
    folder = RunFolder(to)
    folder.set_status("training", steps, alarms=[])
    return to


def training(path: Path, blocks: int) -> dict[str, float]:
    """Ratio of a step's time with the live view to its time without, over pairs of
    blocks; and what making one takes.
    """
    recipe = check(load_recipe("tiny-math", ["data.eval=[]", "train.steps=100000", f"optim.lr={1e-9}"]))
    run, folder = build(recipe), RunFolder(path)
    folder.open()
    folder.write("config.resolved.yaml", recipe.to_yaml())
    folder.set_status("training", 0)
    folder.follow(recipe.model_dump(mode="json", by_alias=True))
    run.on_phase = folder.at
    step, ratios, start = 0, [], run.prompts.state_dict()

    def block(seed: int) -> float:
        """Seconds of a block. One seed is the same work each time: prompts, tokens,
        and a policy that hardly moves.
        """
        nonlocal step
        torch.manual_seed(seed)
        run.prompts.load_state_dict(start)
        begin = time.perf_counter()
        for _ in range(BLOCK):
            step += 1
            record, groups = train_step(step, run)
            folder.record(record, samples(groups, 4, run.policy.tokenizer.decode))
        return time.perf_counter() - begin

    view = None
    with folder.alive(lambda: False):
        block(0)
        for number in range(blocks):
            taken = {}
            for shown in ((True, False), (False, True))[number % 2]:
                if shown:
                    view = Shown(
                        [sys.executable, "-m", "lgrpo_lite.cli.terminal.live", str(path)],
                        stdin=subprocess.PIPE,
                    )
                    view.first.wait(60)
                taken[shown] = block(number)
                if shown and view is not None:
                    view.end()
            ratios.append(taken[True] / taken[False])
    ranked = sorted(ratios)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    return {"ratio_median": statistics.median(ranked), "ratio_mean": statistics.fmean(ranked), "standard_error": error,
            "pairs": len(ratios), "steps_a_block": BLOCK}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    blocks = parser.parse_args().blocks
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        found: dict = {"training": training(root / "made", blocks)}
        print(json.dumps(found["training"]))
        for steps in STEPS:
            path = lengthened(root / "made", steps, root / str(steps))
            found[f"watch, {steps} steps"] = watching(path)
            print(
                steps,
                json.dumps(found[f"watch, {steps} steps"]),
                f"{(path / 'metrics.jsonl').stat().st_size / 2**20:.0f} MiB",
            )
    keep("view", {"terminal": "x".join(map(str, SIZE)), "followed_s": FOLLOWED}, found)


if __name__ == "__main__":
    main()
