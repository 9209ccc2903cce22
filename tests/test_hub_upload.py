"""An upload to the Hub, against a server of this machine that speaks its API: what arrives, what is sent again,
what is told where it cannot.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import ORGANISATION, OWNER, TOKEN, Fault, Repository, hub_server
from safetensors.torch import load_file
from support import lgrpo, tiny_recipe
from test_hub import closed, silent

from lgrpo_lite.checks.check import demand, examined
from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.export.merge import write_shards
from lgrpo_lite.export.stamp import STAMP, put_stamp, source_of
from lgrpo_lite.machine import hub as machine_hub

REPO = f"{OWNER}/tiny"
SMALL = (
    "train.steps=2", "train.save_every=1", "rollout.prompts_per_step=2", "rollout.group_size=2",
    "model.max_new_tokens=8", "data.eval.limit=2", "data.train.limit=8", "eval.k=1",
    "safety.sync_proof_every=0", "safety.baseline_check=false",
)  # fmt: skip
SHARD = 1_100_000  # bytes


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with two checkpoints and its exports."""
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", "--runs", runs, "--name", "one", "--ui", "none", *SMALL) == 0
    return runs / "one"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, to be changed."""
    copied = tmp_path / "one"
    shutil.copytree(trained, copied, symlinks=True)
    return copied


def sharded(run: Path) -> Path:
    """Its merged model, in three files."""
    merged = run / "export" / "merged"
    tensors = load_file(merged / "model.safetensors")
    (merged / "model.safetensors").unlink()
    write_shards(iter(tensors.items()), merged, SHARD)
    put_stamp(merged, "merged", source_of(run, "step-000002"))
    assert len(list(merged.glob("model-*.safetensors"))) == 3
    return merged


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """No token but ours, no cache but an empty one, and large files by LFS."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setattr(machine_hub, "ANSWER", 2.0)
    return monkeypatch


def files_of(folder: Path, at: str = "") -> dict[str, bytes]:
    names = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {at + path.name: path.read_bytes() for path in names}


def held(repository: Repository) -> dict[str, bytes]:
    return {path: data for path, data in repository.files.items() if path != ".gitattributes"}


def demand_secret(run: Path, *shown: str) -> None:
    """The token is in nothing that was shown, and in no file of the run."""
    assert all(TOKEN not in text for text in shown)
    written = [path for path in run.rglob("*") if path.is_file()]
    assert all(TOKEN.encode() not in path.read_bytes() for path in written)


def three_lines(shown: str) -> list[str]:
    """What a fault told: what, where, what to do."""
    lines = shown.strip().splitlines()[-3:]
    assert [line[:6] for line in lines] == ["error:", "  at  ", "  fix "], shown
    return lines


