"""Data files: rows in every format that is read, with odd cells, columns, bytes and kinds of file; read by
`validate`, which names the row or the file, or by the reader itself, whose errors are this project's.
"""

import csv
import datetime
import decimal
import gzip
import io
import json
import random
from importlib import import_module
from pathlib import Path
from typing import Any

from lgrpo_lite.data.prompts import Wants, read
from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.recipe.schema import Source
from lgrpo_lite.verifier.verify import gold_fault

from .case import LONGEST, Told, about, command, damaged, placed

COUNT, SECONDS, MEMORY = 500, 5.0, 700
ENDINGS = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".parquet",
    ".jsonl.gz",
    ".json.gz",
    ".csv.gz",
    ".JSONL",
    "",
    ".gz",
    ".parquet.gz",
)
CELLS = [
    "1", "", " ", "\0", "\x1b[2J", "\r\n", '"', "''", ",", "\t", "\ud800", "\u202e", "ž数", "#### 5", "\\boxed{5}", "\\boxed{", "a" * 4000, "b" * 2_000_000, "\n" * 3000,
    "NaN", "=1+1", "None", "x=" * 30_000, "5\\%", "\ufeff", "\u2028", "[1]", '{"a": 1}', 5, -1, 1.5, 0, 10**400, float("nan"), float("inf"), 1e308, True, False, None, [], {}, [1], ["a"],
    [[1]], [None], {"a": None}, [{"role": "user", "content": "q"}], [{"role": "user"}], [{"role": "x", "content": "q"}], [{"role": "assistant", "content": "q"}],
    [{"role": "user", "content": 5}], [{"role": ["user"], "content": "q"}], [{"criterion": "c", "weight": 1}], [{"criterion": "c", "weight": "x"}], [{"input": "1", "output": "2"}],
    [{"criterion": "c", "points": 10**400}], [{"criterion": "", "points": 1}] * 300, {"truth": "5"}, {"b": {"c": [1, {"d": "5"}]}},
]  # fmt: skip
NAMES = [
    "question",
    "answer",
    "id",
    "solution",
    "criteria",
    "",
    " ",
    "a.b",
    "0",
    "question ",
    "\x1b[2Jx",
    "x" * 5000,
    "ž",
    "\0",
    "answer.truth",
]
COLUMNS = [
    "question",
    "answer",
    "prompt",
    "answer.truth",
    "answer.0",
    "answer.b.c.1.d",
    "0",
    "",
    ".",
    "x",
    "question.0.content",
    "id",
    "x" * 3000,
    "answer." * 300,
]
LINES = [
    b"{", b"[", b"]", b"7", b"[1]", b"null", b"NaN", b"{}", b'{"question": 1', b"[" * 90_000, b'{"a":' * 90_000, b'{"question": "a", "question": "b", "answer": "1"}', b"\xff", b"\0" * 99,
    b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", b'{"question": "a", "answer": 1e999}', b"question,answer", b"a,1,2", b'"a', b'"a"b,1', b"\r", b"," * 5000, b"//", b'{"question": "\\ud800", "answer": "1"}',
]  # fmt: skip


def prepare(folder: Path) -> None:
    import_module("pyarrow.parquet")  # here, so that no worker takes its seconds


def attack(draw: random.Random, folder: Path, prepared: None) -> Told:
    rows = [odd_row(draw) for _ in range(draw.choice([0, 1, 3, 3, 8, 8, 40]))]
    ending = draw.choice(ENDINGS)
    data = encoded(draw, rows, ending)
    if draw.random() < 0.35:
        data = damaged(draw, data)
    if draw.random() < 0.1 and ending.endswith(".gz"):
        data = bomb(draw)
    path = folder / f"{draw.choice(['rows'] * 9 + ['ž', '[red]', '-x', 'y' * 230])}{ending}"
    kind = placed(draw, path, data)
    named = (
        str(path)
        if draw.random() < 0.97
        else draw.choice(["", ".", "x" * 5000, "a\0b", "/dev/stdin", "~", "/proc/self/environ", str(folder)])
    )
    source: dict[str, Any] = {"path": named, "bad_rows": draw.choice(["refuse", "refuse", "skip"])}
    if draw.random() < 0.4:
        source |= {key: draw.choice(COLUMNS) for key in ("prompt", "answer") if draw.random() < 0.6}
    if draw.random() < 0.2:
        source[draw.choice(["rubric", "solution"])] = draw.choice(["criteria", "solution", "answer", "x"])
    if draw.random() < 0.3:
        source["answer_extract"] = draw.choice(["plain", "gsm8k", "boxed"])
    if draw.random() < 0.2:
        source["limit"] = draw.choice([1, 2, 10**6])
    about(f"{source}\n--- {kind}, {len(data)} bytes\n{data[:20_000]!r}")
    if draw.random() < 0.7 and "\0" not in named:
        return by_command(draw, folder, source)
    return by_reader(source)


def by_command(draw: random.Random, folder: Path, source: dict[str, Any]) -> Told:
    where = draw.choice(["train", "train", "eval"])
    recipe: dict[str, Any] = {
        "model": {"id": "builtin:tiny-math"},
        "data": {"train": {"task": "arithmetic", "limit": 4}, where: source},
        "rewards": [{"use": draw.choice(["exact", "numeric", "math", "code"])}],
    }
    file = folder / "r.yaml"
    file.write_text(json.dumps(recipe), "utf-8")
    said = command("validate", str(file))
    return Told(said.outcome, tuple(said.faults), str(said))


