"""What panels draw with: curves, stacked bars, bars with a mark. All legible without colour."""

import itertools
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.text import BLOCKS
from lgrpo_lite.monitor.theme import LABEL, PALETTE, known, number

Segment = tuple[str, str, float]  # letter, words, size


def columns(values: Sequence[float], width: int) -> list[float]:
    """A series as `width` numbers: averaged where it is longer,
    each value several times where it is shorter.
    """
    n = len(values)
    if not n or width < 1:
        return []
    if n <= width:
        return [values[i * n // width] for i in range(width)]
    edges = [i * n // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def curve(values: Sequence[float], height: int = 1) -> list[str]:
    """One column a value, `height` lines, scaled to the values' own range; a
    constant runs through the middle.
    """
    low, high = min(values), max(values)
    levels = 8 * height
    span = high - low
    filled = [levels // 2 if _flat(low, high) else 1 + int((v - low) / span * (levels - 1)) for v in values]
    return ["".join(_block(n - 8 * line) for n in filled) for line in reversed(range(height))]


def _flat(low: float, high: float) -> bool:
    """No difference, or one that is rounding alone."""
    return not high - low > 1e-9 * max(abs(low), abs(high)) or high - low == float("inf")


def _block(eighths: int) -> str:
    return " " if eighths <= 0 else BLOCKS[min(eighths, 8) - 1]


def plot(values: Sequence[Any], width: int, height: int, form: str, style: str) -> list[Text]:
    """A curve with its highest value at its top right and its lowest at its bottom
    right; no lines without a value.

    One line high, as a constant is: `low … high` behind it.
    """
    found = [v for v in map(known, values) if v is not None]
    if not found or height < 1:
        return []
    averaged = columns(found, max(1, width - 8))
    low, high = number(min(averaged), form), number(max(averaged), form)
    if height == 1 or _flat(min(averaged), max(averaged)):
        scale = f" {low}" if low == high else f" {low}…{high}"
        drawn = columns(found, width - len(scale))
        return [Text.assemble((curve(drawn)[0], style), (scale, LABEL))] if drawn else []
    margin = max(len(low), len(high)) + 1
    drawn = columns(found, width - margin)
    if not drawn:
        return []
    lines = curve(drawn, height)
    scales = [high, *[""] * (height - 2), low]
    return [
        Text.assemble((line, style), (f"{scale:>{margin}}", LABEL))
        for line, scale in zip(lines, scales, strict=True)
    ]


def stacked(segments: Sequence[Segment], width: int, styles: Sequence[str] = PALETTE) -> Text:
    """One bar of `width` cells: each segment begins with its letter and is as long
    as its share; `─`: what is free.
    """
    sizes = [max(0.0, known(size) or 0.0) for _, _, size in segments]
    total = sum(sizes)
    bar = Text()
    if not 0 < total < float("inf") or width < 1:
        return bar.append("─" * max(0, width), LABEL)
    for (letter, _, _), cells, style in zip(
        segments, _cells([s / total for s in sizes], width), styles, strict=False
    ):
        bar.append((letter + ("─" if letter == "─" else "━") * cells)[:cells], style)
    return bar


def _cells(shares: Sequence[float], width: int) -> list[int]:
    """Whole cells by share: what is left over goes to the largest remainders; what is
    there at all gets one if it can.
    """
    exact = [share * width for share in shares]
    cells = [max(int(x), 1 if x > 0.25 else 0) for x in exact]
    while (spare := width - sum(cells)) != 0:
        side = 1 if spare > 0 else -1
        most = max(range(len(cells)), key=lambda i: (side * (exact[i] - cells[i]), exact[i]))
        cells[most] += side
    return cells


def legend(segments: Sequence[Segment], form: str = ".0%", styles: Sequence[str] = PALETTE) -> list[Text]:
    """`R rollout 62%` each; sizes are written by `form`, as shares where it is a percentage."""
    total = sum(max(0.0, known(size) or 0.0) for _, _, size in segments) or 1.0
    share = form.endswith("%")
    return [
        Text.assemble(
            (letter, style),
            (f" {words} ", LABEL),
            number(size / total if share else size, form, 3 if share else 2),
        )
        for (letter, words, size), style in zip(segments, styles, strict=False)
        if known(size) is not None
    ]


def meter(value: Any, full: float, width: int, style: str, mark: float | None = None) -> Text:
    """A bar of `value` out of `full`, `┼` where `mark` is; one that goes past its end says so by an arrow."""
    found = known(value)
    if found is None or width < 1:
        return Text("")
    filled = max(0, min(width, round(found / full * width)))
    cells = list("━" * filled + "─" * (width - filled))
    if found > full:
        cells[-1] = "▶"
    if mark is not None and 0 <= (at := round(mark / full * width)) < width:
        cells[at] = "┿" if at < filled else "┼"
    return Text().append("".join(cells[:filled]), style).append("".join(cells[filled:]), LABEL)


def progress(done: float, of: float, width: int, style: str) -> Text:
    """How far: `━━━━╸────`."""
    share = min(1.0, max(0.0, done / of)) if of > 0 else 0.0
    filled = int(share * width)
    bar = Text().append("━" * filled, style)
    rest = width - filled
    return bar.append("╸" + "─" * (rest - 1) if share > 0 and rest else "─" * rest, LABEL)
