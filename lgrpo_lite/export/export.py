"""Out of a run: the adapter in PEFT's format, or a checked merged model in plain transformers' format."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from lgrpo_lite import progress
from lgrpo_lite.data.served import chat_template
from lgrpo_lite.engines.base import SamplingParams, share_of
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.export import check, merge, verify
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.place import placed
from lgrpo_lite.export.readback import compared_in_slices
from lgrpo_lite.export.slices import SlicedPolicy, Slices
from lgrpo_lite.export.verify import Comparison
from lgrpo_lite.export.whole import whole
from lgrpo_lite.folder.origin import base_of
from lgrpo_lite.policy.budget import kv_bytes_per_token
from lgrpo_lite.policy.fetch import bars_told
from lgrpo_lite.policy.load import FLOATS, attention_of, saved_as
from lgrpo_lite.policy.memory import collect, free_bytes, out_of_memory, room_told
from lgrpo_lite.policy.passes import VERIFY_PROMPTS, VERIFY_ROWS, VERIFY_TOKENS, checked_bytes, verify_rows
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import in_float32
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Lora, Recipe
from lgrpo_lite.types import Prompt

# of them where it is slow: the merged model on the CPU and the policy not, or less than VERIFY_ROWS at once
FEW_PROMPTS = 8
AGAIN = (
    "nothing is lost: `lgrpo-lite export RUN merged` makes it from the last checkpoint, here or where more"
    " memory is free"
)
CPU = torch.device("cpu")


def memory_told() -> AbstractContextManager[None]:
    """Memory that ends inside it is an OutOfMemory (exit 4) of the export, which can be made again."""
    return room_told("the export", "export", AGAIN)


def nothing_more(folder: Path) -> None:
    """What is written beside an export: nothing."""


def export_adapter(
    policy: Policy,
    recipe: Recipe,
    out: Path,
    prompts: Sequence[Prompt],
    *,
    beside: Callable[[Path], None] = nothing_more,
) -> Path:
    """The adapter, as `PeftModel.from_pretrained(base, out)` reads it, and the tokenizer with the template of
    the run. If that does not read `prompts` as the policy did: VerificationError, and nothing at `out`.

    `beside` writes what else belongs into the folder, before it is put in place.
    """
    if not policy.has_adapter:
        what = "all parameters were trained, there is no adapter"
        raise ConfigError(what, where="model.lora=null", fix="export merged")
    with placed(out, "adapter") as partial:
        policy.save(partial)
        _name_base(partial / "adapter_config.json", recipe)
        policy.tokenizer.save_pretrained(partial)
        _write_template(policy, recipe, partial)
        check.demand_same_prompts(partial, recipe.data, policy.tokenizer, prompts)
        beside(partial)
    return out


def _name_base(settings: Path, recipe: Recipe) -> None:
    """The base by a name that others can use: PEFT writes where it lies on this machine. What loads an
    adapter onto a base that it is given does not read it.
    """
    values = json.loads(settings.read_text("utf-8"))
    values["base_model_name_or_path"] = base_of(recipe.model.id, recipe.model.revision).name
    settings.write_text(json.dumps(values, indent=2), "utf-8")


def export_merged(
    policy: Policy,
    recipe: Recipe,
    out: Path,
    prompts: Sequence[Prompt],
    *,
    base: str = "auto",
    tolerance: float | None = None,
    beside: Callable[[Path], None] = nothing_more,
) -> tuple[Path, Comparison]:
    """Merge, verify, then put in place. A failed check: VerificationError (exit 6) and nothing at `out`.

    What was not trained is written as the base was given, what transformers did not load too: a vision tower,
    `architectures`, generation settings, tokenizer. `export.dtype` of the recipe, where it is not auto, is
    the type of all that text passes through. Of a policy in slices nothing is ever in memory as a whole; nor
    is the merged model where neither the policy's device nor the CPU has room for it.

    base auto: the weights the policy was trained on (a quantised base dequantized). original: the
    checkpoint's own 16- or 32-bit weights; for a quantised policy these differ by the quantisation error, so
    the difference is reported and not judged.
    """
    given = Given.of(recipe.model, recipe.where("model.id"))
    other = base == "original" and recipe.model.weights in ("nf4", "int8")
    as_given = recipe.export.dtype == "auto"
    dtype = policy.dtype if as_given else FLOATS[recipe.export.dtype]
    with placed(out, "merged") as partial:
        with memory_told():
            original = _original(recipe, dtype, policy.device) if other else None
            tensors = merge.merged_tensors(
                policy.model, dtype, original and original.tensor, _here(policy, original)
            )
            merge.write_shards(whole(policy.base, tensors, given, as_given=as_given), partial)
            del tensors
            write_beside(policy, recipe, given, partial, dtype)
            check.demand_whole(partial, given)
            check.demand_same_prompts(partial, recipe.data, policy.tokenizer, prompts)
            merged = Merged(partial, given, dtype, original)
            limits = verify.limits(dtype, recipe.model.weights, tolerance, judged=not other)
            result, device = _verify(policy, recipe, merged, prompts[:VERIFY_PROMPTS], limits)
        report = dataclasses.asdict(result)
        report["base"] = "original" if other else "as trained"
        report["dtype"] = str(dtype)
        report["device"] = device.type  # of the merged model
        (partial / "merge_report.json").write_text(json.dumps(report, indent=1), "utf-8")
        if not result.passed:
            raise _another_model(result, out)
        beside(partial)
    return out, result


@dataclass(frozen=True)
class Merged:
    """A merged model that is written and not compared yet; `original`: what it was merged into instead of the
    policy's own base.
    """

    folder: Path
    given: Given
    dtype: torch.dtype
    original: Slices | None


def _here(policy: Policy, original: Slices | None) -> merge.Here:
    """Enters a unit of all that is in slices."""
    sliced = [policy.slices] if isinstance(policy, SlicedPolicy) else []
    sliced += [original] if original else []

    @contextmanager
    def here(unit: str) -> Iterator[None]:
        with ExitStack() as stack:
            for slices in sliced:
                stack.enter_context(slices.here(unit))
            yield

    return here


def _another_model(result: Comparison, out: Path) -> VerificationError:
    difference = f"mean |Δlogit| {result.mean_logit_diff:.3g} (accepted {result.tolerance})"
    same = f"same top token at {result.same_top:.1%} of {result.tokens} positions"
    what = f"the merged model is not the policy: {difference}, {same}"
    accept = "accept a larger difference with --tolerance"
    fix = f"export adapter instead, or {accept}; nothing was written"
    return VerificationError(what, where=str(out), fix=fix)


def _verify(
    policy: Policy,
    recipe: Recipe,
    merged: Merged,
    prompts: Sequence[Prompt],
    limits: tuple[float | None, float],
) -> tuple[Comparison, torch.device]:
    """How the merged model compares, and where it was: the policy's device, or ever less memory."""
    size = sum(file.stat().st_size for file in merged.folder.glob("*.safetensors"))
    training = policy.model.training
    policy.model.eval()
    tried = [] if isinstance(policy, SlicedPolicy) else places(policy, recipe, size, prompts)
    for device, rows in tried:
        slow = device != policy.device or rows < VERIFY_ROWS
        asked = prompts[:FEW_PROMPTS] if slow else prompts
        what = "verifying the merged model"
        if device != policy.device:
            what = "verifying on the CPU: no room beside the policy"
        try:
            with bars_told():
                model = _loaded(merged.folder, merged.dtype, device)
            result = _compared(policy, model, asked, rows, limits, what)
            policy.model.train(training)
            return result, device
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        model = None
        collect()
    result = compared_in_slices(
        policy, recipe, merged.folder, merged.given, prompts, merged.dtype, limits, merged.original
    )
    policy.model.train(training)
    return result, policy.device


