"""Panels of what is learned: reward, group signal, length."""

from collections.abc import Sequence

from rich.text import Text

from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.panels.charts import legend, plot, stacked
from lgrpo_lite.monitor.panels.panel import TREND, WINDOW, Panel, Ranked, last, ranked
from lgrpo_lite.monitor.tables import evaluations, interval
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import (
    BAD,
    CALM,
    GOOD,
    LABEL,
    MAIN,
    WARN,
    amount,
    chosen,
    clean,
    flow,
    judged,
    ratio,
    row,
    signed,
    verdict,
)
from lgrpo_lite.types import StepRecord

SIGNAL = (BAD, CALM, GOOD)
BESIDE = {"pass@k": "pass_at_k", "maj@k": "maj", "greedy": "greedy"}  # figures of an evaluation beside avg@k


def reward(run: RunView, width: int, height: int) -> Panel:
    """The headline: mean reward of a step, its path, its parts, and what held-out problems say."""
    r = last(run)
    words = [*_held_out(run, width), (4, _trend(run)), (3, _parts(r, width))]
    curve = plot(run.series("reward"), width, max(1, min(12, height - 1 - len(words))), ".2f", MAIN)
    curve = curve or [Text("no step yet", LABEL)]
    lines = [(0, _headline(r)), *ranked(1, curve), *words]
    return Panel("reward", chosen(height, lines))


def _headline(r: StepRecord) -> Text:
    values = (f"{figure(r.reward)} ± {figure(r.reward_std, '.2f')}", MAIN)
    return row("mean ± std", values, ("  right ", LABEL), figure(r.solved, ".0%", 4), labels=11)


def _trend(run: RunView) -> Text:
    """Mean of the first and of the last steps."""
    beginning = [*run.sparse[:TREND], *run.records[:TREND]][:TREND]
    first = _rewards(beginning)
    now = _rewards(run.records[-TREND:])
    if not first or not now:
        return row("at first", "–")
    before = sum(first) / len(first)
    after = sum(now) / len(now)
    change = f"  {signed(after - before, '.3f')}"
    return row("at first", figure(before), (" → now ", LABEL), figure(after), (change, LABEL))


def _rewards(records: Sequence[StepRecord]) -> list[float]:
    rewards = [finite(record.reward) for record in records]
    return [reward for reward in rewards if reward is not None]


def _parts(r: StepRecord, width: int) -> Text:
    parts = [
        Text.assemble((f"{clean(name, 24)} ", LABEL), figure(value, ".2f"))
        for name, value in r.reward_parts.items()
    ]
    shown = flow(parts, width - 12, 1)
    return row("parts", shown[0] if shown else "–")


def _held_out(run: RunView, width: int) -> Ranked:
    """avg@k before and now with its interval; ▲ or ▼ where the two intervals do not touch, ≈ where they
    do.
    """
    rows = evaluations(run)
    if not rows:
        return [(2, row("held-out", ("not evaluated yet", LABEL)))]
    first = rows[0]
    now = rows[-1]
    label = f"held-out avg@{clean(now.get('k', '?'), 6)}"
    line = row(label[:20], figure(first["accuracy"]), labels=17)
    if len(rows) > 1:
        line.append(" → ")
        line.append(figure(now["accuracy"]), style="bold")
        line.append_text(_direction(first, now))
    lines: Ranked = [(2, line)]
    ends = interval(now, "accuracy")
    if ends:
        low, high = ends
        step = f"  step {amount(now.get('step'))}"
        lines.append((5, row("  95 %", f"{low:.3f} to {high:.3f}", (step, LABEL), labels=8)))
    items = [
        Text.assemble((f"{name} ", LABEL), figure(now[key]))
        for name, key in BESIDE.items()
        if finite(now.get(key)) is not None
    ]
    return lines + ranked(6, flow(items, width, 1))


def _direction(first: dict, now: dict) -> Text:
    before = interval(first, "accuracy")
    after = interval(now, "accuracy")
    if before is None or after is None:
        return Text("")
    if after[0] > before[1]:
        return Text(" ▲", GOOD)
    if after[1] < before[0]:
        return Text(" ▼", BAD)
    return Text(" ≈", WARN)


