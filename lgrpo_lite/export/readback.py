"""A merged model read back from its files a layer at a time, beside the policy that it was made of: number by
number, and as the function that it is.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lgrpo_lite import progress
from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.export import check, verify
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.merge import Weight, dense, unit_of, weights_of
from lgrpo_lite.export.slices import SlicedPolicy, Slices
from lgrpo_lite.export.verify import Comparison
from lgrpo_lite.policy.load import FLOATS
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import evaluating, in_float32
from lgrpo_lite.policy.structure import is_text
from lgrpo_lite.recipe.schema import Lora, Recipe
from lgrpo_lite.types import Prompt

PROMPTS = 8  # whose ends both models read
TOKENS = 32  # of each; the logits of all of them, by both models, are in memory at once
UNSURE = 3  # times as often as along its own answer may a model's top token be another: it is less sure there
BLOCK = 1 << 21  # numbers that are compared at once, in float64
ADDED = 2.0**-20  # of the sizes of what is added: more than float32 loses on the way to a merged number


def compared_in_slices(
    policy: Policy,
    recipe: Recipe,
    folder: Path,
    given: Given,
    prompts: Sequence[Prompt],
    dtype: torch.dtype,
    limits: tuple[float | None, float],
    original: Slices | None = None,
) -> Comparison:
    """How the model in `folder` compares with a policy, which may itself be in slices.

    A number that is not W + scale · B A as `dtype` rounds it, or one that training left alone and that is not
    as it was given, or a file that cannot be read: VerificationError. What comes back is of the logits of
    both along the ends of a few prompts, and of the tokens they go on with. original: W of a 4-bit policy.
    """
    sliced = policy.slices if isinstance(policy, SlicedPolicy) else None
    with _faults_told(folder):
        merged = _opened(folder, recipe, policy.device, dtype)
        passes = 2 if sliced else 1
        steps = len(merged.names) * (1 + passes)
        report = partial(progress.told, "verifying in slices", of=steps)
        done = itertools.count(1)
        report(0)

        def tick() -> None:
            report(next(done))

        _demand_types(folder, merged, given, dtype)
        tensors = _demand_numbers(policy, merged, dtype, original, tick)
        other = Policy(merged.base, policy.tokenizer, temperature=1.0, dtype=dtype)
        rows = _ends(prompts[:PROMPTS])
        ours = _logits(policy, rows, sliced, tick)
        theirs = _logits(other, rows, merged, tick)
        report(steps)
    one_by_one, other_by_one = iter(ours.split(1)), iter(theirs.split(1))
    tolerance, least_same_top = limits
    return verify.compare(
        lambda _: next(one_by_one),
        lambda _: next(other_by_one),
        [row[:1] for row in rows],
        _going_on(rows, ours),
        _going_on(rows, theirs),
        tolerance=tolerance,
        least_same_top=1 - UNSURE * (1 - least_same_top),
        tensors=tensors,
    )


def _opened(folder: Path, recipe: Recipe, device: torch.device, dtype: torch.dtype) -> Slices:
    """The written model, of the class that the policy has; VerificationError where the class that its config
    names would make weights up.
    """
    weights = next(name for name, kind in FLOATS.items() if kind == dtype)
    # a model with an adapter is one that is not trained itself: it is read in the type it was written in
    update = {"id": str(folder), "revision": None, "weights": weights, "lora": Lora()}
    model = recipe.model.model_copy(update=update)
    named = check.model_class(folder)
    check.demand_loaded(Slices(model, device, str(folder), kind=named).info, folder)
    return Slices(model, device, str(folder))


@contextmanager
def _faults_told(folder: Path) -> Iterator[None]:
    """What a reader of the folder stumbles over is a VerificationError."""
    try:
        yield
    except (ConfigError, SafetensorError) as error:
        reason = getattr(error, "what", error)
        fix = "nothing was written; export again, or export adapter"
        what = f"what was written cannot be read back: {reason}"
        raise VerificationError(what, where=str(folder), fix=fix) from error


def _demand_types(folder: Path, merged: Slices, given: Given, dtype: torch.dtype) -> None:
    """What text passes through is of `dtype` or as it was given, bit for bit; all else is as it was given."""
    text = is_text(merged.base)
    parameters = {name for name, _ in merged.base.named_parameters(remove_duplicate=False)}
    learned = {name for name in parameters if text(name)}
    for name in merged.given.files:
        written = merged.given.tensor(name)
        if not (written.dtype == dtype and merged.read_as[name] in learned):
            before = given.tensor(name) if name in given.files else None
            if before is None or before.dtype != written.dtype or not _same_bits(before, written):
                raise _wrong(f"{name} was not trained and is not what it was", folder)
        merged.given.close()
        given.close()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@torch.no_grad()
def _demand_numbers(
    policy: Policy, merged: Slices, dtype: torch.dtype, original: Slices | None, tick: Callable[[], None]
) -> int:
    """How many tensors there are, each of which is the policy's."""
    text = is_text(policy.base)
    weights = [one for one in weights_of(policy.model) if text(one.name)]
    for unit, group in itertools.groupby(weights, key=lambda one: unit_of(one.name)):
        with ExitStack() as stack:
            for slices in (getattr(policy, "slices", None), original, merged):
                if slices is not None:
                    stack.enter_context(slices.here(unit))
            for one in group:
                before = original.tensor(one.name) if original else dense(one.value, one.holder)
                written = merged.tensor(one.name).to(before.device)
                if before.shape != written.shape:
                    raise _wrong(f"{one.name} is of shape {tuple(written.shape)}", merged.given.folder)
                if not _is_merged(one, before, written, dtype):
                    what = f"{one.name} is not what it was merged of"
                    raise _wrong(what, merged.given.folder)
        tick()
    return len(weights)


