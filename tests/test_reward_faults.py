"""Training with a reward that hangs, crashes, eats memory and raises: it goes on, without
those rows, and says how many.
"""

import json
import statistics

import pytest
import torch
from support import lgrpo, tiny_recipe

from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step

USER = """
import ctypes, os, time, zlib

def number(completion):
    return zlib.crc32(completion.encode()) % 14

def value(completion):
    return (number(completion) % 5) / 4

def faulty(completion):
    kind = number(completion)
    if kind == 0:
        time.sleep(1000)
    if kind == 1:
        ctypes.string_at(0)
    if kind == 2:
        kept = []
        while True:
            kept.append(os.urandom(1 << 20) * 32)
    if kind == 3:
        raise RuntimeError("on purpose")
    return value(completion)
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mine.py").write_text(USER)
    overrides = [
        f"rewards.0.use={tmp_path}/mine.py:faulty",
        "rewards.0.extract=final",
        "rewards.0.timeout=3.0",
    ]
    sizes = [
        "rollout.prompts_per_step=8",
        "rollout.group_size=8",
        "safety.reward_memory_gb=0.25",
        "safety.reward_workers=2",
    ]
    built = build(tiny_recipe("model.max_new_tokens=8", *overrides, *sizes))
    yield built
    built.reward.close()


@pytest.mark.slow
def test_training_goes_on_without_the_rows_whose_reward_is_missing(run, monkeypatch):
    space: dict = {}
    exec(USER, space)
    kinds: list[int] = []
    scored = RewardSum.scores

    def watched(self, prompts, completions, *more, **named):
        kinds.extend(space["number"](c.text) for row in completions for c in row)
        return scored(self, prompts, completions, *more, **named)

    monkeypatch.setattr(RewardSum, "scores", watched)
    before = [p.detach().clone() for p in run.policy.trainable()]
    record, groups = train_step(1, run)
    faults = [kinds.count(kind) for kind in range(4)]
    assert all(faults), "the seed samples an answer of every kind"
    rewards = [space["value"](r.completion.text) for g in groups for r in g.rollouts]
    assert [r.reward for g in groups for r in g.rollouts] == rewards
    assert record.missing == sum(faults) == 8 * len(groups) - len(rewards)
    assert record.reward == pytest.approx(statistics.fmean(rewards)) and record.reward_std == pytest.approx(
        statistics.pstdev(rewards)
    )
    assert (record.reward_timeouts, record.reward_crashes, record.reward_errors) == (
        faults[0],
        faults[1],
        faults[2] + faults[3],
    )
    assert record.reward_p50 < 0.5 and record.reward_p95 > record.reward_p50
    assert not any(space["number"](r.completion.text) < 4 for g in groups for r in g.rollouts)
    assert [len(g.rollouts) + g.missing for g in groups] == [8] * len(groups)
    batch = run.objective.batch(groups)
    # advantages and normalisers know of no other rows
    assert batch is not None and batch.num_sequences <= len(rewards)
    assert any(not torch.equal(a, b) for a, b in zip(before, run.policy.trainable(), strict=True))
    record, _ = train_step(2, run)
    assert record.loss is not None


def test_a_group_that_is_missing_as_a_whole_makes_no_update(tmp_path):
    (tmp_path / "mine.py").write_text("def never(completion): raise ValueError\n")
    run = build(tiny_recipe(f"rewards.0.use={tmp_path}/mine.py:never", "rewards.0.extract=final"))
    record, groups = train_step(1, run)
    assert (
        record.skipped and record.missing == record.reward_errors > 0 and not any(g.rollouts for g in groups)
    )
    run.reward.close()


VERIFIER = """
from lgrpo_lite.verifier import verify as verdicts

def breaks(text):
    raise IndexError("on purpose")

def score(completion, reference):
    whole = verdicts.read
    if len(completion) % 2:
        verdicts.read = breaks
    try:
        return verdicts.verify(completion, reference) == "ok"
    finally:
        verdicts.read = whole
"""


def test_an_answer_on_which_the_verifier_fails_is_wrong_and_counted_in_the_step(tmp_path):
    (tmp_path / "mine.py").write_text(VERIFIER)
    small = ("model.max_new_tokens=8", "safety.reward_workers=2")
    run = build(tiny_recipe(f"rewards.0.use={tmp_path}/mine.py:score", "rewards.0.extract=final", *small))
    record, groups = train_step(1, run)
    run.reward.close()
    failed = [r for group in groups for r in group.rollouts if len(r.completion.text) % 2]
    assert record.verifier_faults == len(failed) > 0 and record.missing == 0
    assert {rollout.reward for rollout in failed} == {0.0}


def test_reward_test_counts_answers_on_which_the_verifier_fails(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(VERIFIER)
    cases = [
        {"prediction": "12", "gold": "12", "label": True},
        {"prediction": "123", "gold": "4", "label": False},
        {"prediction": "5", "gold": "4", "label": False},
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cases))
    words = ["reward", "test", f"{tmp_path}/mine.py:score", "--cases", tmp_path / "cases.jsonl"]
    assert lgrpo(*words) == 0
    assert "the math verifier failed on 2 answers, which count as wrong" in capsys.readouterr().out
    assert lgrpo(*words, "--json") == 0
    report = json.loads(capsys.readouterr().out)["result"]["cases"]
    assert (report["verifier_faults"], report["missing"], report["accuracy"]) == (2, 0, 1.0)


@pytest.mark.parametrize(("missing", "lines"), [(0, 2), (3, 2)])
def test_the_view_shows_them_beside_missing_rewards(missing, lines):
    from lgrpo_lite.monitor.panels.learning import missing as panel
    from lgrpo_lite.types import StepRecord

    shown = panel(StepRecord(1, 1, missing=missing, verifier_faults=4))
    assert len(shown) == lines and "verifier failed 4, taken as wrong" in shown[-1].plain
