"""report.md: what the run did, from its files, with its plots as report.svg beside it."""

from pathlib import Path

from lgrpo_lite.evaluation.held_out import read_samples
from lgrpo_lite.evaluation.paired import FEW, change
from lgrpo_lite.monitor import plots
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, sparkline
from lgrpo_lite.monitor.view import lambda_path, result_rows


def write_report(path: Path) -> None:
    """Rewrite report.md of a run folder: the before/after table, the curves, the settings that matter, the warnings."""
    run = Tail(path).refresh()
    if run.records and plots.available():
        plots.plot_run(run, path)
    (path / "report.md").write_text("\n".join(_lines(run)) + "\n", "utf-8")


def _lines(run: RunView) -> list[str]:
    lines = [f"# {run.name}", "", f"{run.get('algorithm.use')} on {run.get('model.id')} ({run.get('model.weights')}), "
             f"{run.step} of {run.steps} steps, seed {run.get('seed', 0)}.", ""]  # fmt: skip
    if rows := result_rows(run):
        lines += ["| | before | after | change |", "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows), ""]
        lines += _in_words(run)
    if run.records:
        lines += ["![reward, length, signal, λ and evaluations](report.svg)" if plots.available() else plots.MISSING, ""]
        lines += [f"    reward  {sparkline([r.reward for r in run.records], 60)}"]
        lines += [f"    length  {sparkline([r.length for r in run.records], 60)}"]
        lines += [f"    {path}"] if (path := lambda_path(run)) else []
        seconds = sum(sum(r.seconds.values()) for r in run.records)
        lines += ["", f"{sum(r.rollout_tokens for r in run.records):,} tokens sampled in {duration(seconds)} of steps."]
        skipped = sum(r.skipped is not None for r in run.records)
        lines += [f"{skipped} steps made no update (no group with two different rewards, or a refused loss)."] if skipped else []
    if run.warnings:
        lines += ["", "## Warnings", *(f"- {w.get('message') or w.get('reason')}" for w in run.warnings)]
    return [*lines, "", "All settings: `config.resolved.yaml`."]


def _in_words(run: RunView) -> list[str]:
    """The intervals explained, and the first and last evaluation compared problem by problem where their samples are there."""
    lines = ["In brackets: 95 % intervals, from problems drawn again with replacement (bootstrap).", ""]
    if run.evals[0]["problems"] < FEW:
        lines = [f"{run.evals[0]['problems']} problems are few: the intervals in brackets (95 %, bootstrap) are too narrow.", ""]
    files = [run.path / "evals" / f"step-{row['step']:06d}.jsonl.gz" for row in (run.evals[0], run.evals[-1])]
    if files[0] == files[1] or not all(file.exists() for file in files):
        return lines
    said = change(*(read_samples(file) for file in files), names=("the policy before training", "the trained policy"))
    return [said, "", *lines] if said else lines
