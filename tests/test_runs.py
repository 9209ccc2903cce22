"""`lgrpo-lite runs`: every run of a folder in one line, whatever state it is in and whatever else lies there."""

import json
import os
import threading
import time

import pytest
from run_folders import lines, record, written
from support import lgrpo, tiny_recipe

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.folder.opening import changes
from lgrpo_lite.folder.report import write_report
from lgrpo_lite.monitor.glance import END, glance, is_run

NOBODY = 2**22 + 1  # no process has this number


def table(capfd) -> dict[str, str]:
    """The table's lines by their first word."""
    return {line.split()[0]: line for line in capfd.readouterr().out.splitlines()[1:]}


def test_the_table(tmp_path, capfd):
    """Newest first; state, best evaluation (of equals the first) and its step, last reward, age, alarms."""
    now = time.time()
    written(tmp_path / "done", evals=[(0, 0.4), (6, 0.9), (12, 0.9)], heartbeat=now - 7200)
    alarms = [{"name": "no_signal", "count": 3, "first": 1, "last": 9, "what": "w", "fix": "f"}]
    written(tmp_path / "gone", state="training", pid=NOBODY, heartbeat=now - 600, alarms=alarms)
    written(tmp_path / "new", steps=0, evals=(), state="failed", exit_code=5, heartbeat=now)
    assert lgrpo("runs", "--runs", tmp_path) == 0
    out = table(capfd)
    assert list(out) == ["new", "gone", "done"]
    assert out["done"].split() == ["done", "✓", "done", "12/40", "length_preference", "builtin:tiny-math", "avg", "0.900", "6",
                                   "0.120", "2", "h", "–"]  # fmt: skip
    assert "✗ killed" in out["gone"] and out["gone"].split()[-3:] == ["10", "min", "1"]
    assert "✗ failed" in out["new"] and "0/40" in out["new"]


@pytest.mark.parametrize("command", ["watch", "show"])
def test_the_newest_run_is_looked_at_where_none_is_named(command, tmp_path, capfd):
    assert lgrpo(command, "--runs", tmp_path) == 2
    assert f"no run in {tmp_path}" in capfd.readouterr().err
    for age, name in enumerate(("new", "old")):
        written(tmp_path / name, state="done")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    argv = [command, "--runs", tmp_path]
    more = ["--svg", tmp_path / "view.svg"] if command == "watch" else ["--json"]
    assert lgrpo(*argv, *more) == 0
    said = capfd.readouterr().out
    if command == "watch":
        assert "new" in (tmp_path / "view.svg").read_text("utf-8").split("-title")[-1].split("</text>")[0]
    else:
        assert json.loads(said)["result"]["run"] == f"{tmp_path}/new"
    assert lgrpo(*argv, "new", "old") == 2 and "unexpected word 'old'" in capfd.readouterr().err


def test_as_json(tmp_path, capfd):
    written(
        tmp_path / "one",
        state="training",
        pid=NOBODY,
        resume="lgrpo-lite train x.yaml --name one --resume auto",
    )
    (tmp_path / "notes").mkdir()
    assert lgrpo("runs", "--runs", tmp_path, "--json") == 0
    reply = json.loads(capfd.readouterr().out)
    [row] = reply["result"]["runs"]
    assert row["health"]["state"] == "killed" and row["health"]["resume"].startswith(
        "lgrpo-lite train x.yaml"
    )
    assert (
        row["best"] == {"value": 0.9, "step": 12, "metric": "avg"}
        and row["step"] == 12
        and row["steps"] == 40
    )
    assert reply["warnings"] == [f"{tmp_path / 'notes'} holds no run"]


def test_what_is_no_run_is_passed_over_with_a_word(tmp_path, capfd):
    written(tmp_path / "[red]one")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("x")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    assert lgrpo("runs", "--runs", tmp_path) == 0
    got = capfd.readouterr()
    assert (
        "[red]one" in got.out
        and "notes holds no run" in got.err
        and "hidden" not in got.err
        and "file" not in got.err
    )


