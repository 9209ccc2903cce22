"""llama.cpp as a tool, where it is not there: what lacks is told before training, sources that are others are not used."""

import hashlib
import http.server
import io
import json
import os
import signal
import tarfile
import threading
import time
from importlib.util import find_spec

import pytest
from support import lgrpo, tiny_recipe

from lgrpo_lite.checks.check import demand, examined
from lgrpo_lite.errors import EnvironmentFault, VerificationError
from lgrpo_lite.export import formats, llama_tools
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.stop import Stopped, stopping

without_llama_cpp = pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama.cpp is there")


@without_llama_cpp
@pytest.mark.parametrize("formats", ["[gguf]", "[adapter,ollama]", "[lora-gguf]"])
def test_a_run_that_ends_in_a_gguf_wants_llama_cpp_before_it_begins(formats):
    recipe = tiny_recipe(f"export.formats={formats}")
    demand(recipe)  # to evaluate it, say
    with pytest.raises(EnvironmentFault, match="llama_cpp") as error:
        demand(recipe, training=True)
    assert "gguf]" in error.value.fix


def test_what_the_hub_is_to_hold_counts_as_asked():
    recipe = tiny_recipe("export.formats=[hub]", "export.hub.repo=a/b", "export.hub.holds=[ollama]")
    if find_spec("llama_cpp") is None:
        with pytest.raises(EnvironmentFault, match="llama_cpp"):
            demand(recipe, training=True)


def test_no_adapter_no_gguf_of_it():
    _, faults = examined(load_recipe("tiny-math", ["model.lora=null", "export.formats=[lora-gguf]"]))
    assert [fault.key for fault in faults] == ["export.formats"]


@without_llama_cpp
@pytest.mark.slow
def test_the_command_names_the_extra(tmp_path, capsys):
    small = ["train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "model.max_new_tokens=8", "data.eval.limit=2",
             "data.train.limit=8", "eval.k=1", "safety.sync_proof_every=0", "safety.baseline_check=false", "export.formats=[]"]  # fmt: skip
    assert lgrpo("recipe", "tiny-math", "--runs", tmp_path, "--name", "one", "--ui", "none", *small) == 0
    capsys.readouterr()
    for kind in ("gguf", "lora-gguf", "ollama"):
        assert lgrpo("export", tmp_path / "one", kind) == 3
        assert "lgrpo-lite[gguf]" in capsys.readouterr().err
        assert not (tmp_path / "one" / "export").exists()


def test_a_script_ends_with_the_export_that_runs_it(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    told = tmp_path / "pid"

    def end():
        while not (told.exists() and told.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, stopping():
        threading.Thread(target=end, daemon=True).start()
        llama_tools.run_script(tmp_path, "slow.py", str(told), log=tmp_path / "log")
    assert stopped.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


@pytest.mark.parametrize(("asked", "told"), [(0, False), (2, False), (3, True)])
def test_fewer_problems_than_were_to_be_solved_are_told(tmp_path, asked, told):
    recipe = tiny_recipe(f"export.eval={asked}")
    job = formats.Job(recipe, tmp_path, "last", lambda: (None, [None, None]), lambda _: None)
    lines = formats._solved(job)
    assert bool(lines) == told and all("solved 2 problems, not 3" in line for line in lines)


# ------------------------------------------------------------------------------------------- its sources


def archive_of(files: dict[str, str]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return written.getvalue()


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A package index on this machine, with an archive of sources that is put into it."""
    held = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = f"llama_cpp_python-{llama_tools.VERSION}.tar.gz"
            listing = {"files": [{"filename": name, "url": f"../../files/{name}"}]}
            body = json.dumps(listing).encode() if self.path.startswith("/simple/") else held["archive"]
            self.send_response(200 if self.path.startswith(("/simple/", "/files/")) else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield held
    server.shutdown()
    server.server_close()


TOP = f"llama_cpp_python-{llama_tools.VERSION}/vendor/llama.cpp"
SOURCES = {
    f"{TOP}/convert_hf_to_gguf.py": "print(1)",
    f"{TOP}/conversion/base.py": "",
    f"{TOP}/src/llama.cpp": "int main;",
    f"{TOP}/conversion/../../../../outside.py": "",
}


def test_sources_are_unpacked_once_and_only_what_converting_needs(index, monkeypatch, tmp_path):
    index["archive"] = archive_of({name: text for name, text in SOURCES.items() if ".." not in name})
    monkeypatch.setattr(llama_tools, "SHA256", hashlib.sha256(index["archive"]).hexdigest())
    folder = llama_tools.scripts(None)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["conversion/base.py", "convert_hf_to_gguf.py"]
    index["archive"] = b"gone"
    assert llama_tools.scripts(None) == folder


def test_sources_that_are_others_are_not_used(index, tmp_path):
    index["archive"] = archive_of(SOURCES)
    with pytest.raises(VerificationError, match="are others than those known"):
        llama_tools.scripts(None)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_member_that_leads_outside_is_left_out(index, monkeypatch, tmp_path):
    index["archive"] = archive_of(SOURCES)
    monkeypatch.setattr(llama_tools, "SHA256", hashlib.sha256(index["archive"]).hexdigest())
    llama_tools.scripts(None)
    names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"base.py", "convert_hf_to_gguf.py"}


def test_no_index_is_told_with_another_way(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="cannot be fetched") as error:
        llama_tools.scripts(None)
    assert "--llama-cpp DIR" in error.value.fix


def test_last_words_of_a_program(tmp_path):
    log = tmp_path / "log"
    log.write_text("earlier\nTraceback\n  at\nValueError: no such token\n\n")
    assert llama_tools.last_words(log) == "ValueError: no such token"
    assert llama_tools.last_words(log, log.stat().st_size) == ""
