"""`lgrpo-lite validate`: schema, contradictions, the model's local files, local data columns: every fault at
once. No GPU, no download, no torch, and no code of the recipe unless asked.
"""

import argparse
from collections.abc import Iterator

from lgrpo_lite.cli.terminal.output import add_import, add_json, add_recipe, print_json, say
from lgrpo_lite.errors import ConfigError, LgrpoError, noted, raise_all


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite validate FILE|NAME [key=value …] [--strict] [--import] [--json]"
    add_recipe(parser, "FILE|NAME")
    add_import(parser)
    parser.add_argument(
        "--strict", action="store_true", help="also demand a pinned revision of a model on the Hub"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    lines, faults = _looked_at(args)
    if args.json:
        rows = [{"what": fault.what, "where": fault.where, "fix": fault.fix} for fault in faults]
        print_json("validate", {"lines": lines, "faults": rows}, ok=not faults)
    raise_all(faults)
    if not args.json:
        say(*lines, "valid")
    return 0


def _looked_at(args: argparse.Namespace) -> tuple[list[str], list[LgrpoError]]:
    """(what a run would be, every fault). Where the schema has faults, the rest is looked at without the
    settings that have them, and what contradicts in their sections is left out: it may follow from that.
    """
    from lgrpo_lite.checks.check import examined
    from lgrpo_lite.checks.describe import describe, not_run
    from lgrpo_lite.checks.model import check_model
    from lgrpo_lite.checks.tried import try_algorithm
    from lgrpo_lite.recipe.marks import load_marked
    from lgrpo_lite.recipe.read import looked_at, recipe_text

    faults: list[LgrpoError] = []
    recipe = None
    with noted(faults):
        recipe, faults = looked_at(*load_marked(*recipe_text(args.words[0])), args.words[1:])
    if recipe is None:
        return [], faults
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
            lines = describe(recipe)
    if not args.imports:
        lines += [f"note       {line}" for line in not_run(recipe)]
    return lines, faults


def _section(fault: LgrpoError) -> str:
    """The section of a recipe that a fault is in; a fault that names no setting is in none, and told."""
    return fault.key.partition(".")[0] or str(id(fault))


def _unpinned(recipe) -> Iterator[LgrpoError]:
    from_hub = not recipe.model.id.startswith(("builtin:", "/", "."))
    if from_hub and recipe.model.revision is None:
        fix = "set model.revision=COMMIT"
        yield ConfigError("the model's revision is not pinned", where=recipe.where("model.id"), fix=fix)
