"""`lgrpo-lite reward test`: is a reward right? Gold answers, near misses and labelled cases, scored as in
training.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, print_json, say, tell_code
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, VerificationError, nearest
from lgrpo_lite.progress import told

GOLDS = 256
LISTED = 8  # rows of a kind, so that all of it fits on a screen
ALONE = (
    "schema: 1\nmodel: {id: 'builtin:tiny-math'}\ndata: {train: {task: arithmetic}}\nrewards: [{use: NAME}]\n"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lgrpo-lite reward test RECIPE|FILE.py:function|NAME [key=value …] "
        "[--cases CASES.jsonl] [-n GOLDS] [--min-accuracy A] [--json]"
    )
    what = (
        "`test`, then a recipe, a function or a reward's name, then settings as key=value "
        "(of the reward, where it is alone)"
    )
    parser.add_argument("words", nargs="+", metavar="test …", help=what)
    parser.add_argument(
        "--cases", type=Path, metavar="FILE", help="JSON lines of {prediction, gold, label[, category, tier]}"
    )
    golds = f"gold answers of the recipe's data.train to try (default: {GOLDS}; 0: none)"
    parser.add_argument("-n", type=int, default=GOLDS, metavar="GOLDS", help=golds)
    parser.add_argument(
        "--min-accuracy", type=float, metavar="A", help="exit 6 if the cases agree less often than that"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Exit 6 if a gold does not score 1, a near miss does not score 0, or the cases agree less than asked."""
    from lgrpo_lite.rewards.code import missing_sandbox
    from lgrpo_lite.rewards.total import RewardSum
    from lgrpo_lite.rewards.trial import (
        case_report,
        gold_report,
        judged,
        read_cases,
        split_by_label,
        verifier,
    )

    recipe, alone = _recipe(args)
    where = _on_command_line if alone else recipe.where
    cases = read_cases(args.cases) if args.cases else []
    if alone and not cases:
        fix = "add --cases FILE, or give a recipe, which has gold answers"
        raise ConfigError("nothing to try the reward on", where="lgrpo-lite reward test", fix=fix)
    first = verifier(recipe.rewards)
    if fault := missing_sandbox([first]):
        raise fault
    result: dict[str, Any] = {"reward": first.use}
    with showing(as_json=args.json):
        golds, warnings = [], []
        if not alone:
            golds, warnings = _golds(recipe, first, args.n, optional=bool(cases))
        told(f"scoring {len(golds) + len(cases)} answers", 0)
        reward = RewardSum([first], where, max_new_tokens=recipe.model.max_new_tokens, safety=recipe.safety)
        try:
            if golds:
                scored, tally = judged(golds, reward)
                result["golds"] = gold_report(*split_by_label(scored), tally)
            if cases:
                result["cases"] = case_report(*judged(cases, reward))
        finally:
            reward.close()
    failure = _failure(result, args.min_accuracy)
    if args.json:
        print_json("reward test", result, warnings, ok=not failure)
    else:
        _print(result, warnings)
    if failure:
        fix = "mend the rows or the reward named above; training would learn from these scores"
        raise VerificationError(failure, where=f"reward test, {first.use}", fix=fix)
    return 0


def _on_command_line(key: str) -> str:
    """Where the settings of a reward that was named alone are from."""
    return "command line"


def _recipe(args: argparse.Namespace) -> tuple[Any, bool]:
    """The recipe, and whether it is one made up around a reward that was named alone."""
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.recipe.read import load_recipe, parse_recipe, recipe_names
    from lgrpo_lite.rewards.part import REWARDS, parts_of

    verb, *words = args.words
    if verb != "test" or not words:
        usage = "lgrpo-lite reward test RECIPE|FILE.py:function|NAME"
        raise ConfigError(f"reward {verb}: what is to be done?", where="command line", fix=f"write {usage}")
    name, settings = words[0], words[1:]
    if name in recipe_names() or name.endswith((".yaml", ".yml")):
        recipe = load_recipe(name, settings)
        tell_code(recipe)
        return check(recipe), False
    if name not in REWARDS and ".py:" not in name:
        fix = f"use a recipe, file.py:function, or one of {', '.join(REWARDS)}"
        what = f"no such reward or recipe: {name!r}{nearest(name, REWARDS)}"
        raise ConfigError(what, where="command line", fix=fix)
    text = ALONE.replace("NAME", json.dumps(name))
    overrides = [f"rewards.0.{setting}" for setting in settings]
    recipe = parse_recipe(text, "command line", overrides)
    tell_code(recipe)
    parts_of(recipe.rewards, _on_command_line, recipe.model.max_new_tokens)  # refuses what it cannot be asked
    return recipe, True


