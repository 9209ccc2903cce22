"""One evaluation from beginning to end: load the subject, ask it block by block, write the figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lgrpo_lite import progress
from lgrpo_lite.data.prompts import GoldFault
from lgrpo_lite.engines.base import RolloutEngine, Tick, open_engine, sampling_of
from lgrpo_lite.errors import DataError
from lgrpo_lite.evaluation.figures import Problem, figures
from lgrpo_lite.evaluation.results import ResultFolder, about
from lgrpo_lite.evaluation.sampling import scored, ticking
from lgrpo_lite.evaluation.suites import Suite, problems
from lgrpo_lite.evaluation.support import with_logprobs
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import prove
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.rollout.tools import tools_of
from lgrpo_lite.types import Prompt

BLOCK = 512  # answers between two points from which an evaluation can go on


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is asked: a model, or a run at one of its checkpoints. `checkpoint` None: the base, adapter off."""

    name: str  # as the user calls it
    run: Path | None = None
    checkpoint: Path | None = None

    @property
    def label(self) -> str:
        """What distinguishes it inside its run."""
        if self.checkpoint:
            return self.checkpoint.name
        return "base" if self.run else "model"


@dataclass(frozen=True, slots=True)
class Asking:
    """What every block needs."""

    recipe: Recipe
    engine: RolloutEngine
    policy: Policy
    reward: RewardSum
    is_base: bool
    seed: int

    def block(
        self, number: int, prompts: list[Prompt], categories: list[dict[str, str]], tick: Tick = None
    ) -> list[Problem]:
        """The samples of one block. Its random numbers, and its share of a prefix cache, are its own: those
        of the seed and of `number`, so that a block is the same whichever were asked before it in this
        process."""
        evaluation, policy = self.recipe.eval, self.policy
        torch.manual_seed((self.seed + 1) * 1_000_003 + number)
        salt = f"eval-{self.seed}-{number}"
        sampling = sampling_of(self.recipe, evaluation.temperature, salt=salt, tick=tick)
        with self.engine.serving(policy) as sampler:
            if self.is_base and policy.has_adapter:
                with sampler.reference():
                    answers = sampler.generate(prompts, evaluation.k, sampling)
            else:
                answers = sampler.generate(prompts, evaluation.k, sampling)
            tools = tools_of(self.recipe, policy, self.reward, sampler, sampling)
            problems = scored(prompts, answers, tools, categories)
        micro = self.recipe.memory.micro_tokens
        # after the sampler's memory is back
        return with_logprobs(problems, prompts, answers, policy, micro, is_base=self.is_base)


def measure(
    recipe: Recipe,
    suite: Suite,
    subject: Subject,
    out: Path,
    *,
    limit: int | None,
    seed: int,
    gold_fault: GoldFault | None,
) -> dict[str, Any]:
    """Evaluate and return what result.json holds. `recipe` is checked and has the suite laid over it.

    Whatever is in `out` already is not asked again; golds in which `gold_fault` finds a fault are warned of.
    Raises what loading raises; no reward at all: DataError.
    """
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    torch.manual_seed(recipe.seed)
    engine = open_engine(recipe)
    reward = RewardSum.of(recipe)
    reward.log_to(out / "rewards.log")
    try:
        policy = Policy.load(recipe, engine.network(recipe))
        if subject.checkpoint is not None:
            checkpoint.load(subject.checkpoint, policy)
        warnings = [*engine.notes, *prove(policy, recipe)]
        asked = problems(suite, recipe, policy.tokenizer, limit, gold_fault)
        prompts, categories = asked.prompts, asked.categories
        reward.check(prompts)
        warnings += asked.notes
        asking = Asking(recipe, engine, policy, reward, subject.checkpoint is None, seed)
        size = max(1, BLOCK // recipe.eval.k)
        facts = _facts(subject, policy)
        folder = ResultFolder(
            out, about(recipe, suite.suite.name, facts, asked, seed=seed, block=size), recipe
        )
        work = f"evaluating {suite.suite.name}"
        try:
            while (begin := len(folder.done)) < len(prompts):
                block = slice(begin, begin + size)
                tick = ticking(work, begin, len(prompts[block]), len(prompts))
                samples = asking.block(begin // size, prompts[block], categories[block], tick)
                folder.append(samples)
            progress.told(work, len(prompts), len(prompts))
            return _finish(folder, recipe, warnings, reward.first_fault)
        finally:
            folder.close()
    finally:
        reward.close()
        engine.close()


def _finish(folder: ResultFolder, recipe: Recipe, warnings: list[str], fault: str) -> dict[str, Any]:
    result = figures(folder.done)
    if result is None:
        fix = "look into the samples and the reward; a fault of a worker process is in the log"
        what = "every reward of the evaluation is missing" + (f": {fault}" if fault else "")
        raise DataError(what, where=recipe.where("rewards"), fix=fix)
    if result.missing:
        warnings.append(f"{result.missing} samples have no reward (timeout or error) and count neither way")
    return folder.finish(result, warnings)


def _facts(subject: Subject, policy: Policy) -> dict[str, Any]:
    """What tells this policy from any other: the base weights, and the checkpoint's own checksum."""
    adapter = None if subject.checkpoint is None else _adapter_checksum(subject.checkpoint)
    weights = fingerprint(policy.base) if policy.has_adapter else None
    return {"name": subject.name, "label": subject.label, "base_weights": weights, "trained": adapter}


def _adapter_checksum(path: Path) -> str | None:
    """Of the first weights file of a checkpoint, 16 digits."""
    for line in (path / "SHA256SUMS").read_text("utf-8").splitlines():
        if line.endswith(".safetensors"):
            return line.split()[0][:16]
    return None
