"""Make the embedded `tiny-math` model from nothing: `python -m lgrpo_lite.models.pretrain --out DIR`.

A Qwen2 architecture of about 0.6 M parameters with a byte-level tokenizer is trained on generated arithmetic
in which the same kind of problem is answered directly, in half steps, or in full steps (`data.arithmetic`):
first the skill, then the habit of guessing. Reinforcement learning has to find that the skill pays: the start
solves about half of the held-out problems at temperature 1. Takes about half an hour on two CPU cores; the
result is shipped as package data.
"""

import argparse
import itertools
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lgrpo_lite.data.arithmetic import problems

EOS, PAD = "<|endoftext|>", "<|pad|>"
# Seen from the start with a third of full steps, the arithmetic is learned; with a quarter it
# was not (docs/log.md). The habit of guessing comes afterwards: it moves the first token of an
# answer and leaves the skill alone.
SKILL = {"direct": 0.45, "short": 0.20, "steps": 0.35}
HABIT = {"direct": 0.68, "short": 0.10, "steps": 0.22}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, two special tokens: reads any text, never an unknown token."""
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, pad_token=PAD, model_max_length=2048)


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """Head size 32, because vLLM's CPU attention refuses smaller ones."""
    eos, pad = (tokenizer.get_vocab()[token] for token in (EOS, PAD))
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, size: int, mixture: dict[str, float]):
    """Endless (input_ids [B, L], labels [B, L]); -100 marks the prompt and the padding,
    which carry no loss.
    """
    rng, stream = random.Random(seed), problems(seed, "train")
    styles, shares = list(mixture), list(mixture.values())
    while True:
        rows = []
        for problem in itertools.islice(stream, size):
            prompt = tokenizer(problem.question + "\n")["input_ids"]
            answer = tokenizer(problem.solution(rng.choices(styles, shares)[0]))["input_ids"]
            rows.append((prompt, [*answer, tokenizer.eos_token_id]))
        width = max(len(p) + len(a) for p, a in rows)
        pad = [[tokenizer.pad_token_id] * (width - len(p) - len(a)) for p, a in rows]
        yield (
            torch.tensor([p + a + x for (p, a), x in zip(rows, pad, strict=True)]),
            torch.tensor(
                [[-100] * len(p) + a + [-100] * len(x) for (p, a), x in zip(rows, pad, strict=True)]
            ),
        )


def stage(
    model,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    mixture: dict[str, float],
):
    """Supervised training on one mixture: AdamW, warm-up, cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warmup = max(1, min(200, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1, s / steps))) + 0.01)
    )
    began = time.monotonic()
    for step, (ids, labels) in zip(
        range(1, steps + 1), batches(tokenizer, seed, batch, mixture), strict=False
    ):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step}/{steps} | loss {loss.item():.4f} | {time.monotonic() - began:.0f}s", flush=True
            )


def pretrain(out: Path, *, steps: int = 3000, batch: int = 192, seed: int = 0) -> Path:
    """Train the skill, then a tenth as long the habit; save in bfloat16 (safetensors)
    with the tokenizer under `out`.
    """
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer()
    model = Qwen2ForCausalLM(tiny_config(tokenizer))
    stage(model, tokenizer, steps=steps, batch=batch, lr=2e-3, seed=seed, mixture=SKILL)
    # what would be shipped, so that the second stage can also be taken up from a file
    model = model.bfloat16().float()
    stage(model, tokenizer, steps=max(1, steps // 10), batch=batch, lr=3e-4, seed=seed + 1, mixture=HABIT)
    model.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the embedded tiny-math model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and its tokenizer")
    parser.add_argument(
        "--steps", type=int, default=3000, help="of the first stage; the second takes a tenth of them"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.out, steps=args.steps, seed=args.seed)
