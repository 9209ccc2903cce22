"""Answers scored and written down, with the rewards and the judge of a run."""

from collections.abc import Callable, Sequence

from lgrpo_lite import progress
from lgrpo_lite.evaluation.figures import Problem, Sample
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Completion, Outcome, Prompt, Score
from lgrpo_lite.verifier.answers import normal


def ticking(what: str, begin: int, count: int, of: int) -> Callable[[float], None]:
    """For `count` of `of` problems from `begin` on: tells that they begin now, and then how
    many the share heard of makes.
    """
    progress.told(what, begin, of)
    # the last is done when it is scored
    return lambda share: progress.told(what, min(begin + int(count * share), of - 1), of)


def scored(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Completion]],
    tools: Tools,
    categories: Sequence[dict[str, str]] | None = None,
) -> list[Problem]:
    """The answers with their rewards, as lines of a samples file."""
    scores = tools.reward.scores(prompts, answers, tools.judge)
    return [
        Problem(
            id=prompt.id,
            question=prompt.text,
            reference=prompt.reference,
            category=categories[i] if categories else {},
            samples=tuple(_sample(c, s, tools.reward) for c, s in zip(row, marks, strict=True)),
        )
        for i, (prompt, row, marks) in enumerate(zip(prompts, answers, scores, strict=True))
    ]


def _sample(completion: Completion, score: Score, reward: RewardSum) -> Sample:
    answer = reward.answer(completion.text)
    return Sample(
        text=completion.text,
        tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        answer=answer,
        vote=None if answer is None else normal(answer),
        outcome=str(score.outcome),
        value=score.value,
        right=None if score.value is None else score.outcome is Outcome.ok,
    )
