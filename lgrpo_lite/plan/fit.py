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
        plain = {} if isinstance(self.value, Lora) else self.value  # an adapter with its defaults
        return f"{self.key}={plain if isinstance(plain, str) else json.dumps(plain)}"


def _moves(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Settings to try, one after the other, cheapest first; a number is halved step by step."""
    memory, rollout, model = recipe.memory, recipe.rollout, recipe.model
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
    while (value := value // 2) >= least:
        yield {key: value}


def fit(recipe: Recipe, capacity: int | None = None, config: Any = None) -> tuple[list[Setting], Plan]:
    """Settings to add to a checked recipe, and its plan with them; none where it fits as it is.

    Where nothing makes it fit, the plan says so, and the settings are those that come closest.
    """
    config = config or find_config(recipe.model, recipe.where("model.id"))

    def planned(values: dict[str, Any]) -> Plan:
        changed = recipe
        for key, value in values.items():
            changed = _with(changed, key.split("."), value)
        return plan(changed, capacity, config)

    chosen = _needed(recipe, planned)
    settings, made = [], {}
    for key in sorted(chosen, key=[*COST].index):
        before = planned(made)
        made[key] = chosen[key]
        settings.append(Setting(key, chosen[key], _reason(key, before, planned(made))))
    return settings, planned(chosen)


def faster(recipe: Recipe, capacity: int | None = None, config: Any = None) -> str | None:
    """Says so where the rollouts could run in 16 bits on the same card: 4-bit
    weights are unpacked for every token.
    """
    if recipe.model.weights != "nf4" or recipe.model.lora is None:
        return None
    config = config or find_config(recipe.model, recipe.where("model.id"))
    found = plan(_with(recipe, ["model", "weights"], "bf16"), capacity, config)
    if found.engine != PREFERRED or not found.fits:
        return None
    weights = next(part.bytes for part in found.parts if part.name == "base weights")
    return (
        f"model.weights=bf16 {found.verdict()}, with {weights / 1e9:.1f} GB of weights once; published"
        f" figures put decoding from 4 bits at {PUBLISHED[0] / PUBLISHED[1]:.2f} of the speed of 16"
        f" ({PUBLISHED[0]:,} against {PUBLISHED[1]:,} tokens/s)"
    )


def _needed(recipe: Recipe, planned: Callable[[dict[str, Any]], Plan]) -> dict[str, Any]:
    """Every move that helps, until it fits; then without those that are not needed
    after all, the costliest first.
    """
    chosen: dict[str, Any] = {}
    missing = _short(planned(chosen))
    for move in _moves(recipe):
        if not missing:
            break
        less = _short(planned({**chosen, **move}))
        if less < missing:
            chosen, missing = {**chosen, **move}, less
    if missing:
        return chosen
    for key in reversed(chosen):
        without = {k: v for k, v in chosen.items() if k != key}
        if not _short(planned(without)):
            chosen = without
    for key, value in chosen.items():
        most = _get(recipe, key) or 2**20
        while type(value) is int and 2 * value < most and not _short(planned({**chosen, key: 2 * value})):
            value *= 2
            chosen[key] = value
    return chosen


def _short(found: Plan) -> int:
    """Bytes that are missing, over all moments, since a move that helps one of
    two is a step; and in CPU memory.
    """
    return sum(max(0, found.peak(moment) - found.capacity) for moment in MOMENTS) + max(
        0, found.offloaded - HOST
    )


def _reason(key: str, before: Plan, after: Plan) -> str:
    moment = max(MOMENTS, key=lambda moment: before.peak(moment) - after.peak(moment))
    change = [f"{plan.peak(moment) / GIB:.1f}" for plan in (before, after)]
    return COST[key] if change[0] == change[1] else f"{COST[key]}; {moment} {change[0]} -> {change[1]} GiB"


def _get(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = getattr(section, part)
    return section


def _with(section: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return section.model_copy(update={head: _with(getattr(section, head), rest, value) if rest else value})
