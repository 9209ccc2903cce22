"""The commands of a model card: what runs an export, as they are typed in its folder."""

import json
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.export.card_front import slug
from lgrpo_lite.export.commands import (
    asking,
    config_of,
    gguf_config,
    llama_server,
    model_name,
    ollama_create,
    vllm_adapter,
    vllm_merged,
)
from lgrpo_lite.export.serving import MODELFILE
from lgrpo_lite.folder.origin import BUILTIN, Base
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Asked:
    """An export, and how it is asked in its examples."""

    recipe: Recipe
    folder: Path
    base: Base
    name: str  # of the run
    question: str
    gguf: str | None  # the file in the folder to run, where there is one

    @property
    def served(self) -> str:
        return model_name(self.name)


@dataclass(frozen=True, slots=True)
class Use:
    """One way to run it: its heading and the text of a program or of commands."""

    heading: str
    language: str
    text: str


# ------------------------------------------------------------------------------------------- transformers


LOADED = """\
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")"""
ADAPTED = """\
base = {base}
base = AutoModelForCausalLM.from_pretrained(base{revision}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, folder)"""
PROGRAM = """\
{imports}
folder = "."  # where this file lies, or the name of its repository on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
{loaded}
asked = [{{"role": "user", "content": {question}}}]
inputs = tokenizer.apply_chat_template(
    asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
).to(model.device)
answer = model.generate(**inputs, {sampling})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def merged(asked: Asked) -> Iterator[Use]:
    yield Use("transformers", "python", _program(asked, LOADED, ""))
    yield _vllm(asked, vllm_merged(asked.recipe, asked.served, asked.folder, "."))
    if asked.base.kind != "builtin":
        file = f"{asked.served}-f16.gguf"
        convert = f"python convert_hf_to_gguf.py . --outtype f16 --outfile {file}  # of llama.cpp's sources"
        serve = llama_server(asked.recipe, asked.served, file, config_of(asked.folder))
        yield Use("llama.cpp", "sh", f"{convert}\n{serve}")


def adapter(asked: Asked) -> Iterator[Use]:
    base, imports = _base_in_python(asked.base)
    revision = f", revision={json.dumps(asked.base.revision)}" if asked.base.revision else ""
    loaded = ADAPTED.format(base=base, revision=revision)
    yield Use("transformers and PEFT", "python", _program(asked, loaded, imports, peft=True))
    named = _base_in_shell(asked.base)
    if asked.base.revision:
        named += f" --revision {shlex.quote(asked.base.revision)}"
    config = _base_config(asked.base)
    yield _vllm(asked, vllm_adapter(asked.recipe, asked.served, asked.folder, ".", named, config))


def _program(asked: Asked, loaded: str, imports: str, *, peft: bool = False) -> str:
    lines = imports + ("from peft import PeftModel\n" if peft else "")
    lines += "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    question = json.dumps(asked.question, ensure_ascii=False)
    return PROGRAM.format(imports=lines, loaded=loaded, question=question, sampling=_sampling(asked.recipe))


def _sampling(recipe: Recipe) -> str:
    """As it was evaluated: transformers would lay the base's own settings over it."""
    parts = [f"max_new_tokens={recipe.model.max_new_tokens}"]
    if recipe.eval.temperature:
        parts.append(f"do_sample=True, temperature={recipe.eval.temperature:g}, top_p=1.0, top_k=0")
    else:
        parts.append("do_sample=False")
    if recipe.rollout.stop:
        parts.append(
            f"stop_strings={json.dumps(recipe.rollout.stop, ensure_ascii=False)}, tokenizer=tokenizer"
        )
    return ", ".join(parts)


def _base_in_python(base: Base) -> tuple[str, str]:
    """(the base's name as an expression, the import that this needs)."""
    if base.kind == "builtin":
        folder = json.dumps(base.name.removeprefix(BUILTIN))
        return f'str(files("lgrpo_lite") / "models" / {folder})', "from importlib.resources import files\n\n"
    return json.dumps(_base_name(base), ensure_ascii=False), ""


def _base_in_shell(base: Base) -> str:
    if base.kind == "builtin":
        path, imports = _base_in_python(base)
        return f'"$(python -c {shlex.quote(f"{imports.strip()}; print({path})")})"'
    return shlex.quote(_base_name(base))


def _base_name(base: Base) -> str:
    return base.name if base.kind == "hub" else f"path/to/{base.name}"


# ------------------------------------------------------------------------------------------- servers


def _vllm(asked: Asked, serve: str) -> Use:
    curl = asking(asked.recipe, asked.served, asked.question, "vLLM")
    return Use("vLLM", "sh", f"{serve}\n# and in another terminal\n{curl}")


def _base_config(base: Base) -> dict[str, Any]:
    """As in its config.json; empty where it is not here."""
    if base.kind == "gguf":
        return _gguf_config(base.file)
    return config_of(Path(locate(base.name)) if base.kind == "builtin" else base.folder)


def _gguf_config(file: Path | None) -> dict[str, Any]:
    """Empty where the file is not here or cannot be read: a card is made all the same."""
    with suppress(LgrpoError):
        return gguf_config(file) if file else {}
    return {}


def gguf(asked: Asked) -> Iterator[Use]:
    yield from _llama_cpp(asked)
    if asked.gguf:  # FROM alone would leave its template and sampling to Ollama
        made = "# where the run is: makes the Modelfile, with the template that was trained with"
        yield Use("Ollama", "sh", f"{made}\nlgrpo-lite export RUN ollama")


def lora_gguf(asked: Asked) -> Iterator[Use]:
    if asked.gguf:
        base = f"path/to/{slug(asked.base.short)}-f16.gguf"
        if asked.base.kind == "gguf":
            base = f"path/to/{asked.base.name}"
        config = _base_config(asked.base)
        command = llama_server(asked.recipe, asked.served, base, config, asked.gguf)
        yield Use("llama.cpp, with the base as a GGUF", "sh", command)


def ollama(asked: Asked) -> Iterator[Use]:
    run = f"ollama run {asked.served} {shlex.quote(asked.question)}"
    yield Use("Ollama", "sh", f"{ollama_create(asked.served, MODELFILE)}\n{run}")
    yield from _llama_cpp(asked)


def _llama_cpp(asked: Asked) -> Iterator[Use]:
    if asked.gguf:
        config = _gguf_config(asked.folder / asked.gguf)
        command = llama_server(asked.recipe, asked.served, asked.gguf, config)
        yield Use("llama.cpp", "sh", command)


USES = {"merged": merged, "adapter": adapter, "gguf": gguf, "lora-gguf": lora_gguf, "ollama": ollama}
