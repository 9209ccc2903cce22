"""Named values -> a row: the column map, the question as text or chat messages, the gold answer cut out."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lgrpo_lite.data.arithmetic import problems
from lgrpo_lite.data.criteria import criteria
from lgrpo_lite.data.files import Record, records
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Source
from lgrpo_lite.types import Criterion
from lgrpo_lite.verifier.answers import final_answer

ROLES = ("system", "developer", "user", "assistant", "tool")
DEFAULT_TASK_SIZE = 4096  # problems of a generated task when no limit is given
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Row:
    """A question, its gold answer, and what else its source has of it, as read;
    `id` names the row of its source.
    """

    id: str
    question: str  # as a person reads it
    reference: str
    solution: str = ""
    rubric: tuple[Criterion, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()  # (role, content), where the source holds a chat
    place: str = ""  # what an error about it names: FILE:LINE


def rows(source: Source, where: str) -> Iterator[Row | DataError]:
    """The rows of a source in order, a bad one as its fault. Nothing is left out and nothing limited here."""
    if source.path is not None or source.hf is not None:
        yield from (row_or_fault(source, record) for record in records(source, where))
    elif source.task is not None:
        yield from _generated(source, where)
    else:
        raise DataError(
            "a source without data", where=where, fix="give path: FILE.jsonl, hf: NAME or task: arithmetic"
        )


def row_or_fault(source: Source, record: Record) -> Row | DataError:
    """One record by the source's column map."""
    try:
        return row(source, record)
    except DataError as fault:
        return fault


def row(source: Source, record: Record) -> Row:
    """One record by the source's column map; DataError at its place for whatever is wrong with it."""
    if record.fault is not None:
        raise record.fault
    place = record.place
    columns = {
        "prompt": source.prompt,
        "answer": source.answer,
        "solution": source.solution,
        "rubric": source.rubric,
    }
    found = {key: _column(record, key, column) for key, column in columns.items() if column is not None}
    question, messages = _question(found["prompt"], source.prompt, place)
    reference = _gold(found["answer"], source, place)
    solution = _text(found["solution"], source.solution or "", place) if "solution" in found else ""
    rubric = criteria(found["rubric"], source.rubric or "", place) if "rubric" in found else ()
    return Row(
        str(record.fields.get("id", record.number)), question, reference, solution, rubric, messages, place
    )


def gold(answer: str, extract: str) -> str | None:
    """The gold answer cut out of its column. `gsm8k`: after `####` if there is one. `boxed`:
    the last box. None: not found.
    """
    if extract == "plain" or (extract == "gsm8k" and "####" not in answer):
        return answer.strip() or None
    found = final_answer(answer, extract)
    return found.replace(",", "") if found and extract == "gsm8k" else found


def value_at(fields: Mapping[str, Any], column: str) -> Any:
    """`fields[column]`, or with dots what lies inside it: `meta.level`,
    `messages.0.content`. Absent: a mark of its own.
    """
    if column in fields:
        return fields[column]
    value: Any = fields
    for name in column.split("."):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return _MISSING
    return value


def _column(record: Record, key: str, column: str) -> Any:
    value = value_at(record.fields, column)
    if value is _MISSING:
        have = ", ".join(map(str, list(record.fields)[:8]))
        raise DataError(
            f"no column {column!r}", where=record.place, fix=f"set {key}: to one of the columns there: {have}"
        )
    return value


def _text(value: object, column: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        what = (
            "" if value is None or isinstance(value, str) else f" but a value of type {type(value).__name__}"
        )
        raise DataError(f"column {column!r} holds no text{what}", where=place, fix="remove or mend the row")
    if "\0" in value:
        raise DataError(
            f"column {column!r} holds a NUL character", where=place, fix="remove it; is the file a text file?"
        )
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise DataError(
            f"column {column!r} holds half a surrogate pair, which no UTF-8 has",
            where=place,
            fix="mend the row",
        )
    return value


def _question(value: object, column: str, place: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The question as a person reads it, and the messages it comes in, if it does.

    Of messages the text is the user's one, or with more turns all but the system's, each under its role.
    """
    if not isinstance(value, list):
        return _text(value, column, place), ()
    turns = tuple(_message(item, f"{column}.{i}", place) for i, item in enumerate(value))
    asked = [(role, text) for role, text in turns if role not in ("system", "developer")]
    if not asked or asked[-1][0] == "assistant" or turns[-1] != asked[-1]:
        last = turns[-1][0] if turns else "nobody"
        fix = "name a column whose last message is the user's; the answer belongs into answer: COLUMN"
        raise DataError(f"the messages in column {column!r} end with {last}", where=place, fix=fix)
    return asked[0][1] if len(asked) == 1 else "\n\n".join(f"{role}: {text}" for role, text in asked), turns


def _message(item: object, name: str, place: str) -> tuple[str, str]:
    role = item.get("role") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or role not in ROLES:
        fix = f'{{"role": …, "content": …}} with one of {", ".join(ROLES)}'
        raise DataError(f"{name!r} is no chat message", where=place, fix=fix)
    return str(role), _text(item.get("content"), f"{name}.content", place)


def _gold(value: object, source: Source, place: str) -> str:
    """A number or text is what it is, a list of one value that value; tests of
    code may be objects, kept as JSON.
    """
    column = source.answer
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], Mapping | list):
        value = value[0]
    if isinstance(value, Mapping) or (
        isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value)
    ):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list | tuple | bytes):
        what = f"column {column!r} holds a {type(value).__name__} and not one gold answer"
        raise DataError(what, where=place, fix="name the column of the final answer, e.g. answers.0")
    # pandas writes a missing one as NaN
    empty = value is None or (isinstance(value, float) and not math.isfinite(value))
    reference = (
        None
        if empty or not str(value).strip()
        else gold(_text(str(value), column, place), source.answer_extract)
    )
    if reference is None:
        fix = f"mend the row, or set answer_extract (now {source.answer_extract})"
        raise DataError(f"no gold answer in column {column!r}", where=place, fix=fix)
    return reference


def _generated(source: Source, where: str) -> Iterator[Row]:
    if source.rubric is not None:
        fix = "remove rubric, or give path: FILE.jsonl"
        raise DataError(
            f"the task {source.task} has no column {source.rubric!r} of criteria", where=where, fix=fix
        )
    split = "heldout" if source.split == "heldout" else "train"
    for i, p in enumerate(islice(problems(0, split), source.limit or DEFAULT_TASK_SIZE)):
        name = f"{source.task}-{split}-{i}"
        yield Row(name, p.question, p.answer, p.solution("steps"), place=name)
