"""The parts of a plan on the scales: the recipe's model is loaded, and a pass runs through it."""

from typing import Any, NamedTuple

from lgrpo_lite.plan.plan import plan
from lgrpo_lite.policy import budget, passes
from lgrpo_lite.policy.passes import Pass
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe

PROBED = 60  # answers that `prove.probe` can make up
TRAINER = (
    "base weights",
    "adapter",
    "gradient",
    "activations",
    "recomputed layer",
    "layer in work",
    "head tiles",
)


class Weighed(NamedTuple):
    """Bytes."""

    name: str
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted / self.measured if self.measured else float("nan")


def weigh(recipe: Recipe) -> list[Weighed]:
    """Base, adapter and what a small pass keeps, here; on a GPU also the peak of a full
    pass. Raises what loading raises.

    Predicted is what this device computes with: a CPU runs quantised weights in float32 and has no kernels
    of its own for packed sequences.
    """
    from lgrpo_lite.policy.memory import Saved, loaded_bytes, recompute
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.policy.prove import PROBED, probe

    policy = Policy.load(recipe)
    model, shape = recipe.model, Shape.of(policy.base.config, recipe.where("model.id"))
    base, adapter = loaded_bytes(policy.model)
    width = policy.dtype.itemsize
    trained = model.lora is None
    found = [
        Weighed(
            "base weights", budget.weights_bytes(shape, model.weights, compute=width, trained=trained), base
        )
    ]
    if model.lora:
        found.append(Weighed("adapter", 4 * sum(budget.adapter_sizes(shape, model.lora)), adapter))
    recompute(policy.base, 0)
    policy.offload = False
    batch = probe(shape.vocabulary, PROBED)
    with Saved(policy.model) as saved:
        policy.logprobs(batch)
    tokens = batch.num_sequences * (int(batch.length.max()) - 1)
    run = Pass(width, model.lora, gathered=False)
    found.append(
        Weighed(f"activations of {tokens} tokens", passes.saved_bytes(shape, run, tokens), saved.bytes)
    )
    if policy.device.type == "cuda":
        policy.offload = recipe.memory.offload_activations
        found.append(_peak(policy, recipe))
    return found


def full_pass(policy: Any, recipe: Recipe) -> tuple[Any, int, int]:
    """A batch of the recipe's longest answers that fills micro_tokens, its tokens as
    laid out, and its predicted peak.

    Settles the policy's layouts and recomputed layers as a run does. The peak is without
    sampler, moments and CUDA's own.
    """
    from lgrpo_lite.layout import size_of, split
    from lgrpo_lite.policy.memory import recompute
    from lgrpo_lite.policy.prove import probe, prove

    prove(policy, recipe)
    ahead, answer = recipe.model.max_prompt_tokens, recipe.model.max_new_tokens
    budgeted = recipe.memory.micro_tokens
    answers = ((ahead, answer),) * min(PROBED, budgeted // answer + 1)
    _, micro = split(probe(Shape.of(policy.base.config).vocabulary, answers), budgeted, policy.layouts)[0]
    tokens = size_of(micro, micro.layout)(range(micro.num_sequences))
    memory = recipe.memory.model_copy(update={"micro_tokens": tokens})
    expected = plan(recipe.model_copy(update={"memory": memory}), config=policy.base.config)
    recompute(policy.base, expected.recomputed)
    return micro, tokens, sum(part.at("update") for part in expected.parts if part.name in TRAINER)


def _peak(policy: Any, recipe: Recipe) -> Weighed:
    """Forward and backward of a full pass."""
    import torch

    micro, tokens, predicted = full_pass(policy, recipe)
    torch.cuda.reset_peak_memory_stats()
    policy.logprobs(micro).logp.sum().backward()
    return Weighed(f"peak of a pass of {tokens:,} tokens", predicted, torch.cuda.max_memory_allocated())
