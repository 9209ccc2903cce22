"""Out of a run: the adapter in PEFT's format, or a merged model in plain transformers' format that was checked first."""

import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lgrpo_lite import progress
from lgrpo_lite.adapters import merge, verify
from lgrpo_lite.adapters.verify import Comparison
from lgrpo_lite.config import Recipe
from lgrpo_lite.engines.base import SamplingParams, part
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.policy.fetch import bars_told
from lgrpo_lite.policy.load import load_base, locate, saved_as
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Prompt

VERIFY_PROMPTS, VERIFY_TOKENS = 32, 64


def export_adapter(policy: Policy, out: Path) -> Path:
    """The adapter and the tokenizer, as `PeftModel.from_pretrained(base, out)` reads them."""
    if not policy.has_adapter:
        raise ConfigError("all parameters were trained, there is no adapter", where="model.lora=null", fix="export merged")
    partial = _partial(out)
    policy.save(partial)
    policy.tokenizer.save_pretrained(partial)
    return _place(partial, out)


def export_merged(
    policy: Policy, recipe: Recipe, out: Path, prompts: Sequence[Prompt], *, base: str = "auto", tolerance: float | None = None
) -> tuple[Path, Comparison]:
    """Merge, verify, then put in place; a failed check raises VerificationError (exit 6) and leaves nothing at `out`.

    base auto: the weights the policy was trained on (a quantised base dequantized). original: the checkpoint's own 16- or 32-bit
    weights; for a quantised policy these differ by the quantisation error, so the difference is reported and not judged.
    """
    partial = _partial(out)
    partial.mkdir()
    other = base == "original" and recipe.model.weights in ("nf4", "int8")
    try:
        original = _original(recipe, policy.dtype) if other else None
        merge.write_shards(merge.merged_tensors(policy.model, policy.dtype, original), partial)
        _write_config(policy, recipe, partial)
        result = _verify(policy, recipe, partial, prompts[:VERIFY_PROMPTS], tolerance, judged=not other)
        report = dataclasses.asdict(result) | {"base": "original" if other else "as trained", "dtype": str(policy.dtype)}
        (partial / "merge_report.json").write_text(json.dumps(report, indent=1), "utf-8")
        if not result.passed:
            raise VerificationError(
                f"the merged model is not the policy: mean |Δlogit| {result.mean_logit_diff:.3g} (accepted {result.tolerance}), "
                f"same top token at {result.same_top:.1%} of {result.tokens} positions",
                where=str(out),
                fix="export adapter instead, or accept a larger difference with --tolerance; nothing was written",
            )
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return _place(partial, out), result


def _verify(
    policy: Policy, recipe: Recipe, folder: Path, prompts: Sequence[Prompt], tolerance: float | None, *, judged: bool
) -> Comparison:
    with bars_told():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=policy.dtype, attn_implementation="sdpa").eval()
    torch.nn.Module.to(model, policy.device)  # transformers wraps .to() without types
    merged = Policy(model, policy.tokenizer, temperature=1.0, chunk=policy.chunk, dtype=policy.dtype)
    training = policy.model.training
    policy.model.eval()
    told = partial(progress.told, "verifying the merged model", of=3 * len(prompts))  # two models answer, then their logits
    told(0)

    def answered(share: float) -> None:
        told(int(share * 2 * len(prompts)))

    answers = []
    for asked, tick in ((policy, part(answered, 0.0, 0.5)), (merged, part(answered, 0.5, 0.5))):
        greedy = SamplingParams(0.0, VERIFY_TOKENS, tick=tick)
        answers.append([one[0].token_ids for one in TransformersSampler(asked, len(prompts)).generate(prompts, 1, greedy)])
    compared = itertools.count(2 * len(prompts))

    def logits_of_policy(ids: torch.Tensor) -> torch.Tensor:
        told(next(compared))
        return policy.model(input_ids=ids.to(policy.device)).logits

    usual, least = verify.ROUNDED if recipe.model.weights == "int8" else verify.TOLERANCE[policy.dtype]
    with policy.compute():
        result = verify.compare(
            logits_of_policy,
            lambda ids: model(input_ids=ids.to(policy.device)).logits,
            [p.token_ids for p in prompts],
            *answers,
            tolerance=(usual if tolerance is None else tolerance) if judged else None,
            least_same_top=least,
        )
    policy.model.train(training)
    told(3 * len(prompts))
    return result


def check_original(recipe: Recipe) -> None:
    """export.base=original needs weights that are not quantised: ConfigError where the model was saved without."""
    if saved := saved_as(recipe.model, recipe.where("model.id")):
        what = f"{recipe.model.id} was saved as {saved}: there is no original to merge into"
        fix = "set export.base=dequantized, or model.id to the model that it was made from"
        raise ConfigError(what, where=recipe.where("export.base"), fix=fix)


def _original(recipe: Recipe, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    check_original(recipe)
    kind = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    model = load_base(recipe.model.model_copy(update={"weights": kind}), torch.device("cpu"))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _write_config(policy: Policy, recipe: Recipe, folder: Path) -> None:
    config = copy.deepcopy(policy.base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = policy.dtype
    config.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(locate(recipe.model.id), revision=recipe.model.revision or "main")
    except OSError:  # the base has none
        generation = GenerationConfig(eos_token_id=sorted(policy.eos_ids))
    generation.save_pretrained(folder)


def _partial(out: Path) -> Path:
    """An empty folder beside `out`. `out` itself is replaced only by an export of ours, never a foreign folder."""
    ours = any((out / name).exists() for name in ("merge_report.json", "adapter_config.json"))
    if out.exists() and not ours:
        raise ConfigError("that folder exists and is no earlier export", where=str(out), fix="choose another --out")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", where=str(out), fix="choose another --out") from None
    return partial


def _place(partial: Path, out: Path) -> Path:
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out
