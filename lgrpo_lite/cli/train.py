"""`lgrpo-lite train FILE`: one run, from recipe to exported model. `recipe NAME` comes here too."""

import argparse
import json
import logging
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json
from lgrpo_lite.errors import EXIT_INTERRUPTED, ConfigError

# Settings that may change when a run is resumed: they change no number of the steps already made.
FREE = ("train.steps", "train.save_every", "train.eval_every", "train.keep.last", "train.keep.best",
"train.time_limit", "log",
        "export", "recipe", "safety", "rollout.server")  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite train FILE [key=value …] [options]"
    parser.add_argument(
        "words", nargs="+", metavar="FILE", help="a recipe file, then settings to change as key=value"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a run, shared with `recipe`."""
    parser.add_argument("--name", help="name of the run folder (default: recipe and time)")
    add_runs(parser)
    parser.add_argument(
        "--resume",
        choices=("never", "auto"),
        default="never",
        help=(
            "auto: go on with the run of that --name, or with the newest unfinished run of the same settings"
        ),
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything that needs no model, then stop"
    )
    parser.add_argument(
        "--ui", choices=("auto", "live", "plain", "none"), default="auto", help="how progress is shown"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    return train_recipe(args.words[0], args.words[1:], args, command="train")


def train_recipe(name_or_path: str, overrides: list[str], args: argparse.Namespace, *, command: str) -> int:
    """The main job: check, train, evaluate, export, show. Returns the exit code."""
    from lgrpo_lite.checks.check import check, demand
    from lgrpo_lite.recipe.read import load_recipe, recipe_text

    recipe = check(load_recipe(name_or_path, overrides))
    if args.dry_run:
        print("\n".join([*describe(recipe), "dry run: nothing was started"]))
        return 0
    demand(recipe, loggers=True)
    expected = _expected(recipe)
    describe(recipe)  # reads local data, so that a bad row is told before there is a run folder
    source = recipe_text(name_or_path)[0] + "".join(f"# {item}\n" for item in overrides)
    folder, resume = _open(recipe, args)
    if expected:
        folder.event("plan", lines=expected)
    try:
        return _train(recipe, folder, args, source=source, resume=resume, command=command)
    except Exception as error:
        logging.exception("the run failed")
        folder.event("failed", message=getattr(error, "what", repr(error)))
        _ended(folder, "failed", getattr(error, "exit_code", 1))
        raise
    finally:
        folder.close()


def _ended(folder, state: str, code: int) -> None:
    """The last word of a run, and its report with it."""
    from lgrpo_lite.folder.report import write_report

    folder.set_status(state, folder.status.get("step", 0), code)
    if folder.started:
        write_report(folder.path)


def _expected(recipe) -> list[str]:
    """What the run will take of the GPU, told before it starts; what cannot fit is
    refused (exit 4). No GPU: nothing.
    """
    from lgrpo_lite.machine.facts import cuda_devices
    from lgrpo_lite.plan.fit import faster
    from lgrpo_lite.plan.plan import plan

    if not cuda_devices():
        return []
    try:
        found = plan(recipe)
    except ConfigError as unknown:  # a family of models that it cannot count: the run may work all the same
        print(f"note: {unknown.what}, so its memory is not planned", file=sys.stderr)
        return []
    print("\n".join(found.lines()), file=sys.stderr)
    found.demand()
    told = faster(recipe)
    if told:
        print(f"note: {told}", file=sys.stderr)
    return [*found.lines(), *([told] if told else [])]


def describe(recipe) -> list[str]:
    """What a run of the recipe would be, without loading anything; local data is read and checked."""
    from lgrpo_lite.checks.rules import warnings

    r, a = recipe.rollout, recipe.algorithm
    adapter = f"LoRA rank {recipe.model.lora.rank}" if recipe.model.lora else "all parameters"
    bricks = (
        "best_draft",
        "guide",
        "refine_best",
        "probe_values",
        "value_cache",
        "select",
        "length_preference",
        "trace",
    )
    extra = [name for name in (*bricks, "prefix_share") if getattr(a, name)]
    form = f"clip {a.clip.low}/{a.clip.high}" if a.surrogate == "clipped" else a.surrogate
    lines = [
        f"recipe     {recipe.recipe.name}: {recipe.recipe.title}",
        f"model      {recipe.model.id} in {recipe.model.weights}, {adapter}",
        f"algorithm  {a.use}: {a.advantage}, {a.reduce}, {form}, kl {a.kl.coef}"
        + "".join(f", {name}" for name in extra),
        (
            f"rollout    {r.prompts_per_step} prompts × {r.group_size} answers of up to"
            f" {recipe.model.max_new_tokens} tokens, engine {r.engine}"
        ),
        f"training   {recipe.train.steps} steps",
    ]
    lines += [f"warning    {line}" for line in warnings(recipe)]
    return [*lines, *_describe_data(recipe)]


def _describe_data(recipe) -> list[str]:
    """What is known of the data without a network: rows, questions twice, questions of the
    evaluation that are trained on.
    """
    from lgrpo_lite.checks.check import gold_fault_of
    from lgrpo_lite.data.prompts import name, on_hub, shared, survey

    lines, told, questions = [], [], {"train": [], "eval": []}
    for which, asked in questions.items():
        sources = getattr(recipe.data, which)
        here = [(i, source) for i, source in enumerate(sources) if not on_hub(source)]
        places = [recipe.where(f"data.{which}.{i}") for i, _ in here]
        found, counts = survey([source for _, source in here], places.__getitem__, gold_fault_of(recipe))
        asked += [row.question for rows in found for row in rows]
        lines += [f"{which + ' data':10} {c.source}: {c.rows} rows" for c in counts]
        told += [f"note       {line}" for c in counts for line in c.notes()]
        lines += [f"{which + ' data':10} {name(s)}, on the Hub: not read now" for s in sources if on_hub(s)]
    if overlap := shared(questions["train"], questions["eval"]):
        told.append(f"warning    {overlap}")
    return [*lines, *told]


def _open(recipe, args: argparse.Namespace):
    """The run folder and whether to resume in it. An existing run is never written over."""
    from lgrpo_lite.folder.folder import RunFolder
    from lgrpo_lite.recipe.marks import differences

    if args.name:
        path = args.runs / args.name
    else:
        path = args.runs / f"{recipe.recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid() % 4096:03x}"
        if args.resume == "auto" and (found := _unfinished(recipe, args.runs)):
            path = found
    folder = RunFolder(path)
    if folder.started and args.resume == "never":
        fix = "go on with it by --resume auto, or choose another --name"
        raise ConfigError("a run of that name exists", where=str(path), fix=fix)
    if not folder.started and folder.foreign:
        raise ConfigError(
            "that folder exists and holds something else", where=str(path), fix="choose another --name"
        )
    if folder.started and (
        changed := differences((path / "config.resolved.yaml").read_text("utf-8"), recipe.to_yaml(), FREE)
    ):
        shown = "; ".join(changed[:5]) + ("; …" if len(changed) > 5 else "")
        fix = "resume with the settings it was started with, or choose another --name"
        raise ConfigError(
            f"the run has other settings: {shown}", where=str(path / "config.resolved.yaml"), fix=fix
        )
    resume = folder.started
    folder.open()
    return folder, resume


def _unfinished(recipe, runs: Path) -> Path | None:
    from lgrpo_lite.folder.folder import RunFolder
    from lgrpo_lite.recipe.marks import differences

    found = sorted(
        (p.parent for p in runs.glob("*/config.resolved.yaml")), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for path in found:
        same = not differences((path / "config.resolved.yaml").read_text("utf-8"), recipe.to_yaml(), FREE)
        if same and RunFolder(path).status.get("state") != "done":
            return path
    return None


def _train(recipe, folder, args: argparse.Namespace, *, source: str, resume: bool, command: str) -> int:
    from lgrpo_lite.cli.terminal.screen import Screen
    from lgrpo_lite.train.guard import Stopped, StopRequest

    folder.write("config.yaml", source)
    folder.write("env.json", json.dumps(_environment(), indent=1))
    folder.set_status(
        "starting", folder.status.get("step", 0), resume=resume_command(folder.path, args, command)
    )
    log_to(folder.log_path)
    print(f"run {folder.path}", file=sys.stderr)
    ui = "none" if args.json else args.ui
    screen = Screen(folder.path, ui, log=folder.log_path, fresh_only=True)
    try:
        with (
            StopRequest(recipe.train.time_limit) as stop,
            folder.alive(lambda: stop.exit_code is not None),
            screen,
        ):
            exports = _work(recipe, folder, stop, resume=resume)
    except Stopped as stopped:
        _ended(folder, "stopped", stopped.exit_code)
        print(f"stopped at once; go on with: {resume_command(folder.path, args, command)}", file=sys.stderr)
        return stopped.exit_code
    if exports is None:
        code = stop.exit_code or EXIT_INTERRUPTED
        _ended(folder, "stopped", code)
        print(f"saved; go on with: {resume_command(folder.path, args, command)}", file=sys.stderr)
        return code
    _show(folder.path, exports, args, command, plain=screen.mode == "plain")
    return 0


def resume_command(path: Path, args: argparse.Namespace, command: str) -> str:
    """What goes on with a run: the command that began it, with the run's name."""
    words = [word for word in args.words if word not in ("run",)] if command == "recipe" else args.words
    runs = [] if args.runs == Path("runs") else ["--runs", str(args.runs)]
    return shlex.join(["lgrpo-lite", command, *words, *runs, "--name", path.name, "--resume", "auto"])


def _work(recipe, folder, stop, *, resume: bool) -> dict | None:
    """Everything that needs torch. None: stopped on request."""
    from lgrpo_lite.export.export import check_original, export_adapter, export_merged
    from lgrpo_lite.train.build import build
    from lgrpo_lite.train.loop import train

    if "merged" in recipe.export.formats and recipe.export.base == "original":
        check_original(recipe)
    folder.set_status("loading", folder.status.get("step", 0))
    run = build(recipe)
    run.reward.log_to(folder.log_path.with_name("rewards.log"))
    # from here on it is a run; a name with a typo in its data is not
    folder.write("config.resolved.yaml", recipe.to_yaml())
    if not train(run, folder, stop, resume=resume):
        return None
    folder.set_status("exporting", recipe.train.steps)
    run.let_go()
    exports = {}
    if "adapter" in recipe.export.formats and run.policy.has_adapter:
        exports["adapter"] = str(export_adapter(run.policy, folder.path / "export" / "adapter"))
    if "merged" in recipe.export.formats:
        prompts = run.eval_prompts or run.prompts.prompts
        out, comparison = export_merged(
            run.policy, recipe, folder.path / "export" / "merged", prompts, base=recipe.export.base
        )
        exports["merged"] = str(out)
        exports["check"] = (
            f"{comparison.greedy_equal}/{comparison.prompts} greedy answers equal, "
            f"max |Δlogit| {comparison.max_logit_diff:.2g}"
        )
    run.reward.close()
    _ended(folder, "done", 0)
    return exports


def _show(path: Path, exports: dict, args: argparse.Namespace, command: str, *, plain: bool) -> None:
    """The result: the before/after table, λ's path, where the exports are. On stdout, but
    where that holds the steps' lines.
    """

    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.view import lambda_path, result_table

    view = Tail(path).refresh()
    if args.json:
        lam = view.records[-1].length_lambda if view.records else None
        result = {
            "run": str(path),
            "steps": view.step,
            "evals": view.evals,
            "length_lambda": lam,
            "exports": exports,
        }
        warnings = [w.get("message") or w.get("reason") for w in view.warnings]
        print_json(command, result, warnings)
        return
    out = sys.stderr if plain else sys.stdout
    screen = console(out)
    if view.evals:
        screen.print(result_table(view))
    if line := lambda_path(view):
        screen.print(line, highlight=False)
    for name, value in ({"run": str(path)} | exports).items():
        print(f"{name:8} {value}", file=out)


def _environment() -> dict:
    from importlib.metadata import distributions

    wanted = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "vllm", "unsloth", "lgrpo-lite")
    have = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"] in wanted}
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": have,
        "cpus": os.cpu_count(),
    }


def log_to(path: Path) -> None:
    """Libraries log to that file, not to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(
        filename=path, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", force=True
    )
    logging.captureWarnings(True)
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
