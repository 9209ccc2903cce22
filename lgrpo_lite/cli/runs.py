"""`lgrpo-lite runs`: the runs of a folder as a table, those with the newest sign of life first.
Reads only, and not all of it.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite runs [options]"
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    add_runs(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.errors import ConfigError
    from lgrpo_lite.monitor.glance import glance, is_run

    if args.words:
        raise ConfigError(
            f"runs takes no {args.words[0]!r}", where="command line", fix="lgrpo-lite runs --runs DIR"
        )
    try:
        folders = sorted(
            path for path in args.runs.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except OSError as error:
        if args.runs != Path("runs"):
            fix = "name the folder that holds the runs with --runs DIR"
            raise ConfigError(
                f"cannot read the runs: {error.strerror}", where=str(args.runs), fix=fix
            ) from None
        folders = []
    found = sorted((glance(path) for path in folders if is_run(path)), key=lambda one: -one.seen)
    warnings = [f"{path} holds no run" for path in folders if not is_run(path)]
    if args.json:
        rows = [asdict(one) for one in found]
        print_json("runs", {"runs": rows}, warnings)
        return 0
    for warning in warnings:
        print(f"skipped: {warning}", file=sys.stderr)
    if found:
        _show(found)
    else:
        print(f"no run in {args.runs}; start one: lgrpo-lite recipe tiny-math")
    return 0


def _show(found) -> None:
    from rich.table import Table
    from rich.text import Text

    from lgrpo_lite.monitor.panels.run import STATES
    from lgrpo_lite.monitor.theme import LABEL, amount, clean, number

    screen = console(highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (
        "run",
        "state",
        "step",
        "algorithm",
        "model",
        "best",
        "at step",
        "reward",
        "age",
        "alarms",
    ):
        right = column in ("step", "best", "at step", "reward", "age", "alarms")
        table.add_column(
            column, justify="right" if right else "left", overflow="fold", header_style="bold", no_wrap=right
        )
    for one in found:
        sign, style = STATES.get(one.health.state, ("?", LABEL))
        best = "–" if one.best is None else f"{one.best.metric} {one.best.value:.3f}"
        steps = f"{amount(one.step)}/{'?' if one.steps is None else amount(one.steps)}"
        table.add_row(
            clean(one.name, 80),
            Text(f"{sign} {one.health.state}", style),
            steps,
            clean(one.algorithm, 40),
            clean(one.model, 60),
            best,
            "–" if one.best is None else amount(one.best.step),
            number(one.reward),
            _age(time.time() - one.seen),
            str(len(one.alarms)) if one.alarms else "–",
        )
    screen.print(table)


def _age(seconds: float) -> str:
    """In one unit: 4 s, 12 min, 3 h, 5 d; a time in the future is now."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
