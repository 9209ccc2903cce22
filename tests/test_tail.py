"""Reading a run folder: at the same cost however long the run, whatever the files hold."""

import dataclasses
import gzip
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.monitor import lines
from lgrpo_lite.monitor.glance import glance
from lgrpo_lite.monitor.health import health, process_start
from lgrpo_lite.monitor.lines import Lines
from lgrpo_lite.monitor.tail import KEPT, Tail, completions, record_of, thinned
from lgrpo_lite.types import StepRecord

JUNK = [b"not json\n", b"[1]\n", b"\xff\xfe\n", b"\n", b'"text"\n', b"[" * 5000 + b"\n"]


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), max_size=30),
    junk=st.lists(st.sampled_from(JUNK), max_size=5),
    cuts=st.lists(st.integers(0, 4000), max_size=8),
)
def test_lines_are_read_once_however_they_are_written(tmp_path_factory, rows, junk, cuts):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    whole = b"".join(
        json.dumps(row).encode() + b"\n" + (junk[i] if i < len(junk) else b"") for i, row in enumerate(rows)
    )
    reader, read = Lines(path), []
    assert reader.read() is None
    path.write_bytes(b"")
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(whole)], strict=True):
        with path.open("ab") as file:
            file.write(whole[begin:end])
        fresh, _ = reader.read() or ([], False)
        read += fresh
    assert read == rows and reader.read() is None


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    filler = "x" * 600
    with path.open("w") as file:
        file.writelines(
            json.dumps({"step": i, "policy_version": i, "filler": filler[: i % 600]}) + "\n"
            for i in range(1, 30_001)
        )
    return path


def test_a_long_file_is_read_at_its_end_and_in_samples(long_file):
    reader = Lines(long_file)
    recent, anew = reader.read()
    steps = [row["step"] for row in recent]
    assert anew and steps == list(range(steps[0], 30_001)) and len(json.dumps(recent)) < 2 * lines.WHOLE
    old = [row["step"] for row in reader.sparse]
    assert old[0] == 1 and old == sorted(set(old)) and old[-1] < steps[0]
    middle = [step for step in old if step > 1000]
    assert len(middle) > lines.SAMPLES / 2 and max(b - a for a, b in itertools.pairwise(middle)) < 300
    assert [row["step"] for row in Lines(long_file, whole=True).read()[0]] == list(range(1, 30_001))


def test_reading_a_long_file_reads_few_bytes(long_file, tmp_path):
    def read(path: Path) -> int:
        before = _rchar()
        Lines(path).read()
        return _rchar() - before

    short = tmp_path / "short.jsonl"
    with long_file.open("rb") as file:
        short.write_bytes(file.read(lines.WHOLE))
    longest = tmp_path / "longest.jsonl"
    longest.write_bytes(long_file.read_bytes() * 4)
    assert read(longest) < 2 * read(short) < longest.stat().st_size / 4


def _rchar() -> int:
    return int(
        next(
            line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")
        ).split()[1]
    )


