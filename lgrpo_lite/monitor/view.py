"""RunView -> what the terminal shows. Pure: no files, no clock, no training; never more than width × height
cells.

Panels (panels/) make lines; here is which of them stand where, and the frame around them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Group
from rich.text import Text

from lgrpo_lite.monitor.numbers import figure
from lgrpo_lite.monitor.panels import credit, learning, machine
from lgrpo_lite.monitor.panels.panel import Panel
from lgrpo_lite.monitor.panels.run import alarms, doing, eta_words, head, state, step_words, trouble
from lgrpo_lite.monitor.panels.samples import samples, wanted
from lgrpo_lite.monitor.tables import lambda_path, result_rows, result_table
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import LABEL, WARN, clean, fit

__all__ = ["lambda_path", "live", "result_rows", "result_table"]

LEAST = (60, 12)  # below it there are words without a frame
PANELS: dict[str, Callable[[RunView, int, int], Panel]] = {
    "run": head, "reward": learning.reward, "signal": learning.signal, "preference": credit.preference,
    "trace": credit.trace,
    "length": learning.length, "policy": machine.policy, "agreement": machine.agreement,
    "optimiser": machine.optimiser,
    "speed": machine.speed, "memory": machine.memory, "samples": samples, "alarms": alarms,
    "reward+signal": learning.reward_and_signal, "credit": credit.credit, "update": machine.update,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side. `least` lines at least, and a share of the spare ones by `more`, up to `most`."""

    names: tuple[str, ...]
    least: int
    more: float = 0.0
    most: int = 1000
    widths: tuple[float, ...] = ()  # equal where empty


RUN, ALARMS, SAMPLES = Row(("run",), 3, 0.5, 4), Row(("alarms",), 2, 0.5, 6), Row(("samples",), 3, 3)
LEARNED = ("reward", "signal", "preference", "trace", "length")
MACHINE, FIVE = ("policy", "agreement", "optimiser", "speed", "memory"), (1.1, 1, 1, 1, 1)
BOTH = ("reward+signal", "credit")
LAYOUTS: tuple[tuple[int, tuple[Row, ...]], ...] = (  # (least width, rows): the first that fits is taken
    (180, (RUN, Row(LEARNED, 6, 2, 20, FIVE), Row(MACHINE, 5, 1.2, 14, FIVE),
           replace(SAMPLES, more=4), ALARMS)),
    (108, (RUN, Row(LEARNED[:3], 6, 2, 16), Row((*LEARNED[3:], MACHINE[0]), 5, 1, 10),
           Row(MACHINE[1:4], 4, 1, 10), Row(MACHINE[4:], 2), SAMPLES, ALARMS)),
    (76, (RUN, Row(LEARNED[:2], 5, 2, 14), Row(LEARNED[2:4], 6, 1, 12),
          Row((LEARNED[4], MACHINE[0]), 4, 1, 10), Row(MACHINE[1:3], 4, 1, 10),
          Row(MACHINE[3:], 4, 1, 10), SAMPLES, ALARMS)),
    (108, (RUN, Row((*BOTH, "length"), 5, 1, 12), SAMPLES, ALARMS)),
    (60, (RUN, Row(BOTH, 5, 1, 12), Row(("length", "update"), 4, 0.5, 8), SAMPLES, ALARMS)),
    (60, (RUN, Row(BOTH, 5, 1, 8), replace(SAMPLES, least=1), replace(ALARMS, least=1))),
    (60, (replace(RUN, least=2), Row(BOTH, 4, 1, 8), replace(ALARMS, least=1))),
    (60, (replace(RUN, least=2), replace(ALARMS, least=1))),
)  # fmt: skip


def live(run: RunView, width: int, height: int) -> Group:
    """The whole screen, as lines of at most `width` cells, at most `height` of them."""
    width, height = max(1, width), max(1, height)
    if width < LEAST[0] or height < LEAST[1]:
        lines = [fit(line, width) for line in in_words(run, width)[:height]]
    else:
        lines = _framed(run, width, height)
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return Group(*lines)


def in_words(run: RunView, width: int) -> list[Text]:
    """The most important of it for a terminal that has no room for panels."""
    eta = "" if run.health.ended else f" eta {eta_words(run)}"
    lines = [state(run), Text(step_words(run) + eta), *trouble(run, width, 5)]
    now = doing(run, width)
    if now:
        lines.append(now)
    if run.records:
        r = run.records[-1]
        lines.append(Text(f"reward {figure(r.reward)}±{figure(r.reward_std, '.2f')}"))
        lines.append(Text(f"signal {r.groups_mixed}/{r.groups}"))
        lines.append(Text(f"len {figure(r.length, '.0f')} (trunc {figure(r.truncated, '.0%')})"))
        if r.length_lambda is not None:
            lines.append(Text(f"λ {figure(r.length_lambda, '+.4f')}"))
    return [*lines, Text(clean(run.name), LABEL)]


