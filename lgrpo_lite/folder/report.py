"""report.md: what a run did and how to go on with it, from its files alone, with plots in report.svg."""

import gc
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lgrpo_lite.folder.facts import before_and_after, facts
from lgrpo_lite.folder.markdown import cell, inline, part, table, upper
from lgrpo_lite.machine.disk import write_whole
from lgrpo_lite.monitor import plots
from lgrpo_lite.monitor.alarms import standing
from lgrpo_lite.monitor.curves import best_of
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import lambda_path, title
from lgrpo_lite.monitor.tail import RunView, Tail
from lgrpo_lite.monitor.text import duration, sparkline
from lgrpo_lite.monitor.theme import clean

PICTURE = "report.svg"
FAILURES = "docs/failures.md"  # of this project; it has a section for each alarm
MANY = 20  # warnings that are listed
PHASES = ("sync", "rollout", "reward", "score", "update")
SETTINGS = (
    "model.id", "model.weights", "model.lora.rank", "model.max_new_tokens", "rollout.engine",
    "rollout.prompts_per_step",
    "rollout.group_size", "rollout.temperature", "algorithm.use", "algorithm.advantage", "algorithm.reduce",
    "algorithm.kl.coef",
    "algorithm.clip.low", "algorithm.clip.high", "algorithm.length_preference.lr", "algorithm.trace.lambda",
    "algorithm.trace.gamma", "optim.use", "optim.lr", "optim.scheduler", "optim.updates_per_batch",
    "memory.micro_tokens",
    "train.steps", "eval.k", "seed",
)  # fmt: skip
ENDS = {
    "done": "The run is done.", "stopped": "The run was stopped.", "failed": "The run failed.",
    "killed": "The run was killed.",
    "silent": "The run shows no sign of life.", "stuck": "The run makes no progress.",
    "starting": "The run has not begun.",
}  # fmt: skip


def write_report(path: Path) -> None:
    """Rewrite report.md and report.svg of a run folder. Costs the same however long the run is.

    Never raises: what a foreign file or a fault in plotting keeps out is named in its place, and in the log.
    """
    try:
        run = Tail(path).refresh()
        lines = part("", partial(_head, run), _why)
        for heading, lines_of in PARTS.items():
            lines += part(heading, partial(lines_of, run), _why)
        write_whole(path / "report.md", "\n".join(lines).rstrip() + "\n")
    except Exception:  # whatever is wrong with a report, training goes on
        logging.exception("no report was written")
    gc.collect()  # a figure is cycles, of which a process as large as a trainer would pile up tens of MB


# ------------------------------------------------------------------------------------------- the parts


def _head(run: RunView) -> Iterator[str]:
    name, paper = title(run)
    yield f"# {inline(run.path.resolve().name)}"
    yield ""
    algorithm = f"{inline(name)} ({paper})" if paper else inline(name)
    model = inline(run.get("model.id", "?"))
    weights = inline(run.get("model.weights", "?"))
    seed = inline(run.get("seed", 0))
    steps = f"{run.step:,} of {run.steps:,} steps"
    yield f"{algorithm} on {model} ({weights}), {steps}, seed {seed}."
    yield ""
    yield _state(run)
    if run.unread:
        yield f"Not readable in this folder: {', '.join(map(inline, run.unread))}."


def _state(run: RunView) -> str:
    """One line: is it alive, and if not, why."""
    why = upper(inline(run.health.why))
    why = f" {why}." if run.health.why else ""
    if run.health.state in ENDS:
        return ENDS[run.health.state] + why
    state = inline(run.status.get("state") or "starting")
    return f"The run is alive ({state}); this is how it stood at step {run.step:,}.{why}"


def _curves(run: RunView) -> Iterator[str]:
    if not run.records:
        return
    yield _picture(run)
    yield ""
    for name in ("reward", "length"):
        values = [finite(value) for value in run.series(name)]
        yield f"    {name}  {sparkline(values, 60)}"
    if line := lambda_path(run):
        yield f"    {line}"
    skipped = sum(r.skipped is not None for r in run.records)
    if skipped:
        why = "no group with two different rewards, or a refused loss"
        yield ""
        yield f"{skipped:,} of {_of_steps(run)} made no update ({why})."


def _picture(run: RunView) -> str:
    """The line that shows the plots, or that says why there are none."""
    if not plots.available():
        return plots.MISSING
    try:
        plots.plot_run(run, run.path)
    except Exception as fault:
        logging.exception("the plots of the report could not be made")
        return f"no plots: {_named(fault)}"
    return f"![reward, length, signal, λ and evaluations by step]({PICTURE})"


def _time(run: RunView) -> Iterator[str]:
    spent = _spent(run)
    whole = sum(spent.values())
    if not whole:
        return
    rows = []
    for name, seconds in spent.items():
        if seconds:
            time = duration(seconds) if seconds >= 1 else f"{seconds:.2f}s"
            rows.append((name, time, f"{seconds / whole:.1%}"))
    yield from table(("phase", "time", "share"), rows, "|---|---:|---:|")
    yield ""
    tokens = sum(r.rollout_tokens for r in run.records)
    speed = ""
    if spent["rollout"]:
        rate = tokens / spent["rollout"]
        speed = f", {rate:,.0f} a second of rollout"
    yield f"{tokens:,} tokens sampled in {_of_steps(run)}{speed}."


