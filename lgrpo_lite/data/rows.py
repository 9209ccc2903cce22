"""Named values -> a row: the column map, the question as text or chat messages, the gold answer cut out."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lgrpo_lite.data.arithmetic import TASKS
from lgrpo_lite.data.criteria import criteria
from lgrpo_lite.data.files import Record, records
from lgrpo_lite.data.template import question_of
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Source
from lgrpo_lite.types import Criterion
from lgrpo_lite.verifier.answers import final_answer

ROLES = ("system", "developer", "user", "assistant", "tool")
DEFAULT_TASK_SIZE = 4096  # problems of a generated task when no limit is given
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Row:
    """A question, its gold answer, and what else its source has of it; `id` names the row of its source."""

    id: str
    question: str  # as a person reads it
    reference: str
    solution: str = ""
    rubric: tuple[Criterion, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()  # (role, content), where the source holds a chat
    place: str = ""  # what an error about it names: FILE:LINE
    columns: Mapping[str, Any] = field(default_factory=dict)  # all of them, the gold answer as it is cut out


def rows(source: Source, where: str) -> Iterator[Row | DataError]:
    """The rows of a source in order, a bad one as its fault. Nothing is left out and nothing limited here."""
    if source.path is not None or source.hf is not None:
        yield from (row_or_fault(source, record) for record in records(source, where))
    elif source.task is not None:
        yield from _generated(source, source.task, where)
    else:
        fix = f"give path: FILE.jsonl, hf: NAME or task: {', '.join(TASKS)}"
        raise DataError("a source without data", where=where, fix=fix)


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
    values = {key: _column(record, key, column) for key, column in columns.items() if column is not None}
    question, messages = _question(values["prompt"], source.prompt, place)
    reference = _gold(values["answer"], source, place)
    solution = ""
    if source.solution is not None:
        solution = _text(values["solution"], source.solution, place)
    rubric = ()
    if source.rubric is not None:
        rubric = criteria(values["rubric"], source.rubric, place)
    return Row(
        id=str(record.fields.get("id", record.number)),
        question=question,
        reference=reference,
        solution=solution,
        rubric=rubric,
        messages=messages,
        place=place,
        columns=_columns(record, source, reference),
    )


def _columns(record: Record, source: Source, reference: str) -> Mapping[str, Any]:
    if source.answer_extract == "plain" or source.answer not in record.fields:
        return record.fields
    return {**record.fields, source.answer: reference}


def gold(answer: str, extract: str) -> str | None:
    """The gold answer cut out of its column; None: not found.

    `gsm8k`: after `####` if there is one. `boxed`: the last box.
    """
    if extract == "plain" or (extract == "gsm8k" and "####" not in answer):
        return answer.strip() or None
    final = final_answer(answer, extract)
    if final and extract == "gsm8k":
        return final.replace(",", "")
    return final


def value_at(fields: Mapping[str, Any], column: str) -> Any:
    """`fields[column]`, or with dots what is in it: `meta.level`, `messages.0.content`. Absent: a mark."""
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
        first = list(record.fields)[:8]
        names = ", ".join(map(str, first))
        fix = f"set {key}: to one of the columns there: {names}"
        raise DataError(f"no column {column!r}", where=record.place, fix=fix)
    return value


def _text(value: object, column: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        what = f"column {column!r} holds no text"
        if not isinstance(value, str | None):
            what += f" but a value of type {type(value).__name__}"
        raise DataError(what, where=place, fix="remove or mend the row")
    if "\0" in value:
        what = f"column {column!r} holds a NUL character"
        raise DataError(what, where=place, fix="remove it; is the file a text file?")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        what = f"column {column!r} holds half a surrogate pair, which no UTF-8 has"
        raise DataError(what, where=place, fix="mend the row")
    return value


def _question(value: object, column: str, place: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The question as a person reads it, and the messages it comes in, if it does."""
    if not isinstance(value, list):
        return _text(value, column, place), ()
    turns = []
    for i, item in enumerate(value):
        turns.append(_message(item, f"{column}.{i}", place))
    last = turns[-1][0] if turns else "nobody"
    if last in ("nobody", "system", "developer", "assistant"):
        what = f"the messages in column {column!r} end with {last}"
        fix = "name a column whose last message is the user's; the answer belongs into answer: COLUMN"
        raise DataError(what, where=place, fix=fix)
    return question_of(tuple(turns)), tuple(turns)


def _message(item: object, name: str, place: str) -> tuple[str, str]:
    role = item.get("role") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or role not in ROLES:
        fix = f'{{"role": …, "content": …}} with one of {", ".join(ROLES)}'
        raise DataError(f"{name!r} is no chat message", where=place, fix=fix)
    if item.get("tool_calls"):
        fix = "write the call into its content, as the model's template does, or leave such rows out"
        raise DataError(f"{name!r} calls a tool, which no template is given here", where=place, fix=fix)
    text = _text(item.get("content"), f"{name}.content", place)
    return str(role), text


def _gold(value: object, source: Source, place: str) -> str:
    """A number or text is what it is, a list of one value that value; objects (tests of code) become JSON."""
    column = source.answer
    if isinstance(value, list) and len(value) == 1:
        [only] = value
        value = value if isinstance(only, Mapping | list) else only
    objects = value if isinstance(value, list) else [value]
    if objects and all(isinstance(item, Mapping) for item in objects):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, list | tuple | bytes):
        what = f"column {column!r} holds a {type(value).__name__} and not one gold answer"
        raise DataError(what, where=place, fix="name the column of the final answer, e.g. answers.0")
    reference = None
    # pandas writes a missing one as NaN
    not_finite = isinstance(value, float) and not math.isfinite(value)
    if value is not None and not not_finite and str(value).strip():
        text = _text(str(value), column, place)
        reference = gold(text, source.answer_extract)
    if reference is None:
        fix = f"mend the row, or set answer_extract (now {source.answer_extract})"
        raise DataError(f"no gold answer in column {column!r}", where=place, fix=fix)
    return reference


def _generated(source: Source, task: str, where: str) -> Iterator[Row]:
    if source.rubric is not None:
        what = f"the task {task} has no column {source.rubric!r} of criteria"
        raise DataError(what, where=where, fix="remove rubric, or give path: FILE.jsonl")
    split = "heldout" if source.split == "heldout" else "train"
    count = source.limit or DEFAULT_TASK_SIZE
    for i, problem in enumerate(islice(TASKS[task](0, split), count)):
        name = f"{task}-{split}-{i}"
        solution = problem.solution("steps")
        columns = {"question": problem.question, "answer": problem.answer, "solution": solution}
        yield Row(name, problem.question, problem.answer, solution, place=name, columns=columns)
