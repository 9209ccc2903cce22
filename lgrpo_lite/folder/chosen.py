"""What a run settled by itself: every setting that was left to the program, the
value it took, and the reason.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch

from lgrpo_lite.engines.base import (
    ENGINES,
    PREFERRED,
    RolloutEngine,
    engine_name,
    missing_packages,
    unservable,
)
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.objective.named import complete
from lgrpo_lite.policy.budget import sequences_at_once
from lgrpo_lite.policy.dequantise import record_of
from lgrpo_lite.policy.memory import free_bytes, layers_of, tile_bytes
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.marks import flat
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.pool import MOST_WORKERS
from lgrpo_lite.rewards.total import RewardSum

GIB = 2**30
_CACHE = attrgetter("llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A line of events.jsonl, kind `chosen`, and of report.md."""

    key: str  # dotted key of the recipe
    value: str
    why: str  # one clause for people, with the numbers it was decided by where they are known


class Built(Protocol):
    """What is asked of a run that was built: `train.run.Run`."""

    recipe: Recipe
    policy: Policy
    engine: RolloutEngine
    reward: RewardSum
    notes: tuple[str, ...]


def chosen(run: Built) -> list[Chosen]:
    """In the order of a recipe; what the recipe sets itself is not among it."""
    return [
        *_model(run),
        *_rollout(run),
        *_algorithm(run.recipe),
        *_rewards(run),
        *_memory(run),
        *_export(run.recipe),
    ]


def _model(run: Built) -> Iterator[Chosen]:
    made = record_of(run.policy.base.config.name_or_path)
    if made is not None:
        from_ = "dequantised from" if made["dequantised"] else "stored as"
        why = f"a GGUF's blocks are not trained on; the file has sha256 {made['sha256'][:16]}"
        value = f"{from_} {made['stored_as']}, {made['logprob']:.3f} nats a character of a plain text"
        yield Chosen("model.id", value, why)
    if run.recipe.model.threads is None:
        why = f"torch's own choice on {_cpus()} CPUs; fewer are faster for tiny models"
        yield Chosen("model.threads", str(torch.get_num_threads()), why)


def _rollout(run: Built) -> Iterator[Chosen]:
    recipe = run.recipe
    engine, rollout = engine_name(recipe), recipe.rollout
    if rollout.engine == "auto":
        yield Chosen("rollout.engine", engine, _why_engine(recipe, engine))
    if not ENGINES[engine].colocated:
        return
    if rollout.vllm.kv_cache_gb is None:
        at_once = sequences_at_once(recipe)
        why = f"room for {at_once} answers of a step at once, or as much as is free beside the weights"
        yield Chosen("rollout.vllm.kv_cache_gb", _cache(run), why)
    if rollout.vllm.max_sequences is None:
        answers = rollout.prompts_per_step * rollout.group_size
        why = f"a step has {answers} answers, and 256 is the most"
        yield Chosen("rollout.vllm.max_sequences", str(sequences_at_once(recipe)), why)


def _why_engine(recipe: Recipe, engine: str) -> str:
    if engine == PREFERRED:
        return "vLLM and a GPU are here, and it can serve this recipe"
    reasons = [] if cuda_devices() else ["no GPU was found"]
    if missing := missing_packages(ENGINES[PREFERRED], recipe.model.weights):
        reasons.append(f"not installed: {', '.join(missing)}")
    reasons += [what.replace("'auto'", "'vllm'") for what, _, _ in unservable(recipe, ENGINES[PREFERRED].can)]
    return f"vllm cannot run it here: {'; '.join(reasons)}"


def _cache(run: Built) -> str:
    """What vLLM was given; in words where this version of it does not tell."""
    try:
        return f"{_CACHE(run.engine) / GIB:.2f}"
    except (AttributeError, TypeError):
        return "by the free memory"


def _algorithm(recipe: Recipe) -> Iterator[Chosen]:
    """What the algorithm's name stands for, where the recipe leaves it so; the parts that are
    those of any algorithm left out.
    """
    use = recipe.algorithm.use
    row = complete(Algorithm(use=use), recipe.where("algorithm.use"))
    plain = flat(Algorithm(use=use).model_dump(mode="json", by_alias=True))
    parts = []
    for key, value in flat(row.model_dump(mode="json", by_alias=True)).items():
        differs = key not in plain or plain[key] != value
        if differs and _left_out(recipe, f"algorithm.{key}"):
            parts.append(f"{key}={_short(value)}")
    if parts:
        yield Chosen("algorithm", ", ".join(parts), f"that is what {use} stands for; any of them can be set")


def _left_out(recipe: Recipe, key: str) -> bool:
    """Whether a recipe says nothing of a key itself."""
    return recipe.where(key).endswith((f"({key})", f"({key}, by default)"))


def _short(value: Any) -> str:
    """As a recipe has it, floats with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False).strip('"')


def _rewards(run: Built) -> Iterator[Chosen]:
    recipe = run.recipe
    for i, reward in enumerate(recipe.rewards):
        if reward.use == "code" and reward.options.get("sandbox", "auto") == "auto":
            image = reward.options.get("image")
            given = "an image is given" if image else "no image is given"
            yield Chosen(f"rewards.{i}.sandbox", "docker" if image else "bwrap", given)
    if recipe.safety.reward_workers is None and any(part.pooled for part in run.reward.parts):
        why = f"one for each of {_cpus()} CPUs, at most {MOST_WORKERS}"
        yield Chosen("safety.reward_workers", str(run.reward.pool.size), why)


def _memory(run: Built) -> Iterator[Chosen]:
    memory, policy = run.recipe.memory, run.policy
    if memory.layout == "auto":
        begin = "memory.layout: "
        refused = [note.removeprefix(begin) for note in run.notes if note.startswith(begin)]
        trusted = "the probe gave the log-probs of `rows` in each; a step takes the cheapest of them"
        yield Chosen("memory.layout", ", ".join(policy.layouts), "; ".join([trusted, *refused]))
    if memory.logprob_chunk is None:
        free = free_bytes(policy.device)
        why = f"1/64 of the {free / GIB:.1f} GiB that are free, within 4 and 32 MiB"
        yield Chosen("memory.logprob_chunk", f"logits of {tile_bytes(free) >> 20} MiB at once", why)
    if memory.checkpointing == "auto":
        layers = layers_of(policy.base)
        count = sum(bool(layer.gradient_checkpointing) for layer in layers)
        value = f"{count} of {len(layers)} layers recomputed"
        yield Chosen("memory.checkpointing", value, _why_recomputed(run, count))


def _why_recomputed(run: Built, count: int) -> str:
    recomputing = [note for note in run.notes if note.startswith("recomputing ")]
    if count and recomputing:
        return recomputing[0].partition(": ")[2]
    if run.recipe.memory.offload_activations:
        return "memory.offload_activations keeps what the backward pass needs in CPU memory"
    tokens = f"{run.recipe.memory.micro_tokens:,} tokens"
    return f"the activations of a pass of {tokens} fit into the free memory, by a probe"


def _export(recipe: Recipe) -> Iterator[Chosen]:
    if recipe.export.base == "auto" and "merged" in recipe.export.formats and recipe.model.lora is not None:
        quantised = recipe.model.weights in ("nf4", "int8")
        value = "dequantized" if quantised else "original"
        why = f"the adapter was trained on them: base weights in {recipe.model.weights}"
        yield Chosen("export.base", value, why)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
