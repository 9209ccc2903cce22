"""A folder that appears whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.machine.disk import is_tree, text_of

REPORT = "export_report.json"
REPORTS = ("merge_report.json", "adapter_config.json", REPORT)  # one is in each of our exports


@contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A folder to fill, which is at `out` when the block ends well; else there is nothing new there.

    Only an earlier export at `out` is ever replaced. A foreign folder, or one that cannot be written:
    ConfigError.
    """
    fix = "choose another --out"
    if out.exists() and not any((out / name).exists() for name in REPORTS):
        raise ConfigError("that folder exists and is no earlier export", where=str(out), fix=fix)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write: {error.strerror}", where=str(out), fix=fix) from None
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)


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
