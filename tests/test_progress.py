"""Long work says how far it is: loading, downloads from a hub on this machine,
evaluations, exports; a command shows it.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lgrpo_lite.checks.check import check
from lgrpo_lite.cli.terminal.output import CLEAR
from lgrpo_lite.cli.terminal.progress import PLAIN_SECONDS, Line, can_overwrite
from lgrpo_lite.engines.probe import proof_of, proving
from lgrpo_lite.engines.selftest import stages
from lgrpo_lite.export.export import export_merged
from lgrpo_lite.export.merge import write_shards
from lgrpo_lite.folder.logs import log_to
from lgrpo_lite.policy.load import locate
from lgrpo_lite.progress import Progress, listening, told
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.baseline import measure
from lgrpo_lite.train.build import build
from lgrpo_lite.train.evaluate import evaluate

SETTINGS = ["eval.k=3", "data.eval.limit=80", "model.max_new_tokens=32", "rollout.batch_rows=50"]


@pytest.fixture
def heard():
    rows: list[Progress] = []
    with listening(rows.append):
        yield rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    log_to(tmp_path_factory.mktemp("log") / "main.log")  # as every command does: bars of libraries are off
    return build(check(load_recipe("tiny-math", SETTINGS)))


def counts(heard, what):
    return [(p.done, p.of) for p in heard if p.what == what]


# ------------------------------------------------------------------------------------------- telling


def test_work_is_heard_by_the_innermost_listener_only(heard):
    inner: list[Progress] = []
    told("a", 0, 2)
    with listening(inner.append):
        told("a", 1, 2)
    told("a", 2, 2)
    assert [p.done for p in heard] == [0, 2] and [p.done for p in inner] == [1]


def test_time_left_is_known_once_something_was_done_and_begins_anew(heard):
    for done, of in ((3, 9), (4, 9), (9, 9), (0, 5), (0, None), (7, None)):
        told("b", done, of)
    assert [p.left is None for p in heard] == [True, False, False, True, True, True]
    assert [p.finished for p in heard] == [False, False, True, False, False, False] and heard[2].left == 0


# ------------------------------------------------------------------------------------------- the line of a command


def shown(draw, steps):
    """What a line writes: `steps` are works to hear and, as numbers, moments to show it."""
    out = io.StringIO()
    line = Line(out, draw=draw, now=0.0)
    for step in steps:
        line.show(float(step)) if isinstance(step, int | float) else line.hear(step)
    return out.getvalue()


START, LOAD = Progress("starting vLLM", 0, None, None), Progress("loading weights", 3, 12, 65.0)
DONE = Progress("loading weights", 12, 12, 0.0)


@pytest.mark.parametrize(
    ("draw", "steps", "text"),
    [
        (True, [1.0], ""),
        (True, [START, 1, 1.2, 4], f"{CLEAR}starting vLLM: 0s{CLEAR}starting vLLM: 3s"),
        (
            True,
            [LOAD, 1, 2, DONE, 3],
            f"{CLEAR}loading weights: 3/12, 1m05s left{CLEAR}loading weights: 12/12",
        ),
        (True, [Progress("a\x1b[2Jb", 1, None, None), 1], f"{CLEAR}a\\x1b[2Jb: 1, 0s"),
        (False, [START, 1, 9.9], ""),
        (False, [START, 1, PLAIN_SECONDS, 11, 25], "starting vLLM: 9s\nstarting vLLM: 24s\n"),
        (False, [LOAD, 10, 15, 19, DONE, 21], "loading weights: 3/12, 1m05s left\n"),
        (False, [START, 8, LOAD, 9, START, 12], "starting vLLM: 0s\n"),
    ],
)
def test_the_line(draw, steps, text):
    assert shown(draw, steps) == text


def test_a_command_prints_beside_the_line():
    out = io.StringIO()
    line = Line(out, draw=True, now=0.0)
    line.hear(LOAD)
    line.show(1.0)
    with line.aside():
        out.write("a result\n")
    with line.aside():
        pass
    line.show(1.0)
    text = "loading weights: 3/12, 1m05s left"
    assert out.getvalue() == f"{CLEAR}{text}{CLEAR}a result\n{CLEAR}{text}"


@pytest.mark.parametrize(
    ("environment", "terminal", "draws"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "CI": "true"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
    ],
)
def test_where_the_line_is_drawn(environment, terminal, draws, monkeypatch):
    for name in ("TERM", "CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    out.isatty = lambda: terminal
    assert can_overwrite(out) == draws


WORK = """
import sys, time
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.progress import told
with showing(as_json=%s):
    told("counting", 1, 4)
    time.sleep(0.7)
