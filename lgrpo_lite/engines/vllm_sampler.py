# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingImports=false
# (a file beside this one has the name of the package that it imports)
"""Token ids to vLLM and back: what the engines that run it in this process have in common."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lgrpo_lite.engines.base import SamplingParams, given_tokens, not_finite
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

CONTEXT = 256  # tokens a request may have at least, for the proofs' prompts


def longest_request(recipe: Recipe, config) -> int:
    """Tokens of a prompt and its answer, with room for questions that quote an answer where there are any."""
    model, algorithm = recipe.model, recipe.algorithm
    wanted = model.max_prompt_tokens + model.max_new_tokens
    quotes = algorithm.best_draft or algorithm.refine_best or any(r.use == "rubric" for r in recipe.rewards)
    most = getattr(config, "max_position_embeddings", None) or math.inf
    return int(min(most, max(CONTEXT, 2 * wanted if quotes else wanted)))


class VllmSampler:
    """Requests go in as token ids and come back as token ids; `request` is the
    adapter, None samples the base.

    `version` is that of the adapter as it was handed over, which is the policy's if the engine did its work.
    """

    def __init__(self, llm, policy: Policy, request, *, version: int):
        self.llm, self.policy, self.request = llm, policy, request
        self.policy_version = version

    @contextmanager
    def reference(self) -> Iterator[None]:
        request, self.request = self.request, None
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
        room = [i for i, prefix in enumerate(given) if len(prefix) < sampling.max_new_tokens]
        asked = [_prompt(prompts[i], given[i], sampling.salt) for i in room]
        settings = {size: self._settings(n, sampling, size) for size in {len(given[i]) for i in room}}
        each = [settings[len(given[i])] for i in room]
        with _numpy_after_torch():
            outputs = (
                self.llm.generate(asked, each, lora_request=self.request, use_tqdm=False) if asked else []
            )
        made: list[list[tuple[Sequence[int], Sequence[float]]]] = [[((), ())] * n for _ in prompts]
        for i, output in zip(room, outputs, strict=True):
            answers = [(o.token_ids, o.logprobs.logprobs) for o in output.outputs]
            made[i] = answers if len(answers) == n else answers * n  # greedy: n times the same
        return self._completions(made, given)

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
            detokenize=False,
        )

    def _completions(
        self,
        made: Sequence[Sequence[tuple[Sequence[int], Sequence[float]]]],
        given: Sequence[tuple[int, ...]],
    ) -> list[list[Completion]]:
        """Sampled tokens with their log-probs, as answers that begin with what was given."""
        if not all(math.isfinite(value) for row in made for _, logp in row for value in logp):
            raise not_finite(self.policy_version)
        whole = [[(*prefix, *tokens) for tokens, _ in row] for row, prefix in zip(made, given, strict=True)]
        texts = iter(
            self.policy.tokenizer.batch_decode(
                [ids for row in whole for ids in row], skip_special_tokens=True
            )
        )
        eos = self.policy.eos_ids
        return [
            [
                Completion(
                    ids,
                    tuple(logp),
                    next(texts),
                    "stop" if tokens and tokens[-1] in eos else "length",
                    self.policy_version,
                    given=len(prefix),
                )
                for ids, (tokens, logp) in zip(all_ids, row, strict=True)
            ]
            for all_ids, row, prefix in zip(whole, made, given, strict=True)
        ]


@contextmanager
def _numpy_after_torch() -> Iterator[None]:
    """Model Runner V2 draws the seeds of its requests from numpy's global generator:
    inside it that follows torch's.

    So whoever seeds, forks or saves torch's random numbers has done so for vLLM's. numpy's go
    on as if nothing had been drawn.
    """
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**32, ())))
    try:
        yield
    finally:
        np.random.set_state(before)


def _prompt(prompt: Prompt, given: Sequence[int], salt: str | None) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": [*prompt.token_ids, *given]}
    return request if salt is None else request | {"cache_salt": salt}
