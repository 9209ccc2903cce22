"""Rollouts by `generate()` on the training model itself: needs nothing else, works
everywhere, is the oracle of the others.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lgrpo_lite.engines.base import SamplingParams, Tick, given_tokens, not_finite, share_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

TOKENS_A_TICK = 16  # of each row between two words on how far it is


class TransformersEngine:
    """The weights are the policy's own, so there is nothing to sync; entering switches to
    eval mode and the KV cache on.
    """

    notes: tuple[str, ...] = ()
    caches_prefixes = False

    def __init__(self, recipe: Recipe):
        self.batch_rows = recipe.rollout.batch_rows

    def network(self, recipe: Recipe) -> None:
        """The policy loads its own weights, and this engine samples with them."""

    def fingerprint(self) -> None:
        """The weights are the policy's."""

    @contextmanager
    def serving(self, policy: Policy) -> Iterator["TransformersSampler"]:
        training = policy.model.training
        policy.model.eval()
        try:
            yield TransformersSampler(policy, self.batch_rows)
        finally:
            policy.model.train(training)

    def close(self) -> None:
        """Nothing is held."""


class TransformersSampler:
    """Batched, KV-cached, length-sorted sampling; log-probs are of the distribution that was sampled from."""

    def __init__(self, policy: Policy, batch_rows: int):
        self.policy, self.batch_rows = policy, batch_rows
        self.policy_version = policy.version

    def reference(self) -> AbstractContextManager[None]:
        return self.policy.reference()

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt, in order; each begins with its prompt's prefix."""
        prefix = given_tokens(prompts, prefixes, sampling.max_new_tokens)
        rows = [
            (prompt.token_ids, given) for prompt, given in zip(prompts, prefix, strict=True) for _ in range(n)
        ]
        order = sorted(range(len(rows)), key=lambda r: len(rows[r][0]) + len(rows[r][1]))
        full = [r for r in order if len(rows[r][1]) == sampling.max_new_tokens]
        done = {r: self._completion([], [], rows[r][1]) for r in full}  # nothing is left to sample
        order = [r for r in order if r not in done]
        for begin in range(0, len(order), self.batch_rows):
            chunk = order[begin : begin + self.batch_rows]
            tick = share_of(sampling.tick, begin / len(order), len(chunk) / len(order))
            made = self._sample([rows[r] for r in chunk], replace(sampling, tick=tick))
            done |= zip(chunk, made, strict=True)
        return [[done[i * n + k] for k in range(n)] for i in range(len(prompts))]

    @torch.no_grad()
    def _sample(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], sampling: SamplingParams
    ) -> list[Completion]:
        """One completion per (prompt, prefix). Rows go on together until the one with the most room is
        full.
        """
        policy, read = self.policy, [[*prompt, *given] for prompt, given in rows]
        pad, width = policy.tokenizer.pad_token_id, max(len(ids) for ids in read)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in read])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in read])
        room = [sampling.max_new_tokens - len(given) for _, given in rows]
        tempered = _Tempered(sampling.temperature or 1.0)
        recorder = _Recorder(tempered, max(room), sampling.tick)
        # no truncation: it would bias the ratio
        whole = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            **whole if sampling.temperature > 0 else {"do_sample": False},
            max_new_tokens=max(room),
            eos_token_id=sorted(policy.eos_ids),
            pad_token_id=pad,
            use_cache=True,
        )
        try:
            with policy.compute():
                out = policy.model.generate(
                    input_ids=ids.to(policy.device),
                    attention_mask=mask.to(policy.device),
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([tempered]),
                    stopping_criteria=StoppingCriteriaList([recorder]),
                )
        except RuntimeError as error:
            if "probability tensor" in str(error):  # torch.multinomial's words for NaN or infinite logits
                raise not_finite(self.policy_version) from error
            raise
        if sampling.tick is not None:
            sampling.tick(1.0)
        sampled, logp = out[:, width:].tolist(), torch.stack(recorder.logp, 1).tolist()
        return [
            self._completion(tokens[:most], row[:most], given)
            for tokens, row, most, (_, given) in zip(sampled, logp, room, rows, strict=True)
        ]

    def _completion(self, tokens: list[int], logp: list[float], given: Sequence[int]) -> Completion:
        end = next((i + 1 for i, token in enumerate(tokens) if token in self.policy.eos_ids), None)
        count = len(tokens) if end is None else end
        whole = (*given, *tokens[:count])
        text = self.policy.tokenizer.decode(whole, skip_special_tokens=True)
        reason = "length" if end is None else "stop"
        return Completion(whole, tuple(logp[:count]), text, reason, self.policy_version, given=len(given))


class _Tempered(LogitsProcessor):
    """Divides by the temperature and keeps the scores of the token about to be sampled."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores = scores.float() / self.temperature
        return self.scores


class _Recorder(StoppingCriteria):
    """Keeps the log-prob of each token just sampled: rows × V floats at a time, not
    rows × tokens × V. It never stops.
    """

    def __init__(self, tempered: _Tempered, longest: int, tick: Tick):
        self.tempered, self.longest, self.tick = tempered, longest, tick
        self.logp: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        latest = self.tempered.scores
        assert latest is not None, "a token is sampled from scores"
        self.logp.append(latest.gather(-1, input_ids[:, -1:])[:, 0] - latest.logsumexp(-1))
        if self.tick is not None and len(self.logp) % TOKENS_A_TICK == 0:
            self.tick(len(self.logp) / self.longest)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
