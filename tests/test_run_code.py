"""A recipe is code: what a run executes is told, kept in its folder, and what has changed is not gone on with."""

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

import pytest
from support import lgrpo

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.folder.code import store, stored
from lgrpo_lite.recipe.code import CodeFile

SMALL = [
    "train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "data.train.limit=8", "data.eval.limit=4",
    "eval.k=1", "model.max_new_tokens=4", "export.formats=[]", "safety.sync_proof_every=0", "safety.baseline_check=false",
]  # fmt: skip
OWN = """
from pathlib import Path
with Path(__file__).with_name("ran").open("a") as file:
    file.write("x")
from lgrpo_lite.algorithm import Algorithm
def row(): return Algorithm(advantage="mean_only")
def brief(completion_tokens, floor=5): return completion_tokens % 2
"""


TWO = ("rewards.0={use: 'mine.py:brief'}", "algorithm.use=other/mine.py:row")


def train(*more):
    return lgrpo("recipe", "tiny-math", *SMALL, *TWO, "--name", "n", "--ui", "none", *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step with two files of one name, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    for place in (folder, folder / "other"):
        place.mkdir(exist_ok=True)
        (place / "mine.py").write_text(f"# {place.name}\n{OWN}")
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(said):
        assert train() == 0
    return folder, said.getvalue()


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A folder to work in: a copy of that run and of its files, none of which has been executed here."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    for mark in tmp_path.rglob("ran"):
        mark.unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def test_a_run_tells_what_it_executes_and_keeps_it(here, trained):
    place, said = trained
    rows = json.loads(Path("runs/n/code/files.json").read_text())
    assert [row["path"] for row in rows] == ["other/mine.py", "mine.py"]
    assert len({row["copy"] for row in rows}) == 2
    for row in rows:
        kept = Path("runs/n/code", row["copy"]).read_bytes()
        assert kept == Path(row["path"]).read_bytes()
        assert row["sha256"] == hashlib.sha256(kept).hexdigest()
        assert row["place"] == str(place / row["path"])
        assert f"executes   {row['path']}, SHA-256 {row['sha256'][:12]}\n" in said


def test_what_has_changed_is_not_gone_on_with_and_not_executed(here, capfd):
    old, kept = short("mine.py"), Path("runs/n/code/2/mine.py").read_bytes()
    Path("mine.py").write_text(OWN + "\n# another\n")
    longer = ("train.steps=2", "--resume", "auto")
    assert train(*longer) == 2
    said = capfd.readouterr().err.splitlines()[-3:]
    assert said[0] == f"error: the run's code has changed: mine.py ({old} -> {short('mine.py')})"
    assert said[1].endswith("runs/n/code/2/mine.py") and "diff runs/n/code/2/mine.py mine.py" in said[2]
    assert not list(here.rglob("ran"))
    Path("mine.py").unlink()
    assert train(*longer) == 2
    assert f"mine.py ({old} -> gone)" in capfd.readouterr().err
    Path("mine.py").write_bytes(kept)
    assert train(*longer) == 0


def test_the_newest_unfinished_run_is_not_gone_on_with_either(here, capfd):
    """Without a name: a run of the same settings and of other code is neither passed over nor resumed."""
    status = Path("runs/n/STATUS.json")
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "stopped"}))
    Path("mine.py").write_text(OWN)
    words = ["recipe", "tiny-math", *SMALL, *TWO, "--resume", "auto"]
    assert lgrpo(*words, "--ui", "none") == 2
    assert "the run's code has changed: mine.py" in capfd.readouterr().err
    assert [path.name for path in Path("runs").iterdir()] == ["n"]


def test_a_run_of_an_earlier_version_goes_on_with_a_word(here, capfd):
    record = Path("runs/n/code/files.json")
    record.unlink()
    Path("mine.py").write_text(OWN)
    assert train("train.steps=2", "--resume", "auto") == 0
    assert "kept no hash of its code" in Path("runs/n/events.jsonl").read_text()
    assert "kept no hash of its code" in capfd.readouterr().err
    assert json.loads(record.read_text())[1]["sha256"].startswith(short("mine.py"))


def test_export_and_eval_say_that_the_code_is_another(here, capfd):
    Path("mine.py").write_text(OWN)
    assert lgrpo("export", "n", "adapter") == 0
    word = f"mine.py ({short('runs/n/code/2/mine.py')} -> {short('mine.py')}) has changed since the run"
    assert capfd.readouterr().err.count(word) == 1
    assert not list(here.rglob("ran")), "an export executes nothing of a recipe"
    assert lgrpo("eval", "n") == 0
    said = capfd.readouterr().err
    assert said.count(word) == 1 and f"executes   mine.py, SHA-256 {short('mine.py')}" in said


LOOKS = (["recipe", "show"], ["recipe", "--dry-run"], ["train", "--dry-run"])


@pytest.mark.parametrize("command", LOOKS, ids=" ".join)
@pytest.mark.parametrize("use", TWO)
def test_what_only_looks_executes_nothing_unless_asked(command, use, here, capsys):
    words = [*command, "tiny-math", "data.eval=[]", use]
    assert lgrpo(*words) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert not list(here.rglob("ran")) and "is code of the recipe and was not run; --import" in said
    assert lgrpo(*words, "--import") == 0
    assert len(list(here.rglob("ran"))) == 1
    assert "was not run" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "words", [["baseline", "tiny-math", "-n", "2"], ["reward", "test", "tiny-math", "-n", "1"]]
)
def test_what_executes_says_so_first(words, here, capsys):
    Path("mine.py").write_text("raise RuntimeError('executed')\ndef brief(completion): ...\n")
    assert lgrpo(*words, *SMALL, "rewards.0={use: 'mine.py:brief'}") == 5
    said = capsys.readouterr().err
    assert said.index(f"executes   mine.py, SHA-256 {short('mine.py')}") < said.index("does not import")


def test_copies_of_one_name_stand_beside_each_other(tmp_path):
    files = [
        CodeFile(f"{place}/{name}", place.encode())
        for place, name in zip("abc", ("x.py", "X.py", "x.py"), strict=True)
    ]
    store(tmp_path, files)
    rows = stored(tmp_path)
    assert rows is not None
    for file in files:
        assert (tmp_path / "code" / rows[file.path]["copy"]).read_bytes() == file.text


@pytest.mark.parametrize("text", ["", "{", "7", "[7]", '[{"path": 1}]', "[" * 5000])
def test_a_record_that_cannot_be_read_is_refused(text, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "files.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        stored(tmp_path)
