"""Run: what a training run holds while it runs."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.data.curriculum import DifficultyPool
from lgrpo_lite.data.prompts import Counts
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.engines.base import RolloutEngine, Sampler, SamplingParams, sampling_of
from lgrpo_lite.engines.probe import SyncProof
from lgrpo_lite.layout import split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.memory import collect
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.rollout.plan import RolloutPlan
from lgrpo_lite.rollout.tools import Tools, no_clock, tools_of
from lgrpo_lite.train.optim import Optimizers
from lgrpo_lite.types import Prompt


@dataclass
class Run:
    """Built by `train.build` from a checked recipe. While it runs, `train.guard` makes `micro_tokens` smaller
    and adds notices, and `train.loop` listens to its phases.
    """

    recipe: Recipe  # algorithm complete
    policy: Policy
    engine: RolloutEngine
    objective: Objective
    optimizer: Optimizers
    reward: RewardSum
    plan: RolloutPlan
    prompts: PromptStream | DifficultyPool
    eval_prompts: list[Prompt]
    proof: SyncProof | None = None  # None: safety.sync_proof_every=0
    on_phase: Callable[[str], None] = lambda phase: None  # called when a phase of a step begins
    micro_tokens: int = 0  # of one pass: memory.micro_tokens, less where memory ran out
    notices: list[str] = field(default_factory=list)  # what a step had to do to fit, for the events
    counts: tuple[Counts, ...] = ()  # what became of the rows of each source
    notes: tuple[str, ...] = ()  # what was settled automatically, and why
    warnings: tuple[str, ...] = ()  # what is wrong with the data, and yet runs

    @property
    def sampling(self) -> SamplingParams:
        """Settings of the training rollouts."""
        return sampling_of(self.recipe, self.recipe.rollout.temperature)

    def tools(self, sampler: Sampler, clock: Callable[[str], AbstractContextManager] = no_clock) -> Tools:
        """What the rollout bricks may ask for, inside `engine.serving`."""
        version = self.policy.version
        return tools_of(
            self.recipe, self.policy, self.reward, sampler, self.sampling, clock=clock, version=version
        )

    def split(self, batch: TrainBatch) -> list[tuple[Tensor, TrainBatch]]:
        """Micro-batches of a step's batch and which of its sequences they are, laid
        out in the cheapest way there is.
        """
        whole = self.objective.parts.whole_groups
        layouts = self.policy.layouts_for(batch)
        return split(batch, self.micro_tokens, layouts, whole_groups=whole)

    def unscale(self) -> None:
        """Take the factor of the loss out of the gradients."""
        scale = self.policy.loss_scale
        if scale == 1:
            return
        for parameter in (*self.policy.trainable(), *self.objective.parameters()):
            if parameter.grad is not None:
                parameter.grad /= scale

    def logprobs(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        """`policy.logprobs` of a whole step's batch without gradient, in
        micro-batches, in the order of the batch.
        """
        logp, entropy = torch.empty_like(batch.advantage), torch.empty_like(batch.advantage)
        for rows, micro in self.split(batch):
            tokens_of_rows = batch.tokens_of(rows)
            logp[tokens_of_rows], entropy[tokens_of_rows], _ = self.policy.logprobs(micro)
        return logp, entropy

    def let_go(self) -> None:
        """The last step is made and saved: close the engine, drop moments and
        gradients. The policy still computes.
        """
        self.optimizer.forget()
        collect()  # before the engine's end, which may want its cache back for a moment
        try:
            self.engine.close()
        except Exception:  # of any class, it is a library's: what was learned comes out all the same
            logging.exception("the engine did not close")
        collect()
