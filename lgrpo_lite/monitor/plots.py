"""Plots of a comparison and of a run, as PNG and SVG. Without matplotlib there are none, and `MISSING` says what to do.

Equal data give equal SVG files: no date, and identifiers from a fixed salt.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lgrpo_lite.monitor.tail import RunView

MISSING = 'no plots: matplotlib is not installed; pip install "lgrpo-lite[train]"'
STYLE: Any = {
    "svg.hashsalt": "lgrpo-lite", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9.0,
    "axes.titlesize": 10.0, "axes.titlelocation": "left", "legend.frameon": False, "figure.dpi": 100.0,
}  # fmt: skip
A, B, GREY = "#7f7f7f", "#1f77b4", "#d0d0d0"
Band = tuple[float, float, float]  # value, low, high


def available() -> bool:
    """Whether there is something to plot with."""
    return find_spec("matplotlib") is not None


def plot_comparison(
    found: dict[str, Any], likelihoods: tuple[Sequence[float], Sequence[float]], folder: Path, name: str = "compare"
) -> list[Path]:
    """Pass@k curves, the gained/lost table as bars, and where B's right answers lie in the base's likelihoods, if that is known.

    `found` is a comparison as JSON; `likelihoods` are mean log-probs a token under the base: of its samples, of B's right ones.
    """
    shown = 3 if found["support"] else 2
    with _styled():
        figure, axes = _figure(1, shown, (4.2 * shown, 3.4))
        _curves(axes[0], found)
        _coverage(axes[1], found["coverage"])
        if found["support"]:
            _likelihoods(axes[2], likelihoods, found["support"]["threshold"])
        figure.suptitle(f"{found['suite']}: A = {found['a']}, B = {found['b']}", x=0.01, ha="left", fontsize=10)
        return _save(figure, folder, name, ("png", "svg"))


def plot_run(run: RunView, folder: Path, name: str = "report") -> list[Path]:
    """What a run did, by step: reward, length, share of groups with a signal, λ where there is one, evaluations."""
    steps = [r.step for r in run.records]
    lam = [r.length_lambda for r in run.records]
    signal = [r.groups_mixed / r.groups if r.groups else None for r in run.records]
    panels: list[tuple[str, list[float | None]]] = [
        ("reward (mean of a step)", [r.reward for r in run.records]),
        ("completion tokens (mean)", [r.length for r in run.records]),
        ("groups with a signal (share)", signal),
    ]
    if any(x is not None for x in lam):
        panels.append(("λ of the token preference", lam))
    with _styled():
        figure, axes = _figure(2, 3, (12.0, 6.0))
        for axis, (title, values) in zip(axes, panels, strict=False):
            known = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None]
            axis.plot([s for s, _ in known], [v for _, v in known], color=B, linewidth=1.0)
            axis.set_title(title)
        if run.evals:
            _evaluations(axes[len(panels)], run.evals)
        for axis in axes:
            axis.set_xlabel("step")
        for axis in axes[len(panels) + bool(run.evals) :]:
            axis.set_visible(False)
        return _save(figure, folder, name, ("svg",))


def _curves(axis: Any, found: dict[str, Any]) -> None:
    for estimates, colour, label in zip(found["curves"], (A, B), "AB", strict=True):
        _band(axis, found["ks"], [(e["value"], e["low"], e["high"]) for e in estimates], colour, label)
    if found["crossover"] is not None:
        axis.axvline(found["crossover"], color=GREY, linestyle="--", linewidth=1.0)
        axis.annotate(f"A above B from {found['crossover']}", (found["crossover"], axis.get_ylim()[0]), fontsize=8, rotation=90,
                      xytext=(3, 4), textcoords="offset points")  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(found["ks"], [str(k) for k in found["ks"]])
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


def _evaluations(axis: Any, evals: Sequence[dict[str, Any]]) -> None:
    for key, label, colour in (("accuracy", "avg@k", B), ("pass_at_k", "pass@k", A), ("maj", "maj@k", "#2ca02c")):
        rows = [
            (e["step"], e[key], *(e.get("intervals") or {}).get(key, (e[key], e[key]))) for e in evals if e.get(key) is not None
        ]
        if rows:
            _band(axis, [row[0] for row in rows], [row[1:] for row in rows], colour, label)
    axis.set_title("held-out problems, 95 % intervals")
    axis.legend()


def _band(axis: Any, at: Sequence[float], rows: Sequence[Band], colour: str, label: str) -> None:
    axis.plot(at, [row[0] for row in rows], color=colour, marker="o", markersize=3, linewidth=1.2, label=label)
    axis.fill_between(at, [row[1] for row in rows], [row[2] for row in rows], color=colour, alpha=0.2, linewidth=0)


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
    done = [folder / f"{name}.{kind}" for kind in kinds]
    for path, kind in zip(done, kinds, strict=True):
        fresh = path.with_name(f".{path.name}.new")
        figure.savefig(fresh, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
        os.replace(fresh, path)
    return done
