"""Does the sampler hold this policy? Measured by log-probs of a few fixed prompts, sampler beside trainer.

The sampler answers; the trainer scores the same tokens with the adapter, without it, with the adapter of
the last proof, and at another temperature. Noise of the two kernels scatters around the trainer's
numbers; a sampler with another adapter follows that other one. So each question is a slope through the
origin, β = Σ r d / Σ d², with

    d = what the adapter (the last updates, 10 % of temperature) changes in the trainer
    r = sampler - trainer without it

β is 1 where the sampler holds it and 0 where it does not. Where the change drowns in rounding β is 1/2,
whatever the sampler holds, since d has as much of that noise as r: so 1/2 is what β must be above or below,
by its standard error, to say anything.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lgrpo_lite import progress
from lgrpo_lite.batch import TrainBatch, for_scoring
from lgrpo_lite.engines.base import RolloutEngine, Sampler, SamplingParams, Tick, share_of
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.layout import split
from lgrpo_lite.policy.checkpoint import random_kept
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.passes import SCORED_TOKENS
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Completion, Prompt

ANSWERS, TOKENS = 8, 16  # a prompt of the probe
# first tokens drawn to look at a cached prefix, after so many contexts, at this temperature
FIRST, CUTS, FLATTER = (8, 8, 1.5)
LONGEST = 256  # tokens of a probe's prompt: several blocks of any prefix cache
SEED = 20_251_121  # of the proof's own random numbers
# Mean |Δ log-prob| of two kernels, nats a token, by how the base weights are held.
# Above it something else is wrong.
BAND = {"fp32": 2e-3, "fp16": 0.03, "bf16": 0.1, "int8": 0.1, "nf4": 0.1}
SAME = {"fp32": 1e-3, "fp16": 0.005, "bf16": 0.03, "int8": 0.03, "nf4": 0.03}  # of one kernel with itself
SIGMA, NUDGE = 4.0, 1.1  # standard errors that count as certain; the step of the temperature


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `found` is a sentence with the numbers."""

    name: str
    passed: bool
    found: str
    sure: bool = True  # False: it passed because nothing could be told


@dataclass(frozen=True, slots=True)
class Slope:
    """β and its standard error, a jackknife over answers: one token that dominates shows as doubt only."""

    beta: float
    error: float

    @classmethod
    def of(cls, r: Tensor, d: Tensor, answer: Tensor) -> "Slope":
        """`answer`: which answer each token belongs to."""
        count = int(answer.max()) + 1
        zero = torch.zeros(count, dtype=r.dtype)
        product = zero.index_add(0, answer, r * d)
        square = zero.index_add(0, answer, d * d)
        rest = square.sum() - square
        if not bool((rest > 0).all()):
            return cls(0.0, math.inf)
        without = (product.sum() - product) / rest
        deviation = without - without.mean()
        error = ((count - 1) / count * (deviation**2).sum()).sqrt()
        return cls(float(product.sum() / square.sum()), float(error))

    @property
    def held(self) -> bool | None:
        """Whether the sampler holds it; None: this cannot be told yet."""
        if abs(self.beta - 0.5) <= SIGMA * self.error:
            return None
        return self.beta > 0.5

    def __str__(self) -> str:
        if self.held is None:
            return "too small a change to tell"
        return f"β {self.beta:.2f} ± {self.error:.2f}"


