"""The update and the whole step beside TRL 1.16's GRPOTrainer: same model, adapter,
prompts, answers and advantages.

    python bench/step.py                 all cases, ten minutes on two cores
    python bench/step.py --layouts       rows, packed and shared prompt of our own side by side
    python bench/step.py --quick         two cases of each table, none with long answers; --tiny tries the script itself

Both train the same LoRA model made from a config; answers are made up, so every one has an advantage and is
trained. An update is forward, backward, clip and AdamW. TRL runs with its defaults (8 rows a device), or 32
rows where that is faster, and shuffles rows into micro-batches padded to the whole batch; ours runs with the
defaults of a recipe. A whole step adds the same generation to both.
"""

import argparse
import copy
import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import measure
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lgrpo_lite.batch import Answer as Trained
from lgrpo_lite.batch import TrainBatch, flatten
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.layout import LAYOUT, size_of, split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.load import load_tokenizer, locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.schema import Model
from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score

Answer = tuple[list[int], list[int], list[float], float]
MICRO_TOKENS = 16384
SHAPES: dict[str, dict[str, int]] = {
    "small": {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 4},
    "vocabulary 152k": {"vocab_size": 151936, "hidden_size": 256, "num_hidden_layers": 2},
}
G = 8


def model_of(shape: str) -> Any:
    """A LoRA model: the embedded one, or random weights of a shape."""
    torch.manual_seed(0)
    if shape == "tiny":
        base = AutoModelForCausalLM.from_pretrained(locate("builtin:tiny-math"), dtype=torch.float32)
    else:
        own = SHAPES[shape]
        base = Qwen2ForCausalLM(Qwen2Config(
            **own, intermediate_size=3 * own["hidden_size"], num_attention_heads=8, num_key_value_heads=4,
            max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
        ))  # fmt: skip
    base.requires_grad_(False)
    return get_peft_model(
        base.to(measure.device()), LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def answers_of(prompts: int, prompt: int, low: int, high: int, vocabulary: int) -> list[Answer]:
    """Groups of G answers to each prompt, lengths spread evenly in log from low to
    high, advantages of both signs.
    """
    g = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(1, vocabulary, (n,), generator=g).tolist()  # noqa: E731
    found = []
    for _ in range(prompts):
        asked = ids(prompt)
        for _ in range(G):
            share = torch.rand((), generator=g).item()
            own = ids(round(low * (high / low) ** share))
            found.append((asked, own, [-1.0] * len(own), torch.randn((), generator=g).item()))
    return found


def batch_of(answers: list[Answer]) -> TrainBatch:
    trained = []
    for i, (prompt, ids, sampled, advantage) in enumerate(answers):
        completion = Completion(tuple(ids), tuple(sampled), "", "stop", 0)
        rollout = Rollout(Prompt("", "", tuple(prompt), ""), completion, Score(0.0, Outcome.ok))
        trained.append(Trained(rollout, advantage, 0, i // G))
    coef = torch.full((len(trained),), 1.0 / sum(answer.length for answer in trained))
    return flatten(trained, list(range(len(trained))), coef, torch.float32)


def ours(
    model: Any, layouts: tuple[str, ...], dtype: torch.dtype | None = None
) -> tuple[Callable[[list[Answer]], None], Policy]:
    """`train.step`'s update on given answers."""
    policy = Policy(model, None, temperature=1.0, dtype=dtype or torch.float32)
    policy.varlen = measure.device().type == "cuda" and dtype is not None and attention.has_varlen()
    assert attention.install(policy.base) is None
    policy.model.train()
    objective = Objective(
        Algorithm(use="dapo", reduce="token_mean", rollout_correction=None), max_new_tokens=512
    )
    optimizer = torch.optim.AdamW(policy.trainable(), lr=1e-5, weight_decay=0.0)

    def update(answers: list[Answer]) -> None:
        for _, micro in split(batch_of(answers), MICRO_TOKENS, layouts):
            loss, _ = objective(policy.logprobs(micro).logp, micro)
            loss.backward()
            loss.item()
        clip_grad_norm_(policy.trainable(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return update, policy


CASES = {  # model, prompts, prompt tokens, shortest and longest answer
    "tiny model, equal lengths": ("tiny", 8, 16, 48, 48),
    "small model, equal lengths": ("small", 4, 64, 64, 64),
    "small model, answers of 16 to 512": ("small", 4, 64, 16, 512),
    "vocabulary 152k on a small trunk": ("vocabulary 152k", 2, 32, 64, 64),
    "prompt:completion 4:1": ("small", 4, 256, 64, 64),
}


def beside_trl(rounds: int, names: Iterable[str]) -> dict[str, Any]:
    rows = {}
    for name in names:
        rows[name] = table = one_case(*CASES[name], rounds)
        trl, step, own = table["TRL"], table["TRL to ours, whole step"], table["ours"]
        print(
            f"{name} ({own['layout']}): TRL takes {trl['median']:.2f} x our update ({trl['min']:.2f}-{trl['max']:.2f})"
        )
        print(
            f"    {step['median']:.2f} x our step; peak {own['peak_mib']:.0f} against {trl['peak_mib']:.0f} MiB"
        )
    return rows


def one_case(shape: str, prompts: int, prompt: int, low: int, high: int, rounds: int) -> dict[str, Any]:
    from trl_peer import TrlUpdate

    tokenizer, model = load_tokenizer(Model(id="builtin:tiny-math")), model_of(shape)
    answers = answers_of(prompts, prompt, low, high, 250 if shape == "tiny" else SHAPES[shape]["vocab_size"])
    update, policy = ours(copy.deepcopy(model), tuple(LAYOUT))
    policy.tokenizer = tokenizer
    asked = [Prompt("", "", tuple(answers[i][0]), "") for i in range(0, len(answers), G)]
    sampler, longest = TransformersSampler(policy, 256), max(len(completion) for _, completion, *_ in answers)

    def generate() -> None:
        policy.model.eval()
        sampler.generate(asked, G, SamplingParams(1.0, longest))
        policy.model.train()

    def with_rows(count: int) -> Callable[[], Any]:
        trl = TrlUpdate(copy.deepcopy(model), tokenizer, per_device_rows=count)
        return lambda: trl.update(answers)

    peers = {f"TRL, {count} rows": with_rows(count) for count in (8, 32) if count <= len(answers)}
    calls = {"ours": lambda: update(answers), **peers, "generate": generate}
    taken = measure.interleaved(calls, rounds)
    best = min(peers, key=lambda peer: sum(taken[peer]))
    table = measure.ratios(taken, "ours")
    whole = {
        name: [a + b for a, b in zip(taken[name], taken["generate"], strict=True)] for name in ("ours", best)
    }
    table["TRL to ours, whole step"] = measure.ratios(whole, "ours")[best]
    table["TRL"] = table.pop(best) | {
        "rows": int(best.split()[1]),
        "peak_mib": measure.peak_bytes(calls[best]) / 2**20,
    }
    table["ours"]["peak_mib"] = measure.peak_bytes(calls["ours"]) / 2**20
    table["ours"]["layout"] = split(batch_of(answers), MICRO_TOKENS, tuple(LAYOUT))[0][1].layout
    return table


RATIOS = {  # prompt tokens, shortest and longest answer
    "4:1": (256, 64, 64), "1:1": (128, 128, 128), "1:4": (64, 256, 256),
    "1:1, mixed": (128, 32, 512), "1:4, mixed": (64, 16, 512),
}  # fmt: skip


def side_by_side(rounds: int, names: Iterable[str]) -> dict[str, Any]:
    """Our three layouts at three ratios of prompt and completion, equal and mixed lengths."""
    rows = {}
    for name in names:
        answers, model = answers_of(2, *RATIOS[name], 4096), model_of("small")
        updates = {layout: ours(copy.deepcopy(model), (layout,))[0] for layout in LAYOUT}
        calls = {layout: partial(update, answers) for layout, update in updates.items()}
        table = measure.ratios(measure.interleaved(calls, rounds), "rows")
        batch = batch_of(answers)
        for layout in LAYOUT:
            table[layout]["tokens"] = size_of(batch, layout)(range(batch.num_sequences))
            table[layout]["peak_mib"] = measure.peak_bytes(calls[layout]) / 2**20
        chosen = split(batch, MICRO_TOKENS, tuple(LAYOUT))[0][1].layout
        rows[name] = table | {"auto": chosen}
        speed = ", ".join(f"{layout} {1 / table[layout]['median']:.2f} x" for layout in LAYOUT)
        print(f"prompt:completion {name}: {speed}; auto takes {chosen}")
    return rows


def growing(tokens: int = 4096) -> dict[str, Any]:
    """Peak memory of an update at one token budget when completions get 4 times longer."""
    rows = {}
    for layout in LAYOUT:
        peaks = []
        for length in (128, 512):
            update, _ = ours(model_of("small"), (layout,))
            answers = answers_of(tokens // (length * G), 32, length, length, 4096)
            update(answers)
            peaks.append(measure.peak_bytes(lambda update=update, answers=answers: update(answers)))
        rows[layout] = {"peak_128": peaks[0], "peak_512": peaks[1], "growth": peaks[1] / peaks[0]}
        print(
            f"answers of 512 instead of 128 tokens, {tokens} in all, {layout}: peak memory x {peaks[1] / peaks[0]:.3f}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layouts", action="store_true", help="only our own layouts; needs no TRL")
    parser.add_argument("--quick", action="store_true", help="two cases of each table")
    parser.add_argument("--tiny", action="store_true", help="one case of each: tries the script itself")
    args = parser.parse_args()
    alone = args.layouts or importlib.util.find_spec("trl") is None
    if alone and not args.layouts:
        print("TRL is not installed: our own layouts only")
    cases, ratios = tuple(CASES), tuple(RATIOS)
    if args.quick:
        cases, ratios = (
            ("small model, equal lengths", "vocabulary 152k on a small trunk"),
            ("4:1", "1:1, mixed"),
        )
    if args.tiny:
        cases, ratios = cases[:1], ratios[:1]
    tables: dict[str, Callable[[], dict[str, Any]]] = (
        {} if alone else {"beside TRL": partial(beside_trl, args.rounds, cases)}
    )
    tables["layouts"] = partial(side_by_side, args.rounds, ratios)
    if not args.tiny:
        tables["memory"] = growing
    settings = {"rounds": args.rounds, "G": G, "micro_tokens": MICRO_TOKENS}
    for name, make in tables.items():  # each is kept at once: the next may be more than there is time for
        kept = measure.keep(
            "layouts" if alone else "step", settings, {name: make()}, trial=args.quick or args.tiny
        )
    print(kept)


if __name__ == "__main__":
    main()
