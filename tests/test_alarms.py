"""A planted fault of each alarm's kind raises that alarm and no other, a healthy run none:
made-up records and real runs.
"""

import json
import math
import random
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lgrpo, long_but_for

from lgrpo_lite.monitor.alarms import LEVELS, NAMES, Alarms, Raised, fold, level, standing
from lgrpo_lite.monitor.health import Health
from lgrpo_lite.monitor.symptoms import CHECKS, RECENT
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.trend import Growth
from lgrpo_lite.types import StepRecord

RECIPE = {
    "model": {"max_new_tokens": 512},
    "rollout": {"group_size": 8, "engine": "vllm"},
    "optim": {"lr": 1e-5},
    "algorithm": {"advantage": "mean_std", "length_preference": {"clamp": [-5.0, 5.0]}},
}
STEPS, GB, MB = 160, 1e9, 1e6


def healthy(seed: int, steps: int = STEPS) -> list[StepRecord]:
    """A run as they are: it learns most of what there is, its entropy falls with that,
    everything wavers, memory warms up.
    """
    rng = random.Random(seed)
    start, end = rng.uniform(0.2, 0.5), rng.uniform(0.75, 0.97)
    records = []
    for step in range(1, steps + 1):
        learned = 1 - math.exp(-step / 25)
        solved = min(1.0, max(0.0, start + (end - start) * learned + rng.gauss(0, 0.03)))
        mixed = round(16 * min(1.0, max(0.12, 1.2 - solved + rng.gauss(0, 0.05))))
        right = round((16 - mixed) * solved)
        noise = rng.lognormvariate(0, 0.2)
        host = (
            4 * GB
            + 0.4 * GB * (1 - math.exp(-step / 8))
            + 60 * MB * (step % 20 == 0)
            + 3 * MB * (step % 7)
            + rng.gauss(0, MB)
        )
        records.append(
            StepRecord(
                step=step, policy_version=step, reward=solved, reward_std=0.3, solved=solved, missing=rng.random() < 0.2,
                reward_timeouts=0, groups=16, groups_mixed=mixed, groups_right=right, groups_wrong=16 - mixed - right,
                length=200 * noise, length_ended=190.0, truncated=min(0.5, 0.15 * noise), loss=0.01, grad_norm=0.2 * noise,
                entropy=0.3 * (1 - 0.97 * learned * (solved > 0.7)) * noise, disagreement=0.01, mismatch_kl=0.001 * noise,
                token_mult_error=0.0125 * noise, length_lambda=learned + rng.gauss(0, 0.02), weight_short=0.9, weight_long=1.1,
                weight_effective=0.97, rollout_answers=128, seconds={"rollout": 20.0, "update": 10.0},
                memory={"weights": int(2 * GB), "sampler": int(8 * GB), "activations": int(3 * GB * noise),
                        "cached": int(GB * rng.random()), "free": int(4 * GB), "host": int(host), "host_free": int(20 * GB)},
            )
        )  # fmt: skip
    return records


# ------------------------------------------------------------------------------------------- faults on top of it
# Each takes the record of a step, how many steps the fault is old, its size from 0 (just a fault) to 1, and
# random numbers. A policy that stops being right is given its first entropy again: one that is sure of what
# is wrong has collapsed as well.


def all_wrong(r, age, size, rng):
    mixed = rng.randint(0, round(2 * (1 - size)))
    wrong = replace(r, solved=0.01 * mixed, groups_mixed=mixed, groups_right=0, groups_wrong=16 - mixed)
    return replace(wrong, entropy=0.3 if mixed else None)


def cut(r, age, size, rng):
    share = 0.66 + 0.3 * size + rng.uniform(-0.03, 0.03)
    return replace(r, truncated=share, solved=r.solved * (1 - share), entropy=0.3)


def cut_and_all_wrong(r, age, size, rng):
    return all_wrong(cut(r, age, size, rng), age, 1.0, rng)


def collapsed(r, age, size, rng):
    entropy = 0.03 * (1 - 0.9 * size) * rng.uniform(0.8, 1.2)
    return replace(
        r, entropy=entropy, solved=rng.uniform(0.3, 0.6), groups_mixed=8, groups_right=4, groups_wrong=4
    )


def off_by_factor(r, age, size, rng):
    return replace(r, token_mult_error=0.06 + size * rng.random())


def off_by_kl(r, age, size, rng):
    return replace(r, mismatch_kl=0.011 + size * rng.random())


def at_upper_bound(r, age, size, rng):
    return replace(r, length_lambda=5.0)


def at_lower_bound(r, age, size, rng):
    return replace(r, length_lambda=-5.0)


