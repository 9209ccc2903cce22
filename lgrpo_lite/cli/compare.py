"""`lgrpo-lite compare`: training curves of runs side by side; two evaluations problem by problem. Needs no
model.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json, say
from lgrpo_lite.errors import ConfigError

EPILOG = """what is compared:
  RUN RUN …     training curves of two or more runs (or names under --runs). Of exactly two, also their newest
                evaluations by `lgrpo-lite eval`, where both have one of the same problems
  A B           two evaluations, result folders of `lgrpo-lite eval`, problem by problem; B is set against A.
                A run beside a result folder stands for its newest evaluation of the same problems"""

Result = dict[str, Any]  # of --json


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
        result, warnings = _evaluations(args)
        show = _show
    else:
        from lgrpo_lite.cli.terminal import curves

        result, warnings = _runs(args)
        show = curves.show
    if args.json:
        print_json("compare", result, warnings)
        return 0
    for warning in warnings:
        say(f"warning: {warning}", file=sys.stderr)
    show(result)
    paired = result.get("evaluations")
    if paired is not None:
        say("")
        _show(paired)
    for file in result.get("files", []):
        say(file)
    return 0


def _evaluations(args: argparse.Namespace) -> tuple[Result, list[str]]:
    """Two evaluations as JSON, and warnings."""
    from lgrpo_lite.evaluation.paired import compare, read_side

    folder_a, folder_b = _folders(args.words[0], args.words[1], args.runs)
    a, b = read_side(folder_a), read_side(folder_b)
    paired = compare(a, b)
    result, warnings = paired.to_json(), list(paired.warnings)
    if args.out is not None:
        result["files"], unwritten = _write(result, a, b, args.out)
        warnings += unwritten
    return result, warnings


def _runs(args: argparse.Namespace) -> tuple[Result, list[str]]:
    """Training curves as JSON, under `evaluations` what `_evaluations` says of two that have one in common,
    and warnings.
    """
    from lgrpo_lite.cli.terminal import curves
    from lgrpo_lite.cli.watch import find_run

    paths = [find_run(word, args.runs) for word in args.words]
    if len({path.resolve() for path in paths}) < len(paths):
        fix = (
            "name each run once; of one run, compare two result folders, "
            "e.g. RUN/evals/…-base-… and RUN/evals/…-step-000100-…"
        )
        raise ConfigError("a run and itself", where="command line", fix=fix)
    result, warnings = curves.compared(paths, args.out, as_json=args.json)
    result["evaluations"] = None
    if len(paths) != 2 or not all(any(path.glob("evals/*/result.json")) for path in paths):
        return result, warnings
    try:
        paired, more = _evaluations(args)
    except ConfigError as error:
        result["no_evaluations"] = error.what
        return result, warnings
    except (ValueError, KeyError, TypeError, OSError):
        result["no_evaluations"] = "a result.json of theirs cannot be read"
        return result, warnings
    result["files"] = [*result.get("files", []), *paired.pop("files", [])]
    result["evaluations"] = paired
    return result, list(dict.fromkeys([*warnings, *more]))


def _folders(first: str, second: str, runs: Path) -> tuple[Path, Path]:
    """Result folders of the two; a run stands for its newest evaluation of the other's problems."""
    from lgrpo_lite.cli.watch import find_run
    from lgrpo_lite.evaluation.paired import newest, read_side

    a, b = _result_folder(first), _result_folder(second)
    if a and b:
        return a, b
    known = a or b or newest(find_run(first, runs))
    about = read_side(known).about
    problems = about["suite"], about["problems_hash"]
    a = a or newest(find_run(first, runs), *problems)
    b = b or newest(find_run(second, runs), *problems)
    return a, b


def _result_folder(word: str) -> Path | None:
    path = Path(word)
    return path if (path / "about.json").is_file() else None


def _write(result: Result, a, b, out: Path) -> tuple[list[str], list[str]]:
    """The comparison as files: their paths, and what could not be written."""
    from lgrpo_lite.monitor import plots

    try:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "compare.json"
        file.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write: {error.strerror}", where=str(out), fix="choose another --out"
        ) from None
    if not plots.available():
        return [str(file)], [plots.MISSING]
    samples_a = [sample for problem in a.problems for sample in problem.samples]
    samples_b = [sample for problem in b.problems for sample in problem.samples]
    own = [s.base_logp_mean for s in samples_a if s.base_logp_mean is not None]
    right = [s.base_logp_mean for s in samples_b if s.right and s.base_logp_mean is not None]
    pictures = plots.plot_comparison(result, (own, right), out)
    return [str(path) for path in (file, *pictures)], []


# ------------------------------------------------------------------------------------------- how it looks


def _show(result: Result) -> None:
    screen = console(highlight=False)
    screen.print(_table(result))
    screen.print(result["sentence"])
    screen.print(
        "Solved at least once: by both {both}, gained by B {gained}, lost by B {lost}, "
        "by neither {neither}.".format(**result["coverage"])
    )
    crossover, support = result["crossover"], result["support"]
    if crossover is not None:
        screen.print(f"With {crossover} samples or more A finds a right answer on more problems than B.")
    if support is None:
        screen.print(f"Support of the base model: not known ({result['no_support']}).")
    else:
        screen.print(_support(support))


def _table(result: Result):
    from rich.table import Table

    from lgrpo_lite.monitor.theme import clean

    title = f"{clean(result['suite'], 200)}, {result['problems']} problems"
    table = Table(title=title, title_justify="left")
    table.add_column("", justify="left")
    for column in ("A", "B", "B - A"):
        table.add_column(column, justify="right")
    table.add_row("who", clean(result["a"], 200), clean(result["b"], 200), "")
    table.add_row("samples a problem", *map(str, result["k"]), "")
    a, b = result["avg"]
    change = "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**result["difference"])
    table.add_row("avg@k  a sample is right", f"{a:.3f}", f"{b:.3f}", change)
    curve_a, curve_b = result["curves"]
    for j, point_a, point_b in zip(result["ks"][1:], curve_a[1:], curve_b[1:], strict=True):
        a, b = point_a["value"], point_b["value"]
        table.add_row(f"pass@{j}  one of {j} is right", f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")
    if result["maj"]:
        a, b = result["maj"]
        name = f"maj@{min(result['k'])}  the most frequent answer is right"
        table.add_row(name, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")
    return table


def _support(support: dict[str, Any]) -> str:
    gained = ""
    if support["gained"]:
        gained = ", on {gained_inside} of the {gained} gained problems at least one".format(**support)
    return (
        "{inside:.1%} of B's {right} right answers are as likely under the base model as its own samples "
        "(log-prob a token at least {threshold:.3f}, their 1 % quantile)".format(**support)
        + f"{gained}."
    )