def _is_merged(one: Weight, before: Tensor, written: Tensor, dtype: torch.dtype) -> bool:
    """written = W + scale · B A, to what `dtype` rounds off and float32 loses before that."""
    if not one.adapters:
        return torch.equal(before.to(dtype), written.to(dtype))
    rounding = torch.finfo(dtype).eps / 2
    rows = max(1, BLOCK // before[0].numel())
    changes = [(layer, name) for layer in one.adapters for name in layer.active_adapters]
    for begin in range(0, len(before), rows):
        block = slice(begin, begin + rows)
        exact = before[block].double()
        added = exact.abs()
        for layer, name in changes:
            change, size = _change(layer, name, block)
            exact = exact + change
            added = added + size
        bound = rounding * exact.abs() + ADDED * added + torch.finfo(dtype).smallest_normal * rounding
        within = (written[block].double() - exact).abs() <= bound
        if not within.all():
            return False
    return True


def _change(layer: Any, name: str, block: slice) -> tuple[Tensor, Tensor]:
    """These rows of scale · B A, and the sizes of what is added up for them."""
    if not isinstance(layer.get_base_layer(), nn.Linear):  # an embedding, experts: PEFT knows how they lie
        change = layer.get_delta_weight(name)[block].double()
        return change, change.abs()
    a, b = layer.lora_A[name].weight.double(), layer.lora_B[name].weight[block].double()
    scale = layer.scaling[name]
    return scale * (b @ a), abs(scale) * (b.abs() @ a.abs())


def _ends(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """The last tokens of each prompt, of all of them the same number."""
    length = min(TOKENS, *(len(prompt.token_ids) for prompt in prompts))
    return [tuple(prompt.token_ids[-length:]) for prompt in prompts]


def _logits(
    policy: Policy, rows: Sequence[Sequence[int]], slices: Slices | None, tick: Callable[[], None]
) -> Tensor:
    """Of all rows at once, in float32 on the CPU: each pass reads all weights from the disk."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(policy))
        stack.enter_context(in_float32(policy))
        if slices is not None:
            stack.enter_context(slices.passing(tick))
        device = policy.device if slices is None else slices.device
        return policy.model(input_ids=torch.tensor(rows, device=device), use_cache=False).logits.float().cpu()


def _going_on(rows: Sequence[Sequence[int]], logits: Tensor) -> list[list[int]]:
    """Each row but its first token, and the most likely next one."""
    following = logits[:, -1].argmax(-1).tolist()
    return [[*row[1:], token] for row, token in zip(rows, following, strict=True)]


def _wrong(what: str, folder: Path) -> VerificationError:
    fix = "nothing was written; export again, or export adapter"
    return VerificationError(f"the merged model is not the policy: {what}", where=str(folder), fix=fix)
