"""Running code that nobody has read: bubblewrap, or a docker container. Nothing runs outside one of them.

Inside: no network, a read-only system without home folders, a small /tmp, no environment, no second
process, memory and CPU time limited and watched, ended with the process that started it. A worker that is
killed takes its sandboxes along.
"""

import ast
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from select import select
from typing import IO, Literal, NamedTuple

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.rewards import collected, inside, leaning, peer, values
from lgrpo_lite.rewards.bubblewrap import bubblewrap, closed_calls, python, tmp_bytes
from lgrpo_lite.rewards.watch import MAX_WALL, HostShort, Watch, tree

MAX_PRINTED = 1 << 20  # bytes
POLL = 0.02  # seconds between two looks at the clocks
PROBE_SECONDS = 30.0
Kind = Literal["auto", "bwrap", "docker"]


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`startup`: seconds until code runs, as the probe found; limits begin after it."""

    kind: Literal["bwrap", "docker"]
    image: str | None
    startup: float


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds`: of all processes of a job, CPU waits left out. `memory`: MiB that they may hold."""

    seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class Box:
    """A started sandbox. `complaints`: its stderr, where nothing else reads it."""

    process: subprocess.Popen
    container: str | None
    complaints: IO[bytes] | None


class Ran(NamedTuple):
    """What a program printed, its exit code (None: stopped, for time or for what it printed), its seconds."""

    printed: str
    exit_code: int | None
    seconds: float


class SandboxFault(RuntimeError):
    """The sandbox did not work, which says nothing of the code: the reward is missing."""


@functools.cache
def open_sandbox(kind: Kind, image: str | None) -> Sandbox:
    """The sandbox to use, found by running Python in it once.

    None that works: EnvironmentFault (exit 3), with what each said.
    """
    reasons = []
    for which in ("bwrap", "docker") if kind == "auto" else (kind,):
        if which == "docker" and image is None:
            reasons.append("docker: rewards.N.image names no image")
            continue
        result = _probe(which, image)
        if isinstance(result, Sandbox):
            return result
        reasons.append(f"{which}: {result}")
    what = f"no sandbox works here ({'; '.join(reasons)})"
    fix = (
        "install bubblewrap 0.7 or later (apt-get install bubblewrap) where user namespaces are allowed,"
        " or start docker and set sandbox: docker, image: python:3.12-slim"
    )
    raise EnvironmentFault(what, where="the reward 'code'", fix=fix)


def _probe(kind: Literal["bwrap", "docker"], image: str | None) -> Sandbox | str:
    """The sandbox, or why it does not work."""
    if shutil.which(kind) is None:
        return "not installed"
    began = time.monotonic()
    sandbox = Sandbox(kind, image, 0.0)
    try:
        ran = run_program(sandbox, "print(6 * 7)", "", Limits(PROBE_SECONDS, 512))
    except (SandboxFault, OSError) as error:
        return str(error)
    if (ran.printed, ran.exit_code) != ("42\n", 0):
        return f"Python in it printed {ran.printed!r}, exit code {ran.exit_code}"
    return Sandbox(kind, image, time.monotonic() - began)


def run_program(sandbox: Sandbox, text: str, given: str, limits: Limits) -> Ran:
    """A program on the input `given`. More than MAX_PRINTED bytes are not read."""
    watch = Watch(sandbox.startup, limits.seconds, limits.memory)
    with tempfile.TemporaryFile() as stdin:
        stdin.write(_sized(text) + given.encode("utf-8", "replace"))
        stdin.seek(0)
        box = _start(sandbox, "program", limits, stdin, subprocess.PIPE, None)
    try:
        out, whole = _read(box.process.stdout, [box], watch)
        code = _wait(box, watch) if whole else None
    finally:
        _end([box])
    _demand_ready(box)
    return Ran(out.decode("utf-8", "replace"), code, watch.used)


def run_tests(sandbox: Sandbox, text: str, tests: str, limits: Limits) -> bytes:
    """The verdict of test code on a solution, as JSON; their two sandboxes share a line and nothing else.

    Empty: it took too long, or the tests' process was ended.
    """
    to_tests, to_solution = os.pipe(), os.pipe()
    boxes: list[Box] = []
    watch = Watch(sandbox.startup, limits.seconds, limits.memory)
    open_ends = {*to_tests, *to_solution}
    try:
        boxes.append(_start(sandbox, "tests", limits, to_tests[0], to_solution[1], subprocess.PIPE))
        _drop(open_ends, to_tests[0])
        _put(to_tests[1], tests)
        boxes.append(_start(sandbox, "solution", limits, to_solution[0], to_tests[1], None))
        # before the text goes out, so that a box that died is noticed
        _drop(open_ends, to_solution[0], to_tests[1])
        with contextlib.suppress(BrokenPipeError):
            _put(to_solution[1], text)
        _drop(open_ends, to_solution[1])
        verdict, _ = _read(boxes[0].process.stderr, boxes, watch)
    finally:
        _drop(open_ends, *tuple(open_ends))
        _end(boxes)
    if b"ready\n" not in verdict:
        complaint = verdict.decode("utf-8", "replace")[:300]
        raise SandboxFault(f"the tests did not start: {complaint or 'nothing was said'}")
    _demand_ready(boxes[1])
    return verdict.partition(b"ready\n")[2]


