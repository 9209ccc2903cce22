"""report.md: what the run did, from its files."""

from pathlib import Path

from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, sparkline
from lgrpo_lite.monitor.view import lambda_path, result_rows


def write_report(path: Path) -> None:
    """Rewrite report.md of a run folder: the before/after table, the curves, the settings that matter, the warnings."""
    run = Tail(path).refresh()
    (path / "report.md").write_text("\n".join(_lines(run)) + "\n", "utf-8")


def _lines(run: RunView) -> list[str]:
    lines = [f"# {run.name}", "", f"{run.get('algorithm.use')} on {run.get('model.id')} ({run.get('model.weights')}), "
             f"{run.step} of {run.steps} steps, seed {run.get('seed', 0)}.", ""]  # fmt: skip
    if rows := result_rows(run):
        lines += ["| | before | after | change |", "|---|---:|---:|---:|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    if run.records:
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
