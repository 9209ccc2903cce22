"""Harm to a run folder: flips, cuts, odd lines and values, foreign kinds of files, links, renames."""

import json
import os
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

from .case import damaged, placed

ODD: list[Any] = [
    None, True, 0, -1, 1, 1.5, 3, 99, 10**9, 2**63, 10**40, -(10**40), 1e308, float("nan"), float("inf"), "", "x", "1", "\x1b[2J\x07", "\ud800", "a\nb", "z" * 9000, [], {}, [1], [[]], {"a": 1},
    [None] * 3, ["x", 1], {"x": {"y": []}}, [{"name": 5}], [{"name": "no_signal", "count": "x"}], {"update": "x"}, {"rollout": -1}, [1, 2, 3], {"accuracy": [1]}, {"accuracy": ["a", "b"]},
]  # fmt: skip
LINES = [
    b"7", b"[1]", b"null", b"{}", b'"x"', b"{", b"}", b"NaN", b"\xff\xfe", b"\0" * 50, b"[" * 100_000, b'{"a":' * 100_000, b'{"step": "x"}',
    b'{"step": 2, "seconds": ' + b"[" * 600 + b"]" * 600 + b"}", b'{"kind": "warning", "message": ' + b'{"a":' * 700 + b"1" + b"}" * 700 + b"}",
    b'{"step": -1}', b'{"step": 1e999}', b'{"step": true}',
    b'{"step": 99999999999999999999999}', b'{"step": 2}', b'{"step": 2.0}', b'{"step": 4000}', b'{"step": [1]}', b"9" * 5000, b'{"step": ' + b"9" * 5000 + b"}", b"x" * 300_000, b'{"kind": 5}',
    b'{"kind": "alarm"}', b'{"kind": "alarm", "name": []}', b'{"kind": "warning"}', b'{"kind": "warning", "message": ["x"]}', b'{"kind": "baseline"}', b'{"kind": "proof", "checks": 5}',
    b'{"kind": "failed", "message": "\\u001b[2J"}', b'{"kind": "saved", "step": "x", "seconds": []}', b'{"kind": "prompts_left_out", "count": "x"}', b'{"kind": "chosen"}', b'{"kind": "resumed"}',
    b'{"kind": "plan", "lines": 5}', b'{"kind": "progress", "what": 5}',
]  # fmt: skip
SETTINGS = [
    "train: 5", "train: {steps: x}", "train: {steps: -1}", "train: {steps: 1e308}", "model: []", "model: {id: 5}", "algorithm: {use: [x]}", "algorithm: null", "algorithm: {use: nothing}", "5", "[]", "",
    "a: &a [*a]", "a: 2026-99-99", "a: !!int x", "a: !!python/name:os.system x", "\t", "a: b: c", "{", "recipe: {name: '\\x1b'}", "rewards: 5", "rewards: [5]", "eval: {k: []}", "seed: .nan", "a: " + "[" * 2000,
]  # fmt: skip
NAMES = [
    "checkpoints/step-9", "checkpoints/step-abc", "checkpoints/step-", "checkpoints/step-000099", "checkpoints/.partial-000003", "checkpoints/best", "checkpoints/latest", "checkpoints/.latest.new",
    "completions/step-x.jsonl.gz", "completions/step-000009.jsonl.gz", "completions/step-99999999999999999999.jsonl.gz", "completions/step-000003.jsonl.new", "evals/x", "evals/x/about.json",
    "evals/x/result.json", "logs/attempt_x", "logs/attempt_99999999999999999999", "logs/attempt_2", "logs/attempt_\u00b2", "logs/latest", "values.jsonl", ".STATUS.json.new", ".lock", "export", "report.svg", "ž\n\x1b[2J",
]  # fmt: skip


def harm(draw: random.Random, path: Path) -> str:
    """Do one harm to a run folder; says what."""
    kind = draw.choice(HARMS)
    try:
        return f"{kind.__name__[1:]} {kind(draw, path)}"
    except (OSError, ValueError, EOFError, zlib.error) as error:  # an earlier harm is in the way
        return f"{kind.__name__[1:]} nothing, {error}"


