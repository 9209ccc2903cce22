# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingImports=false
# (a file beside this one has the name of the package that it imports)
"""Token ids to vLLM and back: what the engines that run it in this process have in common."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lgrpo_lite.engines.answers import answered
from lgrpo_lite.engines.base import SamplingParams, given_tokens, not_finite
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

CONTEXT = 256  # tokens a request may have at least, for the proofs' prompts
Ended = tuple[Sequence[int], Sequence[float], bool]  # tokens, log-probs, whether by a stop string


def longest_request(recipe: Recipe, config) -> int:
    """Tokens of a prompt and its answer, with room for questions that quote an answer where there are any."""
    model = recipe.model
    algorithm = recipe.algorithm
    size = model.max_prompt_tokens + model.max_new_tokens
    rubric = any(reward.use == "rubric" for reward in recipe.rewards)
    if algorithm.best_draft or algorithm.refine_best or rubric:
        size *= 2
    most = getattr(config, "max_position_embeddings", None) or math.inf
    return int(min(most, max(CONTEXT, size)))


class VllmSampler:
    """Token ids go in and come back; `request` is the adapter, None samples the base.

    `version` is that of the adapter as it was handed over, which is the policy's if the engine did its work.
    """

    def __init__(self, llm, policy: Policy, request, *, version: int):
        self.llm = llm
        self.policy = policy
        self.request = request
        self.policy_version = version

    @contextmanager
    def reference(self) -> Iterator[None]:
        request = self.request
        self.request = None
        try:
            yield
        finally:
            self.request = request

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt, in order; each begins with its prompt's prefix."""
        given = given_tokens(prompts, prefixes, sampling.max_new_tokens)
        unfinished = []
        requests = []
        settings = []
        by_size = {}
        for i, prefix in enumerate(given):
            size = len(prefix)
            if size >= sampling.max_new_tokens:
                continue
            if size not in by_size:
                by_size[size] = self._settings(n, sampling, size)
            unfinished.append(i)
            requests.append(_prompt(prompts[i], prefix, sampling.salt))
            settings.append(by_size[size])
        outputs = []
        with _numpy_after_torch():
            if requests:
                outputs = self.llm.generate(requests, settings, lora_request=self.request, use_tqdm=False)
        sampled: list[list[Ended]] = [[((), (), False)] * n for _ in prompts]
        for i, output in zip(unfinished, outputs, strict=True):
            answers = [
                (o.token_ids, o.logprobs.logprobs, o.stop_reason in sampling.stop) for o in output.outputs
            ]
            sampled[i] = answers if len(answers) == n else answers * n  # greedy: n times the same
        return [
            self._completions(prompt, row, prefix, sampling)
            for prompt, row, prefix in zip(prompts, sampled, given, strict=True)
        ]

    def _settings(self, n: int, sampling: SamplingParams, given: int):
        from vllm import SamplingParams as VllmParams

        return VllmParams(
            n=n if sampling.temperature > 0 else 1,
            temperature=sampling.temperature,
            top_p=1.0,
            top_k=-1,
            min_p=0.0,
            max_tokens=sampling.max_new_tokens - given,
            stop_token_ids=sorted(self.policy.eos_ids),
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(sampling.stop),  # which a stop string is found by
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
        )

    def _completions(
        self, prompt: Prompt, sampled: Sequence[Ended], given: tuple[int, ...], sampling: SamplingParams
    ) -> list[Completion]:
        """What was sampled for one prompt, as answers that begin with what was given."""
        completions = []
        for tokens, logp, stopped in sampled:
            if not all(map(math.isfinite, logp)):
                raise not_finite(self.policy_version)
            completions.append(
                answered(
                    self.policy,
                    prompt,
                    (tokens, logp),
                    given,
                    sampling,
                    version=self.policy_version,
                    stopped=stopped,
                )
            )
        return completions


@contextmanager
def _numpy_after_torch() -> Iterator[None]:
    """Model Runner V2 draws its requests' seeds from numpy's global generator: inside, that follows torch's.

    So whoever seeds, forks or saves torch's random numbers has done so for vLLM's. numpy's go on as if
    nothing had been drawn.
    """
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**32, ())))
    try:
        yield
    finally:
        np.random.set_state(before)


def _prompt(prompt: Prompt, given: Sequence[int], salt: str | None) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": [*prompt.token_ids, *given]}
    if salt is not None:
        request["cache_salt"] = salt
    return request
