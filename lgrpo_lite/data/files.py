"""JSONL, JSON, CSV, TSV, parquet and the Hub as rows of named values, each with the place an error names.

Nothing here knows what a column means. A line that cannot be read is a record with a fault, so that a reader
may go on after it; a file that cannot be read raises.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any, BinaryIO

from lgrpo_lite import progress
from lgrpo_lite.errors import DataError, EnvironmentFault
from lgrpo_lite.machine.hub import cache_alone
from lgrpo_lite.recipe.schema import Source

MAX_LINE = 2**26  # bytes; a longer line is a file of another kind, and would be held in memory whole
READ_ROWS = 1024  # of parquet at once
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """A row as it stands in its source. `number` counts lines from 1 in text files, rows from 0 elsewhere."""

    number: int
    place: str  # "FILE:LINE", or "FILE row 7 (index 6)"
    fields: dict[str, Any] = field(default_factory=dict)
    fault: DataError | None = None  # why there are no fields


def records(source: Source, where: str) -> Iterator[Record]:
    """All rows of a `path` or an `hf` source, in order. The file's ending says what it is; `.gz` may follow.

    A source that cannot be opened: DataError. A package that reading needs: EnvironmentFault.
    """
    if source.path is None:
        return _from_hub(source, where)
    path = Path(source.path)
    if not os.path.isfile(path):  # where pathlib raises on a name that is too long
        fix = "check the path, relative to the current folder"
        raise DataError(f"no such file: {path}", where=where, fix=fix)
    if ending(path) == ".parquet":
        return _from_parquet(path, where)
    readers = {".csv": _from_csv, ".tsv": _from_csv, ".json": _from_json}
    return _opened(path, readers.get(ending(path), _from_lines), where)


def ending(path: Path) -> str:
    """`.csv` of `train.csv` and of `train.csv.gz`, in lower case."""
    name = path.stem if _is_gzip(path) else path.name
    return Path(name).suffix.lower()


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _opened(path: Path, reader, where: str) -> Iterator[Record]:
    try:
        with gzip.open(path, "rb") if _is_gzip(path) else path.open("rb") as file:
            yield from reader(path, file)
    except (OSError, EOFError, zlib.error) as error:
        fix = "check that the file is whole and readable"
        raise DataError(f"cannot read {path}: {error}", where=where, fix=fix) from None


def _lines(path: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1, their ends included; a byte order mark is left out."""
    read_line = partial(file.readline, MAX_LINE + 1)
    for number, line in enumerate(iter(read_line, b""), 1):
        if len(line) > MAX_LINE:
            what = f"a line of more than {MAX_LINE // 2**20} MiB"
            fix = f"is this a {', '.join(ENDINGS[:-1])} file of one row a line?"
            raise DataError(what, where=f"{path}:{number}", fix=fix)
        if number == 1:
            line = line.removeprefix(BOM)
        yield number, line


