"""Panels of the update and the machine: policy change, rollout agreement, optimiser, speed, memory."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from lgrpo_lite.monitor.alarms import level
from lgrpo_lite.monitor.panels.charts import plot, stacked
from lgrpo_lite.monitor.panels.panel import WINDOW, Panel, Ranked, last
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import (
    BAD,
    CALM,
    LABEL,
    WARN,
    amount,
    chosen,
    clean,
    flow,
    judged,
    known,
    number,
    of,
    ratio,
    row,
    seconds,
    size,
    verdict,
)
from lgrpo_lite.types import StepRecord

DEVICE = {  # name: letter in the bar, words with that letter, colour, words without a letter
    "weights": ("W", "weights", "cyan", "weights"), "adapter": ("A", "adapter", "green", "adapter"),
    "optimizer": ("O", "optimiser", "magenta", "optimiser"),
    "activations": ("C", "aCtivations", "yellow", "activations"),
    "sampler": ("S", "sampler", "blue", "sampler"), "other": ("X", "other", "red", "other"),
    "free": ("─", "free", LABEL, "free"),
}  # fmt: skip
HOST = {"host": ("H", "this process", "cyan", "host process"), "host_free": ("─", "free", LABEL, "host free")}

HELD = DEVICE | HOST


def policy(run: RunView, width: int, height: int) -> Panel:
    """How far an update moves the policy."""
    r = last(run)
    lines: Ranked = [
        (0, _clip(r)),
        (2, row("ratio max", number(r.ratio_max, ".3f", 8), (_one_update(run), LABEL))),
        (1, _kl(r)),
    ]
    name = "clip_high" if r.kl is None else "kl"
    curve = plot(run.series(name), width, min(5, height - 4), ".1%" if r.kl is None else ".3f", CALM)
    if curve:
        lines += [
            (4, Text("clip high, over the run" if r.kl is None else "KL, over the run", LABEL)),
            *((3, line) for line in curve),
        ]
    return Panel("policy change", chosen(height, lines))


def _clip(r: StepRecord) -> Text:
    low, high = known(r.clip_low), known(r.clip_high)
    both = None if low is None or high is None else low + high
    return row(
        "clip low",
        number(low, ".1%", 8),
        verdict(level("clip", both)),
        (" high ", LABEL),
        number(high, ".1%"),
    )


def _kl(r: StepRecord) -> Text:
    words = " nats a token" if r.kl is not None else " no reference" if r.step else ""
    return row("KL to base", judged("kl", r.kl, ".4f"), (words, LABEL))


def _one_update(run: RunView) -> str:
    return "   one update" if run.number("optim.updates_per_batch", 1) == 1 else ""


def agreement(run: RunView, width: int, height: int) -> Panel:
    """Do the rollouts come from the policy that is trained?"""
    r = last(run)
    lines: Ranked = [
        (
            0,
            row(
                "|Δlogp|",
                judged("disagreement", r.disagreement, ".1e"),
                (" max ", LABEL),
                number(r.disagreement_max, ".1e"),
            ),
        ),
        (1, _proof(run)),
        (3, row("off by ×", judged("token_mult_error", r.token_mult_error, ".1e"), (" per token", LABEL))),
        (
            2,
            row(
                "KL",
                judged("mismatch_kl", r.mismatch_kl, ".1e"),
                (" capped ", LABEL),
                number(r.capped, ".1%"),
            ),
        ),
    ]
    curve = plot(run.series("disagreement"), width, max(1, min(4, height - 4)), ".0e", CALM)
    return Panel("rollout agreement", chosen(height, [*lines, *((4, line) for line in curve)]))


def _proof(run: RunView) -> Text:
    """The last proof that rollouts come from this policy: passed or not, how long ago, what failed."""
    found = next((e for e in reversed(run.events) if e.get("kind") == "proof"), None)
    if found is None:
        return row("proof", (f"{'–':>8}   none yet", LABEL))
    checks, step = found.get("checks"), known(found.get("step"))
    failed = (
        [c for c in checks if isinstance(c, dict) and not c.get("passed")] if isinstance(checks, list) else []
    )
    line = row("proof", f"step {amount(step)}".rjust(8), verdict("bad" if failed else "good"))
    if failed:
        return line.append(f" {clean(failed[0].get('name', '?'), 20)}", BAD)
    return line.append(
        "" if step is None else f" {amount(max(0.0, (known(run.step) or 0.0) - step))} steps ago", LABEL
    )


def optimiser(run: RunView, width: int, height: int) -> Panel:
    """Gradient, learning rate, entropy; the loss says nothing of learning and is written so."""
    r = last(run)
    skipped = [x.skipped for x in run.records if x.skipped is not None]
    lines: Ranked = [
        (0, row("grad norm", judged("grad_norm", r.grad_norm, ".3f"), (" lr ", LABEL), number(r.lr, ".1e"))),
        (1, row("entropy", judged("entropy", r.entropy, ".3f"), (" nats a token", LABEL))),
    ]
    curve = plot(run.series("entropy"), width, max(1, min(5, height - 4 - bool(skipped))), ".2f", CALM)
    lines += [(2, line) for line in curve]
    lines.append(
        (
            1 if skipped else 3,
            row("skipped", amount(len(skipped), 8), verdict("warn" if skipped else ""), (" steps", LABEL)),
        )
    )
    lines += [(5, Text(f"  last: {clean(skipped[-1], 200)}", WARN))] if skipped else []
    lines.append((4, Text(f"loss {number(r.loss, '.2g')} (no measure of learning)", LABEL)))
    return Panel("optimiser", chosen(height, lines))


def update(run: RunView, width: int, height: int) -> Panel:
    """Policy change, agreement and optimiser in one, for small screens."""
    r = last(run)
    entropy = row(
        "entropy", judged("entropy", r.entropy, ".3f"), (" grad ", LABEL), number(r.grad_norm, ".2f")
    )
    off = row("|Δlogp|", judged("disagreement", r.disagreement, ".1e"))
    return Panel(
        "update", chosen(height, [(0, entropy), (1, off), (2, _clip(r)), (3, _proof(run)), (4, _kl(r))])
    )


def speed(run: RunView, width: int, height: int) -> Panel:
    """Tokens a second in sampling and in training, and what a reward costs."""
    r = last(run)
    total = sum(v for v in map(known, r.seconds.values()) if v)
    share = ratio(r.seconds.get("reward", 0.0), total)
    lines: Ranked = [
        (
            0,
            row("sampled", amount(ratio(r.rollout_tokens, r.seconds.get("rollout")), 8), ("   tok/s", LABEL)),
        ),
        (1, row("trained", amount(ratio(r.trained_tokens, r.seconds.get("update")), 8), ("   tok/s", LABEL))),
        (3, row("samples", amount(ratio(3600 * r.rollout_answers, total), 8), ("   an hour", LABEL))),
        (5, row("step", f"{seconds(of(run, 'step_seconds')):>8}", ("   median", LABEL))),
        (2, row("reward", judged("reward_share", share, ".0%"), (" of a step", LABEL))),
        (4, row("reward p50", f"{seconds(r.reward_p50):>8}", ("   p95 ", LABEL), seconds(r.reward_p95))),
        (
            6,
            row(
                "timed out",
                amount(r.reward_timeouts, 8),
                verdict("warn" if r.reward_timeouts else ""),
                (" rewards", LABEL),
            ),
        ),
    ]
    rates = [ratio(x.rollout_tokens, x.seconds.get("rollout")) for x in run.records[-WINDOW:]]
    curve = plot(rates, width, min(4, height - len(lines)), ",.0f", CALM)
    return Panel("speed", chosen(height, [*lines, *((7, line) for line in curve)]))


def memory(run: RunView, width: int, height: int) -> Panel:
    """Who holds the device's memory; on a CPU the machine's."""
    measured = last(run).memory
    shrunk = sum("out of memory" in str(e.get("message")) for e in run.warnings)
    told = Text.assemble(("shrunk for want of memory ", LABEL), (f"{shrunk}×", WARN if shrunk else LABEL))
    device = [name for name in DEVICE if measured.get(name)]
    on_device = "free" in device
    names = device if on_device else [name for name in HOST if measured.get(name)]
    if not names:
        return Panel("memory", chosen(height, [(0, Text("not measured yet", LABEL)), (1, told)]))
    styles = [HELD[name][2] for name in names]
    segments = [(*HELD[name][:2], measured[name]) for name in names]
    elsewhere = [name for name in HELD if measured.get(name) and name not in names]
    words = [*_keys(segments, styles), told, *(_apart(name, measured[name]) for name in elsewhere)]
    lines: Ranked = [(0, stacked(segments, width, styles))]
    lines += [(1, line) for line in flow(words, width, max(1, height - 1))]
    name = "free" if on_device else "host"
    curve = plot(_gib_over_time(run, name), width, min(4, height - len(lines) - 1), ",.2f", CALM)
    if curve:
        lines += [(3, Text(f"{HELD[name][3]}, GiB", LABEL)), *((2, line) for line in curve)]
    return Panel("memory" if on_device else "memory of this machine", chosen(height, lines))


def _keys(segments: Sequence[tuple[str, str, float]], styles: Sequence[str]) -> Iterator[Text]:
    """What each letter of the bar stands for, and how much it is."""
    for (letter, words, taken), style in zip(segments, styles, strict=True):
        yield Text.assemble((letter, style), (f" {words} ", LABEL), size(taken))


def _apart(name: str, taken: float) -> Text:
    return Text.assemble((f"{HELD[name][3]} ", LABEL), size(taken))


def _gib_over_time(run: RunView, name: str) -> list[float]:
    values = [known(record.memory.get(name)) for record in run.records[-WINDOW:]]
    return [value / 2**30 for value in values if value is not None]
