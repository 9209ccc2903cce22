"""JSON over HTTP to one vLLM server, and what to do when it does not answer as it should."""

import shlex
from collections.abc import Iterator
from typing import Any, TypeGuard
from urllib.parse import SplitResult, urlsplit

from lgrpo_lite.engines.base import not_finite
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.machine.http import MOST, Client, decoded, is_loopback, read_key
from lgrpo_lite.policy.budget import SLOT_RANKS
from lgrpo_lite.policy.load import locate
from lgrpo_lite.recipe.schema import Recipe

WEIGHTS = {
    "nf4": "--quantization bitsandbytes --load-format bitsandbytes --dtype bfloat16",
    "bf16": "--dtype bfloat16",
    "fp16": "--dtype float16",
    "fp32": "--dtype float32",
}
NOT_FINITE = "Out of range float values"  # what becomes of a log-prob that is no number on its way into JSON
LONGEST = 300  # characters of a server's words that are shown
A_TOKEN = 512  # bytes of a reply that a token may take; vLLM's take about 120


class Connection:
    """To the server of a recipe. `notes` say what an address beyond this machine asks for.

    No answer, or one that is too long: EnvironmentFault with the command that starts a server; a slow one:
    LgrpoError; a key that is missing or wrong: EnvironmentFault. No message holds the key.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.timeout = recipe.rollout.server.timeout
        self.url = recipe.rollout.server.url.rstrip("/").removesuffix("/v1")
        self.where = recipe.where("rollout.server.url")
        address = _address(self.url, self.where)
        near = is_loopback(address.hostname or "")
        self.notes = () if near else tuple(_far(address))
        name = recipe.rollout.server.api_key_env
        unset = "rollout.server.api_key_env"
        key = None
        if name:
            key = read_key(name, "the server's", where=recipe.where(unset), unset=unset)
        self._client = Client(self.url, key=key)

    def ask(
        self, path: str, body: dict[str, Any] | None = None, timeout: float | None = None, most: int = MOST
    ) -> tuple[int, Any]:
        """Status and body of a GET, or of a POST with `body`; text where it is no JSON, or JSON that is
        nested too deep. `timeout`: seconds; `most`: bytes of a reply.
        """
        try:
            status, reply = self._client.ask(path, body, timeout=timeout or self.timeout, most=most)
        except OSError as error:
            raise self._unanswered(error) from error
        if status in (401, 403):
            raise self._unauthorized()
        try:
            return status, decoded(reply)
        except ValueError:
            return status, reply.decode(errors="replace")

    def complete(self, body: dict[str, Any], version: int = 0) -> list[dict[str, Any]]:
        """The choices of one completion request, in the order of their `index`; `version` is named where
        nothing can be sampled.
        """
        answers = body.get("n", 1)
        most = MOST + A_TOKEN * (answers * body["max_tokens"] + len(body["prompt"]))
        status, reply = self.ask("/v1/completions", body, most=most)
        if status != 200 and NOT_FINITE in said(reply):
            raise not_finite(version)
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if status == 200 and _are_choices(choices, answers):
            return sorted(choices, key=_index)
        raise self.refused("/v1/completions", status, reply)

    def refused(self, path: str, status: int, reply: Any) -> EnvironmentFault:
        reason = said(reply)
        what = f"the server at {self.url} answers {path} with HTTP {status}: {reason}"
        fix = f"read its log; it should run as: {launch_line(self.recipe)}"
        return EnvironmentFault(what, where=self.where, fix=fix)

    def _unauthorized(self) -> EnvironmentFault:
        name = self.recipe.rollout.server.api_key_env
        what = f"the server at {self.url} wants an API key"
        fix = "name its variable as rollout.server.api_key_env"
        if name:
            what = f"the server at {self.url} does not take the key in {name}"
            fix = f"set {name} to the --api-key it was started with"
        return EnvironmentFault(what, where=self.recipe.where("rollout.server.api_key_env"), fix=fix)

    def _unanswered(self, error: OSError) -> LgrpoError:
        if isinstance(error, TimeoutError):
            what = f"the server at {self.url} did not answer within {self.timeout:g} s"
            fix = "raise rollout.server.timeout, or lower rollout.server.parallel or model.max_new_tokens"
            return LgrpoError(what, where=self.recipe.where("rollout.server.timeout"), fix=fix)
        what = f"no vLLM server answers at {self.url}: {error or type(error).__name__}"
        return EnvironmentFault(what, where=self.where, fix=f"start one: {launch_line(self.recipe)}")


def launch_line(recipe: Recipe) -> str:
    """The command that starts a server which can serve this recipe at its address."""
    model = recipe.model
    server = recipe.rollout.server
    assert model.lora is not None, "capabilities refuse recipes without an adapter"
    address = urlsplit(server.url)
    host = "127.0.0.1" if is_loopback(address.hostname or "") else address.hostname
    rank = next(r for r in SLOT_RANKS if r >= model.lora.rank)
    path = shlex.quote(locate(model.id, revision=model.revision))
    words = [
        f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {path}",
        f"--host {host} --port {address.port or 8000}",
        WEIGHTS[model.weights],
        f"--enable-lora --max-lora-rank {rank} --max-loras 2 --logprobs-mode processed_logprobs",
    ]
    if not cuda_devices():  # on a CPU a seeded prompt that is cut ends the server
        words.append("--no-enable-chunked-prefill")
    if model.revision:
        words.append(f"--revision {model.revision}")
    if server.model:
        words.append(f"--served-model-name {shlex.quote(server.model)}")
    if server.api_key_env:
        words.append(f'--api-key "${server.api_key_env}"')
    return " ".join(words)


def tokens_of(choice: dict[str, Any], connection: Connection) -> tuple[list[int], list[float]]:
    """Sampled ids and their log-probs. EnvironmentFault for a server that sends none, or no numbers."""
    try:
        pairs = list(zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True))
        return [int(token) for token, _ in pairs], [float(logp) for _, logp in pairs]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"the server at {connection.url} sends no token ids with their log-probs"
        raise EnvironmentFault(what, where=connection.where, fix='serve with "vllm>=0.32,<0.33"') from error


def _are_choices(choices: Any, count: int) -> TypeGuard[list[dict[str, Any]]]:
    """Whether they are as many as were asked for, each with an index of its own."""
    if not isinstance(choices, list) or len(choices) != count:
        return False
    if not all(isinstance(choice, dict) for choice in choices):
        return False
    return sorted(map(_index, choices)) == list(range(count))


def _index(choice: dict[str, Any]) -> int:
    """-1 where a choice has none."""
    index = choice.get("index")
    return index if isinstance(index, int) else -1


def said(reply: Any) -> str:
    """A server's error in its own words, on one line."""
    error = reply.get("error", reply) if isinstance(reply, dict) else reply
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:LONGEST] or "nothing"


def _address(url: str, where: str) -> SplitResult:
    try:
        address = urlsplit(url)
        plain = address.username is None and address.port != 0
        if address.scheme in ("http", "https") and address.hostname and plain:
            return address
    except ValueError:
        pass
    fix = "write it like http://127.0.0.1:8000"
    what = "rollout.server.url is no address of a server"  # which is not shown: it may hold a password
    raise ConfigError(what, where=where, fix=fix)


def _far(address: SplitResult) -> Iterator[str]:
    shared = "rollout.server.adapter_dir must be a folder that both see under the same path"
    yield f"the server at {address.hostname} may be another machine: {shared}"
    if address.scheme == "http":
        yield f"what goes to {address.hostname} is not encrypted, an API key included: use https or a tunnel"
