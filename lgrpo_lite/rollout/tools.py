"""What a rollout brick may ask for: sample, go on from a prefix, score, and look things up."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from lgrpo_lite.data.template import bare, tokens
from lgrpo_lite.engines.base import Sampler, SamplingParams
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.part import Tally
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.types import Completion, Group, Prompt

JUDGE_TOKENS = 256  # a judge answers with one line a criterion


def no_clock(phase: str) -> AbstractContextManager[None]:
    """Counts no time."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Tools:
    """Valid inside `engine.serving(policy)`; made anew for every step. `count` adds up what was sampled,
    `tally` what scoring took.
    """

    sampler: Sampler
    sampling: SamplingParams
    reward: RewardSum
    # a question -> the ids the model reads, by the recipe's template
    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[Sequence[int]], str]
    clock: Callable[[str], AbstractContextManager] = no_clock
    version: int | None = None  # of the policy, which answers must be of; None: any
    # `encode` for a judge: without the examples and the beginning that answers are given
    encode_bare: Callable[[str], tuple[int, ...]] | None = None
    count: Counter = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)

    def reference(self) -> AbstractContextManager:
        """Inside it the sampler is the policy without its adapter."""
        return self.sampler.reference()

    def generate(
        self, prompts: Sequence[Prompt], n: int, prefixes: Sequence[Sequence[int]] | None = None
    ) -> list[list[Completion]]:
        """n answers of each prompt at the training temperature, beginning with its prefix if it has one."""
        if not prompts or n < 1:
            return [[] for _ in prompts]
        with self.clock("rollout"):
            answers = self.sampler.generate(prompts, n, self.sampling, prefixes)
        self._check_version(answers)
        self.count["answers"] += n * len(prompts)
        for row in answers:
            for answer in row:
                self.count["tokens"] += len(answer.token_ids) - answer.given
        return answers

    def _check_version(self, answers: Sequence[Sequence[Completion]]) -> None:
        """Answers of another version of the policy are not trained on."""
        if self.version is None:
            return
        versions = {completion.policy_version for row in answers for completion in row}
        others = versions - {self.version}
        if others:
            sampled = f"the engine sampled from version {min(others)} of the policy"
            fix = "look closer with `lgrpo-lite selftest RECIPE`, or set rollout.engine=transformers"
            what = f"{sampled}, the policy is version {self.version}"
            raise VerificationError(what, where="rollout", fix=fix)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[Group]:
        """The verifier of the run, with its limits; missing rewards leave their group."""
        with self.clock("reward"):
            return self.reward.group(prompts, completions, self.judge, self.tally)

    def judge(self, questions: Sequence[str]) -> list[str | None]:
        """The policy with its adapter off, greedy: one reply a question."""
        encode = self.encode_bare or self.encode
        prompts = []
        for i, question in enumerate(questions):
            prompts.append(Prompt(f"judge-{i}", question, encode(question), ""))
        with self.reference():
            replies = self.sampler.generate(prompts, 1, SamplingParams(0.0, JUDGE_TOKENS))
        return [row[0].text for row in replies]

    def ask(self, prompt: Prompt, question: str) -> Prompt:
        """The same problem under another question, as token ids once and for all."""
        return replace(prompt, token_ids=self.encode(question))

    def shortened(self, ids: Sequence[int], most: int) -> str:
        """An answer's text; a long one loses its beginning, since its end is what counts."""
        return self.decode(ids[-most:]).strip()


def tools_of(
    recipe: Recipe,
    policy: Any,  # a Policy; its module imports torch
    reward: RewardSum,
    sampler: Sampler,
    sampling: SamplingParams,
    *,
    clock: Callable[[str], AbstractContextManager] = no_clock,
    version: int | None = None,
) -> Tools:
    """Those of a recipe's questions, read by its template and the policy's tokenizer."""
    data, tokenizer = recipe.data, policy.tokenizer
    return Tools(
        sampler,
        sampling,
        reward,
        encode=lambda question: tokens(question, data, tokenizer),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        clock=clock,
        version=version,
        encode_bare=lambda question: tokens(question, bare(data), tokenizer),
    )
