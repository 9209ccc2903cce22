"""Where models come from: the cache of Hugging Face, its token, and whether the Hub is there. Without its
library.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from lgrpo_lite.errors import EnvironmentFault

HUB = "https://huggingface.co"
TIMEOUT = 1.0  # seconds, for finding its name
ANSWER = 5.0  # seconds, in which it answers or is out of reach; its library would try for minutes
LARGEST = 1 << 20  # bytes of a config.json
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
    return _token(environment) is not None


def unreachable(environment: Mapping[str, str]) -> str | None:
    """The Hub's host, if models are cached here, nothing says offline, and its name is not found. A proxy
    finds names itself.
    """
    if is_offline(environment) or any(environment.get(name) for name in PROXIES):
        return None
    if next(model_cache(environment).glob("models--*/snapshots/*"), None) is None:
        return None
    host = urlsplit(endpoint(environment)).hostname
    return None if host is None or name_found(host) else host


def name_found(host: str, within: float = TIMEOUT) -> bool:
    """Whether the address of a host is known in time; a resolver without a network may take half a minute."""
    addresses = []

    def resolve() -> None:
        with suppress(OSError):
            addresses.append(socket.getaddrinfo(host, 443))

    thread = threading.Thread(target=resolve, name="resolver", daemon=True)
    thread.start()
    thread.join(within)
    return bool(addresses)


def unanswered(environment: Mapping[str, str]) -> str | None:
    """Why the Hub is out of reach, found out in ANSWER seconds; None: it answers, whatever it says."""
    try:
        ask(environment, "/api/models?limit=1")
    except OSError as error:
        return reason(environment, error)
    return None


def fetched_config(environment: Mapping[str, str], name: str, revision: str | None) -> dict[str, Any]:
    """config.json of a model on the Hub, and nothing else of it. The Hub out of reach, no such model or
    revision, or one that asks for a token: EnvironmentFault.
    """
    file = f"{quote(name)}/raw/{quote(revision or 'main', safe='')}/config.json"
    at = f" at revision {revision}" if revision else ""
    try:
        status, reply = ask(environment, f"/{file}")
    except OSError as error:
        what = f"{name} is not read: {reason(environment, error)}"
        fix = "connect, or set HF_ENDPOINT to a mirror; or give a folder with its config.json"
        raise EnvironmentFault(what, where=endpoint(environment), fix=fix) from None
    if status == 200:
        with suppress(ValueError, RecursionError):
            config = json.loads(reply)
            if isinstance(config, dict):
                return config
    reasons = {
        200: "its config.json is no JSON object",
        401: "there is no such model, or it asks for a token (HF_TOKEN)",
        403: "its terms are to be accepted on its page, with the account of HF_TOKEN",
        404: "there is no such model, revision or config.json",
    }
    what = f"{name}{at} is not read: {reasons.get(status, f'HTTP {status}')}"
    raise EnvironmentFault(
        what, where=f"{endpoint(environment)}/{file}", fix="check the name and the revision"
    )


def go_offline() -> None:
    """From here on the Hub's libraries use what is cached and ask nobody, in this process and its own."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("huggingface_hub.constants", "datasets.config"):  # where one has read it already
        module = sys.modules.get(name)
        if module is not None:
            module.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]


def cache_alone(environment: Mapping[str, str]) -> str | None:
    """Why the Hub is out of reach, found out in seconds; its libraries then go offline. None: it answers, or
    nobody is to ask it.
    """
    why = None if is_offline(environment) else unanswered(environment)
    if why is not None:
        go_offline()
    return why


def ask(
    environment: Mapping[str, str], path: str, body: Any = None, *, key: str | None = None
) -> tuple[int, bytes]:
    """Status and body of a GET, or with `body` of a POST of JSON; OSError where there is no answer in ANSWER
    seconds. `key`: another token than the environment's.
    """
    from lgrpo_lite.machine.http import Client

    began = time.monotonic()
    address = endpoint(environment)
    host = urlsplit(address).hostname or ""
    proxied = any(environment.get(name) for name in PROXIES)
    if not proxied and not name_found(host, ANSWER):
        raise OSError("its name is not found")
    left = max(0.1, ANSWER - (time.monotonic() - began))
    client = Client(address, key=key or _token(environment))
    return client.ask(path, body, timeout=left, most=LARGEST)


def endpoint(environment: Mapping[str, str]) -> str:
    """The Hub's address, or that of the mirror which stands for it."""
    return (environment.get("HF_ENDPOINT") or HUB).rstrip("/")


def reason(environment: Mapping[str, str], error: OSError) -> str:
    """Why it is out of reach, by what `ask` raised."""
    why = f"no answer in {ANSWER:g} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return f"{urlsplit(endpoint(environment)).hostname} is out of reach ({why})"


def _token(environment: Mapping[str, str]) -> str | None:
    named = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN")
    if named:
        return named.strip()
    path = Path(environment.get("HF_TOKEN_PATH") or _hugging_face(environment) / "token")
    try:
        return path.expanduser().read_text("utf-8", "replace").strip() or None
    except OSError:
        return None


def _hugging_face(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environment.get("HF_HOME") or Path(cache) / "huggingface").expanduser()
