"""`lgrpo-lite selftest`: do a recipe's rollouts come from its policy on this machine, and how fast? Trains
nothing.
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_recipe, print_json, say, tell_code
from lgrpo_lite.cli.terminal.progress import showing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite selftest FILE|NAME [key=value …] [--json]"
    add_recipe(parser, "FILE|NAME")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Load the recipe's policy and engine, prove them with adapters made up for it; a failed check is exit 6.

    What passes is timed too: one short rollout of the recipe's own prompts.
    """
    from lgrpo_lite.checks.check import check, demand
    from lgrpo_lite.folder.logs import log_to
    from lgrpo_lite.recipe.read import load_recipe

    recipe = load_recipe(args.words[0], args.words[1:])
    tell_code(recipe)
    recipe = check(recipe)
    demand(recipe)
    with showing(as_json=args.json) as line, tempfile.TemporaryDirectory() as folder:
        log_to(Path(folder) / "main.log")
        from lgrpo_lite.engines.probe import demand_passed, proof_of
        from lgrpo_lite.engines.selftest import stages
        from lgrpo_lite.train.build import build

        run_ = build(recipe)
        proof = proof_of(run_.engine, run_.policy, run_.prompts.prompts, recipe)
        rows, rollout = [], None
        try:
            for stage, checks in stages(run_.engine, run_.policy, proof):
                rows += [(stage, check) for check in checks]
                if not args.json:
                    with line.aside():
                        _print(stage, checks)
            failed = [check for _, check in rows if not check.passed]
            rollout = None if failed else _timed(run_)
        finally:
            run_.engine.close()
    if args.json:
        result = [
            {"stage": stage, "check": c.name, "passed": c.passed, "found": c.found} for stage, c in rows
        ]
        print_json("selftest", result, run_.notes, ok=not failed, rollout=rollout)
    else:
        if rollout:
            of = "{weights}, {engine}, {answers} answers of up to {limit} tokens".format(**rollout)
            say(f"rollout {rollout['tokens_per_second']:,.0f} tokens/s ({of})")
        for note in run_.notes:
            say(f"note: {note}", file=sys.stderr)
    demand_passed(failed, f"selftest of {recipe.recipe.name}, engine {recipe.rollout.engine}")
    return 0


def _timed(run_) -> dict[str, Any]:
    """`rollout` of --json: how fast the prompts of the recipe's first step are answered, and with what."""
    from lgrpo_lite.engines.base import engine_name
    from lgrpo_lite.engines.selftest import timed

    recipe = run_.recipe
    prompts = run_.prompts.first(recipe.rollout.prompts_per_step)
    longest = recipe.model.max_new_tokens
    speed = timed(run_.engine, run_.policy, prompts, recipe.rollout.group_size, longest=longest)
    of = {"weights": recipe.model.weights, "engine": engine_name(recipe)}
    return {**of, **dataclasses.asdict(speed), "tokens_per_second": speed.tokens_per_second}


def _print(stage: str, checks) -> None:
    say(stage)
    for check in checks:
        verdict = "ok  " if check.passed else "FAIL"
        say(f"  {verdict} {check.name:14} {check.found}")
    sys.stdout.flush()
