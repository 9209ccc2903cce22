"""Panels of what is learned: reward, group signal, length."""

from rich.text import Text

from lgrpo_lite.monitor.panels.charts import legend, plot, stacked
from lgrpo_lite.monitor.panels.panel import TREND, WINDOW, Panel, Ranked, last
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
    known,
    number,
    ratio,
    row,
    signed,
    verdict,
)
from lgrpo_lite.types import StepRecord

SIGNAL = (BAD, CALM, GOOD)


def reward(run: RunView, width: int, height: int) -> Panel:
    """The headline: mean reward of a step, its path, its parts, and what held-out problems say."""
    r = last(run)
    lines: Ranked = [(0, _headline(r))]
    words = [*_held_out(run, width), (4, _trend(run)), (3, _parts(r, width))]
    curve = plot(run.series("reward"), width, max(1, min(12, height - 1 - len(words))), ".2f", MAIN)
    lines += [(1, line) for line in curve] or [(1, Text("no step yet", LABEL))]
    return Panel("reward", chosen(height, lines + words))


def _headline(r: StepRecord) -> Text:
    values = (f"{number(r.reward)} ± {number(r.reward_std, '.2f')}", MAIN)
    return row("mean ± std", values, ("  right ", LABEL), number(r.solved, ".0%", 4), labels=11)


def _trend(run: RunView) -> Text:
    """Mean of the first and of the last steps."""
    early, late = [*run.sparse[:TREND], *run.records[:TREND]][:TREND], run.records[-TREND:]
    first, now = ([v for r in part if (v := known(r.reward)) is not None] for part in (early, late))
    if not first or not now:
        return row("at first", "–")
    before, after = sum(first) / len(first), sum(now) / len(now)
    return row(
        "at first",
        number(before),
        (" → now ", LABEL),
        number(after),
        (f"  {signed(after - before, '.3f')}", LABEL),
    )


def _parts(r: StepRecord, width: int) -> Text:
    parts = [
        Text.assemble((f"{clean(name, 24)} ", LABEL), number(value, ".2f"))
        for name, value in r.reward_parts.items()
    ]
    shown = flow(parts, width - 12, 1)
    return row("parts", shown[0] if shown else "–")


def _held_out(run: RunView, width: int) -> Ranked:
    """avg@k before and now with its interval; ▲ or ▼ where the two intervals do not touch,
    ≈ where they do.
    """
    rows = evaluations(run)
    if not rows:
        return [(2, row("held-out", ("not evaluated yet", LABEL)))]
    first, now = rows[0], rows[-1]
    label = f"avg@{clean(now.get('k', '?'), 6)}"
    line = row(f"held-out {label}"[:20], number(first["accuracy"]), labels=17)
    if len(rows) > 1:
        line.append(" → ").append(number(now["accuracy"]), style="bold").append_text(_told_apart(first, now))
    lines: Ranked = [(2, line)]
    if found := interval(now, "accuracy"):
        lines.append(
            (
                5,
                row(
                    "  95 %",
                    f"{found[0]:.3f} to {found[1]:.3f}",
                    (f"  step {amount(now.get('step'))}", LABEL),
                    labels=8,
                ),
            )
        )
    others = [
        (name, now.get(key))
        for name, key in (("pass@k", "pass_at_k"), ("maj@k", "maj"), ("greedy", "greedy"))
    ]
    items = [
        Text.assemble((f"{name} ", LABEL), number(value))
        for name, value in others
        if known(value) is not None
    ]
    return lines + [(6, line) for line in flow(items, width, 1)]


def _told_apart(first: dict, now: dict) -> Text:
    before, after = interval(first, "accuracy"), interval(now, "accuracy")
    if before is None or after is None:
        return Text("")
    if after[0] > before[1]:
        return Text(" ▲", GOOD)
    return Text(" ▼", BAD) if after[1] < before[0] else Text(" ≈", WARN)


def reward_and_signal(run: RunView, width: int, height: int) -> Panel:
    """Both in one, for small screens."""
    r = last(run)
    curve = plot(run.series("reward"), width, max(1, min(4, height - 4)), ".2f", MAIN) or [
        Text("no step yet", LABEL)
    ]
    lines: Ranked = [(0, _headline(r)), *((1, line) for line in curve), *_held_out(run, width)[:1]]
    lines += [(2, line) for line in missing(r)[:1] if r.missing]
    lines += [(3, stacked(_segments(r), width, SIGNAL)), (4, _signal_words(r, width))]
    return Panel("reward · group signal", chosen(height, lines))


def signal(run: RunView, width: int, height: int) -> Panel:
    """How many groups teach: only those whose answers differ in reward."""
    r = last(run)
    share = _no_signal(r)
    lines: Ranked = [
        (0, stacked(_segments(r), width, SIGNAL)),
        (1, _signal_words(r, width)),
        (
            2,
            row("no signal", judged("no_signal", share, ".0%", 4), (f" of {amount(r.groups)} groups", LABEL)),
        ),
        (4, row("drawn again", amount(max(0, r.draws - 1), 4), ("   times this step", LABEL))),
        *((3, line) for line in missing(r)),
    ]
    shares = [_no_signal(x) for x in run.records[-WINDOW:]]
    curve = plot(shares, width, max(1, min(10, height - len(lines))), ".0%", CALM)
    return Panel("group signal", chosen(height, [*lines, *((5, line) for line in curve)]))


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
    for shown in (
        segments,
        [(letter, words.removeprefix("all "), count) for letter, words, count in segments],
    ):
        lines = flow(legend(shown, ",.0f", SIGNAL), width, 2)
        if len(lines) == 1:
            return lines[0]
    return Text(f"W {r.groups_wrong}  M {r.groups_mixed}  R {r.groups_right}")


def missing(r: StepRecord) -> list[Text]:
    """Rewards that are missing, and of what kind; a missing one leaves its group, it is no zero."""
    if not r.missing:
        return [row("missing", f"{0:4}", ("   rewards", LABEL))]
    kinds = [("timed out", r.reward_timeouts), ("crashed", r.reward_crashes), ("failed", r.reward_errors)]
    told = "  ".join(f"{what} {amount(count)}" for what, count in kinds if count)
    return [
        row("missing", amount(r.missing, 4), verdict("bad"), (" rewards", LABEL)),
        *([Text(f"  {told}", BAD)] if told else []),
    ]


def length(run: RunView, width: int, height: int) -> Panel:
    """How long answers are, right and wrong ones, and how many were cut off."""
    r = last(run)
    lines: Ranked = [
        (
            2,
            row(
                "truncated",
                judged("truncated", r.truncated, ".1%", 8),
                (" at ", LABEL),
                amount(run.get("model.max_new_tokens")),
            ),
        ),
        (
            3,
            row(
                "right",
                number(r.length_right, ",.1f", 8),
                ("   wrong ", LABEL),
                number(r.length_wrong, ",.1f"),
            ),
        ),
        (4, row("that ended", number(r.length_ended, ",.1f", 8), ("   mean", LABEL))),
    ]
    mean = row("mean tokens", number(r.length, ",.1f", 8), ("   p95 ", LABEL), number(r.length_p95, ",.0f"))
    curve = plot(run.series("length"), width, max(1, min(12, height - 4)), ",.0f", CALM)
    return Panel("length", chosen(height, [(0, mean), *((1, line) for line in curve), *lines]))
