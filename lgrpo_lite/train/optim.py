"""Two optimisers, one step: AdamW for the policy, plain SGD for the objective's own parameters (λ)."""

import math
from typing import Any

import torch

from lgrpo_lite.config import Recipe
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.policy import Policy


class Optimizers:
    """λ has its own SGD (no momentum, no decay): Adam would move it by its learning rate every step, whatever the gradient.

    λ is also outside the gradient-norm clip of the policy.
    """

    def __init__(self, recipe: Recipe, policy: Policy, objective: Objective):
        o = recipe.optim
        self.recipe, self.objective = recipe, objective
        self.policy = torch.optim.AdamW(policy.trainable(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
        own = [p for p in objective.parameters() if p.requires_grad]
        self.own = torch.optim.SGD(own, lr=objective.preference.settings.lr) if objective.preference and own else None

    def set_lr(self, step: int) -> float:
        """Apply the schedule for a 1-based step; returns the policy's learning rate."""
        rate = self.recipe.optim.lr * schedule(step, self.recipe)
        for group in self.policy.param_groups:
            group["lr"] = rate
        return rate

    def step(self) -> None:
        self.policy.step()
        if self.own and self.objective.preference:
            self.own.step()
            self.objective.preference.clamp()

    def zero_grad(self) -> None:
        self.policy.zero_grad(set_to_none=True)
        self.objective.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "own": self.own.state_dict() if self.own else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.own:
            self.own.load_state_dict(state["own"])


def schedule(step: int, recipe: Recipe) -> float:
    """Share of optim.lr at a 1-based step: linear warm-up, then constant, or down to 0 after the last step."""
    warmup, total = recipe.optim.warmup_steps, recipe.train.steps
    if step <= warmup:
        return step / (warmup + 1)
    if recipe.optim.scheduler == "constant":
        return 1.0
    done = (step - 1 - warmup) / max(1, total - warmup)
    return 1 - done if recipe.optim.scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
