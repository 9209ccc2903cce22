"""`make gpu-check`: the recipe qwen3b-math as a user runs it, on random weights:
selftest, three steps, what they took.

    python bench/gpu_check.py [--engine vllm|transformers|unsloth]     needs CUDA and the engine; no network
    python bench/gpu_check.py --tiny                                   a tiny shape without a GPU: tries the script itself

Random weights solve nothing, so every reward is a coin; what is looked at is memory, speed and the proofs.
The model is made, and each command run, by a process of its own that takes a larger card for one of 24 GiB;
this one never touches the GPU. The peak is the most that was taken while those two lived, by nvidia-smi,
vLLM's own memory included. Exit: that of the first command that failed, whose last words the printed JSON
has, or 4 where the peak is above 24 GiB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import measure
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lgrpo_lite.machine.doctor import used_gpu
from lgrpo_lite.machine.facts import SMI_TIMEOUT, read_machine
from lgrpo_lite.plan.plan import CONTEXT
from lgrpo_lite.policy.load import locate

GIB = 2**30
CAP = 24 * GIB
KV_CACHE_GB = 6
LAST = 12  # lines that a failed command is quoted with
TINY = {
    "hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 256, "vocab_size": 1024, "dtype": "float32", "layer_types": None,
}  # fmt: skip
COIN = "import random\n\n\ndef coin(completion: str) -> float:\n    return float(random.random() < 0.5)\n"

# What a command runs in. A larger card says that it has `cap` bytes, and what is beyond them is taken; so
# the run cuts its passes as it would there. torch's allocator is held to its part of that, less the
# context, which it does not count. It does count vLLM's pools, and goes on counting the keys and values
# whose memory vLLM gave back before an update (lgrpo_lite/policy/memory.py, Pools): without `kv` more, the
# trainer would have so much less than on a real card. While the cache is awake that lets torch go beyond
# the cap; the peak seen from outside shows it.
CAPPED = """
import sys, torch
cap, kv, context = (int(word) for word in sys.argv[1:4])
if torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory > cap:
    whole = torch.cuda.mem_get_info
    def of_the_cap(device=None):
        free, total = whole(device)
        return max(0, free - (total - cap)), cap
    torch.cuda.mem_get_info = torch.cuda.memory.mem_get_info = of_the_cap
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (cap - context + kv) / total))
from lgrpo_lite.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def write_model(out: Path, *, tiny: bool) -> None:
    """Random weights in the 3B shape of the package, with the embedded model's tokenizer."""
    shape = json.loads(
        (Path(locate("builtin:tiny-math")).parent / "shapes" / "qwen2.5-3b.json").read_text("utf-8")
    )
    if tiny:
        shape |= TINY
    config = AutoConfig.for_model(
        **{k: v for k, v in shape.items() if v is not None and not k.startswith("_")}
    )
    config.eos_token_id = config.bos_token_id = None
    torch.manual_seed(0)
    with measure.device():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(out)
    for file in Path(locate("builtin:tiny-math")).glob("token*"):
        shutil.copy(file, out)


class Peak:
    """The most memory of the GPU that was taken since it was made, beyond what was taken
    before: as nvidia-smi tells it.
    """

    def __init__(self) -> None:
        gpu, program = used_gpu(read_machine()), shutil.which("nvidia-smi")
        self._before: int | None = None
        self._most = 0
        self._smi: subprocess.Popen[str] | None = None
        if gpu and program:
            asked = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "50", "-i", gpu.uuid]
            self._smi = subprocess.Popen([program, *asked], stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._watch, args=(self._smi,), daemon=True).start()
            until = time.monotonic() + SMI_TIMEOUT
            while self._before is None and self._smi.poll() is None and time.monotonic() < until:
                time.sleep(0.05)

    def _watch(self, smi: subprocess.Popen[str]) -> None:
        assert smi.stdout is not None
        for line in smi.stdout:
            if line.strip().isdigit():
                used = int(line) * 2**20
                self._before = used if self._before is None else self._before
                self._most = max(self._most, used)

    def stop(self) -> int | None:
        """Bytes; None where nothing tells."""
        if self._smi is not None:
            self._smi.kill()
            self._smi.wait()
        return None if self._before is None else self._most - self._before


