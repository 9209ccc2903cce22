"""The lines that serve what a run exported: vLLM's, llama-server's and Ollama's, and one that asks."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from lgrpo_lite.export.commands import (
    asking,
    config_of,
    gguf_config,
    llama_server,
    model_name,
    ollama_create,
    rank_of,
    vllm_adapter,
    vllm_merged,
)
from lgrpo_lite.export.stamp import outdated, read_stamp
from lgrpo_lite.monitor.tail import completions
from lgrpo_lite.policy.budget import SLOT_RANKS
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.schema import Recipe

MODELFILE = "Modelfile"
QUESTION = "What is 2+3?"  # of a run that kept no answers
OTHER_BASE = {  # what an adapter on quantised weights was trained on
    "nf4": "trained on nf4 weights: --quantization bitsandbytes makes the same of the base",
    "int8": "trained on int8 weights, which vLLM does not make: on 16-bit ones it answers a little otherwise",
}


class Line(NamedTuple):
    """How an export is served. `notes` are for whoever runs it."""

    export: str
    by: str
    command: str
    notes: tuple[str, ...] = ()


def serving_lines(recipe: Recipe, run: Path) -> list[Line]:
    """One or more for each export that is at its own place in the run folder."""
    found = []
    for export, lines_of in SERVED.items():
        folder = run / "export" / export
        stale = _stale(run, export, folder)
        for line in lines_of(recipe, run, folder):
            found.append(line._replace(notes=(*stale, *line.notes)))
    return found


def as_argument(run: Path) -> str:
    """A run folder as a word of a command: one that begins with a dash would be taken for an option."""
    return f"./{run}" if str(run).startswith("-") else str(run)


def not_exported(recipe: Recipe, run: Path, lines: list[Line]) -> dict[str, str]:
    """Exports that could be served and are not made, each with the command that makes it."""
    made = {line.export for line in lines}
    kinds = [kind for kind in SERVED if kind not in made]
    if recipe.model.lora is None and "adapter" in kinds:
        kinds.remove("adapter")
    return {kind: shlex.join(["lgrpo-lite", "export", as_argument(run), kind]) for kind in kinds}


def asking_line(recipe: Recipe, run: Path, by: str) -> str:
    """Asks one question that the run was asked, sampled as it was evaluated."""
    return asking(recipe, model_name(run), _question(run), by)


def _stale(run: Path, kind: str, folder: Path) -> list[str]:
    """That an export is not of the newest checkpoint, or not as it was made."""
    latest = run / "checkpoints" / "latest"
    if not latest.exists():
        return []
    newest = latest.resolve().name
    why = outdated(folder, kind, run, newest)
    stamp = read_stamp(folder)
    if stamp and stamp["checkpoint"] not in (None, newest):
        return [f"made of {stamp['checkpoint']}, the newest is {newest}"]
    return [f"not the newest export of {newest}: {why}"] if why else []


def _merged(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    if not (folder / "merge_report.json").is_file():
        return []
    command = vllm_merged(recipe, model_name(run), folder, str(folder.resolve()))
    return [Line("merged", "vLLM", command)]


def _adapter(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    model = recipe.model
    if not (folder / "adapter_config.json").is_file():
        return []
    base, config = _base(recipe)
    command = vllm_adapter(recipe, model_name(run), folder, str(folder.resolve()), base, config)
    notes = [OTHER_BASE[model.weights]] if model.weights in OTHER_BASE else []
    if rank_of(recipe, folder) > SLOT_RANKS[-1]:
        notes.append(f"vLLM takes ranks up to {SLOT_RANKS[-1]} and refuses this: serve merged")
    return [Line("adapter", "vLLM", command, tuple(notes))]


def _base(recipe: Recipe) -> tuple[str, dict[str, Any]]:
    """What was trained on, as a shell reads it, and its config; empty where it is not here."""
    model = recipe.model
    base = locate(model.id, recipe.where("model.id"), model.revision)
    if Path(base).is_dir():
        return shlex.quote(str(Path(base).resolve())), config_of(Path(base))
    cached = try_to_load_from_cache(base, "config.json", revision=model.revision)
    config = config_of(Path(cached).parent) if isinstance(cached, str) else {}
    return shlex.join([base, *(("--revision", model.revision) if model.revision else ())]), config


def _gguf(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    lines = []
    for file in sorted(folder.glob("*.gguf")):
        command = llama_server(recipe, model_name(run), str(file.resolve()), gguf_config(file))
        lines.append(Line("gguf", "llama-server", command))
    return lines


def _ollama(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    file = folder / MODELFILE
    if not file.is_file():
        return []
    return [Line("ollama", "Ollama", ollama_create(model_name(run), str(file.resolve())))]


SERVED: dict[str, Callable[[Recipe, Path, Path], list[Line]]] = {
    "merged": _merged,
    "adapter": _adapter,
    "gguf": _gguf,
    "ollama": _ollama,
}


def _question(run: Path) -> str:
    """The first of the newest step that kept answers."""
    for file in sorted((run / "completions").glob("step-*.jsonl.gz"), reverse=True):
        for row in completions(file):
            if isinstance(row.get("prompt"), str):
                return row["prompt"]
    return QUESTION
