"""What was checked of an export, in Markdown: the merge, each GGUF file, the template."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgrpo_lite.export.gguf_report import WHOLE
from lgrpo_lite.export.place import json_of, report_of
from lgrpo_lite.folder.markdown import cell, inline, table
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.theme import size
from lgrpo_lite.recipe.schema import Recipe

COLUMNS = (
    "file", "quantisation", "size", "KL to the policy", "largest", "same top token", "greedy answers equal",
    "held-out accuracy",
)  # fmt: skip
TEMPLATE = (
    "The tokenizer in this folder, by its chat template, reads questions as the same tokens that the policy"
    " read in training: that was compared before it was written."
)


def quantised_alone(folder: Path, kind: str) -> bool:
    """Whether an export of that kind is GGUF files without one in 16 bits, which is held to the policy."""
    return kind in ("gguf", "ollama") and not any(folder.glob(f"*-{WHOLE}.gguf"))


def solved_by_files(folder: Path) -> list[dict[str, Any]]:
    """What the report says of files in the folder that solved held-out problems themselves."""
    return [
        row
        for row in _rows(report_of(folder))
        if row.get("kept") and isinstance(row.get("eval"), dict) and finite(row["eval"].get("problems"))
    ]


def proofs(folder: Path, kind: str, recipe: Recipe) -> Iterator[str]:
    """By the reports in the folder of the export; where there is none, that is said."""
    if kind == "adapter":
        yield TEMPLATE
        yield "The adapter's weights are the run's own, as its checkpoint has them."
    elif kind == "merged":
        yield from _merge(json_of(folder / "merge_report.json"), recipe)
        yield from ("", TEMPLATE)
    elif kind in ("gguf", "lora-gguf", "ollama"):
        yield from _ggufs(report_of(folder))


def _merge(report: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    prompts, tokens = finite(report.get("prompts")), finite(report.get("tokens"))
    same, mean, most = (finite(report.get(key)) for key in ("same_top", "mean_logit_diff", "max_logit_diff"))
    if prompts is None or tokens is None or same is None or mean is None or most is None:
        yield "The merge: not known, merge_report.json is not there or cannot be read."
        return
    on = f" on a base in {cell(recipe.model.weights)}" if recipe.model.lora else ""
    sliced = report.get("compared") == "in slices"
    tensors = finite(report.get("tensors")) or 0
    if sliced:
        yield (
            f"The merged model was made and compared in slices: {tensors:,.0f} tensors were read back and are"
            f" what the policy, as it was trained{on}, computes; both were asked, a layer at a time, for the"
            f" next token at the ends of {prompts:.0f} questions:"
        )
    else:
        yield (
            f"The merged model was loaded by transformers and compared with the policy, as it was trained"
            f"{on}, in float32 on {prompts:.0f} questions:"
        )
    yield ""
    greedy = "next tokens equal" if sliced else "greedy answers equal, token for token"
    rows = [
        (greedy, f"{inline(report.get('greedy_equal', '?'))} of {prompts:.0f}"),
        (f"same most likely token, of {tokens:,.0f} positions", f"{same:.2%}"),
        ("difference of a logit, mean", f"{mean:.2g}{_accepted(report)}"),
        ("difference of a logit, largest", f"{most:.2g}"),
        ("weights stored as", cell(str(report.get("dtype", "?")).removeprefix("torch."))),
    ]
    yield from table(("", ""), rows, "|---|---:|")
    if report.get("base") == "original":
        yield ""
        yield (
            "The adapter was merged into the base's original weights, and not into the quantised ones that it"
            " was trained on: the differences are those of quantisation and were not judged."
        )


def _accepted(report: dict[str, Any]) -> str:
    accepted = finite(report.get("tolerance"))
    return "" if accepted is None else f" (accepted: {accepted:g})"


def _ggufs(report: dict[str, Any]) -> Iterator[str]:
    rows = _rows(report)
    if not rows:
        yield "The files: not known, export_report.json is not there or cannot be read."
        return
    yield "Each file was loaded by llama.cpp and compared with the policy, as it was trained, on questions:"
    yield ""
    solved = any(isinstance(row.get("eval"), dict) for row in rows)
    count = len(COLUMNS) if solved else len(COLUMNS) - 1
    cells = [_file(row)[:count] for row in rows]
    yield from table(COLUMNS[:count], cells, "|---|---" + "|---:" * (count - 2) + "|")
    trained = finite(report.get("training_kl"))
    if trained is not None:
        yield ""
        moved = f"training moved the policy {trained:.2g} from its base"
        yield f"KL is in nats a token. By the same measure {moved}."
    notes = report.get("notes")
    if isinstance(notes, list) and notes:
        yield ""
        for note in notes[:20]:
            yield f"- **{inline(note)}**"


def _rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    files = report.get("files")
    return [row for row in files if isinstance(row, dict)] if isinstance(files, list) else []


def _file(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    same, prompts = finite(row.get("same_top")), finite(row.get("prompts"))
    greedy = finite(row.get("greedy_equal"))
    equal = "–" if greedy is None or prompts is None else f"{greedy:.0f} of {prompts:.0f}"
    return (
        f"`{cell(row.get('file', '?'))}`" + (", not kept" if row.get("kept") is False else ""),
        cell(row.get("quant", "?")),
        size(row.get("bytes")),
        _number(row.get("kl")),
        _number(row.get("max_kl")),
        "–" if same is None else f"{same:.2%}",
        equal,
        _solved(row.get("eval")),
    )


def _solved(found: Any) -> str:
    if not isinstance(found, dict):
        return "–"
    value, low, high = (finite(found.get(key)) for key in ("accuracy", "low", "high"))
    if value is None or low is None or high is None:
        return "–"
    policy = finite(found.get("policy"))
    beside = "" if policy is None else f"; the policy {policy:.3f}"
    return f"{value:.3f} ({low:.3f} to {high:.3f}) of {cell(found.get('problems', '?'))} problems{beside}"


def _number(value: Any) -> str:
    number = finite(value)
    return "–" if number is None else f"{number:.2g}"
