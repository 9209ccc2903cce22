"""Settings that make a recipe fit its GPU: those that cost least come first, and none that is not needed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.engines.base import PREFERRED
from lgrpo_lite.plan.parts import MOMENTS
from lgrpo_lite.plan.plan import Plan, plan
from lgrpo_lite.policy.budget import GIB
from lgrpo_lite.policy.shape import find_config
from lgrpo_lite.recipe.schema import Lora, Recipe

SHORTEST = 16  # tokens; answers are not cut below
HOST = 64 * GIB  # CPU memory that offloaded activations may take in a proposal

# tokens/s of vLLM from NF4 and from bfloat16, as reported in unslothai/unsloth#5108; not measured here
PUBLISHED = (4_515, 7_775)

COST = {  # by key, in the order of the moves
    "memory.checkpointing": "every layer is computed again in the backward pass: slower, same gradient",
    "memory.layout": "a prompt's keys are not copied for every answer",
    "memory.micro_tokens": "more and smaller passes, same gradient",
    "optim.use": "moments in 8 bits",
    "memory.offload_activations": "activations wait in CPU memory: slower, same gradient",
    "rollout.vllm.share_weights": "one copy of the base weights",
    "rollout.vllm.kv_cache_gb": "keys and values take what is free: fewer answers at once",
    "rollout.vllm.max_sequences": "fewer answers at once: slower",
    "rollout.vllm.cuda_graphs": "sampling without CUDA graphs: slower",
    "rollout.batch_rows": "fewer answers at once: slower",
    "model.lora": "an adapter is trained instead of all parameters",
    "model.weights": "4 bits: slower, and a rounded base",
    "model.max_new_tokens": "answers are cut earlier",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A proposal, as it is typed, and why."""

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = {} if isinstance(self.value, Lora) else self.value  # an adapter with its defaults
        if not isinstance(value, str):
            value = json.dumps(value)
        return f"{self.key}={value}"


def _moves(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Settings to try, one after the other, cheapest first; a number is halved step by step."""
    memory = recipe.memory
    rollout = recipe.rollout
    model = recipe.model
    yield {"memory.checkpointing": True}
    if memory.layout != "rows":
        yield {"memory.layout": "packed"}
    yield from _halves("memory.micro_tokens", memory.micro_tokens)
    if recipe.optim.use == "adamw":
        yield {"optim.use": "adamw_8bit"}
    yield {"memory.offload_activations": True}
    yield {"memory.offload_activations": True, "memory.checkpointing": True}  # far less to keep in CPU memory
    yield {"rollout.vllm.share_weights": True}
    yield {"rollout.vllm.kv_cache_gb": None}
    yield from _halves("rollout.vllm.max_sequences", rollout.vllm.max_sequences or 512)
    yield {"rollout.vllm.cuda_graphs": False}
    yield from _halves("rollout.batch_rows", rollout.batch_rows)
    if model.lora is None:
        yield {"model.lora": Lora()}
        yield {"model.lora": Lora(), "model.weights": "nf4"}
    else:
        yield {"model.weights": "nf4"}
    yield from _halves("model.max_new_tokens", model.max_new_tokens, SHORTEST)


def _halves(key: str, value: int, least: int = 1) -> Iterator[dict[str, Any]]:
    value //= 2
    while value >= least:
        yield {key: value}
        value //= 2


def fit(
    recipe: Recipe, capacity: int | None = None, config: Any = None, *, on_cpu: bool = False
) -> tuple[list[Setting], Plan]:
    """Settings to add to a checked recipe, and its plan with them; none where it fits as it is.

    Where nothing makes it fit, the plan says so, and the settings are those that come closest. on_cpu: as
    `plan` has it.
    """
    config = config or find_config(recipe.model, recipe.where("model.id"))

    def planned(values: dict[str, Any]) -> Plan:
        changed = recipe
        for key, value in values.items():
            if on_cpu and key.startswith("memory.offload"):  # to where it is already
                return plan(recipe, capacity, config, on_cpu=True)
            changed = _with(changed, key.split("."), value)
        return plan(changed, capacity, config, on_cpu=on_cpu)

    chosen = _needed(recipe, planned)
    settings = []
    applied: dict[str, Any] = {}
    for key in sorted(chosen, key=[*COST].index):
        before = planned(applied)
        applied[key] = chosen[key]
        reason = _reason(key, before, planned(applied))
        settings.append(Setting(key, chosen[key], reason))
    return settings, planned(chosen)


def faster(recipe: Recipe, capacity: int | None = None, config: Any = None) -> str | None:
    """Says so where rollouts could run in 16 bits on the card: 4-bit weights are unpacked for every token."""
    if recipe.model.weights != "nf4" or recipe.model.lora is None:
        return None
    config = config or find_config(recipe.model, recipe.where("model.id"))
    in_16_bits = plan(_with(recipe, ["model", "weights"], "bf16"), capacity, config)
    if in_16_bits.engine != PREFERRED or not in_16_bits.fits:
        return None
    weights = next(part.bytes for part in in_16_bits.parts if part.name == "base weights")
    nf4, bf16 = PUBLISHED
    return (
        f"model.weights=bf16 {in_16_bits.verdict()}, with {weights / 1e9:.1f} GB of weights once; "
        f"published figures put decoding from 4 bits at {nf4 / bf16:.2f} of the speed of 16 "
        f"({nf4:,} against {bf16:,} tokens/s)"
    )


def _needed(recipe: Recipe, planned: Callable[[dict[str, Any]], Plan]) -> dict[str, Any]:
    """Every move that helps, until it fits; then without those not needed after all, the costliest first."""
    chosen: dict[str, Any] = {}
    missing = _short(planned(chosen))
    for move in _moves(recipe):
        if not missing:
            break
        candidate = {**chosen, **move}
        still_missing = _short(planned(candidate))
        if still_missing < missing:
            chosen = candidate
            missing = still_missing
    if missing:
        return chosen
    for key in reversed(chosen):
        without = {k: v for k, v in chosen.items() if k != key}
        if not _short(planned(without)):
            chosen = without
    for key, value in chosen.items():
        if type(value) is not int:
            continue
        most = _get(recipe, key) or 2**20
        while 2 * value < most:
            value *= 2
            if _short(planned({**chosen, key: value})):
                break
            chosen[key] = value
    return chosen


def _short(planned: Plan) -> int:
    """Bytes missing, over all moments, since a move that helps one of two is a step; and in CPU memory."""
    missing = max(0, planned.offloaded - HOST)
    for moment in MOMENTS:
        missing += max(0, planned.peak(moment) - planned.capacity)
    return missing


def _reason(key: str, before: Plan, after: Plan) -> str:
    moment = max(MOMENTS, key=lambda moment: before.peak(moment) - after.peak(moment))
    old = f"{before.peak(moment) / GIB:.1f}"
    new = f"{after.peak(moment) / GIB:.1f}"
    if old == new:
        return COST[key]
    return f"{COST[key]}; {moment} {old} -> {new} GiB"


def _get(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = getattr(section, part)
    return section


def _with(section: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    if rest:
        value = _with(getattr(section, head), rest, value)
    return section.model_copy(update={head: value})
