"""`lgrpo-lite serve-cmd RUN`: the commands that serve what a run exported. Printed, never run."""

import argparse

from lgrpo_lite.cli.terminal.output import add_json, add_runs, print_json, say
from lgrpo_lite.cli.watch import add_run, run_named


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite serve-cmd [RUN] [options]"
    add_run(parser)
    add_runs(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.export.serving import asking_line, not_exported, serving_lines
    from lgrpo_lite.recipe.read import load_recipe

    path = run_named(args)
    recipe = load_recipe(str(path / "config.resolved.yaml"))  # complete; no code of it is executed
    lines = serving_lines(recipe, path)
    missing = not_exported(recipe, path, lines)
    asking = asking_line(recipe, path, lines[0].by) if lines else None
    if args.json:
        rows = [line._asdict() for line in lines]
        begun = {"system": recipe.data.system, "prefill": recipe.data.prefill}
        result = {"lines": rows, "ask": asking, **begun, "not_exported": missing}
        print_json("serve-cmd", result)
        return 0
    for line in lines:
        say(f"# {line.export}, by {line.by}", *(f"# {note}" for note in line.notes), line.command)
    for kind, command in missing.items():
        say(f"# no {kind} is there yet: {command}")
    if recipe.data.system:
        say(f"# system message, in the chat template of each: {recipe.data.system!r}")
    if recipe.data.prefill:
        say(f"# every answer is begun with {recipe.data.prefill!r}, which the reply leaves out")
    if asking:
        say(f"# a question, as the run asked it, to {lines[0].by}", asking)
    return 0
