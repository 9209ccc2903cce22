"""Plots of a comparison and of a run, as PNG and SVG. Without matplotlib there are none, and `MISSING` says
what to do.

Equal data give equal SVG files: no date, and identifiers from a fixed salt.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lgrpo_lite.monitor.curves import CURVES, Point, held_out, points
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import evaluations, interval
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.types import StepRecord

MISSING = 'no plots: matplotlib is not installed; pip install "lgrpo-lite[train]"'
STYLE: Any = {
    "svg.hashsalt": "lgrpo-lite", "svg.fonttype": "none", "axes.spines.top": False,
    "axes.spines.right": False, "font.size": 9.0,
    "axes.titlesize": 10.0, "axes.titlelocation": "left", "legend.frameon": False, "figure.dpi": 100.0,
}  # fmt: skip
A, B, GREY = "#7f7f7f", "#1f77b4", "#d0d0d0"
COLOURS = (B, "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")  # of runs
DASHES = ("-", "--", ":", "-.")
THIRDS = ("first", "middle", "last")
Band = tuple[float, float, float]  # value, low, high


def available() -> bool:
    """Whether there is something to plot with."""
    return find_spec("matplotlib") is not None


def plot_comparison(
    found: dict[str, Any],
    likelihoods: tuple[Sequence[float], Sequence[float]],
    folder: Path,
    name: str = "compare",
) -> list[Path]:
    """Pass@k curves, the gained/lost table as bars, and where B's right answers lie in the base's
    likelihoods, if that is known.

    `found` is a comparison as JSON; `likelihoods` are mean log-probs a token under the base: of its samples,
    of B's right ones.
    """
    shown = 3 if found["support"] else 2
    with _styled():
        figure, axes = _figure(1, shown, (4.2 * shown, 3.4))
        _curves(axes[0], found)
        _coverage(axes[1], found["coverage"])
        if found["support"]:
            _likelihoods(axes[2], likelihoods, found["support"]["threshold"])
        title = f"{found['suite']}: A = {found['a']}, B = {found['b']}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return _save(figure, folder, name, ("png", "svg"))


def plot_run(run: RunView, folder: Path, name: str = "report") -> list[Path]:
    """What a run did, by step: reward, length, share of groups with a signal, λ or where the credit falls,
    evaluations.
    """
    records = [*run.sparse, *run.records]
    panels = [(title, points(records, of)) for title, of in CURVES.items()]
    thirds = [(part, points(records, partial(_field, f"credit_{part}"))) for part in THIRDS]
    with _styled():
        figure, axes = _figure(2, 3, (12.0, 6.0))
        drawn: list[Callable[[Any], None]] = [
            partial(_line, title=title, rows=rows) for title, rows in panels if rows
        ]
        if any(rows for _, rows in thirds):
            drawn.append(partial(_thirds, thirds=thirds))
        if evaluations(run):
            drawn.append(partial(_evaluations, run=run))
        for axis, draw in zip(axes, drawn, strict=False):
            draw(axis)
            axis.set_xlabel("step")
        for axis in axes[len(drawn) :]:
            axis.set_visible(False)
        return _save(figure, folder, name, ("svg",))


def plot_curves(runs: Sequence[tuple[str, RunView]], folder: Path, name: str = "curves") -> list[Path]:
    """Runs over each other, by step and under their names: the curves that any of them has, and held-out
    avg@k.
    """
    with _styled():
        figure, axes = _figure(2, 3, (13.0, 6.4))
        free = iter(axes)
        for title, of in CURVES.items():
            lines = [(label, points([*run.sparse, *run.records], of)) for label, run in runs]
            if any(rows for _, rows in lines):
                _overlay(next(free), title, lines)
        if any(held_out(run) for _, run in runs):
            _held_out(next(free), runs)
        rest = [*free]
        shown = axes[: len(axes) - len(rest)]
        for axis in shown:
            axis.set_xlabel("step")
        if shown:
            shown[0].legend(fontsize=8)
        for axis in rest:
            axis.set_visible(False)
        return _save(figure, folder, name, ("png", "svg"))


def _overlay(axis: Any, title: str, lines: Sequence[tuple[str, Sequence[Point]]]) -> None:
    for i, (label, rows) in enumerate(lines):
        axis.plot(*_columns(rows), label=label, **_look(i))
    axis.set_title(title)


def _held_out(axis: Any, runs: Sequence[tuple[str, RunView]]) -> None:
    for i, (label, run) in enumerate(runs):
        rows = held_out(run)
        steps = [step for step, *_ in rows]
        bands = [(value, low, high) for _, value, low, high in rows]
        look = _look(i)
        _band(axis, steps, bands, look["color"], label, linestyle=look["linestyle"])
    axis.set_title("avg@k on held-out problems, 95 % intervals")


def _field(name: str, record: StepRecord) -> float | None:
    return getattr(record, name)


def _look(i: int) -> dict[str, Any]:
    """Of the i-th run: lines differ without colour too."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.1}


