"""Combinations of settings that have no meaning, each refused with its reason, before
anything is loaded. No torch here.
"""

from importlib.util import find_spec
from pathlib import Path

from lgrpo_lite.checks.rules import contradictions
from lgrpo_lite.data.files import ending
from lgrpo_lite.data.prompts import GoldFault
from lgrpo_lite.data.template import check_template
from lgrpo_lite.engines.base import engine_row, missing_packages, unservable
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.folder.sinks import LOGGERS, missing_loggers
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.objective.named import complete
from lgrpo_lite.recipe.algorithm import ADVANTAGES, SURROGATES
from lgrpo_lite.recipe.plugin import from_file
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.code import missing_sandbox
from lgrpo_lite.rewards.judge import missing_variables
from lgrpo_lite.rewards.part import complete as complete_rewards
from lgrpo_lite.rewards.part import parts_of


def check(recipe: Recipe) -> Recipe:
    """The recipe with its algorithm and rewards complete. A contradiction: ConfigError (exit 2)."""
    marks = recipe._marks
    recipe = recipe.model_copy(
        update={"algorithm": complete(recipe.algorithm, recipe.where("algorithm.use"))}
    )
    recipe._marks = marks

    def refuse(what: str, key: str, fix: str) -> None:
        raise ConfigError(what, where=recipe.where(key), fix=fix)

    for key, table in (("advantage", ADVANTAGES), ("surrogate", SURROGATES)):
        name = getattr(recipe.algorithm, key)
        if name not in table:
            from_file(name, recipe.where(f"algorithm.{key}"))
    for fault in contradictions(recipe):
        refuse(*fault)
    if recipe.model.weights in ("nf4", "int8") and recipe.model.lora is None:
        refuse(
            "quantised weights cannot be trained themselves",
            "model.weights",
            "set model.weights=bf16, or train an adapter",
        )
    if recipe.model.weights not in ("nf4", "int8") and recipe.export.base == "dequantized":
        refuse("only a quantised base can be dequantized", "export.base", "set export.base=auto")
    check_template(recipe.data, recipe.where("data.template"))
    parts_of(recipe.rewards, recipe.where, recipe.model.max_new_tokens)
    recipe = recipe.model_copy(update={"rewards": complete_rewards(recipe.rewards, recipe.where)})
    recipe._marks = marks
    for fault in unservable(recipe, engine_row(recipe).can):
        refuse(*fault)
    return recipe


def gold_fault_of(recipe: Recipe) -> GoldFault | None:
    """What tells a gold answer that the recipe's verifier cannot compare with;
    None where any text will do.
    """
    if all(reward.use != "math" for reward in recipe.rewards):
        return None
    from lgrpo_lite.verifier.verify import gold_fault

    return gold_fault


def _missing_parts(recipe: Recipe) -> list[str]:
    """Packages that the data and the rewards need and that are not here."""
    sources = (*recipe.data.train, *recipe.data.eval)
    needed = {
        "datasets": any(s.hf and s.path is None for s in sources),
        "pyarrow": any(s.path is not None and ending(Path(s.path)) == ".parquet" for s in sources),
        "math_verify": any(reward.use == "math" for reward in recipe.rewards),
    }
    return [package for package, wanted in needed.items() if wanted and find_spec(package) is None]


def demand(recipe: Recipe, *, loggers: bool = False) -> None:
    """What the recipe needs of this machine, all at once: EnvironmentFault (exit 3) that
    names it. Imports nothing heavy.

    `loggers`: what its `log` section asks for is needed too, as by training and by nothing else.
    """
    row = engine_row(recipe)
    missing = missing_packages(row, recipe.model.weights)
    missing += _missing_parts(recipe) + (missing_loggers(recipe) if loggers else [])
    no_gpu = bool(row.needs_gpu or recipe.recipe.min_vram_gb) and not cuda_devices()
    lacks = []
    if no_gpu:
        size = f" with {recipe.recipe.min_vram_gb:g} GB" if recipe.recipe.min_vram_gb else ""
        lacks.append(f"no NVIDIA GPU was found (it wants one{size})")
    if missing:
        lacks.append(f"not installed: {', '.join(missing)}")
    unset = missing_variables(recipe.rewards)
    if unset:
        lacks.append(f"not set: {', '.join(unset)}")
    no_sandbox = missing_sandbox(recipe.rewards)
    if no_sandbox:
        lacks.append(no_sandbox.what)
    if not lacks:
        return
    fix = []
    if no_gpu:
        fix.append("run it on a machine with such a GPU, or try `lgrpo-lite recipe tiny-math` here")
    if missing:
        extras = {
            row.extra: True,
            "data": {"datasets", "pyarrow"} & set(missing),
            "log": set(LOGGERS) & set(missing),
        }
        fix.append(f'pip install "lgrpo-lite[{",".join(name for name, wanted in extras.items() if wanted)}]"')
    if unset:
        fix.append("set that environment variable to the endpoint's key")
    if no_sandbox:
        fix.append(no_sandbox.fix)
    what = f"{recipe.recipe.name} cannot run here: {'; '.join(lacks)}"
    raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix="; ".join(fix))
