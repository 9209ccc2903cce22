"""What panels draw with: curves, stacked bars, bars with a mark. All legible without colour."""

import itertools
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.text import BLOCKS
from lgrpo_lite.monitor.theme import LABEL, PALETTE

Segment = tuple[str, str, float]  # letter, words, size


def columns(values: Sequence[float], width: int) -> list[float]:
    """A series as `width` numbers: averaged where it is longer, each value several times where it is
    shorter.
    """
    n = len(values)
    if not n or width < 1:
        return []
    if n <= width:
        return [values[i * n // width] for i in range(width)]
    edges = [i * n // width for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def curve(values: Sequence[float], height: int = 1) -> list[str]:
    """One column a value, `height` lines, scaled to the values' own range; a constant runs through the
    middle.
    """
    low = min(values)
    high = max(values)
    levels = 8 * height
    if _flat(low, high):
        filled = [levels // 2] * len(values)
    else:
        span = high - low
        filled = [1 + int((value - low) / span * (levels - 1)) for value in values]
    lines = []
    for line in reversed(range(height)):
        blocks = [_block(level - 8 * line) for level in filled]
        lines.append("".join(blocks))
    return lines


def _flat(low: float, high: float) -> bool:
    """No difference, or one that is rounding alone."""
    return not high - low > 1e-9 * max(abs(low), abs(high)) or high - low == float("inf")


def _block(eighths: int) -> str:
    return " " if eighths <= 0 else BLOCKS[min(eighths, 8) - 1]


def plot(values: Sequence[Any], width: int, height: int, form: str, style: str) -> list[Text]:
    """A curve with its highest value at its top right and its lowest at its bottom right; no lines without a
    value.

    One line high, as a constant is: `low … high` behind it.
    """
    series = [value for value in map(finite, values) if value is not None]
    if not series or height < 1:
        return []
    averaged = columns(series, max(1, width - 8))
    lowest = min(averaged)
    highest = max(averaged)
    low = figure(lowest, form)
    high = figure(highest, form)
    one_line = height == 1 or _flat(lowest, highest)
    scale = f" {low}" if low == high else f" {low}…{high}"
    margin = len(scale) if one_line else max(len(low), len(high)) + 1
    drawn = columns(series, width - margin)
    if not drawn:
        return []
    if one_line:
        return [Text.assemble((curve(drawn)[0], style), (scale, LABEL))]
    lines = curve(drawn, height)
    scales = [high, *[""] * (height - 2), low]
    return [
        Text.assemble((line, style), (f"{scale:>{margin}}", LABEL))
        for line, scale in zip(lines, scales, strict=True)
    ]


def stacked(segments: Sequence[Segment], width: int, styles: Sequence[str] = PALETTE) -> Text:
    """One bar of `width` cells: each segment begins with its letter and is as long as its share; `─`: what is
    free.
    """
    sizes = [max(0.0, finite(size) or 0.0) for _, _, size in segments]
    total = sum(sizes)
    bar = Text()
    if not 0 < total < float("inf") or width < 1:
        return bar.append("─" * max(0, width), LABEL)
    lengths = _cells([size / total for size in sizes], width)
    for (letter, _, _), length, style in zip(segments, lengths, styles, strict=False):
        rule = "─" if letter == "─" else "━"
        bar.append((letter + rule * length)[:length], style)
    return bar


def _cells(shares: Sequence[float], width: int) -> list[int]:
    """Whole cells by share: what is left over goes to the largest remainders; what is there at all gets one
    if it can.
    """
    exact = [share * width for share in shares]
    cells = [1 if 0.25 < length < 1 else int(length) for length in exact]
    spare = width - sum(cells)
    while spare:
        step = 1 if spare > 0 else -1
        most = max(range(len(cells)), key=lambda i: (step * (exact[i] - cells[i]), exact[i]))
        cells[most] += step
        spare -= step
    return cells


def legend(segments: Sequence[Segment], form: str = ".0%", styles: Sequence[str] = PALETTE) -> list[Text]:
    """`R rollout 62%` each; sizes are written by `form`, as shares where it is a percentage."""
    total = sum(max(0.0, finite(size) or 0.0) for _, _, size in segments) or 1.0
    share = form.endswith("%")
    keys = []
    for (letter, words, size), style in zip(segments, styles, strict=False):
        if finite(size) is not None:
            value = figure(size / total, form, 3) if share else figure(size, form, 2)
            keys.append(Text.assemble((letter, style), (f" {words} ", LABEL), value))
    return keys


def meter(value: Any, full: float, width: int, style: str, mark: float | None = None) -> Text:
    """A bar of `value` out of `full`, `┼` where `mark` is; one that goes past its end says so by an arrow."""
    value = finite(value)
    if value is None or width < 1:
        return Text("")
    filled = max(0, min(width, round(value / full * width)))
    cells = list("━" * filled + "─" * (width - filled))
    if value > full:
        cells[-1] = "▶"
    place = -1 if mark is None else round(mark / full * width)
    if 0 <= place < width:
        cells[place] = "┿" if place < filled else "┼"
    bar = "".join(cells[:filled])
    rest = "".join(cells[filled:])
    return Text().append(bar, style).append(rest, LABEL)


def progress(done: float, of: float, width: int, style: str) -> Text:
    """How far: `━━━━╸────`."""
    share = min(1.0, max(0.0, done / of)) if of > 0 else 0.0
    filled = int(share * width)
    rest = width - filled
    half = "╸" if share > 0 and rest else ""
    bar = Text().append("━" * filled, style)
    return bar.append(half + "─" * (rest - len(half)), LABEL)
