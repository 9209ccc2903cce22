"""`lgrpo-lite recipe`: ls, show, cp, run; a bare name is run."""

import argparse
from pathlib import Path

from lgrpo_lite.cli import train
from lgrpo_lite.cli.terminal.output import console, print_json, summary
from lgrpo_lite.errors import ConfigError

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
        from lgrpo_lite.checks.check import check
        from lgrpo_lite.recipe.read import load_recipe

        print(check(load_recipe(words[0], words[1:])).to_yaml(), end="")
        return 0
    return train.start(words[0], words[1:], args, command="recipe")


def _list(args: argparse.Namespace) -> int:

    from rich.table import Table
    from rich.text import Text

    from lgrpo_lite.objective.named import NAMED
    from lgrpo_lite.recipe.read import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    columns = ("name", "what", "model", "algorithm", "engine", "GPU", "verified")
    rows = [
        (
            r.recipe.name,
            r.recipe.title,
            r.model.id,
            r.algorithm.use,
            r.rollout.engine,
            f"{r.recipe.min_vram_gb:g} GB" if r.recipe.min_vram_gb else "none",
            r.recipe.verified,
        )
        for r in recipes
    ]
    if args.json:
        result = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json("recipe ls", result, algorithms={name: summary(row) for name, row in NAMED.items()})
        return 0
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    screen = console()
    screen.print(table)
    rows = Table("algorithm.use=", "what it is (every row: docs/algorithms.md)")
    for name, row in NAMED.items():
        rows.add_row(name, Text(summary(row)))
    screen.print(rows)
    return 0


def _copy(words: list[str], args: argparse.Namespace) -> int:
    from lgrpo_lite.recipe.read import recipe_text

    if len(words) != 2:
        raise ConfigError(
            "recipe cp takes a name and a file", where="command line", fix="lgrpo-lite recipe cp NAME FILE"
        )
    text, _ = recipe_text(words[0])
    target = Path(words[1])
    if target.exists() and not args.force:
        raise ConfigError("that file exists", where=str(target), fix="choose another name, or add --force")
    try:
        target.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error.strerror}", where=str(target), fix="choose another place"
        ) from None
    print(f"{target}\nlgrpo-lite train {target}")
    return 0