class SyncProof:
    """What later proofs compare with: the base's checksum and first answers, the last proof's adapter."""

    def __init__(
        self, engine: RolloutEngine, policy: Policy, prompts: Sequence[Prompt], *, weights: str, longest: int
    ):
        self.engine = engine
        self.policy = policy
        self.weights = weights
        room = max(2 * CUTS, longest - TOKENS)
        self.prompts = probe_prompts(prompts, min(LONGEST, room))
        self.count = 0
        self._own = fingerprint(policy.model)
        self._served = engine.fingerprint()
        self._canary: list[Completion] | None = None
        self._before: list[Tensor] | None = None  # the adapter of the last proof
        self._last: list[Tensor] | None = None  # that of the last version, where it is another one
        self._rounding: float | None = None  # of a prompt that comes out of the prefix cache

    def __call__(self, sampler: Sampler, tick: Tick = None) -> list[Check]:
        """All checks, inside `engine.serving`. Uses no random number of the run and changes no parameter.
        `tick` hears which share of the work is done.
        """
        policy = self.policy
        training = policy.model.training
        policy.model.eval()
        try:
            with random_kept(), torch.no_grad():
                torch.manual_seed(SEED + self.count)
                self.count += 1
                checks = list(self._checks(sampler, self._parts(tick)))
        finally:
            policy.model.train(training)
        if policy.has_adapter:
            self._before = self._copy()
            self._last = None
        return checks

    def remember(self) -> None:
        """Keep the adapter for the next proof: a sampler that is one update behind holds it."""
        if self.policy.has_adapter:
            self._last = self._copy()

    def _copy(self) -> list[Tensor]:
        return [p.detach().cpu().clone() for p in self.policy.trainable()]

    def _parts(self, tick: Tick) -> Iterator[Tick]:
        """For each part of the work in turn, what hears how far it is: answers, and passes over them."""
        kept = [self._before, self._last]
        passes = 2 + self.policy.has_adapter * (1 + sum(adapter is not None for adapter in kept))
        count = 1 + passes + 2 * self.engine.caches_prefixes + self.policy.has_adapter
        for part in range(count):
            if tick is not None:
                tick(part / count)
            yield share_of(tick, part / count, 1 / count)

    def _checks(self, sampler: Sampler, parts: Iterator[Tick]) -> Iterator[Check]:
        policy = self.policy
        temperature = self.policy.temperature
        answers = sampler.generate(
            self.prompts, ANSWERS, SamplingParams(temperature, TOKENS, tick=next(parts))
        )
        pairs = []
        for prompt, row in zip(self.prompts, answers, strict=True):
            pairs += [(prompt, completion) for completion in row]
        batch = for_scoring(pairs)
        said = batch.sampler_logp.double()
        scored = self._scored(batch, parts)
        yield self._stamps(pairs)
        yield self._base_weights()
        if policy.has_adapter:
            with policy.reference():
                off = self._scored(batch, parts)
            slope = Slope.of(said - off, scored - off, batch.seq)
            yield _slope("adapter", slope, scored - off, "with the adapter", "without it")
            earlier = (
                ("version", self._before, "with the last proof's"),
                ("last update", self._last, "with the one before the last update"),
            )
            for name, kept, other in earlier:
                if kept is not None:
                    with self._adapter(kept):
                        old = self._scored(batch, parts)
                    slope = Slope.of(said - old, scored - old, batch.seq)
                    yield _slope(name, slope, scored - old, "with this version's adapter", other)
        next(parts)
        yield self._temperature(batch, said - scored, scored, temperature)
        yield self._agreement(said - scored)
        if self.engine.caches_prefixes:
            yield self._prefixes(sampler, temperature, parts)
        if policy.has_adapter:
            yield self._base_answers(sampler, next(parts))

    def _scored(self, batch: TrainBatch, parts: Iterator[Tick]) -> Tensor:
        next(parts)
        return scored(self.policy, batch).double()

    @contextmanager
    def _adapter(self, other: Sequence[Tensor]) -> Iterator[None]:
        """Inside it the policy has another adapter."""
        trained = self.policy.trainable()
        now = [p.detach().clone() for p in trained]
        try:
            for parameter, value in zip(trained, other, strict=True):
                parameter.copy_(value)
            yield
        finally:
            for parameter, value in zip(trained, now, strict=True):
                parameter.copy_(value)

    # ------------------------------------------------------------------------------------------- checks

    def _stamps(self, pairs: Sequence[tuple[Prompt, Completion]]) -> Check:
        version = self.policy.version
        stamps = sorted({c.policy_version for _, c in pairs})
        return Check("stamp", stamps == [version], f"answers of version {stamps}, the policy is {version}")

    def _base_weights(self) -> Check:
        same = not self.policy.has_adapter or fingerprint(self.policy.model) == self._own
        served = self.engine.fingerprint() == self._served
        what = "the base weights have every bit they started with"
        if not (same and served):
            what = f"the {'sampler' if same else 'trainer'}'s base weights are no longer those of the start"
        return Check("base weights", same and served, what)

    def _temperature(self, batch: TrainBatch, gap: Tensor, own: Tensor, temperature: float) -> Check:
        self.policy.temperature = NUDGE * temperature
        try:
            nudged = scored(self.policy, batch).double()
        finally:
            self.policy.temperature = temperature
        slope = Slope.of(gap, nudged - own, batch.seq)
        off = (NUDGE - 1) * slope.beta
        error = (NUDGE - 1) * slope.error
        if not math.isfinite(error) or error > 0.1:
            return Check("temperature", True, "these answers hardly depend on it", sure=False)
        fitted = f"{temperature * (1 + off):.3g} ± {temperature * error:.2g}"
        text = f"the sampler's log-probs fit {fitted}, set is {temperature:g}"
        return Check("temperature", abs(off) <= 0.03 + SIGMA * error, text)

    def _agreement(self, gap: Tensor) -> Check:
        band = BAND[self.weights]
        mean = float(gap.abs().mean())
        largest = float(gap.abs().max())
        gaps = f"mean |Δlogp| {mean:.2g}, largest {largest:.2g} over {len(gap)} tokens"
        return Check("agreement", mean <= band, f"{gaps}; accepted mean {band:g}")

    def _prefixes(self, sampler: Sampler, temperature: float, parts: Iterator[Tick]) -> Check:
        """First tokens through the prefix cache and past it, after the long prompts and what is left of them.

        At the first proof there was one adapter only, so nothing can be stale: what differs then is
        rounding, since cached and fresh prompts may take different kernels. Later ones may differ by some of
        that more, as far as kernels may at all.
        """
        cut = []
        for prompt in self.prompts[2:]:
            length = len(prompt.token_ids)
            cut += [replace(prompt, token_ids=prompt.token_ids[: length - k]) for k in range(CUTS)]
        draw = SamplingParams(FLATTER * temperature, 1)  # log-probs of unlikely tokens move most
        uncached = replace(draw, salt=f"proof-{self.policy.version}-{self.count}")
        cached = sampler.generate(cut, FIRST, replace(draw, tick=next(parts)))
        fresh = sampler.generate(cut, FIRST, replace(uncached, tick=next(parts)))
        gaps = []
        for row, other_row in zip(cached, fresh, strict=True):
            logp = _by_token(row)
            other = _by_token(other_row)
            shared = logp.keys() & other.keys()
            gaps += [abs(logp[token] - other[token]) for token in shared]
        mean = _mean(gaps)
        limit = BAND[self.weights]
        if self._rounding is None:
            self._rounding = mean
        else:
            limit = min(limit, max(SAME[self.weights], 5 * self._rounding))
        tokens = f"{len(gaps)} first tokens through the prefix cache and past it"
        text = f"{tokens}: mean |Δlogp| {mean:.2g}, accepted {limit:.2g}"
        return Check("prefix cache", mean <= limit, text, sure=bool(gaps))

    def _base_answers(self, sampler: Sampler, tick: Tick) -> Check:
        """Greedy answers of the base, which training never changes: the canary of sleep, waking and swaps."""
        greedy = SamplingParams(0.0, TOKENS, tick=tick)
        with sampler.reference():
            now = [row[0] for row in sampler.generate(self.prompts, 1, greedy)]
        self._canary = self._canary or now
        gaps = []
        lost = 0
        for one, other in zip(self._canary, now, strict=True):
            agree = _common_prefix(one.token_ids, other.token_ids)
            lost += agree == 0
            before = (one.logprobs or ())[:agree]
            after = (other.logprobs or ())[:agree]
            gaps += [abs(a - b) for a, b in zip(before, after, strict=False)]
        mean = _mean(gaps)
        text = "greedy answers of the base and those of the start: "
        text += f"mean |Δlogp| {mean:.2g}, {lost} of {len(now)} begin otherwise"
        passed = mean <= SAME[self.weights] and lost <= len(now) // 2
        return Check("base answers", passed, text)


