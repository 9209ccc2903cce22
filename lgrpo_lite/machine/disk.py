"""Files that survive a kill: replaced whole, locked by one process, read line by line as far as they
are whole.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lgrpo_lite.errors import ConfigError


def write_whole(path: Path, text: str | bytes, *, sync: bool = True) -> None:
    """Write or replace a file: after a kill at any moment it is the old or the new one; with `sync` after a
    power cut too.
    """
    data = text.encode() if isinstance(text, str) else text
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.replace(fresh, path)


def lock(folder: Path, busy: str, fix: str) -> TextIO:
    """Hold `folder` until the returned file is closed. Another process holds it: ConfigError that says
    `busy` and `fix`.
    """
    lock_file = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock_file.close()
        raise ConfigError(busy, where=str(folder), fix=fix) from None
    return lock_file


def objects(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of a JSONL file; a line cut short by a kill, or a foreign one, is
    passed over.
    """
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
