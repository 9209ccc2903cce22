"""`python -m tests.attack.fuzz`: hostile input of every kind, drawn from a seed, and what came of it.

    python -m tests.attack.fuzz                                 # all classes, as many cases as `make fuzz`
    python -m tests.attack.fuzz --classes data data=50 --seed 7 # one class, so many cases, from another seed
    python -m tests.attack.fuzz --class recipes --case 1234     # one case again, and everything of it

A line a class on stdout, a line a fault on stderr, all of it in --json. Exit 1: there was a fault.
"""

import argparse
import sys
from pathlib import Path

from . import runner

CLASSES = {  # name: module, and cases of a whole run
    "recipes": (".recipes", 5000),
    "data": (".data", 500),
    "folders": (".folders", 1000),
    "answers": (".answers", 20_000),
    "programs": (".programs", 200),
    "replies": (".replies", 60),
    "terminal": (".screens", 500),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("counts", nargs="*", metavar="CLASS=N", help=f"of {', '.join(CLASSES)}")
    parser.add_argument("--classes", default="", help="only these, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--json", type=Path, default=Path("build/fuzz.json"))
    parser.add_argument("--class", dest="repeated", choices=CLASSES, help="with --case: show one case")
    parser.add_argument("--case", type=int)
    args = parser.parse_args(argv)
    if args.repeated and args.case is not None:
        module, _ = CLASSES[args.repeated]
        return bool(runner.repeat(args.repeated, module, args.case, args.seed).faults)
    reports = []
    for name, count in wanted(parser, args).items():
        cases = range(args.first, args.first + count)
        reports.append(runner.run_class(name, CLASSES[name][0], cases, args.seed))
        print(reports[-1], flush=True)
        runner.write(reports, args.seed, args.json)
        if runner.stopped:
            return 130
    return int(any(report.faults for report in reports))


def wanted(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, int]:
    """How many cases of each class."""
    counts = {name: count for name, (_, count) in CLASSES.items()}
    for word in args.counts:
        name, _, count = word.lower().partition("=")
        if name not in counts or not count.isdecimal():
            parser.error(f"{word!r} is no CLASS=N with a class of {', '.join(counts)}")
        counts[name] = int(count)
    chosen = [name for name in args.classes.split(",") if name] or list(counts)
    if not set(chosen) <= set(counts):
        parser.error(f"--classes takes {', '.join(counts)}")
    return {name: counts[name] for name in chosen}


if __name__ == "__main__":
    runner.stop_gently()
    sys.exit(main())
