"""RunView -> what the terminal shows. Pure: no files, no clock, no training."""

from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.text import duration, sparkline, step_line, visible
from lgrpo_lite.types import StepRecord

PAPERS = {"length_preference": "λ-GRPO arXiv:2510.06870", "trace": "GRPO-λ arXiv:2510.00194"}
DIM, GOOD, BAD, MAIN, LAMBDA = "dim", "green", "red", "bold cyan", "bold magenta"


def live(run: RunView, width: int, height: int) -> RenderableType:
    """The whole screen; smaller terminals drop panels, the smallest gets the plain line."""
    if width < 60 or height < 12:
        return Text(step_line(run.records[-1], run.steps, run.eta) if run.records else _state(run), overflow="ellipsis")
    rows = [Layout(_head(run), size=4)]
    half = (width - 8) // 2
    rows.append(_row(8, _reward(run, half), _preference(run, half)))
    if height >= 24:
        rows.append(_row(7, _length(run, half), _policy(run, half)))
    if height >= 19:
        rows.append(Layout(_sample(run), minimum_size=5))
    screen = Layout()
    screen.split_column(*rows)
    return screen


def result_table(run: RunView) -> Table:
    """Before and after, side by side."""
    table = Table(title=f"{run.name}: {_algorithm(run)}, {run.step} steps", title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="left" if not column else "right")
    for cells in result_rows(run):
        table.add_row(*cells)
    return table


def result_rows(run: RunView) -> list[tuple[str, str, str, str]]:
    """(what, before, after, change) of the first and the last evaluation; empty without evaluations."""
    if not run.evals:
        return []
    first, last = run.evals[0], run.evals[-1]
    rows = []
    label = f"accuracy, {first['problems']} problems × {first['k']} samples, T={first['temperature']:g}"
    for name, key, form in (
        (label, "accuracy", ".3f"),
        ("one of them right (pass@k)", "pass_at_k", ".3f"),
        ("most frequent answer right (maj@k)", "maj", ".3f"),
        ("greedy accuracy", "greedy", ".3f"),
        ("mean tokens", "length", ".1f"),
        ("truncated", "truncated", ".1%"),
        ("no answer found", "unparsable", ".1%"),
    ):
        if first.get(key) is not None and last.get(key) is not None:
            rows.append((name, *(_estimate(e, key, form) for e in (first, last)), f"{last[key] - first[key]:+{form}}"))
    return rows


def _estimate(row: dict, key: str, form: str) -> str:
    """A figure with its 95 % interval; evaluations of earlier versions have a standard error of the accuracy alone."""
    value = f"{row[key]:{form}}"
    if interval := (row.get("intervals") or {}).get(key):
        return f"{value} ({interval[0]:{form}} to {interval[1]:{form}})"
    return f"{value} ± {row['stderr']:.3f}" if key == "accuracy" and row.get("stderr") is not None else value


def lambda_path(run: RunView, points: int = 8) -> str:
    """λ over the run in a few numbers; empty without a token preference."""
    path = [r.length_lambda for r in run.records if r.length_lambda is not None]
    if not path:
        return ""
    picked = [path[round(i * (len(path) - 1) / max(1, points - 1))] for i in range(min(points, len(path)))]
    return f"λ {sparkline(path, 24)} " + " → ".join(f"{x:+.3f}" for x in picked)


def _row(size: int, left: RenderableType, right: RenderableType) -> Layout:
    row = Layout(size=size)
    row.split_row(Layout(left), Layout(right))
    return row


def _algorithm(run: RunView) -> str:
    use = str(run.get("algorithm.use", "?"))
    return f"{use} ({PAPERS[use]})" if use in PAPERS else use


def _state(run: RunView) -> str:
    return f"{run.name}: {run.status.get('state', 'starting')} {run.status.get('progress', '')}".rstrip()


def _head(run: RunView) -> Panel:
    model = f"  {run.get('model.id')} {run.get('model.weights')}"
    line = Text.assemble((run.name, MAIN), "  ", _algorithm(run), (model, DIM), no_wrap=True, overflow="ellipsis")
    done = Table.grid(expand=True, padding=(0, 1))
    done.add_column(ratio=1)
    done.add_column(justify="right")
    state = f"{run.status.get('state', 'starting')} {run.status.get('progress', '')}".rstrip()
    text = f"{state}  step {run.step}/{run.steps}  eta {duration(run.eta)}"
    done.add_row(ProgressBar(total=max(1, run.steps), completed=run.step), text)
    return Panel(Group(line, done), padding=(0, 1))


def _panel(title: str, rows: list[tuple[str, Text | str]]) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style=DIM, no_wrap=True, min_width=max(len(name) for name, _ in rows))
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in rows:
        grid.add_row(name, value)
    return Panel(grid, title=title, title_align="left", padding=(0, 1))


def _last(run: RunView) -> StepRecord:
    return run.records[-1] if run.records else StepRecord(0, 0)


