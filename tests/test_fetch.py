"""An engine that loads a model by itself is given its folder, so that it has nothing to ask
a hub that may be out of reach.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_progress import COMMIT, Hub

from lgrpo_lite.errors import OutOfMemory
from lgrpo_lite.export.merge import write_shards
from lgrpo_lite.policy.fetch import fetch_ahead
from lgrpo_lite.policy.load import locate

FETCH = """
import json, sys
from lgrpo_lite.policy.fetch import fetch_ahead
print(json.dumps({name: fetch_ahead(name, revision) for name, revision in json.loads(sys.argv[1])}))
"""
ASKED = [("me/whole", "v1"), ("me/sharded", None), ("me/none", None), ("not a name", None)]


def fetched(home: Path, endpoint: str, *asked: tuple[str, str | None], **more: str) -> dict[str, str]:
    """What `fetch_ahead` gives in a process of its own: which hub there is, is read once."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGINGFACE_"))}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), **more}
    child = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps(asked)], env=kept | own, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_a_model_on_the_hub_is_its_folder_with_and_without_network(tmp_path):
    source, home = Path(locate("builtin:tiny-math")), tmp_path / "home"
    folders = {"me/whole": tmp_path / "whole", "me/sharded": tmp_path / "sharded"}
    for folder in folders.values():
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    (folders["me/whole"] / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    write_shards(
        iter(load_file(source / "model.safetensors").items()), folders["me/sharded"], shard_bytes=600_000
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folders": folders, "asked": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        first = fetched(home, endpoint, *ASKED)
    finally:
        server.shutdown()
        server.server_close()
    hub = home / "hub"
    assert first["me/whole"] == str(hub / "models--me--whole" / "snapshots" / COMMIT)
    assert first["me/sharded"] == str(hub / "models--me--sharded" / "snapshots" / COMMIT)
    assert (first["me/none"], first["not a name"]) == ("me/none", "not a name")
    assert fetched(home, endpoint, *ASKED) == first  # nobody listens there any longer
    next(Path(first["me/sharded"]).glob("model-00002-of-*.safetensors")).unlink()
    without = fetched(home, endpoint, *ASKED, ("me/whole", "v2"), HF_HUB_OFFLINE="1")
    # not whole; not of that revision
    assert without["me/sharded"] == "me/sharded" and without["me/whole"] == "me/whole"


def test_a_folder_is_given_as_it_is(tmp_path):
    assert fetch_ahead(str(tmp_path), "v1") == str(tmp_path)


@pytest.mark.parametrize(
    ("error", "mapped"),
    [
        (RuntimeError("CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:139"), True),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
            True,
        ),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("out of memory is a phrase here"), False),
    ],
)
def test_what_the_driver_says_of_memory_is_out_of_memory(error, mapped):
    from lgrpo_lite.cli.main import out_of_memory

    assert isinstance(out_of_memory(error), OutOfMemory) == mapped