def places(
    policy: Policy, recipe: Recipe, merged: int, prompts: Sequence[Prompt]
) -> list[tuple[torch.device, int]]:
    """Where to put a merged model of `merged` bytes and how many prompts to answer at once, in order of size.

    Empty: there is no room for it on the policy's device, nor in the machine's memory.
    """
    here = policy.device
    longest = max(len(prompt.token_ids) for prompt in prompts)
    free = free_bytes(here)
    beside = room_for(policy, recipe, merged, longest, free)
    alone = room_for(policy, recipe, 0, longest, free)
    choices = []
    if beside or here.type == "cpu":
        choices += [(here, rows) for rows in _less_and_less(beside)]
    if here.type != "cpu" and merged <= free_bytes(CPU):
        choices += [(CPU, rows) for rows in _less_and_less(alone)]
    return choices


def _less_and_less(rows: int) -> list[int]:
    """What to try from so many rows on, where memory turns out to be shorter than it was counted."""
    return [max(rows, 1), *(fewer for fewer in (VERIFY_ROWS, 1) if fewer < rows)]


def room_for(policy: Policy, recipe: Recipe, merged: int, longest: int, free: int) -> int:
    """Prompts that both models can answer at once, up to VERIFY_PROMPTS; 0: not even one.

    merged: bytes of the merged model on the policy's device, where `free` are free; longest: tokens of the
    longest prompt.
    """

    def needed(rows: int) -> int:
        return merged + answering_bytes(policy, recipe, rows, longest)

    return verify_rows(needed, free)