def _golds(recipe, first, count: int, *, optional: bool) -> tuple[list, list[str]]:
    """Cases made of the first rows of data.train, and what could not be tried."""
    from lgrpo_lite.rewards.part import parts_of
    from lgrpo_lite.rewards.trial import gold_cases

    if count < 1:
        return [], []
    (part,) = parts_of([first], recipe.where, recipe.model.max_new_tokens)
    form = part.form
    if "reference" not in form.wanted and not form.columns and not form.rest:
        return [], [f"the first reward, {first.use}, does not read the gold answer: golds say nothing of it"]
    try:
        rows = list(islice(_training_rows(recipe), count))
    except (DataError, EnvironmentFault) as error:
        if not optional:
            raise
        return [], [f"no gold answers were tried: {error.what}"]
    if first.use == "code":
        _demand_tests(rows)
    cases, warnings = [], []
    unsolved = "rows without a worked solution: name its column as data.train.N.solution to try them"
    for row in rows:
        right, misses = gold_cases(row.reference, row.solution, first, row.place or row.id)
        for case in (*right, *misses):
            given = {"prompt": row.question, "columns": row.columns}
            cases.append(replace(case, **given, messages=_chat(recipe.data, row)))
        if not right:
            warnings = [unsolved]
    return cases, warnings


def _chat(data, row) -> tuple:
    from lgrpo_lite.data.template import chat

    return () if data.template == "plain" else chat(row.question, data, row.messages)


def _training_rows(recipe) -> Iterator:
    from lgrpo_lite.checks.check import wants_of
    from lgrpo_lite.data.prompts import Wants, read

    wants = wants_of(recipe)
    wants = Wants(
        columns=wants.columns, every_column=wants.every_column
    )  # a gold at fault is told as a score
    for i, source in enumerate(recipe.data.train):
        yield from read(source, recipe.where(f"data.train.{i}"), wants)


def _demand_tests(rows) -> None:
    from lgrpo_lite.rewards.code import fault_of_tests

    for row in rows:
        if fault := fault_of_tests(row.reference):
            what = f"tests that cannot be used: {fault}"
            raise DataError(what, where=row.place or row.id, fix="mend the row")


def _failure(result: dict, least: float | None) -> str | None:
    golds, cases = result.get("golds"), result.get("cases")
    failures = []
    if golds and golds["golds_failed"]:
        failures.append("{golds_failed} of {golds} gold answers do not score 1".format(**golds))
    if golds and golds["near_misses_failed"]:
        failures.append("{near_misses_failed} of {near_misses} near misses do not score 0".format(**golds))
    if cases and least is not None and cases["accuracy"] < least:
        failures.append(f"accuracy {cases['accuracy']:.4f} is below {least:g}")
    return "; ".join(failures) or None


def _print(result: dict, warnings: list[str]) -> None:
    if golds := result.get("golds"):
        _print_golds(golds)
    if cases := result.get("cases"):
        _print_cases(cases)
    for report in (result.get("golds"), result.get("cases")):
        if report and report["first_fault"]:
            say(f"first fault    {report['first_fault']}")
    failed = sum(report.get("verifier_faults", 0) for report in result.values() if isinstance(report, dict))
    if failed:
        say(f"the math verifier failed on {failed} answers, which count as wrong")
    for warning in warnings:
        say(f"note: {warning}", file=sys.stderr)


def _print_golds(golds: dict) -> None:
    ones = golds["golds"] - golds["golds_failed"]
    zeros = golds["near_misses"] - golds["near_misses_failed"]
    say(f"gold answers   {ones} of {golds['golds']} score 1")
    say(f"near misses    {zeros} of {golds['near_misses']} score 0")
    _print_rows(golds["golds_shown"], golds["golds_failed"])
    _print_rows(golds["near_misses_shown"], golds["near_misses_failed"])


def _print_cases(cases: dict) -> None:
    say(f"cases          {_counts(cases)}")
    times = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in cases["seconds"].items())
    faults = ", ".join(f"{name} {n}" for name, n in cases["faults"].items())
    say(f"a case takes   {times}; timeouts, errors and crashes: {faults or 'none'}")
    _print_groups("tier", cases["by_tier"])
    _print_groups("category", cases["by_category"])
    disagreements = cases["disagreements"]
    if disagreements:
        say("disagreements:")
    _print_rows(disagreements, len(disagreements) + cases["disagreements_left_out"])


def _print_rows(rows: list[dict], count: int) -> None:
    """The first of so many; --json has more of them."""
    for row in rows[:LISTED]:
        say(f"  {_line(row)}")
    if count > LISTED:
        say(f"  and {count - LISTED} more")


def _print_groups(name: str, groups: dict) -> None:
    width = max(map(len, (name, *groups)))
    for group, counts in groups.items():
        say(f"{name:8} {group:{width}}  {_counts(counts)}")
        name = ""  # stands before the first only


def _counts(counts: dict) -> str:
    wrong = counts["cases"] - counts["right"]
    return (
        "{accuracy:8.2%} of {cases:5}   false positives {false_positives} of {wrong}   "
        "false negatives {false_negatives} of {right}   missing {missing}"
    ).format(**counts, wrong=wrong)


def _line(row: dict) -> str:
    category = f" [{row['category']}]" if row["category"] else ""
    compared = f"{row['prediction']!r} against {row['gold']!r}"
    right = "1" if row["label"] else "0"
    score = row["outcome"]
    if row["value"] is not None:
        score = f"{row['value']:g} ({row['outcome']})"
    return f"{row['where']}{category}: {compared} must score {right}, scores {score}"
