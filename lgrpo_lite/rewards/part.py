"""One reward of the sum: its function with the recipe's options, and what it takes from a rollout."""

import inspect
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.plugin import found, read_file
from lgrpo_lite.recipe.reward import Endpoint, Reward
from lgrpo_lite.rewards import code, rubric, text
from lgrpo_lite.rewards import math as maths
from lgrpo_lite.rewards.form import LIMIT, Form, form_of, refuse_other
from lgrpo_lite.rewards.options import options_of
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
# bounded by construction and called in this process; all others in the pool's
LINEAR = ("exact", "numeric", "overlong", "length")
# a function that names `timeout` holds it itself (`code`: of what it has started); the pool is behind it
OWN_LIMIT = 30
MAX_WORDS = 300  # of a fault, characters


@dataclass(frozen=True, slots=True)
class Part:
    """`pooled`: called in a worker process, under `timeout` seconds."""

    name: str
    weight: float
    function: Callable | FileFunction
    options: dict[str, Any]
    form: Form
    timeout: float
    pooled: bool
    place: str  # where its function stands: FILE:LINE of a user's, else its name
    completions: Literal["text", "messages"] | None = None  # of TRL's form

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
        names = prompt.columns if self.form.rest else self.form.columns
        columns = {name: prompt.columns[name] for name in names if name not in self.form.wanted}
        return {name: known[name] for name in self.form.wanted} | columns | self.options

    def arguments_together(self, prompt: Prompt, completions: Sequence[Completion]) -> dict[str, Any]:
        """Of a function of TRL's form, for all completions of a prompt: a list of each."""
        count = len(completions)
        texts = [completion.text for completion in completions]
        known = {
            "prompts": [prompt.text] * count,
            "completions": texts,
            "completion_ids": [list(completion.token_ids) for completion in completions],
        }
        if self.completions == "messages" or (self.completions is None and prompt.messages):
            chat = prompt.messages or (("user", prompt.text),)
            known["prompts"] = [[{"role": role, "content": text} for role, text in chat]] * count
            known["completions"] = [[{"role": "assistant", "content": text}] for text in texts]
        names = [*self.form.columns, *self.form.more]
        if self.form.rest:
            names = list(prompt.columns)
        columns = {name: [prompt.columns[name]] * count for name in names if name in prompt.columns}
        for name in ("prompt", "completion"):  # TRL's names of what is given as lists
            columns.pop(name, None)
        return columns | {name: known[name] for name in self.form.wanted} | self.options

    def fault(self, note: str) -> str:
        """The last words of a traceback of its function, or what else is said of it, with FILE:LINE."""
        path = self.function.path if isinstance(self.function, FileFunction) else None
        lines = note.strip().splitlines() or ["?"]
        place = self.place
        for line in lines:
            frame = re.match(r'\s*File "(.+)", line (\d+)', line)
            if frame and frame[1] == path:
                place = f"{path}:{frame[2]}"  # the innermost comes last
        words = lines[-1][:MAX_WORDS]
        if "completion_tokens" in self.form.wanted and "'int'" in words:
            words += " (completion_tokens is a count, a whole number; the text is completion)"
        return f"{place}: {words}"


@dataclass(slots=True)
class Tally:
    """What scoring took: seconds a completion, without waits for a CPU, and missing rewards by cause."""

    seconds: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # timeout, error, crash
    verifier_faults: int = 0  # answers on which the math verifier failed: wrong, not missing
    first: str = ""  # fault of a reward, with FILE:LINE


def quantile(values: Sequence[float], q: float) -> float | None:
    """By nearest rank: the least value that a share `q` of them does not exceed. None of none."""
    if not values:
        return None
    rank = math.ceil(q * len(values) - 1e-9)
    return float(sorted(values)[max(0, rank - 1)])


def parts_of(
    rewards: Sequence[Reward], where: Callable[[str], str], max_new_tokens: int | None
) -> list[Part]:
    """Every reward of a recipe, checked: an unknown name, option or argument is a ConfigError."""
    return [part_of(i, rewards, where, max_new_tokens) for i in range(len(rewards))]


def complete(rewards: Sequence[Reward], where: Callable[[str], str]) -> list[Reward]:
    """The rewards with all options of their functions, defaults included."""
    return [complete_one(i, reward, where) for i, reward in enumerate(rewards)]


def complete_one(i: int, reward: Reward, where: Callable[[str], str]) -> Reward:
    """The recipe's `rewards.i` with all options of its function."""
    function = found(reward.use, REWARDS, where(f"rewards.{i}.use"), "reward")
    options = options_of(function, reward, f"rewards.{i}", where)
    return Reward(use=reward.use, weight=reward.weight, timeout=reward.timeout, **options)


