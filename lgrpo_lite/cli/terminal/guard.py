"""What Python prints by itself, of threads, warnings and logs without a file, goes through `say` too."""

import logging
import sys
import threading
import traceback
import warnings
from typing import Any

from lgrpo_lite.cli.terminal.output import say


def guard() -> None:
    """For a process of its own: these hooks are the whole process's."""
    sys.excepthook = lambda *fault: told(fault[1])
    threading.excepthook = lambda fault: told(fault.exc_value)
    warnings.showwarning = _warned
    logging.lastResort = _Said(logging.WARNING)


def told(fault: BaseException | None) -> None:
    """A traceback on stderr."""
    if fault is None:
        return
    for part in traceback.format_exception(fault):
        say(*part.rstrip("\n").split("\n"), file=sys.stderr)


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    say(f"{filename}:{lineno}: {category.__name__}: {message}", file=sys.stderr)


class _Said(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(*self.format(record).split("\n"), file=sys.stderr)
