"""Answers, numbers, rewards: right is 1, wrong is 0, missing is neither."""

import math
import re

import pytest

from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.recipe.reward import REWARD_KEYS, Reward
from lgrpo_lite.rewards.options import documented
from lgrpo_lite.rewards.part import REWARDS, complete
from lgrpo_lite.rewards.text import exact, numeric, overlong
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.types import Completion, Outcome, Prompt
from lgrpo_lite.verifier.answers import as_number, final_answer

PROMPT = Prompt("0", "What is 2+2?", (1,), "4")


def completion(text: str, tokens: int = 1) -> Completion:
    return Completion((1,) * tokens, (0.0,) * tokens, text, "stop", 0)


@pytest.mark.parametrize(
    ("text", "extract", "answer"),
    [
        ("so 3+4=7\n#### 7", "gsm8k", "7"),
        ("#### 5\nno, wait\n#### 6", "gsm8k", "6"),
        ("7", "gsm8k", None),
        ("####", "gsm8k", None),
        ("it is \\boxed{\\frac{1}{2}}.", "boxed", "\\frac{1}{2}"),
        ("\\boxed{12} or rather \\boxed{13}", "boxed", "13"),
        ("\\boxed{12", "boxed", None),
        ("#### 3 and \\boxed{4}", "final", "3 and \\boxed{4}"),
        ("The answer is 42.", "final", "42"),
        ("thinking\n 42 ", "final", "42"),
        ("no idea", "final", None),
        ("", "final", None),
    ],
)
def test_final_answer(text, extract, answer):
    assert final_answer(text, extract) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("-7", -7), ("+7", 7), ("1,234", 1234), ("$5", 5), ("12.50", 12.5), (".5", 0.5), ("3/4", 0.75), ("35%", 35),
        ("1.2e4", 12000), ("\u22123", -3), (" 8. ", 8), ("1/0", None), ("", None), ("seven", None), ("1 2", None), ("--3", None),
        ("9**9**9", None), ("9" * 5000, None), ("1e9999", None), ("\x00", None), ("nan", None), ("inf", None), ("1/2/3", None),
    ],
)  # fmt: skip
def test_as_number(text, value):
    assert as_number(text) == value


@pytest.mark.parametrize(
    ("text", "gold", "value", "outcome"),
    [
        ("#### 0.50", "1/2", 1.0, Outcome.ok),
        ("#### 1,000", "1000", 1.0, Outcome.ok),
        ("#### 71", "72", 0.0, Outcome.wrong),
        ("#### seventy-two", "72", 0.0, Outcome.unparsable),
        ("no answer", "72", 0.0, Outcome.unparsable),
        ("#### x + 1", "x+1", 1.0, Outcome.ok),  # a gold that is no number is compared as text
        ("#### " + "(" * 10_000, "72", 0.0, Outcome.unparsable),
    ],
)
def test_numeric(text, gold, value, outcome):
    assert numeric(text, gold, extract="final") == (value, outcome)


def test_exact_does_not_compare_numbers():
    assert exact("#### 0.50", "0.5", extract="final") == (0.0, Outcome.wrong)
    assert exact("#### a b", "ab", extract="final") == (1.0, Outcome.ok)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (1, 0.0),
        (16384, 0.0),
        (16385, -0.000244140625),
        (18432, -0.5),
        (20480, -1.0),
        (20481, -1.0),
        (10**6, -1.0),
    ],
)
def test_overlong(tokens, value):
    assert overlong(tokens, limit=20480, cache=4096) == (value, Outcome.ok)


def test_overlong_counts_tokens_up_to_the_longest_answer():
    answer = Completion((7,) * 9, (0.0,) * 9, "#### 4", "length", 0)
    rewards = [Reward(use="numeric"), Reward(use="overlong", cache=4)]
    score = RewardSum(rewards, lambda key: key, max_new_tokens=10).score(PROMPT, answer)
    assert (score.value, score.parts, score.outcome) == (
        0.25,
        {"numeric": 1.0, "overlong": -0.75},
        Outcome.ok,
    )
    wider = [rewards[0], Reward(use="overlong", cache=4, limit=20)]
    assert RewardSum(wider, lambda key: key, max_new_tokens=10).score(PROMPT, answer).value == 1.0


@pytest.mark.parametrize(
    ("reward", "where", "words"),
    [
        (Reward(use="overlong", cache=4), "rewards.0.limit", "longest answer is not known"),
        (Reward(use="overlong", cache=11, limit=10), "rewards.0.cache", "cache 11 is more than limit 10"),
        (
            Reward(use="overlong", pattern="x", limit=10, cache=1),
            "rewards.0.pattern",
            "reads no option 'pattern'",
        ),
        (Reward(use="numeric", limit=10), "rewards.0.limit", "reads no option 'limit'"),
    ],
)
def test_faults_of_overlong(reward, where, words):
    with pytest.raises(ConfigError, match=words) as error:
        reward_sum(reward)
    assert error.value.where == where


def reward_sum(*rewards: Reward) -> RewardSum:
    return RewardSum(rewards, lambda key: key)


def test_weighted_sum_with_parts():
    both = reward_sum(Reward(use="numeric"), Reward(use="format", pattern="####", weight=0.1))
    right, wrong = both.score(PROMPT, completion("#### 4")), both.score(PROMPT, completion("#### 5"))
    assert (right.value, right.parts, right.outcome) == (1.1, {"numeric": 1.0, "format": 1.0}, Outcome.ok)
    assert (wrong.value, wrong.outcome) == (0.1, Outcome.wrong)


