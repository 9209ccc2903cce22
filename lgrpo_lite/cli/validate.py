"""`lgrpo-lite validate`: schema, contradictions, local data columns. No GPU, no download, no torch."""

import argparse

from lgrpo_lite.cli.terminal.output import add_recipe


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite validate FILE|NAME [key=value …] [--strict]"
    add_recipe(parser, "FILE|NAME")
    parser.add_argument(
        "--strict", action="store_true", help="also demand a pinned revision of a model on the Hub"
    )


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.checks.describe import describe
    from lgrpo_lite.errors import ConfigError
    from lgrpo_lite.recipe.read import load_recipe

    recipe = check(load_recipe(args.words[0], args.words[1:]))
    from_hub = not recipe.model.id.startswith(("builtin:", "/", "."))
    if args.strict and from_hub and recipe.model.revision is None:
        raise ConfigError(
            "the model's revision is not pinned",
            where=recipe.where("model.id"),
            fix="set model.revision=COMMIT",
        )
    for line in describe(recipe):
        print(line)
    print("valid")
    return 0
