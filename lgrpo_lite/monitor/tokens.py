"""The tokens of an answer as text that shows their credit: by colour, and without colour by a strip of marks
below it.

Credit is advantage × weight: above zero the update makes the token more likely, below zero less.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.theme import BAD, ELLIPSIS, GOOD, LABEL, clean, place

RAISED, LOWERED = "▁▃▅▇", "·░▒▓"  # weak to strong: bars for what is raised, shades for what is lowered
GREENS = ("on #0d2818", "on #124427", "on #1a6637", "on #228b49")
REDS = ("on #2f1214", "on #541a1d", "on #7f2427", "on #ab2f33")
EVEN = 0.05  # tokens whose credit differs by less than this share of the largest are credited alike
READ = 4096  # tokens of an answer that are looked at, at most
PART = 200  # characters of a token that are drawn at once


@dataclass(frozen=True, slots=True)
class Tokens:
    """An answer as pieces with their credit; `credit` empty: not trained on, or not known."""

    pieces: tuple[str, ...]
    credit: tuple[float, ...]
    total: int | None  # tokens of the whole answer, None: unknown (then a piece is a character)

    @property
    def strongest(self) -> float:
        """The credit of largest size."""
        return max(self.credit, key=abs, default=0.0)

    @property
    def even(self) -> bool:
        """Whether every token has the same credit, so that one number says it all."""
        return not self.credit or max(self.credit) - min(self.credit) <= EVEN * abs(self.strongest)


def tokens_of(row: dict[str, Any]) -> Tokens:
    """From a row of a completions file; without pieces that can be read, the plain text by characters."""
    pieces = row.get("pieces")
    credit = row.get("credit")
    if not isinstance(pieces, list) or not pieces or not all(isinstance(p, str) for p in pieces[:READ]):
        text = str(row.get("completion", ""))
        return Tokens(tuple(text[: 4 * READ]), (), None)
    shown = pieces[:READ]
    values = credit[: len(shown)] if isinstance(credit, list) else []
    return Tokens(tuple(shown), tuple(finite(value) or 0.0 for value in values), len(pieces))


def drawn(
    tokens: Tokens, width: int, lines: int, scale: float, *, length: int = 0, marked: bool = False
) -> list[Text]:
    """The beginning of an answer in at most `lines` lines of `width` cells, the rest counted:
    `… (+412 tokens)`.

    `scale`: the credit drawn strongest. `length`: characters of the whole text where pieces are characters.
    `marked`: every second line is the strip of marks of the line above it.
    """
    rows = max(1, lines // 2) if marked else lines
    if rows < 1 or width < 1:
        return []
    texts, strips, used = _filled(tokens, width, rows, scale)
    total, what = (length, "characters") if tokens.total is None else (tokens.total, "tokens")
    if total > used:
        _close(texts, strips, width, total - used, what)
    if not marked:
        return texts
    pairs = itertools.chain.from_iterable(zip(texts, strips, strict=True))
    return [*pairs][: max(lines, 1)]


def whole(tokens: Tokens, width: int, scale: float) -> Iterator[Text]:
    """All of an answer, a line of its own as a line; below each the strip of marks, where credit differs."""
    for pieces, credit in _lines(tokens):
        part = Tokens(pieces, credit, len(pieces))
        most = 2 * sum(map(len, pieces)) + 2  # as many lines as a character each would take, with marks
        lines = drawn(part, width, most, scale, marked=not tokens.even)
        for i, line in enumerate(lines):
            line.rstrip()
            if i % 2 == 0 or line.plain or tokens.even:  # a strip without a mark is no line
                yield Text.assemble(line)


def _lines(tokens: Tokens) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Pieces and their credit, line by line; a piece that holds a line break is divided there."""
    pieces: list[str] = []
    credit: list[float] = []
    for i, piece in enumerate(tokens.pieces):
        own = tokens.credit[i] if i < len(tokens.credit) else 0.0
        for n, part in enumerate(piece.split("\n")):
            if n:
                yield tuple(pieces), tuple(credit)
                pieces, credit = [], []
            for begin in range(0, len(part), PART):
                pieces.append(part[begin : begin + PART])
                credit.append(own)
    yield tuple(pieces), tuple(credit)


def _filled(tokens: Tokens, width: int, rows: int, scale: float) -> tuple[list[Text], list[Text], int]:
    """Lines, their strips, and how many pieces they show whole."""
    texts = [Text()]
    strips = [Text()]
    room = width
    for used, (piece, level) in enumerate(_levels(tokens, scale)):
        style, mark = _style(level)
        rest = clean(piece.replace("\n", "⏎"), 400)
        while rest:
            taken = place(rest, room)
            if not taken and room == width:
                taken = 1  # a character that is wider than the line; the frame cuts it
            if taken:
                cells = cell_len(rest[:taken])
                texts[-1].append(rest[:taken], style)
                strips[-1].append(mark * cells, GOOD if level > 0 else BAD)
                rest, room = rest[taken:], room - cells
            if rest:
                if len(texts) == rows:
                    return texts, strips, used
                texts.append(Text())
                strips.append(Text())
                room = width
    return texts, strips, len(tokens.pieces)


def _levels(tokens: Tokens, scale: float) -> Iterator[tuple[str, int]]:
    """Pieces with 1 to 4 for a raised token, -1 to -4 for a lowered one, 0 for none."""
    for i, piece in enumerate(tokens.pieces):
        credit = tokens.credit[i] if i < len(tokens.credit) else 0.0
        strength = 0
        if credit and scale > 0:
            share = min(1.0, abs(credit) / scale)
            strength = min(4, 1 + int(4 * share))
        yield piece, strength if credit > 0 else -strength


def _style(level: int) -> tuple[str, str]:
    if level > 0:
        return f"white {GREENS[level - 1]}", RAISED[level - 1]
    if level < 0:
        return f"white {REDS[-level - 1]}", LOWERED[-level - 1]
    return "", " "


def _close(texts: list[Text], strips: list[Text], width: int, left: int, what: str) -> None:
    """End the last line with what was left out."""
    words = f"{ELLIPSIS} (+{left:,} {what})"
    if len(words) > width:
        words = ELLIPSIS
    while texts[-1].cell_len + len(words) > width and len(texts[-1]):
        texts[-1].right_crop(1)
    strips[-1].truncate(texts[-1].cell_len)
    texts[-1].append(words, LABEL)


def stamp(tokens: Tokens) -> tuple[str, str]:
    """One number for an answer: `▲ +0.84 on every token`, `▼ -0.31 at most`, or that it was not trained
    on.
    """
    if not tokens.credit:
        return ("credit unknown" if tokens.total is None else "not trained on"), LABEL
    strongest = tokens.strongest
    if not strongest:
        return "· no credit", LABEL
    words = f"{strongest:+.3g} {'on every token' if tokens.even else 'at most'}"
    return (f"▲ {words}", GOOD) if strongest > 0 else (f"▼ {words}", BAD)


def scales_of(shown: Sequence[Tokens]) -> list[float]:
    """The credit that is drawn strongest, for each of several answers that are seen together.

    Where an answer's tokens differ, its own largest, so that it shows where the credit falls; where they do
    not, the largest of all such answers, so that it shows which answer counts more.
    """
    largest = max((abs(tokens.strongest) for tokens in shown if tokens.even), default=0.0)
    return [largest if tokens.even else abs(tokens.strongest) for tokens in shown]
