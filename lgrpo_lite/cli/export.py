"""`lgrpo-lite export RUN FORMAT`: what a run learned, in the formats others read."""

import argparse
import sys
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, print_json, say
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import find_run
from lgrpo_lite.errors import ConfigError, DataError

KINDS = ("merged", "adapter")
USAGE = f"lgrpo-lite export RUN {'|'.join(KINDS)} [options]"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.add_argument(
        "words", nargs="+", metavar="RUN FORMAT", help="a run folder or its name, then a format"
    )
    add_runs(parser)
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step")
    base = "what a 4-bit policy is merged into (default: dequantized, the weights it was trained on)"
    parser.add_argument("--base", choices=("auto", "original", "dequantized"), help=base)
    dtype = "type of merged weights (default: what the policy computes with, and as given what did not learn)"
    parser.add_argument("--dtype", choices=("auto", "fp32", "fp16", "bf16"), help=dtype)
    parser.add_argument("--out", type=Path, help="target folder (default: RUN/export/FORMAT)")
    parser.add_argument(
        "--tolerance", type=float, help="largest accepted mean difference of a logit (default: by precision)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if len(args.words) != 2 or args.words[1] not in KINDS:
        raise ConfigError("export takes a run and a format", where="command line", fix=USAGE)
    path, kind = find_run(args.words[0], args.runs), args.words[1]
    from lgrpo_lite.checks.check import demand
    from lgrpo_lite.folder.code import warned
    from lgrpo_lite.folder.logs import log_to
    from lgrpo_lite.recipe.read import load_recipe

    recipe = load_recipe(str(path / "config.resolved.yaml"))  # complete; no code of it is executed
    changed = warned(path, recipe)
    demand(recipe)
    log_to(path / "logs" / "export.log")
    with showing(as_json=args.json):
        made = _made(recipe, path, kind, args)
    if args.json:
        print_json("export", made, changed)
        return 0
    for warning in changed:
        say(f"warning: {warning}", file=sys.stderr)
    say(made["out"], *made["lines"])
    return 0


def _made(recipe: Any, path: Path, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    from lgrpo_lite.export.formats import FORMATS

    usable = _checkpoint(path, args.checkpoint)
    job = job_of(recipe, path, usable, args.tolerance, base=args.base, dtype=args.dtype)
    made = FORMATS[kind](job, args.out or job.at(kind))
    return {"out": str(made.path), "checkpoint": usable.name, "lines": made.lines} | made.facts


def _checkpoint(path: Path, asked: str) -> Path:
    """The newest whole checkpoint, or the one asked for. None: DataError."""
    from lgrpo_lite.policy import checkpoint

    folder = path / "checkpoints"
    usable, warnings = checkpoint.find(folder, asked)
    used = usable.name if usable else "none"
    for warning in warnings:
        say(f"warning: {warning}; using {used}", file=sys.stderr)
    if usable is None:
        fix = "train on with --resume auto, or name another --checkpoint"
        raise DataError(f"the run has no usable checkpoint {asked!r}", where=str(folder), fix=fix)
    return usable


def job_of(recipe: Any, path: Path, checkpoint: Path, tolerance: float | None = None, **asked: Any) -> Any:
    """A run at a checkpoint, to be exported as `asked`, keys of the recipe's `export`; None: as that says."""
    from lgrpo_lite.export.formats import Job

    given = {key: value for key, value in asked.items() if value is not None}
    exported = recipe.export.model_copy(update=given)
    recipe = recipe.model_copy(update={"export": exported})
    return Job(
        recipe,
        path,
        checkpoint.name,
        lambda: _loaded(recipe, checkpoint),
        tolerance,
        lambda: _loaded(recipe, checkpoint, sliced=True),
    )


def _loaded(recipe: Any, adapter: Path, *, sliced: bool = False) -> tuple[Any, Any]:
    """The policy at a checkpoint, whole or in slices, and its held-out prompts. No room for it: OutOfMemory
    (exit 4).
    """
    import torch

    from lgrpo_lite.export.export import memory_told
    from lgrpo_lite.export.slices import SlicedPolicy
    from lgrpo_lite.policy import checkpoint
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.train.build import eval_prompts

    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    with memory_told():
        policy = SlicedPolicy.of(recipe) if sliced else Policy.load(recipe)
        checkpoint.load_weights(adapter, policy)
    return policy, eval_prompts(recipe, policy)