@torch.no_grad()
def scored(policy: Policy, batch: TrainBatch) -> Float[Tensor, " T"]:
    """`policy.logprobs` of a batch without gradient, in passes of at most SCORED_TOKENS tokens.

    They are that small since a sampler's keys and values may be on the GPU too.
    """
    logp = torch.empty_like(batch.advantage)
    for rows, part in split(batch, SCORED_TOKENS):
        logp[batch.tokens_of(rows)] = policy.logprobs(part).logp
    return logp


def _slope(name: str, slope: Slope, d: Tensor, one: str, other: str) -> Check:
    size = float(d.abs().mean())
    text = f"{slope} (1: {one}, 0: {other}), which moves log-probs by {size:.2g} in the mean"
    return Check(name, slope.held is not False, text, sure=slope.held is not None)


def _mean(gaps: Sequence[float]) -> float:
    return sum(gaps) / len(gaps) if gaps else 0.0


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int | None:
    """How many tokens both begin with; None where no token differs."""
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return None


def _by_token(row: Sequence[Completion]) -> dict[int, float]:
    """Log-prob of each first token that was drawn."""
    return {c.token_ids[0]: c.logprobs[0] for c in row if c.logprobs}


def probe_prompts(prompts: Sequence[Prompt], longest: int) -> list[Prompt]:
    """Two prompts of the run, and two as long as allowed, so that a prefix cache holds blocks of them."""
    first = [prompt.token_ids for prompt in prompts[:64]]
    whole = [token for ids in first for token in ids]
    whole *= math.ceil(2 * longest / len(whole))
    shown = [
        first[0][-longest:],
        first[-1][-longest:],
        tuple(whole[:longest]),
        tuple(whole[longest : 2 * longest]),
    ]
    return [Prompt(f"probe-{i}", "", tuple(ids), "") for i, ids in enumerate(shown)]


def demand_passed(checks: Sequence[Check], where: str) -> None:
    """VerificationError (exit 6) that names every check that failed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        reasons = "; ".join(f"{check.name}: {check.found}" for check in failed)
        what = f"the rollouts do not come from this policy: {reasons}"
        fix = "look closer with `lgrpo-lite selftest RECIPE`, or set rollout.engine=transformers"
        raise VerificationError(what, where=where, fix=fix)


def proving() -> Callable[[float], None]:
    """What hears how far a proof is, and tells it in percent."""
    return lambda share: progress.told("proving the rollouts", int(100 * share), 100)


def proof_of(engine: RolloutEngine, policy: Policy, prompts: Sequence[Prompt], recipe) -> SyncProof:
    """The proof of a run of that recipe."""
    longest = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens
    return SyncProof(engine, policy, prompts, weights=recipe.model.weights, longest=longest)
