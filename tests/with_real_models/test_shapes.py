"""Tiny random models in the shapes that people bring, with the tokenizers and chat templates of the real ones: two
steps of training, both exports, all of it looked at.

The tokenizers are those of tokenizers.sh. Granite's hybrid and gpt-oss get Qwen's: the shape is what is tried.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from shapes import saved
from support import lgrpo
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.batch import for_scoring
from lgrpo_lite.data.template import tokens
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.layout import split
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.build import build

FOLDER = os.environ.get("LGRPO_REAL_MODELS")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs real tokenizers: make test-real")

# tokenizer, weights, layouts that give what rows give, and settings of the run
ALL, ROWS = "rows, packed, shared", "rows"
HYBRID = "3 of 4 layers are linear_attention, no softmax attention"
SINKS = "sliding windows, soft-caps and sinks of attention are for the layout `rows`"
SHAPES = {
    "qwen2.5": ("qwen2_5", "nf4", ALL, None, ["data.system=Answer briefly."]),
    "qwen3": ("qwen3", "fp32", ALL, None, ["data.chat_template_kwargs.enable_thinking=false"]),
    "llama3": ("llama3_1", "fp32", ALL, None, ["data.few_shot=[{question: 1+1, answer: '2'}]"]),
    "gemma3-text": ("gemma3", "fp32", ALL, "only for a batch without a longer sequence", []),
    "gemma3": ("gemma3", "nf4", ALL, "only for a batch without a longer sequence", ["data.prefill='The answer is '"]),
    "qwen3.5": ("qwen3", "nf4", ROWS, HYBRID, []),
    "granite-hybrid": ("qwen2_5", "fp32", ROWS, HYBRID, []),
    "gpt-oss": ("qwen2_5", "fp32", ROWS, SINKS, []),
}  # fmt: skip
SMALL = [
    "model.lora.rank=4", "model.max_prompt_tokens=128", "model.max_new_tokens=12", "data.template=chat", "train.steps=2",
    "train.save_every=2", "rollout.prompts_per_step=2", "rollout.group_size=4", "data.train.limit=8", "data.eval.limit=2",
    "eval.k=1", "safety.baseline_check=false", "safety.sync_proof_every=0", "export.formats=[adapter,merged]",
]  # fmt: skip
REWARD = "def varied(completion, reference):\n    return len(set(completion)) % 5 / 4\n"
NEAR = 2e-5  # nats a token between sampler and training pass, in float32


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_trains_and_comes_out_whole(tmp_path, tokenizers, shape):
    name, weights, layouts, why, more = SHAPES[shape]
    tokenizer = AutoTokenizer.from_pretrained(tokenizers / name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = saved(shape, tmp_path / "base", tokenizer)
    (tmp_path / "mine.py").write_text(REWARD)
    settings = [
        f"model.id={base}", f"model.weights={weights}", f"rewards=[{{use: {tmp_path}/mine.py:varied}}]", *SMALL, *more,
    ]  # fmt: skip
    assert lgrpo("recipe", "tiny-math", "--runs", tmp_path, "--name", "one", "--ui", "none", *settings) == 0
    run_folder = tmp_path / "one"
    _trained(run_folder, layouts, why)
    run = build(load_recipe(str(run_folder / "config.resolved.yaml")))
    _every_layout_is_the_sampler(run)
    checkpoint.load(checkpoint.find(run_folder / "checkpoints", "last")[0], run.policy)
    _exported(run, base, run_folder / "export", weights)


def _trained(folder: Path, layouts: str, why: str | None) -> None:
    """Two updates, whose log-probs are the sampler's; the layouts that were taken, and why no others."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "disagreement" in step]
    assert len(steps) == 2 and all(step["grad_norm"] > 0 for step in steps)
    assert all(abs(step["disagreement"]) < NEAR for step in steps)
    chosen = (folder / "chosen.json").read_text() if (folder / "chosen.json").exists() else ""
    events = (folder / "events.jsonl").read_text() + chosen
    assert layouts in events
    assert why is None or why in events


def _every_layout_is_the_sampler(run) -> None:
    policy = run.policy
    with run.engine.serving(policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 3, SamplingParams(1.0, 12))
        pairs = []
        for prompt, row in zip(run.eval_prompts, answers, strict=True):
            pairs += [(prompt, completion) for completion in row]
        batch = for_scoring(pairs)
        for layout in policy.layouts_for(batch):
            for order, micro in split(batch, 10**6, (layout,)):
                with torch.no_grad():
                    gap = policy.logprobs(micro).logp - batch.sampler_logp[batch.tokens_of(order)]
                assert gap.abs().mean() < NEAR, layout


def _exported(run, base: Path, exports: Path, weights: str) -> None:
    merged = exports / "merged"
    given, written = (json.loads((folder / "config.json").read_text()) for folder in (base, merged))
    assert written["architectures"] == given["architectures"]
    named = getattr(transformers, given["architectures"][0])
    model, info = named.from_pretrained(merged, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = load_file(base / "model.safetensors"), load_file(merged / "model.safetensors")
    assert before.keys() == after.keys()
    targeted = {
        name.split(".")[-2] for name, _ in run.policy.model.named_modules() if name.endswith(".lora_A")
    }
    for name, tensor in before.items():
        if "vis" in name or "projector" in name or name.split(".")[-2] not in targeted:
            assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert (merged / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()
    _answers_as_the_policy(run, model.eval(), merged)
    if weights == "fp32":
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        _answers_as_the_policy(
            run, PeftModel.from_pretrained(plain, exports / "adapter").eval(), exports / "adapter"
        )


def _answers_as_the_policy(run, model, folder: Path) -> None:
    """Greedy, asked as one who serves it asks: by the chat template that came with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 1, SamplingParams(0.0, 12))
    clock = run.recipe.data.date.strftime
    for prompt, (answer,) in zip(run.eval_prompts, answers, strict=True):
        asked = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, strftime_now=clock)[
            "input_ids"
        ]
        assert tuple(ids) == prompt.token_ids == tokens(prompt.text, run.recipe.data, run.policy.tokenizer)
        got = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0, len(ids) :].tolist()
        assert got[: len(answer.token_ids)] == list(answer.token_ids)
