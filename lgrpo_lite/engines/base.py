"""Rollout engines: who samples. No sampler exists outside `serving`, so none can hold stale weights.

net = engine.network(recipe)                 # the policy's network if the engine owns the weights, else None
with engine.serving(policy) as sampler:      # adapter in on entry, memory back on exit
    sampler.generate(prompts, n=8, sampling)
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from lgrpo_lite.errors import ConfigError, LgrpoError, nearest
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

Tick = Callable[[float], None] | None  # hears which share of some work is done


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """temperature 0 is greedy. There is no top-p or top-k: they would bias the policy ratio.

    Two calls with different `salt` share no cached prefix; the proof that a cache is not stale needs that.
    """

    temperature: float
    max_new_tokens: int
    salt: str | None = None
    tick: Tick = None  # hears how far a call is, from engines that can tell
    stop: tuple[str, ...] = ()  # texts that end an answer, see `answers`
    stop_shown: bool = True  # whether the text of an answer holds the one that ended it


def sampling_of(
    recipe: Recipe, temperature: float, *, salt: str | None = None, tick: Tick = None
) -> SamplingParams:
    """How the answers to a recipe's questions are sampled, in training and by every evaluation."""
    rollout = recipe.rollout
    return SamplingParams(
        temperature,
        recipe.model.max_new_tokens,
        salt,
        tick,
        stop=tuple(rollout.stop or ()),
        stop_shown=rollout.stop_shown,
    )


def share_of(tick: Tick, begin: float, size: float) -> Tick:
    """For a part of the work that `tick` hears of: it begins at the share `begin`, and `size` is its own."""
    return None if tick is None else lambda share: tick(begin + size * share)


class Sampler(Protocol):
    policy_version: int

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt, in order, each stamped with `policy_version`.

        `logprobs` are of the distribution that was sampled from, so at the temperature. An end token that was
        sampled is part of the completion, and so are the tokens of a stop string. With `prefixes`, one per
        prompt, a completion is the prefix and what the policy goes on with: `given` tokens of it were not
        sampled, `logprobs` are those of the rest, and max_new_tokens counts the whole.
        """
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it completions are those of the base model, without the adapter."""
        ...


class RolloutEngine(Protocol):
    """Made from a checked recipe. `notes` are things a user should know about how it runs here."""

    notes: tuple[str, ...]
    caches_prefixes: bool  # whether keys and values of a prompt outlive a rollout

    def network(self, recipe: Recipe):
        """The policy's network with a fresh adapter on the engine's base weights; None: it loads its own."""
        ...

    def serving(self, policy) -> AbstractContextManager[Sampler]: ...

    def fingerprint(self) -> str | None:
        """A checksum of all bits of the base weights it samples with; None: the policy's, or out of reach."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can serve; `checks.check` refuses recipes that ask for more before anything loads."""

    weights: tuple[str, ...] = ("nf4", "int8", "bf16", "fp16", "fp32")
    all_parameters: bool = True  # model.lora=null
    max_rank: int | None = None  # of the adapter
    head_adapter: bool = True  # LoRA on lm_head or the embeddings


@dataclass(frozen=True, slots=True)
class Engine:
    """A row of ENGINES: where the class lives, what it needs, what it can do."""

    path: str
    packages: tuple[str, ...] = ()
    extra: str = "train"
    needs_gpu: bool = False
    can: Capabilities = Capabilities()
    colocated: bool = False  # vLLM in this process: its cache and its graphs are on the trainer's card
    own_copy: bool = False  # of the base weights, where rollout.vllm.share_weights is off
    rows_only: bool = False  # its models take no layout but padded rows
    on_trainer: bool = False  # generate() of the network that is trained


_VLLM = Capabilities(("nf4", "bf16", "fp16", "fp32"), all_parameters=False, max_rank=512, head_adapter=False)
ENGINES = {
    "transformers": Engine(
        path="lgrpo_lite.engines.transformers:TransformersEngine",
        on_trainer=True,
    ),
    "vllm": Engine(
        path="lgrpo_lite.engines.vllm:VllmEngine",
        packages=("vllm",),
        extra="vllm",
        can=_VLLM,
        colocated=True,
        own_copy=True,
    ),
    "unsloth": Engine(
        path="lgrpo_lite.engines.unsloth:UnslothEngine",
        packages=("unsloth", "unsloth_zoo", "vllm"),
        extra="unsloth",
        needs_gpu=True,
        can=replace(_VLLM, weights=("nf4", "bf16")),
        colocated=True,
        rows_only=True,
    ),
    "vllm-server": Engine(
        path="lgrpo_lite.engines.server:ServerEngine",
        can=_VLLM,
    ),
}  # fmt: skip


