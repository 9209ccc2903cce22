"""Parts of a loss that have no meaning together. No torch here."""

from collections.abc import Iterator

from lgrpo_lite.checks.fault import Fault, Row, that_hold
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.schema import Recipe

BY_TOKEN = ("trace", "prefix_share", "top_entropy")  # parts that tell the tokens of an answer apart


def loss(recipe: Recipe, a: Algorithm) -> Iterator[Fault]:
    if a.anchored:
        yield from _residual(a)
    if a.ratio == "sequence":
        yield from _sequence_ratio(a)
    traced = a.trace is not None and a.trace.mode == "trace"
    cispo = a.surrogate == "cispo"
    floor = a.cispo.floor or 0.0
    cap = a.cispo.cap
    unbounded = a.surrogate == "unclipped" and recipe.optim.updates_per_batch > 1
    yield from that_hold(
        (
            cispo and traced,
            "the trace acts on the ratio, and the ratio of cispo carries no gradient",
            "algorithm.trace",
            "set trace.mode=weight, or surrogate=clipped",
        ),
        (cispo and floor > cap, f"floor {floor:g} is above cap {cap:g}", "algorithm.cispo.floor", "lower it"),
        (
            a.shaped and a.trace,
            "shaped takes the place of the ratio, so refined answers would have no trace",
            "algorithm.trace",
            "set trace=null",
        ),
        (
            a.shaped and unbounded,
            "shaped with several updates a batch and no bound of the ratio runs away",
            "optim.updates_per_batch",
            "set it to 1, or algorithm.surrogate=clipped",
        ),
        (
            a.shaped and not a.refine_best,
            "shaped speaks of answers that refine_best makes, and there are none",
            "algorithm.shaped",
            "add refine_best={}",
        ),
        (
            a.advantage == "beta" and not _binary(recipe),
            "advantage=beta is for one reward of weight 1 that gives 0 or 1",
            "algorithm.advantage",
            "use the reward exact, numeric or format alone, or another advantage",
        ),
        (
            a.select and a.advantage == "next_value",
            "select ranks answers, next_value credits tokens",
            "algorithm.select",
            "set select=null",
        ),
    )


def _residual(a: Algorithm) -> Iterator[Fault]:
    one = "a residual is one number an answer"
    yield from that_hold(
        (
            a.advantage == "next_value",
            f"{one}, next_value credits tokens",
            "algorithm.advantage",
            "use another advantage, or surrogate=clipped",
        ),
        (
            a.reduce != "sequence_mean",
            f"{one}: reduce={a.reduce} would count it once a token",
            "algorithm.reduce",
            "set reduce=sequence_mean",
        ),
        *_by_token(a, f"{one}, {{part}} weighs tokens", "use surrogate=clipped"),
        (
            a.ratio == "sequence",
            "a residual takes its own log-ratio, ratio=sequence is not read",
            "algorithm.ratio",
            "set ratio=token",
        ),
        (
            a.shaped,
            "shaped replaces the gain of refined answers, a residual has none",
            "algorithm.shaped",
            "set shaped=null",
        ),
        (
            a.residual.pairs and a.residual.centre != "group",
            "pairs are differences inside a group, so they need centre=group",
            "algorithm.residual.pairs",
            "set centre=group",
        ),
    )


def _sequence_ratio(a: Algorithm) -> Iterator[Fault]:
    whole = "one ratio an answer gives all its tokens one gradient"
    yield from that_hold(
        (
            a.reduce != "sequence_mean",
            f"one ratio an answer with reduce={a.reduce} counts long answers by their length",
            "algorithm.reduce",
            "set reduce=sequence_mean",
        ),
        *_by_token(a, f"{whole}, {{part}} tells tokens apart", "set ratio=token"),
        (
            a.advantage == "next_value",
            f"{whole}, next_value credits tokens",
            "algorithm.advantage",
            "set ratio=token, or another advantage",
        ),
    )


def _by_token(a: Algorithm, why: str, instead: str) -> Iterator[Row]:
    """A row for each part that tells tokens apart: `why` it has no meaning here, and what to do `instead`."""
    for part in BY_TOKEN:
        fix = f"switch {part} off, or {instead}"
        yield getattr(a, part), why.format(part=part), f"algorithm.{part}", fix


def _binary(recipe: Recipe) -> bool:
    """Whether the rewards can be 0 and 1 only; a user's own function is trusted, and checked as it comes."""
    first = recipe.rewards[0]
    known = first.use in ("exact", "numeric", "format") or ".py:" in first.use
    return known and len(recipe.rewards) == 1 and first.weight == 1
