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
    """ℓ ← clamp(int(ℓ · mean(last m rewards)/r), 1, max), m = min(T, rewards so far).

    As the reward rises, guidance gets shorter. A side of 0 changes nothing. `released` changes ℓ at every
    third reward only, as the paper's code does.
    """

    def __init__(self, settings: Guide):
        self.settings = settings
        self.length = min(settings.init, settings.max)
        self.rewards: list[float] = []

    def observe(self, reward: float) -> None:
        """A step's mean reward, of the verifier alone."""
        settings = self.settings
        earlier = self.rewards[-settings.history :]
        self.rewards.append(reward)
        due = settings.schedule == "every" or len(self.rewards) % 3 == 0
        if not due or not earlier or reward <= 0:
            return
        mean = statistics.fmean(earlier)
        if mean <= 0:
            return
        if settings.max_factor is not None:
            least, most = reward / settings.max_factor, reward * settings.max_factor
            mean = min(max(mean, least), most)
        longest = min(self.length * mean / reward, settings.max)  # first: a tiny reward gives infinity
        self.length = max(int(longest), 1)

    def state_dict(self) -> dict[str, Any]:
        return {"length": self.length, "rewards": list(self.rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.length = state["length"]
        self.rewards = list(state["rewards"])


def guided_count(n: int, share: float) -> int:
    """ceil(share · n) answers of a group are guided; the bit taken off is so that 10 · 0.3 is 3."""
    return min(n, math.ceil(n * share - 1e-9))


def guidance(prompt: Prompt, length: int, settings: Guide, limit: int) -> tuple[int, ...]:
    """The first `length` tokens of the solution: at most `max_share` of it, less than the answer's limit."""
    if not prompt.solution_ids:
        fix = "give data.train.N.solution (a column), or algorithm.guide=null"
        raise DataError("the prompt has no solution to guide with", where=f"prompt {prompt.id}", fix=fix)
    share = int(settings.max_share * len(prompt.solution_ids))
    return prompt.solution_ids[: min(length, share, limit - 1)]


def guided_answers(
    prompts: Sequence[Prompt], n: int, length: int, settings: Guide, tools: Tools
) -> list[list[Completion]]:
    """n answers a prompt; the first ceil(share · n) begin with guidance, whose tokens `given` counts."""
    guided = guided_count(n, settings.share)
    limit = tools.sampling.max_new_tokens
    repeated: list[Prompt] = []
    prefixes: list[tuple[int, ...]] = []
    for prompt in prompts:
        repeated += [prompt] * n
        if guided:
            prefixes += [guidance(prompt, length, settings, limit)] * guided
        prefixes += [()] * (n - guided)
    answers = [row[0] for row in tools.generate(repeated, 1, prefixes)]
    return [answers[i * n : (i + 1) * n] for i in range(len(prompts))]


def verifier_reward(groups: Sequence[Group]) -> float | None:
    """Mean of the first reward, the verifier's, over what was scored; None without any."""
    rewards = []
    for group in groups:
        for rollout in group.rollouts:
            parts = list(rollout.score.parts.values())
            rewards.append(parts[0] if parts else rollout.reward)
    return statistics.fmean(rewards) if rewards else None
