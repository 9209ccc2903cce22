"""A run from its recipe to its exports: opened or resumed, planned, built,
trained, exported, its last word said.

    import lgrpo_lite
    result = lgrpo_lite.train("tiny-math", ["train.steps=20"])

is what `lgrpo-lite recipe tiny-math train.steps=20` does, less the drawing. Torch is imported when the run is
built, so that what is wrong with a recipe, its data or this machine is said at once.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lgrpo_lite.checks.check import check, demand
from lgrpo_lite.checks.describe import describe
from lgrpo_lite.checks.tried import try_algorithm
from lgrpo_lite.errors import EXIT_INTERRUPTED, ConfigError, DataError, EnvironmentFault, LgrpoError
from lgrpo_lite.folder.code import demand_unchanged, store, stored
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.folder.logs import log_to
from lgrpo_lite.folder.opening import RESOLVED, dated, open_run, refuse_changed_code
from lgrpo_lite.folder.report import write_report
from lgrpo_lite.machine.disk import disk_fault
from lgrpo_lite.machine.facts import cuda_devices, environment
from lgrpo_lite.plan.fit import faster
from lgrpo_lite.plan.plan import plan
from lgrpo_lite.recipe.code import code_of, told
from lgrpo_lite.recipe.read import load_recipe, recipe_text
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.train.stop import Stopped, StopRequest


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run. `exit_code` 0: it is done; 75, 129, 130 or 143: it was
    stopped, saved, and can be resumed. With a `fault`: it is done, and its upload is to be made again.
    """

    path: Path
    exit_code: int
    # adapter, merged: folders; check: how the merged one compares
    exports: dict[str, str] = field(default_factory=dict)
    at_once: bool = False  # stopped in the middle of a step, which is then made again
    fault: LgrpoError | None = None  # of an upload that failed after all else was done; its exit code is ours


@dataclass(frozen=True, slots=True)
class Caller:
    """Who starts a run, and how it is shown to them."""

    source: str | None = None  # the recipe's text, as the folder keeps it
    again: Callable[[Path], str] | None = None  # the command that goes on with the run in a folder
    screen: Callable[[RunFolder], AbstractContextManager] = lambda folder: nullcontext()  # while it fills
    say: Callable[[str], None] = logging.info  # hears a few lines


def train(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    runs: Path | str = "runs",
    name: str | None = None,
    resume: Literal["never", "auto"] = "never",
    caller: Caller | None = None,
) -> Result:
    """Check, plan, train, evaluate, export. Every fault is one of `errors`, with its exit code.

    `recipe`: a name, a file, or what `load_recipe` read. `resume="auto"` goes on with the run called
    `name`, or with the newest unfinished run of the same settings.
    """
    caller = caller or Caller()
    source = caller.source
    if isinstance(recipe, str):
        source = source or written(recipe, overrides)
        recipe = load_recipe(recipe, list(overrides))
    elif overrides:
        fix = "give them to `load_recipe`, or pass the recipe's name or file here"
        raise ConfigError(
            "a recipe that was read already takes no settings", where="train(overrides)", fix=fix
        )
    if name is not None and resume == "auto":
        refuse_changed_code(recipe, Path(runs), name)
    recipe = _checked(recipe, caller.say)
    demand(recipe, training=True)
    try_algorithm(recipe)
    expected = _planned(recipe, caller.say)
    describe(recipe)  # reads local data, so that a bad row is told before there is a run folder
    folder, resumed = open_run(recipe, Path(runs), name, resume)
    failed: type[Exception] | None = None
    recipe = dated(recipe, folder.path, resumed=resumed)
    if expected:
        folder.event("plan", lines=expected)
    try:
        _keep_code(recipe, folder, caller.say, resumed=resumed)
        folder.write("config.yaml", source or recipe.to_yaml())
        folder.write("env.json", json.dumps(environment(), indent=1))
        again = caller.again(folder.path) if caller.again else None
        folder.set_status("starting", folder.status.get("step", 0), resume=again)
        log_to(folder.log_path)
        caller.say(f"run {folder.path}")
        with (
            StopRequest(recipe.train.time_limit) as stop,
            folder.alive(lambda: stop.exit_code is not None),
            caller.screen(folder),
        ):
            run = _built(recipe, folder)
            from lgrpo_lite.train.loop import steps

            done = steps(run, folder, stop, resume=resumed)
            exports, fault = _exported(run, folder) if done else ({}, None)
            if done:
                _ended(folder, "done", 0)
        if done:
            _tell_untrained(folder, caller.say)
            return Result(folder.path, fault.exit_code if fault else 0, exports, fault=fault)
        code = stop.exit_code or EXIT_INTERRUPTED
        _ended(folder, "stopped", code)  # no heartbeat is left that would say `stopping` after it
        return Result(folder.path, code)
    except Stopped as stopped:
        _ended(folder, "stopped", stopped.exit_code)
        return Result(folder.path, stopped.exit_code, at_once=True)
    except Exception as error:
        failed = type(error)
        # None but for a disk: a local that holds the error would hold the run and its engine with it
        fault = disk_fault(error, folder.path)
        _failed(folder, fault or error)
        if fault is None:
            raise
        raise fault from error
    finally:
        folder.close()
        if failed is not None and not folder.started:
            _forget(folder, failed, caller.say)


def written(name_or_path: str, overrides: Sequence[str]) -> str:
    """The recipe's text with what was set on top of it, as a run folder keeps it."""
    return recipe_text(name_or_path)[0] + "".join(f"# {item}\n" for item in overrides)


