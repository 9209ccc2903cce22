"""The proofs of a run, made hard: an adapter that changes much, twice, another temperature. And its speed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lgrpo_lite import progress
from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.base import RolloutEngine, SamplingParams, Tick, share_of
from lgrpo_lite.engines.probe import Check, SyncProof, proving, scored
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Prompt

MOVED = 0.1  # mean |Δ log-prob| that a made-up adapter shall cause at least, nats a token
OTHER = 0.7  # temperature tried when the recipe's is 1
# at most, of the rollout that is timed: seconds, where a whole one may take minutes
TIMED_ANSWERS, TIMED_TOKENS = 128, 64


def stages(engine: RolloutEngine, policy: Policy, proof: SyncProof) -> Iterator[tuple[str, Sequence[Check]]]:
    """(what was tried, its checks). Leaves the policy with a made-up adapter: train nothing after it.

    Each stage enters `serving` anew, so what sleeps between rollouts slept here too.
    """
    tried = 4 if policy.has_adapter else 2
    tick = proving()
    yield "as loaded", _proved(engine, policy, proof, share_of(tick, 0.0, 1 / tried))
    if policy.has_adapter:
        for done, name in enumerate(("an adapter", "another adapter"), 1):
            moved = stir(engine, policy, proof, seed=policy.version)
            checks = _proved(engine, policy, proof, share_of(tick, done / tried, 1 / tried))
            yield f"{name} that moves log-probs by {moved:.2g}", list(map(_certain, checks))
    policy.temperature = 1.0 if policy.temperature != 1.0 else OTHER
    last = share_of(tick, (tried - 1) / tried, 1 / tried)
    yield f"temperature {policy.temperature:g}", _proved(engine, policy, proof, last)
    tick(1.0)


def _certain(check: Check) -> Check:
    """A change as large as this one must show: what could not be told is a failure here."""
    asked = check.name in ("adapter", "version", "last update")
    return replace(check, passed=check.passed and (check.sure or not asked))


def _proved(engine: RolloutEngine, policy: Policy, proof: SyncProof, tick: Tick) -> Sequence[Check]:
    with engine.serving(policy) as sampler:
        return proof(sampler, tick)


@torch.no_grad()
def stir(engine: RolloutEngine, policy: Policy, proof: SyncProof, *, seed: int) -> float:
    """Add noise to the adapter until answers change clearly: the next version. Returns mean |Δ log-prob|."""
    with engine.serving(policy) as sampler:
        answers = sampler.generate(proof.prompts, 1, SamplingParams(policy.temperature, 16))
    first = [row[0] for row in answers]
    batch = for_scoring(list(zip(proof.prompts, first, strict=True)))
    before = scored(policy, batch)
    generator = torch.Generator().manual_seed(seed)
    noise = []
    for parameter in policy.trainable():
        scale = 2e-3 * parameter.shape[-1] ** -0.5
        noise.append(torch.randn(parameter.shape, generator=generator) * scale)
    moved = 0.0
    for _ in range(14):
        for parameter, change in zip(policy.trainable(), noise, strict=True):
            parameter += change.to(parameter.device, parameter.dtype)
        noise = [2 * change for change in noise]
        moved = float((scored(policy, batch) - before).abs().mean())
        if moved >= MOVED:
            break
    policy.version += 1
    return moved


@dataclass(frozen=True, slots=True)
class Speed:
    """One rollout: its answers of at most `limit` tokens, the tokens they came to, and how long that took."""

    answers: int
    limit: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def timed(engine: RolloutEngine, policy: Policy, prompts: Sequence[Prompt], n: int, *, longest: int) -> Speed:
    """The rollout of a step, n answers a prompt, cut to TIMED_ANSWERS of TIMED_TOKENS. Waking is left out."""
    n = min(n, TIMED_ANSWERS)
    asked = prompts[: max(1, TIMED_ANSWERS // n)]
    limit = min(longest, TIMED_TOKENS)
    progress.told("timing a rollout", 0, 1)
    with engine.serving(policy) as sampler:
        begin = time.perf_counter()
        rows = sampler.generate(asked, n, SamplingParams(policy.temperature, limit))
        seconds = time.perf_counter() - begin
    progress.told("timing a rollout", 1, 1)
    tokens = sum(len(answer.token_ids) for row in rows for answer in row)
    return Speed(n * len(asked), limit, tokens, seconds)
