"""Panels of the update and the machine: policy change, rollout agreement, optimiser, speed, memory."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.alarms import level
from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.panels.charts import plot, stacked
from lgrpo_lite.monitor.panels.panel import WINDOW, Panel, Ranked, last, ranked
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
POOLS = DEVICE | HOST


def policy(run: RunView, width: int, height: int) -> Panel:
    """How far an update moves the policy."""
    r = last(run)
    ratio_max = figure(r.ratio_max, ".3f", 8)
    lines: Ranked = [(0, _clip(r)), (2, row("ratio max", ratio_max, (_one_update(run), LABEL))), (1, _kl(r))]
    if r.kl is None:
        name, words, form = "clip_high", "clip high, over the run", ".1%"
    else:
        name, words, form = "kl", "KL, over the run", ".3f"
    curve = plot(run.series(name), width, min(5, height - 4), form, CALM)
    if curve:
        lines.append((4, Text(words, LABEL)))
        lines += ranked(3, curve)
    return Panel("policy change", chosen(height, lines))


def _clip(r: StepRecord) -> Text:
    low = finite(r.clip_low)
    high = finite(r.clip_high)
    both = None if low is None or high is None else low + high
    sign = verdict(level("clip", both))
    return row("clip low", figure(low, ".1%", 8), sign, (" high ", LABEL), figure(high, ".1%"))


def _kl(r: StepRecord) -> Text:
    words = ""
    if r.kl is not None:
        words = " nats a token"
    elif r.step:
        words = " no reference"
    return row("KL to base", judged("kl", r.kl, ".4f"), (words, LABEL))


def _one_update(run: RunView) -> str:
    return "   one update" if run.number("optim.updates_per_batch", 1) == 1 else ""


def agreement(run: RunView, width: int, height: int) -> Panel:
    """Do the rollouts come from the policy that is trained?"""
    r = last(run)
    difference = judged("disagreement", r.disagreement, ".1e")
    factor = judged("token_mult_error", r.token_mult_error, ".1e")
    kl = judged("mismatch_kl", r.mismatch_kl, ".1e")
    lines: Ranked = [
        (0, row("|Δlogp|", difference, (" max ", LABEL), figure(r.disagreement_max, ".1e"))),
        (1, _proof(run)),
        (3, row("off by ×", factor, (" per token", LABEL))),
        (2, row("KL", kl, (" capped ", LABEL), figure(r.capped, ".1%"))),
    ]
    curve = plot(run.series("disagreement"), width, max(1, min(4, height - 4)), ".0e", CALM)
    lines += ranked(4, curve)
    return Panel("rollout agreement", chosen(height, lines))


def _proof(run: RunView) -> Text:
    """The last proof that rollouts come from this policy: passed or not, how long ago, what failed."""
    proofs = (event for event in reversed(run.events) if event.get("kind") == "proof")
    proof = next(proofs, None)
    if proof is None:
        return row("proof", (f"{'–':>8}   none yet", LABEL))
    step = finite(proof.get("step"))
    failed = _failed(proof.get("checks"))
    line = row("proof", f"step {amount(step)}".rjust(8), verdict("bad" if failed else "good"))
    if failed:
        return line.append(f" {clean(failed[0].get('name', '?'), 20)}", BAD)
    if step is None:
        return line
    ago = max(0.0, (finite(run.step) or 0.0) - step)
    return line.append(f" {amount(ago)} steps ago", LABEL)


def _failed(checks: Any) -> list[dict[str, Any]]:
    if not isinstance(checks, list):
        return []
    return [check for check in checks if isinstance(check, dict) and not check.get("passed")]


def optimiser(run: RunView, width: int, height: int) -> Panel:
    """Gradient, learning rate, entropy; the loss says nothing of learning and is written so."""
    r = last(run)
    skipped = [record.skipped for record in run.records if record.skipped is not None]
    gradient = judged("grad_norm", r.grad_norm, ".3f")
    entropy = judged("entropy", r.entropy, ".3f")
    lines: Ranked = [
        (0, row("grad norm", gradient, (" lr ", LABEL), figure(r.lr, ".1e"))),
        (1, row("entropy", entropy, (" nats a token", LABEL))),
    ]
    curve = plot(run.series("entropy"), width, max(1, min(5, height - 4 - bool(skipped))), ".2f", CALM)
    lines += ranked(2, curve)
    sign = verdict("warn" if skipped else "")
    lines.append((1 if skipped else 3, row("skipped", amount(len(skipped), 8), sign, (" steps", LABEL))))
    if skipped:
        lines.append((5, Text(f"  last: {clean(skipped[-1], 200)}", WARN)))
    lines.append((4, Text(f"loss {figure(r.loss, '.2g')} (no measure of learning)", LABEL)))
    return Panel("optimiser", chosen(height, lines))


def update(run: RunView, width: int, height: int) -> Panel:
    """Policy change, agreement and optimiser in one, for small screens."""
    r = last(run)
    entropy = judged("entropy", r.entropy, ".3f")
    lines: Ranked = [
        (0, row("entropy", entropy, (" grad ", LABEL), figure(r.grad_norm, ".2f"))),
        (1, row("|Δlogp|", judged("disagreement", r.disagreement, ".1e"))),
        (2, _clip(r)),
        (3, _proof(run)),
        (4, _kl(r)),
    ]
    return Panel("update", chosen(height, lines))


def speed(run: RunView, width: int, height: int) -> Panel:
    """Tokens a second in sampling and in training, and what a reward costs."""
    r = last(run)
    total = sum(v for v in map(finite, r.seconds.values()) if v)
    sampled = ratio(r.rollout_tokens, r.seconds.get("rollout"))
    trained = ratio(r.trained_tokens, r.seconds.get("update"))
    answers = ratio(3600 * r.rollout_answers, total)
    share = ratio(r.seconds.get("reward", 0.0), total)
    median = seconds(of(run, "step_seconds"))
    p50 = seconds(r.reward_p50)
    p95 = seconds(r.reward_p95)
    sign = verdict("warn" if r.reward_timeouts else "")
    lines: Ranked = [
        (0, row("sampled", amount(sampled, 8), ("   tok/s", LABEL))),
        (1, row("trained", amount(trained, 8), ("   tok/s", LABEL))),
        (3, row("samples", amount(answers, 8), ("   an hour", LABEL))),
        (5, row("step", f"{median:>8}", ("   median", LABEL))),
        (2, row("reward", judged("reward_share", share, ".0%"), (" of a step", LABEL))),
        (4, row("reward p50", f"{p50:>8}", ("   p95 ", LABEL), p95)),
        (6, row("timed out", amount(r.reward_timeouts, 8), sign, (" rewards", LABEL))),
    ]
    records = run.records[-WINDOW:]
    rates = [ratio(record.rollout_tokens, record.seconds.get("rollout")) for record in records]
    curve = plot(rates, width, min(4, height - len(lines)), ",.0f", CALM)
    lines += ranked(7, curve)
    return Panel("speed", chosen(height, lines))


def memory(run: RunView, width: int, height: int) -> Panel:
    """Who holds the device's memory; on a CPU the machine's."""
    measured = last(run).memory
    on_device = bool(measured.get("free"))
    names = _measured(measured, DEVICE if on_device else HOST)
    if not names:
        lines = [(0, Text("not measured yet", LABEL)), (1, _shrunk(run))]
        return Panel("memory", chosen(height, lines))
    styles = [POOLS[name][2] for name in names]
    segments = [(*POOLS[name][:2], measured[name]) for name in names]
    elsewhere = [name for name in _measured(measured, POOLS) if name not in names]
    words = [*_keys(segments, styles), _shrunk(run), *(_beside(name, measured[name]) for name in elsewhere)]
    lines = [(0, stacked(segments, width, styles)), *ranked(1, flow(words, width, max(1, height - 1)))]
    curve_name = "free" if on_device else "host"
    values = _gib_over_time(run, curve_name)
    curve = plot(values, width, min(4, height - len(lines) - 1), ",.2f", CALM)
    if curve:
        lines.append((3, Text(f"{POOLS[curve_name][3]}, GiB", LABEL)))
        lines += ranked(2, curve)
    return Panel("memory" if on_device else "memory of this machine", chosen(height, lines))


def _measured(memory: dict[str, int], names: Iterable[str]) -> list[str]:
    return [name for name in names if memory.get(name)]


def _shrunk(run: RunView) -> Text:
    """How often a pass became smaller because memory ended."""
    times = sum("out of memory" in str(event.get("message")) for event in run.warnings)
    return Text.assemble(("shrunk for want of memory ", LABEL), (f"{times}×", WARN if times else LABEL))


def _keys(segments: Sequence[tuple[str, str, float]], styles: Sequence[str]) -> Iterator[Text]:
    """What each letter of the bar stands for, and how much it is."""
    for (letter, words, taken), style in zip(segments, styles, strict=True):
        yield Text.assemble((letter, style), (f" {words} ", LABEL), size(taken))


def _beside(name: str, taken: float) -> Text:
    """What is measured and not in the bar."""
    return Text.assemble((f"{POOLS[name][3]} ", LABEL), size(taken))


def _gib_over_time(run: RunView, name: str) -> list[float]:
    values = [finite(record.memory.get(name)) for record in run.records[-WINDOW:]]
    return [value / 2**30 for value in values if value is not None]
