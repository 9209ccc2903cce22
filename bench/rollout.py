"""Sampling through our engine beside vLLM alone: one LLM object, the same adapter, the
same requests, interleaved rounds.

    OMP_NUM_THREADS=1 python bench/rollout.py            needs vLLM (tests/with_vllm/install.sh makes a venv of it for a CPU)

vLLM alone is LLM.generate with the adapter loaded beforehand. Through the engine is the whole rollout of a
step: `serving` (an adapter that changed each time is written, handed over and the prefix cache reset), the
requests, the answers as Completions with their text. Rows: the engine with an adapter that changed, with one
that did not, and the transformers engine on the same policy.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import interleaved, keep, ratios

from lgrpo_lite.checks.check import check
from lgrpo_lite.engines.base import SamplingParams, open_engine
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.run import Run


def small(weights: str, tokens: int) -> Recipe:
    fixed = [
        "rollout.engine=vllm",
        f"model.weights={weights}",
        f"model.max_new_tokens={tokens}",
        "rollout.vllm.kv_cache_gb=0.3",
    ]
    return check(load_recipe("tiny-math", [*fixed, "data.eval=[]", "data.train.limit=64"]))


def alone(run: Run, sampling: SamplingParams, prompts):
    """What a user of vLLM alone would write."""
    from vllm import SamplingParams as VllmParams

    llm = run.engine.llm
    with run.engine.serving(run.policy) as sampler:
        request = sampler.request
    params = VllmParams(
        n=run.recipe.rollout.group_size, temperature=1.0, max_tokens=sampling.max_new_tokens, logprobs=0,
        stop_token_ids=sorted(run.policy.eos_ids), detokenize=False,
    )  # fmt: skip
    asked = [{"prompt_token_ids": list(p.token_ids)} for p in prompts]
    return lambda: llm.generate(asked, params, lora_request=request, use_tqdm=False)


def through(run: Run, sampling: SamplingParams, prompts, *, changed: bool):
    def call():
        if changed:
            with torch.no_grad():
                # a write: the adapter counts as another one, its numbers are the same
                next(iter(run.policy.trainable())).mul_(1.0)
        with run.engine.serving(run.policy) as sampler:
            return sampler.generate(prompts, run.recipe.rollout.group_size, sampling)

    return call


def measured(weights: str, rounds: int) -> dict[str, dict[str, float]]:
    """Ratios to vLLM alone, each inside a round."""
    run = build(small(weights, 64))
    prompts, sampling = run.prompts.prompts[:16], SamplingParams(1.0, 64)
    rollout = run.recipe.rollout.model_copy(update={"engine": "transformers"})
    other = copy.copy(run)
    other.engine = open_engine(run.recipe.model_copy(update={"rollout": rollout}))
    calls = {
        "adapter changed": through(run, sampling, prompts, changed=True),
        "vLLM alone": lambda: alone(run, sampling, prompts)(),
        "adapter as before": through(run, sampling, prompts, changed=False),
        "transformers": through(other, sampling, prompts, changed=False),
    }
    found = ratios(interleaved(calls, rounds), "vLLM alone")
    for name, row in found.items():
        speed = 1 / row["median"]
        print(
            f"{weights} {name:18} {speed:.2f} x the speed of vLLM alone ({1 / row['max']:.2f} to {1 / row['min']:.2f})"
        )
    run.engine.close()
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--weights", default="fp32,nf4")
    args = arguments.parse_args()
    rows = {weights: measured(weights, args.rounds) for weights in args.weights.split(",")}
    print(
        keep("rollout", {"prompts": 16, "group_size": 8, "max_new_tokens": 64, "rounds": args.rounds}, rows)
    )


if __name__ == "__main__":
    main()
