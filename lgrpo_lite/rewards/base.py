"""From completions to groups: every reward of the recipe, weighted and summed; a missing reward leaves its group.

A reward is a function of `completion` and whatever else it names (`reference`, `prompt`), returning a float, or a float and
an Outcome. `use: file.py:function` takes one of the user's own.
"""

import importlib.util
import inspect
import logging
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lgrpo_lite.config import Reward
from lgrpo_lite.errors import ConfigError, DataError, nearest
from lgrpo_lite.rewards import text
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score

MAX_REWARD = 1e6  # beyond it a sum of squares leaves float32; such a value is a fault, not a reward
REWARDS = {"exact": text.exact, "numeric": text.numeric, "format": text.matches}


class RewardSum:
    """The recipe's rewards as one: `value` is Σ weight · reward, `outcome` that of the first one."""

    def __init__(self, rewards: Sequence[Reward], where: Callable[[str], str]):
        self.parts = [(_name(i, rewards), r.weight, *_function(r, where(f"rewards.{i}.use"))) for i, r in enumerate(rewards)]

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """One completion. A TimeoutError, any other exception, NaN or a value beyond ±10^6 make it missing."""
        values, outcomes, total = {}, [], 0.0
        for name, weight, function, wanted in self.parts:
            value, outcome = _call(function, wanted, prompt, completion)
            if value is None:
                return Score(None, outcome)
            values[name] = value
            outcomes.append(outcome)
            total += weight * value
        return Score(total, outcomes[0], values)

    def group(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[Group]:
        """One group per prompt, without the rollouts whose reward is missing."""
        groups = []
        for prompt, answers in zip(prompts, completions, strict=True):
            rollouts = [Rollout(prompt, answer, self.score(prompt, answer)) for answer in answers]
            scored = tuple(r for r in rollouts if r.score.value is not None)
            groups.append(Group(prompt, scored, missing=len(rollouts) - len(scored)))
        return groups


def _call(function: Callable, wanted: list[str], prompt: Prompt, completion: Completion) -> tuple[float | None, Outcome]:
    known = {"completion": completion.text, "reference": prompt.reference, "prompt": prompt.text}
    try:
        result = function(**{name: known[name] for name in wanted})
        value, outcome = result if isinstance(result, tuple) else (result, None)
        value = float(value)
    except TimeoutError:
        return None, Outcome.timeout
    except Exception:  # a user's function may raise anything; missing rewards are counted every step, the cause is in the log
        logging.getLogger(__name__).exception("a reward failed on prompt %s", prompt.id)
        return None, Outcome.error
    if not math.isfinite(value) or abs(value) > MAX_REWARD:
        return None, Outcome.error
    return value, outcome or (Outcome.ok if value > 0 else Outcome.wrong)


def _function(reward: Reward, where: str) -> tuple[Callable, list[str]]:
    """The reward's function with its options bound, and the arguments it takes from the rollout."""
    function = _from_file(reward.use, where) if ":" in reward.use else REWARDS.get(reward.use)
    if function is None:
        hint = nearest(reward.use, list(REWARDS))
        fix = f"use one of {', '.join(REWARDS)}, or file.py:function"
        raise ConfigError(f"unknown reward {reward.use!r}{hint}", where=where, fix=fix)
    names = set(inspect.signature(function).parameters)
    options = {"extract": reward.extract, "pattern": reward.pattern}
    bound = partial(function, **{name: value for name, value in options.items() if name in names})
    if "pattern" in names:
        _check_pattern(reward.pattern, where)
    defaults = {option: Reward.model_fields[option].default for option in options}
    for option in (o for o, value in options.items() if value != defaults[o] and o not in names):
        raise ConfigError(f"reward {reward.use!r} reads no option {option!r}", where=where, fix=f"remove {option}")
    wanted = sorted(names - options.keys())
    if unknown := set(wanted) - {"completion", "reference", "prompt"}:
        fix = "a reward may name completion, reference and prompt"
        raise ConfigError(f"reward {reward.use!r} asks for {', '.join(sorted(unknown))}", where=where, fix=fix)
    return bound, wanted


def _check_pattern(pattern: str | None, where: str) -> None:
    if pattern is None:
        raise ConfigError("the reward 'format' needs a pattern", where=where, fix="add pattern: a regular expression")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the pattern is no regular expression: {error}", where=where, fix="mend the pattern") from None


def _from_file(use: str, where: str) -> Callable:
    path, _, name = use.rpartition(":")
    if not Path(path).is_file() or not path.endswith(".py"):
        raise DataError(f"no such Python file: {path}", where=where, fix="give the path of a .py file, then :function")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{path} does not import: {error!r}", where=where, fix="run it with python first") from error
    if not callable(getattr(module, name, None)):
        raise DataError(f"{path} has no function {name!r}", where=where, fix="check the name after the colon")
    return getattr(module, name)


def _name(i: int, rewards: Sequence[Reward]) -> str:
    name = rewards[i].use.rpartition(":")[2]
    return name if [r.use.rpartition(":")[2] for r in rewards].count(name) == 1 else f"{name}.{i}"
