"""The commands of a model card: what runs an export, as they are typed in its folder."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lgrpo_lite.export.card_front import slug
from lgrpo_lite.folder.origin import BUILTIN, Base
from lgrpo_lite.policy.budget import SLOT_RANKS
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
    def context(self) -> int:
        """Tokens of the longest prompt and the longest answer of the training."""
        return self.recipe.model.max_prompt_tokens + self.recipe.model.max_new_tokens

    @property
    def served(self) -> str:
        return slug(self.name)


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
    yield _vllm(asked, f"vllm serve . --served-model-name {asked.served}")
    if asked.base.kind != "builtin":
        file = f"{asked.served}-f16.gguf"
        convert = f"python convert_hf_to_gguf.py . --outtype f16 --outfile {file}  # of llama.cpp's sources"
        yield Use("llama.cpp", "sh", f"{convert}\nllama-server -m {file} -c {asked.context} --jinja")


def adapter(asked: Asked) -> Iterator[Use]:
    base, imports = _base_in_python(asked.base)
    revision = f", revision={json.dumps(asked.base.revision)}" if asked.base.revision else ""
    loaded = ADAPTED.format(base=base, revision=revision)
    yield Use("transformers and PEFT", "python", _program(asked, loaded, imports, peft=True))
    lora = asked.recipe.model.lora
    rank = lora.rank if lora else SLOT_RANKS[0]
    slot = next((r for r in SLOT_RANKS if r >= rank), rank)
    at = f" --revision {shlex.quote(asked.base.revision)}" if asked.base.revision else ""
    command = (
        f"vllm serve {_base_in_shell(asked.base)}{at} --enable-lora"
        f" --lora-modules {asked.served}=. --max-lora-rank {slot}"
    )
    if (asked.folder / "chat_template.jinja").is_file():
        command += " --chat-template chat_template.jinja"
    yield _vllm(asked, command)


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


def _vllm(asked: Asked, command: str) -> Use:
    recipe = asked.recipe
    body = {
        "model": asked.served,
        "messages": [{"role": "user", "content": asked.question}],
        "max_tokens": recipe.model.max_new_tokens,
        "temperature": recipe.eval.temperature,
        "top_p": 1.0,
        "top_k": -1,
    }
    if recipe.rollout.stop:
        body |= {"stop": recipe.rollout.stop, "include_stop_str_in_output": True}
    sent = shlex.quote(json.dumps(body, ensure_ascii=False))
    address = "http://127.0.0.1:8000/v1/chat/completions"
    curl = f"curl {address} -H 'Content-Type: application/json' \\\n  -d {sent}"
    serve = f"{command} --max-model-len {asked.context}"
    return Use("vLLM", "sh", f"{serve}\n# and in another terminal\n{curl}")


def gguf(asked: Asked) -> Iterator[Use]:
    yield from _llama_cpp(asked)
    if asked.gguf:
        quoted = shlex.quote(asked.gguf)
        made = f"printf 'FROM ./%s\\n' {quoted} > Modelfile\nollama create {asked.served} -f Modelfile"
        yield Use("Ollama", "sh", f"{made}\nollama run {asked.served} {shlex.quote(asked.question)}")


def lora_gguf(asked: Asked) -> Iterator[Use]:
    if asked.gguf:
        file = asked.gguf
        base = f"path/to/{slug(asked.base.short)}-f16.gguf"
        if asked.base.kind == "gguf":
            base = f"path/to/{asked.base.name}"
        command = f"llama-server -m {shlex.quote(base)} --lora {shlex.quote(file)} -c {asked.context} --jinja"
        yield Use("llama.cpp, with the base as a GGUF", "sh", command)


def ollama(asked: Asked) -> Iterator[Use]:
    run = f"ollama run {asked.served} {shlex.quote(asked.question)}"
    yield Use("Ollama", "sh", f"ollama create {asked.served} -f Modelfile\n{run}")
    yield from _llama_cpp(asked)


def _llama_cpp(asked: Asked) -> Iterator[Use]:
    if asked.gguf:
        command = f"llama-server -m {shlex.quote(asked.gguf)} -c {asked.context} --jinja"
        yield Use("llama.cpp", "sh", command)


USES = {"merged": merged, "adapter": adapter, "gguf": gguf, "lora-gguf": lora_gguf, "ollama": ollama}
