"""Training with a reward that hangs, crashes, eats memory and raises: it goes on, without
those rows, and says how many.
"""

import statistics

import pytest
import torch
from support import tiny_recipe

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