@pytest.mark.parametrize("kept", [KEPT, 256])
def test_a_view_left_open_forgets_old_steps_but_not_their_shape(tmp_path, kept):
    tail = Tail(tmp_path, kept=kept)
    path, step = tmp_path / "metrics.jsonl", 0
    for _ in range(6):
        with path.open("a") as file:
            for _ in range(kept // 2):
                step += 1
                file.write(json.dumps({"step": step, "policy_version": step, "reward": step / 1e5}) + "\n")
        view = tail.refresh()
    assert len(view.records) <= 2 * kept and view.step == step
    assert [r.step for r in view.records] == list(range(view.records[0].step, step + 1))
    assert view.sparse and view.sparse[-1].step < view.records[0].step
    series = [v for v in view.series("reward") if v is not None]
    assert series == sorted(series) and len(series) <= KEPT


@given(count=st.integers(0, 300), most=st.integers(1, 50))
def test_thinning_keeps_order_and_the_last(count, most):
    records = [StepRecord(i, i) for i in range(count)]
    kept = [r.step for r in thinned(records, most)]
    assert kept == sorted(set(kept)) and len(kept) == min(count, most)
    assert not count or kept[-1] == count - 1


BAD = [None, "x", [], {}, {"a": "b"}, True, float("1e999")]


@given(
    st.fixed_dictionaries({}, optional={f.name: st.sampled_from(BAD) for f in dataclasses.fields(StepRecord)})
)
def test_a_foreign_line_is_a_step_with_usable_fields_or_none(row):
    record = record_of({"step": 1, "policy_version": 1} | row)
    if record is not None:
        json.dumps(
            [
                sum(record.seconds.values()),
                sum(record.reward_parts.values()),
                record.step + 1,
                record.missing + 1,
            ]
        )
        assert all(
            isinstance(getattr(record, n), float | int | None)
            for n in ("reward", "loss", "length_lambda", "kl", "time")
        )


# ------------------------------------------------------------------------------------------- is it alive


def _status(**more):
    mine = {"state": "training", "pid": os.getpid(), "began": process_start(os.getpid()), "host": socket.gethostname(),
            "heartbeat": 1000.0, "moved": 1000.0, "resume": "lgrpo-lite recipe x --name y --resume auto"}  # fmt: skip
    return mine | more


def _gone() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HEALTH = [
    ({}, 1000, None, "starting"),
    (_status(), 1000.5, 1.0, "live"),
    (
        _status(phase="rollout"),
        1059,
        1.0,
        "silent",
    ),  # its heartbeat is a thread's own: none for a minute is no slow step
    (_status(heartbeat=1200.0), 1200, 10.0, "stuck"),
    (_status(heartbeat=1200.0), 1200, 100.0, "live"),
    (_status(host="elsewhere", pid=1), 1002, 1.0, "live"),
    (_status(host="elsewhere", pid=1), 1005, 1.0, "silent"),
    (_status(pid=_gone()), 1000, 1.0, "killed"),
    (_status(began=5.0), 1000, 1.0, "killed"),  # another process has its number now
    (_status(pid="foreign"), 1000, 1.0, "killed"),
    (_status(pid=2**70), 1000, 1.0, "killed"),
    (_status(state="done", pid=1), 9000, 1.0, "done"),
    (_status(state="stopped", exit_code=130), 9000, 1.0, "stopped"),
    (_status(state="failed", exit_code=4), 9000, 1.0, "failed"),
    (_status(state=["foreign"], heartbeat="x", moved=None), 1000, None, "live"),
]


@pytest.mark.parametrize(("status", "now", "step_seconds", "state"), HEALTH)
def test_health(tmp_path, status, now, step_seconds, state):
    found = health(status, tmp_path, now, step_seconds)
    assert found.state == state
    assert bool(found.why) == (state not in ("starting", "live", "done"))
    assert bool(found.resume) == (state not in ("starting", "live", "done"))


def test_where_a_clock_is_set_a_process_began_when_it_began():
    """As the kernel counts it, in ticks after its own start."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert process_start(os.getpid()) == pytest.approx(int(fields[19]) / os.sysconf("SC_CLK_TCK"), abs=1.5)


def test_a_run_of_before_wrote_when_its_process_began_as_a_unix_time(tmp_path):
    status = _status(began=psutil.Process().create_time())
    assert health(status, tmp_path, status["heartbeat"], 1.0).state == "live"


def test_completions_with_any_byte_flipped_are_read_or_not_there(tmp_path):
    rows = "".join(json.dumps({"prompt": "p", "group": 0, "text": "t" * n}) + "\n" for n in range(20))
    whole = gzip.compress(rows.encode())
    path = tmp_path / "step-000001.jsonl.gz"
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        completions(path)


@pytest.mark.parametrize(
    "name",
    [
        "STATUS.json",
        "config.resolved.yaml",
        "metrics.jsonl",
        "events.jsonl",
        "completions/step-000001.jsonl.gz",
    ],
)
def test_a_pipe_for_a_file_of_a_run_is_not_waited_for(tmp_path, name):
    """Nor is a device without an end read: what is no file is not there."""

    def waited(*_):
        pytest.fail(f"{name} is waited for")

    record = dataclasses.asdict(StepRecord(1, 1))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "completions").mkdir()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(5)
    try:
        assert Tail(tmp_path).refresh().samples == []
        glance(tmp_path)
        assert RunFolder(tmp_path).status == {} and RunFolder(tmp_path).rows("events.jsonl") == []
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_killed_process_is_noticed_before_its_parent_buries_it(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    status = _status(pid=process.pid, began=process_start(process.pid))
    assert health(status, tmp_path, 1000, None).state == "live"
    process.kill()
    deadline = time.monotonic() + 30
    while health(status, tmp_path, 1000, None).state == "live" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert health(status, tmp_path, 1000, None).state == "killed"  # a zombie: nobody has waited for it
    process.wait()
