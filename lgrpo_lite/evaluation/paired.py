"""Two evaluations of the same problems, problem by problem: difference, what was gained and lost,
curves, and the base's support.

Pairing takes the difficulty of the problems out of the comparison, so a much smaller difference shows than
between two intervals that stand side by side.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.evaluation.diagnostics import coverage, crossover
from lgrpo_lite.evaluation.figures import Estimate, Problem, estimates, passes, powers, table
from lgrpo_lite.evaluation.results import problems_hash, read_samples

LOW = 0.01  # quantile of the base's own samples below which an answer is outside its usual range
FEW = 30  # problems below which a bootstrap interval is too narrow


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two evaluations."""

    path: str
    name: str
    about: dict[str, Any]
    problems: list[Problem]

    @property
    def k(self) -> int:
        return max(len(p.samples) for p in self.problems)


@dataclass(frozen=True, slots=True)
class Support:
    """How many right answers of B the base model gives the likelihood of its own samples (see `support`)."""

    right: int  # right samples of B
    inside: float  # share of them with a mean log-prob a token at or above `threshold`
    threshold: float  # the 1 % quantile of the base's own samples, nats a token
    gained: int  # problems B solves and A never
    gained_inside: int  # of those, with at least one right answer inside


@dataclass(frozen=True, slots=True)
class Comparison:
    """What compare.json holds. Differences are B - A."""

    a: str
    b: str
    suite: str
    problems: int
    k: tuple[int, int]
    avg: tuple[float, float]  # over the problems where both have a reward
    difference: Estimate
    # by the first min(k) samples: solved at least once by both, gained, lost, neither
    coverage: dict[str, int]
    ks: list[int]
    curves: tuple[list[Estimate], list[Estimate]]  # pass@j of A and of B for j in ks
    crossover: int | None  # first j at which A is above B
    maj: tuple[float, float] | None  # maj@min(k)
    support: Support | None
    no_support: str  # why `support` is not there; empty where it is
    sentence: str
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_side(path: Path) -> Side:
    """A finished result folder. Anything else: ConfigError."""
    try:
        about = json.loads((path / "result.json").read_text("utf-8"))["about"]
        subject = about["subject"]
        return Side(
            str(path), f"{subject['name']} ({subject['label']})", about, read_samples(path / "samples.jsonl")
        )
    except (OSError, ValueError, KeyError, TypeError):
        started = (path / "about.json").is_file()
        what = "this evaluation is not finished" if started else "no evaluation is there"
        fix = (
            "run the same `lgrpo-lite eval` again; it goes on"
            if started
            else "lgrpo-lite eval RUN --suite NAME writes one"
        )
        raise ConfigError(what, where=str(path), fix=fix) from None


def newest(run: Path, suite: str | None = None, problems: str | None = None) -> Path:
    """The last finished evaluation of a run, of the problems with that hash if
    one is given. None: ConfigError.
    """
    found = []
    for file in run.glob("evals/*/result.json"):
        about = json.loads(file.read_text("utf-8"))["about"]
        if problems is None or about["problems_hash"] == problems:
            found.append(file)
    if not found:
        of = f" of {suite}" if suite else ""
        what, fix = (
            f"the run has no finished evaluation{of}",
            f"lgrpo-lite eval {run} --suite {suite or 'NAME'}",
        )
        raise ConfigError(what, where=str(run / "evals"), fix=fix)
    return max(found, key=lambda file: file.stat().st_mtime).parent


def compare(a: Side, b: Side) -> Comparison:
    """B against A. Other problems or another checker: ConfigError that names what differs."""
    warnings = _comparable(a, b)
    k = (a.k, b.k)
    ks = powers(min(k))
    of_a, of_b = (table(side.problems, side.k) for side in (a, b))
    both = ~np.isnan(np.array(of_a["avg"]) + np.array(of_b["avg"]))
    if not both.any():
        fix = "look into the rewards of the two evaluations"
        raise ConfigError("no problem has a reward on both sides", where=f"{a.path}, {b.path}", fix=fix)
    avg = np.array([of_a["avg"], of_b["avg"]])[:, both]
    [difference] = estimates((avg[1] - avg[0])[None])
    assert difference is not None, "there is a problem with both"
    curves = tuple(_curve(side.problems, ks) for side in (a, b))
    ks = ks[: min(map(len, curves))]
    equal = [  # as many chances for both
        [
            replace(p, samples=p.samples[: min(k)])
            for p, there in zip(side.problems, both, strict=True)
            if there
        ]
        for side in (a, b)
    ]
    solved = [[sum(p.marks) for p in problems] for problems in equal]
    reason = _no_support(a, b)
    return Comparison(
        a=a.name,
        b=b.name,
        suite=a.about["suite"],
        problems=int(both.sum()),
        k=k,
        avg=(float(avg[0].mean()), float(avg[1].mean())),
        difference=difference,
        coverage=coverage(*solved),
        ks=ks,
        curves=(curves[0][: len(ks)], curves[1][: len(ks)]),
        crossover=crossover(
            [e.value for e in curves[0][: len(ks)]], [e.value for e in curves[1][: len(ks)]], ks
        ),
        maj=_majorities(*equal),
        support=None if reason else support(*equal),
        no_support=reason,
        sentence=sentence(difference, int(both.sum())),
        warnings=warnings,
    )


