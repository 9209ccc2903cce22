"""Rollouts by a running `vllm serve`: adapters go there as PEFT folders, token ids and log-probs by HTTP.

What this rests on, all of it asked when the engine is opened: /v1/models, /v1/load_lora_adapter under a new
name each version (a reused one would serve cached prefixes of the old adapter), token ids in /v1/completions,
--logprobs-mode processed_logprobs.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from packaging.version import InvalidVersion, Version

from lgrpo_lite.engines.adapter import AdapterFolder, checksum
from lgrpo_lite.engines.answers import answered
from lgrpo_lite.engines.base import SamplingParams, given_tokens, not_finite
from lgrpo_lite.engines.http import Connection, launch_line, said, tokens_of
from lgrpo_lite.engines.vllm_fit import TESTED
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, VerificationError
from lgrpo_lite.policy.load import locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Prompt

# a server fills these in from the model's own generation settings; any other value biases the policy ratio
NEUTRAL = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "watermarking": False,
}
# 0: of the sampled token alone
TOKENS = {"logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True}
FAREWELL = 5.0  # seconds that `close` waits for the server


class ServerEngine:
    """The server has its own base weights; `notes` say what an address beyond this machine asks for."""

    caches_prefixes = True

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.parallel = recipe.rollout.server.parallel
        self.server = Connection(recipe)
        self.base = self._served()
        self.notes = (*self.server.notes, *self._untested())
        self._check_loading()
        self._check_logprobs()
        folder = recipe.rollout.server.adapter_dir
        self.folder = AdapterFolder(Path(folder) if folder else None, setting="rollout.server.adapter_dir")
        self._adapter: tuple[str, Path] | None = None
        self._synced = ""

    def network(self, recipe: Recipe) -> None:
        """The policy loads its own weights; the server's are out of reach."""

    def fingerprint(self) -> None:
        """Out of reach."""

    # ------------------------------------------------------------------------------------------- opening

    def _served(self) -> str:
        """The name under which the server samples from the base model."""
        recipe = self.recipe
        url = self.server.url
        model = recipe.model
        server = recipe.rollout.server
        local = locate(model.id, recipe.where("model.id"), model.revision)
        names = {model.id, local, str(Path(local).resolve())}
        if server.model:
            names = {server.model}
        cards = [card for card in self._cards() if card.get("parent") is None]
        matches = [card for card in cards if {card["id"], card.get("root")} & names]
        if not matches:
            served = ", ".join(card["id"] for card in cards) or "nothing"
            key = "rollout.server.model" if server.model else "model.id"
            what = f"the server at {url} serves {served}, not {server.model or local}"
            start = f"start one that does: {launch_line(recipe)}"
            fix = f"{start}; or give the right name as rollout.server.model"
            raise ConfigError(what, where=recipe.where(key), fix=fix)
        longest = matches[0].get("max_model_len")
        needed = model.max_prompt_tokens + model.max_new_tokens
        if longest and longest < needed:
            what = f"the server at {url} reads {longest} tokens at most, the recipe asks for {needed}"
            lower = "lower model.max_prompt_tokens or model.max_new_tokens"
            fix = f"start it with --max-model-len {needed}, or {lower}"
            raise EnvironmentFault(what, where=recipe.where("model.max_new_tokens"), fix=fix)
        return matches[0]["id"]

    def _cards(self) -> list[dict[str, Any]]:
        status, body = self.server.ask("/v1/models")
        cards = body.get("data") if isinstance(body, dict) else None
        if status != 200 or not isinstance(cards, list):
            raise self.server.refused("/v1/models", status, body)
        if not all(_is_card(card) for card in cards):
            raise self.server.refused("/v1/models", status, body)
        return cards

    def _untested(self) -> Iterator[str]:
        """A version of another range may serve as well: what is needed of it is asked for here."""
        status, body = self.server.ask("/version")
        version = body.get("version") if status == 200 and isinstance(body, dict) else None
        least, below = map(Version, TESTED)
        try:
            tested = version is None or least <= Version(version) < below
        except (InvalidVersion, TypeError):
            tested = False
        if not tested:
            yield f"the server is vLLM {version}; tested was {least} up to but not {below}"

    def _check_loading(self) -> None:
        """Ask for an adapter that does not exist; a server that takes adapters says just that."""
        status, body = self._load("lgrpo-lite-asks-whether-adapters-load", Path("/lgrpo-lite-asks"))
        if status == 404 and isinstance(body, dict) and "error" in body:
            return
        reason = "VLLM_ALLOW_RUNTIME_LORA_UPDATING is not set there" if status == 404 else said(body)
        what = f"the server at {self.server.url} takes no adapters while it runs: {reason}"
        fix = f"start it as: {launch_line(self.recipe)}"
        raise EnvironmentFault(what, where=self.server.where, fix=fix)

    def _check_logprobs(self) -> None:
        """Processed log-probs of two allowed tokens are a distribution; their gap goes with 1/temperature."""
        warm = self._pair(1.0)
        cold = self._pair(0.5)
        sums = (sum(map(math.exp, pair)) for pair in (warm, cold))
        whole = all(math.isclose(total, 1.0, abs_tol=1e-3) for total in sums)
        gap = cold[0] - cold[1]
        expected = 2 * (warm[0] - warm[1])
        if whole and math.isclose(gap, expected, rel_tol=0.05, abs_tol=0.05):
            return
        needed = "those of the distribution that it samples from"
        what = f"the log-probs of the server at {self.server.url} are not {needed}"
        fix = f"start it with --logprobs-mode processed_logprobs: {launch_line(self.recipe)}"
        raise EnvironmentFault(what, where=self.server.where, fix=fix)

    def _pair(self, temperature: float) -> list[float]:
        """Log-probs of tokens 0 and 1 when only they may be sampled; 0 for one that is not in the reply."""
        body = {
            **NEUTRAL,
            **TOKENS,
            "model": self.base,
            "prompt": [0],
            "max_tokens": 1,
            "temperature": temperature,
            "seed": 0,
            "allowed_token_ids": [0, 1],
            "logprobs": 2,
        }
        [choice] = self.server.complete(body)
        tokens_of(choice, self.server)
        try:
            top = choice["logprobs"]["top_logprobs"][0]
            return [float(top.get(f"token_id:{token}", 0.0)) for token in (0, 1)]
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            return [0.0, 0.0]  # no distribution, which is what is said of it

    # ------------------------------------------------------------------------------------------- serving

    @contextmanager
    def serving(self, policy: Policy) -> Iterator["ServerSampler"]:
        """Publishes the adapter if it changed; the server goes on as it is afterwards."""
        self._sync(policy)
        assert self._adapter is not None, "an adapter is there once it was synced"
        yield ServerSampler(self.server, policy, self._adapter[0], self.base, self.parallel)

    def _sync(self, policy: Policy) -> None:
        now = checksum(policy)
        # a restarted server has forgotten it
        if now == self._synced and self._adapter and self._lists(*self._adapter):
            return
        path = self.folder.publish(policy)
        name = f"{self.folder.path.name}-{path.name}"
        status, body = self._load(name, path)
        if status != 200:
            self.folder.drop(path)
            raise self._rejected(status, body)
        if not self._lists(name, path):
            what = f"the server at {self.server.url} took the adapter and does not list it: "
            what += "rollouts would be another policy's"
            fix = "let one server process answer there: no load balancer, --api-server-count 1"
            raise VerificationError(what, where=f"policy version {policy.version}, adapter {name}", fix=fix)
        self._retire()
        self._adapter = (name, path)
        self._synced = now

    def _load(self, name: str, path: Path) -> tuple[int, Any]:
        return self.server.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    def _lists(self, name: str, path: Path) -> bool:
        served = [(card["id"], card.get("root")) for card in self._cards()]
        return (name, str(path)) in served

    def _rejected(self, status: int, body: Any) -> EnvironmentFault:
        what = f"the server at {self.server.url} refuses the adapter: {said(body)}"
        if status == 404 or "Permission denied" in what:
            key = "rollout.server.adapter_dir"
            fix = f"set {key} to a folder that the server's user can read, by the same path there"
            return EnvironmentFault(what, where=self.recipe.where(key), fix=fix)
        fix = f"start the server as: {launch_line(self.recipe)}"
        return EnvironmentFault(what, where=self.recipe.where("model.lora.rank"), fix=fix)

    def _retire(self, timeout: float | None = None) -> None:
        """Unload the adapter that was served so far and remove its folder."""
        if self._adapter is not None:
            name, path = self._adapter
            # 404: restarted, so already gone
            self.server.ask("/v1/unload_lora_adapter", {"lora_name": name}, timeout)
            self.folder.drop(path)
            self._adapter = None

    def close(self) -> None:
        """Our adapter leaves the server, our folder this machine."""
        with contextlib.suppress(LgrpoError):  # a server that is gone holds no adapter
            self._retire(FAREWELL)
        self.folder.close()


