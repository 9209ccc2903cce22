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
    """Base, adapter and what a small pass keeps; on a GPU also a full pass's peak. Raises what loading does.

    Predicted is what this device computes with: a CPU runs quantised weights in float32 and has no kernels
    of its own for packed sequences.
    """
    from lgrpo_lite.policy.memory import Saved, loaded_bytes, recompute
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.policy.prove import PROBED, probe

    policy = Policy.load(recipe)
    model = recipe.model
    shape = Shape.of(policy.base.config, recipe.where("model.id"))
    base, adapter = loaded_bytes(policy.model)
    width = policy.dtype.itemsize
    predicted = budget.weights_bytes(shape, model.weights, compute=width, trained=model.lora is None)
    weighed = [Weighed("base weights", predicted, base)]
    if model.lora:
        predicted = 4 * sum(budget.adapter_sizes(shape, model.lora))
        weighed.append(Weighed("adapter", predicted, adapter))
    recompute(policy.base, 0)
    policy.offload = False
    batch = probe(shape.vocabulary, PROBED)
    with Saved(policy.model) as saved:
        policy.logprobs(batch)
    longest = int(batch.length.max())
    tokens = batch.num_sequences * (longest - 1)
    run = Pass(width, model.lora, gathered=False)
    predicted = passes.saved_bytes(shape, run, tokens)
    weighed.append(Weighed(f"activations of {tokens} tokens", predicted, saved.bytes))
    if policy.device.type == "cuda":
        policy.offload = recipe.memory.offload_activations
        weighed.append(_peak(policy, recipe))
    return weighed


def full_pass(policy: Any, recipe: Recipe) -> tuple[Any, int, int]:
    """A batch of the recipe's longest answers that fills micro_tokens, its tokens and its predicted peak.

    Settles the policy's layouts and recomputed layers as a run does. The peak is without sampler, moments
    and CUDA's own.
    """
    from lgrpo_lite.layout import size_of, split
    from lgrpo_lite.policy.memory import recompute
    from lgrpo_lite.policy.prove import probe, prove

    prove(policy, recipe)
    prompt = recipe.model.max_prompt_tokens
    answer = recipe.model.max_new_tokens
    most = recipe.memory.micro_tokens
    count = min(PROBED, most // answer + 1)
    answers = ((prompt, answer),) * count
    batch = probe(Shape.of(policy.base.config).vocabulary, answers)
    _, micro = split(batch, most, policy.layouts_for(batch))[0]
    tokens = size_of(micro, micro.layout)(range(micro.num_sequences))
    memory = recipe.memory.model_copy(update={"micro_tokens": tokens})
    resized = recipe.model_copy(update={"memory": memory})
    expected = plan(resized, config=policy.base.config)
    recompute(policy.base, expected.recomputed)
    peak = sum(part.at("update") for part in expected.parts if part.name in TRAINER)
    return micro, tokens, peak


def _peak(policy: Any, recipe: Recipe) -> Weighed:
    """Forward and backward of a full pass."""
    import torch

    micro, tokens, predicted = full_pass(policy, recipe)
    torch.cuda.reset_peak_memory_stats()
    policy.logprobs(micro).logp.sum().backward()
    measured = torch.cuda.max_memory_allocated()
    return Weighed(f"peak of a pass of {tokens:,} tokens", predicted, measured)
