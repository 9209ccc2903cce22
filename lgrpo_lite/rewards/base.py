"""From completions to groups: every reward of the recipe, weighted and summed; a missing reward leaves its group.

A reward is a function of what it names among ROLLOUT, returning a float, or a float and an Outcome. `use: file.py:function`
takes one of the user's own. `rubric` alone may leave a question for a judge; those of all rollouts are asked in one call.
"""

import inspect
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from lgrpo_lite.config import Endpoint, Reward
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.plugin import found
from lgrpo_lite.rewards import rubric, text
from lgrpo_lite.rewards.judge import Judge, endpoint_judge
from lgrpo_lite.rewards.rubric import Sheet
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score

MAX_REWARD = 1e6  # beyond it a sum of squares leaves float32; such a value is a fault, not a reward
REWARDS = {
    "exact": text.exact,
    "numeric": text.numeric,
    "format": text.matches,
    "overlong": text.overlong,
    "rubric": rubric.sheet,
}
ROLLOUT = ("completion", "completion_tokens", "finish_reason", "prompt", "reference", "rubric")  # what a reward may name
OPTIONS = ("extract", "pattern", "limit", "cache", "judge", "endpoint", "override")  # keys of a reward that one of them reads

Mark = Sheet | tuple[float, Outcome] | Outcome  # of one reward; an Outcome alone: missing
Verdicts = dict[tuple[Endpoint | None, str], tuple[bool, ...] | None]  # by judge and question


@dataclass(frozen=True, slots=True)
class Part:
    """One reward of the sum: a function with its options bound, and the arguments it takes from the rollout."""

    name: str
    weight: float
    function: Callable
    wanted: list[str]


class RewardSum:
    """The recipe's rewards as one: `value` is Σ weight · reward, `outcome` that of the first one.

    `max_new_tokens` is the `limit` of rewards that leave it null.
    """

    def __init__(self, rewards: Sequence[Reward], where: Callable[[str], str], *, max_new_tokens: int | None = None):
        self.rewards, self.where = tuple(rewards), where
        self.parts = [_part(i, rewards, where, max_new_tokens) for i in range(len(rewards))]
        self._judges: dict[Endpoint, Judge] = {}

    def check(self, prompts: Iterable[Prompt]) -> None:
        """A prompt without a rubric, where a reward reads one: DataError."""
        if any(r.use == "rubric" for r in self.rewards):
            for prompt in prompts:
                if not prompt.rubric:
                    fix = "set data.train.N.rubric (data.eval.N.rubric) to its source's column of criteria"
                    raise DataError("the reward 'rubric' meets a prompt without criteria", where=f"prompt {prompt.id}", fix=fix)

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """One completion. A TimeoutError, any other exception, NaN or a value beyond ±10^6 make it missing."""
        return self.scores([prompt], [[completion]])[0][0]

    def scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], judge: Judge | None = None
    ) -> list[list[Score]]:
        """The score of every completion. `judge` is the policy's, asked at most once; an endpoint is one of its own.

        A criterion without a verdict makes the score missing. Criteria for a policy that is not given: ConfigError.
        """
        self.check(prompts)
        rows = [[self._mark(p, c) for c in answers] for p, answers in zip(prompts, completions, strict=True)]
        verdicts = self._ask([sheet for row in rows for marks in row for sheet in _open(marks)], judge)
        return [[self._total(marks, verdicts) for marks in row] for row in rows]

    def group(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], judge: Judge | None = None
    ) -> list[Group]:
        """One group per prompt, without the rollouts whose reward is missing."""
        groups = []
        for prompt, answers, scores in zip(prompts, completions, self.scores(prompts, completions, judge), strict=True):
            rollouts = [Rollout(prompt, answer, score) for answer, score in zip(answers, scores, strict=True)]
            scored = tuple(r for r in rollouts if r.score.value is not None)
            groups.append(Group(prompt, scored, missing=len(rollouts) - len(scored)))
        return groups

    def _mark(self, prompt: Prompt, completion: Completion) -> list[Mark]:
        """What each reward says without a judge, up to the first that is missing."""
        marks: list[Mark] = []
        for part in self.parts:
            marks.append(_call(part, prompt, completion))
            if isinstance(marks[-1], Outcome):
                break
        return marks

    def _ask(self, sheets: Iterable[Sheet], policy: Judge | None) -> Verdicts:
        """Every question once, each judge in one call."""
        questions: dict[Endpoint | None, dict[str, int]] = {}
        for sheet in sheets:
            if sheet.question is not None:
                questions.setdefault(sheet.endpoint, {})[sheet.question] = sheet.judged
        verdicts: Verdicts = {}
        for endpoint, counts in questions.items():
            replies = self._judge(endpoint, policy)(list(counts))
            read = [None if r is None else rubric.verdicts(r, n) for r, n in zip(replies, counts.values(), strict=True)]
            verdicts.update(zip(((endpoint, question) for question in counts), read, strict=True))
            if unread := sum(v is None and r is not None for v, r in zip(read, replies, strict=True)):
                message = "%d of %d replies of the judge lack a verdict on some criterion"
                logging.getLogger(__name__).warning(message, unread, len(read))
        return verdicts

    def _judge(self, endpoint: Endpoint | None, policy: Judge | None) -> Judge:
        if endpoint is not None:  # opened when first asked: a recipe can be checked where its key is not
            if endpoint not in self._judges:
                self._judges[endpoint] = endpoint_judge(endpoint)
            return self._judges[endpoint]
        if policy is None:
            i = next(i for i, r in enumerate(self.rewards) if r.use == "rubric" and r.judge == "policy")
            what = "criteria without a rule are for the policy to judge, and there is none here"
            fix = "give every criterion a rule (regex, numeric or unit), or set judge=endpoint"
            raise ConfigError(what, where=self.where(f"rewards.{i}.judge"), fix=fix)
        return policy

    def _total(self, marks: list[Mark], verdicts: Verdicts) -> Score:
        if isinstance(marks[-1], Outcome):
            return Score(None, marks[-1])
        values, outcomes, criteria, total = {}, [], (), 0.0
        for part, mark in zip(self.parts, marks, strict=True):
            if isinstance(mark, Sheet):
                given = () if mark.question is None else verdicts[mark.endpoint, mark.question]
                if given is None:
                    return Score(None, Outcome.error)
                held = mark.complete(given)
                criteria = criteria or held
                value = rubric.reward(mark.criteria, held, mark.override)
                outcome = Outcome.ok if value == 1 else Outcome.wrong
            else:
                assert not isinstance(mark, Outcome), "only the last mark can be missing"
                value, outcome = mark
            values[part.name] = value
            outcomes.append(outcome)
            total += part.weight * value
        return Score(total, outcomes[0], values, criteria)


