"""`lgrpo-lite train FILE`: one run, from recipe to exported model. `recipe NAME` comes here too."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lgrpo_lite.cli.terminal.output import RUNS, add_import, add_json, add_runs, console, print_json, say

if TYPE_CHECKING:
    from lgrpo_lite.train.session import Result


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
    going_on = (
        "auto: go on with the run of that --name, or with the newest unfinished run of the same settings"
    )
    parser.add_argument("--resume", choices=("never", "auto"), default="never", help=going_on)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything that needs no model, then stop"
    )
    add_import(parser, "of --dry-run and `recipe show`: ")
    how = ("auto", "live", "plain", "none")
    parser.add_argument("--ui", choices=how, default="auto", help="how progress is shown")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    return start(args.words[0], args.words[1:], args, command="train")


def start(name_or_path: str, overrides: list[str], args: argparse.Namespace, *, command: str) -> int:
    """The main job, shown while it runs. Returns the exit code."""
    from lgrpo_lite.recipe.read import load_recipe

    recipe = load_recipe(name_or_path, overrides)
    if args.dry_run:
        from lgrpo_lite.checks.check import check
        from lgrpo_lite.checks.describe import describe, not_run
        from lgrpo_lite.checks.model import check_model
        from lgrpo_lite.folder.opening import check_name

        if args.name is not None:
            check_name(args.name)
        recipe = check(recipe, imports=args.imports)
        check_model(recipe)
        lines = describe(recipe, imports=args.imports)
        if not args.imports:
            lines += [f"note       {line}" for line in not_run(recipe)]
        if args.json:
            print_json(command, {"lines": lines})
            return 0
        say(*lines, "dry run: nothing was started")
        return 0
    from lgrpo_lite.cli.terminal.screen import Screen
    from lgrpo_lite.train import session

    screens: list[Screen] = []

    def screen(folder) -> Screen:
        ui = "none" if args.json else args.ui
        screens.append(Screen(folder.path, ui, log=folder.log_path, fresh_only=True))
        return screens[0]

    again = partial(resume_command, args=args, command=command)
    source = session.written(name_or_path, overrides)
    caller = session.Caller(source, again, screen, say=partial(say, file=sys.stderr))
    result = session.train(recipe, runs=args.runs, name=args.name, resume=args.resume, caller=caller)
    if result.exit_code and result.fault is None:
        how = "stopped at once" if result.at_once else "saved"
        say(f"{how}; go on with: {again(result.path)}", file=sys.stderr)
        return result.exit_code
    _show(result, args, command, plain=screens[0].mode == "plain")
    if result.fault is not None:
        say(*result.fault.lines(), file=sys.stderr)
    return result.exit_code


def resume_command(path: Path, args: argparse.Namespace, command: str) -> str:
    """What goes on with a run: the command that began it, with the run's name."""
    words = args.words
    if command == "recipe":
        words = [word for word in words if word != "run"]
    runs = [] if args.runs == RUNS else ["--runs", str(args.runs)]
    return shlex.join(["lgrpo-lite", command, *words, *runs, "--name", path.name, "--resume", "auto"])


def _show(result: "Result", args: argparse.Namespace, command: str, *, plain: bool) -> None:
    """The before/after table, λ's path, where the exports are. On stdout, or on stderr where stdout holds the
    steps' lines.
    """
    from lgrpo_lite.monitor.tables import lambda_path
    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.view import result_table

    view = Tail(result.path).refresh()
    if args.json:
        report = {
            "run": str(result.path),
            "steps": view.step,
            "evals": view.evals,
            "length_lambda": view.records[-1].length_lambda if view.records else None,
            "exports": result.exports,
        }
        warnings = [w.get("message") or w.get("reason") for w in view.warnings]
        print_json(command, report, warnings)
        return
    out = sys.stderr if plain else sys.stdout
    screen = console(out)
    if view.evals:
        screen.print(result_table(view))
    line = lambda_path(view)
    if line:
        screen.print(line, highlight=False)
    for name, value in {"run": str(result.path), **result.exports}.items():
        say(f"{name:8} {value}", file=out)
