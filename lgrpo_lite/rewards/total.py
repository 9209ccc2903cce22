"""From completions to groups: all rewards of the recipe, weighted and summed; a missing one leaves its group.

A reward is a function of what it names among `form.ROLLOUT` and the columns of the data, and gives a float, a
float and an Outcome, named parts, or None for missing; one of TRL's form is of all answers to a prompt. A
user's own is `use: file.py:function`. What is not bounded by construction runs in the worker processes of
`pool`. `rubric` alone may leave a question for a judge; those of all rollouts are asked in one call.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.recipe.reward import Endpoint, Reward
from lgrpo_lite.recipe.schema import Recipe, Safety
from lgrpo_lite.rewards import rubric
from lgrpo_lite.rewards.form import ROLLOUT, TOGETHER
from lgrpo_lite.rewards.judge import Judge, endpoint_judge
from lgrpo_lite.rewards.mark import Mark, Pooled, Sheet, Value, marked
from lgrpo_lite.rewards.part import Part, Tally, log_faults, parts_of
from lgrpo_lite.rewards.pool import Call, Pool, Reply
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score
from lgrpo_lite.verifier.answers import final_answer

NO_NUMBER = "it gave no finite number (None, NaN or beyond a million), or ran into a TimeoutError"
Verdicts = dict[tuple[Endpoint | None, str], tuple[bool, ...] | None]  # by judge and question
Marks = list[list[list[Mark]]]  # by prompt, completion and reward


@dataclass(frozen=True, slots=True)
class Cell:
    """Whose marks a call gives: of a prompt (`row`), some of its answers, and a reward (`column`)."""

    row: int
    column: int
    answers: range


class RewardSum:
    """The recipe's rewards as one: `value` is Σ weight · reward, `outcome` that of the first one.

    `max_new_tokens` is the `limit` of rewards that leave it null; `safety` holds the limits of the worker
    processes.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        where: Callable[[str], str],
        *,
        max_new_tokens: int | None = None,
        safety: Safety | None = None,
    ):
        self.rewards = tuple(rewards)
        self.where = where
        self.parts = parts_of(rewards, where, max_new_tokens)
        limits = safety or Safety()
        self._pooled = [column for column, part in enumerate(self.parts) if part.pooled]
        pooled = [self.parts[column] for column in self._pooled]
        functions = [Pooled(part.function, part.form.together) for part in pooled]
        timeouts = [part.timeout for part in pooled]
        self.pool = Pool(functions, timeouts, workers=limits.reward_workers, memory=limits.reward_memory_gb)
        self.first_fault = ""  # of a reward, with FILE:LINE
        self._judges: dict[Endpoint, Judge] = {}

    @classmethod
    def of(cls, recipe: Recipe) -> "RewardSum":
        """Those of a recipe, with its limits."""
        limit = recipe.model.max_new_tokens
        return cls(recipe.rewards, recipe.where, max_new_tokens=limit, safety=recipe.safety)

    def log_to(self, path: Path) -> None:
        """What worker processes print goes to that file; until then, nowhere."""
        self.pool.log = path

    def close(self) -> None:
        """End the worker processes."""
        self.pool.close()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """A prompt without a rubric, where a reward reads one, or without a column: DataError."""
        prompts = list(prompts)
        for prompt in prompts:
            self._demand_columns(prompt)
        if not any(reward.use == "rubric" for reward in self.rewards):
            return
        for prompt in prompts:
            if not prompt.rubric:
                what = "the reward 'rubric' meets a prompt without criteria"
                fix = "set data.train.N.rubric (data.eval.N.rubric) to its source's column of criteria"
                raise DataError(what, where=f"prompt {prompt.id}", fix=fix)

    def _demand_columns(self, prompt: Prompt) -> None:
        for i, part in enumerate(self.parts):
            for name in part.form.columns:
                if name not in prompt.columns:
                    of_answer = ", ".join(TOGETHER if part.form.together else ROLLOUT)
                    count = "" if part.form.together else " (completion_tokens is a count)"
                    what = (
                        f"{part.place}: the reward asks for {name}, and prompt {prompt.id} has no such column"
                    )
                    fix = (
                        f"set {name} beside `use`, or name a column; of an answer it may ask for {of_answer}"
                    )
                    raise DataError(what, where=self.where(f"rewards.{i}.use"), fix=f"{fix}{count}")

    def answer(self, completion: str) -> str | None:
        """The final answer, for majority votes, as the first reward that checks answers finds it."""
        ways = [part.options["extract"] for part in self.parts if "extract" in part.options]
        return final_answer(completion, ways[0] if ways else "final")

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
        """The score of every completion. `judge` is the policy's, asked once at most; endpoints have theirs.

        A criterion without a verdict makes the score missing. Criteria for a policy that is not given:
        ConfigError. `tally` takes what the scoring took.
        """
        self.check(prompts)
        rows = self._marks(prompts, completions, tally or Tally())
        sheets = []
        for row in rows:
            for marks in row:
                sheets += _open(marks)
        verdicts = self._ask(sheets, judge)
        scores = []
        for row in rows:
            scores.append([self._total(marks, verdicts) for marks in row])
        return scores

    def group(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[Completion]],
        judge: Judge | None = None,
        tally: Tally | None = None,
    ) -> list[Group]:
        """One group per prompt, without the rollouts whose reward is missing."""
        rows = self.scores(prompts, completions, judge, tally)
        groups = []
        for prompt, answers, scores in zip(prompts, completions, rows, strict=True):
            pairs = zip(answers, scores, strict=True)
            scored = [Rollout(prompt, answer, score) for answer, score in pairs if score.value is not None]
            groups.append(Group(prompt, tuple(scored), missing=len(answers) - len(scored)))
        return groups

    def _marks(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], tally: Tally
    ) -> Marks:
        """What each reward says without a judge: the bounded ones here, then all others in one batch of the
        pool.
        """
        marks: Marks = []
        seconds: list[list[float]] = []
        calls: list[Call] = []
        cells: list[Cell] = []  # whose marks they give
        for row, (prompt, answers) in enumerate(zip(prompts, completions, strict=True)):
            marks.append([[Outcome.error] * len(self.parts) for _ in answers])
            seconds.append([0.0] * len(answers))
            for column, part in enumerate(self.parts):
                if not part.pooled:
                    for i, answer in enumerate(answers):
                        began = time.perf_counter()
                        arguments = part.arguments(prompt, answer)
                        marks[row][i][column] = marked(part.function, arguments)  # pyright: ignore[reportArgumentType]
                        seconds[row][i] += time.perf_counter() - began
                    continue
                for cell, arguments in _calls(part, row, column, prompt, answers):
                    calls.append((self._pooled.index(column), arguments))
                    cells.append(cell)
        notes = []
        sizes = [len(cell.answers) for cell in cells]
        for cell, reply in zip(cells, self.pool.run(calls, sizes), strict=True):
            given = _marks_of(reply, len(cell.answers))
            for i, mark in zip(cell.answers, given, strict=True):
                marks[cell.row][i][cell.column] = mark
                seconds[cell.row][i] += reply.seconds / len(cell.answers)
                if isinstance(mark, Outcome):
                    tally.faults[reply.fault or mark.value] += 1
            tally.verifier_faults += reply.verifier_faults
            if any(isinstance(mark, Outcome) for mark in given):
                note = reply.note or NO_NUMBER
                tally.first = tally.first or self.parts[cell.column].fault(note)
            if reply.fault:
                notes.append((prompts[cell.row].id, reply.note))
        self.first_fault = self.first_fault or tally.first
        log_faults(notes)
        for row in seconds:
            tally.seconds += row
        return marks

    def _ask(self, sheets: Iterable[Sheet], policy: Judge | None) -> Verdicts:
        """Every question once, each judge in one call."""
        questions: dict[Endpoint | None, dict[str, int]] = {}
        for sheet in sheets:
            if sheet.question is not None:
                questions.setdefault(sheet.endpoint, {})[sheet.question] = sheet.judged
        verdicts: Verdicts = {}
        for endpoint, counts in questions.items():
            ask = self._judge(endpoint, policy)
            replies = ask(list(counts))
            unclear = 0
            for (question, count), reply in zip(counts.items(), replies, strict=True):
                verdict = None if reply is None else rubric.verdicts(reply, count)
                verdicts[endpoint, question] = verdict
                unclear += reply is not None and verdict is None
            if unclear:
                message = "%d of %d replies of the judge lack a verdict on some criterion"
                logging.getLogger(__name__).warning(message, unclear, len(counts))
        return verdicts

    def _judge(self, endpoint: Endpoint | None, policy: Judge | None) -> Judge:
        if endpoint is not None:  # opened when first asked: a recipe can be checked where its key is not
            if endpoint not in self._judges:
                self._judges[endpoint] = endpoint_judge(endpoint)
            return self._judges[endpoint]
        if policy is None:
            i = [judged_by_policy(reward) for reward in self.rewards].index(True)
            what = "criteria without a rule are for the policy to judge, and there is none here"
            fix = "give every criterion a rule (regex, numeric or unit), or set judge=endpoint"
            raise ConfigError(what, where=self.where(f"rewards.{i}.judge"), fix=fix)
        return policy

    def _total(self, marks: list[Mark], verdicts: Verdicts) -> Score:
        missing = [mark for mark in marks if isinstance(mark, Outcome)]
        if missing:
            return Score(None, missing[0])
        values: dict[str, float] = {}
        outcomes = []
        criteria = ()
        total = 0.0
        for part, mark in zip(self.parts, marks, strict=True):
            if isinstance(mark, Sheet):
                given = () if mark.question is None else verdicts.get((mark.endpoint, mark.question))
                if given is None:
                    return Score(None, Outcome.error)
                satisfied = mark.complete(given)
                criteria = criteria or satisfied
                value = rubric.reward(mark.criteria, satisfied, mark.override)
                mark = Value(value, Outcome.ok if value == 1 else Outcome.wrong)
            assert not isinstance(mark, Outcome), "looked for above"
            values[part.name] = mark.value
            for name, share in mark.parts.items():
                values[f"{part.name}.{name}"] = share
            outcomes.append(mark.outcome)
            total += part.weight * mark.value
        return Score(total, outcomes[0], values, criteria)


def judged_by_policy(reward: Reward) -> bool:
    """Whether criteria without a rule are for the policy, its adapter off, to judge."""
    return reward.use == "rubric" and reward.options.get("judge", "policy") == "policy"


def _open(marks: list[Mark]) -> list[Sheet]:
    """The sheets a judge is asked about: none where another reward is missing already."""
    if any(isinstance(mark, Outcome) for mark in marks):
        return []
    return [mark for mark in marks if isinstance(mark, Sheet)]


def _calls(
    part: Part, row: int, column: int, prompt: Prompt, answers: Sequence[Completion]
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """What a pooled reward is asked of a prompt's answers: each alone, or all together."""
    if part.form.together:
        if answers:
            yield Cell(row, column, range(len(answers))), part.arguments_together(prompt, answers)
        return
    for i, answer in enumerate(answers):
        yield Cell(row, column, range(i, i + 1)), part.arguments(prompt, answer)


def _marks_of(reply: Reply, count: int) -> list[Mark]:
    """Of as many answers as the call was about."""
    if reply.fault is not None:
        return [Outcome.timeout if reply.fault == "timeout" else Outcome.error] * count
    return reply.value if isinstance(reply.value, list) else [reply.value]