# ------------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("part_bytes", [None, 500_000])
def test_exports_arrive_byte_for_byte_in_one_commit(run, environment, capsys, part_bytes):
    with hub_server(part_bytes=part_bytes) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO, "--private", "--holds", "merged,adapter") == 0
    repository = hub.repositories[REPO]
    expected = files_of(run / "export" / "merged") | files_of(run / "export" / "adapter", "adapter/")
    assert held(repository) == expected
    assert repository.private and len(repository.commits) == 1
    assert repository.commits[0]["header"]["summary"] == "merged, adapter of step-000002"
    assert ("PUT /lfs" in " ".join(hub.asked)) and bool(hub.parts) == bool(part_bytes)
    shown, errors = capsys.readouterr()
    assert shown.splitlines()[0] == f"{hub.url}/{REPO}" and errors == ""
    config = json.loads(repository.files["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == "builtin:tiny-math"
    demand_secret(run, shown)


def test_what_the_hub_has_is_not_sent_again(run, environment, capsys):
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
        sent = list(hub.put)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
        assert hub.put == sent and len(hub.repositories[REPO].commits) == 1
        assert lgrpo("export", run, "hub", "--repo", f"{ORGANISATION}/other") == 0
    assert hub.put == sent  # the weights are known, whosever they are
    assert "the repository was there, and its earlier commits stay" in capsys.readouterr().out


def test_weights_of_an_earlier_upload_do_not_stay_beside_the_new_ones(run, environment, capsys):
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"]
    kept = {"notes.md": b"mine", "figure.png": b"\x89", "old/model.safetensors": b"1"}
    before = dict.fromkeys(old, b"0") | kept | {"config.json": b"{}", "README.md": b"x"}
    with hub_server(repositories={REPO: Repository(False, dict(before))}) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert held(hub.repositories[REPO]) == files_of(run / "export" / "merged") | kept
    shown = capsys.readouterr().out
    assert f"read with the new files: {', '.join(sorted(old))}" in shown
    assert "2 of its files are replaced, 3 untouched" in shown


def test_an_export_of_another_checkpoint_does_not_go_up(run, environment, capsys):
    newest = (run / "export" / "merged" / "model.safetensors").read_bytes()
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO, "--checkpoint", "1") == 0
        first = hub.repositories[REPO].files["model.safetensors"]
        shown = capsys.readouterr().out
        assert "made merged: it was made of another checkpoint, step-000002" in shown
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert first != newest
    assert hub.repositories[REPO].files["model.safetensors"] == newest
    assert len(hub.repositories[REPO].commits) == 2


@pytest.mark.parametrize(
    ("lost", "why"),
    [("", "not made yet"), (STAMP, "does not say what"), ("tokenizer.json", "lacks tokenizer.json")],
)
def test_an_export_that_is_not_whole_is_made_first(run, environment, capsys, lost, why):
    merged = run / "export" / "merged"
    expected = files_of(merged)
    shutil.rmtree(merged) if not lost else (merged / lost).unlink()
    assert lgrpo("export", run, "hub", "--repo", REPO, "--dry-run") == 0
    assert why in capsys.readouterr().out
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert why in capsys.readouterr().out
    sent = held(hub.repositories[REPO])
    assert sent.keys() == expected.keys()
    assert sent["model.safetensors"] == expected["model.safetensors"]


def test_what_the_export_did_not_make_does_not_go_up_and_is_named(run, environment, capsys):
    merged = run / "export" / "merged"
    expected = files_of(merged)
    (merged / "secret.txt").write_text("x")
    (merged / "notes").symlink_to(run / "config.resolved.yaml")
    assert lgrpo("export", run, "hub", "--repo", REPO, "--dry-run") == 0
    assert "did not make it: merged/secret.txt" in capsys.readouterr().out
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    shown = capsys.readouterr().out
    assert held(hub.repositories[REPO]) == expected
    assert all(f"did not make it: merged/{name}" in shown for name in ("secret.txt", "notes"))


def test_weights_that_were_replaced_by_a_link_are_made_anew(run, environment, capsys):
    weights = run / "export" / "merged" / "model.safetensors"
    elsewhere = weights.rename(run / "elsewhere")
    weights.symlink_to(elsewhere)
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert "made merged: model.safetensors is a link" in capsys.readouterr().out
    assert elsewhere.exists() and not weights.is_symlink()


def test_an_export_of_another_kind_at_its_place_is_told_and_kept(run, environment, capsys):
    merged = run / "export" / "merged"
    put_stamp(merged, "gguf", source_of(run, "step-000002"))
    assert lgrpo("export", run, "hub", "--repo", REPO, "--dry-run") == 0
    assert "another kind, gguf" in capsys.readouterr().out
    with hub_server() as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 2
    assert "it is one of gguf" in capsys.readouterr().err and (merged / "config.json").exists()


def test_a_run_folder_without_room_for_a_log_is_exported_elsewhere(run, tmp_path, capsys):
    shutil.rmtree(run / "logs")
    (run / "logs").write_text("no folder")
    assert lgrpo("export", run, "adapter", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_dry_run_needs_neither_a_token_nor_the_hub(run, environment, capsys):
    environment.delenv("HF_TOKEN")
    environment.setenv("HF_HUB_OFFLINE", "1")
    environment.setenv("HF_ENDPOINT", closed())
    asked = ("export", run, "hub", "--repo", REPO, "--holds", "merged,adapter", "--dry-run")
    assert lgrpo(*asked) == 0
    shown, errors = capsys.readouterr()
    assert "2.4 MB  model.safetensors" in shown and "adapter/adapter_model.safetensors" in shown
    assert "nothing was sent" in shown and STAMP not in shown and errors == ""
    assert lgrpo(*asked, "--json") == 0
    files = json.loads(capsys.readouterr().out)["result"]["files"]
    expected = files_of(run / "export" / "merged") | files_of(run / "export" / "adapter", "adapter/")
    assert {file["path"]: file["bytes"] for file in files} == {k: len(v) for k, v in expected.items()}


# ------------------------------------------------------------------------------------------- on the way


def started(*argv: str, **more: str) -> subprocess.Popen:
    """The command in a process of its own, which hears of Ctrl-C where the tests run in the background, too."""
    words = [sys.executable, "-m", "lgrpo_lite", *map(str, argv)]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | more,
        preexec_fn=hearing,
    )


def hearing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupted_upload_goes_on_with_the_rest(run, environment):
    merged = sharded(run)
    with hub_server(faults=[Fault("PUT /lfs", "hold", after=2, times=1)]) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        upload = started("export", run, "hub", "--repo", REPO)
        assert hub.held.wait(60)
        began = time.monotonic()
        upload.send_signal(signal.SIGINT)
        errors = next(line for line in upload.stderr if line.startswith("stopped"))
        assert time.monotonic() - began < 5
        assert upload.wait(60) == 130 and upload.stdout.read() == ""
        assert "what arrived is not sent again: " in errors
        assert hub.repositories[REPO].commits == []  # nothing half
        arrived = hub.received()
        command = errors.strip().rpartition("again: ")[2].split()
        assert lgrpo(*command[1:]) == 0
    sizes = [path.stat().st_size for path in merged.glob("model-*.safetensors")]
    assert 0 < arrived < sum(sizes)
    assert hub.received() == sum(sizes)  # each byte once
    assert held(hub.repositories[REPO]) == files_of(merged)
    demand_secret(run, errors)


def test_a_connection_that_breaks_once_is_made_again(run, environment, capsys):
    with hub_server(faults=[Fault("PUT /lfs", "drop", times=1)]) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert held(hub.repositories[REPO]) == files_of(run / "export" / "merged")
    shown, errors = capsys.readouterr()
    assert errors == ""
    demand_secret(run, shown)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["drop", 503])
