"""Where a base model or a data set comes from and under which licence, told without a path of this machine.

Looks at files that are here alone: a model's own folder, the Hub's cache. No network.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any, Literal

from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.machine.disk import plain
from lgrpo_lite.policy.gguf import is_gguf, on_hub, read_header

BUILTIN = "builtin:"
HUB = "https://huggingface.co"
README = "README.md"
MOST = 2**20  # bytes of a README or a licence that are read
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+", re.ASCII)
KNOWN_ID = re.compile(r"[a-z0-9][a-z0-9.+-]{0,40}")  # as the Hub writes licences: apache-2.0, llama3.1
# what a licence's file begins with -> as the Hub writes it
TEXTS = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"mit license|permission is hereby granted, free of charge", "mit"),
    (r"llama 2 community license", "llama2"),
    (r"meta llama 3 community license", "llama3"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"gemma terms of use", "gemma"),
)


@dataclass(frozen=True, slots=True)
class Licence:
    """As the front matter of a card has it; `name` and `link` where `id` is `other`."""

    id: str
    told_by: str  # where it was found
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Base:
    """A base model. `name` is what may be published of what a recipe calls it."""

    kind: Literal["hub", "builtin", "folder", "gguf"]
    name: str  # a Hub id, builtin:NAME, the last part of a path
    hub: str | None  # its repository on the Hub
    revision: str | None
    folder: Path | None  # with its small files, where they are here
    file: Path | None = None  # a GGUF, where it is here

    @property
    def short(self) -> str:
        """Its name without its owner."""
        return last_part(self.name.removeprefix(BUILTIN))


def base_of(model_id: str, revision: str | None = None) -> Base:
    """What a recipe's model.id names, by its form and by what is here."""
    if model_id.startswith(BUILTIN):
        return Base("builtin", model_id, None, None, None)
    if is_gguf(model_id):
        return _gguf(model_id, revision)
    if HUB_ID.fullmatch(model_id) and not Path(model_id).exists():
        readme = cached(model_id, README, revision) or cached(model_id, "config.json", revision)
        return Base("hub", model_id, model_id, revision, readme.parent if readme else None)
    folder = Path(model_id)
    return Base("folder", last_part(model_id), None, None, folder if folder.is_dir() else None)


def _gguf(model_id: str, revision: str | None) -> Base:
    repository = on_hub(model_id)
    if repository is None:
        file = Path(model_id).expanduser()
        return Base("gguf", last_part(model_id), None, None, None, file if file.is_file() else None)
    hub, name = repository
    file, readme = cached(hub, name, revision), cached(hub, README, revision)
    return Base("gguf", last_part(name), hub, revision, readme.parent if readme else None, file)


def last_part(path: str) -> str:
    """The name of a file or folder, without where it lies, on this system or another."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or "?"


def cached(repository: str, name: str, revision: str | None, kind: str = "model") -> Path | None:
    """A file of a repository in the Hub's cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name of a repository
        found = try_to_load_from_cache(repository, name, revision=revision, repo_type=kind)
        if isinstance(found, str):
            return Path(found)
    return None


# ------------------------------------------------------------------------------------------- licences


def licence_of(base: Base) -> Licence | None:
    """None: nothing here says it."""
    if base.kind == "builtin":
        return _own()
    found = None
    if base.folder is not None:
        found = _of_readme(base.folder / README, base.hub) or _of_text(base.folder, base.hub)
    return found or (_of_header(base.file) if base.file else None)


def licence_of_data(repository: str) -> Licence | None:
    """Of a data set on the Hub; None: nothing here says it."""
    readme = cached(repository, README, None, "dataset")
    return _of_readme(readme, f"datasets/{repository}") if readme else None


def _own() -> Licence | None:
    try:
        own = metadata("lgrpo-lite")["License-Expression"]
    except PackageNotFoundError:
        return None
    return Licence(own.lower(), "that of lgrpo-lite, of which it is a part") if own else None


def _of_readme(path: Path, hub: str | None) -> Licence | None:
    front = front_matter(path)
    licence = front.get("license")
    if isinstance(licence, list) and licence:
        licence = licence[0]
    return _licence(
        licence, "as its model card says", front.get("license_name"), front.get("license_link"), hub
    )


def _of_header(file: Path) -> Licence | None:
    """Of a GGUF's metadata."""
    try:
        known = read_header(file).metadata
    except (LgrpoError, OSError):
        return None
    licence, name, link = (known.get(f"general.license{end}") for end in ("", ".name", ".link"))
    return _licence(licence, "as the GGUF file says", name, link, None)


def _licence(licence: Any, told_by: str, name: Any, link: Any, hub: str | None) -> Licence | None:
    if not isinstance(licence, str) or not licence.strip():
        return None
    plain_id = licence.strip().lower()
    name = name.strip()[:100] if isinstance(name, str) and name.strip() else None
    if not KNOWN_ID.fullmatch(plain_id):
        return Licence("other", told_by, name or licence.strip()[:100], _link(link, hub))
    return Licence(plain_id, told_by, name, _link(link, hub))


def _link(link: Any, hub: str | None) -> str | None:
    """The address of a licence; of a file beside the base where that is on the Hub."""
    if not isinstance(link, str) or len(link) > 300:
        return None
    link = link.strip()
    if re.fullmatch(r"https?://[^\s<>\"'()\[\]`|]+", link):
        return link
    beside = re.fullmatch(r"[\w.-]+", link, re.ASCII)
    return f"{HUB}/{hub}/blob/main/{link}" if hub and beside else None


def _of_text(folder: Path, hub: str | None) -> Licence | None:
    for file in sorted(folder.glob("LICENSE*")):
        beginning = _beginning(file)[:4000].lower()
        for words, known in TEXTS:
            if re.search(words, beginning):
                return Licence(known, f"by its file {file.name}")
        if beginning:
            return Licence("other", f"by its file {file.name}", file.name, _link(file.name, hub))
    return None


def front_matter(path: Path) -> dict[str, Any]:
    """The YAML at the beginning of a card; empty where there is none that can be read."""
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    found = REGEX_YAML_BLOCK.search(_beginning(path))
    if found is None:
        return {}
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        value = yaml.safe_load(found.group(2))
        return value if isinstance(value, dict) else {}
    return {}


def _beginning(path: Path) -> str:
    try:
        with plain(path).open("rb") as file:
            return file.read(MOST).decode("utf-8", "replace")
    except OSError:
        return ""
