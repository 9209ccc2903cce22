"""Where an export is put: what it replaces, what it never touches, and what is left when it breaks off."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from lgrpo_lite.errors import ConfigError, DiskFault
from lgrpo_lite.export.place import placed
from lgrpo_lite.export.stamp import STAMP, outdated, put_stamp, source_of


def exported(out: Path, text: str = "old", kind: str = "merged") -> Path:
    with placed(out, kind) as partial:
        (partial / "model.safetensors").write_text(text)
        (partial / "README.md").write_text("card")
    return out


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != STAMP}


def earlier_version(run: Path) -> Path:
    """An export without a stamp, at its usual place."""
    out = run / "export" / "merged"
    out.mkdir(parents=True)
    (run / "config.resolved.yaml").write_text("")
    for name in ("merge_report.json", "model.safetensors", "merges.txt"):
        (out / name).write_text("old")
    return out


def test_an_earlier_export_of_the_kind_is_replaced(tmp_path):
    out = exported(tmp_path / "out")
    (out / "README.md").write_text("a card made anew")
    assert files_of(exported(out, "new")) == {"model.safetensors": "new", "README.md": "card"}
    assert list(tmp_path.iterdir()) == [out]


def test_an_export_of_a_version_without_stamps_is_replaced_at_its_usual_place(tmp_path):
    out = exported(earlier_version(tmp_path), "new")
    assert files_of(out) == {"model.safetensors": "new", "README.md": "card"}


FOREIGN = {
    "a file": lambda out: (out / "secret.txt").write_text("x"),
    "a hidden file": lambda out: (out / ".env").write_text("x"),
    "git": lambda out: ((out / ".git").mkdir(), (out / ".git" / "HEAD").write_text("x")),
    "a link": lambda out: (out / "data").symlink_to("/"),
}


@pytest.mark.parametrize("stamped", [True, False])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_the_export_did_not_make_is_never_lost(tmp_path, what, stamped):
    out = exported(tmp_path / "out") if stamped else earlier_version(tmp_path)
    FOREIGN[what](out)
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigError, match="is none of its files"):
        exported(out, "new")
    assert sorted(out.rglob("*")) == before and (out / "model.safetensors").read_text() == "old"


def test_a_file_that_came_while_the_export_was_made_is_not_lost(tmp_path):
    out = exported(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"secret\.txt"), placed(out, "merged"):
        (out / "secret.txt").write_text("x")
    assert (out / "secret.txt").exists() and list(tmp_path.iterdir()) == [out]


def test_an_export_of_another_kind_is_not_replaced(tmp_path):
    for out in (exported(tmp_path / "out"), earlier_version(tmp_path)):
        with pytest.raises(ConfigError, match="no earlier export"):
            exported(out, kind="gguf")
        assert (out / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("report", ["adapter_config.json", "export_report.json", "merge_report.json"])
def test_a_folder_with_a_report_elsewhere_is_foreign(tmp_path, report):
    (tmp_path / report).write_text("{}")
    with pytest.raises(ConfigError, match="no earlier export"):
        exported(tmp_path, kind=report.partition("_")[0])
    assert (tmp_path / report).exists()


def test_a_link_is_refused_and_nothing_is_left(tmp_path):
    out = exported(tmp_path / "out")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ConfigError, match="a link"):
        exported(tmp_path / "link", "new")
    assert files_of(out)["model.safetensors"] == "old" and len(list(tmp_path.iterdir())) == 2


def test_the_folder_that_one_stands_in_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(exported(tmp_path / "out"))
    exported(Path("."), "new")
    assert files_of(tmp_path / "out")["model.safetensors"] == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_exports_to_one_folder_the_second_is_refused(tmp_path):
    out = tmp_path / "out"
    with placed(out, "merged") as partial:
        (partial / "a").write_text("first")
        with pytest.raises(ConfigError, match="another process exports"):
            exported(out, "second")
    assert files_of(out) == {"a": "first"} and list(tmp_path.iterdir()) == [out]


KILLED = """
import os, sys
from pathlib import Path
from lgrpo_lite.export.place import placed
if sys.argv[2] == "between":
    real = Path.rename
    Path.rename = lambda self, to: os._exit(9) if to.name == "out" else real(self, to)
with placed(Path(sys.argv[1]), "merged") as partial:
    (partial / "half").write_text("x")
    if sys.argv[2] == "within":
        os._exit(9)
"""


@pytest.mark.parametrize("when", ["within", "between"])
def test_after_a_kill_the_next_export_has_the_earlier_one_and_clears_the_rest(tmp_path, when):
    out = exported(tmp_path / "out")
    assert subprocess.run([sys.executable, "-c", KILLED, out, when]).returncode == 9
    assert list(tmp_path.rglob("model.safetensors"))  # nowhere lost
    with pytest.raises(ValueError), placed(out, "merged") as partial:
        assert list(partial.iterdir()) == []
        raise ValueError
    assert files_of(out)["model.safetensors"] == "old" and list(tmp_path.iterdir()) == [out]


def by_python(folder: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def by_quota(folder: Path) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def by_safetensors(folder: Path) -> None:
    save_file({"w": zeros(3 << 20)}, folder / "model.safetensors")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("write", [by_python, by_quota])
def test_a_full_disk_is_told_as_one_and_nothing_half_is_left(tmp_path, write):
    out = exported(tmp_path / "out")
    with pytest.raises(DiskFault, match="the disk is full") as fault, placed(out, "merged") as partial:
        write(partial)
    assert fault.value.exit_code == 7 and "export again" in fault.value.fix
    assert files_of(out)["model.safetensors"] == "old" and list(tmp_path.iterdir()) == [out]


def test_a_disk_that_fills_under_safetensors_is_told_as_one(small_disk):
    with pytest.raises(DiskFault, match="the disk is full"), placed(small_disk / "out", "merged") as partial:
        by_safetensors(partial)
    assert list(small_disk.iterdir()) == []


def test_a_stamp_tells_kind_checkpoint_and_files(tmp_path):
    sums = tmp_path / "checkpoints" / "step-000002" / "SHA256SUMS"
    sums.parent.mkdir(parents=True)
    sums.write_text("a")
    out = exported(tmp_path / "out")
    assert outdated(out, "merged", tmp_path, "step-000002") == "it does not say what it was made of"
    put_stamp(out, "merged", source_of(tmp_path, "step-000002"))
    assert outdated(out, "merged", tmp_path, "step-000002") is None
    assert "another kind" in str(outdated(out, "gguf", tmp_path, "step-000002"))
    assert "another checkpoint" in str(outdated(out, "merged", tmp_path, "step-000001"))
    (out / "README.md").write_text("a longer card")
    assert outdated(out, "merged", tmp_path, "step-000002") is None
    (out / "model.safetensors").write_text("older")
    assert outdated(out, "merged", tmp_path, "step-000002") == "model.safetensors was changed"
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(sums)
    assert outdated(out, "merged", tmp_path, "step-000002") == "model.safetensors is a link"
    sums.write_text("b")
    assert "another checkpoint" in str(outdated(out, "merged", tmp_path, "step-000002"))


@pytest.mark.parametrize("stamp", ["", "[]", '{"files": 1}', json.dumps({"kind": "merged", "files": {}})])
def test_a_stamp_that_is_none_says_nothing(tmp_path, stamp):
    out = exported(tmp_path / "out")
    (out / STAMP).write_text(stamp)
    assert outdated(out, "merged", tmp_path, "step-000002") == "it does not say what it was made of"
    with pytest.raises(ConfigError, match="no earlier export"):
        exported(out, "new")
