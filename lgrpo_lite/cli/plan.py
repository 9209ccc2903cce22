"""`lgrpo-lite plan`: what a recipe takes on a GPU, or of a machine without one, from the model's config
alone; no weights, no torch.
"""

import argparse
import os
import tempfile
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_import, add_json, add_recipe, console, print_json, say
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError

WIDE = 110  # columns of a terminal where a part's note stands in its row; below the table in a narrower one


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lgrpo-lite plan RECIPE|FILE [key=value …] [--gpu 24GB|NAME] [--fit] [--fetch-config] [--probe] "
        "[--import] [--json]"
    )
    add_recipe(parser, "RECIPE|FILE")
    size = (
        "its memory, GB as on the box, or its name: 24GB, 4090, 'A100 80GB' "
        "(default: this machine: its GPU, or its memory where it has none)"
    )
    parser.add_argument("--gpu", metavar="SIZE|NAME", help=size)
    parser.add_argument(
        "--fetch-config",
        action="store_true",
        help="of a model that is not on this machine, read config.json from the Hub, and nothing else",
    )
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
    size, on_cpu = _planned_for(args.gpu)
    config = _config(recipe, fetch=args.fetch_config)
    settings = []
    closest = plan(recipe, size, config, on_cpu=on_cpu)
    if args.fit:
        settings, closest = fit(recipe, size, config, on_cpu=on_cpu)
    if not closest.fits:
        settings = []
    if settings:
        recipe = check(load_recipe(name, [*overrides, *map(str, settings)]), imports=args.imports)
    planned = plan(recipe, size, config, on_cpu=on_cpu)
    notes = [*planned.warnings, *unknown, *(_of_this_machine(recipe) if on_cpu else [])]
    hint = faster(recipe, size, config) if args.fit and not on_cpu else None
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


def _planned_for(gpu: str | None) -> tuple[int | None, bool]:
    """(bytes of what is planned for, whether it is the memory of a machine without a GPU)."""
    from lgrpo_lite.machine.facts import cuda_devices, memory_of
    from lgrpo_lite.plan.cards import capacity

    if gpu is not None:
        return capacity(gpu), False
    if cuda_devices():
        return None, False
    return memory_of()[0], True


def _config(recipe, *, fetch: bool):
    """The model's config, from the Hub where it is asked for and the model is not on this machine."""
    from lgrpo_lite.machine.hub import fetched_config
    from lgrpo_lite.policy.gguf import is_gguf
    from lgrpo_lite.policy.shape import find_config, is_known

    if fetch and not is_known(recipe.model) and not is_gguf(recipe.model.id):
        return fetched_config(os.environ, recipe.model.id, recipe.model.revision)
    return find_config(recipe.model, recipe.where("model.id"))


def _of_this_machine(recipe) -> list[str]:
    """What a plan without a GPU says of itself."""
    from lgrpo_lite.machine.facts import memory_of
    from lgrpo_lite.plan.plan import FALLBACK

    free = f"{memory_of()[1] / 2**30:.1f} GiB of it are free now"
    notes = [f"no NVIDIA GPU was found, so this machine's memory is planned: {free}"]
    vram = recipe.recipe.min_vram_gb
    if vram:
        notes.append(f"the recipe is written for a GPU with {vram:g} GB: --gpu {vram:g}GB plans that")
    if recipe.rollout.engine not in ("auto", FALLBACK):
        notes.append(f"planned as rollout.engine={FALLBACK}: {recipe.rollout.engine} is planned for a --gpu")
    return notes


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
        "on_cpu": planned.on_cpu,
        "recomputed_layers": planned.recomputed,
        "layers": planned.layers,
        "offloaded_bytes": planned.offloaded,
    }


def _print(planned, settings, weighed, notes) -> None:
    screen = console()
    for setting in settings:
        say(f"{setting}  {setting.reason}")
    wide = screen.width >= WIDE
    screen.print(_parts_table(planned, noted=wide))
    if not wide:
        for part in planned.parts:
            say(*([f"{part.name}: {part.note}"] if part.note else []))
    if weighed:
        screen.print(_probe_table(weighed))
    for note in notes:
        say(f"note: {note}")
    say(planned.verdict())


def _parts_table(planned, *, noted: bool):
    """Of each part what it takes at which moment, and where there is room what it is."""
    from rich.box import HEAVY_HEAD
    from rich.table import Table

    from lgrpo_lite.plan.parts import MOMENTS

    rows = [(part.name, *(_gib(part.at(moment)) for moment in MOMENTS), part.note) for part in planned.parts]
    peaks = ("peak", *(_gib(planned.peak(moment)) for moment in MOMENTS), f"engine {planned.engine}")
    table = Table("GiB", box=HEAVY_HEAD if noted else None, padding=(0, 1) if noted else (0, 2, 0, 0))
    for moment in MOMENTS:
        table.add_column(moment, justify="right")
    if noted:
        table.add_column("")
    columns = len(table.columns)
    for cells in rows:
        table.add_row(*cells[:columns])
    table.add_section()
    table.add_row(*peaks[:columns])
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