def _series(run: RunView, name: str, width: int) -> Text:
    return Text(sparkline([getattr(r, name) for r in run.records], max(8, width - 14)), MAIN)


def _reward(run: RunView, width: int) -> Panel:
    r = _last(run)
    parts = "  ".join(f"{name} {value:.2f}" for name, value in r.reward_parts.items())
    rows = [
        ("mean ± std", f"{_f(r.reward, '.3f')} ± {_f(r.reward_std, '.2f')}"),
        ("", _series(run, "reward", width)),
        ("parts", parts or "–"),
        ("groups", Text.assemble(
            (f"{r.groups_right} right ", GOOD), f"· {r.groups_mixed} mixed · ", (f"{r.groups_wrong} wrong", BAD),
            (f"  of {r.groups}", DIM))),
        ("held-out", " → ".join(f"{e['accuracy']:.3f}" for e in run.evals[-4:]) or "–"),
    ]  # fmt: skip
    if r.missing:
        why = [(r.reward_timeouts, "timed out"), (r.reward_crashes, "crashed"), (r.reward_errors, "failed")]
        told = ", ".join(f"{count} {what}" for count, what in why if count) or "no verdict"
        rows.append(("missing", Text(f"{r.missing} rewards: {told}", BAD)))
    return _panel("reward", rows)


def _preference(run: RunView, width: int) -> Panel:
    r = _last(run)
    if r.length_lambda is None:
        t = run.get("algorithm.trace")
        if not t:
            return _panel("credit", [("token weight", f"{run.get('algorithm.reduce')}, the same for every answer")])
        decay = t["gamma"] * t["lambda"]
        horizon = "∞" if decay >= 1 else f"{1 / (1 - decay):.0f} tokens"
        return _panel("trace", [("γλ", f"{decay:.3f}"), ("style", t["style"]), ("horizon", horizon), ("mode", t["mode"])])
    bars = [("short", r.weight_short), ("median", r.weight_median), ("long", r.weight_long)]
    rows: list[tuple[str, Text | str]] = [
        ("λ", Text.assemble((f"{r.length_lambda:+.4f}", LAMBDA), (f"  ∂loss/∂λ {_f(r.length_lambda_grad, '+.4f')}", DIM))),
        ("", _series(run, "length_lambda", width)),
    ]
    for name, weight in bars:
        filled = "█" * round(min(weight or 0, 2.0) * max(4, width - 26) / 2)
        rows.append((name, Text.assemble(f"{_f(weight, '.3f')} ", (filled, LAMBDA))))
    rows.append(("like GRPO at", f"λ {_f(r.length_lambda_grpo, '+.2f')}"))
    return _panel("token preference", rows)


def _length(run: RunView, width: int) -> Panel:
    r = _last(run)
    return _panel("length", [
        ("mean tokens", f"{_f(r.length, '.1f')}   truncated {_f(r.truncated, '.0%')}"),
        ("", _series(run, "length", width)),
        ("right · wrong", f"{_f(r.length_right, '.1f')} · {_f(r.length_wrong, '.1f')}"),
        ("speed", _speed(r)),
    ])  # fmt: skip


def _policy(run: RunView, width: int) -> Panel:
    r = _last(run)
    kl = "no reference pass" if r.kl is None else f"{r.kl:.5f} nats a token"
    return _panel("policy", [
        ("clip low · high", f"{_f(r.clip_low, '.1%')} · {_f(r.clip_high, '.1%')}"),
        ("KL", kl),
        ("entropy", Text.assemble(f"{_f(r.entropy, '.3f')}  ", _series(run, "entropy", width - 8))),
        ("rollout Δlogp", f"{_f(r.disagreement, '.1e')}   grad norm {_f(r.grad_norm, '.3f')}"),
        ("note", Text(r.skipped or f"{len(run.warnings)} warnings", BAD if r.skipped or run.warnings else DIM)),
    ])  # fmt: skip


def _speed(r: StepRecord) -> str:
    total = sum(r.seconds.values())
    if not total:
        return "–"
    share = "  ".join(f"{name} {value / total:.0%}" for name, value in r.seconds.items() if value / total >= 0.05)
    rollout = r.seconds.get("rollout")
    return (f"{r.rollout_tokens / rollout:,.0f} tok/s  " if rollout else "") + share


def _sample(run: RunView) -> Panel:
    if not run.samples:
        return Panel(Text("no completion yet", DIM), title="sample", title_align="left")
    texts = []
    for sample in run.samples[:4]:
        right = sample.get("outcome") == "ok"
        mark = ("✓ ", GOOD) if right else ("✗ ", BAD)
        question = visible(str(sample.get("prompt", ""))).replace("\n", " ⏎ ")
        answer = visible(str(sample.get("completion", ""))).replace("\n", " ⏎ ")
        texts.append(Text.assemble(mark, (question + " ", DIM), answer, (f"  gold {sample.get('reference')}", DIM)))
    return Panel(Group(*texts), title=f"samples, step {run.step}", title_align="left", padding=(0, 1))


def _f(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
