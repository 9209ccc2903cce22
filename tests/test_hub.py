"""The Hub: read for a config alone, and told in seconds where it is out of reach. Servers of this machine stand for it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from test_validate import TINY

from lgrpo_lite.checks.check import check, demand
from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.machine import hub
from lgrpo_lite.recipe.read import load_recipe

CONFIG = json.loads((TINY / "config.json").read_text("utf-8"))


@contextmanager
def served(answers, asked):
    """A server on this machine: {path: (status, body)}; each request joins `asked` as (path, its key)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            status, body = answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent():
    """A server that takes a connection and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed():
    """An address where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty cache, no token, and a Hub that somebody has yet to name."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "ANSWER", 2.0)
    return tmp_path


NAMED = ["model.id=some/model"]


@pytest.mark.parametrize("kind", ["closed", "silent", "no such name"])
def test_out_of_reach_is_told_in_seconds_and_leaves_no_folder(kind, alone, monkeypatch, capfd):
    monkeypatch.chdir(alone)
    with silent() as address:
        if kind == "closed":
            address = closed()
        elif kind == "no such name":
            address = "http://nowhere.invalid"
        monkeypatch.setenv("HF_ENDPOINT", address)
        begun = time.monotonic()
        assert main(["train", "tiny-math", *NAMED, "--ui", "none"]) == 3
        assert time.monotonic() - begun < 30  # its library would take over a minute
    said = capfd.readouterr().err
    assert "some/model is not on this machine, and" in said and "is out of reach" in said
    assert not (alone / "runs").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["validate", "tiny-math", *NAMED, "--show", "1"], "some/model is not on this machine, and"),
        (["reward", "test", "tiny-gsm8k"], "openai/gsm8k is not on this machine, and"),
    ],
)
def test_commands_that_read_alone_tell_it_in_seconds_too(argv, words, alone, monkeypatch, capfd):
    monkeypatch.setenv("HF_ENDPOINT", closed())
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # and is put back
    pytest.importorskip("datasets")
    begun = time.monotonic()
    assert main(argv) == 3
    assert time.monotonic() - begun < 20  # of which its libraries take most, to be imported
    said = capfd.readouterr().err
    assert words in said and "Retrying" not in said


def test_what_is_cached_has_to_do_where_the_hub_does_not_answer(alone, monkeypatch, caplog):
    repository = alone / "hub" / "models--some--model"
    shutil.copytree(TINY, repository / "snapshots" / "main")
    monkeypatch.setenv("HF_ENDPOINT", closed())
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    demand(check(load_recipe("tiny-math", NAMED)))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "what is cached of it has to do" in caplog.text


def test_a_hub_that_answers_is_left_to_its_library(alone, monkeypatch):
    asked = []
    with served({}, asked) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        demand(check(load_recipe("tiny-math", NAMED)))
    assert len(asked) == 1 and "HF_HUB_OFFLINE" not in os.environ


def test_without_a_need_of_it_the_hub_is_not_asked(alone, monkeypatch):
    asked = []
    with served({}, asked) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        demand(check(load_recipe("tiny-math")))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(Exception, match="HF_HUB_OFFLINE"):
            demand(check(load_recipe("tiny-math", NAMED)))
    assert not asked


def test_a_config_is_all_that_is_read_of_a_model(alone, monkeypatch):
    asked = []
    body = json.dumps(CONFIG).encode()
    with served({"/some/model/raw/main/config.json": (200, body)}, asked) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "a-key")
        assert hub.fetched_config(os.environ, "some/model", None) == CONFIG
    assert asked == [("/some/model/raw/main/config.json", "Bearer a-key")]
    assert not (alone / "hub").exists()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"Entry not found", "no such model, revision or config.json"),
        (401, b"Invalid username or password.", "HF_TOKEN"),
        (403, b"", "terms are to be accepted"),
        (500, b"", "HTTP 500"),
        (200, b"[1]", "no JSON object"),
        (200, b"version https://git-lfs", "no JSON object"),
        (200, b"[" * 200_000, "no JSON object"),
        (200, b" " * (2 << 20), "longer than"),
    ],
)
def test_a_config_that_is_not_there_is_told(status, body, words, alone, monkeypatch):
    with served({"/some/model/raw/abc/config.json": (status, body)}, []) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(EnvironmentFault, match="some/model") as error:
            hub.fetched_config(os.environ, "some/model", "abc")
    assert words in error.value.what


@pytest.mark.slow
def test_out_of_reach_is_told_in_five_seconds_by_the_command(alone):
    with silent() as address:
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "lgrpo_lite", "train", "tiny-math", *NAMED],
            cwd=alone,
            env=os.environ | {"HF_ENDPOINT": address},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 3 and "no answer in 5 s" in done.stderr
    assert time.monotonic() - begun < 12  # five seconds, and the interpreter's start on a loaded machine
