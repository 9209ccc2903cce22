"""Of which kind and checkpoint an export is, and what files it has: known by a hidden file in it, so that an
old one is never taken for a new one, and a foreign file never for one of its own.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lgrpo_lite.machine.disk import is_tree, text_of, write_whole

STAMP = ".made_of.json"  # hidden: it is no part of what others read, and does not go up
CARD = "README.md"  # `export RUN card` writes it anew, and of another size


def files_in(folder: Path) -> list[Path]:
    """The files that an export made, those in its folders too, by name; nothing hidden, and no link."""
    stamp = read_stamp(folder)
    listed = {CARD, *stamp["files"]} if stamp else set()
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if name.as_posix() in listed and path.is_file() and not path.is_symlink() and not hidden:
            found.append(path)
    return found


def foreign_in(folder: Path, listed: Iterable[str]) -> list[str]:
    """What is in an export's folder and not among the files `listed`: also what is hidden, and links."""
    own = {CARD, STAMP, *listed}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if name not in own]


def source_of(run: Path, checkpoint: str) -> dict[str, Any]:
    """A checkpoint by its name and by the sums of its files: a run that was taken up again from an earlier
    step may give a name twice.
    """
    sums = run / "checkpoints" / checkpoint / "SHA256SUMS"
    digest = hashlib.sha256(sums.read_bytes()).hexdigest() if sums.is_file() else None
    return {"checkpoint": checkpoint, "sums": digest}


def put_stamp(folder: Path, kind: str, source: Mapping[str, Any] | None) -> None:
    """Write down what `folder` is, as it now is: an export of that kind, of a `source` as `source_of` has it
    (None: of none that is known).
    """
    made_of = {key: source[key] if source else None for key in ("checkpoint", "sums")}
    files = {}
    for name in foreign_in(folder, ()):
        files[name] = (folder / name).lstat().st_size
    if (folder / CARD).is_file():
        files[CARD] = (folder / CARD).stat().st_size
    write_whole(folder / STAMP, json.dumps({"kind": kind, **made_of, "files": files}, indent=1))


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """An export's kind, checkpoint, sums and files, each with its bytes; None where there is no stamp, or a
    foreign one.
    """
    try:
        stamp = json.loads(text_of(folder / STAMP))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(stamp, dict) or not is_tree(stamp) or not {"checkpoint", "sums"} <= stamp.keys():
        return None
    whole = isinstance(stamp.get("kind"), str) and isinstance(stamp.get("files"), dict)
    return stamp if whole else None


def outdated(folder: Path, kind: str, run: Path, checkpoint: str) -> str | None:
    """Why an export is not the whole one of that kind and checkpoint; None: it is."""
    if not folder.is_dir():
        return "it is not made yet"
    stamp = read_stamp(folder)
    if stamp is None or stamp["checkpoint"] is None:
        return "it does not say what it was made of"
    if stamp["kind"] != kind:
        return f"it is an export of another kind, {stamp['kind']}"
    if {key: stamp[key] for key in ("checkpoint", "sums")} != source_of(run, checkpoint):
        return f"it was made of another checkpoint, {stamp['checkpoint']}"
    changes = [_changed(folder, name, size) for name, size in stamp["files"].items()]
    return next((change for change in changes if change), None)


def _changed(folder: Path, name: str, size: int) -> str | None:
    file = folder / name
    if file.resolve() != folder.resolve() / name:
        return f"{name} is a link"
    if not file.is_file():
        return f"it lacks {name}"
    changed = name != CARD and file.stat().st_size != size
    return f"{name} was changed" if changed else None
