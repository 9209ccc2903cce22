"""The difficulty pool: what it draws, what it guarantees, that a run which was killed
draws the same, and that it helps.
"""

import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny_recipe

from lgrpo_lite.data.curriculum import PRIOR, DifficultyPool, order_of
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.errors import DataError
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(str(i), "", (i,), "") for i in range(count)]


def pool_of(
    count: int, *, seed: int = 0, rate: float = 0.5, ordered_every: int = 8, rest: int = 0
) -> DifficultyPool:
    return DifficultyPool(prompts_of(count), seed, rate=rate, ordered_every=ordered_every, rest=rest)


def group(prompt: Prompt, rewards: list[float], missing: int = 0) -> Group:
    completion = Completion((0,), None, "", "stop", 0)
    rollouts = (
        Rollout(prompt, completion, Score(2 * r + 0.1, Outcome.ok, {"numeric": r, "format": 0.1}))
        for r in rewards
    )
    return Group(prompt, tuple(rollouts), missing)


@pytest.mark.parametrize(
    ("rewards", "rate", "expected"),
    [
        ([1, 1, 0, 0], 0.5, 0.5),
        ([1, 1, 1, 1], 0.5, 0.75),
        ([0, 0], 0.5, 0.25),
        ([0, 0], 1.0, 0.0),
        ([-1, 3], 1.0, 0.5),  # held to [0, 1]
        ([0.25, 0.75], 1.0, 0.5),
        ([], 0.5, PRIOR),  # every reward is missing
    ],
)
def test_the_solve_rate_is_a_running_mean_of_the_first_reward(rewards, rate, expected):
    pool = pool_of(3, rate=rate)
    pool.observe([group(pool.prompts[1], rewards)])
    assert [pool.rate_of(i) for i in range(3)] == [PRIOR, expected, PRIOR]


def test_weighted_draws_follow_p_times_one_minus_p():
    """Frequencies of 6,000 first draws against w / Σ w; the ordered ones left out."""
    pool = pool_of(5, rate=1.0, ordered_every=10**9)
    pool.draw(1)  # the one ordered draw
    for prompt, p in zip(pool.prompts, (0.5, 0.1, 0.0, 1.0, 0.8), strict=True):
        pool.observe([group(prompt, [p])])
    weights = [0.25, 0.09, 0.0, 0.0, 0.16]
    drawn = Counter(pool.draw(1)[0].id for _ in range(6000))
    for i, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(drawn[str(i)] / 6000 - share) <= 4 * math.sqrt(share * (1 - share) / 6000)


def test_with_no_weight_left_all_are_drawn_alike():
    pool = pool_of(4, rate=1.0)
    pool.observe([group(p, [1.0]) for p in pool.prompts])
    assert {p.id for p in pool.draw(4)} == {"0", "1", "2", "3"}