@pytest.mark.parametrize("argv", [[], ["extra"], ["--runs", "nowhere"]])
def test_without_runs(tmp_path, capfd, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    code = lgrpo("runs", *argv)
    got = capfd.readouterr()
    assert (
        (code == 0 and "start one: lgrpo-lite recipe tiny-math" in got.out)
        if not argv
        else (code == 2 and "fix" in got.err)
    )


@pytest.mark.parametrize("name", ["config.resolved.yaml", "STATUS.json", "metrics.jsonl", "evals.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        b"null\n",
        b"1\n",
        b'{"step": "x", "reward": {}, "seconds": 1, "alarms": 3}\n',
    ],
)
def test_foreign_files_are_survived(tmp_path, capfd, name, content):
    path = written(tmp_path / "one")
    (path / name).write_bytes(content)
    assert lgrpo("runs", "--runs", tmp_path) == 0
    assert "one" in capfd.readouterr().out
    (path / name).unlink()
    (path / name).mkdir()
    assert lgrpo("runs", "--runs", tmp_path) == 0


def test_only_the_end_of_a_long_run_is_read(tmp_path):
    """64 GiB of a metrics file that nobody could read while one waits; the last line is
    the second one of what is read.
    """
    path = written(tmp_path / "long")
    with (path / "metrics.jsonl").open("r+b") as file:
        file.truncate(2**36)
        file.seek(0, 2)
        file.write(
            b"\n" + json.dumps(record(100_000, reward=0.5)).encode() + b"\n" + b'{"step": 100001, "rew'
        )
    found = glance(path)
    assert (found.step, found.reward) == (100_000, 0.5)


def test_the_first_line_that_is_read_may_be_cut(tmp_path):
    path = written(tmp_path / "one")
    lines(path / "metrics.jsonl", [record(i) for i in range(1, 200)])
    assert (path / "metrics.jsonl").stat().st_size > END
    assert glance(path).step == 199


def test_a_folder_with_one_of_the_files_is_a_run(tmp_path):
    path = written(tmp_path / "one")
    (path / "STATUS.json").unlink()
    assert is_run(path) and glance(path).health.state == "starting" and glance(path).seen > 0
    assert not is_run(tmp_path)


READ = ("STATUS.json", "metrics.jsonl", "evals.jsonl", "events.jsonl", "config.resolved.yaml", "completions/step-000012.jsonl.gz")  # fmt: skip


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name, kind):
    """A pipe would wait for its writer, and a device has no end."""
    path = written(tmp_path / "runs" / "one")
    (path / name).unlink()
    os.mkfifo(path / name) if kind == "a pipe" else (path / name).symlink_to("/dev/zero")
    codes = []

    def look():
        codes.append(lgrpo("runs", "--runs", path.parent))
        codes.append(lgrpo("watch", path, "--svg", tmp_path / "view.svg"))
        codes.append(lgrpo("show", path))
        write_report(path)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(60)
    assert not looking.is_alive() and set(codes) <= {0, 2, 5}


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "evals.jsonl", "events.jsonl"])
def test_a_run_does_not_begin_where_what_it_appends_to_is_no_file(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="not a file") as error:
        RunFolder(tmp_path).open()
    assert error.value.where == str(tmp_path / name)


DEEP = "[" * 600 + "]" * 600
FOREIGN = {
    "deep YAML": ("config.resolved.yaml", "a: " + "[" * 2000),
    "deep YAML that is closed": ("config.resolved.yaml", f"a: {DEEP}"),
    "a list inside itself": ("config.resolved.yaml", "a: &a [*a]"),
    "a deep line": ("metrics.jsonl", '{"step": 2, "seconds": ' + DEEP + "}\n"),
    "a deep evaluation": ("evals.jsonl", '{"step": 0, "accuracy": ' + DEEP + "}\n"),
    "a deep event": ("events.jsonl", '{"kind": "warning", "message": ' + DEEP + "}\n"),
    "half a surrogate pair": ("metrics.jsonl", '{"step": 2, "skipped": "\\ud800"}\n'),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_lines_that_no_run_writes_are_looked_at_and_rewound(tmp_path, case, capfd):
    name, text = FOREIGN[case]
    path = written(tmp_path / "runs" / "one")
    other = written(tmp_path / "other")
    with (path / name).open("w" if name.endswith("yaml") else "a") as file:
        file.write(text)
    looks = [
        ["runs", "--runs", path.parent],
        ["watch", path, "--svg", tmp_path / "view.svg"],
        ["show", path],
        ["compare", path, other, "--json"],
    ]
    for argv in looks:
        assert lgrpo(*argv) == 0, argv
    assert "Traceback" not in capfd.readouterr().err
    write_report(path)
    RunFolder(path).rewind(5, evaluated=True)
    steps = [row["step"] for row in RunFolder(path).rows("metrics.jsonl")]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5]
    try:
        assert changes(path, tiny_recipe())
    except ConfigError as error:
        assert error.where.endswith("config.resolved.yaml")