print("a result")
"""


@pytest.mark.parametrize(("as_json", "drawn"), [(False, True), (True, False)])
def test_on_a_terminal_nothing_of_it_stays_and_stdout_has_the_result_alone(as_json, drawn):
    terminal, theirs = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")} | {"TERM": "xterm"}
    child = subprocess.run(
        [sys.executable, "-c", WORK % as_json], stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = os.read(terminal, 2**16).decode() if drawn else ""
    os.close(terminal)
    assert child.stdout == b"a result\n" and ("counting: 1/4" in seen) == drawn
    assert not drawn or seen.endswith(CLEAR)


# ------------------------------------------------------------------------------------------- what is told


def test_loading_tells_every_tensor(run, heard):
    build(run.recipe)
    done = counts(heard, "loading weights")
    assert done == [(i, len(done) - 1) for i in range(len(done))] and len(done) > 30


def test_an_evaluation_tells_problems_while_it_samples_and_is_the_same_without_a_listener(run, heard):
    result = evaluate(run, 0)
    done = [n for n, _ in counts(heard, "evaluating")]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 80 and done.count(80) == 1
    assert len(set(done)) > 6  # more than its two blocks
    with listening(lambda _: None):
        assert evaluate(run, 0) == result


def test_the_baseline_tells_prompts(run, heard):
    measure(run, run.prompts.first(40))
    told = counts(heard, "looking for a signal")
    done = [n for n, _ in told]
    assert done == sorted(done) and {of for _, of in told} == {40}
    assert {0, 16, 32, 40} <= set(done) and done.count(40) == 1
    assert len(set(done)) > 6  # also while the answers of a step are sampled, as far as the sampler tells


def test_a_proof_tells_how_far_it_is(run, heard):
    with run.engine.serving(run.policy) as sampler:
        run.proof(sampler, proving())
    done = [n for n, _ in counts(heard, "proving the rollouts")]
    assert done == sorted(done) and len(set(done)) > 5 and done[0] == 0


def test_a_merge_tells_tensors_and_then_the_prompts_it_verifies(run, heard, tmp_path):
    export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts[:8])
    merged, verified = counts(heard, "merging"), [n for n, _ in counts(heard, "verifying the merged model")]
    assert merged == [(i, merged[0][1]) for i in range(merged[0][1] + 1)]
    assert (
        verified == sorted(verified) and verified[0] == 0 and verified[-1] == 24 and verified.count(24) == 1
    )


@pytest.mark.slow
def test_a_selftest_tells_its_stages(run, heard):
    fresh = build(run.recipe)
    heard.clear()
    named = [
        name
        for name, _ in stages(
            fresh.engine,
            fresh.policy,
            proof_of(fresh.engine, fresh.policy, fresh.prompts.prompts, fresh.recipe),
        )
    ]
    done = [n for n, _ in counts(heard, "proving the rollouts")]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 100 and len(set(done)) > 5 * len(named)


# ------------------------------------------------------------------------------------------- downloads

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as fetching a model takes; `folders` by
    repository, `asked` is what was sent.
    """

    folders: dict[str, Path]
    asked: list[tuple[str, str]]

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        self.asked.append((self.command, path))
        repo = next(
            (
                name
                for name in self.folders
                if path.removeprefix("api/models/").startswith(name + "/") or path.endswith(name)
            ),
            None,
        )
        if repo is None:
            return self.answer(
                404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}
            )
        files = sorted(p for p in self.folders[repo].iterdir() if p.is_file())
        if path.startswith(f"api/models/{repo}/tree"):
            rows = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": self.tag(p)} for p in files
            ]
            return self.answer(200, json.dumps(rows).encode(), {})
        if path.startswith("api/models/"):
            about = {
                "_id": "1",
                "id": repo,
                "sha": COMMIT,
                "siblings": [{"rfilename": p.name} for p in files],
            }
            return self.answer(200, json.dumps(about).encode(), {})
        file = self.folders[repo] / path.rpartition("/")[2]
        if not file.is_file():
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self.answer(
            200,
            file.read_bytes(),
            {"ETag": f'"{self.tag(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"},
        )

    do_HEAD = do_GET

    def tag(self, file):
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on stderr."""


LOAD_TWICE = """
import json, sys
from pathlib import Path
from lgrpo_lite.folder.logs import log_to
log_to(Path(sys.argv[1]))
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 100_000
import torch
from lgrpo_lite.recipe.schema import Model
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.fetch import fetch_ahead
from lgrpo_lite.policy.load import load_base
from lgrpo_lite.progress import listening
result = {}
for name in ("whole", "sharded", "ahead", "again", "gone"):
    rows, id_ = [], "me/whole" if name == "again" else f"me/{name}"
    with listening(lambda p: rows.append((p.what, p.done, p.of))):
        try:
            if name == "ahead":
                fetch_ahead(id_, None)
            load_base(Model(id=id_, weights="fp32"), torch.device("cpu"))
        except ConfigError as error:
            rows.append((str(error), 0, 0))
    result[name] = rows
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """What loading models from a hub on this machine tells, by model, and what that hub was asked."""
    root = tmp_path_factory.mktemp("hub")
    source = Path(locate("builtin:tiny-math"))
    folders = {f"me/{name}": root / name for name in ("whole", "sharded", "ahead")}
    for folder in folders.values():
        folder.mkdir()
        for file in source.iterdir():
            if file.suffix == ".json" or (file.suffix == ".safetensors" and folder.name != "sharded"):
                (folder / file.name).write_bytes(file.read_bytes())
    write_shards(
        iter(load_file(source / "model.safetensors").items()), folders["me/sharded"], shard_bytes=600_000
    )
    asked: list[tuple[str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folders": folders, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(root / "home"),
        "OMP_NUM_THREADS": "1",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGINGFACE_"))}
    try:
        command = [sys.executable, "-c", LOAD_TWICE, str(root / "main.log")]
        child = subprocess.run(command, env=kept | own, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert child.returncode == 0 and child.stderr == "", child.stderr
    return json.loads(child.stdout), asked


@pytest.mark.parametrize(
    ("name", "repo"), [("whole", "me/whole"), ("sharded", "me/sharded"), ("ahead", "me/ahead")]
)
def test_a_download_tells_its_megabytes_and_happens_once(fetched, name, repo):
    told_, asked = fetched
    rows = [(done, of) for what, done, of in told_[name] if what == f"downloading {repo}, MB"]
    assert rows[-1] == (2, 2) and rows == sorted(rows) and {done for done, _ in rows} == {0, 1, 2}
    assert [what for what, _, _ in told_[name]][-1] == "loading weights"
    weights = [
        path
        for verb, path in asked
        if verb == "GET" and path.startswith(repo) and path.endswith(".safetensors")
    ]
    assert weights and len(weights) == len(set(weights))


def test_what_is_in_the_cache_is_not_told_as_a_download(fetched):
    assert {what for what, _, _ in fetched[0]["again"]} == {"loading weights"}


def test_a_model_that_is_not_there_is_the_error_it_was(fetched):
    [(message, _, _)] = fetched[0]["gone"]
    assert "cannot load me/gone" in message and "check the name, the revision and the network" in message