def _framed(run: RunView, width: int, height: int) -> list[Text]:
    rows = _chosen(width, height, len(trouble(run, width - 4)), wanted(run, width - 4))
    heights = _heights(rows, height - len(rows) - 1)
    lines: list[Text] = []
    above: list[int] = []
    for row, tall in zip(rows, heights, strict=True):
        widths = _widths(row, width)
        panels = [_panel(name, run, w - 2, tall) for name, w in zip(row.names, widths, strict=True)]
        lines.append(_rule(width, above, widths, [panel.title for panel in panels]))
        for i in range(tall):
            texts = [panel.lines[i] if i < len(panel.lines) else Text("") for panel in panels]
            lines.append(_line(texts, widths))
        above = widths
    return [*lines, _rule(width, above, [], [])]


def _chosen(width: int, height: int, trouble: int, samples: int) -> tuple[Row, ...]:
    """The first layout that fits; trouble is told in the run's row, which then grows; samples take what they
    can fill.
    """
    for extra in (trouble, 0):
        for least, (run, *others) in LAYOUTS:
            rows = [replace(run, least=run.least + extra, most=run.most + extra)]
            for row in others:
                rows.append(replace(row, most=max(row.least, samples)) if row.names == ("samples",) else row)
            needed = sum(row.least for row in rows) + len(rows) + 1
            if width >= least and needed <= height:
                return tuple(rows)
    return LAYOUTS[-1][1]


def _heights(rows: tuple[Row, ...], lines: int) -> list[int]:
    """Lines of each row: what it needs, then one by one to the row that lacks most of its share."""

    def share(i: int) -> float:
        """What row i has of its share of the spare lines, with one more."""
        return (heights[i] - rows[i].least + 1) / (rows[i].more or 1.0)

    heights = [row.least for row in rows]
    for _ in range(lines - sum(heights)):
        growing = [i for i, row in enumerate(rows) if row.more and heights[i] < row.most]
        heights[min(growing or [len(rows) - 2], key=share)] += 1
    return heights


def _widths(row: Row, width: int) -> list[int]:
    """Cells inside each panel's borders."""
    room = width - len(row.names) - 1
    shares = row.widths or (1.0,) * len(row.names)
    edges = [round(room * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
    return [b - a for a, b in itertools.pairwise(edges)]


def _panel(name: str, run: RunView, width: int, height: int) -> Panel:
    """A panel; one that a foreign file trips says so in its place, and costs no other."""
    try:
        return PANELS[name](run, width, height)
    except Exception as error:  # a fault of one panel is no reason to lose the others for a night
        return Panel(name, [Text(f"! cannot be drawn: {clean(repr(error), 200)}", WARN)])


def _rule(width: int, above: list[int], below: list[int], titles: list[Text | str]) -> Text:
    """A line of the frame, shared by the panels above and below it (none: an edge), with the titles of those
    below.
    """
    borders = _borders(below)
    cells = _cells(width, above, below)
    line = Text()
    end = 0
    for begin, wide, title in zip([0, *borders], below, titles, strict=False):
        words = Text(title, "bold") if isinstance(title, str) else title.copy()
        words = fit(words, min(words.cell_len, wide - 3))
        line.append("".join(cells[end : begin + 2]), LABEL).append(" ").append_text(words).append(" ")
        end = begin + 4 + words.cell_len
    return line.append("".join(cells[end:]), LABEL)


def _cells(width: int, above: list[int], below: list[int]) -> list[str]:
    """The characters of a rule without its titles."""
    ups = _borders(above)
    downs = _borders(below)
    cells = ["─"] * width
    for cell in ups:
        cells[cell] = "┴"
    for cell in downs:
        cells[cell] = "┼" if cell in ups else "┬"
    if above and below:
        cells[0], cells[-1] = "├┤"
    else:
        cells[0], cells[-1] = "╭╮" if below else "╰╯"
    return cells


def _borders(widths: list[int]) -> list[int]:
    """The cells at which the borders between panels stand."""
    return [edge + i for i, edge in enumerate(itertools.accumulate(widths[:-1]), 1)]


def _line(texts: Sequence[Text], widths: list[int]) -> Text:
    line = Text().append("│", LABEL)
    for text, wide in zip(texts, widths, strict=True):
        line.append(" ", LABEL).append_text(fit(text, wide - 2)).append(" │", LABEL)
    return line
