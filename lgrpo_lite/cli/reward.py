"""`lgrpo-lite reward test`: is a reward right? Gold answers, near misses and
labelled cases, scored as in training.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, print_json
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, VerificationError, nearest
from lgrpo_lite.progress import told

GOLDS = 256
ALONE = (
    "schema: 1\nmodel: {id: 'builtin:tiny-math'}\ndata: {train: {task: arithmetic}}\nrewards: [{use: NAME}]\n"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "lgrpo-lite reward test RECIPE|FILE.py:function|NAME [key=value …] [--cases CASES.jsonl] [-n GOLDS]"
        " [--min-accuracy A] [--json]"
    )
    what = (
        "`test`, then a recipe, a function or a reward's name, then settings as key=value (of the reward,"
        " where it is alone)"
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
    cases = read_cases(args.cases) if args.cases else []
    if alone and not cases:
        fix = "add --cases FILE, or give a recipe, which has gold answers"
        raise ConfigError("nothing to try the reward on", where="lgrpo-lite reward test", fix=fix)
    first = verifier(recipe.rewards)
    if fault := missing_sandbox([first]):
        raise fault
    result: dict[str, Any] = {"reward": first.use}
    with showing(as_json=args.json):
        golds, warnings = ([], []) if alone else _golds(recipe, first, args.n, optional=bool(cases))
        told(f"scoring {len(golds) + len(cases)} answers", 0)
        reward = RewardSum(
            [first], recipe.where, max_new_tokens=recipe.model.max_new_tokens, safety=recipe.safety
        )
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
        return check(load_recipe(name, settings)), False
    if name not in REWARDS and ".py:" not in name:
        fix = f"use a recipe, file.py:function, or one of {', '.join(REWARDS)}"
        raise ConfigError(
            f"no such reward or recipe: {name!r}{nearest(name, REWARDS)}", where="command line", fix=fix
        )
    text = ALONE.replace("NAME", json.dumps(name))
    recipe = parse_recipe(text, "command line", [f"rewards.0.{setting}" for setting in settings])
    parts_of(recipe.rewards, recipe.where, recipe.model.max_new_tokens)  # refuses what it cannot be asked
    return recipe, True


def _golds(recipe, first, count: int, *, optional: bool) -> tuple[list, list[str]]:
    """Cases made of the first rows of data.train, and what could not be tried."""
    from itertools import chain, islice

    from lgrpo_lite.data.prompts import read
    from lgrpo_lite.rewards.part import parts_of
    from lgrpo_lite.rewards.trial import gold_cases

    if count < 1:
        return [], []
    (part,) = parts_of([first], recipe.where, recipe.model.max_new_tokens)
    if "reference" not in part.wanted:
        return [], [f"the first reward, {first.use}, does not read the gold answer: golds say nothing of it"]
    sources = (read(source, recipe.where(f"data.train.{i}")) for i, source in enumerate(recipe.data.train))
    try:
        rows = list(islice(chain.from_iterable(sources), count))
    except (DataError, EnvironmentFault) as error:
        if not optional:
            raise
        return [], [f"no gold answers were tried: {error.what}"]
    if first.use == "code":
        _demand_tests(rows)
    made = [gold_cases(row.reference, row.solution, first, row.place or row.id) for row in rows]
    warnings = []
    if any(not right for right, _ in made):
        warnings.append(
            "rows without a worked solution: name its column as data.train.N.solution to try them"
        )
    return [case for right, misses in made for case in (*right, *misses)], warnings


def _demand_tests(rows) -> None:
    from lgrpo_lite.rewards.code import fault_of_tests

    for row in rows:
        if fault := fault_of_tests(row.reference):
            raise DataError(
                f"tests that cannot be used: {fault}", where=row.place or row.id, fix="mend the row"
            )


def _failure(result: dict, least: float | None) -> str | None:
    golds, cases = result.get("golds"), result.get("cases")
    told = []
    if golds and golds["golds_failed"]:
        told.append(f"{golds['golds_failed']} of {golds['golds']} gold answers do not score 1")
    if golds and golds["near_misses_failed"]:
        told.append(f"{golds['near_misses_failed']} of {golds['near_misses']} near misses do not score 0")
    if cases and least is not None and cases["accuracy"] < least:
        told.append(f"accuracy {cases['accuracy']:.4f} is below {least:g}")
    return "; ".join(told) or None


def _print(result: dict, warnings: list[str]) -> None:
    if golds := result.get("golds"):
        print(f"gold answers   {golds['golds'] - golds['golds_failed']} of {golds['golds']} score 1")
        print(
            f"near misses    {golds['near_misses'] - golds['near_misses_failed']} of {golds['near_misses']}"
            " score 0"
        )
        for row in (*golds["golds_shown"], *golds["near_misses_shown"]):
            print(f"  {_line(row)}")
    if cases := result.get("cases"):
        print(f"cases          {_counts(cases)}")
        ms = [f"{name} {1000 * value:.1f} ms" for name, value in cases["seconds"].items()]
        faults = ", ".join(f"{name} {n}" for name, n in cases["faults"].items()) or "none"
        print(f"a case takes   {', '.join(ms)}; timeouts, errors and crashes: {faults}")
        _table("tier", cases["by_tier"])
        _table("category", cases["by_category"])
        if cases["disagreements"]:
            print(f"disagreements, the first {len(cases['disagreements'])}:")
        for row in cases["disagreements"]:
            print(f"  {_line(row)}")
        if cases["disagreements_left_out"]:
            print(f"  and {cases['disagreements_left_out']} more")
    for warning in warnings:
        print(f"note: {warning}", file=sys.stderr)


def _table(name: str, groups: dict) -> None:
    if groups:
        width = max(map(len, (name, *groups)))
        for group, found in groups.items():
            print(f"{name if group == next(iter(groups)) else '':8} {group:{width}}  {_counts(found)}")


def _counts(found: dict) -> str:
    wrong = found["cases"] - found["right"]
    return (
        f"{found['accuracy']:8.2%} of {found['cases']:5}   false positives {found['false_positives']} of"
        f" {wrong}   false negatives {found['false_negatives']} of {found['right']}   missing"
        f" {found['missing']}"
    )


def _line(row: dict) -> str:
    must = "1" if row["label"] else "0"
    value = row["outcome"] if row["value"] is None else f"{row['value']:g} ({row['outcome']})"
    kind = f" [{row['category']}]" if row["category"] else ""
    return (
        f"{row['where']}{kind}: {row['prediction']!r} against {row['gold']!r} must score {must}, scores"
        f" {value}"
    )
