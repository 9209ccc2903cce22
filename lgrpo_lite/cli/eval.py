"""`lgrpo-lite eval RUN|MODEL --suite NAME`: k samples of every problem, figures
with intervals, all samples kept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import find_run
from lgrpo_lite.errors import ConfigError, DataError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite eval RUN|MODEL [--suite NAME] [--suite-file FILE] [key=value …] [options]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|MODEL",
        help=(
            "a run folder or its name, a Hub id, a model's folder or builtin:NAME; then settings to change as"
            " key=value"
        ),
    )
    parser.add_argument(
        "--suite", help="a set of problems by name; left out: the held-out problems of the run"
    )
    file = "a suite of your own (YAML), or problems (JSONL, CSV, parquet with columns question and answer)"
    parser.add_argument("--suite-file", metavar="FILE", help=file)
    parser.add_argument("--k", type=int, help="samples a problem (default: eval.k of the recipe)")
    parser.add_argument(
        "--temperature",
        type=float,
        help="of the samples (default: eval.temperature); 0 is greedy, with --k 1",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    parser.add_argument(
        "--checkpoint",
        default="last",
        help="of a run: last (default), best, a step, or base: its adapter off",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="result folder; the same again goes on with it"
    )
    add_runs(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from lgrpo_lite.checks.check import check, demand
    from lgrpo_lite.evaluation.suites import lay_over

    words = [word for word in args.words if "=" not in word]
    if len(words) != 1:
        raise ConfigError(
            "eval takes one run or model", where="command line", fix="lgrpo-lite eval RUN|MODEL --suite NAME"
        )
    for name in ("k", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name} is less than 1", where="command line", fix=f"--{name} 1 or more")
    run_folder = _run_folder(words[0], args.runs)
    recipe, suite = _recipe(words[0], run_folder), None
    suite = _suite(args, recipe, run_folder)
    overrides = [word for word in args.words if "=" in word]
    overrides += [
        f"eval.{key}={value}" for key in ("k", "temperature") if (value := getattr(args, key)) is not None
    ]
    recipe = check(lay_over(suite, recipe, overrides))
    demand(recipe)
    subject, passed = _subject(words[0], run_folder, args.checkpoint)
    out = args.out or _place(subject, suite.suite.name, recipe.eval, args)
    result = _measure(recipe, suite, subject, out, args)
    result["warnings"] = passed + result["warnings"]
    if args.json:
        shown = {"out": str(out), **{k: result[k] for k in ("about", "figures", "versions")}}
        print_json("eval", shown, result["warnings"])
        return 0
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    _show(result)
    print(out)
    return 0


def _run_folder(word: str, runs: Path) -> Path | None:
    """The run's folder; None for a model."""
    try:
        return find_run(word, runs)
    except ConfigError as error:
        local = Path(word)
        if (
            word.startswith("builtin:")
            or (local / "config.json").is_file()
            or ("/" in word and not local.exists())
        ):
            return None
        fix = f"{error.fix}; a model is a Hub id (OWNER/NAME), a folder with config.json, or builtin:NAME"
        raise ConfigError(f"{word!r} is no run and no model", where=error.where, fix=fix) from None


def _recipe(word: str, run_folder: Path | None):
    """What the evaluation starts from: the run's settings, or the defaults with that model."""
    from lgrpo_lite.recipe.marks import Marks
    from lgrpo_lite.recipe.read import load_recipe, recipe_of

    if run_folder is not None:
        return load_recipe(str(run_folder / "config.resolved.yaml"))
    raw = {"recipe": {"name": word}, "model": {"id": word}, "data": {"train": {"task": "arithmetic"}}}
    return recipe_of(raw, Marks("defaults", {("model", "id"): "command line"}))


def _suite(args: argparse.Namespace, recipe, run_folder: Path | None):
    from lgrpo_lite.evaluation.suites import Suite, SuiteName, load_suite, suite_names

    if args.suite is not None or args.suite_file is not None:
        return load_suite(args.suite, args.suite_file)
    if run_folder is not None and recipe.data.eval:
        return Suite(suite=SuiteName(name="held-out", title="data.eval of the run"), data=recipe.data.eval)
    what = "the run has no held-out problems (data.eval)" if run_folder else "a model is evaluated on a suite"
    fix = f"add --suite NAME ({', '.join(suite_names())}) or --suite-file FILE"
    raise ConfigError(what, where="command line", fix=fix)


