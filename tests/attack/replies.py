"""Replies of a hostile web server to a judge and to the client of a vLLM server: slow, endless, compressed,
nested, cut, or plainly wrong. Each costs one request: it ends at its deadline in an error of ours, it holds
little, and the next request to a good server is answered.
"""

import gzip
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lgrpo_lite.engines.http import tokens_of
from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.recipe.reward import Endpoint
from lgrpo_lite.rewards.judge import endpoint_judge

from .case import Told, about, captured

from test_http import CHUNK, DEADLINE, LONG, ODD, OK, PIECE, SLOW, connection, hostile  # isort: skip

COUNT, SECONDS, MEMORY = 60, 20.0, 128
LATE = 4.0  # seconds after a deadline until a request must have ended
STATUS = [b"HTTP/1.1 200 OK\r\n"] * 6 + [
    b"HTTP/1.1 500 Oh\x1b[2J no\r\n", b"HTTP/1.0 200\r\n", b"HTTP/9.9 200 OK\r\n", b"HTTP/1.1 999 Odd\r\n", b"HTTP/1.1 0 x\r\n", b"HTTP/1.1 -1 x\r\n", b"HTTP/1.1 204 No\r\n", b"HTTP/1.1 304 No\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n", b"HTTP/1.1 307 T\r\nLocation: /\r\n", b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 3000 + OK, b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"\r\n\r\nHTTP/1.1 200 OK\r\n", b"\x16\x03\x01\x02", b"PRI * HTTP/2.0\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 200_000 + b"\r\n",
]  # fmt: skip
HEADERS = [
    b"Content-Length: 5\r\n", b"Content-Length: 99999999999999999999\r\n", b"Content-Length: -5\r\n", b"Content-Length: x\r\n", b"Content-Length: 1\r\nContent-Length: 2\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: x\r\n", b"Content-Encoding: gzip\r\n",
    b"Content-Encoding: br\r\n", b"Content-Encoding: identity\r\n", b"Content-Encoding: gzip, gzip, gzip\r\n", b"Content-Type: application/json; charset=utf-7\r\n", b"Set-Cookie: a=b\r\n" * 500,
    b"X: " + b"y" * 90_000 + b"\r\n", b"X\xff: \xff\r\n", b"X\0: 1\r\n", b" folded\r\n", b": 1\r\n", b"no colon\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\n", b"Trailer: x\r\n", b"X: a\rb\r\n",
]  # fmt: skip
WORDS: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    10**400,
    "",
    "x",
    "\x1b[2J",
    "\ud800",
    "\0",
    "y" * 100_000,
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    [1, "x"],
]


def prepare(folder: Path) -> None:
    from support import tiny_recipe

    tiny_recipe()  # what it imports


def attack(draw: random.Random, folder: Path, prepared: None) -> Told:
    name, reply = drawn(draw)
    who = draw.choice([judged, asked, completed])
    about(f"{who.__name__}: {name}")
    with hostile(reply) as server:
        began = time.monotonic()
        with captured() as said:
            outcome, faults = who(server.url)
        seconds = time.monotonic() - began
    if seconds > DEADLINE + LATE:
        faults.append(f"ended {seconds - DEADLINE:.1f} s after its deadline")
    text = said["out"] + said["err"]
    controls = sorted({c for c in text if not c.isprintable() and c not in "\n\t"})
    if controls:
        faults.append(f"control characters in the log: {controls}")
    if "Traceback" in text:
        faults.append(f"a traceback in the log: {text.strip().splitlines()[-1]}")
    return Told(f"{who.__name__} {outcome}", tuple(faults), text)


# ------------------------------------------------------------------------------------------- who asks


def judged(url: str) -> tuple[str, list[str]]:
    """Three questions to a judge: each has its own fate, and none is anything but a text or None."""
    replies = endpoint_judge(Endpoint(url=url, model="m", timeout=DEADLINE, parallel=3))(["a", "b", "c"])
    good = len(replies) == 3 and all(reply is None or isinstance(reply, str) for reply in replies)
    faults = [] if good else [f"replies {str(replies)[:200]}"]
    faults += next_one(
        lambda there: endpoint_judge(Endpoint(url=there, model="m", timeout=9))(["q"]) == ["5"]
    )
    return "missing" if replies[0] is None else "answered", faults