def log_faults(notes: Sequence[tuple[str, str]]) -> None:
    """One log line for each kind of fault of a batch, with how often it came and the first in full."""
    counts: Counter[str] = Counter()
    first: dict[str, tuple[str, str]] = {}
    for prompt, note in notes:
        lines = note.strip().splitlines()
        kind = lines[-1] if lines else "?"
        counts[kind] += 1
        first.setdefault(kind, (prompt, note))
    message = "a reward failed on prompt %s (%d times): %s"
    for kind, (prompt, note) in first.items():
        logging.getLogger(__name__).error(message, prompt, counts[kind], note)


def part_of(
    i: int, rewards: Sequence[Reward], where: Callable[[str], str], max_new_tokens: int | None
) -> Part:
    """One of a recipe's rewards, checked as `parts_of` checks all of them."""
    reward, key = rewards[i], f"rewards.{i}"
    function = found(reward.use, REWARDS, where(f"{key}.use"), "reward")
    refuse_other(function, reward.use, where(f"{key}.use"))
    options = options_of(function, reward, key, where)
    if "limit" in options and options["limit"] is None:
        options["limit"] = max_new_tokens
    _check(options, reward, key, where)
    form = form_of(function, reward.options)
    completions = options.pop("completions", None) if form.together else None
    timed = LIMIT in inspect.signature(function).parameters
    if timed:
        options[LIMIT] = reward.timeout
    place = reward.use
    if reward.use not in REWARDS:
        path, _, name = reward.use.rpartition(":")
        line = getattr(getattr(function, "__code__", None), "co_firstlineno", None)
        place = f"{path}:{line}" if line else path
        function = FileFunction(path, name, read_file(path, where(f"{key}.use")))
    return Part(
        name=names_of(rewards)[i],
        weight=reward.weight,
        function=function,
        options=options,
        form=form,
        timeout=reward.timeout * (OWN_LIMIT if timed else 1),
        pooled=reward.use not in LINEAR,
        place=place,
        completions=completions,
    )


def _check(options: dict[str, Any], reward: Reward, key: str, where: Callable[[str], str]) -> None:
    """Options that contradict each other, or the run."""
    if "pattern" in options:
        _check_pattern(options["pattern"], reward.use, where(f"{key}.use"))
    if "limit" in options:
        cache = options.get("cache", 0)
        _check_lengths(options["limit"], cache, lambda name: where(f"{key}.{name}"))
    if "judge" in options and "endpoint" in options:
        at_judge = where(f"{key}.judge")
        at_endpoint = where(f"{key}.endpoint")
        _check_judge(options["judge"], options["endpoint"], at_judge, at_endpoint)


def _check_lengths(limit: int | None, cache: int, where: Callable[[str], str]) -> None:
    if limit is None:
        what, fix = "the longest answer is not known", "add limit: a number of tokens"
        raise ConfigError(what, where=where("limit"), fix=fix)
    if cache > limit:
        what = f"cache {cache} is more than limit {limit}: every answer would be penalised"
        fix = f"set cache to at most {limit}, e.g. {max(1, limit // 5)}"
        raise ConfigError(what, where=where("cache"), fix=fix)


def _check_judge(judge: str, endpoint: Endpoint | None, at_judge: str, at_endpoint: str) -> None:
    if judge == "policy" and endpoint is not None:
        what, fix = "an endpoint is not read by judge=policy", "set judge: endpoint, or remove it"
        raise ConfigError(what, where=at_endpoint, fix=fix)
    if judge == "endpoint" and endpoint is None:
        what, fix = "judge=endpoint without an endpoint", "add endpoint: {url: …, model: …}"
        raise ConfigError(what, where=at_judge, fix=fix)
    if endpoint and not endpoint.url.startswith(("http://", "https://")):
        what, fix = "the endpoint's url is not one of HTTP", "write http://… or https://…"
        raise ConfigError(what, where=at_endpoint, fix=fix)


def _check_pattern(pattern: str | None, use: str, where: str) -> None:
    if pattern is None:
        fix = "add pattern: a regular expression"
        raise ConfigError(f"the reward {use!r} needs a pattern", where=where, fix=fix)
    try:
        re.compile(pattern)
    except re.error as error:
        what = f"the pattern is no regular expression: {error}"
        raise ConfigError(what, where=where, fix="mend the pattern") from None


def names_of(rewards: Sequence[Reward]) -> list[str]:
    """Those of their functions; with its number where several have that name."""
    names = [reward.use.rpartition(":")[2] for reward in rewards]
    return [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]
