"""One reward of the sum: its function with the recipe's options bound, and the
arguments it takes from a rollout.
"""

import inspect
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.plugin import found, read_file
from lgrpo_lite.recipe.schema import Reward
from lgrpo_lite.rewards import code, rubric, text
from lgrpo_lite.rewards import math as maths
from lgrpo_lite.rewards.worker import FileFunction
from lgrpo_lite.types import Completion, Prompt

REWARDS = {
    "math": maths.math,
    "exact": text.exact,
    "numeric": text.numeric,
    "regex": text.regex,
    "format": text.matches,
    "length": text.length,
    "overlong": text.overlong,
    "code": code.code,
    "rubric": rubric.sheet,
}
# bounded by construction, called in this process; all others in the pool's
LINEAR = ("exact", "numeric", "overlong", "length")
# what a reward may name
ROLLOUT = ("completion", "completion_tokens", "finish_reason", "prompt", "reference", "rubric")
OPTIONS = (
    "extract",
    "pattern",
    "limit",
    "cache",
    "judge",
    "endpoint",
    "override",
    "units",
    "percent",
    "order",
    "rounding",
    "sandbox",
    "image",
    "memory_mb",
)
"""Keys of a reward that one of them reads, beside `timeout`, which holds for all and may be named too."""
# a function that names `timeout` holds it itself (`code`: of what it has started); the pool is behind it
OWN_LIMIT = 30


@dataclass(frozen=True, slots=True)
class Part:
    """`pooled`: called in a worker process, under `timeout` seconds."""

    name: str
    weight: float
    function: Callable | FileFunction
    options: dict[str, Any]
    wanted: list[str]
    timeout: float
    pooled: bool

    def arguments(self, prompt: Prompt, completion: Completion) -> dict[str, Any]:
        """Of the function, for one completion."""
        known = {
            "completion": completion.text,
            "completion_tokens": len(completion.token_ids),
            "finish_reason": completion.finish_reason,
            "prompt": prompt.text,
            "reference": prompt.reference,
            "rubric": prompt.rubric,
        }
        return {name: known[name] for name in self.wanted} | self.options


@dataclass(slots=True)
class Tally:
    """What scoring took: seconds of each completion (waits for a CPU left out), and how
    many rewards are missing, by why.
    """

    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # timeout, error, crash

    def quantile(self, q: float) -> float | None:
        """Of the seconds; None when nothing was scored."""
        ranked = sorted(self.seconds)
        return ranked[min(len(ranked) - 1, int(q * len(ranked)))] if ranked else None


def parts_of(
    rewards: Sequence[Reward], where: Callable[[str], str], max_new_tokens: int | None
) -> list[Part]:
    """Every reward of a recipe, checked: an unknown name, option or argument is a ConfigError."""
    return [_part(i, rewards, where, max_new_tokens) for i in range(len(rewards))]


def log_faults(notes: Sequence[tuple[str, str]]) -> None:
    """One log line for each kind of fault of a batch, with how often it came and the first in full."""
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for prompt, note in notes:
        kind = note.strip().splitlines()[-1] if note.strip() else "?"
        counts[kind] += 1
        first.setdefault(kind, (prompt, note))
    for kind, (prompt, note) in first.items():
        logging.getLogger(__name__).error(
            "a reward failed on prompt %s (%d times): %s", prompt, counts[kind], note
        )


def _part(i: int, rewards: Sequence[Reward], where: Callable[[str], str], max_new_tokens: int | None) -> Part:
    reward = rewards[i]
    use = where(f"rewards.{i}.use")
    function = found(reward.use, REWARDS, use, "reward")
    names = set(inspect.signature(function).parameters)
    options = {option: getattr(reward, option) for option in OPTIONS}
    for option in (
        o for o, value in options.items() if value != Reward.model_fields[o].default and o not in names
    ):
        what = f"reward {reward.use!r} reads no option {option!r}"
        raise ConfigError(what, where=where(f"rewards.{i}.{option}"), fix=f"remove {option}")
    options["timeout"] = reward.timeout
    if options["limit"] is None:
        options["limit"] = max_new_tokens
    if "pattern" in names:
        _check_pattern(reward, use)
    if "limit" in names:
        _check_lengths(
            options["limit"], reward.cache if "cache" in names else 0, lambda key: where(f"rewards.{i}.{key}")
        )
    if {"judge", "endpoint"} <= names:
        _check_judge(reward, where(f"rewards.{i}.judge"), where(f"rewards.{i}.endpoint"))
    wanted = sorted(names - options.keys())
    if unknown := set(wanted) - set(ROLLOUT):
        fix = f"a reward may name {', '.join(ROLLOUT)}"
        raise ConfigError(f"reward {reward.use!r} asks for {', '.join(sorted(unknown))}", where=use, fix=fix)
    bound = {name: value for name, value in options.items() if name in names}
    if reward.use not in REWARDS:
        path, _, name = reward.use.rpartition(":")
        function = FileFunction(path, name, read_file(path, use))
    pooled = reward.use not in LINEAR
    timeout = reward.timeout * (OWN_LIMIT if "timeout" in names else 1)
    return Part(_name(i, rewards), reward.weight, function, bound, wanted, timeout, pooled)


def _check_lengths(limit: int | None, cache: int, where: Callable[[str], str]) -> None:
    if limit is None:
        raise ConfigError(
            "the longest answer is not known", where=where("limit"), fix="add limit: a number of tokens"
        )
    if cache > limit:
        what = f"cache {cache} is more than limit {limit}: every answer would be penalised"
        raise ConfigError(
            what, where=where("cache"), fix=f"set cache to at most {limit}, e.g. {max(1, limit // 5)}"
        )


def _check_judge(reward: Reward, judge: str, endpoint: str) -> None:
    if reward.judge == "policy" and reward.endpoint is not None:
        raise ConfigError(
            "an endpoint is not read by judge=policy", where=endpoint, fix="set judge: endpoint, or remove it"
        )
    if reward.judge == "endpoint" and reward.endpoint is None:
        raise ConfigError(
            "judge=endpoint without an endpoint", where=judge, fix="add endpoint: {url: …, model: …}"
        )
    if reward.endpoint and not reward.endpoint.url.startswith(("http://", "https://")):
        raise ConfigError(
            "the endpoint's url is not one of HTTP", where=endpoint, fix="write http://… or https://…"
        )


def _check_pattern(reward: Reward, where: str) -> None:
    if reward.pattern is None:
        raise ConfigError(
            f"the reward {reward.use!r} needs a pattern", where=where, fix="add pattern: a regular expression"
        )
    try:
        re.compile(reward.pattern)
    except re.error as error:
        raise ConfigError(
            f"the pattern is no regular expression: {error}", where=where, fix="mend the pattern"
        ) from None


def _name(i: int, rewards: Sequence[Reward]) -> str:
    name = rewards[i].use.rpartition(":")[2]
    return name if [r.use.rpartition(":")[2] for r in rewards].count(name) == 1 else f"{name}.{i}"
