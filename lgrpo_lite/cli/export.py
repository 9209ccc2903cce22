"""`lgrpo-lite export RUN FORMAT`: what a run learned, in the formats others read."""

import argparse
import json
import sys
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

from lgrpo_lite.cli.terminal.output import add_json, add_runs, print_json, say, tell_code
from lgrpo_lite.cli.terminal.progress import showing
from lgrpo_lite.cli.watch import find_run
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.train.stop import Stopped, stopping

OF_GGUF = ("quant", "eval", "llama_cpp", "out")
# format: (what it is, the options that it reads beside those that all do)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "merged": (
        "the base with the trained weights in place, for transformers and vLLM",
        ("base", "dtype", "tolerance", "out"),
    ),
    "adapter": ("the LoRA alone, for peft and vllm serve --enable-lora", ("out",)),
    "gguf": ("the merged model as files for llama.cpp, in 16 bits and quantised", OF_GGUF),
    "lora-gguf": ("the LoRA alone as a GGUF, for llama-server --lora on a GGUF of the base", OF_GGUF[1:]),
    "ollama": ("one GGUF file and its Modelfile, for ollama create", OF_GGUF),
    "card": ("the README.md of every export of the run, written anew", ("out",)),
    "hub": ("exports of the run, uploaded to the Hugging Face Hub", ("repo", "private", "holds", "dry_run")),
}
OPTIONS = tuple(dict.fromkeys(option for _, read in KINDS.values() for option in read))
USAGE = f"lgrpo-lite export RUN {'|'.join(KINDS)} [options]"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = USAGE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(["formats:", *(f"  {kind:10} {what}" for kind, (what, _) in KINDS.items())])
    parser.add_argument(
        "words", nargs="+", metavar="RUN FORMAT", help="a run folder or its name, then a format"
    )
    add_runs(parser)
    parser.add_argument("--checkpoint", default="last", help="last (default), best, or a step")
    base = "what a 4-bit policy is merged into (default: dequantized, the weights it was trained on)"
    parser.add_argument("--base", choices=("auto", "original", "dequantized"), help=base)
    dtype = "type of merged weights (default: what the policy computes with, and as given what did not learn)"
    parser.add_argument("--dtype", choices=("auto", "fp32", "fp16", "bf16"), help=dtype)
    out = "target folder (default: RUN/export/FORMAT; of card: the README.md of every export in RUN/export)"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument(
        "--tolerance", type=float, help="largest accepted mean difference of a logit (default: by precision)"
    )
    quant = "GGUF files to keep, of f16,Q8_0,Q6_K,Q5_K_M,Q4_K_M; of ollama one (default: export.quant)"
    parser.add_argument("--quant", metavar="A,B", help=quant)
    solved = "held-out problems that each GGUF file solves through llama.cpp, beside the policy"
    parser.add_argument("--eval", type=int, metavar="N", help=solved)
    folder = "llama.cpp's sources, for its conversion scripts (default: fetched once)"
    parser.add_argument("--llama-cpp", metavar="DIR", help=folder)
    hub = parser.add_argument_group("of hub")
    hub.add_argument("--repo", help="OWNER/NAME on the Hub (default: export.hub.repo)")
    hub.add_argument("--private", action="store_true", default=None, help="make the repository a private one")
    hub.add_argument(
        "--holds", help="what goes up, as merged,adapter; the first at the top (default: merged)"
    )
    dry = "list what would go up, without a token or the network"
    hub.add_argument("--dry-run", action="store_true", default=None, help=dry)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if len(args.words) != 2 or args.words[1] not in KINDS:
        raise ConfigError("export takes a run and a format", where="command line", fix=USAGE)
    kind = args.words[1]
    _demand_read(args, kind)
    path = find_run(args.words[0], args.runs)
    try:
        with stopping():  # what is half made is taken away, and no child of ours runs on
            return _export(args, path, kind)
    except Stopped as stopped:
        return stopped.exit_code


def _export(args: argparse.Namespace, path: Path, kind: str) -> int:
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.folder.code import warned
    from lgrpo_lite.folder.logs import log_if_writable
    from lgrpo_lite.recipe.read import load_recipe

    recipe = load_recipe(str(path / "config.resolved.yaml"), _settings(args))  # complete; no code of it runs
    changed = warned(path, recipe)
    log_if_writable(path / "logs" / "export.log")
    if recipe.export.eval:
        tell_code(recipe)
        recipe = check(recipe)
    with showing(as_json=args.json), ExitStack() as stack:
        made = _made(recipe, path, kind, args, stack)
    if args.json:
        print_json("export", made, changed)
        return 0
    for warning in changed:
        say(f"warning: {warning}", file=sys.stderr)
    say(made["out"], *made["lines"])
    return 0


