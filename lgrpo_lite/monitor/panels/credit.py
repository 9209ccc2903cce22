"""Panels of who gets the credit: token preference (λ-GRPO), trace credit (GRPO-λ)."""

from rich.text import Text

from lgrpo_lite.monitor.alarms import level
from lgrpo_lite.monitor.panels.charts import legend, meter, plot, stacked
from lgrpo_lite.monitor.panels.panel import TREND, Panel, Ranked, last
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import (
    BAD,
    LABEL,
    LAMBDA,
    chosen,
    clean,
    flow,
    known,
    number,
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
    sign = verdict(level("weight_ratio", ratio(r.weight_long, r.weight_short)))
    weights = [("short", r.weight_short, ""), ("median", r.weight_median, ""), ("long", r.weight_long, sign)]
    bars: Ranked = [
        (
            3 if name == "median" else 1,
            row(
                name,
                number(weight, ".3f", 6),
                " ",
                meter(weight, 2.0, width - 18, LAMBDA, 1.0),
                mark,
                labels=8,
            ),
        )
        for name, weight, mark in weights
    ]
    count, share = known(run.number("rollout.group_size")), known(r.weight_effective)
    counts = (
        "–"
        if share is None
        else f"{share * count:.1f} of {count:g} answers"
        if count
        else f"{share:.0%} of the answers"
    )
    words: Ranked = [
        (
            4,
            row(
                "∂loss/∂λ",
                signed(r.length_lambda_grad),
                ("  dλ ", LABEL),
                signed(_rate(run)),
                (" a step", LABEL),
                labels=9,
            ),
        ),
        (5, row("counts as", counts, labels=14)),
        (6, row("like GRPO at", f"λ {signed(r.length_lambda_grpo, '.2f')}", labels=14)),
    ]
    curve = plot(run.series("length_lambda"), width, max(1, min(10, height - 7)), "+.2f", LAMBDA)
    lines: Ranked = [(0, _lambda(run, r)), *((2, line) for line in curve), *bars, *words]
    return Panel("token preference · λ-GRPO", chosen(height, lines))


def _without_preference(run: RunView, width: int, height: int) -> Panel:
    rule = clean(run.get("algorithm.reduce", "?"), 60)
    lines: Ranked = [
        (0, Text("no λ: lengths weigh by a fixed rule", LABEL)),
        (1, row("reduce", rule, labels=8)),
    ]
    lines += [(2, Text(line)) for line in wrapped(REDUCE.get(rule, "a function of one's own"), width, 2)]
    return Panel("token preference", chosen(height, lines))


def _lambda(run: RunView, r: StepRecord) -> Text:
    value, clamp = known(r.length_lambda), run.get("algorithm.length_preference.clamp")
    line = row("λ", (signed(value), LAMBDA), labels=3)
    bounds = (
        [known(x) for x in clamp] if isinstance(clamp, list | tuple) and len(clamp) == 2 else [None, None]
    )
    if value is not None and None not in bounds and not bounds[0] < value < bounds[1]:  # type: ignore[operator]
        return line.append(" ✗ at its clamp", BAD)
    side = "" if not value else "  long answers count more" if value > 0 else "  short answers count more"
    return line.append(side, LABEL)


def _rate(run: RunView) -> float | None:
    """λ's mean change a step over the last steps."""
    path = [x for x in (known(r.length_lambda) for r in run.records[-TREND - 1 :]) if x is not None]
    return (path[-1] - path[0]) / (len(path) - 1) if len(path) > 1 else None


def trace(run: RunView, width: int, height: int) -> Panel:
    """GRPO-λ: how far back a token is credited, and where in the answers the credit falls."""
    r, settings = last(run), run.get("algorithm.trace")
    lines: Ranked = []
    if isinstance(settings, dict):
        decay = run.number("algorithm.trace.gamma", 1.0) * run.number("algorithm.trace.lambda", 1.0)
        far = "∞" if not decay < 1 else f"{1 / (1 - decay):,.0f} tokens"
        lines.append((0, row("γλ", number(decay), ("  horizon ", LABEL), far, labels=4)))
        lines.append(
            (
                4,
                row(
                    "style",
                    clean(settings.get("style", "?"), 12),
                    ("  mode ", LABEL),
                    clean(settings.get("mode", "?"), 12),
                    labels=7,
                ),
            )
        )
    else:
        lines += [(4, Text(line)) for line in wrapped(f"no trace: {_without_trace(run)}", width, 2)]
    lines += _thirds(r, width)
    if run.get("algorithm.advantage_floor") is not None or r.credit_floored is not None:
        lines.append((3, row("floored", number(r.credit_floored, ".0%", 4), ("  of A < 0", LABEL))))
    curve = plot(run.series("credit_last"), width, min(8, height - len(lines) - 1), ".0%", THIRDS[2])
    if curve:
        lines += [(6, Text("last third, over the run", LABEL)), *((5, line) for line in curve)]
    return Panel(
        "trace credit · GRPO-λ" if isinstance(settings, dict) else "trace credit", chosen(height, lines)
    )


def _thirds(r: StepRecord, width: int) -> Ranked:
    shares = [
        ("F", "first", known(r.credit_first)),
        ("M", "middle", known(r.credit_middle)),
        ("L", "last", known(r.credit_last)),
    ]
    segments = [(letter, words, share) for letter, words, share in shares if share is not None]
    if len(segments) < 3:
        return [(1, Text("|credit| by thirds: none yet", LABEL))]
    words = flow(legend(segments, ".0%", THIRDS), width, 2, gap=1)
    return [
        (5, Text("|credit| by thirds of an answer", LABEL)),
        (1, stacked(segments, width, THIRDS)),
        *((2, line) for line in words),
    ]


def _without_trace(run: RunView) -> str:
    for key, words in (
        ("probe_values", "values of its steps"),
        ("prefix_share", "shared beginnings"),
        ("top_entropy", "entropy"),
    ):
        if run.get(f"algorithm.{key}"):
            return f"tokens of an answer differ by {words}"
    return "a token gets its answer's credit"