def test_a_server_that_stays_broken_ends_the_upload_and_the_command_goes_on(run, environment, capsys, what):
    with hub_server(faults=[Fault("PUT /lfs", what, times=6)]) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        assert lgrpo("export", run, "hub", "--repo", REPO) == 3
        errors = capsys.readouterr().err
        assert f"lgrpo-lite export {run} hub --repo {REPO}" in three_lines(errors)[2]
        assert lgrpo("export", run, "hub", "--repo", REPO) == 0
    assert held(hub.repositories[REPO]) == files_of(run / "export" / "merged")
    demand_secret(run, errors)


@pytest.mark.slow
def test_hf_xet_sends_each_chunk_once_also_after_a_fault(run, environment, tmp_path):
    """hf_xet itself, into a store of chunks in a folder: the protocol that the Hub speaks today."""
    chunks = tmp_path / "chunks"
    chunks.mkdir()
    twice = (
        "import pathlib, sys; from lgrpo_lite.cli.main import main; argv = sys.argv[2:]; "
        "size = lambda: sum(p.stat().st_size for p in pathlib.Path(sys.argv[1]).rglob('default.*')); "
        "print(main(argv), size()); print(main(argv), size())"
    )
    fault = Fault("POST /api/models/ada/tiny/commit", 500, times=1)
    with hub_server(xet=f"local://{chunks}", faults=[fault]) as hub:
        words = [sys.executable, "-c", twice, chunks, "export", run, "hub", "--repo", REPO]
        switches = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "0"}
        ended = subprocess.run(words, capture_output=True, text=True, timeout=120, env=os.environ | switches)
    assert ended.returncode == 0
    what, _, fix = three_lines(ended.stderr)
    assert what == "error: the Hub failed (HTTP 500: told to fail)" and "is not sent again" in fix
    lines = ended.stdout.splitlines()
    (failed, stored), (code, stored_after) = lines[0].split(), lines[-1].split()
    assert (failed, code) == ("3", "0")
    weights = run / "export" / "merged" / "model.safetensors"
    committed = hub.repositories[REPO].files["model.safetensors"]
    assert committed.decode() == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert stored == stored_after and int(stored) > 0.5 * weights.stat().st_size
    assert not hub.put
    demand_secret(run, ended.stdout, ended.stderr)
    demand_secret(tmp_path / "home")  # hf_xet keeps logs there


