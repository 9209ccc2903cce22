"""What one reward says of one completion. Light to import: worker processes begin here."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lgrpo_lite.rewards.worker import FileFunction
from lgrpo_lite.types import Criterion, Outcome

if TYPE_CHECKING:  # pydantic takes a worker longer to import than all the rest
    from lgrpo_lite.recipe.reward import Endpoint

MAX_REWARD = 1e6  # beyond it a sum of squares leaves float32; such a value is a fault, not a reward


@dataclass(frozen=True, slots=True)
class Value:
    """A finite number, why, and named parts of it."""

    value: float
    outcome: Outcome
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A completion's rubric, marked as far as rules go. `question` None: there is nothing left to ask."""

    criteria: tuple[Criterion, ...]
    satisfied: tuple[bool | None, ...]  # None: for the judge
    question: str | None
    endpoint: "Endpoint | None"  # who is asked; None: the policy
    override: Literal["factual", "none"]

    @property
    def judged(self) -> int:
        return self.satisfied.count(None)

    def complete(self, marks: Sequence[bool]) -> tuple[bool, ...]:
        """Which criteria are satisfied, with the judge's marks in the order asked."""
        judged = iter(marks)
        whole = []
        for mark in self.satisfied:
            whole.append(next(judged) if mark is None else mark)
        return tuple(whole)


Mark = Sheet | Value | Outcome  # an Outcome alone: missing


@dataclass(frozen=True, slots=True)
class Pooled:
    """A reward as worker processes take it: it answers with marks, whatever the function returned."""

    function: Callable | FileFunction
    together: bool = False  # it is called once for all answers to a prompt, and gives a list

    def load(self) -> Callable[..., Mark | list[Mark]]:
        function = self.function
        if isinstance(function, FileFunction):
            function = function.load()
        mark = marked_together if self.together else marked
        return lambda **arguments: mark(function, arguments)


def marked(function: Callable, arguments: Mapping[str, Any]) -> Mark:
    """The mark a function gives. TimeoutError is a timeout; any other exception is the caller's."""
    try:
        return settled(_awaited(function(**arguments)))
    except TimeoutError:
        return Outcome.timeout


def marked_together(function: Callable, arguments: Mapping[str, Any]) -> list[Mark]:
    """The marks of a function of TRL's form, one a completion. As many as there are not: ValueError."""
    count = len(arguments["completions"])
    try:
        results = _awaited(function(**arguments))
    except TimeoutError:
        return [Outcome.timeout] * count
    if isinstance(results, str | Mapping) or not hasattr(results, "__len__"):
        kind = type(results).__name__
        raise TypeError(f"it returned a {kind} for {count} completions, and not a list of as many rewards")
    if len(results) != count:
        raise ValueError(f"it returned {len(results)} rewards for {count} completions")
    return [settled(result) for result in results]


def _awaited(result: Any) -> Any:
    """What an `async` function comes to."""
    if not inspect.iscoroutine(result):
        return result
    import asyncio

    return asyncio.run(result)


def settled(result: Any) -> Mark:
    """What a function returned, as a mark. None, NaN, infinities and values beyond ±10^6 are missing; other
    types raise.

    A number alone is `ok` above 0. A dict holds named parts, and its value is their sum.
    """
    if isinstance(result, Sheet | Outcome):
        return result
    if result is None:
        return Outcome.error
    value, outcome = result if isinstance(result, tuple) else (result, None)
    parts: dict[str, float] = {}
    if isinstance(value, Mapping):
        parts = {str(name): float(part) for name, part in value.items()}
        value = sum(parts.values())
    if isinstance(value, str):  # float() would take it
        raise TypeError("a reward is a number, not text")
    value = float(value)
    if not math.isfinite(value) or abs(value) > MAX_REWARD:
        return Outcome.error
    if not outcome:
        outcome = Outcome.ok if value > 0 else Outcome.wrong
    return Value(value, Outcome(outcome), parts)
