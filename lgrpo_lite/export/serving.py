"""The lines that serve what a run exported: vLLM's, llama-server's and Ollama's, and one that asks."""

import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from lgrpo_lite.engines.http import WEIGHTS
from lgrpo_lite.export.stamp import outdated, read_stamp
from lgrpo_lite.monitor.tail import completions
from lgrpo_lite.policy.budget import SLOT_RANKS
from lgrpo_lite.policy.gguf import read_header
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.schema import Recipe

STEP = 256  # tokens; a context is a multiple of it
LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length")
MODELFILE = "Modelfile"
PORTS = {"vLLM": 8000, "llama-server": 8080, "Ollama": 11434}
# neither server samples plainly unless it is told to
VLLM_PLAIN = ("--generation-config", "vllm")
LLAMA_PLAIN = ("--top-k", "0", "--top-p", "1", "--min-p", "0")
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
    """Asks one question that the run was asked, sampled as the run was."""
    body = {
        "model": model_name(run),
        "messages": [{"role": "user", "content": _question(run)}],
        "temperature": recipe.rollout.temperature,
        "max_tokens": recipe.model.max_new_tokens,
    }
    if recipe.rollout.stop:
        body["stop"] = recipe.rollout.stop
    url = f"http://127.0.0.1:{PORTS[by]}/v1/chat/completions"
    return shlex.join(["curl", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)])


def context_length(recipe: Recipe, config: Mapping[str, Any]) -> int:
    """Tokens for the longest prompt and answer of the run, in steps of STEP, and at most what the model has.

    config: the model's, as in its config.json.
    """
    wanted = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens
    rounded = -(-wanted // STEP) * STEP
    known = {**config, **(config.get("text_config") or {})}
    limits = [known[name] for name in LONGEST if isinstance(known.get(name), int)]
    return min([rounded, *limits])


def model_name(run: Path) -> str:
    """The run's, as vLLM and Ollama take names."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.resolve().name)
    return name.lstrip("-.")[:80] or "run"


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
    config = _config(folder)
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    words = ["vllm", "serve", str(folder.resolve()), "--served-model-name", model_name(run)]
    words += ["--max-model-len", str(context_length(recipe, config)), "--dtype", str(dtype), *VLLM_PLAIN]
    return [Line("merged", "vLLM", shlex.join(words))]


def _adapter(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    model = recipe.model
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return []
    rank = int(json.loads(settings.read_text("utf-8"))["r"])
    base = locate(model.id, recipe.where("model.id"), model.revision)
    words = ["vllm", "serve"]
    if Path(base).is_dir():
        config = _config(Path(base))
        words.append(str(Path(base).resolve()))
    else:
        cached = try_to_load_from_cache(base, "config.json", revision=model.revision)
        config = _config(Path(cached).parent) if isinstance(cached, str) else {}
        words += [base, *(("--revision", model.revision) if model.revision else ())]
    words += shlex.split(WEIGHTS.get(model.weights, WEIGHTS["bf16"]))
    words += ["--enable-lora", "--lora-modules", _module(model_name(run), folder.resolve())]
    words += ["--max-lora-rank", str(next((slot for slot in SLOT_RANKS if slot >= rank), rank))]
    words += ["--max-model-len", str(context_length(recipe, config))]
    if (folder / "chat_template.jinja").is_file():  # vLLM would take the base's
        words += ["--chat-template", str(folder.resolve() / "chat_template.jinja")]
    notes = [OTHER_BASE[model.weights]] if model.weights in OTHER_BASE else []
    if rank > SLOT_RANKS[-1]:
        notes.append(f"vLLM takes ranks up to {SLOT_RANKS[-1]} and refuses this: serve merged")
    return [Line("adapter", "vLLM", shlex.join([*words, *VLLM_PLAIN]), tuple(notes))]


def _module(name: str, folder: Path) -> str:
    if "=" in str(folder):
        return json.dumps({"name": name, "path": str(folder)})
    return f"{name}={folder}"


def _gguf(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    lines = []
    for file in sorted(folder.glob("*.gguf")):
        longest = read_header(file, str(file)).setting("context_length")
        context = context_length(recipe, {LONGEST[0]: longest})
        words = ["llama-server", "-m", str(file.resolve()), "-c", str(context), "--jinja"]
        words += ["--alias", model_name(run), "--temp", f"{recipe.rollout.temperature:g}", *LLAMA_PLAIN]
        lines.append(Line("gguf", "llama-server", shlex.join(words)))
    return lines


def _ollama(recipe: Recipe, run: Path, folder: Path) -> list[Line]:
    file = folder / MODELFILE
    if not file.is_file():
        return []
    words = ["ollama", "create", model_name(run), "-f", str(file.resolve())]
    return [Line("ollama", "Ollama", shlex.join(words))]


SERVED: dict[str, Callable[[Recipe, Path, Path], list[Line]]] = {
    "merged": _merged,
    "adapter": _adapter,
    "gguf": _gguf,
    "ollama": _ollama,
}


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def _question(run: Path) -> str:
    """The first of the newest step that kept answers."""
    for file in sorted((run / "completions").glob("step-*.jsonl.gz"), reverse=True):
        for row in completions(file):
            if isinstance(row.get("prompt"), str):
                return row["prompt"]
    return QUESTION
