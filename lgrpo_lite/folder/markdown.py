"""Text of files that others wrote, as Markdown in which it is text and nothing else."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lgrpo_lite.monitor.text import visible
from lgrpo_lite.monitor.theme import clean

INERT = {"<": "&lt;", "](": "]&#40;", "][": "]&#91;", "]:": "]&#58;"}  # what would make tags and links
TICKS = re.compile("`+")
MOST = 4000  # characters of a block of code


def inline(value: Any) -> str:
    """Whatever a file held, as one line of Markdown that is no tag, no link and no picture."""
    text = clean(value, 600).strip()
    for mark, written in INERT.items():
        text = text.replace(mark, written)
    return text


def cell(value: Any) -> str:
    """The same in a table."""
    return inline(value).replace("|", "&#124;")  # `\\|` ends a cell where the text had a backslash itself


def table(head: Iterable[str], rows: Iterable[Iterable[str]], ruler: str) -> Iterator[str]:
    """The lines of a table; cells are Markdown already."""
    yield f"| {' | '.join(head)} |"
    yield ruler
    for row in rows:
        yield f"| {' | '.join(row)} |"


def fenced(text: str, language: str = "") -> Iterator[str]:
    """The lines of a block of code that nothing in `text` can end; of a long text the beginning."""
    shown = visible(text[:MOST])
    if len(text) > MOST:
        shown += f"\n[… {len(text) - MOST:,} characters more]"
    ticks = max(map(len, TICKS.findall(shown)), default=0)
    fence = "`" * max(3, ticks + 1)
    yield f"{fence}{language}"
    yield shown
    yield fence


def part(heading: str, lines_of: Callable[[], Iterable[str]], told: Callable[[Exception], str]) -> list[str]:
    """A part of a page under its heading; nothing where it has nothing to say. One that cannot be made says
    so, in the words of `told`, and the log has all of it.
    """
    try:
        lines = list(lines_of())
    except Exception as fault:
        logging.exception("a part of a page could not be made")
        lines = [f"This part could not be made{told(fault)}"]
    if not lines:
        return []
    above = [f"## {heading}", ""] if heading else []
    return [*above, *lines, ""]


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
