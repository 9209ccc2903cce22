"""The view is a pure function of a run's files, and no file can break it."""

import dataclasses
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, sparkline, step_line, visible
from lgrpo_lite.monitor.view import lambda_path, live, result_table
from lgrpo_lite.types import StepRecord

RECORD = StepRecord(
    step=1, policy_version=1, reward=0.531, reward_std=0.38, reward_parts={"numeric": 0.53}, solved=0.53, groups=16,
    groups_mixed=11, groups_right=2, groups_wrong=3, draws=1, length=31.2, length_right=36.0, length_wrong=22.5, truncated=0.03,
    loss=0.01, grad_norm=0.21, lr=1e-3, clip_low=0.001, clip_high=0.002, entropy=0.31, disagreement=2e-7, length_lambda=0.42,
    length_lambda_grad=-0.02, weight_short=0.95, weight_median=1.0, weight_long=1.07, length_lambda_grpo=-2.1,
    rollout_tokens=4000, trained_tokens=3000, seconds={"rollout": 0.8, "update": 0.4},
)  # fmt: skip
RECIPE = """
recipe: {name: tiny-math}
train: {steps: 40}
model: {id: builtin:tiny-math, weights: fp32}
algorithm: {use: length_preference, reduce: group_token_mean}
"""
EVAL = {"step": 0, "problems": 256, "k": 4, "temperature": 1.0, "accuracy": 0.45, "stderr": 0.01, "greedy": 0.3, "length": 22.0,
        "truncated": 0.0, "missing": 0}  # fmt: skip
SIZES = [(80, 24), (120, 40), (200, 60), (60, 12), (40, 10), (20, 5), (1, 1)]


def folder(path: Path, steps: int = 12) -> Path:
    (path / "completions").mkdir()
    (path / "config.resolved.yaml").write_text(RECIPE)
    (path / "STATUS.json").write_text(json.dumps({"state": "training", "step": steps}))
    rows = [
        dataclasses.asdict(dataclasses.replace(RECORD, step=i, length_lambda=0.01 * i))
        for i in range(1, steps + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "evals.jsonl").write_text(
        json.dumps(EVAL) + "\n" + json.dumps(EVAL | {"step": 12, "accuracy": 0.9}) + "\n"
    )
    (path / "events.jsonl").write_text(json.dumps({"kind": "warning", "message": "a warning"}) + "\n")
    with gzip.open(path / "completions" / "step-000012.jsonl.gz", "wt") as file:
        sample = {
            "prompt": "47+36=?",
            "completion": "\x1b[2J evil \x07\u202e\n#### 83",
            "reference": "83",
            "outcome": "ok",
        }
        file.write(json.dumps(sample) + "\n")
    return path


def render(view: RunView, width: int, height: int) -> str:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    console.print(live(view, width, height))
    return console.file.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("part", ["all", "nothing", "trace"])
def test_fits_any_terminal(tmp_path, size, part):
    view = Tail(folder(tmp_path)).refresh() if part != "nothing" else Tail(tmp_path).refresh()
    if part == "trace":
        view.recipe["algorithm"] = {
            "use": "trace",
            "trace": {"lambda": 0.99, "gamma": 1.0, "style": "both", "mode": "trace"},
        }
        view.records = [dataclasses.replace(r, length_lambda=None) for r in view.records]
    text = render(view, *size)
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    if size[0] >= 60:
        assert len(text.splitlines()) <= size[1]


def test_shows_what_matters(tmp_path):
    text = render(Tail(folder(tmp_path)).refresh(), 120, 40)
    for words in ("tiny-math", "λ-GRPO arXiv:2510.06870", "step 12/40", "0.531 ± 0.38", "+0.1200", "mixed 11", "0.450 → 0.900",
                  "short", "truncated       3.0%", "47+36=?", "! a warning"):  # fmt: skip
        assert words in text, words


def test_the_plain_line_is_greppable():
    line = step_line(RECORD, 40, 61)
    assert line == (
        "step 1/40 | 1.2s | reward 0.531±0.38 | signal 11/16 | len 31 (trunc 3%) | λ +0.4200 | clip 0.3% | Δlogp 2.0e-07 | "
        "H 0.310 | gn 0.210 | roll 5,000 tok/s | eta 1m01s"
    )
    assert "skipped: loss is nan" in step_line(StepRecord(3, 2, skipped="loss is nan"), 40, None)


def test_before_and_after(tmp_path):
    view = Tail(folder(tmp_path)).refresh()
    console = Console(width=120, file=io.StringIO())
    console.print(result_table(view))
    assert "0.450 ± 0.010" in console.file.getvalue() and "+0.450" in console.file.getvalue()
    assert lambda_path(view).endswith("+0.120")
    assert lambda_path(RunView(tmp_path)) == ""


def test_half_written_and_foreign_lines_are_passed_over(tmp_path):
    path = folder(tmp_path, steps=2)
    tail = Tail(path)
    assert len(tail.refresh().records) == 2
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "policy_')
        file.flush()
        assert len(tail.refresh().records) == 2
        file.write(
            'version": 3}\nnot json\n[1]\n{"foreign": 1}\n{"step": 4, "policy_version": 4, "of_a_later_version": 1}\n'
        )
    assert [r.step for r in tail.refresh().records] == [1, 2, 3, 4]


def test_a_rewound_run_is_read_anew(tmp_path):
    path = folder(tmp_path, steps=5)
    tail = Tail(path)
    assert len(tail.refresh().records) == 5
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "fresh").write_text("".join(lines[:3]))
    (path / "fresh").replace(path / "metrics.jsonl")
    assert len(tail.refresh().records) == 3
    (path / "fresh").write_text("")
    (path / "fresh").replace(path / "metrics.jsonl")
    assert tail.refresh().records == []


@pytest.mark.parametrize(
    "name", ["config.resolved.yaml", "STATUS.json", "metrics.jsonl", "evals.jsonl", "events.jsonl"]
)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"[]", b"null\n", b"1\n"])
def test_foreign_files_are_survived(tmp_path, name, content):
    path = folder(tmp_path)
    (path / name).write_bytes(content)
    render(Tail(path).refresh(), 100, 30)


@given(text=st.text())
def test_no_text_moves_the_cursor(text):
    shown = visible(text)
    assert all(c == "\n" or (c.isprintable() and c != "\x7f") for c in shown)


@given(values=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=300), width=st.integers(0, 50))
def test_sparklines_fit(values, width):
    assert len(sparkline(values, width)) <= max(0, width)


@pytest.mark.parametrize(("seconds", "text"), [(None, "?"), (5.7, "5s"), (200, "3m20s"), (3900, "1h05m")])
def test_durations(seconds, text):
    assert duration(seconds) == text
