"""`lgrpo-lite validate`: schema, contradictions, the model's local files, local data columns: every fault at
once. No GPU, no download, no torch, and no code of the recipe unless asked.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from lgrpo_lite.cli.terminal.output import add_import, add_json, add_recipe, print_json, say
from lgrpo_lite.errors import ConfigError, LgrpoError, noted, raise_all


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite validate FILE|NAME [key=value …] [--strict] [--import] [--show N] [--json]"
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
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.describe import not_run

    recipe, lines, faults = _looked_at(args)
    if args.json:
        rows = [{"what": fault.what, "where": fault.where, "fix": fault.fix} for fault in faults]
        print_json("validate", {"lines": lines, "faults": rows}, ok=not faults)
    raise_all(faults)
    if args.json:
        return 0
    say(*lines)
    if args.show is not None:
        from lgrpo_lite.cli.prompts import show_prompts

        show_prompts(recipe, args.show)
    for line in [] if args.imports else not_run(recipe):
        say(f"note       {line}")
    say("valid")
    return 0


def _looked_at(args: argparse.Namespace) -> tuple[Any, list[str], list[LgrpoError]]:
    """(the recipe, what a run of it would be, every fault). Where the schema has faults, the rest is looked
    at without the settings that have them, and what contradicts in their sections is left out: it may follow
    from that.
    """
    from lgrpo_lite.checks.check import examined
    from lgrpo_lite.checks.describe import describe
    from lgrpo_lite.checks.model import check_model
    from lgrpo_lite.checks.tried import try_algorithm
    from lgrpo_lite.recipe.marks import load_marked
    from lgrpo_lite.recipe.read import looked_at, recipe_text

    faults: list[LgrpoError] = []
    recipe = None
    with noted(faults):
        recipe, faults = looked_at(*load_marked(*recipe_text(args.words[0])), args.words[1:])
    if recipe is None:
        return None, [], faults
    unread = {_section(fault) for fault in faults}
    recipe, found = examined(recipe, imports=args.imports)
    faults += [fault for fault in found if _section(fault) not in unread]
    with noted(faults):
        check_model(recipe)
    if args.imports and not any(fault.key.startswith("algorithm") for fault in faults):
        with noted(faults):
            try_algorithm(recipe)
    if args.strict:
        faults += _unpinned(recipe)
    lines: list[str] = []
    sources_known = not any(fault.key.startswith(("data.train", "data.eval")) for fault in faults)
    if "data" not in unread and sources_known:  # a message about a source quotes it, and may hold a secret
        with noted(faults):
            lines = describe(recipe, imports=args.imports)
    return recipe, lines, faults


def _section(fault: LgrpoError) -> str:
    """The section of a recipe that a fault is in; a fault that names no setting is in none, and told."""
    return fault.key.partition(".")[0] or str(id(fault))


def _unpinned(recipe) -> Iterator[LgrpoError]:
    from_hub = not recipe.model.id.startswith(("builtin:", "/", "."))
    if from_hub and recipe.model.revision is None:
        fix = "set model.revision=COMMIT"
        yield ConfigError("the model's revision is not pinned", where=recipe.where("model.id"), fix=fix)