def _subject(word: str, run_folder: Path | None, which: str):
    """Who is asked, and a warning for each checkpoint that was passed over."""
    from lgrpo_lite.evaluation.measure import Subject
    from lgrpo_lite.policy import checkpoint

    if run_folder is None:
        if which not in ("last", "base"):
            raise ConfigError(
                "a model has no checkpoints", where="command line, --checkpoint", fix="remove --checkpoint"
            )
        return Subject(word), []
    name = run_folder.resolve().name
    if which == "base":
        return Subject(name, run_folder), []
    found, warnings = checkpoint.find(run_folder / "checkpoints", which)
    if found is None:
        fix = "name another --checkpoint: last, best, a step, or base"
        raise DataError(
            f"the run has no usable checkpoint {which!r}", where=str(run_folder / "checkpoints"), fix=fix
        )
    return Subject(name, run_folder, found), [
        f"{warning}; using {found.name} instead" for warning in warnings
    ]


def _place(subject, suite: str, evaluation, args: argparse.Namespace) -> Path:
    """The default result folder: a name for everything that commonly differs, so that
    nothing is mixed or asked twice.
    """
    name = f"{suite}-{subject.label}-k{evaluation.k}-t{evaluation.temperature:g}-s{args.seed}"
    name += f"-n{args.limit}" if args.limit else ""
    if subject.run is not None:
        return subject.run / "evals" / name
    return Path("evals") / f"{subject.name.strip('/').replace('/', '--').replace(':', '-')}-{name}"


def _measure(recipe, suite, subject, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that needs torch."""
    from lgrpo_lite.checks.check import gold_fault_of
    from lgrpo_lite.evaluation.results import check_folder
    from lgrpo_lite.folder.logs import log_to

    with showing(as_json=args.json):
        check_folder(out)
        log_to(out / "eval.log")
        from lgrpo_lite.evaluation.measure import measure

        return measure(
            recipe, suite, subject, out, limit=args.limit, seed=args.seed, gold_fault=gold_fault_of(recipe)
        )


def _show(result: dict[str, Any]) -> None:
    """The figures as tables on stdout."""
    from rich.table import Table

    about, figures = result["about"], result["figures"]
    screen = console()
    title = (
        f"{about['subject']['name']} ({about['subject']['label']}) on {about['suite']}: {about['problems']}"
        " problems × "
    )
    whole = Table(title=f"{title}{about['k']} samples, T={about['temperature']:g}", title_justify="left")
    whole.add_column("")
    whole.add_column("value", justify="right")
    whole.add_column("95 % interval", justify="right")
    for name, meaning, estimate in _rows(figures):
        whole.add_row(
            f"{name}  {meaning}",
            f"{estimate['value']:.3f}",
            f"{estimate['low']:.3f} to {estimate['high']:.3f}",
        )
    for name, value in (("truncated", figures["truncated"]), ("no answer found", figures["unparsable"])):
        whole.add_row(name, f"{value:.1%}", "")
    whole.add_row("mean tokens", f"{figures['length']:.1f}", "")
    if figures["missing"]:
        whole.add_row("rewards missing", str(figures["missing"]), "")
    screen.print(whole)
    for column, values in figures["categories"].items():
        table = Table(column, "problems", f"avg@{figures['k']}", "95 % interval", f"pass@{figures['k']}")
        for value, row in values.items():
            avg, best = row["avg"], row["pass_at"].get(str(figures["k"]))
            interval = f"{avg['low']:.3f} to {avg['high']:.3f}"
            table.add_row(
                value,
                str(row["problems"]),
                f"{avg['value']:.3f}",
                interval,
                f"{best['value']:.3f}" if best else "–",
            )
        screen.print(table)


def _rows(figures: dict[str, Any]) -> list[tuple[str, str, dict[str, float]]]:
    k = figures["k"]
    rows = [(f"avg@{k}", "a sample is right", figures["avg"])]
    rows += [(f"pass@{j}", f"one of {j} is right", e) for j, e in figures["pass_at"].items() if j != "1"]
    if figures["maj"]:
        rows.append((f"maj@{k}", "the most frequent answer is right", figures["maj"]))
    return rows