def _from_lines(path: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[Record]:
    return _line_records(path, _lines(path, file))


def _line_records(path: Path, lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
    for number, line in lines:
        if line.strip():
            yield _record(number, f"{path}:{number}", _parsed, line)


def _record(number: int, place: str, parse, line: Any) -> Record:
    try:
        return Record(number, place, parse(line, place))
    except DataError as fault:
        return Record(number, place, fault=fault)


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        return _as_object(json.loads(_text(line, place)), place)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=place, fix="one JSON object a line") from None


def _as_object(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        fix = "one JSON object a row, with the columns as keys"
        raise DataError("not a JSON object", where=place, fix=fix)
    return value


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8: {error.reason} at byte {error.start}"
        raise DataError(what, where=place, fix="save the file as UTF-8") from None


def _from_json(path: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[Record]:
    """One list of objects, each named by the line it begins on. A file that begins otherwise is JSONL."""
    lines = dropwhile(_is_blank, _lines(path, file))
    head = next(lines, None)
    if head is None:
        return
    first, line = head
    rest = chain([head], lines)
    if not line.lstrip().startswith(b"["):
        yield from _line_records(path, rest)
        return
    texts = [_text(line, f"{path}:{number}") for number, line in rest]
    yield from _list_items(path, "".join(texts), first)


def _is_blank(numbered: tuple[int, bytes]) -> bool:
    _, line = numbered
    return not line.strip()


def _list_items(path: Path, text: str, number: int) -> Iterator[Record]:
    """The items of a JSON list whose text begins on line `number`."""
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    counted = 0  # up to here line breaks are in `number`
    while True:
        position = _skipped(text, position, " \t\r\n,")
        number += text.count("\n", counted, position)
        counted = position
        place = f"{path}:{number}"
        if text.startswith("]", position):
            _demand_end(path, text, position + 1, number)
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            fix = "a list of JSON objects, closed by ]"
            raise DataError(f"not JSON: {error}", where=place, fix=fix) from None
        yield _record(number, place, _as_object, value)


def _demand_end(path: Path, text: str, position: int, number: int) -> None:
    """Nothing but blanks behind the list, which closes on line `number`: rows behind it would not be read."""
    end = _skipped(text, position, " \t\r\n")
    if end < len(text):
        number += text.count("\n", position, end)
        fix = "one list a file: put all rows between its brackets, or write one object a line (.jsonl)"
        raise DataError("text after the end of the list", where=f"{path}:{number}", fix=fix)


def _skipped(text: str, position: int, characters: str) -> int:
    """Past the characters at a position; at once, however many there are."""
    found = re.compile(f"[{characters}]*").match(text, position)
    return found.end() if found else position


def _from_csv(path: Path, file: BinaryIO | gzip.GzipFile) -> Iterator[Record]:
    """The first row names the columns. A value in quotes may hold line breaks; a row begins on its line."""
    csv.field_size_limit(MAX_LINE)  # of this process: the module knows no other
    delimiter = "\t" if ending(path) == ".tsv" else ","
    rows = csv.reader(_separated(path, file, delimiter), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    for number, row in _numbered(path, rows):
        place = f"{path}:{number}"
        if header is None:
            header = [name.strip() for name in row]
            if len(set(header)) < len(header) or "" in header:
                what = "two columns of one name, or one without"
                raise DataError(what, where=place, fix="name every column in the first row")
        elif len(row) != len(header):
            what = f"{len(row)} values, and the first row names {len(header)} columns"
            fix = "mend the row; a value with a comma, quote or line break goes into quotes"
            yield Record(number, place, fault=DataError(what, where=place, fix=fix))
        else:
            fields = dict(zip(header, row, strict=True))
            yield Record(number, place, fields)


def _separated(path: Path, file: BinaryIO | gzip.GzipFile, delimiter: str) -> Iterator[str]:
    """Its lines, the first of which, that of the names, has to be separated so."""
    named = False
    for number, line in _lines(path, file):
        text = _text(line, f"{path}:{number}")
        if not named and text.strip():
            named = True
            _demand_separator(text, delimiter, f"{path}:{number}")
        yield text


def _demand_separator(names: str, delimiter: str, place: str) -> None:
    """One column, outside of whose quotes stands what separates columns elsewhere: DataError."""
    bare = re.sub(r'"[^"]*"', "", names).strip("\r\n")
    others = [other for other in ",;\t|" if delimiter not in bare and other in bare]
    if others:
        named = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
        what = f"its columns seem to be separated by {named[others[0]]}, and {named[delimiter]} is read here"
        fix = "save it as .tsv" if others[0] == "\t" else "save it with commas (.csv) or tabs (.tsv)"
        raise DataError(what, where=place, fix=fix)


def _numbered(path: Path, rows) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of the line it begins on."""
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            what = f"not CSV: {error}, in the row that begins here"
            fix = "close its quotes; a quote inside quotes is written twice"
            raise DataError(what, where=f"{path}:{number}", fix=fix) from None
        if row is None:
            return
        if row:
            yield number, row


def _from_parquet(path: Path, where: str) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        fix = 'pip install "lgrpo-lite[data]", or give the data as JSONL or CSV'
        raise EnvironmentFault("reading parquet needs the package pyarrow", where=where, fix=fix) from None
    try:
        with parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(READ_ROWS))
            yield from _indexed(chain.from_iterable(batches), str(path))
    except (ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        # also of values that Python has none of: a time after the year 9999, a zone that nobody knows
        reason = str(error).partition("\n")[0]
        fix = "check that it is a whole parquet file"
        raise DataError(f"cannot read {path}: {reason}", where=where, fix=fix) from None


def _from_hub(source: Source, where: str) -> Iterator[Record]:
    """A data set by Hub id, or a folder that `datasets` reads: `train.jsonl`, `data/train-*.parquet`, …"""
    try:
        from datasets import disable_progress_bars, load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        what = "reading from the Hub needs the package datasets"
        fix = 'pip install "lgrpo-lite[data]", or give path: FILE.jsonl'
        raise EnvironmentFault(what, where=where, fix=fix) from None
    disable_progress_bars()  # they would write over the live view
    why = None if os.path.isdir(source.hf or "") else cache_alone(os.environ)
    try:
        progress.told(f"reading {source.hf}", 0)
        rows = load_dataset(source.hf or "", source.config, split=source.split)
        progress.told(f"reading {source.hf}", 1, 1)
    except Exception as error:  # the library raises a dozen kinds, from no network to no such split
        if why is not None:
            what = f"{source.hf} is not on this machine, and {why}"
            fix = "connect, or set HF_ENDPOINT to a mirror; or give path: FILE.jsonl"
            raise EnvironmentFault(what, where=where, fix=fix) from error
        fix = "check the name, config and split, and the network; or give path: FILE.jsonl"
        what = f"cannot load {source.hf} ({source.split}): {error}"
        raise DataError(what, where=where, fix=fix) from error
    yield from _indexed(rows, source.hf or "")


def _indexed(rows: Iterable[Any], name: str) -> Iterator[Record]:
    for index, fields in enumerate(rows):
        place = f"{name} row {index + 1} (index {index})"
        yield Record(index, place, fields)
