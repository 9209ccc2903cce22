"""Where models come from: the cache of Hugging Face, its token, and whether the Hub is there. Without its
library.
"""

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

HUB = "https://huggingface.co"
TIMEOUT = 1.0  # seconds, for finding its name
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = ("1", "ON", "YES", "TRUE")  # of the Hub's own switches


def model_cache(environment: Mapping[str, str]) -> Path:
    """Where Hugging Face keeps downloaded models."""
    return Path(environment.get("HF_HUB_CACHE") or _hugging_face(environment) / "hub").expanduser()


def cached_repositories(environment: Mapping[str, str]) -> list[Path]:
    """The folders of models in the cache."""
    return sorted(model_cache(environment).glob("models--*"))


def repository_of(folder: Path) -> str:
    """The name on the Hub of a folder in the cache."""
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def cached_snapshot(environment: Mapping[str, str], name: str, revision: str | None) -> Path | None:
    """The folder of a model's files at a revision in the cache; None where it is not. By the rules of the
    Hub's library.
    """
    folder = model_cache(environment) / f"models--{name.replace('/', '--')}"
    revision = revision or "main"
    reference = folder / "refs" / revision
    if os.path.isfile(reference):
        revision = reference.read_text("utf-8").strip()
    path = folder / "snapshots" / revision
    return path if os.path.isdir(path) else None


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the Hub's own switches say not to ask it."""
    return any(environment.get(name, "").upper() in TRUE for name in OFFLINE)


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether there is a Hugging Face token, in the environment or in its file."""
    if environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    path = Path(environment.get("HF_TOKEN_PATH") or _hugging_face(environment) / "token")
    try:
        return bool(path.expanduser().read_text("utf-8", "replace").strip())
    except OSError:
        return False


def unreachable(environment: Mapping[str, str]) -> str | None:
    """The Hub's host, if models are cached here, nothing says offline, and its name is not found. A proxy
    finds names itself.
    """
    if is_offline(environment) or any(environment.get(name) for name in PROXIES):
        return None
    if next(model_cache(environment).glob("models--*/snapshots/*"), None) is None:
        return None
    host = urlsplit(environment.get("HF_ENDPOINT") or HUB).hostname
    return None if host is None or name_found(host) else host


def name_found(host: str) -> bool:
    """Whether the address of a host is known within TIMEOUT; a resolver without a network may take half a
    minute.
    """
    addresses = []

    def resolve() -> None:
        with suppress(OSError):
            addresses.append(socket.getaddrinfo(host, 443))

    thread = threading.Thread(target=resolve, name="resolver", daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return bool(addresses)


def _hugging_face(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or Path(cache) / "huggingface").expanduser()