def long_dominate(r, age, size, rng):
    return replace(r, weight_short=0.1 * rng.random(), weight_long=2 + 5 * size)


def short_dominate(r, age, size, rng):
    return replace(r, weight_short=2 + 5 * size, weight_long=0.0, weight_effective=0.2)


def timeouts(r, age, size, rng):
    missing = round(128 * (0.04 + 0.9 * size)) + rng.randint(0, 3)
    return replace(r, missing=missing, reward_timeouts=missing)


def nothing_scored(r, age, size, rng):
    none = dict.fromkeys(("reward", "reward_std", "solved", "length", "length_ended", "truncated", "entropy"))
    return replace(r, **none, missing=128, reward_errors=128, groups_mixed=0, groups_right=0, groups_wrong=0)


def host_leak(r, age, size, rng):
    return replace(r, memory=r.memory | {"host": r.memory["host"] + int((2 + 50 * size) * MB * age)})


def device_leak(r, age, size, rng):
    leaked = int((4 + 30 * size) * MB * age)
    return replace(
        r,
        memory=r.memory
        | {"sampler": r.memory["sampler"] + leaked, "free": max(0, r.memory["free"] - leaked)},
    )


FAULTS = [
    (all_wrong, "no_signal"), (cut, "truncation"), (cut_and_all_wrong, "truncation"), (collapsed, "entropy_collapse"),
    (off_by_factor, "disagreement"), (off_by_kl, "disagreement"), (at_upper_bound, "lambda_clamp"),
    (at_lower_bound, "lambda_clamp"), (long_dominate, "dominated_weights"), (short_dominate, "dominated_weights"),
    (timeouts, "reward_faults"), (nothing_scored, "reward_faults"), (host_leak, "memory_slope"), (device_leak, "memory_slope"),
]  # fmt: skip


def planted(records, fault, start, size, seed):
    rng = random.Random(seed)
    return [fault(r, r.step - start, size, rng) if r.step > start else r for r in records]


def test_every_alarm_has_a_planted_fault():
    assert {name for _, name in FAULTS} | {"heartbeat"} == set(NAMES) and len(CHECKS) == len(NAMES) - 1


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_a_healthy_run_raises_none(seed):
    assert fold(RECIPE, healthy(seed)) == []


@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda x: getattr(x, "__name__", x))
@given(seed=st.integers(0, 10**6), start=st.integers(12, 80), size=st.floats(0, 1))
def test_a_planted_fault_raises_its_alarm_and_no_other(fault, name, seed, start, size):
    raised = fold(RECIPE, planted(healthy(seed), fault, start, size, seed))
    assert [r.name for r in raised] == [name], raised
    assert start < raised[0].first <= raised[0].last == STEPS
    words = f"{raised[0].what} → {raised[0].fix}"
    assert "\n" not in words and len(raised[0].what) < 120 and "nan" not in words, words


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda x: getattr(x, "__name__", x))
def test_one_that_is_mended_stops_counting_and_stays(fault, name):
    sound = healthy(1, 260)
    faulty = planted(sound, fault, 30, 0.5, 1)[:130]
    alarms = Alarms(RECIPE)
    held = [
        bool(alarms.look(r)) for r in [*faulty, *(replace(r, memory=faulty[-1].memory) for r in sound[130:])]
    ]
    assert list(alarms.tally) == [name] and alarms.tally[name].count == sum(held) and not any(held[-50:])
    assert held.index(True) + 1 == alarms.tally[name].first and alarms.tally[name].last < 200


@pytest.mark.parametrize(
    ("fault", "name"), [f for f in FAULTS if f[1] in ("disagreement", "lambda_clamp", "dominated_weights")]
)
@pytest.mark.parametrize(("steps", "raised"), [(1, False), (2, False), (3, True)])
def test_a_fluke_is_no_alarm(fault, name, steps, raised):
    sound = healthy(2)
    faulty = planted(sound, fault, 40, 1.0, 2)
    assert bool(fold(RECIPE, [*sound[:40], *faulty[40 : 40 + steps], *sound[40 + steps :]])) is raised


GROUPS = {"groups": 16, "groups_mixed": 1, "solved": 0.5, "truncated": 0.1}
BEFORE = {"groups": 16, "groups_mixed": 12, "groups_right": 2, "groups_wrong": 2, "solved": 0.5}