# ------------------------------------------------------------------------------------------- what cannot be


COMMIT, CREATE = f"POST /api/models/{REPO}/commit", "POST /api/repos/create"
BAD = {
    "no repository": ({}, [], 2, "no repository is named"),
    "no owner": ({}, ["--repo", "tiny"], 2, "it is not OWNER/NAME"),
    "no name": ({}, ["--repo", "ada/a--b"], 2, "is no name of a repository"),
    "an address": ({}, ["--repo", "https://huggingface.co/ada/tiny"], 2, "it is not OWNER/NAME"),
    "a kind that there is not": ({}, ["--repo", REPO, "--holds", "onnx"], 2, "onnx"),
    "twice the same": ({}, ["--repo", REPO, "--holds", "merged,merged"], 2, "named twice"),
    "an option of merging": ({}, ["--repo", REPO, "--base", "auto"], 2, "does not read --base"),
    "no token": ({"token": None}, ["--repo", REPO], 3, "needs a token, and there is none"),
    "a token that no header holds": ({"token": "hf_ä"}, ["--repo", REPO], 3, "is none"),
    "a wrong token": ({"token": "hf_wrong"}, ["--repo", REPO], 3, "does not take the token"),
    "a token that reads": ({"role": "read"}, ["--repo", REPO], 3, "the token may only read"),
    "another owner": ({}, ["--repo", "bob/tiny"], 3, "who may not write to bob"),
    "no permission": ({"writable": (OWNER,)}, ["--repo", f"{ORGANISATION}/x"], 3, "may not write to lab/x"),
    "public": ({"there": False}, ["--repo", REPO, "--private"], 2, "is there already and public"),
    "offline": ({"offline": "1"}, ["--repo", REPO], 3, "HF_HUB_OFFLINE"),
    "nobody there": ({"at": "closed"}, ["--repo", REPO], 3, "is out of reach (Connection refused)"),
    "no answer": ({"at": "silent"}, ["--repo", REPO], 3, "is out of reach (no answer in 2 s)"),
    "a broken server": ({"fault": Fault("GET /api/whoami", 503)}, ["--repo", REPO], 3, "answers HTTP 503"),
    "cannot be made": ({"fault": Fault(CREATE, 500)}, ["--repo", REPO], 3, "the Hub failed (HTTP 500"),
    "no room": ({"fault": Fault("PUT /lfs", 402)}, ["--repo", REPO], 3, "no room for it (HTTP 402"),
    "a commit refused": ({"fault": Fault(COMMIT, 403)}, ["--repo", REPO], 3, "may not write to ada/tiny"),
    "a commit cut off": ({"fault": Fault(COMMIT, "drop")}, ["--repo", REPO], 3, "the upload broke"),
    "a card": ({}, ["--repo", REPO, "--holds", "adapter"], 5, "refuses the front matter of README.md"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_go_up_is_told_in_three_lines(run, environment, capsys, case):
    settings, argv, code, text = BAD[case]
    card = run / "export" / "adapter" / "README.md"
    card.write_text("---\nbase_model: /home/ada/a model\n---\n", "utf-8")
    server = {key: value for key, value in settings.items() if key in ("role", "writable")}
    if "fault" in settings:
        server["faults"] = [Fault(settings["fault"].begins, settings["fault"].what)]
    if "there" in settings:
        server["repositories"] = {REPO: Repository(settings["there"])}
    token = settings.get("token", TOKEN)
    environment.setenv("HF_TOKEN", token) if token else environment.delenv("HF_TOKEN")
    environment.setenv("HF_HUB_OFFLINE", settings.get("offline", ""))
    with hub_server(**server) as hub, silent() as quiet:
        places = {"closed": closed(), "silent": quiet}
        environment.setenv("HF_ENDPOINT", places.get(settings.get("at"), hub.url))
        began = time.monotonic()
        assert lgrpo("export", run, "hub", *argv) == code
        assert time.monotonic() - began < 8
    shown, errors = capsys.readouterr()
    assert text in three_lines(errors)[0] and shown == ""
    assert all(not repository.commits for repository in hub.repositories.values())
    demand_secret(run, errors)


def test_a_store_of_chunks_that_is_out_of_reach_is_told_in_seconds(run, environment, capsys):
    environment.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    with hub_server(xet=closed()) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        began = time.monotonic()
        assert lgrpo("export", run, "hub", "--repo", REPO) == 3
        assert time.monotonic() - began < 8  # hf_xet alone tries for five minutes
    what, _, fix = three_lines(capsys.readouterr().err)
    assert "the Hub's storage: 127.0.0.1 is out of reach" in what and "HF_HUB_DISABLE_XET=1" in fix


# ------------------------------------------------------------------------------------------- out of a run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begins", "code", "what"),
    [
        (None, 0, ""),
        (COMMIT, 3, "the Hub failed (HTTP 500: told to fail)"),
        ("public", 2, "is there already and public"),
    ],
)
def test_a_run_ends_in_its_upload_and_is_done_where_that_fails(
    tmp_path, environment, capsys, begins, code, what
):
    public = {REPO: Repository(private=False)} if begins == "public" else {}
    faults = [Fault(begins, 500, times=1)] if begins else []
    asked = [*SMALL, "train.steps=1", "export.formats=[merged,hub]", f"export.hub.repo={REPO}"]
    with hub_server(faults=faults, repositories=public) as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        words = ("recipe", "tiny-math", "--runs", tmp_path, "--name", "up", "--ui", "none")
        assert lgrpo(*words, *asked, "export.hub.private=true") == code
        shown, errors = capsys.readouterr()
        run = tmp_path / "up"
        status = json.loads((run / "STATUS.json").read_text())
        assert (status["state"], status["exit_code"]) == ("done", 0)
        assert str(run / "export" / "merged") in shown
        assert (f"hub      {hub.url}/{REPO}" in shown) == (not code)
        if code:
            told = three_lines(errors)
            assert what in told[0] and what in (run / "events.jsonl").read_text()
            hub.repositories.pop(REPO)  # as its owner might
            command = told[2].rpartition(": ")[2].split()
            assert lgrpo(*command[1:]) == 0
    assert held(hub.repositories[REPO]) == files_of(run / "export" / "merged")
    demand_secret(run, shown, errors)


@pytest.mark.parametrize(
    ("settings", "key", "what"),
    [
        (["export.formats=[hub]"], "export.hub.repo", "no repository is named"),
        (["export.hub.repo=tiny"], "export.hub.repo", "it is not OWNER/NAME"),
        (
            [
                "export.formats=[hub]",
                f"export.hub.repo={REPO}",
                "export.hub.holds=[adapter]",
                "model.lora=null",
            ],
            "export.hub.holds",
            "there is no adapter to upload",
        ),
        (["export.hub.holds=[merged,merged]"], "export.hub.holds", "named twice"),
    ],
)
def test_an_upload_that_cannot_be_is_told_before_training(settings, key, what):
    from lgrpo_lite.recipe.read import load_recipe

    _, faults = examined(load_recipe("tiny-math", settings))
    assert [(fault.key, what in fault.what) for fault in faults] == [(key, True)]


def test_an_account_that_may_not_upload_is_told_before_training(environment):
    recipe = tiny_recipe("export.formats=[hub]", f"export.hub.repo={REPO}")
    with hub_server(role="read") as hub:
        environment.setenv("HF_ENDPOINT", hub.url)
        demand(recipe)  # an export of something else needs none
        with pytest.raises(EnvironmentFault, match="the token may only read") as error:
            demand(recipe, training=True)
        assert "export.hub.repo" in error.value.where
        environment.delenv("HF_TOKEN")
        with pytest.raises(EnvironmentFault, match="there is none"):
            demand(recipe, training=True)
