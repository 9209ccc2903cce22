"""The attack as a tool, in short: kills at random moments and changes of files, a look at memory, and that both
would see a fault.
"""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from attack import chaos, soak
from attack.left import differing, left

ROOT = Path(__file__).parents[1]


def attack(name: str, *options: str, out: Path) -> tuple[int, dict, str]:
    argv = [sys.executable, "-m", f"tests.attack.{name}", *options, "--out", str(out)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_runs_that_are_killed_end_with_the_bytes_of_those_that_are_not(tmp_path):
    chosen = "length_preference,trace"
    code, report, said = attack(
        "chaos", "--kills", "8", "--jobs", "1", "--algorithms", chosen, out=tmp_path / "o"
    )
    assert code == 0, said
    assert report["kills"] >= 8 and not report["faults"]


@pytest.mark.slow
def test_a_run_is_looked_at_from_outside(tmp_path):
    code, report, said = attack("soak", "--hours", "0.03", out=tmp_path / "o")
    assert report["exit_code"] == 130 and report["left_behind"] == [], said
    assert report["run"]["done"] > 2 and report["workers"]["done"] > 200
    # two minutes are a warm-up, so whether it grows is for hours to say; the verdict is what the report says
    holders = report["run"], report["workers"]
    sound = all(holder["memory_is_flat"] and holder["rest_is_flat"] for holder in holders)
    assert code == (0 if sound else 1), said


# ------------------------------------------------------------------------------------------- would it see a fault?


def folder(path: Path) -> Path:
    """A small run folder, by hand."""
    (path / "checkpoints" / "step-000002").mkdir(parents=True)
    (path / "checkpoints" / "step-000002" / "trainer.pt").write_bytes(b"state")
    (path / "checkpoints" / "latest").symlink_to("step-000002")
    (path / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0}\n{"step": 2, "seconds": 1.0}\n')
    (path / "STATUS.json").write_text('{"state": "done", "step": 2, "exit_code": 0, "heartbeat": 7}')
    (path / "logs").mkdir()
    return path


CHANGES = {
    "nothing": (lambda path: None, []),
    "a time": (
        lambda path: (path / "metrics.jsonl").write_text('{"step": 1, "seconds": 9}\n{"step": 2, "seconds": 9}\n'),
        [],
    ),
    "a log": (lambda path: (path / "logs" / "more").write_text("x"), []),
    "a random state": (
        lambda path: (path / "checkpoints" / "step-000002" / "trainer.pt").write_bytes(b"other"),
        ["checkpoints/step-000002/trainer.pt"],
    ),
    "a link that is gone": (lambda path: (path / "checkpoints" / "latest").unlink(), ["checkpoints/latest"]),
    "a row that is lost": (lambda path: (path / "metrics.jsonl").write_text('{"step": 2}\n'), ["metrics.jsonl"]),
    "a leftover": (lambda path: (path / "checkpoints" / ".latest.new").write_text(""), ["checkpoints/.latest.new"]),
    "a status": (lambda path: (path / "STATUS.json").write_text('{"state": "saving"}'), ["STATUS.json"]),
}  # fmt: skip


@pytest.mark.parametrize(("change", "names"), CHANGES.values(), ids=CHANGES)
def test_what_differs_between_two_run_folders_is_named(tmp_path, change, names):
    whole = left(folder(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "other", symlinks=True)
    change(tmp_path / "other")
    assert differing(whole, left(tmp_path / "other")) == names


def test_kills_are_drawn_inside_the_phase_that_they_are_for():
    spans = {"saving": [(0.2, 21), (0.1, 0)], "update": [(1.0, 5)]}
    for seed in range(200):
        draw = random.Random(seed)
        phase, number, kind, amount = chaos.drawn(draw, draw.choice(["saving", "update"]), spans)
        seconds, changes = spans[phase][number]
        most = changes if kind == "changes" else seconds
        assert 0 <= amount <= most and (kind == "seconds" or amount >= 1)


@pytest.mark.parametrize(
    ("kb", "flat"),
    [(0.0, True), (-5.0, True), (45.0, False), (5.0, False)],
    ids=["steady", "shrinking", "45 kB a step", "5 kB a step"],
)
def test_memory_that_grows_with_the_steps_is_seen_in_its_noise(kb, flat):
    draw = np.random.default_rng(0)
    rows = []
    for step in range(0, 6000, 10):
        noise = draw.normal(0, 2)  # MB
        rows.append(
            {"done": step, "private_mb": 500 + kb * step / 1000 + noise} | dict.fromkeys(soak.FLAT, 9)
        )
    seen = soak.judged(rows, "step")
    low, _, high = seen["kb_per_unit"]
    assert seen["memory_is_flat"] == flat
    assert low <= kb <= high
    assert seen["rest_is_flat"]


def test_a_descriptor_that_leaks_is_seen():
    rows = []
    for step in range(400):
        rows.append(
            {"done": step, "private_mb": 500.0}
            | dict.fromkeys(soak.FLAT, 9)
            | {"descriptors": 9 + step // 40}
        )
    assert not soak.judged(rows, "step")["rest_is_flat"]
