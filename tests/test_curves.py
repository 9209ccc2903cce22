"""Training curves of several runs side by side: what is compared, what is told, what is drawn."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import RECIPE, evaluation, lines, record, written
from support import lgrpo

from lgrpo_lite.monitor import plots
from lgrpo_lite.monitor.curves import best_row, differing, held_out, outcomes, points
from lgrpo_lite.monitor.tail import Tail
from lgrpo_lite.types import StepRecord

TRACE = RECIPE.replace(
    "use: length_preference, reduce: group_token_mean", "use: trace, trace: {lambda: 0.99}"
).replace("0.001", "0.01")


def view(path, **more):
    return Tail(written(path, **more), whole=True).refresh()


@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=300),
    most=st.integers(1, 100),
)
def test_a_curve_has_at_most_so_many_points_and_ends_where_the_run_ends(values, most):
    records = [StepRecord(i + 1, i + 1, reward=value) for i, value in enumerate(values)]
    known = [(r.step, r.reward) for r in records if r.reward is not None and r.reward == r.reward]
    found = points(records, lambda r: r.reward, most)
    assert len(found) == min(most, len(known))
    if known:
        assert found[-1][0] == known[-1][0] and [step for step, _ in found] == sorted(
            {step for step, _ in found}
        )
        assert (
            min(v for _, v in known) - 1e-3
            <= min(v for _, v in found)
            <= max(v for _, v in found)
            <= max(v for _, v in known) + 1e-3
        )


def test_what_a_run_came_to(tmp_path):
    """Mean over the last tenth of the steps; hours of steps and evaluations; λ at the end."""
    rows = [
        record(i, skipped="no signal" if i < 3 else None, length_lambda=None if i == 20 else 0.01 * i)
        for i in range(1, 21)
    ]
    path = written(tmp_path / "one", evals=[(0, 0.4), (10, 0.8), (20, 0.8)])
    lines(path / "metrics.jsonl", rows)
    [found] = outcomes([Tail(path, whole=True).refresh()])
    assert (
        found.reward == pytest.approx(0.195)
        and found.length == pytest.approx(39.5)
        and found.tokens == 20_000
    )
    assert found.hours == pytest.approx((20 * 1.0 + 3 * 3.0) / 3600)
    assert (found.best.value, found.best.step, found.skipped) == (
        0.8,
        10,
        2,
    ) and found.length_lambda == pytest.approx(0.19)
    assert found.settings == {}


@pytest.mark.parametrize(
    ("rows", "metric", "best"),
    [
        ([], "avg", None),
        ([evaluation(0, 0.4)], "maj", None),
        ([evaluation(0, 0.4, greedy=0.9), evaluation(5, 0.6, greedy=0.7)], "greedy", (0.9, 0)),
        (
            [evaluation(0, 0.4), {"step": 3, "accuracy": "high"}, {"accuracy": 1.0}, evaluation(5, 0.3)],
            "avg",
            (0.4, 0),
        ),
    ],
)
def test_the_best_evaluation(rows, metric, best):
    found = best_row(rows, metric)
    assert (found and (found.value, found.step)) == best


def test_settings_that_differ():
    """Those of any of the runs, and not what changes no curve."""
    one = {
        "seed": 0,
        "recipe": {"name": "a"},
        "log": {"wandb": True},
        "rewards": [{"use": "math", "weight": 1.0}],
        "same": [1, 2],
    }
    two = {
        "seed": 1,
        "recipe": {"name": "b"},
        "log": {},
        "rewards": [{"use": "math", "weight": 0.5}],
        "same": [1, 2],
    }
    assert differing([one, two]) == [
        {"rewards.0.weight": 1.0, "seed": 0},
        {"rewards.0.weight": 0.5, "seed": 1},
    ]
    assert differing([one, one]) == [{}, {}] and differing([one, {}])[1]["seed"] is None


def test_intervals_of_evaluations(tmp_path):
    run = view(tmp_path / "one", evals=[(0, 0.5), (12, 0.7)])
    run.evals[1]["intervals"] = {"accuracy": "wide"}
    assert held_out(run) == [(0, 0.5, pytest.approx(0.45), pytest.approx(0.55)), (12, 0.7, 0.7, 0.7)]


def test_three_runs(tmp_path, capfd):
    """Table, settings, sparklines and files; the same picture twice."""
    written(tmp_path / "a")
    written(tmp_path / "b", recipe=TRACE, evals=[(0, 0.4), (12, 0.6)])
    written(tmp_path / "c", steps=0, evals=())
    argv = ["compare", "a", "b", tmp_path / "c", "--runs", tmp_path]
    assert lgrpo(*argv, "--out", tmp_path / "out") == 0
    got = capfd.readouterr()
    for words in ("3 runs", "avg 0.900 at step 12", "avg 0.600 at step 12", "12 of 40", "that differ", "optim.lr", "0.01",
                  "held-out avg@k", "▁", "█", "+0.1200", "curves.png"):  # fmt: skip
        assert words in got.out, words
    assert f"{tmp_path / 'c'} has no step yet" in got.err and "\x1b" not in got.out
    picture = (tmp_path / "out" / "curves.svg").read_text()
    assert "<svg" in picture and (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert lgrpo(*argv, "--out", tmp_path / "again", "--json") == 0
    reply = json.loads(capfd.readouterr().out)
    assert (tmp_path / "again" / "curves.svg").read_text() == picture
    a, b, c = reply["result"]["runs"]
    assert a["curves"]["reward"][-1] == [12, 0.12] and c["curves"]["reward"] == [] and len(b["held_out"]) == 2
    assert b["settings"]["algorithm.use"] == "trace" and reply["result"]["evaluations"] is None
    assert json.loads((tmp_path / "out" / "curves.json").read_text())["runs"] == [a, b, c]


def test_equal_settings_and_equal_names(tmp_path, capfd):
    written(tmp_path / "here" / "run")
    written(tmp_path / "there" / "run")
    assert lgrpo("compare", tmp_path / "here" / "run", tmp_path / "there" / "run", "--json") == 0
    assert {row["name"] for row in json.loads(capfd.readouterr().out)["result"]["runs"]} == {
        str(tmp_path / place / "run") for place in ("here", "there")
    }
    assert lgrpo("compare", tmp_path / "here" / "run", tmp_path / "there" / "run") == 0
    assert "They have the same settings." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a"], "two or more runs"),
        (["a", "b", "a"], "a run and itself"),
        (["a", "nobody"], "no run 'nobody'"),
        (["a", "b", "--out", "/dev/null/x"], "cannot write"),
    ],
)
def test_what_cannot_be_compared(tmp_path, capfd, argv, words):
    for name in "ab":
        written(tmp_path / name)
    assert lgrpo("compare", *argv, "--runs", tmp_path) == 2
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["config.resolved.yaml", "STATUS.json", "metrics.jsonl", "evals.jsonl", "events.jsonl"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"{",
        b"[]",
        b"1\n",
        b'{"step": "x", "accuracy": NaN}\n',
        b"seed: .nan\ntrain: 3\nwhen: 2020-01-01\n",
    ],
)
def test_foreign_files_are_survived(tmp_path, capfd, name, content):
    for run in "ab":
        written(tmp_path / run)
    (tmp_path / "a" / name).write_bytes(content)
    if name == "STATUS.json":
        assert lgrpo("compare", tmp_path / "a", tmp_path / "b") == 0
    assert lgrpo("compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    json.loads(capfd.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)


def test_a_result_that_cannot_be_read_is_told(tmp_path, capfd):
    for name in "ab":
        (written(tmp_path / name) / "evals" / "x").mkdir(parents=True)
        (tmp_path / name / "evals" / "x" / "result.json").write_text("{")
    assert lgrpo("compare", tmp_path / "a", tmp_path / "b") == 0
    assert "Their evaluations are not compared" in capfd.readouterr().out


def test_a_long_run_is_drawn_by_so_many_points(tmp_path):
    """No more than 2000 a curve, so a picture of any run has a size."""
    run = view(tmp_path / "one")
    run.records = [
        StepRecord(i, i, reward=0.5, length=1.0, groups=2, groups_mixed=1) for i in range(1, 30_001)
    ]
    [file] = plots.plot_run(run, tmp_path)
    assert file.stat().st_size < 600_000
