"""Errors a user can act on. Each says what, where and how to fix it, and knows its exit code.

| code | class | meaning |
|---|---|---|
| 1 | LgrpoError | the run failed (training state is kept in the last checkpoint) |
| 2 | ConfigError | usage or recipe |
| 3 | EnvironmentFault | a package, a GPU or a version is missing |
| 4 | OutOfMemory | nothing left to shrink |
| 5 | DataError | data, reward or checkpoint file |
| 6 | VerificationError | a check of numbers failed |
| 7 | DiskFault | the run folder cannot be written: the disk is full, or the folder is gone |
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


class LgrpoError(Exception):
    """Base of all; `str()` is the three-line text. What it quotes of others may be of any length: the middle
    of a long part is left out.

    `key`: the setting that is at fault, where it is one. `also`: what else the same look found.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str, fix: str, key: str = ""):
        what, where, fix = _short(what, 700), _short(where, 300), _short(fix, 1000)
        super().__init__(what)
        self.what, self.where, self.fix, self.key = what, where, fix, key
        self.also: tuple[LgrpoError, ...] = ()

    @property
    def all(self) -> tuple["LgrpoError", ...]:
        """It and what else was found, in that order."""
        return (self, *self.also)

    def lines(self) -> tuple[str, str, str]:
        """The three lines; what they quote of others may hold more line breaks."""
        return f"error: {self.what}", f"  at  {self.where}", f"  fix {self.fix}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


class ConfigError(LgrpoError):
    exit_code = 2


class EnvironmentFault(LgrpoError):
    exit_code = 3


class OutOfMemory(LgrpoError):
    exit_code = 4


class DataError(LgrpoError):
    exit_code = 5


class VerificationError(LgrpoError):
    exit_code = 6


class DiskFault(LgrpoError):
    exit_code = 7


@contextmanager
def noted(faults: list[LgrpoError]) -> Iterator[None]:
    """Inside it an error of ours ends what is inside alone: it, and what else it found, joins `faults`."""
    try:
        yield
    except LgrpoError as error:
        faults += error.all


def raise_all(faults: Sequence[LgrpoError]) -> None:
    """The first of them, with the others in `also`; nothing where there is none. What is said twice is said
    once.
    """
    different = list({str(fault): fault for fault in faults}.values())
    if different:
        first, *others = different
        first.also = tuple(others)
        raise first


EXIT_INTERRUPTED = 130  # first Ctrl-C: the step was finished and saved
EXIT_TERMINATED = 143  # the same for SIGTERM
EXIT_HANGUP = 129  # the same where the terminal went away (SIGHUP)
EXIT_TIME_LIMIT = 75  # stopped at train.time_limit, resumable


def _short(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}…{text[-half:]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean …?' or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""
