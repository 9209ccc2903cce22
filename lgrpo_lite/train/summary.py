"""What a step says about itself: groups, batch and sums -> StepRecord."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lgrpo_lite.batch import TrainBatch, ranges
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.objective.weight import grpo_lambda
from lgrpo_lite.policy.memory import measured
from lgrpo_lite.rewards.part import quantile
from lgrpo_lite.rollout.tools import Tools
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Group, Outcome, Rollout, StepRecord

T = TypeVar("T")


class Clock:
    """Seconds by phase: `with clock("rollout"): …` adds up, and tells which phase begins."""

    def __init__(self, at: Callable[[str], None] = lambda phase: None):
        self.seconds: dict[str, float] = defaultdict(float)
        self.at = at

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        self.at(phase)
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    @contextmanager
    def entering(self, phase: str, context: AbstractContextManager[T]) -> Iterator[T]:
        """`context`, with the time that entering and leaving it take; not what is done inside."""
        with ExitStack() as stack:
            with self(phase):
                inside = stack.enter_context(context)
            yield inside
            with self(phase):
                stack.close()


class Sums(defaultdict[str, float]):
    """What micro-batches tell about their tokens, added up over a step; of names
    that end in _max, the largest.
    """

    def __init__(self):
        super().__init__(float)

    def add(self, terms: dict[str, float]) -> None:
        for name, value in terms.items():
            if name.endswith("_max"):
                self[name] = max(self[name], value)
            else:
                self[name] += value


# of tokens whose sampling log-prob is known
SAMPLED = ("disagreement", "mismatch_kl", "token_mult_error", "capped")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a step has taken so far. The update's part is None where there is nothing to train."""

    step: int
    run: Run
    sampled: Sequence[Group]
    draws: int
    tools: Tools
    clock: Clock
    lr: float
    skipped: str | None = None  # why no update is made
    batch: TrainBatch | None = None
    loss: float | None = None
    grad_norm: float | None = None
    sums: Sums | None = None
    token_grad: Tensor | None = None  # -∂loss/∂log π of each trained token


def summarise(taken: Taken) -> StepRecord:
    """Statistics of everything sampled and, where an update is made, of what is trained.
    λ is the one before the update.
    """
    run = taken.run
    return StepRecord(
        step=taken.step,
        policy_version=run.policy.version,
        skipped=taken.skipped,
        draws=taken.draws,
        lr=taken.lr,
        length_lambda=run.objective.length_lambda,
        length_lambda_grad=run.objective.lambda_grad,
        guide_tokens=run.plan.guide_length.length if run.plan.guide_length else None,
        seconds=dict(taken.clock.seconds),
        memory=measured(run.policy, run.optimizer.state_tensors()),
        **_rewards(taken),
        **_groups(taken.sampled),
        **_lengths(taken.sampled),
        **_rollout(taken.tools),
        **_update(taken),
    )


def _rewards(taken: Taken) -> dict[str, Any]:
    rollouts = [r for g in taken.sampled for r in g.rollouts]
    values = [r.reward for r in rollouts]
    parts: dict[str, list[float]] = defaultdict(list)  # a reward of the user's own may name others each time
    for r in rollouts:
        for name, value in r.score.parts.items():
            parts[name].append(value)
    return {
        "reward": _mean(values),
        "reward_std": statistics.pstdev(values) if values else None,
        "reward_parts": {name: statistics.fmean(part) for name, part in parts.items()},
        "solved": _mean([_solved(r) for r in rollouts]),
        "missing": sum(g.missing for g in taken.sampled),
    }


