"""Out of a run: the adapter in PEFT's format, or a merged model in plain transformers'
format that was checked first.
"""

import copy
import dataclasses
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lgrpo_lite import progress
from lgrpo_lite.engines.base import SamplingParams, share_of
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.errors import ConfigError, OutOfMemory, VerificationError
from lgrpo_lite.export import merge, verify
from lgrpo_lite.export.verify import Comparison
from lgrpo_lite.policy.budget import GIB, kv_bytes_per_token
from lgrpo_lite.policy.fetch import bars_told
from lgrpo_lite.policy.load import load_base, locate, saved_as
from lgrpo_lite.policy.memory import collect, free_bytes, out_of_memory
from lgrpo_lite.policy.passes import (
    VERIFY_PROMPTS,
    VERIFY_ROWS,
    VERIFY_TOKENS,
    Pass,
    checked_bytes,
    verify_rows,
)
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Prompt

CPU_PROMPTS = (
    8  # of them where the policy is on a GPU and the merged model, which answers slowly there, is not
)
CPU = torch.device("cpu")


@contextmanager
def memory_told() -> Iterator[None]:
    """Memory that ends inside it is an OutOfMemory (exit 4) that speaks of the
    export, which can be made again.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise _no_room(str(error).strip().split(". ")[0] or type(error).__name__) from error


def _no_room(what: str) -> OutOfMemory:
    fix = (
        "nothing is lost: `lgrpo-lite export RUN merged` makes it from the last checkpoint, here or where"
        " more memory is free"
    )
    return OutOfMemory(f"the export does not fit into memory: {what}", where="export", fix=fix)


def export_adapter(policy: Policy, out: Path) -> Path:
    """The adapter and the tokenizer, as `PeftModel.from_pretrained(base, out)` reads them."""
    if not policy.has_adapter:
        raise ConfigError(
            "all parameters were trained, there is no adapter", where="model.lora=null", fix="export merged"
        )
    partial = _partial(out)
    policy.save(partial)
    policy.tokenizer.save_pretrained(partial)
    return _place(partial, out)


def export_merged(
    policy: Policy,
    recipe: Recipe,
    out: Path,
    prompts: Sequence[Prompt],
    *,
    base: str = "auto",
    tolerance: float | None = None,
) -> tuple[Path, Comparison]:
    """Merge, verify, then put in place; a failed check raises VerificationError (exit 6) and leaves nothing
    at `out`. Where neither the policy's device nor the CPU has room for the merged model, OutOfMemory (exit
    4).

    base auto: the weights the policy was trained on (a quantised base dequantized). original: the
    checkpoint's own 16- or 32-bit weights; for a quantised policy these differ by the quantisation error, so
    the difference is reported and not judged.
    """
    partial = _partial(out)
    partial.mkdir()
    other = base == "original" and recipe.model.weights in ("nf4", "int8")
    try:
        with memory_told():
            original = _original(recipe, policy.dtype) if other else None
            merge.write_shards(merge.merged_tensors(policy.model, policy.dtype, original), partial)
            del original
            _write_config(policy, recipe, partial)
            result, device = _verify(
                policy, recipe, partial, prompts[:VERIFY_PROMPTS], tolerance, judged=not other
            )
        report = dataclasses.asdict(result) | {
            "base": "original" if other else "as trained",
            "dtype": str(policy.dtype),
        }
        report["device"] = device.type  # of the merged model
        (partial / "merge_report.json").write_text(json.dumps(report, indent=1), "utf-8")
        if not result.passed:
            raise VerificationError(
                f"the merged model is not the policy: mean |Δlogit| {result.mean_logit_diff:.3g} (accepted"
                f" {result.tolerance}), same top token at {result.same_top:.1%} of {result.tokens} positions",
                where=str(out),
                fix=(
                    "export adapter instead, or accept a larger difference with --tolerance; nothing was"
                    " written"
                ),
            )
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return _place(partial, out), result


def _verify(
    policy: Policy,
    recipe: Recipe,
    folder: Path,
    prompts: Sequence[Prompt],
    tolerance: float | None,
    *,
    judged: bool,
) -> tuple[Comparison, torch.device]:
    """How the model in `folder` compares, and where it was: on the policy's
    device, or in less and less memory.
    """
    merged = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    usual, least = verify.ROUNDED if recipe.model.weights == "int8" else verify.TOLERANCE[policy.dtype]
    accepted = (usual if tolerance is None else tolerance) if judged else None
    training, reason = policy.model.training, ""
    policy.model.eval()
    for device, rows in places(policy, recipe, merged, prompts):
        asked, what = prompts, "verifying the merged model"
        if device != policy.device:
            asked, what = prompts[:CPU_PROMPTS], "verifying on the CPU: no room beside the policy"
        try:
            with bars_told():
                model = _loaded(folder, policy.dtype, device)
            result = _compared(policy, model, asked, rows, accepted, least, what)
            policy.model.train(training)
            return result, device
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason = f": {str(error).strip().split('. ')[0]}"
        model = None
        collect()
    raise _no_room(f"the merged model takes {merged / GIB:.2f} GiB, and as much again is not free{reason}")


def places(
    policy: Policy, recipe: Recipe, merged: int, prompts: Sequence[Prompt]
) -> list[tuple[torch.device, int]]:
    """Where to put a merged model of `merged` bytes and how many prompts to answer at once; each
    takes less than the one before.

    Empty: there is no room for it on the policy's device, nor in the machine's memory.
    """
    here, longest = policy.device, max(len(prompt.token_ids) for prompt in prompts)
    free = free_bytes(here)
    beside, alone = (room_for(policy, recipe, size, longest, free) for size in (merged, 0))
    found = []
    if beside or here.type == "cpu":
        found += [(here, max(beside, VERIFY_ROWS)), (here, VERIFY_ROWS), (here, 1)]
    if here.type != "cpu" and merged <= free_bytes(CPU):
        found += [(CPU, max(alone, VERIFY_ROWS)), (CPU, VERIFY_ROWS), (CPU, 1)]
    return list(dict.fromkeys(found))


def room_for(policy: Policy, recipe: Recipe, merged: int, longest: int, free: int) -> int:
    """Prompts that both models can answer at once, VERIFY_ROWS to VERIFY_PROMPTS; 0: not even so few.

    merged: bytes of the merged model on the policy's device, where `free` are free;
    longest: tokens of the longest prompt.
    """
    return verify_rows(lambda rows: merged + answering_bytes(policy, recipe, rows, longest), free)


def answering_bytes(policy: Policy, recipe: Recipe, rows: int, longest: int) -> int:
    """What it takes to answer so many prompts at once: their keys and values, and what
    is in work where that is known.
    """
    config, width = policy.base.config.to_dict(), policy.dtype.itemsize
    try:
        return checked_bytes(Shape.of(config), Pass(width, recipe.model.lora), rows, longest)
    except ConfigError:  # a family whose size is not known from its config
        return rows * (longest + VERIFY_TOKENS) * kv_bytes_per_token(config, width)


def _loaded(folder: Path, dtype: torch.dtype, device: torch.device):
    """The merged model as plain transformers loads it;
    on a GPU without a copy of it in the machine's memory.
    """
    there = {} if device.type == "cpu" else {"device_map": {"": device}}
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", **there
    ).eval()


def _compared(
    policy: Policy,
    model,
    prompts: Sequence[Prompt],
    rows: int,
    accepted: float | None,
    least_same_top: float,
    what: str,
) -> Comparison:
    """Both models answer, `rows` prompts at a time, then their logits are compared, a
    prompt at a time. Told as `what`.
    """
    merged = Policy(model, policy.tokenizer, temperature=1.0, chunk=policy.chunk, dtype=policy.dtype)
    told = partial(progress.told, what, of=3 * len(prompts))  # two models answer, then their logits
    told(0)

    def answered(share: float) -> None:
        told(int(share * 2 * len(prompts)))

    answers = []
    for asked, tick in ((policy, share_of(answered, 0.0, 0.5)), (merged, share_of(answered, 0.5, 0.5))):
        greedy = SamplingParams(0.0, VERIFY_TOKENS, tick=tick)
        answers.append(
            [one[0].token_ids for one in TransformersSampler(asked, rows).generate(prompts, 1, greedy)]
        )
    compared = itertools.count(2 * len(prompts))

    def logits_of_policy(ids: torch.Tensor) -> torch.Tensor:
        told(next(compared))
        return policy.model(input_ids=ids.to(policy.device)).logits

    with policy.compute():
        result = verify.compare(
            logits_of_policy,
            lambda ids: model(input_ids=ids.to(merged.device)).logits,
            [p.token_ids for p in prompts],
            *answers,
            tolerance=accepted,
            least_same_top=least_same_top,
        )
    told(3 * len(prompts))
    return result


def check_original(recipe: Recipe) -> None:
    """export.base=original needs weights that are not quantised: ConfigError
    where the model was saved without.
    """
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
        generation = GenerationConfig.from_pretrained(
            locate(recipe.model.id), revision=recipe.model.revision or "main"
        )
    except OSError:  # the base has none
        generation = GenerationConfig(eos_token_id=sorted(policy.eos_ids))
    generation.save_pretrained(folder)


def _partial(out: Path) -> Path:
    """An empty folder beside `out`. `out` itself is replaced only by an export
    of ours, never a foreign folder.
    """
    ours = any((out / name).exists() for name in ("merge_report.json", "adapter_config.json"))
    if out.exists() and not ours:
        raise ConfigError(
            "that folder exists and is no earlier export", where=str(out), fix="choose another --out"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error.strerror}", where=str(out), fix="choose another --out"
        ) from None
    return partial


def _place(partial: Path, out: Path) -> Path:
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    return out