class ServerSampler:
    """One request a prompt, `parallel` at a time; seeds are torch's, so a resumed run asks for the same."""

    def __init__(self, server: Connection, policy: Policy, adapter: str, base: str, parallel: int):
        self.server, self.policy = server, policy
        self.model, self.base = adapter, base
        self.parallel = parallel
        self.policy_version = policy.version

    @contextmanager
    def reference(self) -> Iterator[None]:
        model = self.model
        self.model = self.base
        try:
            yield
        finally:
            self.model = model

    def generate(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt, in order; each begins with its prompt's prefix."""
        limit = sampling.max_new_tokens
        given = given_tokens(prompts, prefixes, limit)
        unfinished = []
        requests = []
        for i, (prompt, prefix) in enumerate(zip(prompts, given, strict=True)):
            if len(prefix) < limit:
                unfinished.append(i)
                requests.append(self._request(prompt, prefix, n, sampling))
        if sampling.temperature > 0:
            # the n answers of a request take the seeds that follow
            seeds = torch.randint(2**62, (len(requests),)).tolist()
            for request, seed in zip(requests, seeds, strict=True):
                request["seed"] = seed
        answers = []
        for prompt, prefix in zip(prompts, given, strict=True):
            empty = answered(self.policy, prompt, ([], []), prefix, sampling, version=self.policy_version)
            answers.append([empty] * n)
        replies = self._replies(requests, sampling)
        for i, choices in zip(unfinished, replies, strict=True):
            completions = [self._read(choice, prompts[i], given[i], sampling) for choice in choices]
            answers[i] = completions if len(completions) == n else completions * n  # greedy: n times the same
        return answers

    def _replies(self, requests: Sequence[dict[str, Any]], sampling: SamplingParams) -> list[list]:
        """The choices of each request, in order."""
        complete = partial(self.server.complete, version=self.policy_version)
        replies = []
        with ThreadPoolExecutor(max(1, min(self.parallel, len(requests)))) as pool:
            for reply in pool.map(complete, requests):
                replies.append(reply)
                if sampling.tick is not None:
                    sampling.tick(len(replies) / len(requests))
        return replies

    def _request(
        self, prompt: Prompt, given: Sequence[int], n: int, sampling: SamplingParams
    ) -> dict[str, Any]:
        body = {
            **NEUTRAL,
            **TOKENS,
            "model": self.model,
            "prompt": [*prompt.token_ids, *given],
            "temperature": sampling.temperature,
            "n": n if sampling.temperature > 0 else 1,
            "max_tokens": sampling.max_new_tokens - len(given),
            "stop_token_ids": sorted(self.policy.eos_ids),
            "ignore_eos": True,  # the policy's end tokens and no others
        }
        if sampling.stop:
            strings = {"include_stop_str_in_output": True, "skip_special_tokens": False}
            body |= {"stop": list(sampling.stop), **strings}
        if sampling.salt is not None:
            body["cache_salt"] = sampling.salt
        return body

    def _read(
        self, choice: dict[str, Any], prompt: Prompt, given: Sequence[int], sampling: SamplingParams
    ) -> Completion:
        limit = sampling.max_new_tokens
        tokens, logp = tokens_of(choice, self.server)
        if not all(map(math.isfinite, logp)):
            raise not_finite(self.policy_version)
        self._check_tokens(tokens, limit - len(given))
        stopped = choice.get("stop_reason") in sampling.stop
        completion = answered(
            self.policy, prompt, (tokens, logp), given, sampling, version=self.policy_version, stopped=stopped
        )
        if completion.finish_reason == "length" and len(completion.token_ids) < limit:
            count = f"{len(tokens)} of {limit - len(given)} tokens"
            what = f"the server at {self.server.url} stopped an answer after {count}"
            fix = "start it with a larger --max-model-len"
            raise EnvironmentFault(what, where=f"finish_reason {choice.get('finish_reason')}", fix=fix)
        return completion

    def _check_tokens(self, tokens: Sequence[int], asked: int) -> None:
        """A server may not hand the trainer what it cannot have sampled."""
        vocabulary = self.policy.base.get_output_embeddings().weight.shape[0]
        strange = [token for token in tokens if not 0 <= token < vocabulary]
        what = f"the server at {self.server.url} answers with "
        if len(tokens) > asked:
            what += f"{len(tokens)} tokens where at most {asked} were asked for"
        elif strange:
            what += f"the token {strange[0]}, and the model has {vocabulary}"
        else:
            return
        raise EnvironmentFault(what, where=self.server.where, fix='serve with "vllm>=0.32,<0.33"')


def _is_card(card: Any) -> bool:
    """Whether a server's entry of a model has the fields that are read, of their types."""
    if not isinstance(card, dict) or not isinstance(card.get("id"), str):
        return False
    if not isinstance(card.get("root"), str | None):
        return False
    return isinstance(card.get("max_model_len"), int | None)
