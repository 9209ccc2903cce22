"""Rollouts by `generate()` on the training model: needs nothing else, works everywhere, the others' check."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lgrpo_lite.engines.answers import Sampled, answered, stop_at
from lgrpo_lite.engines.base import SamplingParams, Tick, given_tokens, not_finite, share_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

TOKENS_A_TICK = 16  # of each row between two words on how far it is
Heard = Callable[[int], bool]  # is told each token of one answer as it is sampled; True ends the answer there


class TransformersEngine:
    """The weights are the policy's own, so nothing is synced; entering sets eval mode and the KV cache."""

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
        self.policy = policy
        self.batch_rows = batch_rows
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
        limit = sampling.max_new_tokens
        starts = given_tokens(prompts, prefixes, limit)
        rows = []
        for prompt, given in zip(prompts, starts, strict=True):
            rows += [(prompt, given)] * n
        done = {}
        unfinished = []
        for r, (prompt, given) in enumerate(rows):
            if len(given) == limit:
                done[r] = self._completion(prompt, ([], []), given, sampling)
            else:
                unfinished.append(r)
        total = len(unfinished)
        lengths = [len(prompt.token_ids) + len(given) for prompt, given in rows]
        unfinished.sort(key=lengths.__getitem__)
        for begin in range(0, total, self.batch_rows):
            chunk = unfinished[begin : begin + self.batch_rows]
            tick = share_of(sampling.tick, begin / total, len(chunk) / total)
            chunk_rows = [rows[r] for r in chunk]
            completions = self._sample(chunk_rows, replace(sampling, tick=tick))
            done |= zip(chunk, completions, strict=True)
        groups = []
        for i in range(len(prompts)):
            groups.append([done[i * n + k] for k in range(n)])
        return groups

    def answer(self, prompt: Prompt, sampling: SamplingParams, heard: Heard) -> Completion:
        """What `generate` makes of one prompt, told token by token; where `heard` ends it, what there is."""
        return self._sample([(prompt, ())], sampling, heard)[0]

    @torch.no_grad()
    def _sample(
        self,
        rows: Sequence[tuple[Prompt, Sequence[int]]],
        sampling: SamplingParams,
        heard: Heard | None = None,
    ) -> list[Completion]:
        """One completion per (prompt, prefix). Rows go on until the one with the most room is full."""
        policy = self.policy
        pad = policy.tokenizer.pad_token_id
        texts = [[*prompt.token_ids, *given] for prompt, given in rows]
        ids, mask = _left_padded(texts, pad)
        width = ids.shape[1]
        room = [sampling.max_new_tokens - len(given) for _, given in rows]
        tempered = _Tempered(sampling.temperature or 1.0)
        stops = _Stops(policy, sampling.stop, len(rows)) if sampling.stop else None
        recorder = _Recorder(tempered, max(room), sampling.tick, stops)
        watching = StoppingCriteriaList([recorder])
        if heard is not None:
            watching.append(_Told(heard))
        drawing: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:  # no truncation: it would bias the ratio
            drawing = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            **drawing,
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
                    stopping_criteria=watching,
                )
        except RuntimeError as error:
            if "probability tensor" in str(error):  # torch.multinomial's words for NaN or infinite logits
                raise not_finite(self.policy_version) from error
            raise
        if sampling.tick is not None:
            sampling.tick(1.0)
        sampled = out[:, width:].tolist()
        logp = torch.stack(recorder.logp, 1).tolist()
        return [
            self._completion(prompt, (tokens[:most], row[:most]), given, sampling)
            for tokens, row, most, (prompt, given) in zip(sampled, logp, room, rows, strict=True)
        ]

    def _completion(
        self, prompt: Prompt, sampled: Sampled, given: Sequence[int], sampling: SamplingParams
    ) -> Completion:
        return answered(self.policy, prompt, sampled, given, sampling, version=self.policy_version)


def _left_padded(rows: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of one length, padded on the left, and the mask that is 0 on the padding."""
    width = max(len(row) for row in rows)
    ids = []
    mask = []
    for row in rows:
        padding = width - len(row)
        ids.append([pad] * padding + row)
        mask.append([0] * padding + [1] * len(row))
    return torch.tensor(ids), torch.tensor(mask)


class _Tempered(LogitsProcessor):
    """Divides by the temperature and keeps the scores of the token about to be sampled."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores = scores.float() / self.temperature
        return self.scores


class _Recorder(StoppingCriteria):
    """Keeps each sampled token's log-prob: rows × V floats at a time, not rows × tokens × V. Stops a row at
    its stop string, if there are any.
    """

    def __init__(self, tempered: _Tempered, longest: int, tick: Tick, stops: "_Stops | None"):
        self.tempered = tempered
        self.longest = longest
        self.tick = tick
        self.stops = stops
        self.logp: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        latest = self.tempered.scores
        assert latest is not None, "a token is sampled from scores"
        chosen = latest.gather(-1, input_ids[:, -1:])[:, 0]
        self.logp.append(chosen - latest.logsumexp(-1))
        if self.tick is not None and len(self.logp) % TOKENS_A_TICK == 0:
            self.tick(len(self.logp) / self.longest)
        if self.stops is None:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return torch.tensor(self.stops(input_ids[:, -1].tolist()), device=input_ids.device)


class _Told(StoppingCriteria):
    """Tells the tokens of one row, and ends it where it is asked to."""

    def __init__(self, heard: Heard):
        self.heard = heard

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return torch.tensor([self.heard(int(input_ids[0, -1]))], device=input_ids.device)


class _Stops:
    """Which rows have come to a stop string. The last tokens tell whether one may be there; whether it is,
    their whole text does, as `answered` will read it.
    """

    def __init__(self, policy: Policy, stops: Sequence[str], rows: int):
        self.policy = policy
        self.strings = stops
        self.window = max(len(stop.encode()) for stop in stops) + 4  # a token is a byte or more
        self.sampled: list[list[int]] = [[] for _ in range(rows)]
        self.ended = [False] * rows

    def __call__(self, latest: Sequence[int]) -> list[bool]:
        tokenizer = self.policy.tokenizer
        for row, token in enumerate(latest):
            if self.ended[row]:
                continue
            tokens = self.sampled[row]
            tokens.append(token)
            near = stop_at(tokenizer, tokens[-self.window :], self.strings) is not None
            stopped = near and stop_at(tokenizer, tokens, self.strings) is not None
            self.ended[row] = stopped or token in self.policy.eos_ids
        return list(self.ended)
