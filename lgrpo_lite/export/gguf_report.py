"""What export_report.json says of GGUF files, and its table on a terminal."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgrpo_lite.export.gguf_proof import MOST_KL, Proof, Reference
from lgrpo_lite.export.place import REPORT

# bits a number takes on the average, from best to smallest
BITS = {"f16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9}
NOISY_KL = 0.05
WHOLE = "f16"  # from which the others are quantised, and which is held to the policy


def row_of(file: Path, quant: str, proof: Proof, *, kept: bool) -> dict[str, Any]:
    """What the report says of a file. `eval`: held-out problems solved, where that is asked for."""
    row = {"file": file.name, "quant": quant, "bytes": file.stat().st_size, "kept": kept}
    row |= dataclasses.asdict(proof)
    del row["faults"], row["strayed"], row["same_sure"]
    return row | {"eval": None}


def write(
    folder: Path, kind: str, checkpoint: str, converter: str, ref: Reference, files: list[dict[str, Any]]
) -> dict[str, Any]:
    """export_report.json in `folder`."""
    report = {
        "kind": kind,
        "checkpoint": checkpoint,
        "base": "as trained",
        "converter": converter,
        "training_kl": ref.training_kl,
        "files": files,
        "notes": noise(files, ref.training_kl),
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1), "utf-8")
    return report


def noise(files: Sequence[dict[str, Any]], training: float | None) -> list[str]:
    """A warning for each kept file that is further from the policy than the base is, with a better choice.

    training None, for no base is at hand: NOISY_KL stands in for it.
    """
    most = NOISY_KL if training is None else max(training, MOST_KL)
    than = f"more than training did ({training or 0:.2g})"
    if training is None:
        than = f"and {NOISY_KL:g} is much"
    notes = []
    for row in files:
        if row["kl"] <= most or not row["kept"]:
            continue
        better = [one["quant"] for one in files if one["kl"] <= most]
        lost = f"{row['quant']} moves the policy by {row['kl']:.2g} nats a token, {than}"
        notes.append(f"{lost}: take {better[-1]}" if better else lost)
    return notes


def table(report: dict[str, Any]) -> list[str]:
    """The report as lines of a terminal."""
    lines = [f"{'file':32} {'MB':>7}  {'KL to the policy':>16}  {'most':>7}  same top  greedy  held-out"]
    for row in report["files"]:
        if not row["kept"]:
            continue
        solved = row["eval"] or {}
        share = "–"
        if solved.get("problems"):
            share = "{accuracy:.3f} ({low:.3f} to {high:.3f}), policy {policy:.3f}".format(**solved)
        greedy = f"{row['greedy_equal']}/{row['prompts']}"
        size = f"{row['bytes'] / 1e6:.1f}"
        figures = f"{row['kl']:16.2g}  {row['max_kl']:7.2g}  {row['same_top']:8.1%}  {greedy:>6}"
        lines.append(f"{row['file']:32} {size:>7}  {figures}  {share}")
    if report["training_kl"] is not None:
        lines.append(f"what training changed, KL(policy ‖ base): {report['training_kl']:.2g} nats a token")
    return lines + [f"warning: {note}" for note in report["notes"]]
