"""Panels of who gets the credit: token preference (λ-GRPO), trace credit (GRPO-λ)."""

from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.alarms import level
from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.panels.charts import legend, meter, plot, stacked
from lgrpo_lite.monitor.panels.panel import TREND, Panel, Ranked, last, ranked
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import (
    BAD,
    LABEL,
    LAMBDA,
    chosen,
    clean,
    flow,
    ratio,
    row,
    signed,
    verdict,
    wrapped,
)
from lgrpo_lite.types import StepRecord

THIRDS = ("cyan", "yellow", "magenta")
REDUCE = {
    "sequence_mean": "every answer counts 1: its tokens 1/length",
    "token_mean": "every token of the step counts alike",
    "group_token_mean": "every token of a group counts alike",
    "micro_token_mean": "every token of a block counts alike",
    "constant": "every token counts 1/constant",
}


def credit(run: RunView, width: int, height: int) -> Panel:
    """For small screens: the one of the two that this algorithm has."""
    if last(run).length_lambda is None and isinstance(run.get("algorithm.trace"), dict):
        return trace(run, width, height)
    return preference(run, width, height)


def preference(run: RunView, width: int, height: int) -> Panel:
    """λ-GRPO: λ, how it moves, and how much a short, a middle and a long answer count."""
    r = last(run)
    if r.length_lambda is None and not isinstance(run.get("algorithm.length_preference"), dict):
        return _without_preference(run, width, height)
    rate = ("  dλ ", LABEL), signed(_rate(run)), (" a step", LABEL)
    curve = plot(run.series("length_lambda"), width, max(1, min(10, height - 7)), "+.2f", LAMBDA)
    lines: Ranked = [
        (0, _lambda(run, r)),
        *ranked(2, curve),
        *_weights(r, width),
        (4, row("∂loss/∂λ", signed(r.length_lambda_grad), *rate, labels=9)),
        (5, row("counts as", _effective(run, r), labels=14)),
        (6, row("like GRPO at", f"λ {signed(r.length_lambda_grpo, '.2f')}", labels=14)),
    ]
    return Panel("token preference · λ-GRPO", chosen(height, lines))


def _weights(r: StepRecord, width: int) -> Ranked:
    """What a short, a middle and a long answer count, as bars."""
    sign = verdict(level("weight_ratio", ratio(r.weight_long, r.weight_short)))
    lines: Ranked = []
    for rank, name, weight, mark in (
        (1, "short", r.weight_short, ""),
        (3, "median", r.weight_median, ""),
        (1, "long", r.weight_long, sign),
    ):
        bar = meter(weight, 2.0, width - 18, LAMBDA, 1.0)
        lines.append((rank, row(name, figure(weight, ".3f", 6), " ", bar, mark, labels=8)))
    return lines


def _effective(run: RunView, r: StepRecord) -> str:
    """How many answers of a group count."""
    count = finite(run.number("rollout.group_size"))
    share = finite(r.weight_effective)
    if share is None:
        return "–"
    return f"{share * count:.1f} of {count:g} answers" if count else f"{share:.0%} of the answers"


def _without_preference(run: RunView, width: int, height: int) -> Panel:
    rule = clean(run.get("algorithm.reduce", "?"), 60)
    lines: Ranked = [
        (0, Text("no λ: lengths weigh by a fixed rule", LABEL)),
        (1, row("reduce", rule, labels=8)),
    ]
    meaning = REDUCE.get(rule, "a function of one's own")
    lines += ranked(2, map(Text, wrapped(meaning, width, 2)))
    return Panel("token preference", chosen(height, lines))


def _lambda(run: RunView, r: StepRecord) -> Text:
    value = finite(r.length_lambda)
    line = row("λ", (signed(value), LAMBDA), labels=3)
    if value is None:
        return line
    low, high = _bounds(run.get("algorithm.length_preference.clamp"))
    if low is not None and high is not None and not low < value < high:
        return line.append(" ✗ at its clamp", BAD)
    if not value:
        return line
    return line.append("  long answers count more" if value > 0 else "  short answers count more", LABEL)


def _bounds(clamp: Any) -> tuple[float | None, float | None]:
    if not isinstance(clamp, list | tuple) or len(clamp) != 2:
        return None, None
    return finite(clamp[0]), finite(clamp[1])


def _rate(run: RunView) -> float | None:
    """λ's mean change a step over the last steps."""
    values = [finite(record.length_lambda) for record in run.records[-TREND - 1 :]]
    path = [value for value in values if value is not None]
    return (path[-1] - path[0]) / (len(path) - 1) if len(path) > 1 else None


def trace(run: RunView, width: int, height: int) -> Panel:
    """GRPO-λ: how far back a token is credited, and where in the answers the credit falls."""
    r = last(run)
    settings = run.get("algorithm.trace")
    traced = isinstance(settings, dict)
    lines = _trace_settings(run, settings) if traced else ranked(4, _no_trace(run, width))
    lines += _thirds(r, width)
    if run.get("algorithm.advantage_floor") is not None or r.credit_floored is not None:
        lines.append((3, row("floored", figure(r.credit_floored, ".0%", 4), ("  of A < 0", LABEL))))
    curve = plot(run.series("credit_last"), width, min(8, height - len(lines) - 1), ".0%", THIRDS[2])
    if curve:
        lines.append((6, Text("last third, over the run", LABEL)))
        lines += ranked(5, curve)
    return Panel("trace credit · GRPO-λ" if traced else "trace credit", chosen(height, lines))


def _trace_settings(run: RunView, settings: dict[str, Any]) -> Ranked:
    decay = run.number("algorithm.trace.gamma", 1.0) * run.number("algorithm.trace.lambda", 1.0)
    horizon = f"{1 / (1 - decay):,.0f} tokens" if decay < 1 else "∞"
    style = clean(settings.get("style", "?"), 12)
    mode = clean(settings.get("mode", "?"), 12)
    return [
        (0, row("γλ", figure(decay), ("  horizon ", LABEL), horizon, labels=4)),
        (4, row("style", style, ("  mode ", LABEL), mode, labels=7)),
    ]


def _no_trace(run: RunView, width: int) -> list[Text]:
    return [Text(line) for line in wrapped(f"no trace: {_without_trace(run)}", width, 2)]


def _thirds(r: StepRecord, width: int) -> Ranked:
    shares = [
        ("F", "first", finite(r.credit_first)),
        ("M", "middle", finite(r.credit_middle)),
        ("L", "last", finite(r.credit_last)),
    ]
    segments = [(letter, words, share) for letter, words, share in shares if share is not None]
    if len(segments) < 3:
        return [(1, Text("|credit| by thirds: none yet", LABEL))]
    words = flow(legend(segments, ".0%", THIRDS), width, 2, gap=1)
    bar = stacked(segments, width, THIRDS)
    return [(5, Text("|credit| by thirds of an answer", LABEL)), (1, bar), *ranked(2, words)]


def _without_trace(run: RunView) -> str:
    for key, words in (
        ("probe_values", "values of its steps"),
        ("prefix_share", "shared beginnings"),
        ("top_entropy", "entropy"),
    ):
        if run.get(f"algorithm.{key}"):
            return f"tokens of an answer differ by {words}"
    return "a token gets its answer's credit"
