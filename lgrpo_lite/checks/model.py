"""Is the recipe's model there, and is it one? By local files alone, in milliseconds; what is on the Hub alone
stays unknown. No torch.
"""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgrpo_lite.checks.fault import Fault
from lgrpo_lite.data.prompts import on_hub as read_from_hub
from lgrpo_lite.data.template import check_read
from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, LgrpoError, noted, raise_all
from lgrpo_lite.machine.hub import cached_repositories, go_offline, is_offline, repository_of, unanswered
from lgrpo_lite.machine.hub import cached_snapshot as snapshot
from lgrpo_lite.policy.gguf import is_gguf, on_hub
from lgrpo_lite.policy.shape import BUILTIN, builtin_folder
from lgrpo_lite.recipe.marks import load_marked, shown
from lgrpo_lite.recipe.read import recipe_names, recipe_text
from lgrpo_lite.recipe.schema import Model, Recipe

ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)  # a name, or owner/name
HUB_PAGE = re.compile(r"https?://(?:www\.)?huggingface\.co/([^/?#\s]+/[^/?#\s]+)")
COMMIT = 40  # hex digits of a commit; the Hub takes no shorter form
SHORT_COMMIT = re.compile(r"(?=.*\d)[0-9a-f]{7,39}")
LARGEST = 100 << 20  # bytes of a file that is read here
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model",
    "tekken.json", "sentencepiece.bpe.model",
)  # fmt: skip
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")


def check_model(recipe: Recipe) -> None:
    """A model that cannot be loaded, as far as files on this machine tell: ConfigError (exit 2), or DataError
    (exit 5) where it only lacks the chat template that the recipe asks for; the others in `also`.
    """
    raise_all([*model_faults(recipe)])


def model_faults(recipe: Recipe) -> Iterator[LgrpoError]:
    """What `check_model` raises, one by one."""
    model = recipe.model
    for what, key, fix in _faults(model):
        yield ConfigError(what, where=recipe.where(key), fix=fix, key=key)
    folder = folder_of(model)
    if folder is None or recipe.data.template != "chat":
        return
    if has_chat_template(folder):
        unread: list[LgrpoError] = []
        text = chat_template(folder)
        if text is not None:
            with noted(unread):
                check_read(recipe.data.chat_template_kwargs or {}, text, "of the model", recipe.where)
        yield from unread
        return
    key = "data.template"
    fix = "set data.template=plain, or a Jinja file, or use an instruct model"
    what = f"the model has no chat template: {model.id}"
    yield DataError(what, where=recipe.where(key), fix=fix, key=key)


def folder_of(model: Model) -> Path | None:
    """The folder of the model's files, if it is on this machine: given, embedded, or in the Hub's cache."""
    if model.id.startswith(BUILTIN):
        return builtin_folder(model.id)
    if os.path.isdir(model.id):
        return Path(model.id)
    of_file = on_hub(model.id) if is_gguf(model.id) else None  # (repository, file in it)
    name = of_file[0] if of_file else model.id
    return snapshot(os.environ, name, model.revision) if ON_HUB.fullmatch(name) else None


def has_chat_template(folder: Path) -> bool:
    """True too where the tokenizer is not there to be asked, as in a cache that holds weights alone."""
    if any(os.path.exists(folder / name) for name in TEMPLATES):
        return True
    path = folder / "tokenizer_config.json"
    if not os.path.isfile(path):
        return not any(os.path.isfile(folder / name) for name in TOKENIZERS)
    settings = _json(path)
    return settings is None or bool(settings.get("chat_template"))


def chat_template(folder: Path) -> str | None:
    """The one that the tokenizer of a folder has, as transformers finds it; None: none, or several."""
    file = folder / TEMPLATES[0]
    if os.path.isfile(file) and os.path.getsize(file) <= LARGEST:
        return file.read_text("utf-8", "replace")
    for name in (TEMPLATES[1], "tokenizer_config.json"):
        template = (_json(folder / name) or {}).get("chat_template")
        if isinstance(template, str):
            return template
    return None


# ------------------------------------------------------------------------------------------- the folder


def _faults(model: Model) -> Iterator[Fault]:
    name = model.id
    if name.startswith(BUILTIN):
        if builtin_folder(name) is None:
            yield f"no embedded model {shown(name)}", "model.id", "use model.id=builtin:tiny-math"
    elif os.path.isdir(name):
        yield from _folder_faults(Path(name))
    elif is_gguf(name):
        return  # a file, whose head `checks.check` has read
    elif os.path.isfile(name):
        yield f"{shown(name)} is a file, not a model", "model.id", "give the folder that holds config.json"
    else:
        yield from _hub_faults(model)


def _folder_faults(folder: Path) -> Iterator[Fault]:
    """Of a folder that is there: what it lacks to be a model."""
    here = shown(str(folder))
    if not os.path.isfile(folder / "config.json"):
        what, fix = _instead(folder)
        yield f"{here} holds no config.json{what}", "model.id", fix
        return
    if _json(folder / "config.json") is None:
        yield f"the config.json of {here} is no JSON object", "model.id", "download it again"
        return
    missing = _missing_weights(folder)
    if missing:
        yield f"{here} lacks weights: {missing}", "model.id", "download it again, whole"
    if not any(os.path.isfile(folder / name) for name in TOKENIZERS):
        yield f"{here} holds no tokenizer", "model.id", "put the tokenizer of the model there too"


