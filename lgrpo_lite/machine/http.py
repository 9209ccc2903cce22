"""One HTTP client for all who ask a server: judges, a vLLM server. JSON goes there, bytes come back.

A server may be slow or hostile, and a request still ends: at its deadline, however the reply drips, and at
its size limit, however it is cut into pieces. A reply is asked for uncompressed, and a compressed one is
refused, so that what is counted is what is held. Cookies are not kept.

It goes past a proxy for an address of this machine (a proxy would look for it on its own), and a
redirect is an answer like any other: following one would send the key along to wherever it leads. No
message and no log holds a key.
"""

import contextlib
import ipaddress
import json
import logging
import os
import socket
import threading
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import httpx
import pydantic_core

from lgrpo_lite.errors import EnvironmentFault

MOST = 1 << 20  # bytes of a reply whose length the request does not decide

for _name in ("httpx", "httpcore"):  # they log headers
    logging.getLogger(_name).setLevel(logging.WARNING)


class Refused(OSError):
    """A reply that is not read to its end: too long, or compressed."""


class Client:
    """`ask` may be called from several threads. Whatever goes wrong on the way is an OSError."""

    def __init__(self, url: str, *, key: str | None = None):
        self.url = url.rstrip("/")
        headers = {
            "User-Agent": "lgrpo-lite",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def ask(self, path: str, body: Any = None, *, timeout: float, most: int = MOST) -> tuple[int, bytes]:
        """Status and body of a GET, or with `body` of a POST of JSON, an error's body included.

        `timeout`: seconds from the first byte sent to the last byte read; a connection has as long to be
        made. TimeoutError beyond it; Refused beyond `most` bytes or of a compressed body; any other
        failure: the OSError it comes from.
        """
        method, data = "GET", None
        if body is not None:
            method, data = "POST", json.dumps(body)  # ASCII: a text may hold half a surrogate pair
        deadline = _Deadline(timeout)
        try:
            request = self._client.stream(
                method, self.url + path, content=data, timeout=timeout, extensions={"trace": deadline.trace}
            )
            with deadline, request as response:
                status, reply = response.status_code, _read(response, most)
        except httpx.TimeoutException as error:
            raise TimeoutError from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if deadline.over:
                raise TimeoutError from error
            raise _os_error(error) from error
        if deadline.over:  # a body without a length ends where its connection does
            raise TimeoutError
        return status, reply


class _Deadline:
    """Ends the connection of one request when its time is over, whatever the request is waiting for.

    httpx's own timeouts are of one wait each, and a server that sends a byte now and then resets them.
    """

    def __init__(self, seconds: float):
        self.over = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Called by httpcore; a connection that was just made, by TCP or by TLS on it, is in `info`."""
        if not event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            return
        self._socket = info["return_value"].get_extra_info("socket")
        if self.over:  # before there was a connection to end
            raise TimeoutError

    def _end(self) -> None:
        self.over = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # closed already
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS too without its farewell


def _read(response: httpx.Response, most: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise Refused("its reply is compressed, which was not asked for")
    reply = bytearray()
    for piece in response.iter_raw():
        reply += piece
        if len(reply) > most:
            raise Refused(f"its reply is longer than {most:,} bytes")
    return bytes(reply)


def decoded(reply: bytes) -> Any:
    """JSON, nested at most as deep as pydantic reads it (200 levels). ValueError for all else."""
    return pydantic_core.from_json(reply)


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
