"""From completions to groups: every reward of the recipe, weighted and summed; a
missing reward leaves its group.

A reward is a function of what it names among `part.ROLLOUT`, returning a float, a float and an Outcome, named
parts, or None for missing. `use: file.py:function` takes one of the user's own. What is not bounded by
construction runs in the worker processes of `pool`. `rubric` alone may leave a question for a judge; those of
all rollouts are asked in one call.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.recipe.reward import Endpoint, Reward
from lgrpo_lite.recipe.schema import Safety
from lgrpo_lite.rewards import rubric
from lgrpo_lite.rewards.judge import Judge, endpoint_judge
from lgrpo_lite.rewards.mark import Mark, Pooled, Sheet, marked
from lgrpo_lite.rewards.part import Tally, log_faults, parts_of
from lgrpo_lite.rewards.pool import Pool
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score
from lgrpo_lite.verifier.answers import final_answer

Verdicts = dict[tuple[Endpoint | None, str], tuple[bool, ...] | None]  # by judge and question
Marks = list[list[list[Mark]]]  # by prompt, completion and reward


class RewardSum:
    """The recipe's rewards as one: `value` is Σ weight · reward, `outcome` that of the first one.

    `max_new_tokens` is the `limit` of rewards that leave it null; `safety` holds the
    limits of the worker processes.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        where: Callable[[str], str],
        *,
        max_new_tokens: int | None = None,
        safety: Safety | None = None,
    ):
        self.rewards, self.where = tuple(rewards), where
        self.parts = parts_of(rewards, where, max_new_tokens)
        limits = safety or Safety()
        pooled = [part for part in self.parts if part.pooled]
        functions = [Pooled(part.function) for part in pooled]
        timeouts = [part.timeout for part in pooled]
        self.pool = Pool(functions, timeouts, workers=limits.reward_workers, memory=limits.reward_memory_gb)
        self._judges: dict[Endpoint, Judge] = {}

    def log_to(self, path: Path) -> None:
        """What worker processes print goes to that file; until then, nowhere."""
        self.pool.log = path

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """A prompt without a rubric, where a reward reads one: DataError."""
        if any(r.use == "rubric" for r in self.rewards):
            for prompt in prompts:
                if not prompt.rubric:
                    fix = "set data.train.N.rubric (data.eval.N.rubric) to its source's column of criteria"
                    raise DataError(
                        "the reward 'rubric' meets a prompt without criteria",
                        where=f"prompt {prompt.id}",
                        fix=fix,
                    )

    def answer(self, completion: str) -> str | None:
        """The final answer as the first reward that checks answers takes it
        from the text; for majority votes.
        """
        extract = next((p.options["extract"] for p in self.parts if "extract" in p.options), "final")
        return final_answer(completion, extract)

    def score(self, prompt: Prompt, completion: Completion) -> Score:
        """One completion. A timeout, a crash, any exception, NaN or a value beyond ±10^6 make it missing."""
        return self.scores([prompt], [[completion]])[0][0]

    def scores(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        judge: Judge | None = None,
        tally: Tally | None = None,
    ) -> list[list[Score]]:
        """The score of every completion. `judge` is the policy's, asked at most once;
        an endpoint is one of its own.

        A criterion without a verdict makes the score missing. Criteria for a policy that is not given:
        ConfigError. `tally` takes what the scoring took.
        """
        self.check(prompts)
        rows = self._marks(prompts, completions, tally or Tally())
        verdicts = self._ask([sheet for row in rows for marks in row for sheet in _open(marks)], judge)
        return [[self._total(marks, verdicts) for marks in row] for row in rows]

    def group(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        judge: Judge | None = None,
        tally: Tally | None = None,
    ) -> list[Group]:
        """One group per prompt, without the rollouts whose reward is missing."""
        groups = []
        for prompt, answers, scores in zip(
            prompts, completions, self.scores(prompts, completions, judge, tally), strict=True
        ):
            rollouts = [Rollout(prompt, answer, score) for answer, score in zip(answers, scores, strict=True)]
            scored = tuple(r for r in rollouts if r.score.value is not None)
            groups.append(Group(prompt, scored, missing=len(rollouts) - len(scored)))
        return groups

    def _marks(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], tally: Tally
    ) -> Marks:
        """What each reward says without a judge: the bounded ones here, then all
        others in one batch of the pool.
        """
        pairs = [
            (prompt, answer)
            for prompt, answers in zip(prompts, completions, strict=True)
            for answer in answers
        ]
        seconds, notes = [0.0] * len(pairs), []
        marks: list[list[Mark]] = [[Outcome.error] * len(self.parts) for _ in pairs]
        calls, places = [], []
        pooled = [place for place, part in enumerate(self.parts) if part.pooled]
        for i, (prompt, answer) in enumerate(pairs):
            for place, part in enumerate(self.parts):
                arguments = part.arguments(prompt, answer)
                if part.pooled:
                    calls.append((pooled.index(place), arguments))
                    places.append((i, place))
                else:
                    began = time.perf_counter()
                    marks[i][place] = marked(part.function, arguments)  # pyright: ignore[reportArgumentType]
                    seconds[i] += time.perf_counter() - began
        for (i, place), reply in zip(places, self.pool.run(calls), strict=True):
            seconds[i] += reply.seconds
            if reply.fault:
                notes.append((pairs[i][0].id, reply.note))
                tally.faults[reply.fault] += 1
                marks[i][place] = Outcome.timeout if reply.fault == "timeout" else Outcome.error
            else:
                marks[i][place] = reply.value
                if isinstance(reply.value, Outcome):
                    tally.faults[reply.value.value] += 1
        log_faults(notes)
        tally.seconds += seconds
        each = iter(marks)
        return [[next(each) for _ in answers] for answers in completions]

    def _ask(self, sheets: Iterable[Sheet], policy: Judge | None) -> Verdicts:
        """Every question once, each judge in one call."""
        questions: dict[Endpoint | None, dict[str, int]] = {}
        for sheet in sheets:
            if sheet.question is not None:
                questions.setdefault(sheet.endpoint, {})[sheet.question] = sheet.judged
        verdicts: Verdicts = {}
        for endpoint, counts in questions.items():
            replies = self._judge(endpoint, policy)(list(counts))
            read = [
                None if r is None else rubric.verdicts(r, n)
                for r, n in zip(replies, counts.values(), strict=True)
            ]
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
            i = next(i for i, r in enumerate(self.rewards) if judged_by_policy(r))
            what = "criteria without a rule are for the policy to judge, and there is none here"
            fix = "give every criterion a rule (regex, numeric or unit), or set judge=endpoint"
            raise ConfigError(what, where=self.where(f"rewards.{i}.judge"), fix=fix)
        return policy

    def _total(self, marks: list[Mark], verdicts: Verdicts) -> Score:
        if missing := next((mark for mark in marks if isinstance(mark, Outcome)), None):
            return Score(None, missing)
        values: dict[str, float] = {}
        outcomes, criteria, total = [], (), 0.0
        for part, mark in zip(self.parts, marks, strict=True):
            inner = {}
            if isinstance(mark, Sheet):
                given = () if mark.question is None else verdicts.get((mark.endpoint, mark.question))
                if given is None:
                    return Score(None, Outcome.error)
                held = mark.complete(given)
                criteria = criteria or held
                value = rubric.reward(mark.criteria, held, mark.override)
                outcome = Outcome.ok if value == 1 else Outcome.wrong
            else:
                assert not isinstance(mark, Outcome), "seen above"
                value, outcome = mark.value, mark.outcome
                inner = {f"{part.name}.{name}": share for name, share in mark.parts.items()}
            values |= {part.name: value} | inner
            outcomes.append(outcome)
            total += part.weight * value
        return Score(total, outcomes[0], values, criteria)


def judged_by_policy(reward: Reward) -> bool:
    """Whether criteria without a rule are for the policy, its adapter off, to judge."""
    return reward.use == "rubric" and reward.options.get("judge", "policy") == "policy"


def _open(marks: list[Mark]) -> list[Sheet]:
    """The sheets a judge is asked about: none where another reward is missing already."""
    missing = any(isinstance(mark, Outcome) for mark in marks)
    return [] if missing else [mark for mark in marks if isinstance(mark, Sheet)]
