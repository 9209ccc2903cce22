"""How a group of answers comes about: the rollout bricks an algorithm names, in the one meaningful order.

best_draft rewrites the prompts -> guide or plain sampling -> refine_best adds an answer ->
probe_values, value_cache annotate
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rollout.drafts import best_draft, refine_best
from lgrpo_lite.rollout.guide import GuideLength, guided_answers, verifier_reward
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.rollout.values import ValueStore, probe_values
from lgrpo_lite.types import Group, Prompt


class RolloutPlan:
    """Prompts -> scored groups. Its state (guidance length, values of prompts) is saved, never exported."""

    def __init__(self, recipe: Recipe):
        self.parts = recipe.algorithm
        self.data = recipe.data
        self.group_size = recipe.rollout.group_size
        self.guide_length = GuideLength(self.parts.guide) if self.parts.guide else None
        self.values: ValueStore | None = None
        if self.parts.value_cache:
            self.values = ValueStore(self.parts.value_cache, _about(recipe), recipe.seed)

    def __call__(self, prompts: Sequence[Prompt], tools: Tools) -> list[Group]:
        """One group per prompt, but for those without V*. Without a brick: group_size scored answers."""
        parts, n = self.parts, self.group_size
        if self.values:
            prompts = self.values.usable(prompts, tools)
        if parts.best_draft:
            prompts, n = best_draft(prompts, n, parts.best_draft, self.data.draft_template, tools)
        if parts.refine_best:
            n -= 1  # comes after them
        if parts.guide and self.guide_length:
            answers = guided_answers(prompts, n, self.guide_length.length, parts.guide, tools)
        else:
            answers = tools.generate(prompts, n)
        groups = tools.score(prompts, answers)
        if parts.refine_best:
            groups = refine_best(groups, parts.refine_best, self.data.refine_template, tools)
        if parts.probe_values:
            groups = probe_values(groups, parts.probe_values, tools)
        if self.values:
            groups = [replace(g, value=self.values.value(g.prompt)) for g in groups]
        return groups

    def observe(self, groups: Sequence[Group]) -> None:
        """After a step's sampling: controllers see its reward."""
        reward = verifier_reward(groups)
        if self.guide_length and reward is not None:
            self.guide_length.observe(reward)

    def state_dict(self) -> dict[str, Any]:
        owned = {"guide_length": self.guide_length, "values": self.values}
        return {name: part.state_dict() for name, part in owned.items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.guide_length:
            self.guide_length.load_state_dict(state["guide_length"])
        if self.values:
            self.values.load_state_dict(state["values"])


def _about(recipe: Recipe) -> dict[str, Any]:
    """What rewards under the reference depend on, apart from the prompt."""
    model = recipe.model
    files = [reward.use.rpartition(":")[0] for reward in recipe.rewards if ".py:" in reward.use]
    return {
        "model": [model.id, model.revision, model.weights, model.max_new_tokens],
        "temperature": recipe.rollout.temperature,
        "rewards": [r.model_dump(mode="json") for r in recipe.rewards],
        "code": [Path(file).read_text("utf-8", errors="replace") for file in files],
    }