@given(
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(0, 40),
    st.integers(0, 99),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_draws_are_of_the_size_asked_and_each_prompt_comes_round(count, every, rest, seed, sizes):
    """Whatever is observed, any (2N - 1) · ordered_every draws hold every prompt."""
    pool, rng = pool_of(count, seed=seed, ordered_every=every, rest=rest), random.Random(seed)
    drawn = []
    while len(drawn) < 2 * (2 * count - 1) * every:
        batch = pool.draw(sizes[len(drawn) % len(sizes)])
        assert len(batch) == sizes[len(drawn) % len(sizes)]
        drawn += [p.id for p in batch]
        pool.observe([group(p, [rng.choice((0.0, 1.0))]) for p in batch])
    window = (2 * count - 1) * every + max(sizes)  # within a batch the ordered ones come first
    begin = rng.randrange(max(1, len(drawn) - window))
    assert len(set(drawn[begin : begin + window])) == count
    assert pool.drawn == len(drawn)


def test_when_every_draw_is_an_ordered_one_the_order_is_the_plain_one():
    pool, stream = pool_of(7, ordered_every=1, rest=5), PromptStream(prompts_of(7), 0)
    assert [p.id for p in pool.draw(40)] == [p.id for p in stream.draw(40)]


def test_a_prompt_rests_after_it_was_drawn_and_is_not_twice_in_a_batch():
    pool = pool_of(40, ordered_every=10**9, rest=12)
    pool.observe([group(p, [1.0, 0.0] if int(p.id) < 10 else [1.0, 1.0]) for p in pool.prompts])
    drawn = [p.id for _ in range(100) for p in pool.draw(4)]
    assert all(len(set(drawn[i : i + 13])) == 13 for i in range(len(drawn) - 12))


def test_prompts_that_are_skipped_are_not_drawn():
    pool = pool_of(9, ordered_every=3, rest=4)
    assert pool.skip(lambda p: int(p.id) % 3 > 0) == 6
    assert {p.id for _ in range(20) for p in pool.draw(4)} == {"0", "3", "6"}


@pytest.mark.parametrize("use", ["none", "difficulty_pool"])
def test_the_state_resumes_the_draws_through_a_file(tmp_path, use):
    recipe = tiny_recipe(f"rollout.curriculum.use={use}")

    def go_on(order, begin: int, end: int) -> list[str]:
        drawn = []
        for step in range(begin, end):
            batch = order.draw(5)
            order.observe([group(p, [float((int(p.id) * 7 + step) % 5 > 2), 1.0]) for p in batch])
            drawn += [p.id for p in batch]
        return drawn

    whole, first, second = (order_of(recipe, prompts_of(23)) for _ in range(3))
    expected = go_on(whole, 0, 30)
    begun = go_on(first, 0, 11)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert begun + go_on(second, 11, 30) == expected
    assert second.state_dict() == whole.state_dict()
    changed = order_of(recipe, [*prompts_of(22), Prompt("22", "", (99,), "")])
    with pytest.raises(DataError, match="the prompts are not those of the checkpoint"):
        changed.load_state_dict(first.state_dict())


def mixed_share(order, seed: int, *, steps: int = 150, size: int = 8) -> float:
    """Share of groups with two different rewards while a simulated learner trains on what it is given.

    It solves prompt i with probability σ(4 (skill - d_i)), d_i spread over [0, 3], and
    gains skill by each mixed group.
    """
    rng, skill, mixed = random.Random(seed), 0.0, 0
    for _ in range(steps):
        groups = []
        for prompt in order.draw(16):
            p = 1 / (1 + math.exp(-4 * (skill - 3 * int(prompt.id) / len(order.prompts))))
            groups.append(group(prompt, [float(rng.random() < p) for _ in range(size)]))
        order.observe(groups)
        found = sum(g.varied for g in groups)
        mixed, skill = mixed + found, skill + 0.0015 * found
    return mixed / (16 * steps)


def test_more_groups_teach_than_in_the_plain_order():
    for seed in range(3):
        prompts = prompts_of(300)
        plain = mixed_share(PromptStream(prompts, seed), seed)
        pool = mixed_share(DifficultyPool(prompts, seed, rate=0.5, ordered_every=8, rest=48), seed)
        assert pool > 1.2 * plain, (pool, plain)


POOL = [
    "train.steps=8", "train.save_every=3", "rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.max_redraw=1",
    "algorithm.use=dapo", "rollout.curriculum={use: difficulty_pool, ordered_every: 4}", "data.train.limit=12", "data.eval=[]",
    "export.formats=[adapter]", "safety.sync_proof_every=0", "log.completions_per_step=4",
]  # fmt: skip


def trained(runs, name: str) -> tuple:
    rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    steps = [
        {
            k: v
            for k, v in row.items()
            if not isinstance(v, dict) and not k.startswith("reward_p") and k != "time"
        }
        for row in rows
    ]
    state = torch.load(runs / name / "checkpoints" / "step-000008" / "trainer.pt", weights_only=True)[
        "prompts"
    ]
    return steps, state, (runs / name / "export" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bytes(tmp_path):
    def command(name: str) -> list[str]:
        options = ["--runs", str(tmp_path), "--name", name, "--ui", "none", "--resume", "auto"]
        return [sys.executable, "-m", "lgrpo_lite", "recipe", "tiny-math", *POOL, *options]

    subprocess.run(command("whole"), check=True, capture_output=True)
    process, metrics = (
        subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL),
        tmp_path / "killed" / "metrics.jsonl",
    )
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command("killed"), check=True, capture_output=True)
    assert trained(tmp_path, "killed") == trained(tmp_path, "whole")
    _, state, _ = trained(tmp_path, "whole")
    assert len(set(state["solved"].values())) > 1