def reward_and_signal(run: RunView, width: int, height: int) -> Panel:
    """Both in one, for small screens."""
    r = last(run)
    curve = plot(run.series("reward"), width, max(1, min(4, height - 4)), ".2f", MAIN)
    curve = curve or [Text("no step yet", LABEL)]
    lines = [(0, _headline(r)), *ranked(1, curve), *_held_out(run, width)[:1]]
    if r.missing:
        lines.append((2, missing(r)[0]))
    lines.append((3, stacked(_segments(r), width, SIGNAL)))
    lines.append((4, _signal_words(r, width)))
    return Panel("reward · group signal", chosen(height, lines))


def signal(run: RunView, width: int, height: int) -> Panel:
    """How many groups teach: only those whose answers differ in reward."""
    r = last(run)
    share = judged("no_signal", _no_signal(r), ".0%", 4)
    again = amount(max(0, r.draws - 1), 4)
    lines: Ranked = [
        (0, stacked(_segments(r), width, SIGNAL)),
        (1, _signal_words(r, width)),
        (2, row("no signal", share, (f" of {amount(r.groups)} groups", LABEL))),
        (4, row("drawn again", again, ("   times this step", LABEL))),
        *ranked(3, missing(r)),
    ]
    shares = [_no_signal(record) for record in run.records[-WINDOW:]]
    curve = plot(shares, width, max(1, min(10, height - len(lines))), ".0%", CALM)
    lines += ranked(5, curve)
    return Panel("group signal", chosen(height, lines))


def _no_signal(r: StepRecord) -> float | None:
    mixed = ratio(r.groups_mixed, r.groups)
    return None if mixed is None else 1 - mixed


def _segments(r: StepRecord) -> list[tuple[str, str, float]]:
    return [
        ("W", "all wrong", r.groups_wrong),
        ("M", "mixed", r.groups_mixed),
        ("R", "all right", r.groups_right),
    ]


def _signal_words(r: StepRecord, width: int) -> Text:
    segments = _segments(r)
    short = [(letter, words.removeprefix("all "), count) for letter, words, count in segments]
    for shown in (segments, short):
        lines = flow(legend(shown, ",.0f", SIGNAL), width, 2)
        if len(lines) == 1:
            return lines[0]
    return Text(f"W {r.groups_wrong}  M {r.groups_mixed}  R {r.groups_right}")


def missing(r: StepRecord) -> list[Text]:
    """Rewards that are missing, and of what kind; a missing one leaves its group, it is no zero. Answers on
    which the verifier failed are zeros.
    """
    lines = [row("missing", f"{0:4}", ("   rewards", LABEL))]
    if r.missing:
        lines = [row("missing", amount(r.missing, 4), verdict("bad"), (" rewards", LABEL))]
    kinds = [("timed out", r.reward_timeouts), ("crashed", r.reward_crashes), ("failed", r.reward_errors)]
    words = [f"{what} {amount(count)}" for what, count in kinds if count]
    if words:
        lines.append(Text(f"  {'  '.join(words)}", BAD))
    if r.verifier_faults:
        lines.append(Text(f"  verifier failed {amount(r.verifier_faults)}, taken as wrong", WARN))
    return lines


def length(run: RunView, width: int, height: int) -> Panel:
    """How long answers are, right and wrong ones, and how many were cut off."""
    r = last(run)
    mean = figure(r.length, ",.1f", 8)
    p95 = figure(r.length_p95, ",.0f")
    right = figure(r.length_right, ",.1f", 8)
    wrong = figure(r.length_wrong, ",.1f")
    truncated = judged("truncated", r.truncated, ".1%", 8)
    limit = amount(run.get("model.max_new_tokens"))
    curve = plot(run.series("length"), width, max(1, min(12, height - 4)), ",.0f", CALM)
    lines: Ranked = [
        (0, row("mean tokens", mean, ("   p95 ", LABEL), p95)),
        *ranked(1, curve),
        (2, row("truncated", truncated, (" at ", LABEL), limit)),
        (3, row("right", right, ("   wrong ", LABEL), wrong)),
        (4, row("that ended", figure(r.length_ended, ",.1f", 8), ("   mean", LABEL))),
    ]
    return Panel("length", chosen(height, lines))
