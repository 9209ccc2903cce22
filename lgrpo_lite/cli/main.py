"""`lgrpo-lite`: a verb is a module, imported when it is called. Help needs neither torch nor pydantic."""

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType

from lgrpo_lite import __version__
from lgrpo_lite.cli.terminal.guard import guard, told
from lgrpo_lite.cli.terminal.output import Parser, say
from lgrpo_lite.errors import EXIT_INTERRUPTED, ConfigError, LgrpoError, OutOfMemory

VERBS = {
    "recipe": "list, show, copy or run a recipe; `recipe NAME` runs it",
    "algorithms": "all algorithms, and when to use which",
    "train": "run a recipe file of your own",
    "validate": "check a recipe without running it",
    "plan": "what a recipe takes on a card or on this machine, and settings that make it fit",
    "reward": "`reward test`: is a recipe's reward right, on its gold answers and on labelled cases",
    "baseline": "what a recipe's model solves before training, and why if it is nothing",
    "selftest": "prove that a recipe's rollouts come from its policy, on this machine",
    "config": "every key of a recipe: type, default, meaning",
    "watch": "look at a live or finished run",
    "runs": "all runs: state, best score, age, alarms",
    "show": "answers of a run's step, token by token with their credit",
    "eval": "samples of a run or a model on a set of problems: avg@k, pass@k, maj@k with intervals",
    "compare": "training curves of runs side by side; two evaluations problem by problem",
    "export": "what a run learned, as others read it: merged, adapter, GGUF, LoRA as GGUF, Ollama, the Hub",
    "serve-cmd": "the lines that serve what a run exported; it runs none of them",
    "chat": "talk to a run's policy, and to its base beside it",
    "doctor": "what this machine lacks, and the line that fixes it",
}

EPILOG = """exit codes: 0 ok · 1 the run failed · 2 usage or recipe · 3 this machine lacks something
            4 out of memory · 5 data, reward or checkpoint · 6 verification failed
            7 disk full or folder gone · 75 time limit, resumable
            129 terminal closed · 130 Ctrl-C · 143 SIGTERM
start here: lgrpo-lite recipe tiny-math"""


MOST = 20  # faults that are told at once


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Errors of this project are three lines on stderr, never a
    traceback.
    """
    if argv is None:
        argv = sys.argv[1:]
        guard()
    debug = "--debug" in argv
    try:
        command, args = _parsed([a for a in argv if a != "--debug"])
        return command(args)
    except LgrpoError as error:
        if debug:
            told(error)
        tell(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `lgrpo-lite recipe show X | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            told(error)
        known = out_of_memory(error) or _unexpected(error)
        say(*known.lines(), file=sys.stderr)
        return known.exit_code


def tell(error: LgrpoError) -> None:
    """On stderr, three lines for each fault that was found, at most MOST of them."""
    found = error.all
    for fault in found[:MOST]:
        say(*fault.lines(), file=sys.stderr)
    if len(found) > MOST:
        say(f"and {len(found) - MOST} more", file=sys.stderr)


def _parsed(argv: list[str]) -> tuple[Callable[[argparse.Namespace], int], argparse.Namespace]:
    """The verb's function and its arguments. Help is printed here; it needs no verb's code but the one asked
    about.
    """
    if argv[:1] == ["help"]:
        argv = [*argv[1:2], "-h"]
    verb = next((a for a in argv if not a.startswith("-")), None)
    parser = _parser(verb)
    if verb is None:
        args = parser.parse_args(argv)
        parser.print_help()
        return lambda args: 0, args
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        fix = f"use one of: {', '.join(VERBS)}"
        raise ConfigError(f"unknown command {verb!r}{hint}", where="command line", fix=fix)
    # key=value may stand between options, which argparse alone refuses
    args, rest = parser.parse_known_args(argv)
    where, fix = f"lgrpo-lite {verb}", f"see `lgrpo-lite {verb} -h`"
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}", where=where, fix=_setting(unknown[0]) or fix)
    if rest and not hasattr(args, "words"):
        raise ConfigError(f"unexpected word {rest[0]!r}", where=where, fix=fix)
    if rest:
        args.words += rest
    return _module(verb).run, args


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"lgrpo_lite.cli.{verb.replace('-', '_')}")


def _setting(option: str) -> str:
    """What to write where an option that there is not names a setting; nothing where it names none."""
    from lgrpo_lite.recipe.words import ours

    meant = ours(option.lstrip("-").partition("=")[0])
    settings = " or ".join(setting if "=" in setting else f"{setting}=…" for setting in meant)
    return f"settings are written without dashes: {settings}" if settings else ""


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """All verbs, and the options of this one."""
    parser = Parser(
        prog="lgrpo-lite",
        description="Reinforcement fine-tuning with λ-GRPO and GRPO-λ on one GPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lgrpo-lite {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND")
    for name, help_ in VERBS.items():
        sub = verbs.add_parser(name, help=help_, description=help_)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        if name == verb:
            _module(name).configure(sub)
    return parser


def out_of_memory(error: Exception) -> OutOfMemory | None:
    """torch's own error, or what the driver says through other libraries, as ours; None for any other."""
    of_torch = type(error).__name__ == "OutOfMemoryError"
    of_driver = isinstance(error, RuntimeError) and "out of memory" in str(error)
    if not of_torch and not of_driver:
        return None
    reason = str(error).split(". ")[0]
    fix = (
        "halve memory.micro_tokens and rollout.batch_rows, "
        "or set memory.checkpointing=true or memory.offload_activations=true; --resume auto goes on"
    )
    return OutOfMemory(f"the GPU is out of memory: {reason}", where="memory, rollout", fix=fix)


def _unexpected(error: Exception) -> LgrpoError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = str(error).strip()
    reason = message.splitlines()[0] if message else "no message"
    what = f"unexpected {type(error).__name__}: {reason}"
    fix = (
        "this is a fault of lgrpo-lite; run again with --debug for the traceback "
        "(a run keeps it in logs/) and report it"
    )
    return LgrpoError(what, where=f"{frame.filename}:{frame.lineno}", fix=fix)
