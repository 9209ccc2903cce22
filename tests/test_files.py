"""Every format a data set comes in gives the same rows, and each fault names its place."""

import csv
import gzip
import io
import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgrpo_lite.data import files
from lgrpo_lite.data.files import records
from lgrpo_lite.data.prompts import read
from lgrpo_lite.errors import DataError, EnvironmentFault
from lgrpo_lite.recipe.schema import Source

ROWS = [
    {"question": "1+1=?", "answer": "2"},
    {"question": 'say "ž",\nplease', "answer": "ž"},
    {"question": "数", "answer": "3"},
]


def as_csv(rows: list[dict], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


TEXT = {
    "rows.jsonl": "\n\n".join(json.dumps(row) for row in ROWS),
    "rows.txt": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "rows.json": json.dumps(ROWS, indent=2),
    "lines.json": "\n".join(json.dumps(row) for row in ROWS),
    "rows.csv": as_csv(ROWS),
    "ROWS.TSV": as_csv(ROWS, "\t"),
    "bom.csv": "\ufeff" + as_csv(ROWS),
    "bom.json": "\ufeff\n" + json.dumps(ROWS),
}


def write(path: Path, text: str) -> Source:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return Source(path=str(path))


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", TEXT)
def test_text_formats_hold_the_same_rows(tmp_path, name, packed):
    source = write(tmp_path / (name + packed), TEXT[name])
    assert [{"question": row.question, "answer": row.reference} for row in read(source, "here")] == ROWS


@pytest.mark.parametrize(
    ("name", "text", "line", "words"),
    [
        ("a.csv", 'question,answer\n"two\nlines",1\n,2\n', 4, "holds no text"),
        ("a.csv", "question,answer\n\n\na,1\nb\n", 5, "1 values, and the first row names 2 columns"),
        ("a.csv", "question,answer\na,1\nb,2,3\n", 3, "3 values"),
        ("a.csv", 'question,answer\na,1\n"b,2\nc,3\n', 3, "not CSV: unexpected end of data, in the row that begins here"),
        ("a.csv", 'question,answer\na,1\n"b"x,2\n', 3, "not CSV"),
        ("a.csv", "question,question\na,1\n", 1, "two columns of one name"),
        ("a.csv", "question,\na,1\n", 1, "two columns of one name, or one without"),
        ("a.csv", "frage;loesung\na;1\n", 1, "separated by a semicolon, and a comma is read here"),
        ("a.csv", "question\tanswer\na\t1\n", 1, "separated by a tab"),
        ("a.csv", "question|answer\na|1\n", 1, "separated by a bar"),
        ("a.csv", '"question";"answer"\n"a, b";"1"\n', 1, "separated by a semicolon"),
        ("a.csv", '\n"question, all of it"\t"answer"\na\t1\n', 2, "separated by a tab"),
        ("a.tsv", "question,answer\na,1\n", 1, "separated by a comma, and a tab is read here"),
        ("a.csv", "question,answer\na,1\nb\x00,2\n", 3, "NUL"),
        ("a.csv", "question,answer\na,1\nb,\n", 3, "no gold answer"),
        ("a.json", '[\n{"question": "a", "answer": "1"},\n\n{"question": "a"}]', 4, "no column 'answer'"),
        ("a.json", '[{"question": "a", "answer": "1"},\n7]', 2, "not a JSON object"),
        ("a.json", '[{"question": "a", "answer": "1"},\n{"question": ', 2, "not JSON"),
        ("a.json", '[{"question": "a", "answer": "1"}\n', 2, "not JSON"),
        ("a.json", '{"question": "a", "answer": "1"}\n{', 2, "not JSON"),
        ("a.json", "[" * 100_000, 1, "not JSON"),
        ("a.json", '[{"question": "a", "answer": "1"}]\n\n x', 3, "text after the end of the list"),
        ("a.jsonl", '{"question": "a", "answer": "1"}\n{"question": "a", "answer": "1"', 2, "not JSON"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_line(tmp_path, name, text, line, words):
    source = write(tmp_path / name, text)
    with pytest.raises(DataError, match=words) as error:
        list(read(source, "here"))
    assert error.value.where == f"{source.path}:{line}" and error.value.fix


BEHIND = [
    "x",
    "]",
    "]]",
    ",",
    "[]",
    "{}",
    "0",
    '"',
    "\0",
    "\u00a0",
    "// note",
    '[{"question": "b", "answer": "2"}]',
    "\n\n}",
]


@pytest.mark.parametrize("bad_rows", ["refuse", "skip"])
@pytest.mark.parametrize("blanks", ["", " ", "\n"])
@pytest.mark.parametrize("behind", BEHIND)
def test_text_behind_a_list_is_refused_with_its_line(tmp_path, behind, blanks, bad_rows):
    """It would be read by nobody: a file that was appended to, or two that were joined."""
    text = '[{"question": "a", "answer": "1"}]' + blanks
    source = write(tmp_path / "a.json", text + behind).model_copy(update={"bad_rows": bad_rows})
    line = 1 + (text + behind.rstrip("}")).count("\n")
    with pytest.raises(DataError, match="text after the end of the list") as error:
        list(read(source, "here"))
    assert error.value.where == f"{source.path}:{line}"


@pytest.mark.parametrize("blanks", ["", "\n", " \t\r\n\n"])
def test_blanks_behind_a_list_are_nothing(tmp_path, blanks):
    source = write(tmp_path / "a.json", '[{"question": "a", "answer": "1"}]' + blanks)
    assert len(list(read(source, "here"))) == 1


@pytest.mark.parametrize(
    "garbage", [*BEHIND[:2], "garbage", "0", "[]", "{}", '{"question": "b", "answer": "2"} x']
)
def test_a_line_of_garbage_in_jsonl_is_refused_with_its_line(tmp_path, garbage):
    source = write(tmp_path / "a.jsonl", '{"question": "a", "answer": "1"}\n\n' + garbage)
    with pytest.raises(DataError) as error:
        list(read(source, "here"))
    assert error.value.where == f"{source.path}:3"


@pytest.mark.parametrize(
    ("name", "head"), [("a.jsonl", b""), ("a.csv", b"question,answer\n"), ("a.json", b"[")]
)
def test_bytes_that_are_no_text_are_named(tmp_path, name, head):
    (tmp_path / name).write_bytes(head + b'\n{"question": "\xff", "answer": 1}')
    with pytest.raises(DataError, match="not UTF-8: invalid start byte at byte 14") as error:
        list(read(Source(path=str(tmp_path / name)), "here"))
    assert error.value.where.startswith(f"{tmp_path / name}:")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_line_without_end_is_refused_and_a_long_one_is_not(tmp_path, monkeypatch, name):
    long = (
        as_csv([{"question": "q" * 5_000_000, "answer": 1}])
        if name == "a.csv"
        else '{"question": "' + "q" * 5_000_000 + '", "answer": 1}'
    )
    source = write(tmp_path / name, long)
    assert [len(row.question) for row in read(source, "here")] == [5_000_000]
    monkeypatch.setattr(files, "MAX_LINE", 2**20)
    with pytest.raises(DataError, match="a line of more than 1 MiB") as error:
        list(read(source, "here"))
    assert error.value.where == f"{source.path}:{2 if name == 'a.csv' else 1}"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_a_file_that_is_cut_short(tmp_path, name):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(gzip.compress(b'{"question": "a", "answer": 1}\n' * 99)[:-20])
    with pytest.raises(DataError, match="cannot read"):
        list(read(Source(path=str(tmp_path / name)), "here"))


@given(
    st.lists(
        st.fixed_dictionaries({"question": st.text(min_size=1), "answer": st.text(min_size=1)}),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_text_survives_csv_and_json(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    for name, text in (
        ("a.csv", as_csv(rows)),
        ("a.json", json.dumps(rows)),
        ("a.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        found = list(records(write(folder / name, text), "here"))
        assert [record.fields for record in found] == rows and all(record.fault is None for record in found)


@given(
    st.binary(max_size=200),
    st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.jsonl.gz", "a.parquet"]),
)
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    try:
        for row in read(Source(path=str(path), prompt="0", answer="0", bad_rows="skip"), "here"):
            assert row.question.strip() and row.reference.strip()
    except (DataError, EnvironmentFault) as error:
        assert error.where and error.fix


def test_parquet_with_numbers_messages_and_a_missing_answer(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    chat = [[{"role": "user", "content": f"q{i}"}] for i in range(3)]
    truth = [{"truth": 1.5}, {"truth": 2.0}, {"truth": None}]
    parquet.write_table(
        arrow.table({"n": [4, 5, 6], "prompt": chat, "model": truth, "question": ["a", "b", "c"]}), path
    )
    assert [row.reference for row in read(Source(path=str(path), answer="n"), "here")] == ["4", "5", "6"]
    rows = read(Source(path=str(path), prompt="prompt", answer="model.truth", limit=2), "here")
    assert [(row.id, row.question, row.reference) for row in rows] == [("0", "q0", "1.5"), ("1", "q1", "2.0")]
    with pytest.raises(DataError, match=r"no gold answer in column 'model\.truth'") as error:
        list(read(Source(path=str(path), answer="model.truth"), "here"))
    assert error.value.where == f"{path} row 3 (index 2)"


def test_blanks_between_the_items_of_a_list_cost_nothing(tmp_path):
    begun = time.process_time()
    source = write(
        tmp_path / "a.json.gz", "[" + " " * 30_000_000 + json.dumps(ROWS[0]) + " " * 30_000_000 + "]"
    )
    assert [row.reference for row in read(source, "here")] == ["2"]
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (("timestamp", "us"), 2**62),  # after the year 9999
        (("timestamp", "s"), 2**50),
        (("duration", "s"), 2**62),
        (("date64",), 2**62),
        (("timestamp", "ns", "Nowhere/Zone"), 5),
    ],
)
def test_times_in_parquet_that_python_has_not_are_a_fault_of_the_file(tmp_path, kind, value):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    name, *given = kind
    answers = arrow.array([value], getattr(arrow, name)(*given))
    parquet.write_table(arrow.table({"question": ["q"], "answer": answers}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="cannot read"):
        list(read(Source(path=str(tmp_path / "a.parquet")), "here"))


@pytest.mark.parametrize(
    "source",
    [
        {"prompt": "x" * 5000},
        {"path": "y" * 5000},
        {"path": "a/" + "y" * 5000 + "/b.csv"},
        {"answer": "z" * 5000},
    ],
)
def test_a_message_is_no_longer_than_a_screen_whatever_it_quotes(tmp_path, source):
    given = write(tmp_path / "a.csv", "question,answer\n1,2\n").model_copy(update=source)
    with pytest.raises(DataError) as error:
        list(read(given, "w" * 5000))
    assert len(str(error.value)) < 2200 and "…" in error.value.what


@pytest.mark.parametrize(
    ("source", "package"), [({"path": "a.parquet"}, "pyarrow"), ({"hf": "some/set"}, "datasets")]
)
def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, source, package):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentFault, match=f"needs the package {package}") as error:
        list(read(Source(**source), "here"))
    assert 'pip install "lgrpo-lite[data]"' in error.value.fix


def test_a_folder_is_read_as_the_hub_is(tmp_path_factory, monkeypatch):
    """The same call that reads the Hub, on files of the layout it has there; no network."""
    datasets = pytest.importorskip("datasets")
    # a path with the word test in it would make all of it the split test
    folder = tmp_path_factory.mktemp("set")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for split, count in (("train", 5), ("test", 2)):
        rows = [{"problem": f"{split} {i}", "answer": i if i < 4 else None} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held_out = read(Source(hf=str(folder), split="test", prompt="problem"), "here")
    assert [(row.id, row.question, row.reference) for row in held_out] == [
        ("0", "test 0", "0"),
        ("1", "test 1", "1"),
    ]
    assert len(list(read(Source(hf=str(folder), prompt="problem", limit=3), "here"))) == 3
    with pytest.raises(DataError, match="no gold answer") as error:
        list(read(Source(hf=str(folder), prompt="problem"), "here"))
    assert error.value.where == f"{folder} row 5 (index 4)"
    with pytest.raises(DataError, match=r"cannot load .*\(validation\)"):
        list(read(Source(hf=str(folder), split="validation"), "here"))
