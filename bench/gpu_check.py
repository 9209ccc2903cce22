"""`make gpu-check`: the recipe qwen3b-math as a user runs it, on random weights: selftest, three steps, what they took.

    python bench/gpu_check.py [--engine vllm|unsloth]     needs CUDA and the engine; no network
    python bench/gpu_check.py --tiny                      a tiny shape without a GPU: tries the script itself

Random weights solve nothing, so every reward is a coin; what is looked at is memory, speed and the
proofs. The peak is the most that was taken of the GPU while the run lived, vLLM's own memory included; torch's part is capped so
that all of it stays within 24 GiB, and the answers are cut to what fits a short run.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))

import measure

from lgrpo_lite.policy.load import locate

CAP, TINY = (
    24 * 2**30,
    {"hidden_size": 128, "head_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
)
COIN = "import random\n\n\ndef coin(completion: str) -> float:\n    return float(random.random() < 0.5)\n"


def model_folder(folder: Path, *, tiny: bool) -> Path:
    """Random weights in the 3B shape of the package, with the embedded model's tokenizer."""
    shape = json.loads((Path(locate("builtin:tiny-math")).parent / "shapes" / "qwen2.5-3b.json").read_text("utf-8"))
    if tiny:
        shape |= TINY | {"intermediate_size": 256, "vocab_size": 1024, "dtype": "float32", "layer_types": None}
    out = folder / "model"
    config = AutoConfig.for_model(**{k: v for k, v in shape.items() if v is not None and not k.startswith("_")})
    config.eos_token_id = config.bos_token_id = None
    torch.manual_seed(0)
    with measure.device():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(out)
    for file in Path(locate("builtin:tiny-math")).glob("token*"):
        shutil.copy(file, out)
    return out


class Peak:
    """The most memory of the GPU that was taken since it was made, seen from outside of any allocator."""

    def __init__(self):
        self.bytes, self._on = 0, torch.cuda.is_available()
        if self._on:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        begun = torch.cuda.mem_get_info()[0]
        while self._on:
            self.bytes = max(self.bytes, begun - torch.cuda.mem_get_info()[0])
            time.sleep(0.02)

    def stop(self) -> int:
        self._on = False
        return self.bytes


def apart(argv: list[str]) -> int:
    """A command in a process of its own, since an engine's memory goes with its process; torch's part of the GPU is capped."""
    lines = (
        "import sys, torch",
        f"share = {CAP} / torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 1.0",
        "torch.cuda.is_available() and torch.cuda.set_per_process_memory_fraction(min(1.0, share))",
        "from lgrpo_lite.cli.main import main",
        "sys.exit(main(sys.argv[1:]))",
    )
    return subprocess.run([sys.executable, "-c", "\n".join(lines), *argv]).returncode


def run(engine: str, *, tiny: bool, tokens: int) -> dict:
    folder = Path(tempfile.mkdtemp())
    (folder / "coin.py").write_text(COIN, "utf-8")
    settings = [
        f"model.id={model_folder(folder, tiny=tiny)}", "model.revision=null", f"rollout.engine={engine}", "data.eval=[]",
        "data.train=[{task: arithmetic, limit: 256}]", "data.template=plain", "data.system=null", "train.steps=3",
        f"rewards=[{{use: '{folder / 'coin.py'}:coin'}}]", f"model.max_new_tokens={tokens}", "export.formats=[]",
        "safety.sync_proof_every=1",
    ]  # fmt: skip
    if tiny:
        settings += [
            "recipe.min_vram_gb=null",
            "rollout.vllm.kv_cache_gb=0.1",
            "model.max_prompt_tokens=64",
            "rollout.prompts_per_step=4",
            "rollout.group_size=4",
        ]
    else:
        settings.append("rollout.vllm.kv_cache_gb=6")
    peak = Peak()
    tested = apart(["selftest", "qwen3b-math", *settings])
    trained = apart(["train", "qwen3b-math", *settings, "--runs", str(folder / "runs"), "--name", "check", "--ui", "plain"])
    steps = [json.loads(line) for line in (folder / "runs" / "check" / "metrics.jsonl").read_text("utf-8").splitlines()]
    shutil.rmtree(folder)
    return {
        "selftest": tested, "exit": trained, "peak_gib": peak.stop() / 2**30,
        "rollout_tokens_per_s": [row["rollout_tokens"] / row["seconds"]["rollout"] for row in steps],
        "trained_tokens_per_s": [row["trained_tokens"] / row["seconds"]["update"] for row in steps if row["trained_tokens"]],
        "disagreement": [row["disagreement"] for row in steps],
    }  # fmt: skip


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--engine", default="vllm", choices=("vllm", "unsloth"))
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--tokens", type=int, default=512, help="longest answer")
    args = arguments.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        print("no GPU here; --tiny tries the script without one", file=sys.stderr)
        return 3
    rows = run(args.engine, tiny=args.tiny, tokens=16 if args.tiny else args.tokens)
    print(json.dumps(rows, indent=1))
    if not args.tiny:
        print(measure.keep("gpu-check", {"engine": args.engine, "answers": args.tokens, "cap_gib": 24}, {args.engine: rows}))
    within = rows["peak_gib"] <= CAP / 2**30
    return rows["selftest"] or rows["exit"] or (0 if within else 4)


if __name__ == "__main__":
    sys.exit(main())