# ------------------------------------------------------------ before


def _checked(recipe: Recipe, say: Callable[[str], None]) -> Recipe:
    """The recipe complete. What that executes is told before it is executed."""
    named = told(code_of(recipe))
    for line in named:
        say(line)
    recipe = check(recipe)
    for line in told(code_of(recipe)):
        if line not in named:  # an algorithm of the user's may name a file in turn
            say(line)
    return recipe


def _keep_code(recipe: Recipe, folder: RunFolder, say: Callable[[str], None], *, resumed: bool) -> None:
    """Copies of the files that the run executes. A run that has them already keeps those it began with."""
    files = code_of(recipe)
    if not files or (resumed and stored(folder.path) is not None):
        return
    store(folder.path, files)
    if resumed:
        message = "an earlier version began the run and kept no hash of its code: kept from here on"
        folder.event("warning", message=message)
        say(f"warning: {message}")


def _planned(recipe: Recipe, say: Callable[[str], None]) -> list[str]:
    """What the run will take of the GPU, told before it starts; what cannot fit is
    refused (exit 4). No GPU: nothing.
    """
    if not cuda_devices():
        return []
    try:
        expected = plan(recipe)
    except ConfigError as unknown:  # a family of models that it cannot count: the run may work all the same
        say(f"note: {unknown.what}, so its memory is not planned")
        return []
    for line in expected.lines():
        say(line)
    expected.demand()
    hint = faster(recipe)
    if hint:
        say(f"note: {hint}")
    return [*expected.lines(), *([hint] if hint else [])]


# ------------------------------------------------------------ what needs torch


def _built(recipe: Recipe, folder: RunFolder):
    """Everything loaded. Only then it is a run; a name with a typo in its data is not."""
    from lgrpo_lite.export.export import check_original
    from lgrpo_lite.train.build import build

    if "merged" in recipe.export.formats and recipe.export.base == "original":
        check_original(recipe)
    folder.set_status("loading", folder.status.get("step", 0))
    run = build(recipe)
    demand_unchanged(folder.path, recipe)  # what was read while it was built is what is kept
    run.reward.log_to(folder.log_path.with_name("rewards.log"))
    folder.write(RESOLVED, recipe.to_yaml())
    return run


def _exported(run, folder: RunFolder) -> tuple[dict[str, str], LgrpoError | None]:
    """What the recipe wants of a trained policy, by format, and why its upload failed if it did; the engine
    is closed before.
    """
    from lgrpo_lite.export.formats import FORMATS, Job, make

    recipe = run.recipe
    folder.set_status("exporting", recipe.train.steps)
    run.let_go()
    prompts = run.eval_prompts or run.prompts.prompts
    last = f"step-{recipe.train.steps:06d}"
    job = Job(recipe, folder.path, last, lambda: (run.policy, prompts), run.tools)
    exports = {}
    for kind in FORMATS:
        wanted = kind in recipe.export.formats and kind != "hub"
        if wanted and (kind != "adapter" or run.policy.has_adapter):
            made = make(kind, job, job.at(kind))
            exports[kind] = str(made.path)
            if made.lines:
                exports["check" if kind == "merged" else f"{kind} check"] = made.lines[0]
    fault = None
    if "hub" in recipe.export.formats:
        fault = _uploaded(job, folder, exports)
    run.reward.close()
    return exports, fault


def _uploaded(job, folder: RunFolder, exports: dict[str, str]) -> LgrpoError | None:
    """The last of the exports goes elsewhere, and may fail for reasons that are not the run's: that is told,
    and the run is done all the same.
    """
    from lgrpo_lite.export.formats import make
    from lgrpo_lite.export.hub import again

    try:
        exports["hub"] = str(make("hub", job, job.at("hub")).path)
        return None
    except LgrpoError as error:
        fault = error
    except Stopped as stopped:
        what = "the upload was stopped; what was trained and exported is there"
        fault = EnvironmentFault(what, where=str(folder.path), fix=again(job))
        fault.exit_code = stopped.exit_code
    if again(job) not in fault.fix:
        fault.fix = f"{fault.fix}; then: {again(job)}"
    folder.event("warning", message=f"not uploaded: {fault.what}; {fault.fix}")
    return fault


def _tell_untrained(folder: RunFolder, say: Callable[[str], None]) -> None:
    """Where no step of a run made an update, what it leaves is the base model."""
    steps = folder.rows("metrics.jsonl")
    if steps and all(step.get("skipped") for step in steps):
        why = steps[-1]["skipped"]
        say(f"warning: no step made an update ({why}): what is trained and exported is the base model still")


def _failed(folder: RunFolder, error: Exception) -> None:
    """The last word of a run that broke, as far as the disk takes it."""
    with suppress(OSError):
        logging.exception("the run failed", exc_info=error)
        folder.event("failed", message=getattr(error, "what", repr(error)))
    with suppress(OSError):
        _ended(folder, "failed", getattr(error, "exit_code", 1))


def _forget(folder: RunFolder, failed: type[Exception], say: Callable[[str], None]) -> None:
    """A start that failed leaves no run. Its log stays, beside the runs, where it may say more than the error
    does: that of a recipe or its data says all.
    """
    log = folder.discard(keep_log=not issubclass(failed, ConfigError | DataError))
    if log is not None:
        say(f"log {log}")


def _ended(folder: RunFolder, state: str, code: int) -> None:
    """The last word of a run, and its report with it."""
    folder.set_status(state, folder.status.get("step", 0), code)
    if folder.started:
        write_report(folder.path)
