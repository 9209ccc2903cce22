"""`lgrpo-lite validate`: schema, contradictions, local data columns. No GPU, no download, no torch, and no
code of the recipe unless asked.
"""

import argparse

from lgrpo_lite.cli.terminal.output import add_import, add_recipe, say


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite validate FILE|NAME [key=value …] [--strict] [--import] [--show N]"
    add_recipe(parser, "FILE|NAME")
    add_import(parser)
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="also print N prompts as the model reads them; fetches its tokenizer if it is on the Hub",
    )
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
    for line in describe(recipe, imports=args.imports):
        say(line)
    if args.show is not None:
        from lgrpo_lite.cli.prompts import show_prompts

        show_prompts(recipe, args.show)
    if not args.imports:
        for line in not_run(recipe):
            say(f"note       {line}")
    say("valid")
    return 0