@pytest.mark.parametrize(
    ("before", "after", "what", "fix"),
    [
        ({}, {"groups_right": 0, "groups_wrong": 15, "solved": 0.01}, "all wrong", "lgrpo-lite baseline"),
        (
            {},
            {"groups_right": 15, "groups_wrong": 0, "solved": 0.99},
            "all right from the start",
            "harder problems",
        ),
        ({}, {"groups_right": 7, "groups_wrong": 8}, "always or never", "rollout.group_size"),
        ({}, {"groups_right": 0, "groups_wrong": 0}, "equal rewards", "rewards.N.weight"),
        (
            BEFORE,
            {"groups_right": 0, "groups_wrong": 15, "solved": 0.01},
            "the policy broke",
            "smaller optim.lr (now 1e-05)",
        ),
        (
            BEFORE,
            {"groups_right": 16, "groups_wrong": 0, "groups_mixed": 0, "solved": 1.0},
            "learned out",
            "stop here",
        ),
    ],
)
def test_no_signal_says_which(before, after, what, fix):
    rows = [before or GROUPS | after] * 12 + [GROUPS | after] * 20
    (raised,) = fold(RECIPE, [StepRecord(i + 1, i, **row) for i, row in enumerate(rows)])
    assert raised.name == "no_signal" and raised.what.startswith(what) and fix in raised.fix


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_a_run_that_learned_and_has_a_little_left_is_healthy(share):
    after = {
        "groups": 100,
        "groups_mixed": round(100 * share),
        "groups_right": round(100 * (1 - share)),
        "solved": 0.98,
    }
    assert fold(RECIPE, [StepRecord(i, i, **(BEFORE if i < 15 else after)) for i in range(1, 80)]) == []


@pytest.mark.parametrize(("std", "raised"), [(0.3, False), (0.0, True)])
def test_algorithms_that_compare_no_answers_learn_from_groups_that_do_not_vary(std, raised):
    recipe = {"algorithm": {"advantage": "value_cache"}}
    records = [
        StepRecord(i, i, groups=16, groups_wrong=8, groups_right=8, solved=0.5, reward_std=std)
        for i in range(1, 20)
    ]
    assert bool(fold(recipe, records)) is raised


def test_a_policy_that_broke_and_runs_on_is_not_asked_for_longer_answers():
    sound = healthy(3)
    (raised,) = fold(RECIPE, planted(sound, cut_and_all_wrong, 20, 1.0, 3))
    assert (
        raised.name == "truncation" and "the policy broke" in raised.what and "smaller optim.lr" in raised.fix
    )
    (raised,) = fold(RECIPE, planted(sound, cut, 0, 0.5, 3))
    assert "model.max_new_tokens=1024" in raised.fix and "cut at 512 tokens" in raised.what


LEAK = [500 * MB + 2 * MB * i for i in range(120)]
WAVES = [math.sin(1.7 * i) * MB for i in range(120)]


@pytest.mark.parametrize(
    ("series", "rate"),
    [
        (LEAK, 2 * MB),
        ([a + 5 * b for a, b in zip(LEAK, WAVES, strict=True)], 2 * MB),
        ([a + 100 * MB * (i % 10 == 3) for i, a in enumerate(LEAK)], 2 * MB),  # and a peak at every save
        ([a + 3 * MB * (i % 8) for i, a in enumerate(LEAK)], 2 * MB),  # and a collector's teeth
        ([500 * MB + a for a in WAVES], None),
        ([500 * MB + 100 * MB * (i % 20 == 0) for i in range(120)], None),
        ([500 * MB + 10 * MB * (i % 8) for i in range(120)], None),
        ([500 * MB + 5 * MB * (i % 25) for i in range(120)], None),
        ([500 * MB + 5 * MB * (i % 40) for i in range(120)], None),
        ([900 * MB - 400 * MB * math.exp(-i / 15) for i in range(120)], None),  # a warm-up
        ([500 * MB + 100 * MB * (i > 60) for i in range(120)], None),  # a step up
        ([500 * MB + 50 * MB * (i // 30) for i in range(120)], None),  # a few
        ([500 * MB + 0.1 * MB * i for i in range(120)], None),  # less than matters
        ([50 * GB + 2 * MB * i for i in range(120)], None),
        (list(reversed(LEAK)), None),
        (LEAK[:49], None),
    ],
)  # fmt: skip
def test_growth_is_steady_or_none(series, rate):
    growth = Growth()
    found = [growth.add(value) for value in series]
    assert (found[-1] == pytest.approx(rate, rel=0.3)) if rate else not any(found)


def test_memory_says_when_it_is_full():
    records = [
        StepRecord(i, i, memory={"host": int(GB + 10 * MB * i), "host_free": int(2 * GB)})
        for i in range(1, 110)
    ]
    (raised,) = fold({}, records)
    assert (
        raised.what == "host memory grows by 10.0 MB a step, full in 200 steps (2.1 GB now)"
        and raised.first == 90
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [("reward_timeouts", "timeouts"), ("reward_crashes", "crashes"), ("reward_errors", "errors")],
)
def test_reward_faults_name_the_kind(kind, said):
    records = [StepRecord(i, i, groups=16, missing=6, **{kind: 6}) for i in range(1, 30)]
    (raised,) = fold(RECIPE, records)
    assert raised.what == f"4.7% of rewards are missing in {RECENT} steps (60 of 1280), mostly {said}"
    assert "lgrpo-lite reward test" in raised.fix


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=3),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=4), st.floats(), max_size=3),
)  # fmt: skip
RECORDS = st.lists(
    st.fixed_dictionaries({}, optional={f.name: ODD for f in fields(StepRecord)}), min_size=1, max_size=12
)
FOREIGN = st.recursive(ODD, lambda inner: st.dictionaries(st.sampled_from(["algorithm", "length_preference", "clamp", "rollout",
                       "group_size", "model", "max_new_tokens", "optim", "lr"]), inner), max_leaves=6)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(rows=RECORDS, recipe=FOREIGN)