def _groups(sampled: Sequence[Group]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in sampled:
        solved = sum(_solved(r) for r in group.rollouts)
        counts["mixed"] += group.varied
        counts["right"] += solved == len(group.rollouts) > 0
        counts["wrong"] += solved == 0 < len(group.rollouts)
    named = {f"groups_{name}": counts[name] for name in ("mixed", "right", "wrong")}
    return {"groups": len(sampled), **named}


def _lengths(sampled: Sequence[Group]) -> dict[str, float | None]:
    """Completion tokens, of guided answers those that were sampled."""
    rollouts = [r for g in sampled for r in g.rollouts]
    return {
        "length": _mean([_tokens(r) for r in rollouts]),
        "length_right": _mean([_tokens(r) for r in rollouts if _solved(r)]),
        "length_wrong": _mean([_tokens(r) for r in rollouts if not _solved(r)]),
        "length_ended": _mean([_tokens(r) for r in rollouts if r.completion.finish_reason == "stop"]),
        "length_p95": quantile([_tokens(r) for r in rollouts], 0.95),
        "truncated": _mean([r.completion.finish_reason == "length" for r in rollouts]),
    }


def _rollout(tools: Tools) -> dict[str, Any]:
    tally = tools.tally
    return {
        "reward_timeouts": tally.faults["timeout"],
        "reward_crashes": tally.faults["crash"],
        "reward_errors": tally.faults["error"],
        "verifier_faults": tally.verifier_faults,
        "reward_p50": quantile(tally.seconds, 0.5),
        "reward_p95": quantile(tally.seconds, 0.95),
        "rollout_tokens": tools.count["tokens"],
        "rollout_answers": tools.count["answers"],
    }


def _update(taken: Taken) -> dict[str, Any]:
    run, batch, sums = taken.run, taken.batch, taken.sums
    per_token = _per_token(sums, batch)
    return {
        "loss": taken.loss,
        "grad_norm": taken.grad_norm,
        "trained_tokens": batch.num_tokens if batch else 0,
        "disagreement_max": sums["disagreement_max"] if sums is not None and sums["sampled"] else None,
        "ratio_max": sums["ratio_max"] if sums is not None else None,
        **{name: per_token.get(name) for name in ("clip_low", "clip_high", "kl", "entropy", *SAMPLED)},
        **_token_preference(run, batch),
        **_credit(batch, taken.token_grad, run.objective.parts.advantage_floor),
    }


def credited(
    sampled: Sequence[Group],
    groups: Sequence[Group],
    objective: Objective,
    batch: TrainBatch,
    token_grad: Tensor,
) -> list[Group]:
    """The sampled groups, with each trained answer's credit: -∂loss/∂log π of its
    tokens, its normaliser divided out.

    For a plain policy gradient that is the advantage; with λ times its answer's weight; with
    a trace times its token's sum.
    """
    _, chosen = objective.credit(groups)
    # what batch.row counts
    order = [g.rollouts[i] for g, rows in zip(groups, chosen, strict=True) for i in rows]
    per_token = (token_grad / batch.coef).tolist()
    credit: dict[int, tuple[float, ...]] = {}  # by the identity of the rollout
    tokens = torch.bincount(batch.seq, minlength=batch.num_sequences).tolist()
    begin = 0
    for row, size in zip(batch.row.tolist(), tokens, strict=True):
        rollout = order[row]
        given = len(rollout.completion.token_ids) - size  # guidance that was shown and is not trained
        credit[id(rollout)] = (0.0,) * given + tuple(per_token[begin : begin + size])
        begin += size
    with_credit = []
    for group in sampled:
        rollouts = tuple(replace(rollout, credit=credit.get(id(rollout), ())) for rollout in group.rollouts)
        with_credit.append(replace(group, rollouts=rollouts))
    return with_credit


def _credit(batch: TrainBatch | None, token_grad: Tensor | None, floor: float | None) -> dict[str, Any]:
    """Where the update's gradient falls: shares of Σ|∂loss/∂log π| by thirds of the answers, and
    how many advantages were floored.
    """
    if batch is None or token_grad is None:
        return {}
    shares: dict[str, Any] = {}
    size = token_grad.abs().double()
    total = float(size.sum())
    count = torch.bincount(batch.seq, minlength=batch.num_sequences)
    offset, _ = ranges(torch.zeros_like(count), count)
    third = 3 * offset // count[batch.seq]
    if total:
        by_third = torch.zeros(3, dtype=torch.float64).index_add(0, third, size) / total
        names = ("credit_first", "credit_middle", "credit_last")
        shares.update(zip(names, by_third.tolist(), strict=True))
    if floor is not None:
        of_answer = batch.advantage[count.cumsum(0) - count]  # that of its first token
        negative = int((of_answer < 0).sum())
        shares["credit_floored"] = int((of_answer == floor).sum()) / negative if negative else 0.0
    return shares


def _per_token(sums: Sums | None, batch: TrainBatch | None) -> dict[str, Any]:
    """Means over the trained tokens; the disagreement over those whose sampling log-prob
    belongs to the trained prompt.
    """
    if sums is None or batch is None:
        return {}
    means = {}
    for name in sums:
        tokens = sums["sampled"] if name in SAMPLED else batch.num_tokens
        if tokens and name != "sampled":
            means[name] = sums[name] / tokens
    return means


def _token_preference(run: Run, batch: TrainBatch | None) -> dict[str, Any]:
    """The weight λ gives the shortest, median and longest answer of a group, averaged over groups."""
    preference = run.objective.preference
    if preference is None or batch is None:
        return {}
    weight = preference(batch.step_length, batch.step_group).tolist()
    by_group = defaultdict(list)
    for length, group, f in zip(batch.step_length.tolist(), batch.step_group.tolist(), weight, strict=True):
        by_group[group].append((length, f))
    by_length = []  # the weights of each group, from its shortest answer to its longest
    for answers in by_group.values():
        by_length.append([f for _, f in sorted(answers)])
    effective = [sum(fs) ** 2 / (len(fs) * sum(f * f for f in fs)) for fs in by_length]
    return {
        "weight_effective": statistics.fmean(effective),
        "weight_short": statistics.fmean(fs[0] for fs in by_length),
        "weight_median": statistics.fmean(fs[len(fs) // 2] for fs in by_length),
        "weight_long": statistics.fmean(fs[-1] for fs in by_length),
        "length_lambda_grpo": grpo_lambda(batch.step_length, batch.step_group, preference.settings.r),
    }


def _tokens(rollout: Rollout) -> int:
    return len(rollout.completion.token_ids) - rollout.completion.given


def _solved(rollout: Rollout) -> bool:
    return rollout.score.outcome is Outcome.ok


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
