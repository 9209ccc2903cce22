"""report.md: what it tells of a real run, and that no file in a run folder stops training.
And what a run settled by itself.
"""

import gc
import json
import os

import pytest
from run_folders import evaluation, lines, record, written
from support import lgrpo, tiny_recipe

from lgrpo_lite.folder.report import write_report
from lgrpo_lite.monitor import plots

SMALL = [
    "train.steps=4", "train.eval_every=2", "data.eval.limit=32", "eval.k=2", "rollout.prompts_per_step=4", "rollout.group_size=8",
    "export.formats=[adapter]", "safety.sync_proof_every=0", "safety.baseline_check=false", "memory.layout=auto",
]  # fmt: skip
HEADINGS = ["Before and after", "Curves", "Where the time went", "What was trained, and where", "Checkpoints", "Chosen automatically", "Settings that matter",
            "How to go on"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", runs, "--name", "one", "--ui", "none") == 0
    return runs / "one"


def told(path) -> str:
    write_report(path)
    return (path / "report.md").read_text()


def test_a_real_run_explains_itself(trained):
    report = told(trained)
    assert [line[3:] for line in report.splitlines() if line.startswith("## ")] == HEADINGS
    for words in (
        "# one\n", "λ-GRPO (arXiv:2510.06870)", "4 of 4 steps", "The run is done.", "| accuracy, 32 problems × 2 samples",
        "In brackets: 95 %", "](report.svg)", "λ ▁", "| rollout |", "| evaluations |", "tokens sampled in 4 steps",
        "best evaluation by `train.keep.metric=avg`", "newest checkpoint: `checkpoints/step-000004`", "`memory.layout`",
        "`algorithm.reduce` | group_token_mean", f"lgrpo-lite export {trained} merged",
    ):  # fmt: skip
        assert words in report, words
    assert "could not be made" not in report and "go on with it" not in report
    picture = (trained / "report.svg").read_text()
    assert all(
        words in picture
        for words in ("reward", "groups with a signal", "λ", "held-out problems", "share of the credit")
    )


def test_the_report_was_there_before_the_end(trained):
    """Each evaluation rewrites it; the last one of training is followed by one of the finished run."""
    assert (trained / "report.md").exists() and (trained / "report.svg").exists()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            {"state": "failed", "exit_code": 5, "resume": "lgrpo-lite train x.yaml --resume auto"},
            ["The run failed. Failed, exit 5.", "# go on with it\nlgrpo-lite train x.yaml --resume auto\n"],
        ),
        ({"state": "stopped", "exit_code": 130}, ["The run was stopped. Stopped by Ctrl-C."]),
        ({"state": "training", "pid": 2**22 + 1}, ["The run was killed.", "gone without a word"]),
        ({"state": "training", "pid": os.getpid()}, ["The run is alive (training)", "lgrpo-lite watch"]),
        (
            {"alarms": [{"name": "no_signal", "count": 7, "first": 3, "last": 12, "what": "nothing new", "fix": "other data"}]},
            ["**no_signal**, 7 times from step 3 to 12: nothing new. What to do: other data. See `docs/failures.md#no_signal`"],
        ),
        ({"alarms": "many"}, ["The run is done."]),
    ],
)  # fmt: skip
def test_state_and_alarms(tmp_path, status, words):
    report = told(written(tmp_path / "run", **status))
    assert all(w in report for w in words), report
    assert "- a warning" in report


def test_one_evaluation_is_no_comparison(tmp_path):
    report = told(written(tmp_path / "run", evals=[(0, 0.4)]))
    assert "|  | before |\n" in report and "after |" not in report


def test_what_was_chosen_is_that_of_the_last_attempt(tmp_path):
    path = written(tmp_path / "run")
    rows = [
        {"kind": "chosen", "attempt": i, "key": "memory.layout", "value": f"a|{i}", "why": "w\nx"}
        for i in (1, 2)
    ]
    lines(path / "events.jsonl", rows)
    report = told(path)
    assert "| `memory.layout` | a&#124;2 | w x |" in report and "a&#124;1" not in report


def test_equal_warnings_are_counted(tmp_path):
    path = written(tmp_path / "run")
    rows = [{"kind": "warning", "message": f"<b>{i}"} for i in range(30)]
    lines(path / "events.jsonl", [*rows, *[{"kind": "step_refused", "step": 1, "reason": "loss is nan"}] * 3])
    report = told(path)
    assert (
        "- loss is nan (3 times)" in report
        and "- and 11 others" in report
        and "&lt;b>29" in report
        and "<b>" not in report
    )


