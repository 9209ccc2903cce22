"""Peak memory and time of `export RUN merged` where there is no room for the model: random weights in the shape
of a published one. About ten minutes on 2 cores, and 15 GB of disk in --folder.

    OMP_NUM_THREADS=2 python bench/merge.py --folder /big/disk [--shape qwen2.5-3b] [--weights bf16,nf4]

The command runs in a process of its own, which is told that --free GiB are free. Its memory is read from /proc
while it runs: RSS counts pages of mapped files, which the kernel can take back; anonymous memory is the rest.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib import resources
from pathlib import Path

import measure
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.checks.check import check
from lgrpo_lite.export.merge import write_shards
from lgrpo_lite.export.slices import SlicedPolicy
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.read import load_recipe

GIB = 2**30
SHARD = 2 * 10**9
RANK = 16
COMMAND = """
import sys
from lgrpo_lite.cli.main import main
from lgrpo_lite.export import room
free = int(sys.argv.pop(1))
room.free_bytes = lambda device: free
sys.exit(main(sys.argv[1:]))
"""


def make_base(shape: str, folder: Path) -> None:
    """Random weights in bf16, written one shard at a time."""
    folder.mkdir(parents=True)
    text = (resources.files("lgrpo_lite") / "models" / "shapes" / f"{shape}.json").read_text("utf-8")
    (folder / "config.json").write_text(text, "utf-8")
    AutoTokenizer.from_pretrained(locate("builtin:tiny-math")).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    torch.manual_seed(0)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    write_shards(((name, random_tensor(shape)) for name, shape in shapes.items()), folder, SHARD)


def random_tensor(shape: torch.Size) -> torch.Tensor:
    made = torch.ones(shape, dtype=torch.bfloat16)
    for rows in made.split(4096) if len(shape) > 1 else ():
        rows.copy_(0.02 * torch.randn(rows.shape))
    return made


def make_run(base: Path, folder: Path, weights: str) -> None:
    """A run of that base, as one leaves it: its recipe and a checkpoint with an adapter that is not nothing."""
    settings = [
        f"model.id={base}",
        f"model.weights={weights}",
        f"model.lora.rank={RANK}",
        "data.eval.limit=8",
    ]
    recipe = check(load_recipe("tiny-math", settings))
    folder.mkdir(parents=True)
    (folder / "config.resolved.yaml").write_text(recipe.to_yaml(), "utf-8")
    (folder / "STATUS.json").write_text('{"state": "done"}', "utf-8")
    (folder / "logs").mkdir()
    policy = SlicedPolicy.of(recipe)
    for name, parameter in policy.model.named_parameters():
        if not parameter.requires_grad:
            continue
        path, _, leaf = name.rpartition(".")
        std = 0.01 if "lora_B" in name else 0.02
        made = torch.nn.Parameter(torch.empty(parameter.shape).normal_(std=std))
        setattr(policy.model.get_submodule(path), leaf, made)
    state = checkpoint.State(step=1, policy_version=1, prompts_drawn=1)
    checkpoint.save(folder / "checkpoints", policy, {}, state, keep_last=1, keep_best=0)


class Watched:
    """The most that a process has, in bytes."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.rss = self.anonymous = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            try:
                text = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
            except OSError:
                break
            values = dict(line.split(":", 1) for line in text.splitlines())
            if "VmHWM" in values:
                self.rss = max(self.rss, _bytes(values["VmHWM"]))
                self.anonymous = max(self.anonymous, _bytes(values["RssAnon"]))
            time.sleep(0.02)

    def join(self) -> None:
        self._thread.join()


def _bytes(cell: str) -> int:
    return int(cell.split()[0]) * 1024


def merged(run: Path, out: Path, free: int) -> dict:
    """What the command says, and what it took."""
    command = [
        sys.executable,
        "-c",
        COMMAND,
        str(free),
        "export",
        str(run),
        "merged",
        "--out",
        str(out),
        "--json",
    ]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watched = Watched(process)
    said, _ = process.communicate()
    watched.join()
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}: {said}")
    result = json.loads(said)["result"]
    shard = max(file.stat().st_size for file in out.glob("*.safetensors"))
    return {
        "seconds": time.monotonic() - began,
        "peak_rss_gb": watched.rss / 1e9,
        "peak_anonymous_gb": watched.anonymous / 1e9,
        "largest_shard_gb": shard / 1e9,
        "over_shard_gb": (watched.rss - shard) / 1e9,
        "in_slices": result["in_slices"],
        "check": result["check"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for base, run and result; emptied")
    parser.add_argument("--shape", default="qwen2.5-3b")
    parser.add_argument("--weights", default="bf16,nf4")
    parser.add_argument("--free", type=float, default=6.0, help="GiB that the command is told are free")
    args = parser.parse_args()
    work = args.folder / "merge-bench"
    shutil.rmtree(work, ignore_errors=True)
    try:
        make_base(args.shape, work / "base")
        for weights in args.weights.split(","):
            run, out = work / f"run-{weights}", work / "out"
            make_run(work / "base", run, weights)
            row = merged(run, out, int(args.free * GIB))
            shutil.rmtree(out)
            name = f"{args.shape}, {weights}"
            print(f"{name}: {row}", flush=True)
            settings = {"rank": RANK, "threads": os.environ.get("OMP_NUM_THREADS"), "free_gib": args.free}
            measure.keep("merge", settings, {name: row})
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
