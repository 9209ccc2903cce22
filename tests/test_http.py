"""Servers that are slow or hostile cost one request: it ends at its deadline, and little of theirs is held."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import repeat

import pytest
from support import tiny_recipe

from lgrpo_lite.engines.http import Connection
from lgrpo_lite.engines.server import ServerEngine
from lgrpo_lite.errors import EnvironmentFault, LgrpoError
from lgrpo_lite.machine.http import Client, Refused
from lgrpo_lite.recipe.reward import Endpoint
from lgrpo_lite.rewards.judge import endpoint_judge

DEADLINE = 0.5  # seconds of every request here
LATEST = 20.0  # seconds until a server here gives up by itself: a client that is still there has no deadline
FLOOD = 48 << 20  # bytes until it gives up
HELD = 16 << 20  # bytes that a client may have taken: its limit, and what was under way
OK = b"HTTP/1.1 200 OK\r\n"
ERROR = b"HTTP/1.1 500 Oh no\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
PIECE = b" " * (1 << 16)
CHUNK = b"10000\r\n" + PIECE + b"\r\n"


def slowly(text: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """`text`, then a piece every tenth of a second."""
    yield text
    for piece in pieces:
        time.sleep(0.1)
        yield piece


def at_once(text: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield text
    yield from pieces


def whole(body: bytes, headers: bytes = b"") -> Iterator[bytes]:
    yield OK + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def bomb() -> Iterator[bytes]:
    return whole(gzip.compress(bytes(FLOOD), 1), b"Content-Encoding: gzip\r\n")


SLOW = {
    "says nothing": lambda: slowly(b"", repeat(b"")),
    "drips its status line": lambda: slowly(b"", iter([b"%c" % byte for byte in OK * 9])),
    "drips headers": lambda: slowly(OK, repeat(b"X-More: 1\r\n")),
    "drips notices that it goes on": lambda: slowly(b"", repeat(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "drips a body": lambda: slowly(OK + b"\r\n", repeat(b" ")),
    "drips a body of known length": lambda: slowly(OK + b"Content-Length: 99\r\n\r\n", repeat(b" ")),
    "drips chunks": lambda: slowly(OK + CHUNKED, repeat(b"1\r\n \r\n")),
    "drips the body of an error": lambda: slowly(ERROR + b"\r\n", repeat(b" ")),
}
LONG = {
    "an endless body": lambda: at_once(OK + b"\r\n", repeat(PIECE)),
    "endless chunks": lambda: at_once(OK + CHUNKED, repeat(CHUNK)),
    "an endless body of an error": lambda: at_once(ERROR + b"\r\n", repeat(PIECE)),
    "endless headers": lambda: at_once(OK, repeat(b"X-More: 1\r\n" * 999)),
    "an endless header": lambda: at_once(OK + b"X-More: ", repeat(PIECE)),
    "a body that is said to be long": lambda: at_once(
        OK + b"Content-Length: 99999999999\r\n\r\n", repeat(PIECE)
    ),
    "a bomb of gzip": bomb,
}
ODD = {
    "JSON that is nested deeply": lambda: whole(b"[" * 500_000),
    "JSON that is nested deeply and closed": lambda: whole(b'{"a":' * 900 + b"1" + b"}" * 900),
    "a number of many digits": lambda: whole(b"9" * 500_000),
    "no HTTP": lambda: iter([b"220 mail.example ESMTP\r\n"]),
    "a cut body": lambda: iter([OK + b"Content-Length: 99\r\n\r\n{"]),
    "nothing": lambda: iter([]),
}


class Hostile:
    """A server that reads a request's head, answers by `reply`, and counts what it got rid of."""

    def __init__(self, reply):
        self.reply = reply
        self.sent = 0
        self.heads: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def serve(self):
        with suppress(OSError):  # closed
            while True:
                peer, _ = self.socket.accept()
                threading.Thread(target=self.answer, args=(peer,), daemon=True).start()

    def answer(self, peer):
        begun = time.monotonic()
        with suppress(OSError), peer:  # the client left
            peer.settimeout(LATEST)
            self.heads.append(peer.recv(1 << 16))
            for piece in self.reply():
                if time.monotonic() - begun > LATEST or self.sent > FLOOD:
                    return
                peer.sendall(piece)
                self.sent += len(piece)


