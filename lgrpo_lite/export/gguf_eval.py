"""Held-out problems solved by a GGUF file through llama.cpp, beside the policy on the same problems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgrpo_lite.engines.answers import answered
from lgrpo_lite.engines.base import SamplingParams, sampling_of
from lgrpo_lite.engines.transformers import TransformersSampler
from lgrpo_lite.evaluation.figures import Estimate, Problem, estimates
from lgrpo_lite.evaluation.paired import change
from lgrpo_lite.evaluation.sampling import scored, ticking
from lgrpo_lite.export import llama_tools
from lgrpo_lite.export.formats import Job
from lgrpo_lite.policy.probe import evaluating
from lgrpo_lite.types import Completion, Prompt

ROWS = 8  # answers at once through llama.cpp


class Contest:
    """The same problems, one greedy answer each: the policy's once, then each file's beside them."""

    def __init__(self, job: Job, log: Path, threads: int):
        self.job = job
        self.prompts = job.prompts[: job.recipe.export.eval]
        self.log, self.threads = log, threads
        self.policy = self._of_policy()

    def _of_policy(self) -> list[Problem]:
        policy, recipe = self.job.policy, self.job.recipe
        sampler = TransformersSampler(policy, recipe.rollout.batch_rows)
        tick = ticking("the policy solves held-out problems", 0, len(self.prompts), len(self.prompts))
        with evaluating(policy):
            answers = sampler.generate(self.prompts, 1, sampling_of(recipe, 0.0, tick=tick))
        return self._scored(answers)

    def of_file(self, file: Path, adapter: Path | None = None) -> dict[str, Any]:
        """Share solved with its 95 % interval, and how it differs from the policy's on the same problems."""
        policy, recipe = self.job.policy, self.job.recipe
        job = {
            "do": "answer",
            "file": str(file),
            "threads": self.threads,
            "rows": ROWS,
            "prompts": [prompt.token_ids for prompt in self.prompts],
            "most": recipe.model.max_new_tokens,
            "ends": sorted(policy.eos_ids),
        }
        if adapter is not None:
            job["adapter"] = str(adapter)
        shown = adapter or file
        given = llama_tools.at_work(f"{shown.name} solves held-out problems", job, self.log)
        sampling = sampling_of(recipe, 0.0)
        answers = []
        for prompt, ids in zip(self.prompts, given, strict=True):
            answers.append([self._completion(prompt, ids, sampling)])
        mine = self._scored(answers)
        return _figures(self.policy, mine, shown.name)

    def _completion(self, prompt: Prompt, ids: Sequence[int], sampling: SamplingParams) -> Completion:
        version = self.job.policy.version
        return answered(self.job.policy, prompt, (ids, [0.0] * len(ids)), [], sampling, version=version)

    def _scored(self, answers: Sequence[Sequence[Completion]]) -> list[Problem]:
        sampler = TransformersSampler(self.job.policy, self.job.recipe.rollout.batch_rows)
        with evaluating(self.job.policy):
            return scored(self.prompts, answers, self.job.tools(sampler))


def _figures(policy: Sequence[Problem], file: Sequence[Problem], name: str) -> dict[str, Any]:
    pairs = []
    for theirs, mine in zip(policy, file, strict=True):
        if theirs.marks and mine.marks:  # else a reward is missing
            pairs.append((float(theirs.marks[0]), float(mine.marks[0])))
    if not pairs:
        return {"problems": 0}
    before, after = np.array(pairs).T
    of_policy, of_file, difference = (_known(values) for values in (before, after, after - before))
    return {
        "problems": len(pairs),
        "accuracy": of_file.value,
        "low": of_file.low,
        "high": of_file.high,
        "policy": of_policy.value,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "in_words": change(policy, file, names=("the policy", name)),
    }


def _known(values: np.ndarray) -> Estimate:
    [estimate] = estimates(values[None])
    assert estimate is not None
    return estimate