def change(before: Sequence[Problem], after: Sequence[Problem], names: tuple[str, str]) -> str | None:
    """`sentence` on two sets of samples; None where they are not of the same problems."""
    if [(p.question, p.reference) for p in before] != [(p.question, p.reference) for p in after]:
        return None
    avg = np.array([table(problems, 1)["avg"] for problems in (before, after)])
    [difference] = estimates((avg[1] - avg[0])[None])
    return (
        None if difference is None else sentence(difference, int((~np.isnan(avg).any(axis=0)).sum()), names)
    )


def sentence(difference: Estimate, problems: int, names: tuple[str, str] = ("A", "B")) -> str:
    """The difference in words for a newcomer; the interval decides how sure they sound."""
    points = 100 * difference.value
    low, high = 100 * difference.low, 100 * difference.high
    if points == 0 and low == high == 0:
        return (
            _upper(f"{names[0]} and {names[1]}")
            + f" are right equally often on every one of these {problems} problems."
        )
    better, worse, sign = (names[1], names[0], 1) if points >= 0 else (names[0], names[1], -1)
    ends = sorted((sign * low, sign * high))
    text = f"{_upper(better)} solves {_number(abs(points))} more of every 100 problems than {worse} "
    text += f"(95 % interval {_number(ends[0])} to {_number(ends[1])}): "
    if ends[0] <= 0:
        return text + "this may be chance."
    return text + (
        "better, though on few problems." if problems < FEW else "better beyond what chance explains."
    )


def support(base: Sequence[Problem], tuned: Sequence[Problem]) -> Support | None:
    """Whether right answers of the tuned model were answers that the base model gives, too
    (arXiv:2510.15990, arXiv:2504.13837).

    ℓ(y) = (1/|y|) Σ log π_base(y_t | before) is an answer's mean log-prob a token with the adapter off, the
    negative log of its perplexity. Inside is ℓ(y) >= the 1 % quantile of ℓ over the base's own samples on the
    same problems. That says an answer is as likely, token by token, as what the base writes; not that the
    base would find it in so many samples.
    """
    own = [s.base_logp_mean for p in base for s in p.samples if s.base_logp_mean is not None]
    right = [
        (i, s.base_logp_mean)
        for i, p in enumerate(tuned)
        for s in p.samples
        if s.right and s.base_logp_mean is not None
    ]
    if not own or not right:
        return None
    threshold = float(np.quantile(own, LOW))
    inside = {i for i, mean in right if mean >= threshold}
    gained = {
        i for i, (a, b) in enumerate(zip(base, tuned, strict=True)) if not any(a.marks) and any(b.marks)
    }
    share = sum(mean >= threshold for _, mean in right) / len(right)
    return Support(len(right), share, threshold, len(gained), len(gained & inside))


def _comparable(a: Side, b: Side) -> list[str]:
    """Warnings for what differs and may; ConfigError for what may not."""
    one, other = (problems_hash((p.question, p.reference) for p in side.problems) for side in (a, b))
    where, fix = f"{a.path}, {b.path}", "evaluate both with the same --suite and --limit"
    if one != other or len(a.problems) != len(b.problems):
        what = (
            f"{a.about['suite']} with {len(a.problems)} problems and {b.about['suite']} with"
            f" {len(b.problems)}"
        )
        same = a.about["suite"] == b.about["suite"] and len(a.problems) == len(b.problems)
        more = ", whose questions or gold answers differ" if same else ""
        raise ConfigError(f"these are not the same problems: {what}{more}", where=where, fix=fix)
    if a.about["checker"] != b.about["checker"]:
        raise ConfigError(
            "the answers were checked by different rewards",
            where=where,
            fix="evaluate both with the same rewards",
        )
    told = []
    for key, words in (("temperature", "temperature"), ("prompt", "prompt")):
        if a.about[key] != b.about[key]:
            told.append(f"the two differ in {words}: {a.about[key]} and {b.about[key]}")
    limits = [side.about["model"]["max_new_tokens"] for side in (a, b)]
    if limits[0] != limits[1]:
        told.append(f"the two differ in model.max_new_tokens: {limits[0]} and {limits[1]}")
    if len(a.problems) < FEW:
        told.append(f"{len(a.problems)} problems are few: the intervals are too narrow")
    return told


def _no_support(a: Side, b: Side) -> str:
    """Why the base's support is not asked about; empty where it can be."""
    base, tuned = a.about["subject"], b.about["subject"]
    if base["trained"] is not None:
        return "A is not the base model: evaluate the run with --checkpoint base for it"
    if tuned["trained"] is None:
        return "B is a base model itself"
    if base["base_weights"] is None or base["base_weights"] != tuned["base_weights"]:
        return "the base of B is not A"
    if a.about["temperature"] != b.about["temperature"]:
        return "A and B were sampled at different temperatures"
    return "" if support(a.problems, b.problems) else "B has no right answer"


def _curve(problems: Sequence[Problem], ks: Sequence[int]) -> list[Estimate]:
    """pass@j for the first of `ks`, as far as any problem has that many rewards."""
    found = estimates(np.array([passes(problems, j) for j in ks]))
    return [estimate for estimate in found if estimate is not None]  # None for the last ones alone


def _majorities(*sides: Sequence[Problem]) -> tuple[float, float] | None:
    """maj@k of both; None where the rewards of one read no answer."""
    votes = [np.array(table(problems, 1)["maj"]) for problems in sides]
    if any(np.isnan(row).all() for row in votes):
        return None
    return float(np.nanmean(votes[0])), float(np.nanmean(votes[1]))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(points: float) -> str:
    """Whole numbers from 10 on, else one decimal, without a minus zero."""
    text = f"{points:.0f}" if abs(points) >= 10 else f"{points:.1f}"
    return "0.0" if text == "-0.0" else text