def test_no_record_and_no_recipe_breaks_it(rows, recipe):
    known = {"step": 1, "policy_version": 0} | asdict(healthy(0, 1)[0])
    fold(recipe, [StepRecord.from_json(known | row) for row in rows * 6])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), at=st.integers(0, STEPS), number=st.integers(0, len(FAULTS) - 1))
def test_a_resumed_run_tells_what_it_told_before(seed, at, number):
    records = planted(healthy(seed), FAULTS[number][0], 20, 0.5, seed)
    read = [StepRecord.from_json(json.loads(json.dumps(asdict(r)))) for r in records]
    alarms = Alarms(RECIPE)
    for record in [*records[:at], *read[at:]]:
        alarms.look(record)
    assert list(alarms.tally.values()) == fold(RECIPE, read)


# ------------------------------------------------------------------------------------------- what stands


TOLD = Raised("truncation", 3, 7, 9, "61% of answers are cut", "model.max_new_tokens=96")


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([asdict(TOLD)], [TOLD]),
        ([], []),
        ([{"name": "of a later version"}, 3, None, [], asdict(TOLD) | {"count": "3"}, asdict(TOLD)], [TOLD]),
    ],
)
def test_what_the_status_says_stands(told, found):
    records = planted(healthy(0), cut, 20, 1.0, 0)
    assert standing(RunView(Path("x"), RECIPE, {"alarms": told}, records)) == found


@pytest.mark.parametrize("status", [{}, {"alarms": None}, {"alarms": 3}])
def test_without_a_status_the_records_say(status):
    records = planted(healthy(0), cut, 20, 1.0, 0)
    view = RunView(Path("x"), RECIPE, status, records[:50])
    assert [(r.name, r.last) for r in standing(view)] == [("truncation", 50)]
    view.records += records[50:60]
    assert [(r.name, r.last) for r in standing(view)] == [("truncation", 60)]


@pytest.mark.parametrize(
    "state", ["starting", "live", "stuck", "silent", "killed", "done", "stopped", "failed"]
)
def test_a_heartbeat_that_is_missing(state):
    view = RunView(
        Path("x"),
        status={"alarms": []},
        records=healthy(0, 5),
        health=Health(state, "no sign of life", "the command"),
    )
    dead = [Raised("heartbeat", 1, 5, 5, "no sign of life", "the command")]
    assert standing(view) == (dead if state in ("stuck", "silent", "killed") else [])


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("truncated", 0.0, "good"), ("truncated", 0.3, "warn"), ("truncated", 0.7, "bad"), ("no_signal", 0.5, "good"),
        ("no_signal", 0.9, "warn"), ("no_signal", 1.0, "bad"), ("grad_norm", 0.2, "good"), ("grad_norm", 0.0, "warn"),
        ("grad_norm", 30.0, "bad"), ("entropy", 0.3, "good"), ("entropy", 0.01, "warn"), ("mismatch_kl", -1e-9, "good"),
        ("token_mult_error", 0.015, "good"), ("token_mult_error", 0.06, "bad"), ("weight_ratio", 0.05, "bad"),
        ("weight_ratio", 1.0, "good"), ("weight_ratio", 11.0, "bad"), ("kl", None, ""), ("kl", float("nan"), ""),
        ("loss", 1.0, ""),
    ],
)  # fmt: skip
def test_levels(name, value, found):
    assert level(name, value) == found


