"""The whole plug-in system: wherever a recipe takes a name of a table, it takes `file.py:function` too.

So a recipe is code: whoever runs it runs the files that it names.
"""

import hashlib
import os
import symtable
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lgrpo_lite.errors import ConfigError, DataError, nearest


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
        except Exception as error:
            del sys.modules[module_name]
            what = f"{path} does not import: {error!r}"
            raise DataError(what, where=where, fix="run it with python first") from error
    function = getattr(sys.modules[module_name], name, None)
    if not callable(function):
        raise DataError(f"{path} has no function {name!r}", where=where, fix="check the name after the colon")
    return function