def _open(marks: list[Mark]) -> list[Sheet]:
    """The sheets a judge is asked about: none where another reward is missing already."""
    return [] if isinstance(marks[-1], Outcome) else [mark for mark in marks if isinstance(mark, Sheet)]


def _call(part: Part, prompt: Prompt, completion: Completion) -> Mark:
    known = {
        "completion": completion.text,
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "prompt": prompt.text,
        "reference": prompt.reference,
        "rubric": prompt.rubric,
    }
    try:
        result = part.function(**{name: known[name] for name in part.wanted})
        if isinstance(result, Sheet):
            return result
        value, outcome = result if isinstance(result, tuple) else (result, None)
        value = float(value)
    except TimeoutError:
        return Outcome.timeout
    except Exception:  # a user's function may raise anything; missing rewards are counted every step, the cause is in the log
        logging.getLogger(__name__).exception("a reward failed on prompt %s", prompt.id)
        return Outcome.error
    if not math.isfinite(value) or abs(value) > MAX_REWARD:
        return Outcome.error
    return value, outcome or (Outcome.ok if value > 0 else Outcome.wrong)


def _part(i: int, rewards: Sequence[Reward], where: Callable[[str], str], max_new_tokens: int | None) -> Part:
    reward = rewards[i]
    use = where(f"rewards.{i}.use")
    function = found(reward.use, REWARDS, use, "reward")
    names = set(inspect.signature(function).parameters)
    options = {option: getattr(reward, option) for option in OPTIONS}
    for option in (o for o, value in options.items() if value != Reward.model_fields[o].default and o not in names):
        what = f"reward {reward.use!r} reads no option {option!r}"
        raise ConfigError(what, where=where(f"rewards.{i}.{option}"), fix=f"remove {option}")
    if options["limit"] is None:
        options["limit"] = max_new_tokens
    if "pattern" in names:
        _check_pattern(reward.pattern, use)
    if {"limit", "cache"} <= names:
        _check_lengths(options["limit"], reward.cache, where(f"rewards.{i}.limit"), where(f"rewards.{i}.cache"))
    if {"judge", "endpoint"} <= names:
        _check_judge(reward, where(f"rewards.{i}.judge"), where(f"rewards.{i}.endpoint"))
    wanted = sorted(names - options.keys())
    if unknown := set(wanted) - set(ROLLOUT):
        fix = f"a reward may name {', '.join(ROLLOUT)}"
        raise ConfigError(f"reward {reward.use!r} asks for {', '.join(sorted(unknown))}", where=use, fix=fix)
    bound = partial(function, **{name: value for name, value in options.items() if name in names})
    return Part(_name(i, rewards), reward.weight, bound, wanted)


def _check_lengths(limit: int | None, cache: int, at_limit: str, at_cache: str) -> None:
    if limit is None:
        raise ConfigError("the longest answer is not known", where=at_limit, fix="add limit: a number of tokens")
    if cache > limit:
        what = f"cache {cache} is more than limit {limit}: every answer would be penalised"
        raise ConfigError(what, where=at_cache, fix=f"set cache to at most {limit}, e.g. {max(1, limit // 5)}")


def _check_judge(reward: Reward, judge: str, endpoint: str) -> None:
    if reward.judge == "policy" and reward.endpoint is not None:
        raise ConfigError("an endpoint is not read by judge=policy", where=endpoint, fix="set judge: endpoint, or remove it")
    if reward.judge == "endpoint" and reward.endpoint is None:
        raise ConfigError("judge=endpoint without an endpoint", where=judge, fix="add endpoint: {url: …, model: …}")
    if reward.endpoint and not reward.endpoint.url.startswith(("http://", "https://")):
        raise ConfigError("the endpoint's url is not one of HTTP", where=endpoint, fix="write http://… or https://…")


def _check_pattern(pattern: str | None, where: str) -> None:
    if pattern is None:
        raise ConfigError("the reward 'format' needs a pattern", where=where, fix="add pattern: a regular expression")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"the pattern is no regular expression: {error}", where=where, fix="mend the pattern") from None


def _name(i: int, rewards: Sequence[Reward]) -> str:
    name = rewards[i].use.rpartition(":")[2]
    return name if [r.use.rpartition(":")[2] for r in rewards].count(name) == 1 else f"{name}.{i}"
