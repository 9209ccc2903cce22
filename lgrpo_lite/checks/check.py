"""Settings that have no meaning together, each refused with its reason before anything loads. No torch."""

from collections.abc import Iterator
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
    algorithm = complete(recipe.algorithm, recipe.where("algorithm.use"))
    recipe = recipe.model_copy(update={"algorithm": algorithm})
    recipe._marks = marks

    def refuse(what: str, key: str, fix: str) -> None:
        raise ConfigError(what, where=recipe.where(key), fix=fix)

    for key, table in (("advantage", ADVANTAGES), ("surrogate", SURROGATES)):
        name = getattr(recipe.algorithm, key)
        if name not in table:
            from_file(name, recipe.where(f"algorithm.{key}"))
    for fault in contradictions(recipe):
        refuse(*fault)
    quantised = recipe.model.weights in ("nf4", "int8")
    if quantised and recipe.model.lora is None:
        fix = "set model.weights=bf16, or train an adapter"
        refuse("quantised weights cannot be trained themselves", "model.weights", fix)
    if not quantised and recipe.export.base == "dequantized":
        refuse("only a quantised base can be dequantized", "export.base", "set export.base=auto")
    check_template(recipe.data, recipe.where("data.template"))
    parts_of(recipe.rewards, recipe.where, recipe.model.max_new_tokens)
    rewards = complete_rewards(recipe.rewards, recipe.where)
    recipe = recipe.model_copy(update={"rewards": rewards})
    recipe._marks = marks
    for fault in unservable(recipe, engine_row(recipe).can):
        refuse(*fault)
    return recipe


def gold_fault_of(recipe: Recipe) -> GoldFault | None:
    """What tells a gold answer that the recipe's verifier cannot compare with; None where any text does."""
    if all(reward.use != "math" for reward in recipe.rewards):
        return None
    from lgrpo_lite.verifier.verify import gold_fault

    return gold_fault


def _missing_parts(recipe: Recipe) -> list[str]:
    """Packages that the data and the rewards need and that are not here."""
    sources = (*recipe.data.train, *recipe.data.eval)
    packages = []
    if any(source.hf and source.path is None for source in sources):
        packages.append("datasets")
    if any(source.path is not None and ending(Path(source.path)) == ".parquet" for source in sources):
        packages.append("pyarrow")
    if any(reward.use == "math" for reward in recipe.rewards):
        packages.append("math_verify")
    return [package for package in packages if find_spec(package) is None]


def demand(recipe: Recipe, *, loggers: bool = False) -> None:
    """All that the recipe needs of this machine: EnvironmentFault (exit 3) names what lacks. Light imports.

    `loggers`: what its `log` section asks for is needed too, as by training and by nothing else.
    """
    problems = list(_lacking(recipe, loggers))
    if not problems:
        return
    lacks = "; ".join(what for what, _ in problems)
    fix = "; ".join(fix for _, fix in problems)
    what = f"{recipe.recipe.name} cannot run here: {lacks}"
    raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix=fix)


def _lacking(recipe: Recipe, loggers: bool) -> Iterator[tuple[str, str]]:
    """(what lacks, what to do)."""
    row = engine_row(recipe)
    vram = recipe.recipe.min_vram_gb
    if (row.needs_gpu or vram) and not cuda_devices():
        size = f" with {vram:g} GB" if vram else ""
        fix = "run it on a machine with such a GPU, or try `lgrpo-lite recipe tiny-math` here"
        yield f"no NVIDIA GPU was found (it wants one{size})", fix
    missing = missing_packages(row, recipe.model.weights) + _missing_parts(recipe)
    if loggers:
        missing += missing_loggers(recipe)
    if missing:
        extras = [row.extra]
        if {"datasets", "pyarrow"} & set(missing):
            extras.append("data")
        if set(LOGGERS) & set(missing):
            extras.append("log")
        yield f"not installed: {', '.join(missing)}", f'pip install "lgrpo-lite[{",".join(extras)}]"'
    unset = missing_variables(recipe.rewards)
    if unset:
        yield f"not set: {', '.join(unset)}", "set that environment variable to the endpoint's key"
    no_sandbox = missing_sandbox(recipe.rewards)
    if no_sandbox:
        yield no_sandbox.what, no_sandbox.fix
