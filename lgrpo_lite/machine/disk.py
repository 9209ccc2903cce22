"""Files that survive a kill: replaced whole, locked by one process, read line by line as far as they
are whole.
"""

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from lgrpo_lite.errors import ConfigError, DiskFault, LgrpoError

FULL = (errno.ENOSPC, errno.EDQUOT)  # no room, or none for this user
DEEPEST = 50  # lists inside each other; what runs write has a few
LEAST = 2**20  # bytes: with fewer of them free a write is taken to have failed for that


def write_whole(path: Path, text: str | bytes, *, sync: bool = True) -> None:
    """Write or replace a file: after a kill at any moment it is the old or the new one; with `sync` after a
    power cut too.
    """
    data = text.encode() if isinstance(text, str) else text
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        with suppress(OSError):  # of a full disk every byte counts
            fresh.unlink()
        raise


def write_over(path: Path, text: str) -> None:
    """Replace a small file's bytes where they lie: a full disk lets no new file be written, and a block that
    a file has already can be. A kill in between leaves half of it.
    """
    with path.open("r+b") as file:
        file.write(text.encode())
        file.truncate()


def plain(path: Path) -> Path:
    """The path of what is to be read, if it is a file or nothing: a pipe would wait for its writer, a device
    may never end. OSError: it is neither.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file", str(path))
    return path


def opened(path: Path) -> BufferedReader:
    """A regular file, to be read; OSError where it is none or not there."""
    return plain(path).open("rb")


def text_of(path: Path) -> str:
    """All of a regular file; OSError, or ValueError where it is not UTF-8."""
    with opened(path) as file:
        return file.read().decode("utf-8")


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
    passed over, and so is one that is deeper than any of ours.
    """
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and not (_has_many(line) and not is_tree(row)):
            yield row


def _has_many(line: str | bytes) -> bool:
    """Whether a line has so many brackets that it may be deep."""
    if isinstance(line, bytes):
        return line.count(b"{") + line.count(b"[") > DEEPEST
    return line.count("{") + line.count("[") > DEEPEST


def is_tree(value: Any) -> bool:
    """Whether what was read ends at a reasonable depth and nothing in it stands twice: YAML's aliases can put
    a list into itself.
    """
    seen: set[int] = set()
    left = [(value, 0)]
    while left:
        node, depth = left.pop()
        if not isinstance(node, dict | list):
            continue
        if id(node) in seen or depth > DEEPEST:
            return False
        seen.add(id(node))
        inside = node.values() if isinstance(node, dict) else node
        left += [(part, depth + 1) for part in inside]
    return True


def finite(value: Any) -> Any:
    """NaN and infinities as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def is_full(error: Exception, path: Path) -> bool:
    """Whether a write below `path` failed for want of room: the disk is full, or this user may not have more.

    torch and safetensors say it in errors of their own, so their words and the disk are asked as well.
    """
    if getattr(error, "errno", None) in FULL or any(f"(os error {number})" in str(error) for number in FULL):
        return True
    return path.is_dir() and shutil.disk_usage(path).free < LEAST


def disk_fault(error: Exception, path: Path) -> DiskFault | None:
    """What a full disk, or a run folder that is read-only or gone, also in part, does to a write; None for
    other faults.
    """
    if isinstance(error, LgrpoError):
        return None
    number = getattr(error, "errno", None)
    missing = Path(str(getattr(error, "filename", None)))
    inside = number == errno.ENOENT and missing.is_relative_to(path)
    if not path.is_dir() or (inside and missing.parent == path):  # the latter: it is back, and empty
        what, fix = "the run folder is gone", "put it back where it was, then --resume auto goes on"
    elif inside:
        what = f"a part of the run folder is gone: {missing.relative_to(path).parts[0]}"
        fix = "put it back where it was, then --resume auto goes on"
    elif is_full(error, path):
        what, fix = "the disk is full", "make room, then --resume auto goes on from the last checkpoint"
    elif number == errno.EROFS:
        what, fix = "the disk became read-only", "see why with `dmesg`, then --resume auto goes on"
    else:
        return None
    return DiskFault(what, where=str(path), fix=fix)
