"""`lgrpo-lite recipe`: ls, show, cp, run; a bare name is run."""

import argparse
import sys
from pathlib import Path

from lgrpo_lite.cli import train
from lgrpo_lite.cli.terminal.output import console, print_json, say, summary
from lgrpo_lite.errors import ConfigError

SHOWN = ("name", "GPU", "algorithm", "what")  # of a recipe's row; --json has all of it
USAGE = """lgrpo-lite recipe                             list the recipes
lgrpo-lite recipe NAME [key=value …]          run one (short for `recipe run NAME`)
lgrpo-lite recipe show NAME [key=value …]     print it as it would run, defaults included
lgrpo-lite recipe cp NAME FILE                copy it to edit; `lgrpo-lite train FILE` runs the copy"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument(
        "words", nargs="*", metavar="ls|show|cp|run|NAME", help="a verb, a recipe's name, key=value settings"
    )
    parser.add_argument("--force", action="store_true", help="cp: replace an existing file")
    train.add_options(parser)


def run(args: argparse.Namespace) -> int:
    verb, *words = args.words or ["ls"]
    if verb not in ("ls", "show", "cp", "run"):
        verb, words = "run", args.words
    if verb == "ls":
        return _list(args)
    if not words:
        raise ConfigError(
            f"recipe {verb} needs a name", where="command line", fix="`lgrpo-lite recipe ls` lists them"
        )
    if verb == "cp":
        return _copy(words, args)
    if verb == "show":
        return _show(words, args)
    return train.start(words[0], words[1:], args, command="recipe")


def _show(words: list[str], args: argparse.Namespace) -> int:
    """The settings alone on stdout, so that they may go into a file."""
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.checks.describe import not_run
    from lgrpo_lite.monitor.text import visible
    from lgrpo_lite.recipe.read import load_recipe

    recipe = check(load_recipe(words[0], words[1:]), imports=args.imports)
    notes = [] if args.imports else not_run(recipe)
    if args.json:
        print_json("recipe show", recipe.model_dump(mode="json", by_alias=True), notes)
        return 0
    text = recipe.to_yaml()
    if visible(text) != text:  # YAML has escapes of its own, which are read back as what they stand for
        text = recipe.to_yaml(ascii_only=True)
    say(*text.rstrip("\n").split("\n"))
    for line in notes:
        say(f"note: {line}", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    """Names are never cut: they are what one types."""
    from rich.table import Table

    from lgrpo_lite.objective.named import NAMED
    from lgrpo_lite.recipe.read import load_recipe, recipe_names

    rows = [_row(load_recipe(name)) for name in recipe_names()]
    if args.json:
        algorithms = {name: summary(function) for name, function in NAMED.items()}
        print_json("recipe ls", rows, algorithms=algorithms)
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in SHOWN:
        table.add_column(column, no_wrap=column != "what", overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(row[column] for column in SHOWN))
    console().print(table)
    say(f"{len(NAMED)} algorithms: `lgrpo-lite algorithms`; all settings: `lgrpo-lite recipe show NAME`")
    return 0


def _row(recipe) -> dict[str, str]:
    memory = recipe.recipe.min_vram_gb
    return {
        "name": recipe.recipe.name,
        "what": recipe.recipe.title,
        "model": recipe.model.id,
        "algorithm": recipe.algorithm.use,
        "engine": recipe.rollout.engine,
        "GPU": f"{memory:g} GB" if memory else "none",
        "verified": recipe.recipe.verified,
    }


def _copy(words: list[str], args: argparse.Namespace) -> int:
    from lgrpo_lite.recipe.read import recipe_text

    if len(words) != 2:
        fix = "lgrpo-lite recipe cp NAME FILE; settings are for the file, or for `lgrpo-lite train FILE …`"
        raise ConfigError("recipe cp takes a name and a file", where="command line", fix=fix)
    text, _ = recipe_text(words[0])
    target = Path(words[1])
    if target.exists() and not args.force:
        raise ConfigError("that file exists", where=str(target), fix="choose another name, or add --force")
    try:
        target.write_text(text, "utf-8")
    except OSError as error:
        what = f"cannot write: {error.strerror}"
        raise ConfigError(what, where=str(target), fix="choose another place") from None
    say(target, f"lgrpo-lite train {target}")
    return 0
