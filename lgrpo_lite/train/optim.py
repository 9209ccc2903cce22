"""One optimiser for each kind of parameter: AdamW for the policy, plain SGD for λ,
AdamW of its own for a log Z head.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe


class Optimizers:
    """λ has its own SGD (no momentum, no decay): Adam would move it by its learning rate
    every step, whatever the gradient.

    λ is also outside the gradient-norm clip of the policy; the head is clipped by itself. AdamW's moments are
    made here: after the largest pass they would lie in what it leaves to torch's cache, which then cannot be
    returned. Paged ones never lie there.
    """

    def __init__(self, recipe: Recipe, policy: Policy, objective: Objective):
        o = recipe.optim
        self.recipe, self.objective = recipe, objective
        self.device, self.by_torch = policy.device, o.use == "adamw"
        self.policy = _adamw(o.use)(policy.trainable(), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay)
        lam = objective.preference
        self.own = None
        if lam and lam.lam.requires_grad:
            self.own = torch.optim.SGD([lam.lam], lr=lam.settings.lr)
        head = objective.log_z
        self.head_lr = objective.parts.residual.log_z_lr or o.lr
        self.head = None
        if head:
            self.head = torch.optim.AdamW(head.parameters(), lr=self.head_lr, weight_decay=o.weight_decay)
        if self.device.type == "cuda":
            # of the passes that proved the policy: moments shall not lie inside it either
            torch.cuda.empty_cache()
        if not o.use.startswith("paged"):
            make_moments(self.policy)
        if self.head:
            make_moments(self.head)

    def set_lr(self, step: int) -> float:
        """Apply the schedule for a 1-based step; returns the policy's learning rate."""
        share = schedule(step, self.recipe)
        for optimizer, rate in ((self.policy, self.recipe.optim.lr), (self.head, self.head_lr)):
            for group in optimizer.param_groups if optimizer else ():
                group["lr"] = rate * share
        return self.recipe.optim.lr * share

    def step(self) -> None:
        if not self.by_torch and self.device.type == "cuda":
            # bitsandbytes' kernels run on the default stream, and vLLM leaves another one as the current:
            # there gradients are summed up, and zeros written
            make_moments(self.policy)
            torch.cuda.synchronize(self.device)
        self.policy.step()
        if self.head and self.objective.log_z:
            clip_grad_norm_(self.objective.log_z.parameters(), self.recipe.optim.max_grad_norm)
            self.head.step()
        if self.own and self.objective.preference:
            self.own.step()
            self.objective.preference.clamp()

    def zero_grad(self) -> None:
        self.policy.zero_grad(set_to_none=True)
        self.objective.zero_grad(set_to_none=True)

    def forget(self) -> None:
        """Drop moments and gradients: no step will follow."""
        self.zero_grad()
        for optimizer in filter(None, (self.policy, self.own, self.head)):
            optimizer.state.clear()

    def state_tensors(self) -> Iterator[torch.Tensor]:
        """Moments and the like, for what they weigh."""
        for optimizer in filter(None, (self.policy, self.own, self.head)):
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))

    def state_dict(self) -> dict[str, Any]:
        made = {"policy": self.policy, "own": self.own, "head": self.head}
        return {name: optimizer.state_dict() if optimizer else None for name, optimizer in made.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        if self.own:
            self.own.load_state_dict(state["own"])
        if self.head:
            self.head.load_state_dict(state["head"])


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """The state of AdamW before its first step, as the first step itself would make it,
    for every parameter without one.
    """
    for g, group in enumerate(optimizer.param_groups):
        for p, parameter in enumerate(group["params"]):
            state = optimizer.state[parameter]
            if state:
                continue
            if not isinstance(optimizer, torch.optim.AdamW):
                optimizer.init_state(group, parameter, g, p)  # pyright: ignore[reportAttributeAccessIssue]
                continue
            state["step"] = torch.tensor(0.0)  # on the CPU, as torch has it
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def _adamw(name: str) -> Callable[..., torch.optim.Optimizer]:
    """torch's AdamW, or one of bitsandbytes': tensors under 4096 elements keep 32-bit
    moments, and a CPU does not page.
    """
    if name == "adamw":
        return torch.optim.AdamW
    import bitsandbytes.optim as bnb

    return {
        "adamw_8bit": bnb.AdamW8bit,
        "paged_adamw": bnb.PagedAdamW,
        "paged_adamw_8bit": bnb.PagedAdamW8bit,
    }[name]


def schedule(step: int, recipe: Recipe) -> float:
    """Share of optim.lr at a 1-based step: linear warm-up, then constant,
    or down to 0 after the last step.
    """
    warmup, total = recipe.optim.warmup_steps, recipe.train.steps
    if step <= warmup:
        return step / (warmup + 1)
    if recipe.optim.scheduler == "constant":
        return 1.0
    done = (step - 1 - warmup) / max(1, total - warmup)
    if recipe.optim.scheduler == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
