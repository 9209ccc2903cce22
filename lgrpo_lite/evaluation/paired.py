"""Two evaluations compared problem by problem: difference, gained and lost, curves, the base's support.

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
from lgrpo_lite.machine.disk import plain

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
        about = json.loads(plain(path / "result.json").read_text("utf-8"))["about"]
        subject = about["subject"]
        name = f"{subject['name']} ({subject['label']})"
        return Side(str(path), name, about, read_samples(path / "samples.jsonl"))
    except (OSError, ValueError, KeyError, TypeError):
        what, fix = "no evaluation is there", "lgrpo-lite eval RUN --suite NAME writes one"
        if (path / "about.json").is_file():
            what, fix = "this evaluation is not finished", "run the same `lgrpo-lite eval` again; it goes on"
        raise ConfigError(what, where=str(path), fix=fix) from None


def newest(run: Path, suite: str | None = None, problems: str | None = None) -> Path:
    """The last finished evaluation of a run, of the problems with that hash if one is given.

    None: ConfigError.
    """
    results = []
    for file in run.glob("evals/*/result.json"):
        about = json.loads(plain(file).read_text("utf-8"))["about"]
        if problems is None or about["problems_hash"] == problems:
            results.append(file)
    if not results:
        of_suite = f" of {suite}" if suite else ""
        what = f"the run has no finished evaluation{of_suite}"
        fix = f"lgrpo-lite eval {run} --suite {suite or 'NAME'}"
        raise ConfigError(what, where=str(run / "evals"), fix=fix)
    return max(results, key=lambda file: file.stat().st_mtime).parent


def compare(a: Side, b: Side) -> Comparison:
    """B against A. Other problems or another checker: ConfigError that names what differs."""
    warnings = _comparable(a, b)
    k = (a.k, b.k)
    avg = np.array([table(side.problems, side.k)["avg"] for side in (a, b)])
    both = ~np.isnan(avg[0] + avg[1])
    if not both.any():
        fix = "look into the rewards of the two evaluations"
        raise ConfigError("no problem has a reward on both sides", where=f"{a.path}, {b.path}", fix=fix)
    avg = avg[:, both]
    [difference] = estimates((avg[1] - avg[0])[None])
    assert difference is not None, "there is a problem with both"
    ks = powers(min(k))
    curve_a = _curve(a.problems, ks)
    curve_b = _curve(b.problems, ks)
    shorter = min(len(curve_a), len(curve_b))
    ks, curve_a, curve_b = ks[:shorter], curve_a[:shorter], curve_b[:shorter]
    # as many chances for both
    equal_a = _first_samples(a.problems, both, min(k))
    equal_b = _first_samples(b.problems, both, min(k))
    solved_a = [sum(problem.marks) for problem in equal_a]
    solved_b = [sum(problem.marks) for problem in equal_b]
    reason = _no_support(a, b)
    return Comparison(
        a=a.name,
        b=b.name,
        suite=a.about["suite"],
        problems=int(both.sum()),
        k=k,
        avg=(float(avg[0].mean()), float(avg[1].mean())),
        difference=difference,
        coverage=coverage(solved_a, solved_b),
        ks=ks,
        curves=(curve_a, curve_b),
        crossover=crossover([e.value for e in curve_a], [e.value for e in curve_b], ks),
        maj=_majorities(equal_a, equal_b),
        support=None if reason else support(equal_a, equal_b),
        no_support=reason,
        sentence=sentence(difference, int(both.sum())),
        warnings=warnings,
    )


def _first_samples(problems: Sequence[Problem], kept: np.ndarray, count: int) -> list[Problem]:
    """The problems that are kept, with the first `count` samples of each."""
    rows = []
    for problem, keep in zip(problems, kept, strict=True):
        if keep:
            rows.append(replace(problem, samples=problem.samples[:count]))
    return rows


def change(before: Sequence[Problem], after: Sequence[Problem], names: tuple[str, str]) -> str | None:
    """`sentence` on two sets of samples; None where they are not of the same problems."""
    if _asked(before) != _asked(after):
        return None
    avg = np.array([table(problems, 1)["avg"] for problems in (before, after)])
    [difference] = estimates((avg[1] - avg[0])[None])
    if difference is None:
        return None
    both = ~np.isnan(avg).any(axis=0)
    return sentence(difference, int(both.sum()), names)


def sentence(difference: Estimate, problems: int, names: tuple[str, str] = ("A", "B")) -> str:
    """The difference in words for a newcomer; the interval decides how sure they sound."""
    points = 100 * difference.value
    low, high = 100 * difference.low, 100 * difference.high
    if points == 0 and low == high == 0:
        both = _upper(f"{names[0]} and {names[1]}")
        return f"{both} are right equally often on every one of these {problems} problems."
    if points >= 0:
        worse, better = names
        least, most = sorted((low, high))
    else:
        better, worse = names
        least, most = sorted((-low, -high))
    more, low, high = _number(abs(points)), _number(least), _number(most)
    text = f"{_upper(better)} solves {more} more of every 100 problems than {worse} "
    text += f"(95 % interval {low} to {high}): "
    if least <= 0:
        return text + "this may be chance."
    if problems < FEW:
        return text + "better, though on few problems."
    return text + "better beyond what chance explains."


def support(base: Sequence[Problem], tuned: Sequence[Problem]) -> Support | None:
    """Whether the base model gives the tuned model's right answers, too.

    The question of arXiv:2510.15990 and arXiv:2504.13837.
    ℓ(y) = (1/|y|) Σ log π_base(y_t | before) is an answer's mean log-prob a token with the adapter off, the
    negative log of its perplexity. Inside is ℓ(y) >= the 1 % quantile of ℓ over the base's own samples on the
    same problems. That says an answer is as likely, token by token, as what the base writes; not that the
    base would find it in so many samples.
    """
    own = [s.base_logp_mean for p in base for s in p.samples if s.base_logp_mean is not None]
    right = []  # (problem, mean log-prob) of each
    for i, problem in enumerate(tuned):
        for sample in problem.samples:
            if sample.right and sample.base_logp_mean is not None:
                right.append((i, sample.base_logp_mean))
    if not own or not right:
        return None
    threshold = float(np.quantile(own, LOW))
    inside = [i for i, mean in right if mean >= threshold]
    gained = set()
    for i, (before, after) in enumerate(zip(base, tuned, strict=True)):
        if any(after.marks) and not any(before.marks):
            gained.add(i)
    return Support(
        right=len(right),
        inside=len(inside) / len(right),
        threshold=threshold,
        gained=len(gained),
        gained_inside=len(gained.intersection(inside)),
    )


def _comparable(a: Side, b: Side) -> list[str]:
    """Warnings for what differs and may; ConfigError for what may not."""
    where = f"{a.path}, {b.path}"
    size_a, size_b = len(a.problems), len(b.problems)
    if size_a != size_b or _hash_of(a) != _hash_of(b):
        suite_a, suite_b = a.about["suite"], b.about["suite"]
        what = f"{suite_a} with {size_a} problems and {suite_b} with {size_b}"
        if (suite_a, size_a) == (suite_b, size_b):
            what += ", whose questions or gold answers differ"
        fix = "evaluate both with the same --suite and --limit"
        raise ConfigError(f"these are not the same problems: {what}", where=where, fix=fix)
    if a.about["checker"] != b.about["checker"]:
        raise ConfigError(
            "the answers were checked by different rewards",
            where=where,
            fix="evaluate both with the same rewards",
        )
    warnings = []
    settings = {
        "temperature": (a.about["temperature"], b.about["temperature"]),
        "prompt": (a.about["prompt"], b.about["prompt"]),
        "model.max_new_tokens": (a.about["model"]["max_new_tokens"], b.about["model"]["max_new_tokens"]),
    }
    for name, (one, other) in settings.items():
        if one != other:
            warnings.append(f"the two differ in {name}: {one} and {other}")
    if len(a.problems) < FEW:
        warnings.append(f"{len(a.problems)} problems are few: the intervals are too narrow")
    return warnings


def _asked(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    return [(problem.question, problem.reference) for problem in problems]


def _hash_of(side: Side) -> str:
    return problems_hash(_asked(side.problems))


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
    curve = estimates(np.array([passes(problems, j) for j in ks]))
    return [estimate for estimate in curve if estimate is not None]  # None for the last ones alone


def _majorities(*sides: Sequence[Problem]) -> tuple[float, float] | None:
    """maj@k of both; None where the rewards of one read no answer."""
    a, b = (np.array(table(problems, 1)["maj"]) for problems in sides)
    if np.isnan(a).all() or np.isnan(b).all():
        return None
    return float(np.nanmean(a)), float(np.nanmean(b))


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(points: float) -> str:
    """Whole numbers from 10 on, else one decimal, without a minus zero."""
    decimals = 0 if abs(points) >= 10 else 1
    text = f"{points:.{decimals}f}"
    return "0.0" if text == "-0.0" else text
