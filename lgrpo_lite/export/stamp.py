"""Of which checkpoint an export was made, and what files it had: known by a hidden file in it, so that an old
one is never taken for a new one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from lgrpo_lite.machine.disk import text_of, write_whole

STAMP = ".made_of.json"  # hidden: it is no part of what others read, and does not go up


def files_in(folder: Path) -> list[Path]:
    """The files of an export, those in its folders too, by name; nothing hidden."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            found.append(path)
    return found


def put_stamp(folder: Path, run: Path, checkpoint: str) -> None:
    """Write down that `folder` was made of a checkpoint of a run, as it now is."""
    names = [path.relative_to(folder).as_posix() for path in files_in(folder)]
    write_whole(folder / STAMP, json.dumps(_source(run, checkpoint) | {"files": names}, indent=1))


def outdated(folder: Path, run: Path, checkpoint: str) -> str | None:
    """Why an export is not the whole one of that checkpoint; None: it is."""
    if not folder.is_dir():
        return "it is not made yet"
    try:
        stamp = json.loads(text_of(folder / STAMP))
        made_of = {key: stamp[key] for key in ("checkpoint", "sums")}
        lost = [name for name in stamp["files"] if not (folder / name).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say what it was made of"
    if made_of != _source(run, checkpoint):
        return f"it was made of another checkpoint, {made_of['checkpoint']}"
    return f"it lacks {lost[0]}" if lost else None


def _source(run: Path, checkpoint: str) -> dict[str, Any]:
    """A checkpoint by its name and by the sums of its files: a run that was taken up again from an earlier
    step may give a name twice.
    """
    sums = run / "checkpoints" / checkpoint / "SHA256SUMS"
    digest = hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else None
    return {"checkpoint": checkpoint, "sums": digest}