def test_levels_are_in_order():
    assert all(list(limits) == sorted(limits) for limits in LEVELS.values())


# ------------------------------------------------------------------------------------------- docs/failures.md


PAGE = (Path(__file__).parent.parent / "docs" / "failures.md").read_text("utf-8")


@pytest.mark.parametrize(
    "heading", [*NAMES, *(f"Exit {code}" for code in (0, 1, 2, 3, 4, 5, 6, 75, 130, 143))]
)
def test_has_a_section(heading):
    (section,) = re.findall(rf"^## {heading}\b[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    if heading in NAMES:
        for part in ("**Symptom.**", "**Meaning.**", "**Causes.**", "**Do.**"):
            assert part in section, (heading, part)


# ------------------------------------------------------------------------------------------- real runs


MINE = """
import random, zlib

KEPT = []
random.seed(0)

def praise(completion):
    return 1.0

def third(completion):
    if zlib.crc32(completion.encode()) % 3 == 0:
        raise RuntimeError("on purpose")
    return float(len(completion) % 2)

def short(completion, completion_tokens):  # never right, and with a judge's noise: what pays is a single text
    return -completion_tokens / 48 - 0.02 * random.random(), "wrong"

def leaking(groups, parts):
    KEPT.append(b"x" * 8_000_000)
    return [[r - sum(g.rewards) / len(g.rewards) for r in g.rewards] for g in groups]
"""
SMALL = (
    "rollout.prompts_per_step=8",
    "data.eval=[]",
    "export.formats=[]",
    "train.save_every=1000",
    "safety.sync_proof_every=0",
)
MY_REWARD = ("safety.baseline_check=false", "rewards.0.extract=final")
LAMBDA = "algorithm.length_preference"
REAL = {
    "cut at 4": ("truncation", ["model.max_new_tokens=4", "safety.baseline_check=false", "train.steps=6"]),
    "one reward for all": ("no_signal", [*MY_REWARD, "rewards.0.use=MINE:praise", "train.steps=6"]),
    "a third raises": ("reward_faults", [*MY_REWARD, "rewards.0.use=MINE:third", "train.steps=5"]),
    "λ at its clamp": ("lambda_clamp", [f"{LAMBDA}.lambda_init=5", f"{LAMBDA}.freeze=true", "train.steps=4"]),
    "a huge λ": (
        "dominated_weights", [f"{LAMBDA}.lambda_init=20", f"{LAMBDA}.clamp=null", f"{LAMBDA}.freeze=true", "train.steps=4"]
    ),
    "a large learning rate": ("no_signal", ["optim.lr=1e-2", "train.steps=16"]),
    "one text pays": (
        "entropy_collapse",
        [*MY_REWARD, "rewards.0.use=MINE:short", "algorithm.use=grpo", "optim.lr=2e-3", "optim.scheduler=constant",
         "data.train.limit=1", "rollout.prompts_per_step=4", "rollout.group_size=16", "train.steps=36",
         "safety.reward_workers=1"],  # one process draws all of the noise, so that it is the same each time
    ),
    "an advantage that keeps memory": (
        "memory_slope", ["algorithm.use=grpo", "algorithm.advantage=MINE:leaking", "optim.lr=1e-4", "train.steps=100"]
    ),
}  # fmt: skip


def real_run(tmp_path, *overrides) -> list[Raised]:
    """The alarms of a real run, folded from its file; they are those that the trainer told."""
    (tmp_path / "mine.py").write_text(MINE)
    words = [word.replace("MINE", str(tmp_path / "mine.py")) for word in (*SMALL, *overrides)]
    assert lgrpo("recipe", "tiny-math", *words, "--runs", tmp_path, "--name", "run", "--ui", "none") == 0
    view = Tail(tmp_path / "run", whole=True).refresh()
    found = fold(view.recipe, view.records)
    assert standing(view) == found
    for raised in found:
        assert sum(raised.name in record.alarms for record in view.records) == raised.count
        assert [e["step"] for e in view.events if e["kind"] == "alarm" and e["name"] == raised.name] == [
            raised.first
        ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", REAL)
def test_a_real_fault_raises_its_alarm_and_no_other(tmp_path, case):
    name, overrides = REAL[case]
    assert [raised.name for raised in real_run(tmp_path, *overrides)] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("use", long_but_for(["grpo"], ["grpo", "trace", "dapo", "the demo's"]))
def test_a_real_run_that_learns_raises_none(tmp_path, use):
    demo = ["rollout.prompts_per_step=16"]
    overrides = demo if use == "the demo's" else [f"algorithm.use={use}", "train.steps=60"]
    assert real_run(tmp_path, *overrides) == []
