"""Training curves of several runs, for `lgrpo-lite compare`: as JSON, as files, as tables with sparklines."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import console
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.progress import told

SPARK = 40  # columns of a curve in the terminal
TOLD = 24  # settings that differ and are shown


def compared(paths: Sequence[Path], out: Path | None, *, as_json: bool) -> tuple[dict[str, Any], list[str]]:
    """Runs side by side: what each came to and its curves; with `out` also
    curves.json and pictures. And warnings.
    """
    from lgrpo_lite.monitor import plots
    from lgrpo_lite.monitor.curves import CURVES, held_out, outcomes, points
    from lgrpo_lite.monitor.tail import Tail

    runs = []
    with showing(as_json=as_json):
        for path in paths:
            told("reading runs", len(runs), len(paths))
            runs.append(Tail(path, whole=True).refresh())
    names, warnings = _names(paths), [f"{run.path} has no step yet" for run in runs if not run.records]
    warnings += [f"{run.path / name} cannot be read" for run in runs for name in run.unread]
    rows = []
    for name, run, outcome in zip(names, runs, outcomes(runs), strict=True):
        curves: dict[str, Any] = {title: points(run.records, of) for title, of in CURVES.items()}
        rows.append(dataclasses.asdict(outcome) | {"name": name, "curves": curves, "held_out": held_out(run)})
    # no NaN, no dates
    found: dict[str, Any] = {"runs": json.loads(json.dumps(rows, default=str), parse_constant=lambda _: None)}
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            files = [out / "curves.json"]
            files[0].write_text(json.dumps(found, indent=1) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot write: {error.strerror}", where=str(out), fix="choose another --out"
            ) from None
        if plots.available():
            files += plots.plot_curves(list(zip(names, runs, strict=True)), out)
        else:
            warnings.append(plots.MISSING)
        found["files"] = [str(file) for file in files]
    return found, warnings


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders; where two have the same, the paths."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def show(found: dict[str, Any]) -> None:
    """The tables: what the runs came to, the settings in which they differ, their curves."""

    screen = console(highlight=False, markup=False)
    runs = found["runs"]
    screen.print(_figures(runs))
    if runs[0]["settings"]:
        screen.print(_settings(runs))
    else:
        screen.print("They have the same settings.")
    screen.print(_curves(runs))
    if reason := found.get("no_evaluations"):
        screen.print(f"Their evaluations are not compared: {reason}.")


def _table(title: str, runs: Sequence[dict[str, Any]]):
    from rich.table import Table

    from lgrpo_lite.monitor.theme import clean

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(clean(run["name"], 200), justify="right", overflow="fold")
    return table


def _figures(runs: Sequence[dict[str, Any]]):
    from lgrpo_lite.monitor.theme import amount, clean, number

    table = _table(f"{len(runs)} runs", runs)
    best = [run["best"] for run in runs]
    rows = {
        "algorithm": [clean(run["algorithm"], 60) for run in runs],
        "model": [clean(run["model"], 60) for run in runs],
        "state": [run["state"] for run in runs],
        "steps": [f"{amount(run['step'])} of {amount(run['steps'])}" for run in runs],
        "reward, last 10 % of steps": [number(run["reward"]) for run in runs],
        "best on held-out problems": [
            "–" if b is None else f"{b['metric']} {b['value']:.3f} at step {b['step']}" for b in best
        ],
        "tokens of an answer, last 10 %": [number(run["length"], ".1f") for run in runs],
        "tokens sampled": [amount(run["tokens"]) for run in runs],
        "hours of steps and evaluations": [number(run["hours"], ".2f") for run in runs],
        "λ at the end": [number(run["length_lambda"], "+.4f") for run in runs],
        "steps without an update": [amount(run["skipped"]) for run in runs],
        "alarms": [", ".join(run["alarms"]) or "–" for run in runs],
    }
    for name, cells in rows.items():
        if any(cell.strip("– ") for cell in cells):
            table.add_row(name, *cells)
    return table


def _settings(runs: Sequence[dict[str, Any]]):
    from lgrpo_lite.monitor.theme import clean

    table = _table("settings that differ", runs)
    keys = list(runs[0]["settings"])
    for key in keys[:TOLD]:
        table.add_row(clean(key, 80), *(_value(run["settings"].get(key)) for run in runs))
    if len(keys) > TOLD:
        table.add_row(f"… and {len(keys) - TOLD} more, in --json", *[""] * len(runs))
    return table


def _value(value: Any) -> str:
    from lgrpo_lite.monitor.theme import clean

    return "null" if value is None else clean(json.dumps(value, ensure_ascii=False, default=str), 80)


def _curves(runs: Sequence[dict[str, Any]]):
    from lgrpo_lite.monitor.text import sparkline

    table = _table("curves: first → last tenth, each scaled to its own range", runs)
    width = max(8, min(SPARK, (120 - 34) // len(runs) - 3))
    named = [(name, [run["curves"][name] for run in runs]) for name in runs[0]["curves"]]
    named.append(("held-out avg@k", [[row[:2] for row in run["held_out"]] for run in runs]))
    for name, curves in named:
        if any(curves):
            values = [[value for _, value in rows] for rows in curves]
            table.add_row(name, *(f"{sparkline(row, width)}\n{_ends(row)}" if row else "–" for row in values))
    return table


def _ends(values: Sequence[float]) -> str:
    tenth = max(1, round(len(values) / 10))
    first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    return f"{first:.4g} → {last:.4g}"
