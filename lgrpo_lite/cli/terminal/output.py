"""The one place through which commands write to a terminal, and what they all say in the same way: shared
options, the JSON envelope, how wide tables are.

What is written quotes others: recipes, data, file names, replies of servers, completions. None of it is
trusted to be plain text, whatever it was read from: `say`, `console` and `overwrite` show it, and only this
program moves a cursor or sets a colour. tests/test_terminal.py holds that no other module prints.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from lgrpo_lite.monitor.text import visible

SCHEMA = 1  # of the envelope; what is in it may grow, and what is there stays
WIDTH = 120  # columns where no terminal says how many there are
RUNS = Path("runs")
CLEAR = "\r\x1b[K"  # the line the cursor stands in
RESTORE = "\x1b[?1049l\x1b[?25h"  # leave the alternate screen, show the cursor


def add_recipe(parser: argparse.ArgumentParser, metavar: str) -> None:
    help_ = "a recipe, then settings to change as key=value"
    parser.add_argument("words", nargs="+", metavar=metavar, help=help_)


def add_import(parser: argparse.ArgumentParser, of: str = "") -> None:
    """`of`: which parts of the command read it, where not all do."""
    help_ = "run the Python files that the recipe names, as training does, to check what they hold"
    parser.add_argument("--import", dest="imports", action="store_true", help=f"{of}{help_}")


def tell_code(recipe: Any) -> None:
    """On stderr, before it happens: which files a command executes because a recipe names them."""
    from lgrpo_lite.recipe.code import code_of, told

    say(*told(code_of(recipe)), file=sys.stderr)


def add_json(parser: argparse.ArgumentParser, help_: str = "print the result as one JSON object") -> None:
    parser.add_argument("--json", action="store_true", help=help_)


def add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"where runs are kept (default: {RUNS})")


def print_json(
    command: str, result: Any, warnings: Iterable[str | None] = (), *, ok: bool = True, **more: Any
) -> None:
    """One line on stdout: {schema, ok, command, result, warnings}. NaN and infinities are null."""
    from lgrpo_lite.machine.disk import finite

    envelope = {"schema": SCHEMA, "ok": ok, "command": command, "result": result, "warnings": list(warnings)}
    say(json.dumps(finite(envelope | more), allow_nan=False))


def say(*lines: Any, file: TextIO | None = None) -> None:
    """Each as one line on stdout, or on `file`. A line break inside one is shown, not made: a line that
    quotes others cannot be two, of which the second looks like ours.
    """
    out = sys.stdout if file is None else file
    for line in lines:
        print(visible(str(line)).replace("\n", "\\n"), file=out)


def overwrite(out: TextIO, text: str) -> None:
    """The line the cursor stands in becomes `text`, as much of it as there is room for."""
    width = max(1, shutil.get_terminal_size().columns - 1)
    out.write(CLEAR + visible(text).replace("\n", " ")[:width])
    out.flush()


def restore(out: TextIO) -> None:
    """The ordinary screen and its cursor, after a view that could not put them back itself."""
    out.write(RESTORE)
    out.flush()


def console(out: TextIO | None = None, **more: Any):
    """rich's console on stdout, or on `out`; as wide as the terminal, or WIDTH where there is none. What is
    printed on it is text: no markup, no emoji codes, no control sequences but rich's own.
    """
    from lgrpo_lite.cli.terminal.plain import PlainText

    file = sys.stdout if out is None else out
    width = None if file.isatty() else WIDTH
    return PlainText(**({"file": file, "width": width} | more))


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors quote the command line."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message).replace("\n", "\\n"))


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    text = (documented.__doc__ or "").strip()
    paragraph, _, _ = text.partition("\n\n")
    return " ".join(paragraph.split())