def _columns(rows: Sequence[Point]) -> tuple[list[int], list[float]]:
    steps = [step for step, _ in rows]
    values = [value for _, value in rows]
    return steps, values


def _line(axis: Any, title: str, rows: Sequence[Point]) -> None:
    axis.plot(*_columns(rows), color=B, linewidth=1.0)
    axis.set_title(title)


def _thirds(axis: Any, thirds: Sequence[tuple[str, Sequence[Point]]]) -> None:
    for (part, rows), colour, dash in zip(thirds, (B, "#2ca02c", A), DASHES, strict=False):
        axis.plot(*_columns(rows), color=colour, linestyle=dash, linewidth=1.2, label=f"{part} third")
    axis.set_ylim(0, 1)
    axis.set_title("share of the credit by thirds of an answer")
    axis.legend(fontsize=8)


def _curves(axis: Any, comparison: dict[str, Any]) -> None:
    ks = comparison["ks"]
    crossover = comparison["crossover"]
    for estimates, colour, label in zip(comparison["curves"], (A, B), "AB", strict=True):
        bands = [(estimate["value"], estimate["low"], estimate["high"]) for estimate in estimates]
        _band(axis, ks, bands, colour, label)
    if crossover is not None:
        axis.axvline(crossover, color=GREY, linestyle="--", linewidth=1.0)
        axis.annotate(
            f"A above B from {crossover}",
            (crossover, axis.get_ylim()[0]),
            fontsize=8,
            rotation=90,
            xytext=(3, 4),
            textcoords="offset points",
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.set_xlabel("samples k")
    axis.set_title("pass@k, 95 % intervals")
    axis.legend()


def _coverage(axis: Any, counts: dict[str, int]) -> None:
    names = ["both", "gained", "lost", "neither"]
    bars = axis.bar(names, [counts[name] for name in names], color=[GREY, "#2ca02c", "#d62728", GREY])
    axis.bar_label(bars)
    axis.margins(y=0.1)
    axis.set_title("problems solved at least once")
    axis.set_ylabel("problems")


def _likelihoods(axis: Any, values: tuple[Sequence[float], Sequence[float]], threshold: float) -> None:
    low = min(min(part) for part in values)
    bins = [low * i / 40 for i in range(40, -1, -1)]
    for part, colour, label in zip(values, (A, B), ("samples of A", "right answers of B"), strict=True):
        axis.hist(part, bins=bins, density=True, histtype="stepfilled", alpha=0.5, color=colour, label=label)
    axis.axvline(threshold, color="black", linewidth=1.0, linestyle="--", label="1 % quantile of A")
    axis.set_title("log-prob a token under the base")
    axis.set_xlabel("nats a token")
    axis.legend(loc="upper left", fontsize=8)


def _evaluations(axis: Any, run: RunView) -> None:
    for key, label, colour in (
        ("accuracy", "avg@k", B),
        ("pass_at_k", "pass@k", A),
        ("maj", "maj@k", "#2ca02c"),
    ):
        steps = []
        bands = []
        for row in evaluations(run):
            step = finite(row.get("step"))
            value = finite(row.get(key))
            if step is not None and value is not None:
                low, high = interval(row, key) or (value, value)
                steps.append(step)
                bands.append((value, low, high))
        if steps:
            _band(axis, steps, bands, colour, label)
    axis.set_title("held-out problems, 95 % intervals")
    axis.legend()


def _band(
    axis: Any, steps: Sequence[float], bands: Sequence[Band], colour: str, label: str, linestyle: str = "-"
) -> None:
    """A line through the values, and their intervals as a band around it."""
    values = [value for value, _, _ in bands]
    lows = [low for _, low, _ in bands]
    highs = [high for _, _, high in bands]
    style: Any = {"color": colour, "linestyle": linestyle, "linewidth": 1.2, "label": label}
    axis.plot(steps, values, marker="o", markersize=3, **style)
    axis.fill_between(steps, lows, highs, color=colour, alpha=0.2, linewidth=0)


def _styled() -> AbstractContextManager:
    from matplotlib import rc_context

    return rc_context(STYLE)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # no window, no display
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]


def _save(figure: Any, folder: Path, name: str, kinds: Sequence[str]) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        fresh = path.with_name(f".{path.name}.new")
        varying = "Date" if kind == "svg" else "Software"
        figure.savefig(fresh, format=kind, metadata={varying: None})
        os.replace(fresh, path)
    return paths
