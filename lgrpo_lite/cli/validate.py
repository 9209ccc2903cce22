"""`lgrpo-lite validate`: schema, contradictions, local data columns. No GPU, no download, no torch, and no
code of the recipe unless asked.
"""

import argparse

from lgrpo_lite.cli.terminal.output import add_import, add_recipe, say


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite validate FILE|NAME [key=value …] [--strict] [--import]"
    add_recipe(parser, "FILE|NAME")
    add_import(parser)
    parser.add_argument(
        "--strict", action="store_true", help="also demand a pinned revision of a model on the Hub"
    )


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.checks.describe import describe, not_run
    from lgrpo_lite.errors import ConfigError
    from lgrpo_lite.recipe.read import load_recipe

    recipe = check(load_recipe(args.words[0], args.words[1:]), imports=args.imports)
    from_hub = not recipe.model.id.startswith(("builtin:", "/", "."))
    if args.strict and from_hub and recipe.model.revision is None:
        raise ConfigError(
            "the model's revision is not pinned",
            where=recipe.where("model.id"),
            fix="set model.revision=COMMIT",
        )
    for line in describe(recipe):
        say(line)
    if not args.imports:
        for line in not_run(recipe):
            say(f"note       {line}")
    say("valid")
    return 0
