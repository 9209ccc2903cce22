"""Answers scored and written down, with the rewards and the judge of a run."""

from collections.abc import Callable, Sequence

from lgrpo_lite import progress
from lgrpo_lite.evaluation.figures import Problem, Sample
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Completion, Outcome, Prompt, Score
from lgrpo_lite.verifier.votes import normal


def ticking(what: str, begin: int, count: int, of: int) -> Callable[[float], None]:
    """Progress of `count` problems out of `of`, from `begin` on: reported now, and for each share done."""
    progress.told(what, begin, of)

    def tick(share: float) -> None:
        done = begin + int(count * share)
        progress.told(what, min(done, of - 1), of)  # the last is done when it is scored

    return tick


def scored(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Completion]],
    tools: Tools,
    categories: Sequence[dict[str, str]] | None = None,
) -> list[Problem]:
    """The answers with their rewards, as lines of a samples file."""
    scores = tools.reward.scores(prompts, answers, tools.judge)
    problems = []
    for i, prompt in enumerate(prompts):
        pairs = zip(answers[i], scores[i], strict=True)
        problem = Problem(
            id=prompt.id,
            question=prompt.text,
            reference=prompt.reference,
            category=categories[i] if categories else {},
            samples=tuple(_sample(completion, score, tools.reward) for completion, score in pairs),
        )
        problems.append(problem)
    return problems


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
