"""`lgrpo-lite eval RUN|MODEL --suite NAME`: k samples of every problem, figures with intervals, all samples
kept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, console, print_json, say, tell_code
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import find_run
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.policy.gguf import is_gguf

Figures = dict[str, Any]
Estimate = dict[str, float]  # value, low, high


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite eval RUN|MODEL [--suite NAME] [--suite-file FILE] [key=value …] [options]"
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|MODEL",
        help=(
            "a run folder or its name, a Hub id, a model's folder, a GGUF file or builtin:NAME; "
            "then settings to change as key=value"
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
    from lgrpo_lite.folder.code import warned
    from lgrpo_lite.recipe.bounds import SEEDS
    from lgrpo_lite.recipe.marks import shown

    words = [word for word in args.words if "=" not in word]
    if len(words) != 1:
        raise ConfigError(
            "eval takes one run or model", where="command line", fix="lgrpo-lite eval RUN|MODEL --suite NAME"
        )
    for name in ("k", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is less than 1", where="command line", fix=f"--{name} 1 or more")
    if not 0 <= args.seed < SEEDS:
        what, fix = f"--seed {shown(args.seed)} is no seed", f"--seed 0 to {SEEDS - 1}"
        raise ConfigError(what, where="command line", fix=fix)
    run_folder = _run_folder(words[0], args.runs)
    recipe = _recipe(words[0], run_folder)
    suite = _suite(args, recipe, run_folder)
    overrides = [word for word in args.words if "=" in word]
    if args.k is not None:
        overrides.append(f"eval.k={args.k}")
    if args.temperature is not None:
        overrides.append(f"eval.temperature={args.temperature}")
    recipe = lay_over(suite, recipe, overrides)
    changed = warned(run_folder, recipe) if run_folder else []
    tell_code(recipe)
    recipe = check(recipe)
    demand(recipe)
    subject, skipped = _subject(words[0], run_folder, args.checkpoint)
    out = args.out or _default_folder(subject, suite.suite.name, recipe.eval, args)
    result = _measure(recipe, suite, subject, out, args)
    warnings = changed + skipped + result["warnings"]
    if args.json:
        shown = {key: result[key] for key in ("about", "figures", "versions")}
        print_json("eval", {"out": str(out), **shown}, warnings)
        return 0
    for warning in warnings:
        say(f"warning: {warning}", file=sys.stderr)
    _show(result)
    say(out)
    return 0


def _run_folder(word: str, runs: Path) -> Path | None:
    """The run's folder; None for a model."""
    try:
        return find_run(word, runs)
    except ConfigError as error:
        local = Path(word)
        hub_id = "/" in word and not local.exists()
        if word.startswith("builtin:") or is_gguf(word) or (local / "config.json").is_file() or hub_id:
            return None
        kinds = "a Hub id (OWNER/NAME), a folder with config.json, a GGUF file, or builtin:NAME"
        fix = f"{error.fix}; a model is {kinds}"
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
    folder = run_folder / "checkpoints"
    usable, warnings = checkpoint.find(folder, which)
    if usable is None:
        fix = "name another --checkpoint: last, best, a step, or base"
        raise DataError(f"the run has no usable checkpoint {which!r}", where=str(folder), fix=fix)
    skipped = [f"{warning}; using {usable.name} instead" for warning in warnings]
    return Subject(name, run_folder, usable), skipped


def _default_folder(subject, suite: str, evaluation, args: argparse.Namespace) -> Path:
    """A name for everything that commonly differs, so that nothing is mixed or asked twice."""
    name = f"{suite}-{subject.label}-k{evaluation.k}-t{evaluation.temperature:g}-s{args.seed}"
    if args.limit:
        name += f"-n{args.limit}"
    if subject.run is not None:
        return subject.run / "evals" / name
    model = subject.name.strip("/").replace("/", "--").replace(":", "-")
    return Path("evals") / f"{model}-{name}"


def _measure(recipe, suite, subject, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that needs torch."""
    from lgrpo_lite.checks.check import gold_fault_of
    from lgrpo_lite.evaluation.results import check_folder
    from lgrpo_lite.folder.logs import log_to

    with showing(as_json=args.json):
        check_folder(out)
        log_to(out / "eval.log")
        from lgrpo_lite.evaluation.measure import measure

        gold_fault = gold_fault_of(recipe)
        return measure(recipe, suite, subject, out, limit=args.limit, seed=args.seed, gold_fault=gold_fault)


def _show(result: dict[str, Any]) -> None:
    """The figures as tables on stdout."""
    figures = result["figures"]
    screen = console()
    screen.print(_overall(result["about"], figures))
    for column, values in figures["categories"].items():
        screen.print(_by_category(column, values, figures["k"]))


def _overall(about: dict[str, Any], figures: Figures):
    from rich.table import Table

    from lgrpo_lite.monitor.theme import clean

    name = "{name} ({label})".format(**about["subject"])
    title = "{suite}: {problems} problems × {k} samples, T={temperature:g}".format(**about)
    table = Table(title=clean(f"{name} on {title}"), title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for meaning, estimate in _estimates(figures):
        table.add_row(meaning, f"{estimate['value']:.3f}", _interval(estimate))
    table.add_row("truncated", f"{figures['truncated']:.1%}", "")
    table.add_row("no answer found", f"{figures['unparsable']:.1%}", "")
    table.add_row("mean tokens", f"{figures['length']:.1f}", "")
    if figures["missing"]:
        table.add_row("rewards missing", str(figures["missing"]), "")
    return table


def _by_category(column: str, values: dict[str, Any], k: int):
    from rich.table import Table

    from lgrpo_lite.monitor.theme import clean

    table = Table(clean(column, 80), "problems", f"avg@{k}", "95 % interval", f"pass@{k}")
    for value, row in values.items():
        avg = row["avg"]
        pass_at_k = row["pass_at"].get(str(k))
        best = f"{pass_at_k['value']:.3f}" if pass_at_k else "–"
        table.add_row(clean(value, 80), str(row["problems"]), f"{avg['value']:.3f}", _interval(avg), best)
    return table


def _interval(estimate: Estimate) -> str:
    return f"{estimate['low']:.3f} to {estimate['high']:.3f}"


def _estimates(figures: Figures) -> list[tuple[str, Estimate]]:
    """What each figure means, and the figure."""
    k = figures["k"]
    rows = [(f"avg@{k}  a sample is right", figures["avg"])]
    for j, estimate in figures["pass_at"].items():
        if j != "1":
            rows.append((f"pass@{j}  one of {j} is right", estimate))
    if figures["maj"]:
        rows.append((f"maj@{k}  the most frequent answer is right", figures["maj"]))
    return rows
