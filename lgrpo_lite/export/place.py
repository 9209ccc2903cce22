"""A folder that appears whole or not at all, in the place of an earlier export and of nothing else."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError, DiskFault, LgrpoError
from lgrpo_lite.export.stamp import foreign_in, put_stamp, read_stamp
from lgrpo_lite.machine.disk import is_full, is_tree, lock, text_of

REPORT = "export_report.json"
# What exports of versions that put no stamp had: in each of a kind, and at most.
UNSTAMPED = {"merged": "merge_report.json", "adapter": "adapter_config.json"}
KNOWN = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.gguf", "*.py")
KNOWN += ("README.md", "Modelfile", "merges.txt", "vocab.txt")
ELSEWHERE = "choose another --out"


@contextmanager
def placed(out: Path, kind: str) -> Iterator[Path]:
    """A folder to fill, which is at `out` when the block ends well; else there is nothing new there.

    Its stamp then says its `kind` and lists its files.

    Only an earlier export at `out` is ever replaced (`demand_place`). A foreign folder, one that cannot be
    written, or one to which another process exports: ConfigError. The disk is full: DiskFault.
    """
    out = demand_place(out, kind)
    holder = out.with_name(f".{out.name}.partial")
    partial, aside = holder / out.name, holder / "earlier"
    try:
        holder.mkdir(parents=True, exist_ok=True)
        held = _held(holder, out)
    except OSError as error:
        raise _unwritable(error, out) from None
    with held:
        try:
            _cleared(partial, aside, out)
            partial.mkdir()
            yield partial
            _finish(partial, aside, out, kind)
        except Exception as error:
            if not isinstance(error, LgrpoError) and is_full(error, holder):
                fix = f"make room, or {ELSEWHERE} on another disk, and export again"
                raise DiskFault("the disk is full", where=str(out), fix=fix) from error
            raise
        finally:
            if out.exists() or not aside.exists():  # else the earlier export is in there still
                shutil.rmtree(holder, ignore_errors=True)


def demand_place(out: Path, kind: str) -> Path:
    """The absolute path of `out`, if nothing is there or an earlier export that may be replaced; else
    ConfigError.

    An earlier export has our stamp, is of the same kind, and has no file that the stamp does
    not list. One of a version without stamps is known by its place, RUN/export/KIND, by its report, and by
    nothing in it but files as exports have.
    """
    if out.is_symlink():
        raise ConfigError("that is a link", where=str(out), fix="name the folder itself with --out")
    out = out.resolve()
    if not out.exists():
        return out
    why = _kept(out, kind)
    if why is not None:
        what = f"that folder exists and is no earlier export{why}"
        raise ConfigError(what, where=str(out), fix=f"{ELSEWHERE}, or move it away")
    return out


def _kept(out: Path, kind: str) -> str | None:
    """Why what is at `out` is not to be replaced; None: it may be."""
    if not out.is_dir():
        return ": it is a file"
    stamp = read_stamp(out)
    if stamp is None:
        return _kept_unstamped(out, kind)
    if stamp["kind"] != kind:
        return f" of this kind: it is one of {stamp['kind']}"
    foreign = foreign_in(out, stamp["files"])
    return f" alone: {foreign[0]} is none of its files" if foreign else None


def _kept_unstamped(out: Path, kind: str) -> str | None:
    if out.name != kind or out.parent.name != "export" or kind not in UNSTAMPED:
        return ""
    if not (out / UNSTAMPED[kind]).is_file() or not (out.parents[1] / "config.resolved.yaml").is_file():
        return ""
    files = [path.relative_to(out).as_posix() for path in out.rglob("*") if _as_exports_have(path)]
    foreign = foreign_in(out, files)
    return f" alone: {foreign[0]} is none of its files" if foreign else None


def _as_exports_have(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and not path.is_symlink() and any(path.match(pattern) for pattern in KNOWN)


def _held(holder: Path, out: Path) -> Any:
    """The lock on `holder`. A process that has just ended may have removed the file that was locked."""
    busy, fix = "another process exports to there", f"wait until it is done, or {ELSEWHERE}"
    held = lock(holder, busy, fix)
    there = holder / ".lock"
    if there.exists() and os.path.samestat(there.stat(), os.fstat(held.fileno())):
        return held
    held.close()
    raise ConfigError(busy, where=str(out), fix=fix)


def _cleared(partial: Path, aside: Path, out: Path) -> None:
    """What a process that was killed left; the earlier export is put back if it was killed between the two
    renames.
    """
    if aside.exists() and not out.exists():
        aside.rename(out)
    for leftover in (partial, aside):
        if leftover.exists():
            shutil.rmtree(leftover)


def _finish(partial: Path, aside: Path, out: Path, kind: str) -> None:
    """Stamped, and put in place: whenever this is killed, the old or the new one is whole on the disk."""
    put_stamp(partial, kind, read_stamp(partial))
    demand_place(out, kind)  # once more: an export takes hours
    if not out.exists():
        partial.rename(out)
        return
    out.rename(aside)
    try:
        partial.rename(out)
    except BaseException:
        aside.rename(out)
        raise


def _unwritable(error: OSError, out: Path) -> LgrpoError:
    if is_full(error, out.parent):
        return DiskFault("the disk is full", where=str(out), fix=f"make room, or {ELSEWHERE}")
    return ConfigError(f"cannot write: {error.strerror}", where=str(out), fix=ELSEWHERE)


def report_of(folder: Path) -> dict[str, Any]:
    """export_report.json of an export; empty where there is none that can be read."""
    return json_of(folder / REPORT)


def json_of(path: Path) -> dict[str, Any]:
    """A report; empty where it is not there or foreign."""
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) and is_tree(value) else {}
