"""The Modelfile of a GGUF file, by which Ollama gives the model the text it read in training."""

from collections.abc import Sequence
from pathlib import Path

from lgrpo_lite.data.template import first_token
from lgrpo_lite.export.commands import context_length, model_name
from lgrpo_lite.export.formats import Job
from lgrpo_lite.export.go_chat import go_chat
from lgrpo_lite.export.serving import MODELFILE
from lgrpo_lite.policy.gguf import read_header
from lgrpo_lite.recipe.schema import Recipe

ASKED = 8  # questions of the run that both templates render
# what Ollama would do without being asked; the policy was not sampled so
PLAIN_SAMPLING = ("top_k 0", "top_p 1", "min_p 0", "repeat_penalty 1")
# architectures, as GGUF names them, that newer versions of Ollama render by code of their own
OWN_RENDERER = ("gemma4", "laguna", "nemotron_h", "nemotron_h_moe", "nemotron_h_omni")


def write_modelfile(job: Job, folder: Path, gguf_name: str) -> list[str]:
    """The Modelfile of `folder/gguf_name`, beside it. Returns what whoever runs it has to know."""
    policy, recipe = job.policy, job.recipe
    file = folder / gguf_name
    header = read_header(file, str(file))
    known = header.metadata.get("tokenizer.ggml.add_bos_token")
    begins = first_token(policy.tokenizer) is not None if known is None else bool(known)
    questions = [prompt.text for prompt in job.prompts[:ASKED]]
    chat = go_chat(recipe.data, policy.tokenizer, begins=begins, questions=questions)
    notes = list(chat.notes)
    if header.architecture in OWN_RENDERER:
        notes.append(
            f"newer versions of Ollama render {header.architecture} by code of their own, not by TEMPLATE"
        )
    if recipe.data.prefill:
        notes.append(f"every answer is begun with {recipe.data.prefill!r}, which Ollama does not show")
    ends = [policy.tokenizer.decode([token]) for token in sorted(policy.eos_ids)]
    stops = list(dict.fromkeys([*ends, *(recipe.rollout.stop or ())]))
    longest = context_length(recipe, policy.base.config.to_dict())
    text, lost = modelfile(recipe, model_name(job.run), gguf_name, chat.template, stops, longest)
    (folder / MODELFILE).write_text(text, "utf-8")
    return notes + lost


def modelfile(
    recipe: Recipe, name: str, gguf_name: str, template: str | None, stops: Sequence[str], num_ctx: int
) -> tuple[str, list[str]]:
    """Its text, and what it cannot hold.

    name: under which it is created. template: None leaves it to Ollama. stops: texts that end an answer.
    """
    lost = []
    lines = [f"# ollama create {name} -f {MODELFILE}", f"FROM ./{gguf_name}"]
    if template is not None:
        lines.append(f"TEMPLATE {held(template)}")
    system = recipe.data.system
    if system and held(system):
        lines.append(f"SYSTEM {held(system)}")
    elif system:
        lost.append("no SYSTEM: a Modelfile cannot hold this system message")
    for stop in stops:
        if held(stop):
            lines.append(f"PARAMETER stop {held(stop)}")
        else:
            lost.append(f"no PARAMETER stop for {stop!r}: a Modelfile cannot hold it")
    lines.append(f"PARAMETER num_ctx {num_ctx}")
    lines.append(f"PARAMETER temperature {recipe.eval.temperature:g}")
    lines += [f"PARAMETER {setting}" for setting in PLAIN_SAMPLING]
    return "\n".join(lines) + "\n", lost


def held(text: str) -> str:
    """As the value of a Modelfile's command; empty for what it cannot hold: three quotes, for which it has no
    escape, and signs that are not printed, which Ollama drops.
    """
    shown = text.replace("\n", "").replace("\t", "")
    return f'"""{text}"""' if shown.isprintable() and '"""' not in text else ""