def test_sums_of_a_long_run_say_what_they_are_over(tmp_path):
    path = written(tmp_path / "run", recipe="train: {steps: 9000}")
    lines(path / "metrics.jsonl", [record(i) for i in range(1, 9001)])
    report = told(path)
    assert "tokens sampled in the last " in report and "9,000 of 9,000 steps" in report


@pytest.mark.parametrize(
    "name", ["config.resolved.yaml", "STATUS.json", "metrics.jsonl", "evals.jsonl", "events.jsonl"]
)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"{", b"[]", b"1\n", b'{"kind": "chosen"}\n{"kind": "warning"}\n{"kind": [1]}\n',
     b'{"step": null, "accuracy": 1.0, "problems": "x", "k": [], "intervals": 3, "seconds": "y", "attempt": {}}\n',
     b"train: [1]\nmodel: 3\nalgorithm: {use: [grpo]}\nrewards: [1, {use: 2}]\nrecipe: {name: {a: 1}}\n"],
)  # fmt: skip
def test_foreign_files_are_survived(tmp_path, monkeypatch, name, content):
    # drawing the same twelve steps 40 times tells nothing
    monkeypatch.setattr(plots, "available", lambda: False)
    path = written(tmp_path / "run")
    (path / name).write_bytes(content)
    assert "## How to go on" in told(path) and "could not be made" not in told(path)


@pytest.mark.parametrize(
    "rows",
    [[{}], [evaluation(0, 0.4), evaluation(12, 0.9) | {"step": "x"}], [evaluation(0, float("nan"))] * 2],
)
def test_odd_evaluations_are_drawn_or_left_out(tmp_path, rows):
    path = written(tmp_path / "run")
    lines(path / "evals.jsonl", rows)
    assert "](report.svg)" in told(path)


def test_a_picture_that_cannot_be_written_is_told(tmp_path, capfd):
    path = written(tmp_path / "run")
    (path / "report.svg").mkdir()
    assert "no plots: IsADirectoryError" in told(path)


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path):
    path = written(tmp_path / "run")
    (path / "report.md").mkdir()
    write_report(path)
    write_report(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------- what a run settled


def settled(*overrides: str) -> dict[str, tuple[str, str]]:
    """Each key with its value and the reason."""
    from lgrpo_lite.folder.chosen import chosen
    from lgrpo_lite.train.build import build

    run = build(tiny_recipe("data.eval=[]", *overrides))
    try:
        return {one.key: (one.value, one.why) for one in chosen(run)}
    finally:
        run.reward.close()


def test_everything_that_was_left_to_the_program():
    found = settled("rollout.engine=auto", "model.threads=null", "rewards.0.use=math")
    assert list(found) == ["model.threads", "rollout.engine", "algorithm", "safety.reward_workers", "memory.layout",
                           "memory.logprob_chunk", "memory.checkpointing", "export.base"]  # fmt: skip
    assert int(found["model.threads"][0]) >= 1 and int(found["safety.reward_workers"][0]) >= 1
    assert found["rollout.engine"] == ("transformers", found["rollout.engine"][1])
    assert found["rollout.engine"][1].startswith("vllm cannot run it here: ")
    assert (
        "reduce=group_token_mean" in found["algorithm"][0]
        and "length_preference.r=0.1111" in found["algorithm"][0]
    )
    assert found["memory.layout"][0].startswith("rows") and "MiB" in found["memory.logprob_chunk"][0]
    assert found["memory.checkpointing"][0].endswith("of 3 layers recomputed")
    assert found["export.base"][0] == "original" and all(why for _, why in found.values())


def test_nothing_that_the_recipe_sets():
    set_ = ["model.threads=1", "rollout.engine=transformers", "safety.reward_workers=1", "memory.layout=rows",
            "export.formats=[]", "memory.logprob_chunk=64", "memory.checkpointing=true", "algorithm.use=cispo"]  # fmt: skip
    assert settled(*set_, "algorithm.surrogate=cispo", "algorithm.reduce=token_mean") == {}
    assert settled(*set_, "algorithm.reduce=token_mean") == {
        "algorithm": ("surrogate=cispo", "that is what cispo stands for; any of them can be set")
    }


def test_a_run_tells_what_it_chose(trained):
    events = [json.loads(line) for line in (trained / "events.jsonl").read_text().splitlines()]
    assert {e["key"] for e in events if e["kind"] == "chosen"} >= {
        "algorithm",
        "memory.layout",
        "memory.checkpointing",
    }


def test_a_report_leaves_no_garbage_to_the_trainer(tmp_path):
    """Figures are cycles: in a process with half a million objects the collector comes by once in seven reports."""
    path = written(tmp_path / "run")
    write_report(path)
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(3):
            write_report(path)
        assert len(gc.get_objects()) - before < 2000  # a figure has 17,000
    finally:
        gc.enable()
