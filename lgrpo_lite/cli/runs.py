"""`lgrpo-lite runs`: the runs of a folder as a table, those with the newest sign of life first. Reads only,
and not all of it.
"""

import argparse
import sys
import time
from dataclasses import asdict
from typing import Literal

from lgrpo_lite.cli.terminal.output import RUNS, add_json, add_runs, console, print_json, say

COLUMNS: dict[str, Literal["left", "right"]] = {
    "run": "left",
    "state": "left",
    "step": "right",
    "algorithm": "left",
    "model": "left",
    "best": "right",
    "at step": "right",
    "reward": "right",
    "age": "right",
    "alarms": "right",
}


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
        folders = [path for path in args.runs.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        if args.runs != RUNS:
            what = f"cannot read the runs: {error.strerror}"
            fix = "name the folder that holds the runs with --runs DIR"
            raise ConfigError(what, where=str(args.runs), fix=fix) from None
        folders = []
    folders.sort()
    glances = [glance(path) for path in folders if is_run(path)]
    glances.sort(key=lambda row: -row.seen)
    warnings = [f"{path} holds no run" for path in folders if not is_run(path)]
    if args.json:
        rows = [asdict(row) for row in glances]
        print_json("runs", {"runs": rows}, warnings)
        return 0
    for warning in warnings:
        say(f"skipped: {warning}", file=sys.stderr)
    if glances:
        _show(glances)
    else:
        say(f"no run in {args.runs}; start one: lgrpo-lite recipe tiny-math")
    return 0


def _show(glances) -> None:
    from rich.table import Table
    from rich.text import Text

    from lgrpo_lite.monitor.numbers import figure
    from lgrpo_lite.monitor.panels.run import STATES
    from lgrpo_lite.monitor.theme import LABEL, amount, clean

    screen = console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in COLUMNS.items():
        right = justify == "right"
        table.add_column(column, justify=justify, overflow="fold", header_style="bold", no_wrap=right)
    for row in glances:
        sign, style = STATES.get(row.health.state, ("?", LABEL))
        steps = "?" if row.steps is None else amount(row.steps)
        best, best_step = "–", "–"
        if row.best is not None:
            best, best_step = f"{row.best.metric} {row.best.value:.3f}", amount(row.best.step)
        table.add_row(
            clean(row.name, 80),
            Text(f"{sign} {row.health.state}", style),
            f"{amount(row.step)}/{steps}",
            clean(row.algorithm, 40),
            clean(row.model, 60),
            best,
            best_step,
            figure(row.reward),
            _age(time.time() - row.seen),
            str(len(row.alarms)) if row.alarms else "–",
        )
    screen.print(table)


def _age(seconds: float) -> str:
    """In one unit: 4 s, 12 min, 3 h, 5 d; a time in the future is now."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
