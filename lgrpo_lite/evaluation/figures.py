"""From samples to figures: avg@k, pass@j and maj@k, each with a 95 % bootstrap interval
over problems. No torch, no files.

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
        samples = tuple(
            Sample(**{k: v for k, v in sample.items() if k in known}) for sample in row["samples"]
        )
        return cls(str(row["id"]), row["question"], row["reference"], dict(row["category"]), samples)

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
        return asdict(self) | {
            "pass_at": {str(j): asdict(e) for j, e in self.pass_at.items()},
            "categories": {
                column: {value: figures.to_json() for value, figures in table.items()}
                for column, table in self.categories.items()
            },
        }


def figures(problems: Sequence[Problem], *, categories: bool = True) -> Figures | None:
    """All figures of a set of problems; None when no sample has a reward."""
    samples = [s for p in problems for s in p.samples]
    scored = [s for s in samples if s.right is not None]
    if not scored:
        return None
    k = max(len(p.samples) for p in problems)
    columns = table(problems, k)
    found = dict(zip(columns, estimates(np.array(list(columns.values()))), strict=True))
    avg = found["avg"]
    assert avg is not None, "a sample has a reward"
    return Figures(
        problems=len(problems),
        k=k,
        avg=avg,
        pass_at={j: e for j in powers(k) if (e := found[f"pass@{j}"]) is not None},
        maj=found["maj"],
        truncated=sum(s.finish_reason == "length" for s in samples) / len(samples),
        unparsable=sum(s.outcome == "unparsable" for s in scored) / len(scored),
        missing=len(samples) - len(scored),
        length=sum(s.tokens for s in samples) / len(samples),
        categories=_by_category(problems) if categories else {},
    )


def powers(k: int) -> list[int]:
    """1, 2, 4, … up to k, and k."""
    return [*(2**i for i in range(k.bit_length()) if 2**i < k), k]


def table(problems: Sequence[Problem], k: int) -> dict[str, list[float]]:
    """One number a problem for avg, each pass@j and maj. NaN: the problem has no
    such number, for want of rewards.
    """
    marks = [p.marks for p in problems]
    rows = {"avg": [sum(m) / len(m) if m else math.nan for m in marks]}
    rows |= {f"pass@{j}": passes(problems, j) for j in powers(k)}
    answered = any(s.vote is not None for p in problems for s in p.samples)
    rows["maj"] = [majority(p) if answered else math.nan for p in problems]
    return rows


def passes(problems: Sequence[Problem], j: int) -> list[float]:
    """pass@j of each problem; NaN where fewer than j samples have a reward."""
    return [pass_at_k(len(m), sum(m), j) if len(m) >= j else math.nan for m in (p.marks for p in problems)]


def majority(problem: Problem) -> float:
    """1 when the most frequent answer is right. Samples without an answer do not vote; of
    equals the first to come wins.

    No votes: 0. NaN when the reward of every sample with the winning answer, or of every sample, is missing.
    """
    votes = [s.vote for s in problem.samples if s.vote is not None]
    if not problem.marks:
        return math.nan
    if not votes:
        return 0.0
    winner = max(votes, key=votes.count)  # max keeps the first of equals
    right = next((s.right for s in problem.samples if s.vote == winner and s.right is not None), None)
    return math.nan if right is None else float(right)


def estimates(values: np.ndarray) -> list[Estimate | None]:
    """Mean of each row of [measures, problems] with its interval; NaN leaves the mean,
    a row of NaN has none.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    means = resampled(filled, known)
    found: list[Estimate | None] = []
    for row, there, drawn in zip(filled, known, means.T, strict=True):
        if not there.any():
            found.append(None)
            continue
        low, high = np.nanquantile(drawn, QUANTILES)
        found.append(Estimate(math.fsum(row) / int(there.sum()), float(low), float(high)))
    return found


def resampled(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[RESAMPLES, measures]: means over problems drawn with replacement, the same draws for
    every measure; NaN where none.
    """
    size = values.shape[1]
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(RESAMPLES // CHUNK):
        drawn = rng.integers(0, size, (CHUNK, size)) + np.arange(CHUNK)[:, None] * size
        count = np.bincount(drawn.ravel(), minlength=CHUNK * size).reshape(CHUNK, size).astype(float)
        total, number = count @ values.T, count @ known.T.astype(float)
        parts.append(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
    return np.concatenate(parts)


def _by_category(problems: Sequence[Problem]) -> dict[str, dict[str, Figures]]:
    columns = dict.fromkeys(column for p in problems for column in p.category)
    found: dict[str, dict[str, Figures]] = {}
    for column in columns:
        values = sorted({p.category[column] for p in problems if column in p.category})
        rows = {
            v: figures([p for p in problems if p.category.get(column) == v], categories=False) for v in values
        }
        found[column] = {value: row for value, row in rows.items() if row is not None}
    return found
