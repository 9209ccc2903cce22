"""What flows through a training step. Standard library only; everything is frozen.

Prompt -> Completion -> Score -> Rollout -> Group -> (batch.TrainBatch) -> StepRecord
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Criterion:
    """One line of a rubric (RGR-GRPO, arXiv:2511.12344). `rule` None: a judge decides if `text` holds."""

    text: str  # what must hold, for people and judges
    kind: Literal["factual", "process"]
    weight: float
    rule: Literal["regex", "numeric", "unit"] | None = None
    value: str = ""  # of the rule: a pattern, a number, a unit


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, as token ids decided once when the data was read."""

    id: str  # stable across runs, e.g. "gsm8k-train-0"
    text: str  # the question as a person reads it, before the template
    token_ids: tuple[int, ...]  # what the model reads: template applied, tokenised once
    reference: str  # the gold answer, extracted
    solution_ids: tuple[int, ...] = ()  # a worked solution, for algorithms that show a piece of it
    rubric: tuple[Criterion, ...] = ()  # criteria of the reward `rubric`
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of its row, that rewards ask for
    messages: tuple[tuple[str, str], ...] = ()  # (role, text) of the chat it is asked in, if it is one
    prefill: str = ""  # how its answer begins: read by the model, part of every answer's text
    weight: float = 1.0  # how often an epoch draws it


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer. The token ids are the truth; the text is for rewards and people."""

    token_ids: tuple[int, ...]  # sampled ids, the end-of-sequence token included when it was sampled
    # of each id under the sampler, at its temperature; None: not under the trained prompt
    logprobs: tuple[float, ...] | None
    text: str  # decoded, special tokens left out
    finish_reason: Literal["stop", "length"]  # "length": truncated at max_new_tokens
    policy_version: int  # number of optimiser updates the sampling policy had seen
    given: int = 0  # leading tokens that were given to the sampler, not sampled


class Outcome(enum.StrEnum):
    """Why a score is what it is. `timeout` and `error` come with a missing value, never with a zero."""

    ok = "ok"
    wrong = "wrong"
    unparsable = "unparsable"
    timeout = "timeout"
    error = "error"


@dataclass(frozen=True, slots=True)
class Score:
    """A reward. `value` None means missing: the rollout leaves its group."""

    value: float | None  # weighted sum of the parts
    outcome: Outcome
    parts: dict[str, float] = field(default_factory=dict)  # unweighted value of each reward, by name
    criteria: tuple[bool, ...] = ()  # which criteria of the prompt's rubric hold


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, one answer, and the answer's score (never missing inside a Group)."""

    prompt: Prompt  # the one the answer is trained under
    completion: Completion
    score: Score
    off: bool = False  # sampled under another prompt than it is trained under
    spans: tuple[tuple[int, int], ...] = ()  # steps of the answer, as ranges of tokens
    values: tuple[float, ...] | None = None  # V at the start of each step, as far as estimated
    # -∂loss/∂log π of each token, its normaliser divided out; empty: not trained on
    credit: tuple[float, ...] = ()

    @property
    def reward(self) -> float:
        assert self.score.value is not None, "a rollout without a reward does not enter a group"
        return self.score.value


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one prompt that are compared with each other; none of them lacks its reward."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    missing: int = 0  # rollouts that left because their reward timed out or failed
    value: float | None = None  # V* of the prompt under the reference, where a cache has it

    @property
    def rewards(self) -> list[float]:
        return [rollout.reward for rollout in self.rollouts]

    @property
    def varied(self) -> bool:
        """Whether two rewards differ, so that a group-relative advantage is not zero throughout."""
        return len(set(self.rewards)) > 1

    @property
    def mixed(self) -> bool:
        """Whether two values of the first reward, the verifier's, differ; `varied` asks it of their sum."""
        first = [next(iter(r.score.parts.values()), r.reward) for r in self.rollouts]
        return len(set(first)) > 1


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One line of metrics.jsonl, the monitor's only input. None: does not apply to this step or algorithm."""

    step: int  # 1-based
    policy_version: int  # optimiser updates done so far
    time: float | None = None  # Unix, when the line was written
    skipped: str | None = None  # why no update was made
    reward: float | None = None  # mean over scored rollouts
    reward_std: float | None = None
    reward_parts: dict[str, float] = field(default_factory=dict)  # mean of each reward, unweighted
    solved: float | None = None  # share of scored rollouts with outcome ok
    missing: int = 0  # rollouts without a reward (timeouts, errors)
    reward_timeouts: int = 0  # rewards that were ended at their deadline
    reward_crashes: int = 0  # rewards whose process died
    reward_errors: int = 0  # rewards that raised, took too much memory, or gave no number
    verifier_faults: int = 0  # answers on which the math verifier failed: wrong, not missing
    reward_p50: float | None = None  # seconds to score one completion, waits for a CPU left out
    reward_p95: float | None = None
    groups: int = 0  # groups that were admitted
    groups_mixed: int = 0  # of those, with two different rewards: the ones that teach
    groups_right: int = 0  # all rollouts solved
    groups_wrong: int = 0  # none solved
    draws: int = 0  # rounds of sampling (1, more with dynamic sampling)
    length: float | None = None  # mean completion tokens
    length_right: float | None = None
    length_wrong: float | None = None
    length_p95: float | None = None
    length_ended: float | None = None  # mean of those that ended by themselves
    truncated: float | None = None  # share that hit max_new_tokens
    loss: float | None = None
    grad_norm: float | None = None  # of the policy, before clipping
    lr: float | None = None
    clip_low: float | None = None  # share of trained tokens clipped below / above
    clip_high: float | None = None
    ratio_max: float | None = None  # largest π/π_old of a trained token; 1 where a batch has one update
    kl: float | None = None  # to the reference, nats a token; None when no reference pass was asked for
    entropy: float | None = None  # nats a token
    disagreement: float | None = None  # mean |d|, d = logp trainer - logp sampler, nats a token
    disagreement_max: float | None = None  # largest |d|
    mismatch_kl: float | None = None  # mean e^d - 1 - d: KL of the sampler from the trainer, nats a token
    token_mult_error: float | None = None  # mean e^|d| - 1: factor by which a token's probability is off
    capped: float | None = None  # share of tokens whose importance weight the rollout correction bounds
    length_lambda: float | None = None  # λ of the token preference after the step (arXiv:2510.06870)
    length_lambda_grad: float | None = None  # d loss / d λ
    # weight that the λ before the update gave the shortest / median / longest answers
    weight_short: float | None = None
    weight_median: float | None = None
    weight_long: float | None = None
    # (Σf)²/(G Σf²), mean over groups: 1, all answers count alike; 1/G, one counts alone
    weight_effective: float | None = None
    length_lambda_grpo: float | None = None  # λ at which the preference would weigh like GRPO, to first order
    credit_first: float | None = None  # share of Σ|∂loss/∂log π| that falls on the first third of the answers
    credit_middle: float | None = None
    credit_last: float | None = None
    # share of the answers trained against whose advantage the floor raised
    credit_floored: float | None = None
    rollout_tokens: int = 0  # tokens sampled for this step, drafts and probes included
    rollout_answers: int = 0  # answers sampled for this step, drafts and probes included
    guide_tokens: int | None = None  # guidance length of the next step (arXiv:2508.13023)
    trained_tokens: int = 0  # completion tokens with a gradient
    seconds: dict[str, float] = field(default_factory=dict)  # by phase: sync, rollout, reward, score, update
    memory: dict[str, int] = field(default_factory=dict)  # bytes, see policy.memory.measured
    alarms: tuple[str, ...] = ()  # names of monitor.alarms whose condition holds

    def after_update(
        self, policy_version: int, length_lambda: float | None, seconds: dict[str, float]
    ) -> "StepRecord":
        """The record with what the update changed."""
        return replace(
            self, policy_version=policy_version, length_lambda=length_lambda, seconds=dict(seconds)
        )

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "StepRecord":
        """Read a line back; keys of a later version are ignored."""
        return cls(**{key: value for key, value in row.items() if key in _known()})


@cache
def _known() -> frozenset[str]:
    return frozenset(f.name for f in fields(StepRecord))