def by_reader(source: dict[str, Any]) -> Told:
    """What a run calls: rows or a DataError that has a place."""
    try:
        count = 0
        for row in read(Source(**source), "here", Wants(gold_fault)):
            count += 1
            assert row.question.strip() and row.reference.strip(), row
        return Told("read", (), f"{count} rows")
    except LgrpoError as error:
        faults = ["exit code 1"] if error.exit_code == 1 else []
        if len(str(error)) > LONGEST:
            faults.append(f"a message of {len(str(error))} characters")
        return Told(f"refused {error.exit_code}", tuple(faults), str(error))


# ------------------------------------------------------------------------------------------- files


def odd_row(draw: random.Random) -> dict[str, Any]:
    """A good row in most cases; else cells, columns or all of it are odd."""
    row: dict[str, Any] = {"question": f"{draw.randrange(99)}+1=?", "answer": str(draw.randrange(99))}
    if draw.random() < 0.3:
        row[draw.choice(["question", "answer"])] = draw.choice(CELLS)
    if draw.random() < 0.1:
        row[draw.choice(NAMES)] = draw.choice(CELLS)
    if draw.random() < 0.05:
        row.pop(draw.choice(list(row)))
    return row


def encoded(draw: random.Random, rows: list[dict[str, Any]], ending: str) -> bytes:
    kind = ending.lower().removesuffix(".gz")
    if kind == ".parquet":
        data = parquet(draw, rows)
    elif kind == ".json":
        data = json.dumps(rows, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
        data = (
            draw.choice([b"", b"", b"\n\n", b"\xef\xbb\xbf"])
            + data
            + draw.choice([b"", b"", b"\n", b" x", b"]", b"\n[]"])
        )
    elif kind in (".csv", ".tsv"):
        data = table(rows, "," if kind == ".csv" else "\t")
    else:
        lines = [
            json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass") for row in rows
        ]
        if draw.random() < 0.3:
            lines.insert(draw.randint(0, len(lines)), draw.choice(LINES))
        data = draw.choice([b"\n", b"\n", b"\r\n", b"\r", b"\n\n"]).join(lines)
    return gzip.compress(data, 1) if ending.endswith(".gz") else data


def table(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        writer.writerow([row.get(name, "") for name in names[: len(row) + 1]])
    return out.getvalue().encode("utf-8", "surrogatepass")


def bomb(draw: random.Random) -> bytes:
    """Little that becomes much: at most 96 MiB, and 4 MiB of lines, each of which is honest work."""
    piece = draw.choice(
        [b"\0", b" ", b"\n", b"[", b'{"a":', b'"', b"9", b'{"question": "q", "answer": "1"}\n']
    )
    most = 4 if b"\n" in piece else 96
    head = draw.choice([b"", b"[", b'{"question": "'])
    return gzip.compress(head + piece * ((draw.choice([1, most // 4, most]) << 20) // len(piece)), 1)


def parquet(draw: random.Random, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet as files

    count = len(rows)
    columns = {"question": [f"q{i}" for i in range(count)], "answer": [draw.choice(PARQUET)] * count}
    if draw.random() < 0.3:
        columns["question"] = [[{"role": "user", "content": "q"}]] * count
    arrays = []
    for values in columns.values():
        value, kind = values[0] if values and isinstance(values[0], tuple) else (None, None)
        arrays.append(arrow.array([value] * count, kind) if kind is not None else arrow.array(values))
    names = list(columns) if draw.random() < 0.9 else ["question", "question"]
    out = io.BytesIO()
    files.write_table(
        arrow.table(arrays, names=names), out, compression=draw.choice(["snappy", "gzip", "zstd", "none"])
    )
    return out.getvalue()


def _kinds() -> list[Any]:
    import pyarrow as arrow

    day = datetime.date(2020, 1, 1)
    return [
        ("5", arrow.string()), (5, arrow.int64()), (5, arrow.uint64()), (5.5, arrow.float16()), (float("nan"), arrow.float64()), (decimal.Decimal("1.5"), arrow.decimal128(9, 2)), (True, arrow.bool_()),
        (b"\xff", arrow.binary()), (b"5", arrow.large_binary()), (None, arrow.null()), (None, arrow.string()), (day, arrow.date32()), (2**50, arrow.timestamp("s")), (-(2**60), arrow.timestamp("ms")),
        (2**62, arrow.timestamp("us")), (5, arrow.timestamp("ns")), (5, arrow.timestamp("ns", "Nowhere/Zone")), (2**62, arrow.duration("s")), (2**62, arrow.date64()), (5, arrow.time64("ns")),
        (["5"], arrow.list_(arrow.string())), ([], arrow.list_(arrow.string())), ({"truth": "5"}, arrow.struct([("truth", arrow.string())])), ([("a", 1)], arrow.map_(arrow.string(), arrow.int64())),
        ([[("a", 1)]], arrow.list_(arrow.map_(arrow.string(), arrow.int64()))), ("x" * 1_000_000, arrow.string()), ("\x1b[2J", arrow.large_string()),
    ]  # fmt: skip


PARQUET = _kinds()
