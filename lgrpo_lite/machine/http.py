"""One HTTP client for all who ask a server: judges, a vLLM server. JSON goes there, bytes come back.

It goes past a proxy for an address of this machine (a proxy would look for it on its own), and a
redirect is an answer like any other: following one would send the key along to wherever it leads. No
message and no log holds a key.
"""

import ipaddress
import json
import logging
import os
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from lgrpo_lite.errors import EnvironmentFault

for _name in ("httpx", "httpcore"):  # they log headers
    logging.getLogger(_name).setLevel(logging.WARNING)


class Client:
    """`ask` may be called from several threads. Whatever goes wrong on the way is an OSError."""

    def __init__(self, url: str, *, key: str | None = None):
        self.url = url.rstrip("/")
        headers = {"User-Agent": "lgrpo-lite", "Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def ask(
        self, path: str, body: Any = None, *, timeout: float, most: int | None = None, whole: bool = False
    ) -> tuple[int, bytes]:
        """Status and body of a GET, or with `body` of a POST of JSON. `timeout` in seconds: of every
        wait, with `whole` of the request. TimeoutError; ValueError beyond `most` bytes; any other
        failure: the OSError it comes from.
        """
        deadline, read = time.monotonic() + timeout, b""
        method, data = "GET", None
        if body is not None:
            method, data = "POST", json.dumps(body)  # ASCII: a text may hold half a surrogate pair
        try:
            with self._client.stream(method, self.url + path, content=data, timeout=timeout) as response:
                for piece in response.iter_bytes():
                    read += piece
                    if whole and time.monotonic() > deadline:
                        raise TimeoutError
                    if most is not None and len(read) > most:
                        raise ValueError("the reply is too long")
                return response.status_code, read
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _os_error(error) from error


def read_key(variable: str, whose: str, *, where: str, unset: str) -> str:
    """The key in an environment variable. None there, or none that a header can hold: EnvironmentFault."""
    key = os.environ.get(variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    if key:
        what = f"{variable} is no key: it holds a line break or the like"
    else:
        what = f"{whose} key is not set: {variable}"
    raise EnvironmentFault(what, where=where, fix=f"export {variable}=…, or set {unset}=null")


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _os_error(error: Exception) -> OSError:
    """What httpx's error is about in the system's own words: the innermost OSError behind it."""
    innermost: OSError | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            innermost = cause
        cause = cause.__cause__ or cause.__context__
    return innermost or ConnectionError(str(error) or type(error).__name__)
