"""What every command says in the same way: its shared options, the JSON envelope, how wide tables are."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

SCHEMA = 1  # of the envelope; what is in it may grow, and what is there stays
WIDTH = 120  # columns where no terminal says how many there are
RUNS = Path("runs")


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

    for line in told(code_of(recipe)):
        print(line, file=sys.stderr)


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
    print(json.dumps(finite(envelope | more), allow_nan=False))


def console(out: TextIO | None = None, **more: Any):
    """rich's console on stdout, or on `out`; as wide as the terminal, or WIDTH where there is none."""
    from rich.console import Console

    file = sys.stdout if out is None else out
    width = None if file.isatty() else WIDTH
    return Console(file=file, width=width, **more)


def summary(documented: Any) -> str:
    """The first paragraph of a docstring, as one line."""
    text = (documented.__doc__ or "").strip()
    paragraph, _, _ = text.partition("\n\n")
    return " ".join(paragraph.split())
