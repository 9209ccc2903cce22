"""Has this machine room for a policy and its merged model? By the model's config and what is free."""

from math import prod

import torch

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.merge import SHARD_BYTES
from lgrpo_lite.policy.budget import GIB, ON_CPU, WIDTH, adapter_sizes, weights_bytes
from lgrpo_lite.policy.load import config_of, device_of
from lgrpo_lite.policy.memory import free_bytes
from lgrpo_lite.policy.passes import VERIFY_SPARE, checked_bytes, merged_bytes, merged_width
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe

CPU = torch.device("cpu")
HELD = {"nf4": 1, "int8": 1}  # bytes of a number, statistics and unquantised layers included: no less


def too_little(recipe: Recipe) -> str | None:
    """Why a merge has to be made in slices, before anything is loaded; None: there is room for all of it.

    Room is: for the policy on its device, and for the merged model beside it or, of a GPU's policy, in the
    machine's memory, through which a policy that is not quantised also passes on its way to a GPU.
    """
    device = device_of()
    policy, merged, answer = _sizes(recipe, device)
    free = int((1 - VERIFY_SPARE) * free_bytes(device))
    host = int((1 - VERIFY_SPARE) * free_bytes(CPU))
    if device.type == "cpu":
        return _more(policy + max(merged + answer, SHARD_BYTES), free, "policy and merged model take")
    through = 0 if recipe.model.weights in ("nf4", "int8") else policy
    beside = policy + merged + answer <= free or merged <= host
    alone = "the merged model takes"
    return (
        _more(policy + answer, free, "the policy takes")
        or _more(max(through, SHARD_BYTES), host, "the policy passes through the machine's memory with")
        or (None if beside else _more(merged, host, alone))
    )


def _more(needed: int, free: int, what: str) -> str | None:
    return f"{what} {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free" if needed > free else None


def _sizes(recipe: Recipe, device: torch.device) -> tuple[int, int, int]:
    """Bytes of the policy, of the merged model, and of what an answer of both takes."""
    model = recipe.model
    width = (ON_CPU if device.type == "cpu" else WIDTH)[model.weights]
    try:
        shape = Shape.of(config_of(model, recipe.where("model.id")).to_dict())
    except ConfigError:  # a family whose numbers are not known from its config: those of its files are
        numbers = _stored_numbers(recipe)
        held = 4 if model.lora is None else HELD.get(model.weights, width)
        return held * numbers, merged_width(recipe, width) * numbers, 0
    adapter = 4 * sum(adapter_sizes(shape, model.lora)) if model.lora else 0
    policy = weights_bytes(shape, model.weights, compute=width, trained=model.lora is None) + adapter
    answer = checked_bytes(shape, model.lora, 1, model.max_prompt_tokens)
    return policy, merged_bytes(shape, recipe, width), answer


def _stored_numbers(recipe: Recipe) -> int:
    """Of the base's files; 0 where they are not on this machine: whoever loads it finds out."""
    try:
        given = Given.of(recipe.model, recipe.where("model.id"))
    except ConfigError:
        return 0
    shapes = [given.shape(name) for name in given.files]
    given.close()
    return sum(prod(shape) for shape in shapes if shape is not None)
