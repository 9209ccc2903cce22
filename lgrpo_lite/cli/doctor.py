"""`lgrpo-lite doctor`: packages, GPU, memory and disks beside what a stack needs; each fault with the one
line that fixes it.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Iterator

from lgrpo_lite.cli.terminal.output import add_json, print_json, say
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.machine.doctor import Facts, Finding, diagnose, read_facts
from lgrpo_lite.machine.facts import Machine, Room
from lgrpo_lite.machine.stacks import TESTED, best_match, compare

GIB = 2**30


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "lgrpo-lite doctor [--stack cpu|vllm|unsloth] [--json]"
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "--stack",
        choices=tuple(TESTED),
        help="judge for this set of packages (default: the one that is installed)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.words:
        raise ConfigError(
            f"doctor takes no {args.words[0]!r}", where="command line", fix="lgrpo-lite doctor --stack vllm"
        )
    facts = read_facts()
    stack = args.stack or best_match(facts.installed)
    findings = diagnose(facts, stack)
    ok = not any(f.fatal for f in findings)
    if args.json:
        warnings = [f"{f.what}; {f.fix}" for f in findings if not f.fatal]
        print_json("doctor", as_json(facts, stack, findings), warnings, ok=ok)
    else:
        for line in lines(facts, stack, findings):
            say(line)
    return 0 if ok else EnvironmentFault.exit_code


def as_json(facts: Facts, stack: str, findings: list[Finding]) -> dict:
    """`result` of --json."""
    return {
        "stack": stack,
        "complete": complete(facts),
        "packages": [dataclasses.asdict(row) for row in compare(stack, facts.installed)],
        "findings": [dataclasses.asdict(f) for f in findings],
        "machine": dataclasses.asdict(facts.machine),
        "torch": dataclasses.asdict(facts.torch) if facts.torch else None,
    }


def complete(facts: Facts) -> list[str]:
    """Stacks whose packages are all here in versions that fit."""
    stacks = []
    for stack in TESTED:
        rows = compare(stack, facts.installed)
        if all(row.fits for row in rows):
            stacks.append(stack)
    return stacks


def lines(facts: Facts, stack: str, findings: list[Finding]) -> Iterator[str]:
    """The report: packages, machine, findings, verdict."""
    here = ", ".join(complete(facts)) or "none"
    yield f"stack {stack}; complete here: {here}; Python {facts.machine.python}"
    rows = [("package", "installed", "tested", "allowed", "")]
    for row in compare(stack, facts.installed):
        rows.append((row.name, row.installed or "-", row.tested, row.allowed, row.status))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        yield f"  {'  '.join(padded)}".rstrip()
    yield from _machine_lines(facts.machine)
    for finding in findings:
        yield f"{'fault' if finding.fatal else 'warning'}: {finding.what}"
        yield f"  fix {finding.fix}"
    fatal = any(f.fatal for f in findings)
    yield f"the stack {stack} {'cannot' if fatal else 'can'} run here"


def _machine_lines(machine: Machine) -> Iterator[str]:
    for gpu in machine.gpus:
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else "unknown"
        memory = "memory unknown"
        if gpu.free is not None and gpu.total:
            memory = _free(gpu.free, gpu.total)
        name = f"GPU {gpu.index}"
        yield f"{name:13} {gpu.name}, compute capability {capability}, driver {gpu.driver}, {memory}"
    if not machine.gpus:
        yield "GPU           none"
    limit = f", limited to {machine.memory_limit / GIB:.1f} GiB" if machine.memory_limit else ""
    kind = " (WSL)" if machine.wsl else ""
    yield f"memory        {_free(machine.memory_free, machine.memory)}{limit}{kind}"
    for name in ("models", "runs", "temporary", "shared"):
        room: Room | None = getattr(machine, name)
        if room:
            yield f"{name:13} {_free(room.free, room.total)} in {shlex.quote(room.path)}"
    yield f"Hugging Face  {'a token is set' if machine.token else 'no token'}"


def _free(free: int, total: int) -> str:
    return f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
