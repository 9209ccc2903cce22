"""`lgrpo-lite plan`: what a recipe takes on a GPU, from the model's config alone; no GPU, no weights,
no torch.
"""

import argparse
import re
import tempfile
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_import, add_json, add_recipe, console, print_json, say
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError

UNITS = {"GB": 2**30, "GIB": 2**30, "MB": 2**20, "MIB": 2**20}  # a card that is sold as 24 GB has 24 GiB


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lgrpo-lite plan RECIPE|FILE [key=value …] [--gpu 24GB] [--fit] [--probe] [--import] [--json]"
    )
    add_recipe(parser, "RECIPE|FILE")
    size = (
        "its memory (default: this machine's GPU, else what the recipe is written for, else 24GB); "
        "GB is GiB, as on the box"
    )
    parser.add_argument("--gpu", metavar="SIZE", help=size)
    parser.add_argument(
        "--fit",
        action="store_true",
        help="propose settings that make it fit, with reasons, and plan with them",
    )
    parser.add_argument(
        "--probe", action="store_true", help="load the model here and measure beside the prediction"
    )
    add_import(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.checks.describe import not_run
    from lgrpo_lite.plan.fit import faster, fit
    from lgrpo_lite.plan.plan import plan
    from lgrpo_lite.recipe.read import load_recipe

    name, *overrides = args.words
    recipe = check(load_recipe(name, overrides), imports=args.imports)
    unknown = [] if args.imports else not_run(recipe)
    if args.probe and unknown:
        what, fix = "--probe builds the run, and so runs the recipe's own code", "add --import"
        raise ConfigError(what, where="command line, --probe", fix=fix)
    capacity = _capacity(args.gpu)
    settings, closest = fit(recipe, capacity) if args.fit else ([], plan(recipe, capacity))
    if not closest.fits:
        settings = []
    if settings:
        recipe = check(load_recipe(name, [*overrides, *map(str, settings)]), imports=args.imports)
    planned = plan(recipe, capacity)
    notes = [*planned.warnings, *unknown]
    hint = faster(recipe, capacity) if args.fit else None
    if hint:
        notes.append(hint)
    weighed = _weigh(recipe, as_json=args.json) if args.probe else []
    if args.json:
        result = _plain(planned)
        result["settings"] = [{"set": str(s), "reason": s.reason} for s in settings]
        result["probe"] = [{**row._asdict(), "ratio": row.ratio} for row in weighed]
        print_json("plan", result, notes, ok=planned.fits)
    else:
        _print(planned, settings, weighed, notes)
    if args.fit:
        closest.demand("use a smaller model or a larger GPU: no setting makes this one fit")
    planned.demand()
    return 0


def _weigh(recipe, *, as_json: bool) -> list:
    from lgrpo_lite.checks.check import demand
    from lgrpo_lite.folder.logs import log_to

    demand(recipe)
    with showing(as_json=as_json), tempfile.TemporaryDirectory() as folder:
        from lgrpo_lite.plan.weigh import weigh

        log_to(Path(folder) / "main.log")
        return weigh(recipe)


def _capacity(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB)?", text.strip().upper())
    if not match or not float(match[1]):
        raise ConfigError(
            f"not a size of memory: {text!r}", where="command line, --gpu", fix="write --gpu 24GB"
        )
    return int(float(match[1]) * UNITS[match[2] or "GB"])


def _plain(planned) -> dict:
    from lgrpo_lite.plan.parts import MOMENTS

    parts = [{"name": p.name, "bytes": p.bytes, "moments": p.moments, "note": p.note} for p in planned.parts]
    return {
        "fits": planned.fits,
        "size_bytes": planned.size,
        "capacity_bytes": planned.capacity,
        "spare_bytes": planned.spare,
        "binding": planned.worst,
        "engine": planned.engine,
        "peak_bytes": {moment: planned.peak(moment) for moment in MOMENTS},
        "parts": parts,
        "at_once": planned.at_once,
        "recomputed_layers": planned.recomputed,
        "layers": planned.layers,
        "offloaded_bytes": planned.offloaded,
    }


def _print(planned, settings, weighed, notes) -> None:
    screen = console()
    for setting in settings:
        say(f"{setting}  {setting.reason}")
    screen.print(_parts_table(planned))
    if weighed:
        screen.print(_probe_table(weighed))
    for note in notes:
        say(f"note: {note}")
    say(planned.verdict())


def _parts_table(planned):
    from rich.table import Table

    from lgrpo_lite.plan.parts import MOMENTS

    table = Table("GiB")
    for moment in MOMENTS:
        table.add_column(moment, justify="right")
    table.add_column("")
    for part in planned.parts:
        table.add_row(part.name, *(_gib(part.at(moment)) for moment in MOMENTS), part.note)
    table.add_section()
    peaks = [_gib(planned.peak(moment)) for moment in MOMENTS]
    table.add_row("peak", *peaks, f"engine {planned.engine}")
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}" if size else ""


def _probe_table(weighed):
    from rich.table import Table

    table = Table("MiB")
    for name in ("predicted", "measured", "ratio"):
        table.add_column(name, justify="right")
    for row in weighed:
        predicted, measured = row.predicted / 2**20, row.measured / 2**20
        table.add_row(row.name, f"{predicted:,.2f}", f"{measured:,.2f}", f"{row.ratio:.3f}")
    return table
