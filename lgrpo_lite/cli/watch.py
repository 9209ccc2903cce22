"""`lgrpo-lite watch RUN`: the live view on a run's files. Reads only; the run may be live, finished or crashed."""

import argparse
import io
import re
import sys
import time
from pathlib import Path

from lgrpo_lite.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite watch RUN [options]"
    parser.add_argument("words", nargs=1, metavar="RUN", help="a run folder, or its name under --runs")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default: runs)")
    parser.add_argument("--svg", type=Path, help="write the view as a picture instead of showing it")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lgrpo_lite.cli.screen import Screen
    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.view import live, result_table

    path = find_run(args.words[0], args.runs)
    view = Tail(path).refresh()
    if args.svg:
        console = Console(record=True, width=110, height=26, file=io.StringIO(), force_terminal=True)
        console.print(live(view, 110, 26))
        picture = console.export_svg(title=f"lgrpo-lite recipe {view.name}")
        args.svg.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), "utf-8")  # fetch no fonts
        print(args.svg)
        return 0
    with Screen(path, "auto"):
        while _alive(Tail(path).refresh()):
            time.sleep(1)
    if view.evals:
        Console(file=sys.stdout).print(result_table(Tail(path).refresh()))
    return 0


def find_run(name: str, runs: Path) -> Path:
    """A run folder by path or by name; unknown: ConfigError that names the newest."""
    for path in (Path(name), runs / name):
        if (path / "STATUS.json").is_file():
            return path
    known = sorted((p.parent for p in runs.glob("*/STATUS.json")), key=lambda p: p.stat().st_mtime)
    fix = f"the newest run here is {known[-1]}" if known else "start one: lgrpo-lite recipe tiny-math"
    raise ConfigError(f"no run {name!r}", where="command line", fix=fix)


def _alive(view) -> bool:
    import os

    try:
        os.kill(int(view.status.get("pid", -1)), 0)
    except (OSError, ValueError, TypeError):
        return False
    return view.status.get("state") not in ("done", "stopped", "failed") and view.status.get("pid", -1) > 0
