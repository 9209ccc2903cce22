"""Combinations of settings that have no meaning, each refused with its reason, before anything is loaded. No torch here."""

import ctypes
import math
from importlib.util import find_spec

from lgrpo_lite.config import Recipe
from lgrpo_lite.engines.base import engine_row, missing_packages
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.objective.named import complete
from lgrpo_lite.rewards.base import RewardSum


def check(recipe: Recipe) -> Recipe:
    """The recipe with its algorithm complete. The first contradiction raises ConfigError (exit 2)."""
    marks = recipe._marks
    recipe = recipe.model_copy(update={"algorithm": complete(recipe.algorithm, recipe.where("algorithm.use"))})
    recipe._marks = marks
    a, g = recipe.algorithm, recipe.rollout.group_size

    def refuse(what: str, key: str, fix: str) -> None:
        raise ConfigError(what, where=recipe.where(key), fix=fix)

    if g < 2:
        what = f"group_size {g} with {a.use!r}: the advantage compares the answers of a group, one answer has nothing to compare"
        refuse(what, "rollout.group_size", "set rollout.group_size to 2 or more")
    if a.length_preference and a.length_preference.r * math.sqrt(g - 1) >= 1:
        what = f"r={a.length_preference.r:.3g} with group_size {g}: h = 1 + r z may reach 0, since z may reach sqrt(G-1)"
        refuse(what, "algorithm.length_preference.r", f"set r below {1 / math.sqrt(g - 1):.3g}, or a smaller group_size")
    if a.kl.coef > 0 and recipe.model.lora is None:
        what = "a KL needs a reference, which is the adapter switched off; with model.lora=null there is none"
        refuse(what, "algorithm.kl.coef", "set algorithm.kl.coef=0, or train an adapter")
    if recipe.model.weights == "nf4" and recipe.model.lora is None:
        refuse("4-bit weights cannot be trained themselves", "model.weights", "set model.weights=bf16, or train an adapter")
    if recipe.model.weights != "nf4" and recipe.export.base == "dequantized":
        refuse("only a 4-bit base can be dequantized", "export.base", "set export.base=auto")
    if a.reduce_constant is not None and a.reduce != "constant":
        refuse(f"reduce_constant is not read by reduce={a.reduce}", "algorithm.reduce_constant", "remove it")
    preference = a.length_preference
    if preference and preference.clamp and not preference.clamp[0] <= preference.lambda_init <= preference.clamp[1]:
        what = f"lambda_init {preference.lambda_init:g} lies outside clamp {list(preference.clamp)}"
        refuse(what, "algorithm.length_preference.clamp", "widen clamp, or set it to null")
    RewardSum(recipe.rewards, recipe.where)
    engine_row(recipe)
    return recipe


def demand(recipe: Recipe) -> None:
    """What the recipe needs of this machine, all at once: EnvironmentFault (exit 3) that names it. Imports nothing heavy."""
    row = engine_row(recipe)
    missing = missing_packages(row, recipe.model.weights)
    if any(s.hf and not s.path for s in (*recipe.data.train, *recipe.data.eval)) and find_spec("datasets") is None:
        missing.append("datasets")
    no_gpu = bool(row.needs_gpu or recipe.recipe.min_vram_gb) and not cuda_devices()
    lacks = []
    if no_gpu:
        size = f" with {recipe.recipe.min_vram_gb:g} GB" if recipe.recipe.min_vram_gb else ""
        lacks.append(f"no NVIDIA GPU was found (it wants one{size})")
    if missing:
        lacks.append(f"not installed: {', '.join(missing)}")
    if row.path is None:
        lacks.append(f"the engine {recipe.rollout.engine!r} is not in this version")
    if not lacks:
        return
    fix = []
    if no_gpu:
        fix.append("run it on a machine with such a GPU, or try `lgrpo-lite recipe tiny-math` here")
    if missing:
        fix.append(f'pip install "lgrpo-lite[{row.extra}{",data" if "datasets" in missing else ""}]"')
    if row.path is None:
        fix.append("set rollout.engine=transformers, which samples slowly but everywhere")
    what = f"{recipe.recipe.name} cannot run here: {'; '.join(lacks)}"
    raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix="; ".join(fix))


def cuda_devices() -> int:
    """NVIDIA GPUs the driver reports, without importing torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