def command(argv: list[str]) -> dict[str, Any]:
    """Run it with its output on our stderr; its exit code and seconds, and where it failed
    the last lines it had for stderr.
    """
    begun = time.perf_counter()
    last: deque[str] = deque(maxlen=LAST)
    with subprocess.Popen(
        argv, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            last.append(line.rstrip())
    found = {"exit": process.returncode, "seconds": time.perf_counter() - begun}
    return found | ({"said": [line for line in last if line]} if process.returncode else {})


def capped(engine: str, argv: list[str]) -> dict[str, Any]:
    """A command of ours on what looks like a card of 24 GiB."""
    kv = 0 if engine == "transformers" else KV_CACHE_GB * GIB
    return command([sys.executable, "-c", CAPPED, str(CAP), str(kv), str(int(CONTEXT)), *argv])


def settings_of(engine: str, folder: Path, *, tiny: bool, tokens: int) -> list[str]:
    found = [
        f"model.id={folder / 'model'}", "model.revision=null", f"rollout.engine={engine}", "data.eval=[]",
        "data.train=[{task: arithmetic, limit: 256}]", "data.template=plain", "data.system=null", "train.steps=3",
        f"rewards=[{{use: '{folder / 'coin.py'}:coin'}}]", f"model.max_new_tokens={tokens}", "export.formats=[]",
        "safety.sync_proof_every=1",
    ]  # fmt: skip
    if tiny:
        found += [
            "recipe.min_vram_gb=null",
            "model.max_prompt_tokens=64",
            "rollout.prompts_per_step=4",
            "rollout.group_size=4",
        ]
    if engine != "transformers":  # it has no cache of its own to be sized
        found.append(f"rollout.vllm.kv_cache_gb={0.1 if tiny else KV_CACHE_GB}")
    return found


def run(engine: str, *, tiny: bool, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "coin.py").write_text(COIN, "utf-8")
        made = command(
            [sys.executable, __file__, "--write-model", str(folder / "model"), *(["--tiny"] if tiny else [])]
        )
        if made["exit"]:
            return {"model": made}
        settings = settings_of(engine, folder, tiny=tiny, tokens=tokens)
        runs = ["--runs", str(folder / "runs"), "--name", "check", "--ui", "plain"]
        peak = Peak()
        found = {
            "selftest": capped(engine, ["selftest", "qwen3b-math", *settings]),
            "train": capped(engine, ["train", "qwen3b-math", *settings, *runs]),
        }
        taken = peak.stop()
        return (
            found
            | {"peak_gib": None if taken is None else taken / GIB}
            | steps_of(folder / "runs" / "check" / "metrics.jsonl")
        )


def steps_of(metrics: Path) -> dict[str, list]:
    """Speed and proofs of each step; none of a run that did not get so far."""
    steps = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    trained = [row for row in steps if row["trained_tokens"]]
    return {
        "rollout_tokens_per_s": [row["rollout_tokens"] / row["seconds"]["rollout"] for row in steps],
        "trained_tokens_per_s": [row["trained_tokens"] / row["seconds"]["update"] for row in trained],
        "disagreement": [row["disagreement"] for row in steps],
    }


def exit_of(found: dict[str, Any]) -> int:
    failed = [
        found[name]["exit"] for name in ("model", "selftest", "train") if found.get(name, {}).get("exit")
    ]
    if failed:
        return failed[0]
    return 4 if (found["peak_gib"] or 0) > CAP / GIB else 0


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--engine", default="vllm", choices=("vllm", "transformers", "unsloth"))
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--tokens", type=int, default=512, help="longest answer")
    arguments.add_argument("--write-model", type=Path, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.write_model:
        write_model(args.write_model, tiny=args.tiny)
        return 0
    if not args.tiny and not torch.cuda.is_available():
        print("no GPU here; --tiny tries the script without one", file=sys.stderr)
        return 3
    tokens = 16 if args.tiny else args.tokens
    found = run(args.engine, tiny=args.tiny, tokens=tokens)
    settings = {"answers": tokens, "cap_gib": CAP / GIB, "kv_cache_gb": KV_CACHE_GB}
    print(json.dumps(found, indent=1))
    print(measure.keep("gpu-check", settings, {args.engine: found}, trial=args.tiny), file=sys.stderr)
    return exit_of(found)


if __name__ == "__main__":
    sys.exit(main())