def _settings(args: argparse.Namespace) -> list[str]:
    """The options as settings of the recipe."""
    options = {"base": args.base, "dtype": args.dtype, "eval": args.eval, "llama_cpp": args.llama_cpp}
    settings = [f"export.{key}={value}" for key, value in options.items() if value is not None]
    given = {
        "quant": _listed(args.quant),
        "hub.repo": args.repo,
        "hub.private": args.private,
        "hub.holds": _listed(args.holds),
    }
    for key, value in given.items():
        if value is not None:
            settings.append(f"export.{key}={json.dumps(value)}")
    return settings


def _listed(option: str | None) -> list[str] | None:
    """The words of an option, between commas."""
    if option is None:
        return None
    words = [word.strip() for word in option.split(",")]
    return [word for word in words if word]


def _made(recipe: Any, path: Path, kind: str, args: argparse.Namespace, stack: ExitStack) -> dict[str, Any]:
    from lgrpo_lite.export.formats import make

    usable = checkpoint_of(path, args.checkpoint)
    job = job_of(recipe, path, usable, stack, args.tolerance)
    if kind == "hub":
        made = _uploaded(job, dry_run=args.dry_run)
    else:
        made = make(kind, job, args.out or job.at(kind))
    return {"out": str(made.path), "checkpoint": usable.name, "lines": made.lines} | made.facts


def _demand_read(args: argparse.Namespace, kind: str) -> None:
    """ConfigError: an option that this format does not read, or reads one value of."""
    _, read = KINDS[kind]
    for name in OPTIONS:
        if name in read or getattr(args, name) is None:
            continue
        option = f"--{name.replace('_', '-')}"
        readers = [other for other, (_, options) in KINDS.items() if name in options]
        fix = f"leave it out; it is read by {', '.join(readers)}"
        if kind == "hub":
            first = " or ".join(readers)
            fix = f"make that export first ({first}), with this option: it is then uploaded as it is"
        raise ConfigError(f"export {kind} does not read {option}", where="command line", fix=fix)
    if kind == "ollama" and len(_listed(args.quant) or ()) > 1:
        fix = "name one, or make them all by export gguf"
        raise ConfigError(f"export ollama makes one file, not {args.quant}", where="--quant", fix=fix)


def _uploaded(job: Any, *, dry_run: bool) -> Any:
    """Uploaded, or what would be. Stopped by Ctrl-C or a signal: told what goes on."""
    from lgrpo_lite.export import hub

    if dry_run:
        return hub.listed(job)
    try:
        return hub.upload(job)
    except (KeyboardInterrupt, Stopped):
        say(f"stopped; what arrived is not sent again: {hub.again(job)}", file=sys.stderr)
        raise


def checkpoint_of(path: Path, asked: str) -> Path:
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


def job_of(
    recipe: Any, path: Path, checkpoint: Path, stack: ExitStack, tolerance: float | None = None
) -> Any:
    """A run at a checkpoint, to be exported as `recipe.export` says. `stack` ends the rewards' processes."""
    from lgrpo_lite.export.formats import Job

    @cache
    def load() -> tuple[Any, Any]:
        return _loaded(recipe, checkpoint)

    @cache
    def reward() -> Any:
        return stack.enter_context(_rewards(recipe))

    def tools(sampler: Any) -> Any:
        from lgrpo_lite.engines.base import sampling_of
        from lgrpo_lite.rollout.tools import tools_of

        return tools_of(recipe, load()[0], reward(), sampler, sampling_of(recipe, 0.0))

    def sliced() -> tuple[Any, Any]:
        return _loaded(recipe, checkpoint, sliced=True)

    return Job(recipe, path, checkpoint.name, load, tools, tolerance, sliced)


def _rewards(recipe: Any) -> Any:
    from lgrpo_lite.rewards.total import RewardSum

    return closing(RewardSum.of(recipe))


def _loaded(recipe: Any, adapter: Path, *, sliced: bool = False) -> tuple[Any, Any]:
    """The policy at a checkpoint, whole or in slices, and its held-out prompts. No room for it: OutOfMemory
    (exit 4).
    """
    import torch

    from lgrpo_lite.checks.check import demand
    from lgrpo_lite.export.export import memory_told
    from lgrpo_lite.export.slices import SlicedPolicy
    from lgrpo_lite.policy import checkpoint
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.train.build import eval_prompts

    demand(recipe)
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    with memory_told():
        policy = SlicedPolicy.of(recipe) if sliced else Policy.load(recipe)
        checkpoint.load_weights(adapter, policy)
    return policy, eval_prompts(recipe, policy, imports=recipe.export.eval > 0)
