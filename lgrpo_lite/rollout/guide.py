"""Guided answers (G²RPO-A, arXiv:2508.13023): part of a group begins with a piece of a worked solution."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.algorithm import Guide
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.types import Completion, Group, Prompt


class GuideLength:
    """ℓ ← clamp(int(ℓ · mean(last m rewards)/r), 1, max), m = min(T, rewards so
    far): reward up, guidance shorter.

    A side of 0 changes nothing. `released` changes ℓ at every third reward only, as the paper's code does.
    """

    def __init__(self, settings: Guide):
        self.settings, self.length = settings, min(settings.init, settings.max)
        self.rewards: list[float] = []

    def observe(self, reward: float) -> None:
        """A step's mean reward, of the verifier alone."""
        s, earlier = self.settings, self.rewards[-self.settings.history :]
        self.rewards.append(reward)
        due = s.schedule == "every" or len(self.rewards) % 3 == 0
        if not due or not earlier or reward <= 0 or statistics.fmean(earlier) <= 0:
            return
        mean = statistics.fmean(earlier)
        if s.max_factor is not None:
            mean = min(max(mean, reward / s.max_factor), reward * s.max_factor)
        # bounded first: a tiny reward gives infinity
        self.length = max(int(min(self.length * mean / reward, s.max)), 1)

    def state_dict(self) -> dict[str, Any]:
        return {"length": self.length, "rewards": list(self.rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.length, self.rewards = state["length"], list(state["rewards"])


def guided_count(n: int, share: float) -> int:
    """ceil(share · n) answers of a group are guided; the bit taken off is so that 10 · 0.3 is 3."""
    return min(n, math.ceil(n * share - 1e-9))


def guidance(prompt: Prompt, length: int, settings: Guide, limit: int) -> tuple[int, ...]:
    """The first `length` tokens of the solution, at most `max_share` of it,
    and short of the answer's limit.
    """
    if not prompt.solution_ids:
        fix = "give data.train.N.solution (a column), or algorithm.guide=null"
        raise DataError("the prompt has no solution to guide with", where=f"prompt {prompt.id}", fix=fix)
    most = min(length, int(settings.max_share * len(prompt.solution_ids)), limit - 1)
    return prompt.solution_ids[:most]


def guided_answers(
    prompts: Sequence[Prompt], n: int, length: int, settings: Guide, tools: Tools
) -> list[list[Completion]]:
    """n answers a prompt; the first ceil(share · n) begin with guidance, and say in
    `given` how many tokens of it.
    """
    guided = guided_count(n, settings.share)
    rows = [(prompt, i < guided) for prompt in prompts for i in range(n)]
    limit = tools.sampling.max_new_tokens
    prefixes = [guidance(prompt, length, settings, limit) if shown else () for prompt, shown in rows]
    answers = [row[0] for row in tools.generate([prompt for prompt, _ in rows], 1, prefixes)]
    return [answers[i * n : (i + 1) * n] for i in range(len(prompts))]


def verifier_reward(groups: Sequence[Group]) -> float | None:
    """Mean of the first reward, the verifier's, over what was scored; None without any."""
    first = [next(iter(r.score.parts.values()), r.reward) for g in groups for r in g.rollouts]
    return statistics.fmean(first) if first else None
