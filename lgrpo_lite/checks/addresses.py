"""Addresses of servers that a recipe names: a password or a key in one would go into every file of a run."""

import re
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.marks import flat
from lgrpo_lite.recipe.reward import Endpoint
from lgrpo_lite.recipe.schema import Recipe

WITH_PASSWORD = re.compile(r"[a-z][\w+.-]+:/{1,2}[^/\s@]+@", re.IGNORECASE)  # a path has lost a slash
VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def check_addresses(recipe: Recipe) -> None:
    """An address that is none, or that holds a secret: ConfigError, which does not show it.

    The same of any other setting that holds an address with a password, and of a key that stands where the
    name of its variable should.
    """
    for key, value in flat(recipe.model_dump(mode="json", by_alias=True)).items():
        what = _secret(key, value) if isinstance(value, str) else None
        if what is not None:
            fix = "remove it; a key is named by its environment variable, as api_key_env"
            where = recipe.where(key).partition("=")[0]  # without what was given on the command line
            raise ConfigError(f"{key} {what}", where=where, fix=fix, key=key)
    for url, key in _addresses(recipe):
        fault = _fault(url)
        if fault is not None:
            what, fix = fault
            raise ConfigError(f"{key} {what}", where=recipe.where(key), fix=fix, key=key)


def _secret(key: str, value: str) -> str | None:
    """What of a setting is, or may be, a secret that every file of a run would show."""
    if key.endswith(".api_key_env") and not VARIABLE.fullmatch(value):
        return "is no name of an environment variable, and every file of a run would show it"
    if WITH_PASSWORD.search(value):
        return "holds a name or a password, which every file of a run would show"
    return None


def _addresses(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(address, the key that holds it) of the server and of each judge."""
    yield recipe.rollout.server.url, "rollout.server.url"
    for i, reward in enumerate(recipe.rewards):
        endpoint = reward.options.get("endpoint")
        if isinstance(endpoint, Endpoint):
            yield endpoint.url, f"rewards.{i}.endpoint.url"


def _fault(url: str) -> tuple[str, str] | None:
    """(what is wrong, what to do); None of an address that is plain."""
    like = "write it like http://127.0.0.1:8000"
    try:
        address = urlsplit(url)
        _ = address.port  # read late: a port that is no number is a ValueError here
    except ValueError:
        return "is no address of a server", like
    by_variable = "a key is named by its environment variable, as api_key_env"
    if address.username is not None or address.password is not None:
        return "holds a name or a password, which every file of a run would show", f"remove it; {by_variable}"
    if address.query or address.fragment or url.endswith(("?", "#")):
        what = "holds a query, which may be a key, and paths are put behind it"
        return what, f"write it without ?…; {by_variable}"
    return None if _is_plain(address, url) else ("is no address of a server", like)


def _is_plain(address: SplitResult, url: str) -> bool:
    clean = all(c.isprintable() and c not in " \\" for c in url)
    return clean and address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
