"""Rollout engines: who samples. No sampler exists outside `serving`, so nothing can sample from stale weights.

with engine.serving(policy) as sampler:      # weights in on entry, memory back on exit
    sampler.generate(prompts, n=8, sampling)
"""

import importlib
import importlib.util
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from lgrpo_lite.config import Recipe
from lgrpo_lite.errors import ConfigError, EnvironmentFault, nearest
from lgrpo_lite.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """temperature 0 is greedy. There is no top-p or top-k: they would bias the policy ratio."""

    temperature: float
    max_new_tokens: int


class Sampler(Protocol):
    policy_version: int

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams, prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Completion]]:
        """n completions of each prompt, in order, each stamped with `policy_version`.

        With `prefixes`, one per prompt, a completion is the prefix and what the policy goes on with: `given` tokens of it
        were not sampled, `logprobs` are those of the rest, and max_new_tokens counts the whole.
        """
        ...


class RolloutEngine(Protocol):
    def serving(self, policy) -> AbstractContextManager[Sampler]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """A row of ENGINES: where the class lives, and what it needs. `path` None: known, but not in this version."""

    path: str | None
    packages: tuple[str, ...] = ()
    extra: str = "train"
    needs_gpu: bool = False


ENGINES = {
    "transformers": Engine("lgrpo_lite.engines.transformers:TransformersEngine"),
    "unsloth": Engine(None, ("unsloth", "vllm"), "unsloth", needs_gpu=True),
    "vllm": Engine(None, ("vllm",), "vllm", needs_gpu=True),
}


def engine_row(recipe: Recipe) -> Engine:
    """The row of the recipe's engine; `auto` is the fastest this version has. Unknown: ConfigError."""
    name, where = recipe.rollout.engine, recipe.where("rollout.engine")
    name = "transformers" if name == "auto" else name
    if name not in ENGINES:
        hint = nearest(name, list(ENGINES))
        raise ConfigError(f"unknown engine {name!r}{hint}", where=where, fix=f"use one of: auto, {', '.join(ENGINES)}")
    return ENGINES[name]


def open_engine(recipe: Recipe) -> RolloutEngine:
    """Import and build the engine. One that this version lacks: EnvironmentFault."""
    row = engine_row(recipe)
    if row.path is None:
        what = f"the engine {recipe.rollout.engine!r} is not in this version of lgrpo-lite"
        raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix="set rollout.engine=transformers")
    module, _, name = row.path.partition(":")
    return getattr(importlib.import_module(module), name)(recipe)


def missing_packages(row: Engine, weights: str) -> list[str]:
    """Packages the recipe needs that are not installed, without importing any."""
    wanted = ["torch", "transformers", "peft", *(["bitsandbytes"] if weights == "nf4" else []), *row.packages]
    return [name for name in wanted if importlib.util.find_spec(name) is None]