def _instead(folder: Path) -> tuple[str, str]:
    """(what else the folder holds, what to do)."""
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if files:
        return f", but {files[0]}", f"name the file: model.id={folder / files[0]}"
    if (folder / "adapter_config.json").is_file():
        base = (_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
        of = f" of {base}" if isinstance(base, str) else ""
        return f": it is an adapter{of}", "merge it into its base, and give the merged model's folder"
    if (folder / "export" / "merged" / "config.json").is_file():
        return ": it is a run", f"give its merged model: model.id={folder / 'export' / 'merged'}"
    inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inside:
        return f", but folders that do: {', '.join(inside[:5])}", f"model.id={folder / inside[0]}"
    return "", "give a folder with config.json, weights and tokenizer, as `save_pretrained` writes it"


def _missing_weights(folder: Path) -> str:
    """What is not there of the weights, in words; nothing where they are whole."""
    for name in INDEXES:
        if not os.path.isfile(folder / name):
            continue
        files = (_json(folder / name) or {}).get("weight_map")
        if not isinstance(files, dict):
            return f"{name} names none"
        lost = sorted({str(file) for file in files.values() if not os.path.isfile(folder / str(file))})
        more = f" and {len(lost) - 1} more files" if len(lost) > 1 else ""
        return f"{lost[0]}{more}" if lost else ""
    found = any(next(folder.glob(pattern), None) for pattern in WEIGHTS)
    return "" if found else "no .safetensors file"


def _json(path: Path) -> dict[str, Any] | None:
    """An object in a file; None where there is none that can be read."""
    try:
        if os.path.getsize(path) > LARGEST:
            return None
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ------------------------------------------------------------------------------------------- the Hub


def _hub_faults(model: Model) -> Iterator[Fault]:
    """Of a name that is no folder here."""
    name = model.id
    page = HUB_PAGE.match(name)
    if page:
        yield f"{shown(name)} is a page, not a name", "model.id", f"write model.id={page[1]}"
        return
    if name.startswith("~"):
        yield f"{shown(name)}: ~ is not read here", "model.id", "write the whole path"
        return
    if name.startswith(("/", ".")) or os.sep in name.rstrip("/").partition("/")[2]:
        fix = "check the path" if os.path.isabs(name) else "check the path, from the current folder"
        yield f"no such model folder: {shown(name)}", "model.id", fix
        return
    if not ON_HUB.fullmatch(name):
        what = f"{shown(name)} is neither a folder here nor a name on the Hub"
        yield what, "model.id", "write model.id=OWNER/NAME, or the path of a folder"
        return
    yield from _revision_faults(model)
    if is_offline(os.environ) and snapshot(os.environ, name, model.revision) is None:
        at = f" at revision {model.revision}" if model.revision else ""
        what = f"{name}{at} is not on this machine, and HF_HUB_OFFLINE says not to ask the Hub"
        yield what, "model.id", "unset HF_HUB_OFFLINE, or give a folder"


def _revision_faults(model: Model) -> Iterator[Fault]:
    revision = model.revision
    if revision is None or snapshot(os.environ, model.id, revision) is not None:
        return
    if SHORT_COMMIT.fullmatch(revision):
        what = f"model.revision={revision} is a part of a commit, and the Hub takes whole ones"
        yield what, "model.revision", f"write all {COMMIT} digits of it"
    owner = _owner(revision)
    if owner is not None and owner.casefold() != model.id.casefold():
        yield _of_another(owner, model.id)


def foreign_revision(recipe: Recipe) -> Iterator[Fault]:
    """A revision that was the recipe's, where the command line gives another model and not its revision."""
    model = recipe.model
    before = recipe._marks.before.get(("model", "id"))
    elsewhere = model.id.startswith((BUILTIN, "/", ".")) or os.path.exists(model.id)
    if before in (None, model.id) or model.revision is None or elsewhere:
        return
    if not isinstance(recipe._marks.lines.get(("model", "revision")), str):  # a line of the file
        yield _of_another(str(before), model.id)


def _of_another(owner: str, name: str) -> Fault:
    what = f"model.revision is a commit of {shown(owner)}, and model.id is {shown(name)}"
    return what, "model.revision", "add model.revision=null for its newest, or a commit of its own"


def _owner(revision: str) -> str | None:
    """The model that a commit is of, as recipes of the package and the Hub's cache know it."""
    if len(revision) != COMMIT:
        return None
    for name in recipe_names():
        text = recipe_text(name)[0]
        if revision in text:
            return load_marked(text, name)[0]["model"]["id"]
    for folder in cached_repositories(os.environ):
        if os.path.isdir(folder / "snapshots" / revision):
            return repository_of(folder)
    return None


def reach_hub(recipe: Recipe) -> None:
    """Where the recipe needs the Hub and it does not answer: what the cache holds of it has to do, or
    EnvironmentFault, in seconds. Its libraries would try again and again for minutes.
    """
    if is_offline(os.environ):
        return
    model = recipe.model
    asks = not model.id.startswith(BUILTIN) and not os.path.exists(model.id)
    sources = [source for source in (*recipe.data.train, *recipe.data.eval) if read_from_hub(source)]
    if not asks and not sources:
        return
    why = unanswered(os.environ)
    if why is None:
        return
    if asks and folder_of(model) is None:
        fix = "connect, or set HF_ENDPOINT to a mirror; or give the model's folder"
        what = f"{model.id} is not on this machine, and {why}"
        raise EnvironmentFault(what, where=recipe.where("model.id"), fix=fix, key="model.id")
    go_offline()
    logging.getLogger(__name__).warning("%s: what is cached of it has to do", why)