def _spent(run: RunView) -> dict[str, float]:
    """Seconds by phase. Where a long run's records begin late, evaluations and checkpoints do so too."""
    spent = {}
    for name in PHASES:
        spent[name] = _total(record.seconds.get(name) for record in run.records)
    first = run.records[0].step if run.records else 0
    saved = [event for event in run.events if event.get("kind") == "saved"]
    for name, rows in (("evaluations", run.evals), ("checkpoints", saved)):
        if run.sparse:
            rows = [row for row in rows if (finite(row.get("step")) or 0) >= first]
        spent[name] = _total(row.get("seconds") for row in rows)
    return spent


def _total(seconds: Iterable[Any]) -> float:
    """The sum of what is a number and not negative."""
    return sum(max(0.0, finite(value) or 0.0) for value in seconds)


def _facts(run: RunView) -> Iterator[str]:
    yield from table(("", ""), facts(run), "|---|---|")


def _checkpoints(run: RunView) -> Iterator[str]:
    best = best_of(run)
    if best is not None:
        metric = f"train.keep.metric={best.metric}"
        yield f"- best evaluation by `{metric}`: {best.value:.3f} at step {best.step:,}"
    for link, word in (("best", "best"), ("latest", "newest")):
        try:
            target = os.readlink(run.path / "checkpoints" / link)
        except OSError:
            continue
        yield f"- {word} checkpoint: `checkpoints/{inline(target)}`"


def _chosen(run: RunView) -> Iterator[str]:
    """What the newest attempt that chose any settled."""
    chosen = [event for event in run.events if event.get("kind") == "chosen"]
    rows = []
    for event in chosen:
        if event.get("attempt") == chosen[-1].get("attempt"):
            key = cell(event.get("key", "?"))
            value = cell(event.get("value", "?"))
            why = cell(event.get("why", ""))
            rows.append((f"`{key}`", value, why))
    if rows:
        yield from table(("setting", "value", "why"), rows, "|---|---|---|")


def _settings(run: RunView) -> Iterator[str]:
    rows = []
    for key in SETTINGS:
        value = run.get(key)
        if value is not None:
            rows.append((f"`{key}`", cell(value)))
    rewards = run.get("rewards")
    if isinstance(rewards, list) and rewards:
        used = [cell(one.get("use", "?")) for one in rewards if isinstance(one, dict)]
        rows.append(("`rewards`", ", ".join(used)))
    if rows:
        yield from table(("setting", "value"), rows, "|---|---|")
        yield from ("", "All of them: `config.resolved.yaml`.")


def _alarms(run: RunView) -> Iterator[str]:
    for raised in standing(run):
        name = inline(raised.name)
        when = f"{_times(raised.count)} from step {raised.first:,} to {raised.last:,}"
        what, fix = inline(raised.what), inline(raised.fix)
        yield f"- **{name}**, {when}: {what}. What to do: {fix}. See `{FAILURES}#{name}`."


def _warnings(run: RunView) -> Iterator[str]:
    texts = []
    for row in run.warnings:
        text = row.get("message") or row.get("reason") or row.get("kind")
        texts.append(str(text))
    newest = list(dict.fromkeys(texts[-1000:]))
    for text in newest[-MANY:]:
        count = texts.count(text)
        times = f" ({_times(count)})" if count > 1 else ""
        yield f"- {inline(text)}{times}"
    if len(newest) > MANY:
        yield f"- and {len(newest) - MANY} others, in `events.jsonl`"


def _go_on(run: RunView) -> Iterator[str]:
    path = shlex.quote(str(run.path))
    commands = {}
    if run.health.resume:
        commands["go on with it"] = run.health.resume
    if not run.health.ended:
        commands["look at it"] = f"lgrpo-lite watch {path}"
    commands["answers of its newest step, with the credit of every token"] = f"lgrpo-lite show {path}"
    if (run.path / "checkpoints" / "latest").exists():
        held_out = "its newest checkpoint on its held-out problems; --suite NAME for others"
        commands[held_out] = f"lgrpo-lite eval {path}"
        merged = "a model that others load; --checkpoint best for its best"
        commands[merged] = f"lgrpo-lite export {path} merged"
    yield "```"
    for words, command in commands.items():
        yield f"# {words}"
        yield clean(command).replace("```", "` ` `")
    yield "```"


PARTS: dict[str, Callable[[RunView], Iterator[str]]] = {
    "Before and after": before_and_after, "Alarms": _alarms, "Curves": _curves, "Where the time went": _time,
    "What was trained, and where": _facts, "Checkpoints": _checkpoints, "Chosen automatically": _chosen,
    "Settings that matter": _settings, "Warnings": _warnings, "How to go on": _go_on,
}  # fmt: skip


# ------------------------------------------------------------------------------------------- words


def _of_steps(run: RunView) -> str:
    """The steps that sums are over: all, or of a long run the last ones."""
    steps = f"{len(run.records):,} steps"
    return f"the last {steps}" if run.sparse else steps


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _named(fault: Exception) -> str:
    return inline(f"{type(fault).__name__}: {fault}")


def _why(fault: Exception) -> str:
    return f": {_named(fault)}"
