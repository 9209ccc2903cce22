"""What the case classes share: what came of a case, a command run in this process, and damage to bytes.

A case class is a module with COUNT (cases of a whole run), SECONDS (until a case hangs), MEMORY (MiB that one
may take), `prepare(folder)` (once, before the workers), and `attack(draw, folder, prepared)`: one case, all
of it drawn from `draw`, in an empty folder of its own. Optional: `warm(prepared)`, once in each worker.
"""

import contextlib
import json
import os
import random
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
if (
    str(TESTS) not in sys.path
):  # `python -m tests.attack.fuzz` has the root alone; the tests are material here
    sys.path.insert(0, str(TESTS))

MOST = 20  # faults that are told at once
LONGEST = 2200  # characters of a message, or of a line of what a command prints
OWN_CODES = (0, 2, 3, 4, 5, 6, 7, 75, 129, 130, 143)
OURS = "fault of lgrpo-lite"


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a case. `shown`: what was said of it, for who repeats it."""

    outcome: str
    faults: tuple[str, ...] = ()
    shown: str = ""


shows: list[IO[str]] = []  # where a case that is repeated is shown


def about(text: str) -> None:
    """Say what a case is, before it is tried."""
    for file in shows:
        print(text.encode("utf-8", "backslashreplace").decode(), file=file, flush=True)


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left: its exit code, and the text of its two streams."""

    code: int
    out: str
    err: str

    @property
    def outcome(self) -> str:
        """The exit code, and the message without what is particular in it."""
        if not self.code:
            return "exit 0"
        words = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\d.,]+|\S*/\S*", "…", first_line(self.err))
        return f"exit {self.code}: {words.removeprefix('error: ')[:50]}"

    @property
    def faults(self) -> list[str]:
        """Of a command that may fail, but only in this project's own words."""
        found = []
        if self.code not in OWN_CODES:
            found.append(f"exit code {self.code}: {first_line(self.err)}")
        elif OURS in self.err:
            found.append(f"{OURS}: {first_line(self.err)}")
        if "Traceback (most recent call last)" in self.err + self.out:
            found.append(f"a traceback: {self.err.strip().splitlines()[-1:]}")
        for stream, text in (("stderr", self.err), ("stdout", self.out)):
            found += faults_of_text(stream, text)
        messages = self.err.split("\nerror: ")
        longest = max(map(len, messages))
        if self.code and (longest > LONGEST or len(messages) > MOST):
            found.append(f"{len(messages)} messages, the longest of {longest} characters")
        return found

    def __str__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def faults_of_text(stream: str, text: str) -> Iterator[str]:
    """Control bytes, and lines that no screen holds."""
    controls = sorted({c for c in text if not c.isprintable() and c not in "\n\t"})
    if controls:
        yield f"control characters on {stream}: {ascii(''.join(controls))[:80]}"
    for line in text.splitlines():
        if len(line) > LONGEST and not is_json(line):
            yield f"a line of {len(line)} characters on {stream}"


def is_json(line: str) -> bool:
    """Whether it is what --json prints, which is as long as it is, and JSON by the letter."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        return isinstance(json.loads(line, parse_constant=refuse), dict)
    except ValueError:
        return False


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "nothing said"


def command(*argv: str) -> Said:
    """Run the command line in this process, its streams into files, encoded as a terminal has them."""
    from lgrpo_lite.cli.main import main

    with captured() as said:
        try:
            code = main(list(argv))
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
    return Said(code, said["out"], said["err"])


@contextlib.contextmanager
def captured() -> Iterator[dict[str, str]]:
    """Descriptors 1 and 2 go into files of their own, whose texts are in it afterwards, as `out` and `err`."""
    said = {"out": "", "err": ""}
    kept = sys.stdout, sys.stderr
    places = {}
    sys.stdout.flush()
    sys.stderr.flush()
    for number, name in ((1, "out"), (2, "err")):
        file = os.memfd_create(name)
        places[name] = (number, os.dup(number), file)
        os.dup2(file, number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield said
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = kept
        for name, (number, before, file) in places.items():
            os.dup2(before, number)
            os.close(before)
            os.lseek(file, 0, os.SEEK_SET)
            with open(file, "rb") as written:
                said[name] = written.read().decode("utf-8", "replace")


# ------------------------------------------------------------------------------------------- damage

ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\x1b[2J",
    b"\r",
    b"\xef\xbb\xbf",
    "\u202e".encode(),
    b"\n\n",
    b"'",
    b'"',
    b"{",
    b"]",
)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes with one to three small faults: flips, cuts, repeats, insertions, zeros, another encoding."""
    for _ in range(draw.randint(1, 3)):
        data = draw.choice(DAMAGE)(draw, data)
    return data


def _flip(draw: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\x80"
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _head_cut(draw: random.Random, data: bytes) -> bytes:
    return data[draw.randrange(len(data) + 1) :]


def _repeated(draw: random.Random, data: bytes) -> bytes:
    begin = draw.randrange(len(data) + 1)
    end = min(len(data), begin + draw.randint(1, 500))
    return data[:end] + data[begin:end] * draw.randint(1, 5) + data[end:]


def _inserted(draw: random.Random, data: bytes) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice(ODD_BYTES) * draw.randint(1, 3) + data[place:]


def _zeroed(draw: random.Random, data: bytes) -> bytes:
    begin = draw.randrange(len(data) + 1)
    length = min(len(data) - begin, draw.randint(1, 4096))
    return data[:begin] + bytes(length) + data[begin + length :]


def _line_moved(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return data
    lines.insert(draw.randrange(len(lines)), lines.pop(draw.randrange(len(lines))))
    return b"".join(lines)


def _encoded(draw: random.Random, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw.choice(["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "utf-32"]), "replace")


DAMAGE = (_flip, _flip, _cut, _head_cut, _repeated, _inserted, _inserted, _zeroed, _line_moved, _encoded)


def placed(draw: random.Random, path: Path, data: bytes) -> str:
    """Write `data` at `path`, or now and then what is no such file; says which."""
    kind = draw.choices(sorted(PLACES), [PLACES[kind] for kind in sorted(PLACES)])[0]
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem"):
        path.symlink_to(kind)
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "link":
        path.with_name("behind").write_bytes(data)
        path.symlink_to("behind")
    else:
        path.write_bytes(data)
    return kind


PLACES = {
    "file": 300, "link": 3, "folder": 2, "pipe": 2, "/dev/zero": 2, "/dev/null": 1, "/dev/full": 1,
    "/proc/self/mem": 1, "link to itself": 1, "dangling link": 1,
}  # fmt: skip


def pick(draw: random.Random, *choices: Sequence) -> object:
    """One of all the choices, each as likely."""
    return draw.choice([choice for some in choices for choice in some])
