"""The whole plug-in system: wherever a recipe takes a name of a table, it takes `file.py:function` too.

So a recipe is code: whoever runs it runs the files that it names.
"""

import hashlib
import os
import reprlib
import symtable
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from lgrpo_lite.errors import ConfigError, DataError, LgrpoError, nearest


def found(name: str, table: Mapping[str, Any], where: str, kind: str) -> Any:
    """The table's entry, or the function of a user's file. Unknown: ConfigError with the nearest name."""
    if name in table:
        return table[name]
    if is_file(name):
        return from_file(name, where)
    what = f"unknown {kind} {name!r}{nearest(name, list(table))}"
    fix = f"use one of {', '.join(table)}, or file.py:function"
    raise ConfigError(what, where=where, fix=fix)


def from_file(use: str, where: str) -> Callable:
    """`path.py:function`, imported once a process. A file that fails, or lacks the function: DataError."""
    path, _, name = use.rpartition(":")
    return from_text(read_file(path, where), path, name, where=where)


def is_file(name: str) -> bool:
    """Whether a name that a recipe gives is one of a file, not of a table."""
    return ".py:" in name


def look_at(use: str, where: str) -> None:
    """`path.py:function`, without running it. A file that is no Python or names no such thing: DataError.

    What the name holds, and whether the file imports, stays unknown.
    """
    path, _, name = use.rpartition(":")
    text = read_file(path, where)
    try:
        table = symtable.symtable(text, path, "exec")  # pyright: ignore[reportArgumentType]  bytes: any coding
        names = table.get_identifiers()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = getattr(error, "msg", None) or "it cannot be parsed"
        line = getattr(error, "lineno", None) or 1
        raise DataError(f"{path} is no Python: {reason}", where=f"{path}:{line}", fix="mend it") from None
    if name not in names and b"import *" not in text:
        raise DataError(f"{path} has no function {name!r}", where=where, fix="check the name after the colon")


@contextmanager
def blamed(use: str, expected: str) -> Iterator[None]:
    """Inside it what a user's function raises is a DataError at its own line, with what was `expected` of it.

    Errors of this project, and memory that ends, pass: others know what to do about them. `sys.exit` does
    not: it would end the command with the exit code of one that did all it should.
    """
    try:
        yield
    except (LgrpoError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if not is_file(use) or type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error):
            raise
        where = _line_of(error, use.rpartition(":")[0]) or line_of(use)
        raise DataError(f"{use} {_said(error)}", where=where, fix=expected) from error


def line_of(use: str) -> str:
    """file:line of the definition of a user's function that was imported before."""
    path, _, name = use.rpartition(":")
    function = from_file(use, path)
    line = getattr(getattr(function, "__code__", None), "co_firstlineno", 1)
    return f"{path}:{line}" if name else path


def _line_of(error: BaseException, path: str) -> str | None:
    """The last line of the user's file that an error came through; None where it came through none."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}:{error.lineno or 1}"
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else None


def _said(error: BaseException) -> str:
    """What a user's file did, in a line; of a schema's first fault the setting, value and reason."""
    from pydantic import ValidationError  # here: reward workers take longer to import it than all the rest

    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        return f"gives no {error.title}: {key}={reprlib.repr(first['input'])}: {reason}"
    lines = str(error).strip().splitlines() or ["no message"]
    return f"raised {type(error).__name__}: {lines[0]}"


def read_file(path: str, where: str) -> bytes:
    """The text of a user's Python file."""
    if not os.path.isfile(path) or not path.endswith(".py"):
        fix = "give the path of a .py file, then :function"
        raise DataError(f"no such Python file: {path}", where=where, fix=fix)
    return Path(path).read_bytes()


def from_text(text: bytes, path: str, name: str, *, where: str) -> Callable:
    """The function of a file whose text is given, so that a later change of the file changes nothing."""
    file = str(Path(path).resolve())
    digest = hashlib.sha256(file.encode() + text).hexdigest()
    module_name = f"lgrpo_lite_user_{digest[:16]}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = file
        sys.modules[module_name] = module
        try:
            exec(compile(text, path, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            what = f"{path} does not import: it {_said(error)}"
            place = _line_of(error, path) or where
            raise DataError(what, where=place, fix="run it with python first") from error
    function = getattr(sys.modules[module_name], name, None)
    if not callable(function):
        raise DataError(f"{path} has no function {name!r}", where=where, fix="check the name after the colon")
    return function
