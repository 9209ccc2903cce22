"""From samples to figures: avg@k, pass@j and maj@k, each with a 95 % bootstrap interval over problems.

No torch, no files.

A problem is one draw from all problems of its kind, and its k samples are draws from the policy. What makes
two evaluations differ most is which problems were asked, so problems are what is resampled: with replacement,
RESAMPLES times, and the interval is from the 2.5 % to the 97.5 % quantile of the resampled means. The seed is
fixed: equal samples, equal intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from lgrpo_lite.evaluation.diagnostics import pass_at_k

RESAMPLES = 10_000
CHUNK = 500  # resamples at once: CHUNK x problems numbers are held
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer, as it stands in samples.jsonl. The log-probs are at the sampling temperature, in nats."""

    text: str
    tokens: int  # sampled, the end token included
    finish_reason: str  # stop, or length: cut at max_new_tokens
    answer: str | None  # the final answer; None: it commits to none
    vote: str | None  # the answer without its spelling, which is what maj@k counts
    outcome: str  # ok, wrong, unparsable, timeout, error
    value: float | None  # weighted sum of the rewards; None: missing
    right: bool | None  # outcome is ok; None: the reward is missing
    logp: float | None = None  # sum over the tokens, under the policy that was asked
    logp_mean: float | None = None  # a token
    base_logp: float | None = None  # the same under the base model, the adapter switched off
    base_logp_mean: float | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its samples: a line of samples.jsonl."""

    id: str
    question: str
    reference: str
    category: dict[str, str]  # by column of the suite
    samples: tuple[Sample, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Problem":
        """Read a line back; keys of a later version are ignored, KeyError or TypeError on a foreign line."""
        known = {f.name for f in fields(Sample)}
        samples = []
        for sample in row["samples"]:
            values = {key: value for key, value in sample.items() if key in known}
            samples.append(Sample(**values))
        return cls(
            id=str(row["id"]),
            question=row["question"],
            reference=row["reference"],
            category=dict(row["category"]),
            samples=tuple(samples),
        )

    @property
    def marks(self) -> list[bool]:
        """Right or not, of the samples that have a reward."""
        return [s.right for s in self.samples if s.right is not None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What result.json holds. Shares are of samples, estimates are means over problems."""

    problems: int
    k: int
    avg: Estimate  # avg@k: chance that one sample is right
    pass_at: dict[int, Estimate]  # pass@j: chance that j samples hold a right one
    maj: Estimate | None  # maj@k: the most frequent answer is right; None: the rewards read no answer
    truncated: float  # samples cut at max_new_tokens
    unparsable: float  # samples with a reward in which no answer was found
    missing: int  # samples whose reward timed out or failed; they count neither way
    length: float  # mean tokens of a sample
    categories: dict[str, dict[str, "Figures"]]  # column, value

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        row["pass_at"] = {str(j): asdict(estimate) for j, estimate in self.pass_at.items()}
        for column, table in self.categories.items():
            row["categories"][column] = {value: figures.to_json() for value, figures in table.items()}
        return row


def figures(problems: Sequence[Problem], *, categories: bool = True) -> Figures | None:
    """All figures of a set of problems; None when no sample has a reward."""
    samples = [s for p in problems for s in p.samples]
    scored = [s for s in samples if s.right is not None]
    if not scored:
        return None
    k = max(len(p.samples) for p in problems)
    columns = table(problems, k)
    measured = estimates(np.array(list(columns.values())))
    by_name = dict(zip(columns, measured, strict=True))
    avg = by_name["avg"]
    assert avg is not None, "a sample has a reward"
    pass_at = {j: by_name[f"pass@{j}"] for j in powers(k)}
    return Figures(
        problems=len(problems),
        k=k,
        avg=avg,
        pass_at={j: estimate for j, estimate in pass_at.items() if estimate is not None},
        maj=by_name["maj"],
        truncated=sum(s.finish_reason == "length" for s in samples) / len(samples),
        unparsable=sum(s.outcome == "unparsable" for s in scored) / len(scored),
        missing=len(samples) - len(scored),
        length=sum(s.tokens for s in samples) / len(samples),
        categories=_by_category(problems) if categories else {},
    )


def powers(k: int) -> list[int]:
    """1, 2, 4, … up to k, and k."""
    smaller = [2**i for i in range(k.bit_length()) if 2**i < k]
    return [*smaller, k]


def table(problems: Sequence[Problem], k: int) -> dict[str, list[float]]:
    """One number a problem for avg, each pass@j and maj; NaN where a problem has too few rewards for it."""
    rows = {"avg": [_share_right(p.marks) for p in problems]}
    for j in powers(k):
        rows[f"pass@{j}"] = passes(problems, j)
    answered = any(s.vote is not None for p in problems for s in p.samples)
    if answered:
        rows["maj"] = [majority(p) for p in problems]
    else:
        rows["maj"] = [math.nan] * len(problems)
    return rows


def _share_right(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else math.nan


def passes(problems: Sequence[Problem], j: int) -> list[float]:
    """pass@j of each problem; NaN where fewer than j samples have a reward."""
    chances = []
    for problem in problems:
        right, count = sum(problem.marks), len(problem.marks)
        chances.append(pass_at_k(count, right, j) if count >= j else math.nan)
    return chances


def majority(problem: Problem) -> float:
    """1 when the most frequent answer is right; a tie goes to the first.

    Samples without an answer do not vote; no votes: 0. NaN when the reward of every sample with the winning
    answer, or of every sample, is missing.
    """
    votes = [s.vote for s in problem.samples if s.vote is not None]
    if not problem.marks:
        return math.nan
    if not votes:
        return 0.0
    winner = max(votes, key=votes.count)  # max keeps the first of equals
    for sample in problem.samples:
        if sample.vote == winner and sample.right is not None:
            return float(sample.right)
    return math.nan


def estimates(values: np.ndarray) -> list[Estimate | None]:
    """Mean of each row of [measures, problems] with its interval. NaN is left out, a row of NaN is None."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means = resampled(filled, known)
    rows: list[Estimate | None] = []
    for row, row_known, row_means in zip(filled, known, means.T, strict=True):
        if not row_known.any():
            rows.append(None)
            continue
        mean = math.fsum(row) / int(row_known.sum())
        low, high = np.nanquantile(row_means, QUANTILES)
        rows.append(Estimate(mean, float(low), float(high)))
    return rows


def resampled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[RESAMPLES, measures]: means over problems drawn with replacement; NaN where none.

    The draws are the same for every measure.
    """
    size = values.shape[1]
    rng = np.random.default_rng(0)
    offsets = np.arange(CHUNK)[:, None] * size  # of each resample in a flat [CHUNK, size]
    parts = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.integers(0, size, (CHUNK, size)) + offsets
        times_drawn = np.bincount(drawn.ravel(), minlength=CHUNK * size)
        times_drawn = times_drawn.reshape(CHUNK, size).astype(float)
        total = times_drawn @ values.T
        number = times_drawn @ known.T.astype(float)
        means = np.full_like(total, np.nan)
        np.divide(total, number, out=means, where=number > 0)
        parts.append(means)
    return np.concatenate(parts)


def _by_category(problems: Sequence[Problem]) -> dict[str, dict[str, Figures]]:
    columns = dict.fromkeys(column for p in problems for column in p.category)
    tables: dict[str, dict[str, Figures]] = {}
    for column in columns:
        tables[column] = {}
        values = {p.category[column] for p in problems if column in p.category}
        for value in sorted(values):
            members = [p for p in problems if p.category.get(column) == value]
            row = figures(members, categories=False)
            if row is not None:
                tables[column][value] = row
    return tables
