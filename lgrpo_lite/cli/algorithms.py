"""`lgrpo-lite algorithms`: every row of the table and when to use it; of one its formula and what it sets."""

import argparse
import inspect
import json

from lgrpo_lite.cli.terminal.output import add_json, console, print_json, say, summary
from lgrpo_lite.errors import ConfigError, nearest


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite algorithms [NAME …] [--json]"
    parser.add_argument(
        "words", nargs="*", metavar="NAME", help="one of them: its formula, its limit case, what it sets"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """A name that is no row: what it is called here, or exit 2 with the nearest one."""
    from lgrpo_lite.objective.named import NAMED, when

    if not args.words:
        return _list(args)
    said: list[str] = []
    for name in args.words:
        said += _told(name)
    if args.json:
        rows = {name: {"when": when(name), "sets": _changed(name)} for name in args.words if name in NAMED}
        print_json("algorithms", rows, [line for line in said if line])
    else:
        say(*said[:-1])
    return 0


def _list(args: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from lgrpo_lite.objective.named import NAMED, when

    if args.json:
        rows = [{"use": name, "when": when(name), "what": summary(NAMED[name])} for name in NAMED]
        print_json("algorithms", rows)
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("algorithm.use=", no_wrap=True, header_style="bold")
    table.add_column("use this when", overflow="fold", header_style="bold")
    for name in NAMED:
        table.add_row(name, Text(when(name).removeprefix("Use this when ")))
    console().print(table)
    say("`lgrpo-lite algorithms NAME` has the formula; docs/algorithms.md how they combine")
    return 0


def _told(name: str) -> list[str]:
    """What is said of a name, with an empty line behind it."""
    from lgrpo_lite.cli.config import explained
    from lgrpo_lite.objective.named import NAMED

    if name in NAMED:
        sets = [f"sets algorithm.{key}={value}" for key, value in _changed(name).items()]
        return [*inspect.cleandoc(NAMED[name].__doc__ or "").split("\n"), "", *sets, ""]
    sentences = explained(name)
    if not sentences:
        what = f"unknown algorithm {name!r}{nearest(name, NAMED)}"
        raise ConfigError(what, where="command line", fix="`lgrpo-lite algorithms` lists them")
    return [*sentences, ""]


def _changed(name: str) -> dict[str, str]:
    """What a row sets away from the defaults, by dotted key, as it would be typed."""
    from lgrpo_lite.objective.named import NAMED
    from lgrpo_lite.recipe.marks import flat

    row = NAMED[name]().model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(row).items()}
