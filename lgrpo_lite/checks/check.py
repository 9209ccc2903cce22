"""Settings that have no meaning together, each refused with its reason before anything loads. No torch."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lgrpo_lite.checks.addresses import check_addresses
from lgrpo_lite.checks.exports import demand_upload, export_faults, missing_for_exports
from lgrpo_lite.checks.fault import Fault
from lgrpo_lite.checks.model import check_model, foreign_revision, reach_hub
from lgrpo_lite.checks.rules import contradictions, whatever_trains
from lgrpo_lite.data.files import ending
from lgrpo_lite.data.prompts import GoldFault, Wants
from lgrpo_lite.data.template import check_template
from lgrpo_lite.engines.base import engine_row, missing_packages, unservable
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, noted, raise_all
from lgrpo_lite.folder.sinks import LOGGERS, missing_loggers
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.machine.stacks import GGUF
from lgrpo_lite.objective.named import complete
from lgrpo_lite.policy.gguf_config import check_gguf
from lgrpo_lite.recipe.code import PARTS, files_of
from lgrpo_lite.recipe.data import Part
from lgrpo_lite.recipe.plugin import from_file, is_file, line_of, look_at
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.recipe.schema import Recipe, Source
from lgrpo_lite.rewards.code import missing_sandbox
from lgrpo_lite.rewards.form import form_of, reserved_by
from lgrpo_lite.rewards.judge import missing_variables
from lgrpo_lite.rewards.part import complete_one, part_of


def check(recipe: Recipe, *, imports: bool = True) -> Recipe:
    """The recipe with its algorithm and rewards complete. A contradiction: ConfigError (exit 2), with every
    other one in its `also`.

    `imports`: run the Python files that it names, as every run does. Without it they are looked at alone,
    and what comes out of them (`files_of`) is neither checked nor completed.
    """
    recipe, faults = examined(recipe, imports=imports)
    raise_all(faults)
    return recipe


def examined(recipe: Recipe, *, imports: bool = True) -> tuple[Recipe, list[LgrpoError]]:
    """`check`, with its faults beside the recipe; parts that are at fault stay as they were."""
    faults: list[LgrpoError] = []
    with noted(faults):
        recipe = held_out(recipe)
    known = imports or not is_file(recipe.algorithm.use)
    if known:
        known = False
        with noted(faults):
            algorithm = complete(recipe.algorithm, recipe.where("algorithm.use"))
            recipe = _with(recipe, algorithm=algorithm)
            known = True
    for key, use in files_of(recipe):
        with noted(faults):
            if not imports:
                look_at(use, recipe.where(key))
            elif key in PARTS:
                from_file(use, recipe.where(key))
    _told(recipe, contradictions(recipe) if known else whatever_trains(recipe), faults)
    _told(recipe, _weights(recipe), faults)
    _told(recipe, foreign_revision(recipe), faults)
    _told(recipe, export_faults(recipe), faults)
    with noted(faults):
        check_template(recipe.data, recipe.where)
    with noted(faults):
        check_gguf(recipe.model.id, recipe.where("model.id"))
    recipe = _with(recipe, rewards=_rewards(recipe, imports, faults))
    with noted(faults):
        check_addresses(recipe)
    with noted(faults):
        _told(recipe, unservable(recipe, engine_row(recipe).can), faults)
    return recipe, faults


def held_out(recipe: Recipe) -> Recipe:
    """The recipe with data.holdout as the parts of its sources: one to train on, one as data.eval."""
    share = recipe.data.holdout
    if share is None:
        return recipe
    place = recipe.where("data.holdout")
    if recipe.data.eval:
        what = "data.holdout takes questions of data.train for the evaluation, and data.eval names others"
        raise ConfigError(what, where=place, fix="remove one of the two")
    halves: dict[str, list[Source]] = {"train": [], "eval": []}
    for i, source in enumerate(recipe.data.train):
        if source.part is not None:
            what = "a part of this source is taken already"
            raise ConfigError(what, where=recipe.where(f"data.train.{i}.part"), fix="remove data.holdout")
        for which, sources in halves.items():
            part = Part(share=share, held_out=which == "eval", seed=recipe.seed)
            weight = source.weight if which == "train" else 1.0
            sources.append(source.model_copy(update={"part": part, "weight": weight}))
    recipe._marks.lines[("data", "eval")] = f"{place}, data.holdout"
    return _with(recipe, data=recipe.data.model_copy(update={**halves, "holdout": None}))


def _with(recipe: Recipe, **sections: Any) -> Recipe:
    """The recipe with other sections, and with the places of its settings."""
    changed = recipe.model_copy(update=sections)
    changed._marks = recipe._marks
    return changed


def _told(recipe: Recipe, found: Iterator[Fault], faults: list[LgrpoError]) -> None:
    """Contradictions as errors; of several at one key the first, since what mends it may mend the others."""
    told = {fault.key for fault in faults}
    for what, key, fix in found:
        if key not in told:
            faults.append(ConfigError(what, where=recipe.where(key), fix=fix, key=key))
            told.add(key)


def _weights(recipe: Recipe) -> Iterator[Fault]:
    quantised = recipe.model.weights in ("nf4", "int8")
    if quantised and recipe.model.lora is None:
        fix = "set model.weights=bf16, or train an adapter"
        yield "quantised weights cannot be trained themselves", "model.weights", fix
    if not quantised and recipe.export.base == "dequantized":
        yield "only a quantised base can be dequantized", "export.base", "set export.base=auto"


def _rewards(recipe: Recipe, imports: bool, faults: list[LgrpoError]) -> list[Reward]:
    """All rewards, checked and with their options complete where they may be imported."""
    rewards = list(recipe.rewards)
    for i, reward in enumerate(rewards):
        if not imports and is_file(reward.use):
            continue

        with noted(faults):
            part_of(i, recipe.rewards, recipe.where, recipe.model.max_new_tokens)
            rewards[i] = complete_one(i, reward, recipe.where)
    return rewards


def gold_fault_of(recipe: Recipe) -> GoldFault | None:
    """What tells a gold answer that the recipe's verifier cannot compare with; None where any text does."""
    if all(reward.use != "math" for reward in recipe.rewards):
        return None
    from lgrpo_lite.verifier.verify import gold_fault

    return gold_fault