def answering_bytes(policy: Policy, recipe: Recipe, rows: int, longest: int) -> int:
    """Bytes to answer so many prompts at once: keys and values, and what is in work where that is known."""
    config = policy.base.config.to_dict()
    try:
        return checked_bytes(Shape.of(config), recipe.model.lora, rows, longest)
    except ConfigError:  # a family whose size is not known from its config
        return rows * (longest + VERIFY_TOKENS) * kv_bytes_per_token(config, 4)


def _loaded(folder: Path, dtype: torch.dtype, device: torch.device):
    """The merged model as plain transformers loads it; on a GPU without a copy in the machine's memory."""
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention_of(AutoConfig.from_pretrained(folder)),
    }
    if device.type != "cpu":
        options["device_map"] = {"": device}
    named = check.model_class(folder)
    model, info = named.from_pretrained(folder, output_loading_info=True, **options)
    check.demand_loaded(info, folder)
    return model.eval()


def _compared(
    policy: Policy, model, prompts: Sequence[Prompt], rows: int, limits: tuple[float | None, float], what: str
) -> Comparison:
    """Both models answer, `rows` prompts at a time, then logits are compared by prompt. Shown as `what`.

    Both compute in float32, a layer at a time: what 16 bits round off a right merge's logits can be as large
    as the difference of a wrong one.
    """
    merged = Policy(model, policy.tokenizer, temperature=1.0, chunk=policy.chunk, dtype=model.dtype)
    report = partial(progress.told, what, of=3 * len(prompts))  # two models answer, then their logits
    report(0)

    def answered(share: float) -> None:
        report(int(share * 2 * len(prompts)))

    def answers_of(one: Policy, begin: float) -> list[tuple[int, ...]]:
        greedy = SamplingParams(0.0, VERIFY_TOKENS, tick=share_of(answered, begin, 0.5))
        answers = TransformersSampler(one, rows).generate(prompts, 1, greedy)
        return [row[0].token_ids for row in answers]

    compared = itertools.count(2 * len(prompts))

    def policy_logits(ids: torch.Tensor) -> torch.Tensor:
        report(next(compared))
        return policy.model(input_ids=ids.to(policy.device)).logits

    def merged_logits(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids.to(merged.device)).logits

    tolerance, least_same_top = limits
    with in_float32(policy), in_float32(merged):
        result = verify.compare(
            policy_logits,
            merged_logits,
            [prompt.token_ids for prompt in prompts],
            answers_of(policy, 0.0),
            answers_of(merged, 0.5),
            tolerance=tolerance,
            least_same_top=least_same_top,
        )
    report(3 * len(prompts))
    return result


def check_original(recipe: Recipe) -> None:
    """export.base=original needs weights that are not quantised: ConfigError where the model has none."""
    saved = saved_as(recipe.model, recipe.where("model.id"))
    if saved:
        what = f"{recipe.model.id} was saved as {saved}: there is no original to merge into"
        fix = "set export.base=dequantized, or model.id to the model that it was made from"
        raise ConfigError(what, where=recipe.where("export.base"), fix=fix)


def _original(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> Slices:
    check_original(recipe)
    kind = next(name for name, value in FLOATS.items() if value == dtype)
    settings = recipe.model.model_copy(update={"weights": kind, "lora": recipe.model.lora or Lora()})
    return Slices(settings, device, recipe.where("model.id"))


def write_beside(policy: Policy, recipe: Recipe, given: Given, folder: Path, dtype: torch.dtype) -> None:
    """All that is no weight: as the base has it, but for the type of the weights and the run's template."""
    given.copy_files(folder)
    config = given.config_for(dtype)
    if config.get("model_type") == policy.base.config.model_type:
        config.setdefault("architectures", [type(policy.base).__name__])
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if not (folder / "generation_config.json").exists():
        GenerationConfig(eos_token_id=sorted(policy.eos_ids)).save_pretrained(folder)
    _write_template(policy, recipe, folder)


def _write_template(policy: Policy, recipe: Recipe, folder: Path) -> None:
    """The run's template in every place where a reader may look for one."""
    template = chat_template(recipe.data, policy.tokenizer)
    if template is None:
        return
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    (folder / "chat_template.json").unlink(missing_ok=True)
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        config = json.loads(settings.read_text("utf-8"))
        config["chat_template"] = template
        settings.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
