"""What fits into 24 GiB: 3B and 7B shapes in NF4 with LoRA, ours and TRL's, growing
answers until the memory ends.

    python bench/fit.py                   needs CUDA; no network: random weights from the shapes' configs
    python bench/fit.py --answers 1024,4096     no search: just whether these lengths fit; a few minutes
    python bench/fit.py --tiny            a tiny shape and no cap, on any machine: tries the script itself

For each shape: the longest answer whose update fits at G = 8 and a prompt of 512, tokens a second there, and
the peak. The model is written to a folder once and loaded by the same code as a user's.
"""

import argparse
import gc
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from step import G, answers_of, ours
from transformers import AutoModelForCausalLM, Qwen2Config

from lgrpo_lite.policy.load import attach_adapter, load_base, load_tokenizer
from lgrpo_lite.policy.memory import layers_of, recompute
from lgrpo_lite.recipe.schema import Lora, Model

KEYS = "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"
SHAPES = {
    name: dict(zip(KEYS, sizes, strict=True))
    for name, sizes in {
        "3B": (2048, 11008, 36, 16, 2),
        "7B": (3584, 18944, 28, 28, 4),
        "tiny": (128, 256, 2, 4, 2),
    }.items()
}
CAP_GIB, RANK = 24, 32


def write(shape: str, folder: Path) -> None:
    """Random weights as a checkpoint; Qwen2.5's vocabulary, tied only where the real one is."""
    vocabulary = 1000 if shape == "tiny" else 151936 if shape == "3B" else 152064
    config = Qwen2Config(
        **SHAPES[shape], vocab_size=vocabulary, tie_word_embeddings=shape != "7B", max_position_embeddings=65536,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with measure.device():
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def loaded(folder: Path) -> Any:
    model = Model(id=str(folder), weights="nf4", lora=Lora(rank=RANK, alpha=2 * RANK))
    return attach_adapter(load_base(model, measure.device()), model, seed=0)


def our_update(folder: Path) -> Callable[[list], Any]:
    update, policy = ours(
        loaded(folder),
        ("rows", "packed", "shared"),
        dtype=torch.bfloat16 if torch.cuda.is_available() else None,
    )
    recompute(policy.base, len(layers_of(policy.base)))
    return update


def trl_update(folder: Path) -> Callable[[list], Any]:
    from trl_peer import TrlUpdate

    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    on_gpu = torch.cuda.is_available()
    return TrlUpdate(
        loaded(folder), tokenizer, per_device_rows=1, gradient_checkpointing=True, bf16=on_gpu
    ).update


def longest(update: Callable[[list], Any], limit: int, vocabulary: int) -> dict[str, Any]:
    """Doubles the answers until one update does not fit, then halves the gap four times."""
    best: dict[str, Any] = {}
    step = 512 if limit > 512 else 64
    low, high = 0, None
    length = step
    while length <= limit and (high is None or high - low > step // 2):
        found = tried(update, length, vocabulary)
        if found["fits"]:
            low, best = length, found
        else:
            high = length
        length = 2 * low if high is None else (low + high) // 2
    return best


def tried(update: Callable[[list], Any], length: int, vocabulary: int) -> dict[str, Any]:
    """An update on one group of answers of that length, twice, the second one timed. Does it fit?"""
    answers = answers_of(1, min(512, length), length, length, vocabulary)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        update(answers)
        spent = measure.seconds(lambda: update(answers))
    except torch.OutOfMemoryError:
        return {"fits": False, "answers": length}
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"fits": True, "answers": length, "answer_tokens_per_second": G * length / spent, "peak_gib": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--shapes", default="3B,7B")
    parser.add_argument(
        "--answers", help="lengths to try, comma-separated; default: search the longest that fits"
    )
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("bench/fit.py measures a GPU: there is none here; --tiny tries the script on a CPU")
    lengths = [int(length) for length in args.answers.split(",")] if args.answers else []
    settings = {"cap_gib": CAP_GIB, "G": G, "lora_rank": RANK, "prompt": 512}
    for shape in ["tiny"] if args.tiny else args.shapes.split(","):
        with tempfile.TemporaryDirectory() as name:
            write(shape, Path(name))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total))
            makers = {"ours": our_update} | ({"TRL": trl_update} if importlib.util.find_spec("trl") else {})
            for who, make in makers.items():
                update = make(Path(name))
                if lengths:
                    rows = {f"{shape}, {who}, {length:,}": tried(update, length, 250) for length in lengths}
                else:
                    rows = {f"{shape}, {who}": longest(update, 128 if args.tiny else 32768, 250)}
                for row, found in rows.items():
                    print(f"{row}: {found}", flush=True)
                # now: a later one may take all the time there is
                print(measure.keep("fit", settings, rows, trial=args.tiny))
                del update
                gc.collect()
            if torch.cuda.is_available():
                torch.cuda.set_per_process_memory_fraction(1.0)


if __name__ == "__main__":
    main()
