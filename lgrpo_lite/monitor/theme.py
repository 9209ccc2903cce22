"""How the view looks: colours that a sign or a letter doubles, numbers that hold their place,
text cut by terminal cells.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.cells import cell_len, get_character_cell_size
from rich.text import Text

from lgrpo_lite.monitor.alarms import level
from lgrpo_lite.monitor.numbers import figure, finite
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.text import duration, visible

LABEL, MAIN, LAMBDA, CALM = "dim", "bold cyan", "bold magenta", "cyan"
GOOD, WARN, BAD = "green", "yellow", "bold red"
VERDICTS = {"good": ("✓", GOOD), "warn": ("!", WARN), "bad": ("✗", BAD)}
# of segments, each of which has its letter too
PALETTE = ("cyan", "green", "magenta", "yellow", "blue", "bright_black", "red")
LABELS = 12  # cells of the first column of a panel
ELLIPSIS = "…"
_ODD = re.compile("[\ufe00-\ufe0f]")  # variation selectors: terminals disagree on the width they give
# marks of no width on one character; more are dropped, since they would cost nothing and hide everything
_STACKED = 2

Part = str | tuple[str, str]


def clean(value: Any, most: int = 2000) -> str:
    """Whatever a file held, as one line that cannot move a cursor; of a long one the beginning."""
    text = value if isinstance(value, str) else str(value)
    text = visible(text[:most]).replace("\n", " ")
    return text if text.isascii() else _narrow(text)


def _narrow(text: str) -> str:
    kept = []
    stacked = 0
    for character in _ODD.sub("", text):
        stacked = 0 if get_character_cell_size(character) else stacked + 1
        if stacked <= _STACKED:
            kept.append(character)
    return "".join(kept)


def fit(text: Text, width: int) -> Text:
    """Exactly `width` cells: cut with an ellipsis, or filled up with blanks."""
    plain = text.plain
    if len(plain) > width or not plain.isascii():
        if cell_len(plain) > width:
            end = place(plain, max(0, width - 1))
            text = text[:end]
            text.append(ELLIPSIS[:width])
        plain = text.plain
    spare = width - cell_len(plain)
    return text + Text(" " * spare) if spare > 0 else text


def cut(text: str, width: int) -> str:
    """At most `width` cells, the last of them an ellipsis where something was left out."""
    if cell_len(text) <= width:
        return text
    end = place(text, max(0, width - 1))
    return text[:end] + ELLIPSIS[: max(0, width)]


def place(text: str, width: int) -> int:
    """How many characters of a text fit into that many cells."""
    used = 0
    end = 0
    for character in text:
        used += max(get_character_cell_size(character), 0)
        if used > width:
            break
        end += 1
    while end and cell_len(text[:end]) > width:  # clusters that count for more than their characters
        end -= 1
    return end


def wrapped(text: str, width: int, most: int) -> list[str]:
    """At most `most` lines, broken at blanks where there are any; of a longer text the beginning and the
    last words stay, and an ellipsis between them.
    """
    words = text.split(" ")
    lines = _broken(words, width)
    if len(lines) <= most:
        return [cut(line, width) for line in lines]
    first = [cut(line, width) for line in lines[: most - 1]]
    beginning = _broken(words, width // 2)[0] if most == 1 else ""
    last = f"{cut(beginning, width // 2)} {ELLIPSIS}" if beginning else ELLIPSIS
    room = width - cell_len(last)
    end = ""
    for word in reversed(words):
        if cell_len(end) + 1 + cell_len(word) > room:
            break
        end = f" {word}{end}"
    return [*first, cut(last + (end or f" {_ending(words[-1], room - 1)}"), width)]


def _broken(words: Iterable[str], width: int) -> list[str]:
    """Words on lines, as many as fit on each; one that is longer than a line has one of its own."""
    lines: list[str] = []
    for word in words:
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _ending(word: str, width: int) -> str:
    """The last characters of a word that fit into that many cells."""
    while word and cell_len(word) > max(0, width):
        word = word[1:]
    return word


def ratio(part: Any, whole: Any) -> float | None:
    """part / whole; None where that is no number."""
    part, whole = finite(part), finite(whole)
    if part is None or not whole:
        return None
    return finite(part / whole)


def of(run: RunView, name: str) -> float | None:
    """A number that a view computes from its records; None where foreign ones make it impossible."""
    try:
        return finite(getattr(run, name))
    except (ValueError, OverflowError, TypeError):
        return None


def signed(value: Any, form: str = ".4f", width: int = 0) -> str:
    return figure(value, f"+{form}", width)


def amount(value: Any, width: int = 0) -> str:
    """Counts: 812, 12,345, 3.4M."""
    count = finite(value)
    if count is None:
        return "–".rjust(width)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}".rjust(width)
    return f"{count:,.0f}".rjust(width)


def size(value: Any) -> str:
    """Bytes: 812 MiB, 3.4 GiB."""
    count = finite(value)
    if count is None:
        return "–"
    if abs(count) >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    digits = 1 if abs(count) < 2**20 * 10 else 0
    return f"{count / 2**20:.{digits}f} MiB"


def seconds(value: Any) -> str:
    """20µs, 1.4ms, 0.41s, 41.2s, 3m20s."""
    time = finite(value)
    if time is None or time < 0 or time > 1e9:
        return "–"
    if time < 1e-4:
        return f"{time * 1e6:.0f}µs"
    if time < 0.1:
        return f"{time * 1e3:.1f}ms"
    if time < 10:
        return f"{time:.2f}s"
    if time < 60:
        return f"{time:.1f}s"
    return duration(time)


def row(label: str, *parts: Part | Text, labels: int = LABELS) -> Text:
    """A line of a panel: what it is, and its figures."""
    return Text.assemble((f"{label:<{labels}}", LABEL), *parts)


def verdict(level: str) -> tuple[str, str]:
    """The sign of good, warn or bad with its colour, a blank before it; two blanks for none of them."""
    sign, style = VERDICTS.get(level, (" ", LABEL))
    return f" {sign}", style


def judged(name: str, value: Any, form: str, width: int = 8) -> Text:
    """A figure with the sign of what is to be thought of it."""
    return Text.assemble(figure(value, form, width), verdict(level(name, value)))


def flow(items: Iterable[Text], width: int, most: int, gap: int = 2) -> list[Text]:
    """Items one after the other, on at most `most` lines; an item that no line has room for is left out,
    whole.
    """
    lines: list[Text] = []
    blanks = Text(" " * gap)
    for item in items:
        if lines and lines[-1].cell_len + gap + item.cell_len <= width:
            lines[-1] = lines[-1] + blanks + item
        elif len(lines) < most and item.cell_len <= width:
            lines.append(item.copy())
    return lines


def chosen(height: int, ranked: Sequence[tuple[int, Text]]) -> list[Text]:
    """The `height` lines of lowest rank, in the order given."""
    by_rank = sorted(range(len(ranked)), key=lambda i: ranked[i][0])
    kept = sorted(by_rank[: max(0, height)])
    return [ranked[i][1] for i in kept]
