"""The folder of a run that is about to begin: a new one, or that of an earlier run to go on with."""

import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lgrpo_lite.data.template import now
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.folder.code import demand_unchanged
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.machine.disk import is_tree, text_of
from lgrpo_lite.recipe.bounds import name_fault
from lgrpo_lite.recipe.marks import differences, shown
from lgrpo_lite.recipe.reward import without_defaults
from lgrpo_lite.recipe.schema import Recipe

# Settings that may change when a run is resumed: they change no number of the steps already made.
FREE = (
    "train.steps", "train.save_every", "train.eval_every", "train.keep.last", "train.keep.best",
    "train.time_limit",
    "log", "export", "recipe", "safety", "rollout.server",
)  # fmt: skip
RESOLVED = "config.resolved.yaml"  # written when all of a recipe is known to load: from there on it is a run


def open_run(recipe: Recipe, runs: Path, name: str | None, resume: str) -> tuple[RunFolder, bool]:
    """The run folder and whether to resume in it. An existing run is never written over. Other settings, or
    files of Python that have changed: ConfigError.
    """
    if name is not None:
        check_name(name)
    path = runs / name if name is not None else None
    if path is None and resume == "auto":
        path = _unfinished(recipe, runs)
    folder = RunFolder(path or runs / _fresh_name(recipe))
    path = folder.path
    if folder.started and resume == "never":
        fix = "go on with it by --resume auto, or choose another --name"
        raise ConfigError("a run of that name exists", where=str(path), fix=fix)
    if not folder.started and folder.foreign:
        fix = "choose another --name"
        raise ConfigError("that folder exists and holds something else", where=str(path), fix=fix)
    changed = changes(path, recipe) if folder.started else []
    if changed:
        shown = "; ".join(changed[:5]) + ("; …" if len(changed) > 5 else "")
        fix = "resume with the settings it was started with, or choose another --name"
        raise ConfigError(f"the run has other settings: {shown}", where=str(path / RESOLVED), fix=fix)
    resumed = folder.started
    if resumed:
        demand_unchanged(path, recipe)
    folder.open()
    return folder, resumed


def dated(recipe: Recipe, path: Path, *, resumed: bool) -> Recipe:
    """The recipe with the time that its templates read as now: its own, else that of the run which goes on
    in this folder, else this one's begin. It is part of the settings that the folder keeps.
    """
    date = recipe.data.date
    if date is None and resumed:
        date = _kept_date(_began(path))
    marks = recipe._marks
    data = recipe.data.model_copy(update={"date": date or now()})
    recipe = recipe.model_copy(update={"data": data})
    recipe._marks = marks
    return recipe


def refuse_changed_code(recipe: Recipe, runs: Path, name: str) -> None:
    """What `open_run` refuses of the code of the run of that name, before any of it is executed."""
    check_name(name)
    folder = RunFolder(runs / name)
    if folder.started:
        demand_unchanged(folder.path, recipe)


def check_name(name: str) -> None:
    """A name that no run can have: ConfigError."""
    fault = name_fault(name)
    if fault is not None:
        fix = "choose a plain name; --runs says where runs are kept"
        raise ConfigError(f"no name of a run: {shown(name)}: {fault}", where="command line, --name", fix=fix)


def _fresh_name(recipe: Recipe) -> str:
    """The recipe, the time, and a part of the process id: two runs of one second are two."""
    began = time.strftime("%Y%m%d-%H%M%S")
    return f"{recipe.recipe.name}-{began}-{os.getpid() % 4096:03x}"


def _unfinished(recipe: Recipe, runs: Path) -> Path | None:
    """The newest run of the same settings that did not come to its end."""
    known = [file.parent for file in runs.glob(f"*/{RESOLVED}")]
    for path in sorted(known, key=lambda p: p.stat().st_mtime, reverse=True):
        with suppress(ConfigError):  # a foreign folder is no run to go on with
            if RunFolder(path).status.get("state") != "done" and not changes(path, recipe):
                return path
    return None


def changes(path: Path, recipe: Recipe) -> list[str]:
    """Settings of a run that a recipe has otherwise and that a resumed run may not change. Unreadable ones:
    ConfigError.
    """
    before = _comparable(_began(path))
    after = _comparable(yaml.safe_load(recipe.to_yaml()))
    free = FREE
    if recipe.data.date is None or _kept_date(before) is None:
        free = (*FREE, "data.date")  # see `dated`
    return differences(before, after, free)


def _began(path: Path) -> Any:
    """The settings a run was started with."""
    try:
        began = yaml.safe_load(text_of(path / RESOLVED))
        if not is_tree(began):
            raise ValueError("lists inside each other without end")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        fix = "put the file back from a copy, or choose another --name"
        what = f"the settings of the run cannot be read: {reason}"
        raise ConfigError(what, where=str(path / RESOLVED), fix=fix) from None
    return began


def _kept_date(settings: Any) -> datetime | None:
    """The time that a run's templates read; None where an earlier version kept none."""
    try:
        return datetime.fromisoformat(settings["data"]["date"])
    except (LookupError, TypeError, ValueError):
        return None


def _comparable(settings: Any) -> Any:
    """With the defaults of keys that an earlier version had not, and without the keys of rewards that it
    wrote for every reward.
    """
    with suppress(ValidationError, TypeError, RecursionError):
        settings = Recipe.model_validate(settings).model_dump(mode="json", by_alias=True)
    if not isinstance(settings, dict) or not isinstance(settings.get("rewards"), list):
        return settings
    rewards = []
    for reward in settings["rewards"]:
        rewards.append(without_defaults(reward) if isinstance(reward, dict) else reward)
    return {**settings, "rewards": rewards}
