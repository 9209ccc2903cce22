"""The panel of the run itself, and the strip of its alarms."""

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from lgrpo_lite.monitor.alarms import Raised, standing
from lgrpo_lite.monitor.panels.charts import legend, progress, stacked
from lgrpo_lite.monitor.panels.panel import Panel, Ranked, last
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
    known,
    number,
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
    if now := doing(run, width):
        lines.append((0, now))
    lines += [(0, line) for line in trouble(run, width)]
    if any((times := _times(run)).values()):
        lines.append((2, _time_bar(times, width)))
    lines.append((3, _lately(run, width)))
    return Panel(
        Text.assemble(("lgrpo-lite ", LABEL), (cut(clean(run.name), max(8, width - 20)), MAIN)),
        chosen(height, lines),
    )


def _what(run: RunView, width: int) -> Text:
    name, paper = title(run)
    items = [Text.assemble((name, "bold"), (f" {paper}" if paper else "", LABEL))]
    items += [
        Text.assemble(
            clean(run.get("model.id", "?"), 60), (f" {clean(run.get('model.weights', ''), 12)}", LABEL)
        )
    ]
    items += [
        Text.assemble(("engine " if width > 80 else "", LABEL), clean(run.get("rollout.engine", "?"), 20))
    ]
    items += [
        Text.assemble(
            ("policy version " if width > 80 else "policy v", LABEL), amount(last(run).policy_version)
        )
    ]
    return next(iter(flow(items, width, 1)), items[0])


def state(run: RunView) -> Text:
    """`● training: rollout`, `✗ killed`."""
    sign, style = STATES.get(run.health.state, ("?", WARN))
    said = clean(run.status.get("state") or "starting", 30)
    phase = run.status.get("phase")
    words = run.health.state if run.health.state in TROUBLE or run.health.state == "done" else said
    if run.health.state == "live" and said == "training" and isinstance(phase, str):
        words = f"{said}: {clean(phase, 12)}"
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
    bar = progress(known(run.step) or 0.0, known(run.number("train.steps")) or 0.0, max(0, room), CALM)
    return left + Text(words) + bar + Text(eta, LABEL)


def eta_words(run: RunView) -> str:
    """Time left; a question mark where it cannot be told."""
    left = of(run, "eta")
    return duration(left) if left is not None and 0 <= left < 1e9 else "?"


def doing(run: RunView, width: int) -> Text | None:
    """Long work that is under way: what, how much of it is done, time left."""
    told = run.status.get("progress")
    if not isinstance(told, Mapping) or run.health.ended:
        return None
    done, of, left = (known(told.get(key)) for key in ("done", "of", "left"))
    line = Text.assemble((clean(told.get("what") or "working", 60), CALM), "  ")
    if done is None or not of:
        return line.append("" if done is None else f"{amount(done)} so far", LABEL)
    words = f" {amount(done)}/{amount(of)}" + (
        f"  {duration(left)} left" if left is not None and 0 <= left < 1e9 else ""
    )
    return line + progress(done, of, max(0, min(40, width - line.cell_len - len(words))), CALM) + Text(words)


def trouble(run: RunView, width: int, most: int = 2) -> list[Text]:
    """Why it does not go on, in red, and the command that goes on; nothing while all is well."""
    if run.health.state not in TROUBLE:
        return []
    style = WARN if run.health.state in ("stuck", "stopped") else BAD
    lines = [Text(line, style) for line in wrapped(clean(run.health.why or run.health.state), width, 1)]
    if run.health.resume:
        lines += [Text(line, "bold") for line in wrapped(f"go on: {clean(run.health.resume)}", width, most)]
    return lines


def _times(run: RunView) -> dict[str, float]:
    """Seconds by phase over the last steps, evaluations and saves that fell into them among them."""
    recent, total = run.records[-RECENT:], dict.fromkeys(PHASES, 0.0)
    for record in recent:
        for name, took in record.seconds.items():
            if name in total:
                total[name] += max(0.0, known(took) or 0.0)
    # what came before the first step is its part too
    first = recent[0].step if recent and recent[0].step > 1 else 0
    saves = [event for event in run.events[-8 * RECENT :] if event.get("kind") == "saved"]
    for name, rows in (("eval", run.evals[-RECENT:]), ("save", saves)):
        for row in rows if recent else ():
            if (known(row.get("step")) or 0) >= first:
                total[name] += max(0.0, known(row.get("seconds")) or 0.0)
    return total