# what `rollout.engine: auto` takes where it can run, and else
PREFERRED, FALLBACK = "vllm", "transformers"


def engine_name(recipe: Recipe) -> str:
    """The engine's name; `auto` is vllm where vLLM, a GPU and a recipe it can serve are, else transformers.

    Unknown: ConfigError. Imports nothing heavy.
    """
    name = recipe.rollout.engine
    where = recipe.where("rollout.engine")
    if name == "auto":
        row = ENGINES[PREFERRED]
        here = not missing_packages(row, recipe.model.weights) and cuda_devices() > 0
        if not here:
            return FALLBACK
        faults = list(unservable(recipe, row.can))
        return FALLBACK if faults else PREFERRED
    if name not in ENGINES:
        what = f"unknown engine {name!r}{nearest(name, list(ENGINES))}"
        raise ConfigError(what, where=where, fix=f"use one of: auto, {', '.join(ENGINES)}")
    return name


def engine_row(recipe: Recipe) -> Engine:
    return ENGINES[engine_name(recipe)]


def open_engine(recipe: Recipe) -> RolloutEngine:
    """Import and build the engine. A package or version that it cannot work with: EnvironmentFault."""
    module, _, name = engine_row(recipe).path.partition(":")
    return getattr(importlib.import_module(module), name)(recipe)


def missing_packages(row: Engine, weights: str) -> list[str]:
    """Packages the recipe needs that are not installed, without importing any."""
    quantised = weights in ("nf4", "int8")
    packages = ["torch", "transformers", "peft"]
    if quantised:
        packages.append("bitsandbytes")
    packages += row.packages
    if quantised and "vllm" in row.packages:
        packages.append("vllm_bnb_plugin")
    return [name for name in packages if not installed(name)]


def installed(package: str) -> bool:
    """Whether it can be imported; a mere folder of that name does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def unservable(recipe: Recipe, can: Capabilities) -> Iterator[tuple[str, str, str]]:
    """What the recipe asks of an engine that it cannot do: (why, the key, what to do)."""
    model = recipe.model
    lora = recipe.model.lora
    name = recipe.rollout.engine
    if model.weights not in can.weights:
        what = f"the engine {name!r} cannot serve {model.weights} weights"
        yield what, "model.weights", f"use {' or '.join(can.weights)}"
    if lora is None and not can.all_parameters:
        what = f"the engine {name!r} takes adapters, and model.lora=null trains all parameters"
        yield what, "rollout.engine", "train an adapter, or set rollout.engine=transformers"
    if lora and can.max_rank and lora.rank > can.max_rank:
        what = f"vLLM serves adapters up to rank {can.max_rank}"
        yield what, "model.lora.rank", f"set it to {can.max_rank} or less"
    if lora and not can.head_adapter:
        targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
        for target in targets:
            if target.rpartition(".")[2] in ("lm_head", "embed_tokens"):
                what = f"vLLM serves no adapter on {target}"
                yield what, "model.lora.targets", "leave it out, or set rollout.engine=transformers"


def given_tokens(
    prompts: Sequence[Prompt], prefixes: Sequence[Sequence[int]] | None, limit: int
) -> list[tuple[int, ...]]:
    """What each prompt's completions begin with, cut to `limit` tokens; nothing without prefixes."""
    if prefixes is None:
        return [()] * len(prompts)
    return [tuple(prefix)[:limit] for prefix in prefixes]


def not_finite(version: int) -> LgrpoError:
    """What to raise when there is nothing to sample from."""
    return LgrpoError(
        "the policy's probabilities are not finite, nothing can be sampled",
        where=f"rollout, policy version {version}",
        fix="look at the last steps in metrics.jsonl; "
        "start again under another --name with a smaller optim.lr",
    )
