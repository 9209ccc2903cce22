"""`lgrpo-lite selftest`: do the rollouts of this recipe come from its policy, on this machine? Trains nothing."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from lgrpo_lite.cli.progress import showing


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite selftest FILE|NAME [key=value …] [--json]"
    parser.add_argument("words", nargs="+", metavar="FILE|NAME", help="a recipe, then settings to change as key=value")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Load the recipe's policy and engine, prove them with adapters made up for it; a failed check is exit 6."""
    from lgrpo_lite.cli.train import log_to
    from lgrpo_lite.recipe import load_recipe
    from lgrpo_lite.train.check import check, demand

    recipe = check(load_recipe(args.words[0], args.words[1:]))
    demand(recipe)
    with showing(as_json=args.json) as line, tempfile.TemporaryDirectory() as folder:
        log_to(Path(folder) / "main.log")
        from lgrpo_lite.engines.probe import demand_passed, proof_of
        from lgrpo_lite.engines.selftest import stages
        from lgrpo_lite.train.build import build

        run_ = build(recipe)
        proof = proof_of(run_.engine, run_.policy, run_.prompts.prompts, recipe)
        rows = []
        try:
            for stage, checks in stages(run_.engine, run_.policy, proof):
                rows += [(stage, check) for check in checks]
                if not args.json:
                    with line.aside():
                        _print(stage, checks)
        finally:
            run_.engine.close()
    failed = [check for _, check in rows if not check.passed]
    if args.json:
        result = [{"stage": stage, "check": c.name, "passed": c.passed, "found": c.found} for stage, c in rows]
        whole = {"schema": 1, "ok": not failed, "command": "selftest", "result": result, "warnings": list(run_.notes)}
        print(json.dumps(whole))
    else:
        for note in run_.notes:
            print(f"note: {note}", file=sys.stderr)
    demand_passed(failed, f"selftest of {recipe.recipe.name}, engine {recipe.rollout.engine}")
    return 0


def _print(stage: str, checks) -> None:
    print(stage)
    for check in checks:
        print(f"  {'ok  ' if check.passed else 'FAIL'} {check.name:14} {check.found}")
    sys.stdout.flush()
