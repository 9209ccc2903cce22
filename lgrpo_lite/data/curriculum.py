"""The difficulty pool: prompts solved sometimes are drawn more often than those solved always or never."""

import heapq
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Group, Prompt

PRIOR = 0.5  # solve rate of a prompt that was not sampled yet; where the weight is largest


class DifficultyPool:
    """Draws with weight w = p (1 - p), times that of its source, p a running solve rate:
    p <- p + rate (m - p), from p = 1/2.

    m is the mean of the group's first reward, held to [0, 1]: the share of right answers where the reward is
    0 or 1. Then w is the variance of the reward, by which Foster et al. (arXiv:2502.12272) choose prompts;
    they sample anew to estimate it, here it is read off the groups that were trained anyway, as in online
    difficulty filtering (arXiv:2504.03380), and nothing is thrown away. Running mean, prior and the share of
    ordered draws are this project's choice. It has an effect only once prompts come up again: before a first
    epoch is over unseen prompts, which have the largest weight, are most of the draws.

    Every `ordered_every`-th draw is the next one of PromptStream's order, whatever its weight, so N prompts
    are each drawn at least once in any (2N - 1) · ordered_every draws, and a rate that went stale is found
    out. A weighted draw is without replacement among the prompts that were not drawn within the last `rest`
    draws (a step's most, and at most N/2), so that a redraw within a step does not ask the same prompt again.

    The draws depend on the seed, their count and what was observed, and on nothing else; all of it is the
    state.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, *, rate: float, ordered_every: int, rest: int):
        self.prompts = prompts
        self.seed = seed
        self.drawn = 0
        self.rate = rate
        self.every = ordered_every
        self.ordered = PromptStream(prompts, seed)
        self.solved: dict[int, float] = {}  # p of the prompts that were sampled
        most = min(rest, len(prompts) // 2)
        self.recent: deque[int] = deque(maxlen=most)
        self._index = {prompt.id: i for i, prompt in enumerate(prompts)}

    def first(self, count: int | None = None) -> list[Prompt]:
        """Those of the plain order: what comes first here shows only when sampling."""
        return self.ordered.first(count)

    def skip(self, unwanted: Callable[[Prompt], bool]) -> int:
        """Draw none of these from now on; returns how many there are."""
        return self.ordered.skip(unwanted)

    @property
    def skipped(self) -> frozenset[int]:
        """Indices of the prompts that are passed over."""
        return self.ordered.skipped

    def draw(self, count: int) -> list[Prompt]:
        """The next `count` prompts, those of the plain order first."""
        most = max(1, len(self.prompts) - len(self.skipped))
        taken: list[int] = []
        while len(taken) < count:
            taken += self._drawn_together(min(count - len(taken), most))
        return [self.prompts[i] for i in taken]

    def observe(self, groups: Sequence[Group]) -> None:
        """The rewards of prompts that were drawn; a group without any says nothing."""
        for group in groups:
            rewards = []
            for rollout in group.rollouts:
                first = next(iter(rollout.score.parts.values()), rollout.reward)
                rewards.append(min(max(first, 0.0), 1.0))
            if rewards:
                mean = statistics.fmean(rewards)
                i = self._index[group.prompt.id]
                before = self.rate_of(i)
                self.solved[i] = before + self.rate * (mean - before)

    def rate_of(self, index: int) -> float:
        """p of a prompt."""
        return self.solved.get(index, PRIOR)

    def state_dict(self) -> dict[str, Any]:
        return {
            "drawn": self.drawn,
            "solved": dict(self.solved),
            "recent": list(self.recent),
            "ordered": self.ordered.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Other prompts than those of the state: DataError."""
        self.ordered.load_state_dict(state["ordered"])
        self.drawn = state["drawn"]
        self.solved = dict(state["solved"])
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)

    def _drawn_together(self, count: int) -> list[int]:
        """Up to as many different prompts as there are, but for an ordered one that may be there twice."""
        began = self.drawn
        self.drawn += count
        taken = []
        for draw in range(began, self.drawn):
            if draw % self.every == 0:
                taken.append(self.ordered.next_index())
        self.recent.extend(taken)
        rng = random.Random(f"{self.seed}/pool/{began}")
        weighted = self._weighted(count - len(taken), rng, frozenset(taken))
        self.recent.extend(weighted)
        return taken + weighted

    def _weighted(self, count: int, rng: random.Random, taken: frozenset[int]) -> list[int]:
        """`count` prompts by weight, without replacement: those whose exponential clocks (rate w) ring first.

        One that rests, or was taken just now, comes after all others.
        """
        rests = frozenset(self.recent)
        skipped = self.skipped
        waits = []
        for i in range(len(self.prompts)):
            p = self.rate_of(i)
            weight = p * (1 - p) * self.prompts[i].weight
            wait = -math.log(1 - rng.random())  # one number a prompt, also of one that is skipped
            rings = wait / weight if weight > 0 else math.inf
            if i not in skipped:
                waits.append((i in taken, i in rests, rings, i))
        return [i for *_, i in heapq.nsmallest(count, waits)]


def order_of(recipe: Recipe, prompts: Sequence[Prompt]) -> PromptStream | DifficultyPool:
    """The order in which a run of the recipe draws its prompts."""
    rollout = recipe.rollout
    settings = recipe.rollout.curriculum
    if settings.use == "none":
        return PromptStream(prompts, recipe.seed)
    return DifficultyPool(
        prompts,
        recipe.seed,
        rate=settings.rate,
        ordered_every=settings.ordered_every,
        rest=rollout.prompts_per_step * (1 + rollout.max_redraw),
    )