def _time_bar(times: dict[str, float], width: int) -> Text:
    bar = max(10, min(width // 2, width - 60))
    drawn = stacked(
        [(*PHASES[name][:2], times[name]) for name in PHASES], bar, [style for *_, style in PHASES.values()]
    )
    order = [name for name in FIRST if times[name]]
    keys = legend(
        [(*PHASES[name][:2], times[name]) for name in order], ".0%", [PHASES[name][2] for name in order]
    )
    return drawn + Text("  ") + next(iter(flow(keys, width - bar - 2, 1)), Text(""))


def _lately(run: RunView, width: int) -> Text:
    """What a run that was left alone has done since."""
    items = []
    saved = next((e for e in reversed(run.events) if e.get("kind") == "saved"), None)
    if saved is not None:
        items.append(Text(f"saved at step {amount(saved.get('step'))}{_ago(run, saved)}", LABEL))
    if rows := evaluations(run):
        items.append(
            Text(f"evaluated at step {amount(rows[-1].get('step'))}: {number(rows[-1]['accuracy'])}", LABEL)
        )
    attempt = next(
        (known(e.get("attempt")) for e in reversed(run.events) if known(e.get("attempt")) is not None), None
    )
    items += [Text(f"attempt {amount(attempt)}", LABEL)] if attempt and attempt > 1 else []
    sampled = sum(r.rollout_tokens for r in run.records) if not run.sparse else None
    items += [Text(f"{amount(sampled)} tokens sampled", LABEL)] if sampled else []
    shown = flow(items, width, 1, gap=3)
    return shown[0] if shown else Text("nothing saved yet", LABEL)


def _ago(run: RunView, event: dict[str, Any]) -> str:
    at = known(event.get("time"))
    return f", {duration(run.now - at)} ago" if at is not None and 0 <= run.now - at < 1e9 else ""


def alarms(run: RunView, width: int, height: int) -> Panel:
    """The last alarms, newest first: name, count, since when, what it means, what to do;
    then warnings, then what happened.
    """
    found = standing(run)
    # that one is told, with its command, in the run's panel
    raised = [one for one in found if one.name != "heartbeat"]
    lines = [Text.assemble(("! cannot be read: ", WARN), clean(name, 60)) for name in run.unread[:2]]
    lines += [Text("✗ heartbeat: see above", BAD)] if len(raised) < len(found) else []
    for one in sorted(raised, key=lambda x: x.last, reverse=True)[:5]:
        lines += _alarm(one, width, height - len(lines))
    told = [clean(e.get("message") or e.get("reason") or "", 300) for e in run.warnings[-3:]]
    lines += [Text.assemble(("! ", WARN), words) for words in reversed(told) if words]
    lines = lines or [Text.assemble(("✓ ", GOOD), ("no alarm", LABEL))]
    lately = [Text(words, LABEL) for e in reversed(run.events[-40:]) if (words := _happened(run, e))]
    return Panel(f"alarms · {len(raised)}" if raised else "alarms", [*lines, *lately][:height])


def _alarm(one: Raised, width: int, room: int) -> list[Text]:
    """On one line where it fits, else on two; on a last line, what it means gives way to what to do."""
    name = Text.assemble(
        (f"✗ {clean(one.name, 30)}", BAD), (f" ×{amount(one.count)} since step {amount(one.first)}  ", LABEL)
    )
    what, fix = clean(one.what, 400), f"→ {clean(one.fix, 400)}"
    spare = width - name.cell_len - cell_len(fix) - 1
    if spare < cell_len(what) and room > 1:
        return [name + Text(what), Text(f"  {fix}", CALM)]
    return [name + Text.assemble(cut(what, max(12, spare)), " ", (fix, CALM))]


def _happened(run: RunView, event: dict[str, Any]) -> str:
    """An event that is worth a line when nothing is wrong."""
    kind, step = event.get("kind"), amount(event.get("step"))
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