def wants_of(recipe: Recipe, *, imports: bool = True) -> Wants:
    """What the rewards of a checked recipe want of a row. `imports` as in `check`: without it, of its own
    files' rewards nothing.
    """
    columns: dict[str, str] = {}
    every = False
    reserved: dict[str, None] = {}
    for i, reward in enumerate(recipe.rewards):
        if is_file(reward.use) and imports:
            function = from_file(reward.use, recipe.where(f"rewards.{i}.use"))
            form = form_of(function, reward.options)
            columns = dict.fromkeys(form.columns, line_of(reward.use)) | columns
            every = every or form.rest or bool(form.more)
            reserved |= dict.fromkeys(reserved_by(function, form))
    return Wants(gold_fault_of(recipe), columns, every, tuple(reserved))


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


def demand(recipe: Recipe, *, training: bool = False) -> None:
    """All that the recipe needs of this machine: EnvironmentFault (exit 3) names what lacks; a model that is
    not there is a fault of `check_model`. Light imports. The Hub out of reach: told in seconds.

    `training`: what its `log` section asks for is needed too, and an account for the upload at its end.
    """
    check_model(recipe)
    problems = list(_lacking(recipe, training))
    if not problems:
        if training:
            demand_upload(recipe)
        reach_hub(recipe)
        return
    lacks = "; ".join(what for what, _ in problems)
    fix = "; ".join(fix for _, fix in problems)
    what = f"{recipe.recipe.name} cannot run here: {lacks}"
    raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix=fix)


def _lacking(recipe: Recipe, training: bool) -> Iterator[tuple[str, str]]:
    """(what lacks, what to do)."""
    row = engine_row(recipe)
    vram = recipe.recipe.min_vram_gb
    if (row.needs_gpu or vram) and not cuda_devices():
        size = f" with {vram:g} GB" if vram else ""
        fix = "run it on a machine with such a GPU, or try `lgrpo-lite recipe tiny-math` here"
        yield f"no NVIDIA GPU was found (it wants one{size})", fix
    missing = missing_packages(row, recipe.model.weights) + _missing_parts(recipe)
    if training:
        missing += missing_loggers(recipe)
        missing += missing_for_exports(recipe)
    if missing:
        extras = [row.extra]
        if {"datasets", "pyarrow"} & set(missing):
            extras.append("data")
        if set(LOGGERS) & set(missing):
            extras.append("log")
        if set(GGUF) & set(missing):
            extras.append("gguf")
        yield f"not installed: {', '.join(missing)}", f'pip install "lgrpo-lite[{",".join(extras)}]"'
    unset = missing_variables(recipe.rewards)
    if unset:
        yield f"not set: {', '.join(unset)}", "set that environment variable to the endpoint's key"
    no_sandbox = missing_sandbox(recipe.rewards)
    if no_sandbox:
        yield no_sandbox.what, no_sandbox.fix