def _file(draw: random.Random, path: Path) -> Path:
    """One of its files, those a run is read from more often."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink() and file.name != ".lock"
    ]
    chief = [
        file
        for file in files
        if file.parent == path
        or file.parent.name in ("completions", "evals")
        or file.name in ("state.json", "SHA256SUMS", "trainer.pt")
    ]
    return draw.choice(chief if chief and draw.random() < 0.7 else files or [path / "STATUS.json"])


def _name(draw: random.Random, path: Path) -> Path:
    return draw.choice([part for part in sorted(path.rglob("*")) if part.name != ".lock"] or [path / "x"])


def _damage(draw: random.Random, path: Path) -> str:
    file = _file(draw, path)
    file.write_bytes(damaged(draw, file.read_bytes()))
    return str(file.relative_to(path))


def _remove(draw: random.Random, path: Path) -> str:
    part = _name(draw, path)
    shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    return str(part.relative_to(path))


def _replace(draw: random.Random, path: Path) -> str:
    """By another kind of file, what was in it behind a link."""
    part = _file(draw, path) if draw.random() < 0.7 else _name(draw, path)
    data = part.read_bytes() if part.is_file() else b"x"
    shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
    for _ in range(20):
        kind = placed(draw, part, data)
        if kind != "file":
            return f"{part.relative_to(path)} by {kind}"
        part.unlink()
    return f"{part.relative_to(path)} by nothing"


def _odd_line(draw: random.Random, path: Path) -> str:
    file = path / draw.choice(["metrics.jsonl", "metrics.jsonl", "evals.jsonl", "events.jsonl"])
    lines = file.read_bytes().splitlines()
    line = draw.choice(LINES)
    lines.insert(draw.randint(0, len(lines)), line)
    file.write_bytes(b"\n".join(lines) + draw.choice([b"\n", b"\n", b""]))
    return f"{file.name}: {line[:60]!r}"


def _odd_value(draw: random.Random, path: Path) -> str:
    """A line or a file that is JSON, with another value somewhere."""
    file = path / draw.choice(["metrics.jsonl", "evals.jsonl", "events.jsonl", "STATUS.json", "env.json"])
    lines = file.read_text("utf-8").splitlines()
    number = draw.randrange(len(lines))
    row = json.loads(lines[number])
    node = row
    while True:
        key = draw.choice(list(node))
        if not isinstance(node[key], dict) or not node[key] or draw.random() < 0.4:
            break
        node = node[key]
    node[key] = draw.choice(ODD)
    lines[number] = json.dumps(row)
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return f"{file.name}:{number + 1} {key}={str(node[key])[:60]!r}"


def _odd_checkpoint(draw: random.Random, path: Path) -> str:
    """Of state.json or of the sums, the sums of which agree with it in half the cases."""
    folder = draw.choice(sorted((path / "checkpoints").glob("step-*")))
    file = folder / draw.choice(["state.json", "SHA256SUMS"])
    lines = file.read_text("utf-8").splitlines()
    number = draw.randrange(len(lines))
    lines[number : number + 1] = draw.choice(
        [[], [], ["x"], [lines[number]] * 2, ["0" * 64 + "  ../x"], ["0" * 64 + "  /dev/zero"], [""]]
    )
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return f"{file.relative_to(path)}:{number + 1}"


def _odd_settings(draw: random.Random, path: Path) -> str:
    text = draw.choice(SETTINGS)
    (path / "config.resolved.yaml").write_text(text, "utf-8")
    return text[:60]


def _odd_samples(draw: random.Random, path: Path) -> str:
    import gzip

    file = draw.choice(sorted((path / "completions").glob("*.gz")))
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    row = draw.choice(rows)
    key = draw.choice(list(row))
    row[key] = draw.choice([*ODD, ["x"] * 5000, "y" * 300_000])
    lines = [json.dumps(row).encode() for row in rows]
    if draw.random() < 0.3:
        lines.insert(0, draw.choice(LINES))
    file.write_bytes(gzip.compress(b"\n".join(lines)))
    return f"{file.name}: {key}={str(row[key])[:60]!r}"


def _rename(draw: random.Random, path: Path) -> str:
    part, to = _name(draw, path), path / draw.choice(NAMES)
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.is_symlink() or to.is_file():
        to.unlink()
    if draw.random() < 0.3 and part.is_dir():
        shutil.copytree(part, to, symlinks=True)
    else:
        part.rename(to)
    return f"{part.relative_to(path)} to {to.name!r}"


def _add(draw: random.Random, path: Path) -> str:
    part = path / draw.choice(NAMES)
    if part.is_symlink() or part.is_file():
        part.unlink()
    part.parent.mkdir(parents=True, exist_ok=True)
    if draw.random() < 0.3:
        part.mkdir()
        return f"folder {part.name!r}"
    if draw.random() < 0.3:
        target = draw.choice(
            ["step-000001", "../..", "nowhere", "best", "latest", "/", "/dev/zero", "step-000002/state.json"]
        )
        part.symlink_to(target)
        return f"link {part.name!r} to {target}"
    return f"{placed(draw, part, draw.choice([b'', b'x', b'{}', b'[]', bytes(99)]))} {part.name!r}"


def _move_away(draw: random.Random, path: Path) -> str:
    """A file or a folder is elsewhere, and a link leads there."""
    part = _name(draw, path)
    if part.is_symlink():
        return "nothing"
    away = path.parent.parent / "away"
    away.mkdir(exist_ok=True)
    part.rename(away / part.name)
    part.symlink_to(away / part.name)
    return str(part.relative_to(path))


def _retime(draw: random.Random, path: Path) -> str:
    part = _name(draw, path)
    seconds = draw.choice([0, 1, 2**33, 2**40, -1])
    os.utime(part, (seconds, seconds))
    return f"{part.relative_to(path)} to {seconds}"


HARMS = [
    _damage, _damage, _damage, _remove, _remove, _replace, _replace, _odd_line, _odd_line, _odd_value, _odd_value, _odd_value, _odd_checkpoint,
    _odd_settings, _odd_samples, _odd_samples, _rename, _rename, _add, _move_away, _retime,
]  # fmt: skip
