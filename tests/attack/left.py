"""What a run leaves behind, as digests by file: two runs that should be one are compared by it."""

import gzip
import hashlib
import json
from pathlib import Path

MEASURED = ("time", "seconds", "memory", "reward_p50", "reward_p95", "attempt")
TOLD = (
    "logs",
    "events.jsonl",
    "env.json",
    "report.md",
    "report.svg",
    ".lock",
)  # of its attempts, with their times

CARD = "README.md"  # of an export: it tells how long the run took


def left(folder: Path) -> dict[str, str]:
    """Every file of a run folder but what tells of its attempts: weights, optimisers, random states,
    links, metrics, evaluations, completions and exports. Times and what a machine measures are left out.
    """
    kept = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in TOLD or path.name == CARD:
            continue
        if path.is_symlink():
            kept[name] = f"-> {path.readlink()}"
        elif path.is_file():
            kept[name] = hashlib.sha256(_content(path)).hexdigest()
    return kept


def differing(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in expected | actual if expected.get(name) != actual.get(name))


def _content(path: Path) -> bytes:
    if path.name == "STATUS.json":
        status = json.loads(path.read_text("utf-8"))
        return json.dumps([status.get(key) for key in ("state", "step", "exit_code")]).encode()
    if path.name == ".made_of.json":
        stamp = json.loads(path.read_text("utf-8"))
        stamp["files"].pop(CARD, None)  # its size
        return json.dumps(stamp).encode()
    if path.suffix == ".jsonl":
        rows = map(json.loads, path.read_text("utf-8").splitlines())
        return json.dumps([{key: row[key] for key in row if key not in MEASURED} for row in rows]).encode()
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    return path.read_bytes()