@contextmanager
def hostile(reply):
    server = Hostile(reply)
    threading.Thread(target=server.serve, daemon=True).start()
    yield server
    server.socket.close()


def connection(url, seconds=DEADLINE):
    settings = (
        "rollout.engine=vllm-server",
        f"rollout.server.url={url}",
        f"rollout.server.timeout={seconds}",
    )
    return Connection(tiny_recipe(*settings))


@pytest.mark.parametrize("case", [*SLOW, *LONG, *ODD])
def test_a_hostile_judge_costs_one_reward_at_the_deadline(case):
    with hostile((SLOW | LONG | ODD)[case]) as server:
        judge = endpoint_judge(Endpoint(url=server.url, model="m", timeout=DEADLINE))
        begun = time.monotonic()
        assert judge(["q"]) == [None]
        assert time.monotonic() - begun < LATEST / 2
    assert server.sent < HELD


@pytest.mark.parametrize("case", SLOW)
def test_a_server_that_drips_its_answer_did_not_answer_in_time(case):
    with hostile(SLOW[case]) as server:
        begun = time.monotonic()
        with pytest.raises(LgrpoError, match=r"did not answer within 0\.5 s"):
            connection(server.url).ask("/v1/models")
        assert time.monotonic() - begun < LATEST / 2


@pytest.mark.parametrize("case", LONG)
def test_a_server_that_answers_without_end_is_no_server(case):
    with hostile(LONG[case]) as server:
        with pytest.raises(LgrpoError) as fault:
            connection(server.url).ask("/v1/models")
        # a machine under load may not have read so much when the time is over
        assert isinstance(fault.value, EnvironmentFault) or "did not answer within" in fault.value.what
    assert server.sent < HELD


@pytest.mark.parametrize("case", ODD)
def test_what_a_server_nests_or_cuts_is_an_error_of_ours(case):
    """Where it is no reply at all the server is named; else its words are text, and refused at opening."""
    with hostile(ODD[case]) as server, pytest.raises(EnvironmentFault):
        settings = ("rollout.engine=vllm-server", f"rollout.server.url={server.url}")
        ServerEngine(tiny_recipe(*settings))


def test_a_reply_is_as_long_as_it_may_be_and_no_longer():
    body = b'"' + b"x" * 998 + b'"'
    with hostile(lambda: whole(body)) as server:
        client = Client(server.url)
        assert client.ask("/", timeout=9, most=1000) == (200, body)
        with pytest.raises(Refused, match="longer than 999 bytes"):
            client.ask("/", timeout=9, most=999)


def test_no_compression_is_asked_for_and_no_cookie_kept():
    with hostile(lambda: whole(b"1", b"Set-Cookie: a=1; Path=/\r\n")) as server:
        client = Client(server.url)
        for _ in range(2):
            assert client.ask("/", timeout=9) == (200, b"1")
    for head in server.heads:
        assert b"cookie:" not in head.lower() and b"gzip" not in head.lower()


CHOICE = {"index": 0, "token_ids": [5], "logprobs": {"token_logprobs": [-0.1]}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "choices",
    [
        *([7], [{}], [{"index": "0"}], [{"index": 1}], [{"index": True}], [[]], {}, None, "x"),
        *([CHOICE, CHOICE], []),
    ],
)
def test_choices_that_are_none_are_refused(choices):
    reply = json.dumps({"choices": choices}).encode()
    with hostile(lambda: whole(reply)) as server, pytest.raises(EnvironmentFault, match="with HTTP 200"):
        connection(server.url).complete({"prompt": [0], "max_tokens": 1})
