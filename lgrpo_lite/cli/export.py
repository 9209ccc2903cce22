"""`lgrpo-lite export RUN adapter|merged`: what a run learned, in the formats others read."""

import argparse
import dataclasses
import sys
from pathlib import Path

from lgrpo_lite.cli.terminal.output import add_json, add_runs, print_json, say
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import find_run
from lgrpo_lite.errors import ConfigError, DataError

CHECK = (
    "{greedy_equal}/{prompts} greedy answers equal, same top token at {same_top:.2%} of {tokens} positions, "
    "|Δlogit| max {max_logit_diff:.2g} mean {mean_logit_diff:.2g}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite export RUN adapter|merged [options]"
    parser.add_argument(
        "words", nargs="+", metavar="RUN FORMAT", help="a run folder or its name, then adapter or merged"
    )
    add_runs(parser)
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step")
    base = "what a 4-bit policy is merged into (default: dequantized, the weights it was trained on)"
    parser.add_argument("--base", choices=("auto", "original", "dequantized"), help=base)
    parser.add_argument("--out", type=Path, help="target folder (default: RUN/export/FORMAT)")
    parser.add_argument(
        "--tolerance", type=float, help="largest accepted mean difference of a logit (default: by precision)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if len(args.words) != 2 or args.words[1] not in ("adapter", "merged"):
        raise ConfigError(
            "export takes a run and a format",
            where="command line",
            fix="lgrpo-lite export RUN adapter|merged",
        )
    path, kind = find_run(args.words[0], args.runs), args.words[1]
    out = args.out or path / "export" / kind
    from lgrpo_lite.checks.check import demand
    from lgrpo_lite.folder.code import warned
    from lgrpo_lite.folder.logs import log_to
    from lgrpo_lite.recipe.read import load_recipe

    recipe = load_recipe(str(path / "config.resolved.yaml"))  # complete; no code of it is executed
    changed = warned(path, recipe)
    demand(recipe)
    log_to(path / "logs" / "export.log")
    result = _export(recipe, path, kind, out, args)
    if args.json:
        print_json("export", result, changed)
        return 0
    for warning in changed:
        say(f"warning: {warning}", file=sys.stderr)
    say(out)
    if "check" in result:
        say(CHECK.format(**result["check"]))
    return 0


def _export(recipe, path: Path, kind: str, out: Path, args: argparse.Namespace) -> dict:
    from lgrpo_lite.policy import checkpoint

    folder = path / "checkpoints"
    usable, warnings = checkpoint.find(folder, args.checkpoint)
    used = usable.name if usable else "none"
    for warning in warnings:
        say(f"warning: {warning}; using {used}", file=sys.stderr)
    if usable is None:
        fix = "train on with --resume auto, or name another --checkpoint"
        what = f"the run has no usable checkpoint {args.checkpoint!r}"
        raise DataError(what, where=str(folder), fix=fix)
    with showing(as_json=args.json):
        return {"out": str(out), "checkpoint": usable.name} | _written(recipe, usable, kind, out, args)


def _written(recipe, adapter: Path, kind: str, out: Path, args: argparse.Namespace) -> dict:
    """Everything that needs torch; of a merge, how it compares with the policy. No room for it: OutOfMemory
    (exit 4).
    """
    import torch

    from lgrpo_lite.export.export import export_adapter, export_merged, memory_told
    from lgrpo_lite.policy import checkpoint
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.train.build import eval_prompts

    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    with memory_told():
        policy = Policy.load(recipe)
        checkpoint.load(adapter, policy)
    prompts, base = eval_prompts(recipe, policy), args.base or recipe.export.base
    if kind == "adapter":
        export_adapter(policy, recipe, out, prompts)
        return {}
    _, comparison = export_merged(policy, recipe, out, prompts, base=base, tolerance=args.tolerance)
    return {"check": dataclasses.asdict(comparison)}
