"""`lgrpo-lite baseline`: what a recipe's model makes of its training prompts before training.
Trains nothing.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_json, add_recipe, print_json, say, tell_code
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError

PROMPTS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite baseline FILE|NAME [key=value …] [-n PROMPTS] [--json]"
    add_recipe(parser, "FILE|NAME")
    parser.add_argument(
        "-n", type=int, default=PROMPTS, metavar="PROMPTS", help=f"prompts of data.train (default: {PROMPTS})"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Sample groups as the first steps would. No signal: exit 5, with the likeliest cause."""
    from lgrpo_lite.checks.check import check, demand
    from lgrpo_lite.folder.logs import log_to
    from lgrpo_lite.recipe.read import load_recipe

    if args.n < 1:
        raise ConfigError(
            "no prompts to look at", where=f"command line, -n {args.n}", fix="give -n 1 or more"
        )
    recipe = load_recipe(args.words[0], args.words[1:])
    tell_code(recipe)
    recipe = check(recipe)
    demand(recipe)
    with showing(as_json=args.json), tempfile.TemporaryDirectory() as folder:
        log_to(Path(folder) / "main.log")
        from lgrpo_lite.evaluation.signal import as_json, cause, demand_signal
        from lgrpo_lite.train.baseline import measure
        from lgrpo_lite.train.build import build

        run_ = build(recipe)
        try:
            measured = measure(run_, run_.prompts.first(args.n))
        finally:
            run_.reward.close()
            run_.engine.close()
    assert measured is not None, "nothing asked it to stop"
    likeliest, fix = (None, None) if measured.signal else cause(measured, recipe)
    notes = [*run_.notes, *run_.warnings]
    if args.json:
        result = as_json(measured) | {"cause": likeliest, "fix": fix}
        print_json("baseline", result, notes, ok=measured.signal)
    else:
        say(*measured.lines())
        for note in notes:
            say(f"note: {note}", file=sys.stderr)
    demand_signal(measured, recipe)
    return 0
