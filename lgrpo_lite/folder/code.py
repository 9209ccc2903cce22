"""The code of a run in its folder: a copy of each Python file that the recipe names, and what it was.

    code/mine.py   code/2/mine.py (another of that name)   code/files.json: path, place, sha256, copy of each

What those files import is not among it.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.machine.disk import write_whole
from lgrpo_lite.recipe.code import SHORT, CodeFile, paths_of
from lgrpo_lite.recipe.schema import Recipe

RECORD = Path("code", "files.json")


@dataclass(frozen=True, slots=True)
class Change:
    """A file that is no longer what the run began with."""

    path: str
    copy: Path  # as it was, in the run folder
    hashes: str  # old -> new, shortened

    def __str__(self) -> str:
        return f"{self.path} ({self.hashes})"


def store(run: Path, files: Sequence[CodeFile]) -> None:
    """Write the copies, then the record. No files: nothing."""
    rows = []
    taken: set[str] = set()
    for file in files:
        copy = _free(Path(file.path).name, taken)
        target = run / "code" / copy
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, file.text)
        rows.append({"path": file.path, "place": file.place, "sha256": file.sha256, "copy": copy})
    if rows:
        write_whole(run / RECORD, json.dumps(rows, indent=1))


def _free(name: str, taken: set[str]) -> str:
    """A place for a copy; `taken` grows by it. Letter case tells no two files apart everywhere."""
    place, number = name, 1
    while place.casefold() in taken:
        number += 1
        place = f"{number}/{name}"
    taken.add(place.casefold())
    return place


def stored(run: Path) -> dict[str, dict[str, Any]] | None:
    """The record by path; None where the run has none, as before it was kept. Unreadable: ConfigError."""
    try:
        rows = json.loads((run / RECORD).read_text("utf-8"))
        return {str(row["path"]): {"sha256": str(row["sha256"]), "copy": str(row["copy"])} for row in rows}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        what = "the record of the code that the run executes cannot be read"
        fix = "put it back from a copy, or choose another --name"
        raise ConfigError(what, where=str(run / RECORD), fix=fix) from None


def changes(run: Path, recipe: Recipe) -> list[Change]:
    """Files that the recipe names and that are not what the run began with, or are gone. None is executed."""
    record = stored(run) or {}
    changed = []
    for path in paths_of(recipe):
        row = record.get(path)
        if row is None:
            continue
        try:
            now = CodeFile(path, Path(path).read_bytes()).sha256
        except (OSError, ValueError):
            now = "gone"
        if now != row["sha256"]:
            hashes = f"{row['sha256'][:SHORT]} -> {now[:SHORT]}"
            changed.append(Change(path, run / "code" / row["copy"], hashes))
    return changed


def warned(run: Path, recipe: Recipe) -> list[str]:
    """A line for each file that is not what the run was trained with."""
    return [
        f"{change} has changed since the run, which keeps {change.copy}" for change in changes(run, recipe)
    ]


def demand_unchanged(run: Path, recipe: Recipe) -> None:
    """Refuse (exit 2) to go on with a run whose code is another now."""
    changed = changes(run, recipe)
    if not changed:
        return
    shown = "; ".join(map(str, changed[:5])) + ("; …" if len(changed) > 5 else "")
    first = changed[0]
    copy, place = shlex.quote(str(first.copy)), shlex.quote(first.path)
    fix = f"see `diff {copy} {place}`; resume with the file it was started with, or choose another --name"
    raise ConfigError(f"the run's code has changed: {shown}", where=str(first.copy), fix=fix)
