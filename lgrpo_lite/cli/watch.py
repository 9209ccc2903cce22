"""`lgrpo-lite watch RUN`: the live view on a run's files. Reads only; the run may be live, finished or
crashed.
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_runs, console, say
from lgrpo_lite.errors import ConfigError

PICTURE = (120, 40)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite watch [RUN] [options]"
    add_run(parser)
    add_runs(parser)
    ui = "live: the view; plain: a line a step; auto: live on a terminal (default)"
    parser.add_argument("--ui", choices=("auto", "live", "plain"), default="auto", help=ui)
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="write the view as a picture instead of showing it"
    )
    size = f"columns and rows of the picture (default: {PICTURE[0]}x{PICTURE[1]})"
    parser.add_argument("--size", default=f"{PICTURE[0]}x{PICTURE[1]}", metavar="WxH", help=size)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.cli.terminal.live import REFRESH_SECONDS, follow, last_words
    from lgrpo_lite.cli.terminal.screen import Screen, can_draw
    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.view import live, result_table

    path = run_named(args)
    if args.svg:
        return _picture(path, args)
    screen, tail = console(sys.stderr), Tail(path)
    view = tail.refresh()
    if args.ui == "live" or (args.ui == "auto" and can_draw()):
        if not view.health.ended:
            view = follow(path, screen, lambda: bool(time.sleep(REFRESH_SECONDS)))
        screen.print(live(view, screen.width, screen.height - 2))
    else:
        with Screen(path, "plain"):
            while not view.health.ended:
                time.sleep(REFRESH_SECONDS)
                view = tail.refresh()
    if words := last_words(view):
        say(*words, file=sys.stderr)
    if view.evals and sys.stdout.isatty():
        console().print(result_table(view))
    return 0


def _picture(path: Path, args: argparse.Namespace) -> int:
    from lgrpo_lite.monitor.tail import Tail
    from lgrpo_lite.monitor.theme import clean
    from lgrpo_lite.monitor.view import live

    size = re.fullmatch(r"(\d{2,3})x(\d{1,3})", args.size)
    if size is None:
        raise ConfigError(
            f"not a size: {args.size!r}",
            where="command line, --size",
            fix="columns x rows, as in --size 120x40",
        )
    width, height = map(int, size.groups())
    view = Tail(path).refresh()
    screen = console(
        io.StringIO(), record=True, width=width, height=height, force_terminal=True, color_system="truecolor"
    )
    screen.print(live(view, width, height))
    picture = screen.export_svg(title=f"lgrpo-lite watch {clean(path.name)}")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)  # fetch no fonts
    try:
        args.svg.write_text(picture, "utf-8")
    except OSError as error:
        what = f"cannot write: {error.strerror}"
        raise ConfigError(what, where=str(args.svg), fix="choose another --svg FILE") from None
    say(args.svg)
    return 0


def add_run(parser: argparse.ArgumentParser) -> None:
    """The one run that a command looks at."""
    what = "a run folder, or its name under --runs; live, ended or crashed (default: the newest under --runs)"
    parser.add_argument("words", nargs="*", metavar="RUN", help=what)


def run_named(args: argparse.Namespace) -> Path:
    """The run of the command line, or the newest. None there, or a second word: ConfigError."""
    if len(args.words) > 1:
        fix = "name one run"
        raise ConfigError(f"unexpected word {args.words[1]!r}", where="command line", fix=fix)
    if args.words:
        return find_run(args.words[0], args.runs)
    known = _known(args.runs)
    if not known:
        fix = "start one: lgrpo-lite recipe tiny-math"
        raise ConfigError(f"no run in {args.runs}", where="command line, --runs", fix=fix)
    return known[-1]


def find_run(name: str, runs: Path) -> Path:
    """A run folder by path or by name; unknown: ConfigError that names the newest."""
    for path in (Path(name), runs / name):
        if (path / "STATUS.json").is_file():
            return path
    known = _known(runs)
    fix = f"the newest run here is {known[-1]}" if known else "start one: lgrpo-lite recipe tiny-math"
    raise ConfigError(f"no run {name!r}", where="command line", fix=fix)


def _known(runs: Path) -> list[Path]:
    """All of them, the newest last."""
    known = [file.parent for file in runs.glob("*/STATUS.json")]
    return sorted(known, key=lambda folder: folder.stat().st_mtime)
