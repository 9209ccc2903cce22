"""The commands that serve an export and ask it, which a card and `serve-cmd` share."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lgrpo_lite.engines.http import WEIGHTS
from lgrpo_lite.policy.budget import SLOT_RANKS
from lgrpo_lite.policy.gguf import read_header
from lgrpo_lite.recipe.schema import Recipe

STEP = 256  # tokens; a context is a multiple of it
LONGEST = ("max_position_embeddings", "n_positions", "max_sequence_length")
PORTS = {"vLLM": 8000, "llama-server": 8080, "Ollama": 11434}
# neither server samples plainly unless it is told to
VLLM_PLAIN = ("--generation-config", "vllm")
LLAMA_PLAIN = ("--top-k", "0", "--top-p", "1", "--min-p", "0")
TEMPLATE = "chat_template.jinja"


def vllm_merged(recipe: Recipe, name: str, folder: Path, at: str) -> str:
    """Of the merged model in `folder`, which the command names `at`."""
    config = config_of(folder)
    dtype = config.get("dtype") or config.get("torch_dtype") or "auto"
    words = ["--served-model-name", name, "--max-model-len", str(context_length(recipe, config))]
    words += ["--dtype", str(dtype)]
    return shlex.join(["vllm", "serve", at, *words, *VLLM_PLAIN])


def vllm_adapter(
    recipe: Recipe, name: str, folder: Path, at: str, base: str, config: Mapping[str, Any]
) -> str:
    """Of the adapter in `folder`, which the command names `at`, on a base.

    base: as a shell reads it, with its revision. config: the base's, as in its config.json.
    """
    rank = rank_of(recipe, folder)
    words = shlex.split(WEIGHTS.get(recipe.model.weights, WEIGHTS["bf16"]))
    words += ["--enable-lora", "--lora-modules", _module(name, at)]
    words += ["--max-lora-rank", str(next((slot for slot in SLOT_RANKS if slot >= rank), rank))]
    words += ["--max-model-len", str(context_length(recipe, config))]
    if (folder / TEMPLATE).is_file():  # vLLM would take the base's
        words += ["--chat-template", str(Path(at) / TEMPLATE)]
    return f"vllm serve {base} {shlex.join([*words, *VLLM_PLAIN])}"


def _module(name: str, at: str) -> str:
    return json.dumps({"name": name, "path": at}) if "=" in at else f"{name}={at}"


def rank_of(recipe: Recipe, folder: Path) -> int:
    """Of an adapter: as its own file says, else the recipe."""
    settings = folder / "adapter_config.json"
    if settings.is_file():
        return int(json.loads(settings.read_text("utf-8"))["r"])
    return recipe.model.lora.rank if recipe.model.lora else SLOT_RANKS[0]


def llama_server(
    recipe: Recipe, name: str, file: str, config: Mapping[str, Any], adapter: str | None = None
) -> str:
    """Of a GGUF file, with an adapter on it or without. config: as of `context_length`."""
    words = ["llama-server", "-m", file]
    if adapter is not None:
        words += ["--lora", adapter]
    words += ["-c", str(context_length(recipe, config)), "--jinja", "--alias", name]
    return shlex.join([*words, "--temp", f"{recipe.eval.temperature:g}", *LLAMA_PLAIN])


def ollama_create(name: str, file: str) -> str:
    """Of a Modelfile."""
    return shlex.join(["ollama", "create", name, "-f", file])


def asking(recipe: Recipe, name: str, question: str, by: str) -> str:
    """Asks a server, one of PORTS, one question, sampled as in the evaluation."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": question}],
        "temperature": recipe.eval.temperature,
        "max_tokens": recipe.model.max_new_tokens,
    }
    if recipe.rollout.stop:
        body["stop"] = recipe.rollout.stop
    if recipe.rollout.stop and by == "vLLM":  # the others have no such switch
        body["include_stop_str_in_output"] = True
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


def config_of(folder: Path | None) -> dict[str, Any]:
    """A model's config.json; empty where there is none."""
    file = folder / "config.json" if folder else None
    return json.loads(file.read_text("utf-8")) if file and file.is_file() else {}


def gguf_config(file: Path) -> dict[str, Any]:
    """Of what its head says, the length of context as a config.json has it. No GGUF: ConfigError."""
    return {LONGEST[0]: read_header(file, str(file)).setting("context_length")}


def model_name(run: Path | str) -> str:
    """The run's, as vLLM and Ollama take names. A text is its name."""
    own = run if isinstance(run, str) else run.resolve().name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", own)
    return name.lstrip("-.")[:80] or "run"
