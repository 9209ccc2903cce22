"""The front matter of a model card: what the Hub reads of it, built by huggingface_hub's own classes."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lgrpo_lite.export.card_proofs import solved_by_files
from lgrpo_lite.folder.facts import dataset_id, source_name, sources
from lgrpo_lite.folder.origin import Base, Licence
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import evaluations, interval
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import clean
from lgrpo_lite.objective.named import NAMED

# by kind of export: (library_name, base_model_relation). A GGUF is a finetune of the base as the merged model
# is: `quantized` would list it among the copies of the base itself
KINDS = {
    "merged": ("transformers", "finetune"),
    "adapter": ("peft", "adapter"),
    "gguf": ("gguf", "finetune"),
    "lora-gguf": ("gguf", "adapter"),
    "ollama": ("gguf", "finetune"),
    "run": (None, None),
}
TASK = "text-generation"
TAGS = {"length_preference": "lambda-grpo", "trace": "grpo-lambda", "prefix_share": "lambda-grpo-prefix"}
# figure of an evaluation: (type of metric, what it is)
METRICS = {
    "accuracy": ("accuracy", "accuracy, {k} answers a problem at temperature {temperature}"),
    "greedy": ("accuracy", "greedy accuracy"),
    "pass_at_k": ("pass@{k}", "one of {k} answers right"),
    "maj": ("maj@{k}", "most frequent of {k} answers right"),
}


def front_matter(
    run: RunView, kind: str, base: Base, licence: Licence | None, name: str, found_results: list[EvalResult]
) -> ModelCardData:
    """Of an export of that kind, with its figures. What is not known is left out."""
    library, relation = KINDS.get(kind, KINDS["run"])
    found: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": TASK,
        "tags": tags(run, kind),
        "datasets": _datasets(run) or None,
        "model_name": name,
        "eval_results": found_results or None,
    }
    if base.hub is not None:
        found["base_model"] = base.hub
        found["base_model_relation"] = relation
    if licence is not None:
        found["license"] = licence.id
        found["license_name"] = clean(licence.name, 100) if licence.name else None
        found["license_link"] = licence.link
    if found["eval_results"] is None:
        found["model_name"] = None
    return ModelCardData(**found)


def tags(run: RunView, kind: str) -> list[str]:
    """Words to be found by."""
    found = ["lgrpo-lite", "reinforcement-learning", "grpo"]
    use = run.get("algorithm.use")
    if isinstance(use, str) and use in NAMED:
        found.append(TAGS.get(use, use.replace("_", "-")))
    if isinstance(run.get("model.lora"), dict):
        found.append("lora")
    if run.get("model.weights") == "nf4":
        found.append("qlora")
    if kind in ("gguf", "lora-gguf", "ollama"):
        found.append("gguf")
    return found


def _datasets(run: RunView) -> list[str]:
    """Data sets of the Hub that were trained on."""
    found = [dataset_id(source) for source in sources(run, "train")]
    return [repository for repository in dict.fromkeys(found) if repository]


def results(run: RunView, step: int) -> list[EvalResult]:
    """The held-out figures of that step; none where it was not evaluated."""
    rows = [row for row in evaluations(run) if row.get("step") == step]
    held_out = sources(run, "eval")
    if not rows or not held_out:
        return []
    row = rows[-1]
    told = {"k": _plain(row.get("k")), "temperature": _plain(row.get("temperature"))}
    found = []
    for key, (metric, words) in METRICS.items():
        value = finite(row.get(key))
        if value is None or (key in ("pass_at_k", "maj") and finite(row.get("k")) == 1):
            continue
        text = words.format(**told)
        if ends := interval(row, key):
            text += f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"
        named = metric.format(**told)
        found.append(EvalResult(**_asked(held_out), metric_type=named, metric_name=text, metric_value=value))
    return found


def results_of_files(run: RunView, folder: Path) -> list[EvalResult]:
    """The held-out figures of GGUF files in the folder, which they have by `--eval`; none of the policy's."""
    held_out = sources(run, "eval")
    found = []
    for row in solved_by_files(folder) if held_out else []:
        value, low, high = (finite(row["eval"].get(key)) for key in ("accuracy", "low", "high"))
        if value is None or low is None or high is None:
            continue
        file = clean(str(row.get("file")), 100)
        text = f"greedy accuracy of {file} on {_plain(row['eval']['problems'])} problems"
        text += f" (95 % interval {low:.3f} to {high:.3f})"
        asked = _asked(held_out)
        found.append(EvalResult(**asked, metric_type="accuracy", metric_name=text, metric_value=value))
    return found


def _asked(held_out: list[dict[str, Any]]) -> dict[str, Any]:
    """The held-out problems as a data set: one of the Hub by its name there, others by words."""
    names = [f"{clean(source_name(source), 200)} (held out)" for source in held_out]
    asked = {"task_type": TASK, "dataset_name": "; ".join(names), "dataset_type": "unknown"}
    only = held_out[0] if len(held_out) == 1 else {}
    if repository := dataset_id(only):
        asked["dataset_type"] = repository
        for key in ("config", "split"):
            if isinstance(only.get(key), str):
                asked[f"dataset_{key}"] = clean(only[key], 100)
    return asked


def _plain(value: Any) -> str:
    number = finite(value)
    return "?" if number is None else f"{number:g}"


def slug(name: str) -> str:
    """A name that servers and shells take as it is."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"
