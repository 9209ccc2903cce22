"""`lgrpo-lite compare`: training curves of runs side by side; two evaluations
problem by problem. Needs no model.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json
from lgrpo_lite.errors import ConfigError

EPILOG = """what is compared:
  RUN RUN …     training curves of two or more runs (or names under --runs). Of exactly two, also their newest
                evaluations by `lgrpo-lite eval`, where both have one of the same problems
  A B           two evaluations, result folders of `lgrpo-lite eval`, problem by problem; B is set against A.
                A run beside a result folder stands for its newest evaluation of the same problems"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite compare RUN RUN … [options]\n       lgrpo-lite compare A B [options]"
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "words", nargs="+", metavar="A B", help="runs, or result folders of `lgrpo-lite eval`"
    )
    add_runs(parser)
    files = "write curves.json, .png and .svg of runs, compare.json, .png and .svg of evaluations there"
    parser.add_argument("--out", type=Path, metavar="DIR", help=files)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if len(args.words) < 2:
        fix = "lgrpo-lite compare RUN RUN …, or compare A B with result folders of `lgrpo-lite eval`"
        raise ConfigError("compare takes two evaluations, or two or more runs", where="command line", fix=fix)
    results = [(Path(word) / "about.json").is_file() for word in args.words]
    if any(results) and len(results) != 2:
        fix = "name two of them, or runs alone"
        raise ConfigError("compare takes two evaluations, no more", where="command line", fix=fix)
    if any(results):
        found, warnings = _evaluations(args)
        show = _show
    else:
        from lgrpo_lite.cli.terminal import curves

        found, warnings = _runs(args)
        show = curves.show
    if args.json:
        print_json("compare", found, warnings)
        return 0
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    show(found)
    if (paired := found.get("evaluations")) is not None:
        print()
        _show(paired)
    for file in found.get("files", []):
        print(file)
    return 0


def _evaluations(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Two evaluations as JSON, and warnings."""
    from lgrpo_lite.evaluation.paired import compare, read_side

    a, b = (read_side(path) for path in _folders(args.words[0], args.words[1], args.runs))
    result = compare(a, b)
    found, warnings = result.to_json(), list(result.warnings)
    if args.out is not None:
        found["files"], told = _write(found, a, b, args.out)
        warnings += told
    return found, warnings


def _runs(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Training curves as JSON, under `evaluations` what `_evaluations` says of two that
    have one in common, and warnings.
    """
    from lgrpo_lite.cli.terminal import curves
    from lgrpo_lite.cli.watch import find_run

    paths = [find_run(word, args.runs) for word in args.words]
    if len({path.resolve() for path in paths}) < len(paths):
        fix = (
            "name each run once; of one run, compare two result folders, e.g. RUN/evals/…-base-… and"
            " RUN/evals/…-step-000100-…"
        )
        raise ConfigError("a run and itself", where="command line", fix=fix)
    found, warnings = curves.compared(paths, args.out, as_json=args.json)
    found["evaluations"] = None
    if len(paths) == 2 and all(any(path.glob("evals/*/result.json")) for path in paths):
        try:
            paired, told = _evaluations(args)
        except ConfigError as error:
            found["no_evaluations"] = error.what
            return found, warnings
        except (ValueError, KeyError, TypeError, OSError):
            found["no_evaluations"] = "a result.json of theirs cannot be read"
            return found, warnings
        found["files"] = [*found.get("files", []), *paired.pop("files", [])]
        found["evaluations"], warnings = paired, list(dict.fromkeys([*warnings, *told]))
    return found, warnings


def _folders(first: str, second: str, runs: Path) -> tuple[Path, Path]:
    """Result folders of the two; a run stands for its newest evaluation of the other's problems."""
    from lgrpo_lite.cli.watch import find_run
    from lgrpo_lite.evaluation.paired import newest, read_side

    given = [Path(word) if (Path(word) / "about.json").is_file() else None for word in (first, second)]
    if given[0] and given[1]:
        return given[0], given[1]
    known = given[0] or given[1] or newest(find_run(first, runs))
    about = read_side(known).about
    asked = about["suite"], about["problems_hash"]
    one, other = (
        path or newest(find_run(word, runs), *asked)
        for path, word in zip(given, (first, second), strict=True)
    )
    return one, other


def _write(found: dict[str, Any], a, b, out: Path) -> tuple[list[str], list[str]]:
    """The comparison as files: their paths, and what could not be written."""
    from lgrpo_lite.monitor import plots

    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "compare.json"]
        files[0].write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error.strerror}", where=str(out), fix="choose another --out"
        ) from None
    if not plots.available():
        return [str(file) for file in files], [plots.MISSING]
    own = [s.base_logp_mean for p in a.problems for s in p.samples if s.base_logp_mean is not None]
    right = [
        s.base_logp_mean for p in b.problems for s in p.samples if s.right and s.base_logp_mean is not None
    ]
    return [str(file) for file in (*files, *plots.plot_comparison(found, (own, right), out))], []


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    screen = console(highlight=False)
    table = Table(title=f"{found['suite']}, {found['problems']} problems", title_justify="left")
    for column in ("", "A", "B", "B - A"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("who", found["a"], found["b"], "")
    table.add_row("samples a problem", *map(str, found["k"]), "")
    d = found["difference"]
    change = f"{d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
    table.add_row("avg@k  a sample is right", f"{found['avg'][0]:.3f}", f"{found['avg'][1]:.3f}", change)
    for j, one, other in zip(found["ks"][1:], *(curve[1:] for curve in found["curves"]), strict=True):
        change = f"{other['value'] - one['value']:+.3f}"
        table.add_row(
            f"pass@{j}  one of {j} is right", f"{one['value']:.3f}", f"{other['value']:.3f}", change
        )
    if found["maj"]:
        one, other = found["maj"]
        table.add_row(
            f"maj@{min(found['k'])}  the most frequent answer is right",
            f"{one:.3f}",
            f"{other:.3f}",
            f"{other - one:+.3f}",
        )
    screen.print(table)
    screen.print(found["sentence"])
    c = found["coverage"]
    screen.print(
        f"Solved at least once: by both {c['both']}, gained by B {c['gained']}, lost by B {c['lost']}, "
        f"by neither {c['neither']}."
    )
    if found["crossover"] is not None:
        screen.print(
            f"With {found['crossover']} samples or more A finds a right answer on more problems than B."
        )
    if (s := found["support"]) is not None:
        gained = (
            f", on {s['gained_inside']} of the {s['gained']} gained problems at least one"
            if s["gained"]
            else ""
        )
        screen.print(
            f"{s['inside']:.1%} of B's {s['right']} right answers are as likely under the base model as its"
            f" own samples (log-prob a token at least {s['threshold']:.3f}, their 1 % quantile){gained}."
        )
    else:
        screen.print(f"Support of the base model: not known ({found['no_support']}).")
