"""Is a GGUF file the policy? Token ids, log-probs and greedy answers of both on the same prompts, and what of
its head a reader relies on.

KL(policy ‖ file) = Σ_v π(v) (log π(v) - log p_file(v)), the mean over the tokens of the policy's greedy
answers, in nats; beside it KL(policy ‖ base), what training changed, on the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lgrpo_lite import progress
from lgrpo_lite.data.template import first_token, tokens, written
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.export import llama_tools
from lgrpo_lite.policy.gguf import read_header
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import evaluating, in_float32
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Prompt

READ = 50  # prompts whose token ids are compared
ANSWERED = 16  # of them that are answered
LONGEST = 48  # tokens of an answer
ROWS = 4  # answers at once
# of a file in 16 bits: it holds all that the policy is but for rounding
MOST_KL, LEAST_SAME_TOP = 1e-4, 0.995
GROSS_KL = 1.0  # of any file: beyond it no quantisation is an excuse
HALF_STEP = 2.0**-11  # of a number in f16, relative to it
SMALLEST = 2.0**-24  # that f16 holds
OF_TYPE = {"general.file_type", "general.quantization_version"}
TIE = 0.02  # nats between the policy's two most likely tokens: which of them comes first, rounding decides


@dataclass(frozen=True, slots=True)
class Reference:
    """What the policy does, as export/llama.py takes it, and what training changed."""

    job: dict[str, Any]
    training_kl: float | None  # KL(policy ‖ base); None: no base is at hand
    margins: list[list[float]]  # nats between the two most likely tokens, of each answer's tokens


@dataclass(frozen=True, slots=True)
class Proof:
    """How a file compares. `faults`: what no file of the policy has, in words."""

    kl: float
    max_kl: float
    same_top: float
    same_sure: float  # share with the same top token, of those where the policy's is no near tie
    greedy_equal: int
    prompts: int
    tokens: int
    strayed: float  # nats by which the policy is sure where a greedy answer parts from its own, at most
    faults: tuple[str, ...]


def reference(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], folder: Path) -> Reference:
    """Ask the policy, in float32; its log-probs [tokens V] go into files in `folder`."""
    asked = prompts[:ANSWERED]
    data, tokenizer = recipe.data, policy.tokenizer
    begin = first_token(tokenizer) if data.template == "plain" else None
    texts = []
    for prompt in prompts[:READ]:
        ids = tokens(prompt.text, data, tokenizer)
        texts.append((written(prompt.text, data, tokenizer), list(ids if begin is None else ids[1:])))
    answers = []
    margins = []
    changes = []
    what = "asking the policy"
    with evaluating(policy), in_float32(policy), torch.no_grad():
        greedy = SamplingParams(0.0, min(LONGEST, recipe.model.max_new_tokens))
        given = TransformersSampler(policy, ROWS).generate(asked, 1, greedy)
        for number, (prompt, row) in enumerate(zip(asked, given, strict=True)):
            progress.told(what, number, len(asked))
            answer = row[0].token_ids
            logprobs = _logprobs(policy, prompt.token_ids, answer)
            if policy.has_adapter:
                with policy.reference():
                    base = _logprobs(policy, prompt.token_ids, answer)
                changes.append((logprobs.exp() * (logprobs - base)).sum(-1))
            two = logprobs.topk(2).values
            margins.append((two[:, 0] - two[:, 1]).tolist())
            file = folder / f"answer-{number}.npy"
            np.save(file, logprobs.float().numpy())
            answers.append({"prompt": prompt.token_ids, "answer": answer, "logprobs": str(file)})
    progress.told(what, len(asked), len(asked))
    job = {"texts": texts, "answers": answers, "ends": sorted(policy.eos_ids)}
    training = torch.cat(changes).mean().item() if changes else None
    return Reference(job, training, margins)


def _logprobs(policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """log π(· | before) at each token of an answer, [tokens V] in float64 on the CPU."""
    ids = torch.tensor([[*prompt, *answer]], device=policy.device)
    logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return logits.double().cpu().log_softmax(-1)


def compare(ref: Reference, file: Path, log: Path, threads: int, adapter: Path | None = None) -> Proof:
    """How `file` compares, with an adapter on it where there is one. llama.cpp that fails: RuntimeError."""
    job = ref.job | {"do": "compare", "file": str(file), "threads": threads}
    if adapter is not None:
        job["adapter"] = str(adapter)
    shown = adapter or file
    found = llama_tools.at_work(f"comparing {shown.name}", job, log)
    kl = [value for row in found["answers"] for value in row["kl"]]
    same = [value for row in found["answers"] for value in row["same_top"]]
    margins_of_all = [margin for margins in ref.margins for margin in margins]
    sure = [value for value, margin in zip(same, margins_of_all, strict=True) if margin > TIE]
    given = zip(found["answers"], ref.job["answers"], ref.margins, strict=True)
    parted = [_parted(row["greedy"], one["answer"], margins) for row, one, margins in given]
    faults = []
    if found["misread"]:
        text, expected, read = found["misread"][0]
        count = f"{len(found['misread'])} of {len(ref.job['texts'])} prompts"
        faults.append(f"it reads {count} as other tokens: {text[-60:]!r} as {read[-6:]}, not {expected[-6:]}")
    if found["endless"]:
        faults.append(f"an answer would not end at {_listed(found['endless'])}, where the policy ends")
    if not all(np.isfinite(kl)):
        faults.append("its log-probs are not finite")
    return Proof(
        kl=float(np.mean(kl)),
        max_kl=float(np.max(kl)),
        same_top=float(np.mean(same)),
        same_sure=float(np.mean(sure)) if sure else 1.0,
        greedy_equal=parted.count(None),
        prompts=len(parted),
        tokens=len(kl),
        strayed=max((margin for margin in parted if margin is not None), default=0.0),
        faults=tuple(faults),
    )


def _parted(greedy: Sequence[int], answer: Sequence[int], margins: Sequence[float]) -> float | None:
    """The policy's margin where the file's greedy answer is first another one; None: nowhere."""
    for mine, theirs, margin in zip(greedy, answer, margins, strict=False):
        if mine != theirs:
            return margin
    return None


def differs(proof: Proof) -> list[str]:
    """By what a file differs that is to be the policy, in words: it is rounded, or another model."""
    faults = []
    if not proof.kl <= MOST_KL:
        faults.append(f"KL to the policy {proof.kl:.2g} nats (accepted {MOST_KL:g})")
    if not proof.same_sure >= LEAST_SAME_TOP:
        share = f"{proof.same_sure:.1%} of the tokens it is sure of (accepted {LEAST_SAME_TOP:.1%})"
        faults.append(f"the same top token at {share}")
    if proof.strayed > TIE:
        others = f"{proof.prompts - proof.greedy_equal} of {proof.prompts} greedy answers are others"
        faults.append(f"{others}, where the policy is sure by up to {proof.strayed:.2f} nats")
    return faults


def not_rounded(half: Path, exact: Path) -> list[str]:
    """What a file in 16 bits holds that is not what one in 32 bits holds, rounded: tensors, settings."""
    import gguf

    one, other = gguf.GGUFReader(half), gguf.GGUFReader(exact)
    numbers = {tensor.name: tensor.data for tensor in other.tensors}
    faults = []
    if {tensor.name for tensor in one.tensors} != set(numbers):
        faults.append("its tensors are others than those in 32 bits")
    for tensor in one.tensors:
        expected = numbers.get(tensor.name)
        if expected is None or expected.shape != tensor.data.shape:
            continue
        most = 2 * HALF_STEP * np.abs(expected) + SMALLEST
        if not np.all(np.abs(tensor.data.astype(np.float32) - expected) <= most):
            faults.append(f"{tensor.name} is not the same in 32 bits")
    settings, others = read_header(half).metadata, read_header(exact).metadata
    changed = [key for key in {*settings, *others} - OF_TYPE if settings.get(key) != others.get(key)]
    return faults + [f"{key} is not the same in 32 bits" for key in sorted(changed)]


def bytes_of(policy: Policy) -> int:
    """What the files of `reference` take, at most."""
    return ANSWERED * LONGEST * 4 * policy.base.get_output_embeddings().weight.shape[0]


def head_faults(file: Path, policy: Policy, template: str | None) -> list[str]:
    """What the head of a file says otherwise than the policy: template, end and length of context."""
    header = read_header(file, str(file))
    faults = []
    written_template = header.metadata.get("tokenizer.chat_template")
    if written_template != template:
        faults.append(f"its chat template is another: {_begin(written_template)}, not {_begin(template)}")
    end = header.metadata.get("tokenizer.ggml.eos_token_id")
    if end not in policy.eos_ids:
        faults.append(f"its end token is {end}, not {_listed(sorted(policy.eos_ids))}")
    config = policy.base.config.get_text_config()
    length = header.setting("context_length")
    expected = getattr(config, "max_position_embeddings", length)  # some families have no limit
    if length != expected:
        faults.append(f"its context length is {length}, not {expected}")
    return faults


def _listed(tokens_: Sequence[int]) -> str:
    return " or ".join(map(str, tokens_))


def _begin(text: str | None) -> str:
    return "none" if text is None else repr(text[:40])