def _sized(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    return len(data).to_bytes(8, "big") + data


def _put(fd: int, text: str) -> None:
    data = _sized(text)
    while data:
        data = data[os.write(fd, data) :]


def _drop(open_ends: set[int], *ends: int) -> None:
    for fd in ends:
        open_ends.discard(fd)
        os.close(fd)


# ------------------------------------------------------------------------------------------- processes


def _start(sandbox: Sandbox, role: str, limits: Limits, stdin, stdout, stderr) -> Box:
    """`stderr` None: kept, to tell what went wrong."""
    memory = str(limits.memory << 20)
    seconds = str(int(limits.seconds) + 2)
    argv = ["-I", "-X", "utf8", "-c", _source(role), role, memory, seconds]
    complaints = tempfile.TemporaryFile() if stderr is None else None  # noqa: SIM115 - closed by _demand_ready
    container = f"lgrpo-lite-{uuid.uuid4().hex}" if sandbox.kind == "docker" else None
    if container:
        command = [*_docker(container, sandbox.image or "", limits), "python3", *argv]
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=complaints or stderr)
        return Box(process, container, complaints)
    with closed_calls() as rules:
        pass_fds = [rules.fileno()] if rules else []
        command = [*bubblewrap(pass_fds, limits.memory), python(), "-S", *argv]
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=complaints or stderr, pass_fds=pass_fds
        )
    return Box(process, container, complaints)


def _read(pipe: IO[bytes] | None, boxes: Sequence[Box], watch: Watch) -> tuple[bytes, bool]:
    """What comes out of a pipe, and whether that is all: not if it took too much time or memory, or is over
    MAX_PRINTED.
    """
    assert pipe is not None, "the box was started with a pipe"
    output = b""
    while len(output) <= MAX_PRINTED:
        readable, _, _ = select([pipe], [], [], POLL)
        if readable:
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                return output, True
            output += part
        _look(watch, boxes)
        if watch.over:
            break
    return output, False


def _wait(box: Box, watch: Watch) -> int | None:
    while not watch.over:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return box.process.wait(POLL)
        _look(watch, [box])
    return None


def _look(watch: Watch, boxes: Sequence[Box]) -> None:
    try:
        # of a container this is docker's client, which says nothing of what runs there
        watch.look([box.process.pid for box in boxes if not box.container])
    except HostShort as short:
        raise SandboxFault(str(short)) from None


def _end(boxes: Sequence[Box]) -> None:
    for box in boxes:
        if box.process.poll() is None:
            for pid in tree(box.process.pid)[1:]:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if box.process.poll() is None:
            box.process.kill()
            if box.container:
                subprocess.run(["docker", "kill", box.container], capture_output=True)
        box.process.wait()
        for pipe in (box.process.stdout, box.process.stderr):
            if pipe:
                pipe.close()


def _demand_ready(box: Box) -> None:
    if box.complaints is None:
        return
    with box.complaints as file:
        file.seek(0)
        output = file.read(1 << 16)
    if b"ready\n" not in output:
        complaint = output.decode("utf-8", "replace").strip()[-300:]
        raise SandboxFault(complaint or f"exit code {box.process.returncode}, nothing said")


# ------------------------------------------------------------ what is around them


@functools.cache
def _source(role: str) -> str:
    """The files a role needs as one text: where it runs there is no package to import from."""
    needed = (values, peer, leaning, collected, inside) if role == "tests" else (values, peer, inside)
    lines = []
    for module in needed:
        text = Path(str(module.__file__)).read_text("utf-8")
        own = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lgrpo_lite"):
                last = node.end_lineno or node.lineno
                own[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
        lines += own
        if module is leaning:
            lines.append(f"MEMBER_OF = {leaning.members()!r}")
    return "\n".join(lines)


def _docker(name: str, image: str, limits: Limits) -> list[str]:
    """`timeout` inside ends a container whose client was killed."""
    memory = f"{limits.memory + 64}m"
    latest = str(int(MAX_WALL * limits.seconds) + 1)
    return [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--name",
        name,
        "--network",
        "none",
        "--read-only",
        "--user",
        "65534:65534",
        "--tmpfs",
        f"/tmp:size={tmp_bytes(limits.memory)},mode=1777",
        "--workdir",
        "/tmp",
        "--memory",
        memory,
        "--memory-swap",
        memory,
        "--shm-size",
        "1m",
        "--pids-limit",
        str(inside.MAX_PROCESSES),
        "--cap-drop",
        "ALL",
        "--cpus",
        "1",
        "--security-opt",
        "no-new-privileges",
        "--entrypoint",
        "timeout",
        image,
        "-s",
        "KILL",
        latest,
    ]
