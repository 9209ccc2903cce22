"""The panel of the run itself, and the strip of its alarms."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from rich.cells import cell_len
from rich.text import Text

from lgrpo_lite.monitor.alarms import Raised, standing
from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.panels.charts import legend, progress, stacked
from lgrpo_lite.monitor.panels.panel import Panel, Ranked, last, ranked
from lgrpo_lite.monitor.tables import evaluations, title
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.text import duration
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
    cut,
    flow,
    of,
    wrapped,
)

PHASES = {  # in the order of a step: letter, word with that letter, colour
    "sync": ("Y", "sYnc", "blue"), "rollout": ("R", "rollout", "cyan"), "reward": ("W", "reWard", "yellow"),
    "score": ("C", "sCore", "bright_black"), "update": ("U", "update", "magenta"),
    "eval": ("E", "eval", "green"),
    "save": ("V", "saVe", "red"),
}  # fmt: skip
# of the legend, where not all have room
FIRST = ("rollout", "update", "eval", "reward", "save", "sync", "score")
RECENT = 50  # steps whose time is split
STATES = {
    "starting": ("…", CALM), "live": ("●", GOOD), "stuck": ("!", WARN), "silent": ("!", BAD),
    "killed": ("✗", BAD),
    "stopped": ("■", WARN), "failed": ("✗", BAD), "done": ("✓", GOOD),
}  # fmt: skip
TROUBLE = ("stuck", "silent", "killed", "stopped", "failed")


def head(run: RunView, width: int, height: int) -> Panel:
    """What runs, how far it is, where its time goes, and whether it is alive."""
    lines: Ranked = [(1, _what(run, width)), (0, _how_far(run, width))]
    now = doing(run, width)
    if now:
        lines.append((0, now))
    lines += ranked(0, trouble(run, width))
    times = _times(run)
    if any(times.values()):
        lines.append((2, _time_bar(times, width)))
    lines.append((3, _lately(run, width)))
    name = cut(clean(run.name), max(8, width - 20))
    return Panel(Text.assemble(("lgrpo-lite ", LABEL), (name, MAIN)), chosen(height, lines))


def _what(run: RunView, width: int) -> Text:
    name, paper = title(run)
    model = clean(run.get("model.id", "?"), 60)
    weights = clean(run.get("model.weights", ""), 12)
    engine = clean(run.get("rollout.engine", "?"), 20)
    version = amount(last(run).policy_version)
    items = [
        Text.assemble((name, "bold"), (f" {paper}" if paper else "", LABEL)),
        Text.assemble(model, (f" {weights}", LABEL)),
        Text.assemble(("engine " if width > 80 else "", LABEL), engine),
        Text.assemble(("policy version " if width > 80 else "policy v", LABEL), version),
    ]
    return next(iter(flow(items, width, 1)), items[0])


def state(run: RunView) -> Text:
    """`● training: rollout`, `✗ killed`."""
    health = run.health.state
    sign, style = STATES.get(health, ("?", WARN))
    words = clean(run.status.get("state") or "starting", 30)
    phase = run.status.get("phase")
    if health in TROUBLE or health == "done":
        words = health
    elif health == "live" and words == "training" and isinstance(phase, str):
        words = f"{words}: {clean(phase, 12)}"
    if run.status.get("stopping") is True and not run.health.ended:
        words += ", stopping after this step"
    return Text.assemble((f"{sign} {words}", style))


def step_words(run: RunView) -> str:
    return f"step {amount(run.step)}/{amount(run.number('train.steps'))}"


def _how_far(run: RunView, width: int) -> Text:
    left = state(run)
    left.append(" " * max(1, 27 - left.cell_len))
    words = f"{step_words(run)}  "
    eta = "" if run.health.ended else f"  eta {eta_words(run)}"
    room = width - left.cell_len - len(words) - (12 if eta else 0)
    done = finite(run.step) or 0.0
    steps = finite(run.number("train.steps")) or 0.0
    bar = progress(done, steps, max(0, room), CALM)
    return left + Text(words) + bar + Text(eta, LABEL)


def eta_words(run: RunView) -> str:
    """Time left; a question mark where it cannot be told."""
    left = of(run, "eta")
    return duration(left) if _sensible(left) else "?"


def _sensible(seconds: float | None) -> TypeGuard[float]:
    return seconds is not None and 0 <= seconds < 1e9


def doing(run: RunView, width: int) -> Text | None:
    """Long work that is under way: what, how much of it is done, time left."""
    work = run.status.get("progress")
    if not isinstance(work, Mapping) or run.health.ended:
        return None
    done, of, left = (finite(work.get(key)) for key in ("done", "of", "left"))
    line = Text.assemble((clean(work.get("what") or "working", 60), CALM), "  ")
    if done is None:
        return line
    if not of:
        return line.append(f"{amount(done)} so far", LABEL)
    words = f" {amount(done)}/{amount(of)}"
    if _sensible(left):
        words += f"  {duration(left)} left"
    room = max(0, min(40, width - line.cell_len - len(words)))
    return line + progress(done, of, room, CALM) + Text(words)


def trouble(run: RunView, width: int, most: int = 4) -> list[Text]:
    """Why it does not go on, in red, and the command that goes on; nothing while all is well."""
    if run.health.state not in TROUBLE:
        return []
    style = WARN if run.health.state in ("stuck", "stopped") else BAD
    why = clean(run.health.why or run.health.state)
    lines = [Text(line, style) for line in wrapped(why, width, 1)]
    if run.health.resume:
        command = f"go on: {clean(run.health.resume)}"
        lines += [Text(line, "bold") for line in wrapped(command, width, most)]
    return lines


def _times(run: RunView) -> dict[str, float]:
    """Seconds by phase over the last steps, evaluations and saves that fell into them among them."""
    recent = run.records[-RECENT:]
    total = dict.fromkeys(PHASES, 0.0)
    if not recent:
        return total
    for record in recent:
        for name, took in record.seconds.items():
            if name in total:
                total[name] += _positive(took)
    # what came before the first step is its part too
    first = recent[0].step if recent[0].step > 1 else 0
    saves = [event for event in run.events[-8 * RECENT :] if event.get("kind") == "saved"]
    for name, rows in (("eval", run.evals[-RECENT:]), ("save", saves)):
        for row in rows:
            if (finite(row.get("step")) or 0) >= first:
                total[name] += _positive(row.get("seconds"))
    return total


def _positive(value: Any) -> float:
    return max(0.0, finite(value) or 0.0)


def _time_bar(times: dict[str, float], width: int) -> Text:
    bar_width = max(10, min(width // 2, width - 60))
    segments = {name: (letter, word, times[name]) for name, (letter, word, _) in PHASES.items()}
    styles = {name: style for name, (_, _, style) in PHASES.items()}
    bar = stacked([*segments.values()], bar_width, [*styles.values()])
    order = [name for name in FIRST if times[name]]
    keys = legend([segments[name] for name in order], ".0%", [styles[name] for name in order])
    return bar + Text("  ") + next(iter(flow(keys, width - bar_width - 2, 1)), Text(""))


def _lately(run: RunView, width: int) -> Text:
    """What a run that was left alone has done since."""
    items = []
    saves = (event for event in reversed(run.events) if event.get("kind") == "saved")
    saved = next(saves, None)
    if saved is not None:
        items.append(f"saved at step {amount(saved.get('step'))}{_ago(run, saved)}")
    rows = evaluations(run)
    if rows:
        step = amount(rows[-1].get("step"))
        accuracy = figure(rows[-1]["accuracy"])
        items.append(f"evaluated at step {step}: {accuracy}")
    attempts = (finite(event.get("attempt")) for event in reversed(run.events))
    attempt = next((number for number in attempts if number is not None), None)
    if attempt and attempt > 1:
        items.append(f"attempt {amount(attempt)}")
    sampled = sum(record.rollout_tokens for record in run.records)
    if sampled and not run.sparse:
        items.append(f"{amount(sampled)} tokens sampled")
    shown = flow((Text(item, LABEL) for item in items), width, 1, gap=3)
    return shown[0] if shown else Text("nothing saved yet", LABEL)


def _ago(run: RunView, event: dict[str, Any]) -> str:
    time = finite(event.get("time"))
    ago = None if time is None else run.now - time
    return f", {duration(ago)} ago" if _sensible(ago) else ""


def alarms(run: RunView, width: int, height: int) -> Panel:
    """The last alarms, newest first: name, count, since when, what it means, what to do; then warnings, then
    what happened.
    """
    every = standing(run)
    # that one is told, with its command, in the run's panel
    raised = [alarm for alarm in every if alarm.name != "heartbeat"]
    lines = [Text.assemble(("! cannot be read: ", WARN), clean(name, 60)) for name in run.unread[:2]]
    if len(raised) < len(every):
        lines.append(Text("✗ heartbeat: see above", BAD))
    newest = sorted(raised, key=lambda alarm: alarm.last, reverse=True)
    for alarm in newest[:5]:
        lines += _alarm(alarm, width, height - len(lines))
    for event in reversed(run.warnings[-3:]):
        words = clean(event.get("message") or event.get("reason") or "", 300)
        if words:
            lines.append(Text.assemble(("! ", WARN), words))
    if not lines:
        lines.append(Text.assemble(("✓ ", GOOD), ("no alarm", LABEL)))
    for event in reversed(run.events[-40:]):
        words = _happened(run, event)
        if words:
            lines.append(Text(words, LABEL))
    return Panel(f"alarms · {len(raised)}" if raised else "alarms", lines[:height])


def _alarm(alarm: Raised, width: int, room: int) -> list[Text]:
    """On one line where it fits, else on two; on a last line, what it means gives way to what to do."""
    since = f" ×{amount(alarm.count)} since step {amount(alarm.first)}  "
    name = Text.assemble((f"✗ {clean(alarm.name, 30)}", BAD), (since, LABEL))
    what = clean(alarm.what, 400)
    fix = f"→ {clean(alarm.fix, 400)}"
    spare = width - name.cell_len - cell_len(fix) - 1
    if spare < cell_len(what) and room > 1:
        return [name + Text(what), Text(f"  {fix}", CALM)]
    return [name + Text.assemble(cut(what, max(12, spare)), " ", (fix, CALM))]


def _happened(run: RunView, event: dict[str, Any]) -> str:
    """An event that is worth a line when nothing is wrong."""
    kind = event.get("kind")
    step = amount(event.get("step"))
    words = {
        "saved": f"saved at step {step}",
        "resumed": f"resumed at step {step}",
        "proof": f"rollouts proven at step {step}",
    }
    text = words.get(kind) if isinstance(kind, str) else None
    if kind == "note":
        text = clean(event.get("message", ""), 300)
    elif kind == "chosen":
        key, value, why = (clean(event.get(name, "?"), 120) for name in ("key", "value", "why"))
        text = f"chosen: {key} = {value}, {why}"
    return f"  {text}{_ago(run, event)}" if text else ""