def asked(url: str) -> tuple[str, list[str]]:
    outcome, faults = _client(url, lambda client: client.ask("/v1/models"))
    return outcome, faults + next_one(lambda there: connection(there, 9).ask("/v1/models")[0] == 200)


def completed(url: str) -> tuple[str, list[str]]:
    return _client(url, _one_token)


def _one_token(client: Any) -> None:
    [choice] = client.complete({"prompt": [0], "max_tokens": 1})
    tokens_of(choice, client)


def _client(url: str, ask: Any) -> tuple[str, list[str]]:
    try:
        ask(connection(url))
    except LgrpoError as error:
        return f"refused {error.exit_code}", [f"a message of {len(str(error))}"] if len(
            str(error)
        ) > 2200 else []
    return "answered", []


def next_one(right: Any) -> list[str]:
    """The request after a hostile one, to a server that is none."""
    body = json.dumps({"choices": [{"message": {"content": "5"}}]}).encode()
    with hostile(lambda: iter([OK + b"Content-Length: %d\r\n\r\n" % len(body) + body])) as server:
        return [] if right(server.url) else ["the next request was lost too"]


# ------------------------------------------------------------------------------------------- replies


def drawn(draw: random.Random) -> tuple[str, Any]:
    """A reply, as what makes its pieces anew for every request."""
    if draw.random() < 0.25:
        name = draw.choice([*SLOW, *LONG, *ODD])
        return name, (SLOW | LONG | ODD)[name]
    head = draw.choice(STATUS) + b"".join(draw.sample(HEADERS, draw.randint(0, 3)))
    body = body_of(draw)
    if draw.random() < 0.5:
        head += b"Content-Length: %d\r\n" % (len(body) + draw.choice([0, 0, 0, 5, -5]))
    if draw.random() < 0.1:
        body = gzip.compress(body, 1)
    if draw.random() < 0.15:
        body = b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 999]), body[i : i + 999]) for i in range(0, len(body), 999)
        ) + draw.choice([b"0\r\n\r\n", b"", b"zz\r\n"])
    whole = head + draw.choice([b"\r\n"] * 9 + [b"\n", b""]) + body
    pace = draw.choice(["at once", "at once", "at once", "dripped", "cut", "then nothing", "then endless"])
    return f"{pace}: {whole[:600]!r}", lambda: paced(whole, pace)


def paced(whole: bytes, pace: str) -> Iterator[bytes]:
    if pace == "dripped":
        for i in range(0, len(whole), max(1, len(whole) // 40)):
            time.sleep(0.1)
            yield whole[i : i + max(1, len(whole) // 40)]
    elif pace == "cut":
        yield whole[: len(whole) * 2 // 3]
    else:
        yield whole
    if pace == "then nothing":
        for _ in range(100):
            time.sleep(0.1)
            yield b""
    if pace == "then endless":
        yield from itertools.repeat(CHUNK if b"chunked" in whole[:9000] else PIECE)


def body_of(draw: random.Random) -> bytes:
    kind = draw.randrange(6)
    if kind == 0:
        depth = draw.choice([50, 150, 300, 900, 200_000])
        return draw.choice([b"[", b'{"choices":', b'{"a":[']) * depth
    if kind == 1:
        return draw.choice(
            [
                b"",
                b"\xff\xfe",
                b"nan",
                b"{",
                b"9" * 5000,
                b"1e999",
                b'"\\ud800"',
                b"\xef\xbb\xbf{}",
                b"<html>",
                b"\0" * 5000,
                b" " * (1 << 21),
                b'{"a":1}' * 9999,
                "\u202e\x1b[2J".encode(),
            ]
        )
    reply: Any = {
        "choices": [
            {
                "index": 0,
                "message": {"content": "5"},
                "token_ids": [5],
                "logprobs": {"token_logprobs": [-0.1]},
                "finish_reason": "stop",
            }
        ],
        "data": [{"id": "x"}],
        "error": {"message": "no"},
    }
    for _ in range(draw.randint(0, 3)):
        node, keys = reply, []
        while isinstance(node, dict | list) and node:
            keys.append(draw.choice(list(node) if isinstance(node, dict) else list(range(len(node)))))
            above, node = node, node[keys[-1]]
            if draw.random() < 0.3:
                break
        if keys:
            above[keys[-1]] = draw.choice(WORDS)
    return json.dumps(reply).encode()