USER = """
import time
def slow(completion): raise TimeoutError
def broken(completion): return 1 / 0
def nan(completion, reference): return float("nan")
def huge(completion): return 1e308
def good(completion, reference, prompt): return float(reference in completion and prompt.endswith("?"))
def length(completion_tokens, finish_reason): return completion_tokens / 10 * (finish_reason == "stop")
def criteria(rubric): return len(rubric)
def odd(completion, teacher): return 1.0
"""


@pytest.mark.parametrize(
    ("name", "value", "outcome"),
    [
        ("slow", None, Outcome.timeout),
        ("broken", None, Outcome.error),
        ("nan", None, Outcome.error),
        ("huge", None, Outcome.error),
        ("good", 1.0, Outcome.ok),
        ("length", 0.1, Outcome.ok),
        ("criteria", 0.0, Outcome.wrong),
    ],
)
def test_a_fault_of_the_users_reward_is_missing_never_zero(tmp_path, name, value, outcome):
    (tmp_path / "mine.py").write_text(USER)
    rewards = reward_sum(Reward(use=f"{tmp_path}/mine.py:{name}"))
    score = rewards.score(PROMPT, completion("#### 4"))
    assert (score.value, score.outcome) == (value, outcome)
    group = rewards.group([PROMPT], [[completion("#### 4")] * 3])[0]
    assert (len(group.rollouts), group.missing) == ((0, 3) if value is None else (3, 0))
    assert all(math.isfinite(r) for r in group.rewards)


def test_why_a_reward_failed_is_logged(tmp_path, caplog):
    (tmp_path / "mine.py").write_text(USER)
    reward_sum(Reward(use=f"{tmp_path}/mine.py:broken")).score(PROMPT, completion("#### 4"))
    assert "a reward failed on prompt 0" in caplog.text and "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("reward", "error", "words"),
    [
        (Reward(use="numerik"), ConfigError, "did you mean 'numeric'"),
        (Reward(use="format"), ConfigError, "needs a pattern"),
        (Reward(use="format", pattern="("), ConfigError, "no regular expression"),
        (Reward(use="numeric", pattern="x"), ConfigError, "reads no option 'pattern'"),
        (Reward(use="nowhere.py:f"), DataError, "no such Python file"),
        (Reward(use="{tmp}/mine.py:missing"), DataError, "no function 'missing'"),
    ],
)
def test_faults_of_the_recipe(tmp_path, reward, error, words):
    (tmp_path / "mine.py").write_text(USER)
    with pytest.raises(error, match=words):
        reward_sum(reward.model_copy(update={"use": reward.use.format(tmp=tmp_path)}))


def test_every_key_of_a_reward_is_read_by_one():
    told = {name: meaning for function in REWARDS.values() for name, _, _, meaning in documented(function)}
    assert set(told) == set(REWARD_KEYS) and all(told.values())
    assert set(Reward.model_fields) == {"use", "weight", "timeout"}


OWN = """
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated, Literal
if TYPE_CHECKING:
    from nowhere import Absent

class Table: pass

def absent(completion: str, floor: Absent = 3): return float(floor)
def odd_type(completion, table: Table = Table(), floor: int = 2, _memo={}): return float(floor)
def brief(completion_tokens, floor=5): return float(completion_tokens <= floor)
def typed(completion, *, kind: Literal["a", "b"] = "a", share: Annotated[float, "of it"] = 0.5): return share
def other(completion, cache=2): return float(cache)  # a name that a built-in reward has with another default
def wants(completion, floor): return float(floor)
def shared(completion, reference, extract, limit): return float(limit)
"""


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("brief", {}, 1.0), ("brief", {"floor": 3}, 0.0), ("brief", {"floor": 4.5}, 1.0), ("typed", {"share": 0.25}, 0.25),
        ("wants", {"floor": 2}, 2.0), ("shared", {}, 10.0), ("other", {}, 2.0),
        ("absent", {"floor": 1}, 1.0), ("odd_type", {"floor": 4}, 4.0),
        ("other", {"cache": 4096}, 4096.0),
    ],
)  # fmt: skip
def test_a_reward_of_ones_own_has_the_options_that_its_function_names(tmp_path, name, options, value):
    (tmp_path / "mine.py").write_text(OWN)
    rewards = RewardSum([Reward(use=f"{tmp_path}/mine.py:{name}", **options)], str, max_new_tokens=10)
    try:
        assert rewards.score(PROMPT, completion("#### 4", tokens=4)).value == value
    finally:
        rewards.close()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("brief", {"flor": 3}, "did you mean 'floor'"), ("brief", {"floor": "three"}, "rewards.0.floor='three'"),
        ("typed", {"kind": "c"}, "rewards.0.kind='c'"), ("brief", {"wight": 2}, "'weight'"),
    ],
)  # fmt: skip
def test_an_option_that_its_function_cannot_take_is_refused(tmp_path, name, options, words):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(ConfigError, match=re.escape(words)):
        reward_sum(Reward(use=f"{tmp_path}/mine.py:{name}", **options))


def test_keys_that_all_rewards_once_had_say_nothing_at_their_old_defaults():
    """A recipe resolved by an earlier version holds all of them; what it changed still counts."""
    old = Reward(use="numeric", **REWARD_KEYS)
    # as its default is numeric
    assert complete([old], str) == complete([Reward()], str) and old.changed() == {}
    boxed = Reward(use="math", **{**REWARD_KEYS, "extract": "boxed"})
    assert boxed.changed() == {"use": "math", "extract": "boxed"}
    (whole,) = complete([boxed], str)
    assert whole.options == {
        "extract": "boxed",
        "units": "ignore",
        "percent": "either",
        "order": "any",
        "rounding": "gold",
    }
    assert whole.changed() == boxed.changed()


@pytest.mark.parametrize("use", REWARDS)
def test_old_defaults_are_the_functions_own(use):
    for name, _, default, _ in documented(REWARDS[use]):
        assert default == REWARD_KEYS[name]
