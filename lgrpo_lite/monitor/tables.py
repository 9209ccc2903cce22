"""RunView -> the words and tables of a result: before and after, λ's path, what the algorithm is called."""

import re
from typing import Any

from rich.table import Table

from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.text import sparkline
from lgrpo_lite.monitor.theme import clean
from lgrpo_lite.objective.named import NAMED

FIGURES = (
    ("one of them right (pass@k)", "pass_at_k", ".3f"),
    ("most frequent answer right (maj@k)", "maj", ".3f"),
    ("greedy accuracy", "greedy", ".3f"),
    ("mean tokens", "length", ".1f"),
    ("truncated", "truncated", ".1%"),
    ("no answer found", "unparsable", ".1%"),
)


def evaluations(run: RunView) -> list[dict[str, Any]]:
    """The evaluations that have an accuracy; foreign rows are left out."""
    return [row for row in run.evals if finite(row.get("accuracy")) is not None]


def interval(row: dict[str, Any], key: str) -> tuple[float, float] | None:
    """The 95 % interval of a figure of an evaluation, where it has one."""
    intervals = row.get("intervals")
    pair = intervals.get(key) if isinstance(intervals, dict) else None
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    low, high = map(finite, pair)
    return None if low is None or high is None else (low, high)


def title(run: RunView) -> tuple[str, str]:
    """(name as its paper has it, `arXiv:…` or empty) of the run's algorithm; a row of one's own keeps its
    key.
    """
    use = run.get("algorithm.use", "?")
    row = NAMED.get(use) if isinstance(use, str) else None
    document = (row.__doc__ or "") if row else ""
    match = re.match(r"([^:(]+) \((arXiv:[\d.]+)\)", document)
    return (match[1], match[2]) if match else (clean(use, 60), "")


def result_table(run: RunView) -> Table:
    """Before and after, side by side; of a run that was evaluated at one step alone, that step."""
    name, paper = title(run)
    source = f" ({paper})" if paper else ""
    words = f"{clean(run.name)}: {name}{source}, {run.step} steps"
    table = Table(title=words, title_justify="left")
    columns = result_columns(run)
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for cells in result_rows(run):
        table.add_row(*cells[: len(columns)])
    return table


def result_columns(run: RunView) -> tuple[str, ...]:
    """Heads of `result_rows`: there is no after where nothing was evaluated after the first time."""
    rows = evaluations(run)
    if _last(rows) is not None:
        return ("", "before", "after", "change")
    step = finite(rows[0].get("step")) if rows else None
    return ("", f"at step {step:.0f}" if step else "before")


def _last(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last evaluation, if it is of another step than the first."""
    if len(rows) < 2:
        return None
    steps = [finite(row.get("step")) for row in (rows[0], rows[-1])]
    same = None not in steps and steps[0] == steps[1]
    return None if same else rows[-1]


def result_rows(run: RunView) -> list[tuple[str, str, str, str]]:
    """(what, before, after, change) of the first and the last evaluation, the last two empty where there is
    one alone; nothing without evaluations.
    """
    rows = evaluations(run)
    if not rows:
        return []
    first = rows[0]
    last = _last(rows)
    problems = clean(first.get("problems", "?"), 20)
    k = clean(first.get("k", "?"), 20)
    accuracy = f"accuracy, {problems} problems × {k} samples"
    temperature = finite(first.get("temperature"))
    if temperature is not None:
        accuracy += f", T={temperature:g}"
    lines = []
    for name, key, form in ((accuracy, "accuracy", ".3f"), *FIGURES):
        before = finite(first.get(key))
        after = finite(last.get(key)) if last else None
        if before is not None and last is None:
            lines.append((name, _estimate(first, key, form), "", ""))
        elif before is not None and last and after is not None:
            change = f"{after - before:+{form}}"
            lines.append((name, _estimate(first, key, form), _estimate(last, key, form), change))
    return lines


def _estimate(row: dict[str, Any], key: str, form: str) -> str:
    """A figure with its 95 % interval; evaluations of earlier versions have a standard error of the accuracy
    alone.
    """
    value = f"{row[key]:{form}}"
    ends = interval(row, key)
    if ends:
        low, high = ends
        return f"{value} ({low:{form}} to {high:{form}})"
    error = finite(row.get("stderr"))
    return f"{value} ± {error:.3f}" if key == "accuracy" and error is not None else value


def lambda_path(run: RunView, points: int = 8) -> str:
    """λ over the run in a few numbers; empty without a token preference."""
    values = map(finite, run.series("length_lambda"))
    path = [value for value in values if value is not None]
    if not path:
        return ""
    count = min(points, len(path))
    picked = [round(i * (len(path) - 1) / max(1, points - 1)) for i in range(count)]
    numbers = " → ".join(f"{path[i]:+.3f}" for i in picked)
    return f"λ {sparkline(path, 24)} {numbers}"
