"""Training curves of several runs, for `lgrpo-lite compare`: as JSON, as files, as tables with sparklines."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lgrpo_lite.cli.terminal.output import console
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.progress import told

if TYPE_CHECKING:
    from lgrpo_lite.monitor.tail import RunView

SPARK = 40  # columns of a curve in the terminal
TOLD = 24  # settings that differ and are shown

Run = dict[str, Any]  # an outcome, its name and its curves, as in --json


def compared(paths: Sequence[Path], out: Path | None, *, as_json: bool) -> tuple[dict[str, Any], list[str]]:
    """Runs side by side: what each came to and its curves; with `out` also curves.json and pictures. And
    warnings.
    """
    from lgrpo_lite.monitor.curves import CURVES, held_out, outcomes, points
    from lgrpo_lite.monitor.tail import Tail

    runs = []
    with showing(as_json=as_json):
        for path in paths:
            told("reading runs", len(runs), len(paths))
            runs.append(Tail(path, whole=True).refresh())
    names = _names(paths)
    warnings = [f"{run.path} has no step yet" for run in runs if not run.records]
    warnings += [f"{run.path / name} cannot be read" for run in runs for name in run.unread]
    rows = []
    for name, run, outcome in zip(names, runs, outcomes(runs), strict=True):
        curves: dict[str, Any] = {title: points(run.records, of) for title, of in CURVES.items()}
        row = dataclasses.asdict(outcome)
        rows.append(row | {"name": name, "curves": curves, "held_out": held_out(run)})
    plain = json.loads(json.dumps(rows, default=str), parse_constant=lambda _: None)  # no NaN, no dates
    result: dict[str, Any] = {"runs": plain}
    if out is not None:
        result["files"], unwritten = _write(result, list(zip(names, runs, strict=True)), out)
        warnings += unwritten
    return result, warnings


def _write(
    result: dict[str, Any], runs: list[tuple[str, "RunView"]], out: Path
) -> tuple[list[str], list[str]]:
    """The curves as files: their paths, and what could not be written."""
    from lgrpo_lite.monitor import plots

    file = out / "curves.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    except OSError as error:
        what = f"cannot write: {error.strerror}"
        raise ConfigError(what, where=str(out), fix="choose another --out") from None
    if not plots.available():
        return [str(file)], [plots.MISSING]
    pictures = plots.plot_curves(runs, out)
    return [str(path) for path in (file, *pictures)], []


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the folders; where two have the same, the paths."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        return [str(path) for path in paths]
    return names


def show(result: dict[str, Any]) -> None:
    """The tables: what the runs came to, the settings in which they differ, their curves."""
    screen = console(highlight=False)
    runs = result["runs"]
    screen.print(_figures(runs))
    if runs[0]["settings"]:
        screen.print(_settings(runs))
    else:
        screen.print("They have the same settings.")
    screen.print(_curves(runs))
    if reason := result.get("no_evaluations"):
        screen.print(f"Their evaluations are not compared: {reason}.")


def _table(title: str, runs: Sequence[Run]):
    from rich.table import Table

    from lgrpo_lite.monitor.theme import clean

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(clean(run["name"], 200), justify="right", overflow="fold")
    return table


def _figures(runs: Sequence[Run]):
    from lgrpo_lite.monitor.numbers import figure
    from lgrpo_lite.monitor.theme import amount, clean

    figures: dict[str, Callable[[Run], str]] = {
        "algorithm": lambda run: clean(run["algorithm"], 60),
        "model": lambda run: clean(run["model"], 60),
        "state": lambda run: clean(run["state"], 40),
        "steps": lambda run: f"{amount(run['step'])} of {amount(run['steps'])}",
        "reward, last 10 % of steps": lambda run: figure(run["reward"]),
        "best on held-out problems": lambda run: _best(run["best"]),
        "tokens of an answer, last 10 %": lambda run: figure(run["length"], ".1f"),
        "tokens sampled": lambda run: amount(run["tokens"]),
        "hours of steps and evaluations": lambda run: figure(run["hours"], ".2f"),
        "λ at the end": lambda run: figure(run["length_lambda"], "+.4f"),
        "steps without an update": lambda run: amount(run["skipped"]),
        "alarms": lambda run: clean(", ".join(run["alarms"])) or "–",
    }
    table = _table(f"{len(runs)} runs", runs)
    for name, shown in figures.items():
        cells = [shown(run) for run in runs]
        if any(cell.strip("– ") for cell in cells):
            table.add_row(name, *cells)
    return table


def _best(best: dict[str, Any] | None) -> str:
    return "–" if best is None else "{metric} {value:.3f} at step {step}".format(**best)


def _settings(runs: Sequence[Run]):
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

    text = json.dumps(value, ensure_ascii=False, default=str)  # None: null
    return clean(text, 80)


def _curves(runs: Sequence[Run]):
    from lgrpo_lite.monitor.text import sparkline

    table = _table("curves: first → last tenth, each scaled to its own range", runs)
    width = max(8, min(SPARK, (120 - 34) // len(runs) - 3))

    def cell(points: Sequence[Sequence[Any]]) -> str:
        values = [point[1] for point in points]
        return f"{sparkline(values, width)}\n{_ends(values)}" if values else "–"

    def add(name: str, curves: Sequence[Sequence[Any]]) -> None:
        if any(curves):
            table.add_row(name, *map(cell, curves))

    for name in runs[0]["curves"]:
        add(name, [run["curves"][name] for run in runs])
    add("held-out avg@k", [run["held_out"] for run in runs])
    return table


def _ends(values: Sequence[float]) -> str:
    tenth = max(1, round(len(values) / 10))
    first = sum(values[:tenth]) / tenth
    last = sum(values[-tenth:]) / tenth
    return f"{first:.4g} → {last:.4g}"
