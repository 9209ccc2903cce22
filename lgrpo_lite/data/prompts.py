"""Sources -> prompts: questions read, gold answers cut out, rubrics checked, the template applied, token ids decided once."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from lgrpo_lite.answers import as_number, final_answer
from lgrpo_lite.arithmetic import problems
from lgrpo_lite.config import Data, Source
from lgrpo_lite.errors import DataError, EnvironmentFault, nearest
from lgrpo_lite.types import Criterion, Prompt

Rule = Literal["regex", "numeric", "unit"]
RULES: tuple[Rule, ...] = ("regex", "numeric", "unit")
CRITERION = ("text", "kind", "weight", *RULES)  # keys of a criterion in a data set
MAX_WEIGHT = 1e6  # of a criterion, so that no sum of them overflows
DEFAULT_TASK_SIZE = 4096  # problems of a generated task when no limit is given


@dataclass(frozen=True, slots=True)
class Row:
    """A question, its gold answer, and what else its source has of it, as read; `id` names the row of its source."""

    id: str
    question: str
    reference: str
    solution: str = ""
    rubric: tuple[Criterion, ...] = ()


def read(source: Source, where: str) -> Iterator[Row]:
    """Rows of one source, at most `limit`. A bad row raises DataError with file:line."""
    if source.path is not None:
        rows = _from_jsonl(source, where)
    elif source.hf is not None:
        rows = _from_hub(source, where)
    elif source.task is not None:
        if source.rubric is not None:
            fix = "remove rubric, or give path: FILE.jsonl"
            raise DataError(f"the task {source.task} has no column {source.rubric!r} of criteria", where=where, fix=fix)
        split = "heldout" if source.split == "heldout" else "train"
        made = islice(problems(0, split), source.limit or DEFAULT_TASK_SIZE)
        rows = (Row(f"{source.task}-{split}-{i}", p.question, p.answer, p.solution("steps")) for i, p in enumerate(made))
    else:
        raise DataError("a source without data", where=where, fix="give path: FILE.jsonl, hf: NAME or task: arithmetic")
    return islice(rows, source.limit)


def count(source: Source, where: str) -> int:
    """How many rows a source has, each of them checked. None: DataError."""
    rows = sum(1 for _ in read(source, where))
    if not rows:
        raise _empty(where)
    return rows


def load(
    sources: Sequence[Source], data: Data, tokenizer, max_prompt_tokens: int, where: Callable[[int], str]
) -> tuple[list[Prompt], int]:
    """All prompts of several sources, and how many were left out for their length. None left: DataError."""
    rows = [row for i, source in enumerate(sources) for row in read(source, where(i))]
    if not rows:
        raise _empty(where(0))
    prompts = [_prompt(row, data, tokenizer) for row in rows]
    kept = [p for p in prompts if len(p.token_ids) <= max_prompt_tokens]
    if not kept:
        fix = f"raise model.max_prompt_tokens (shortest: {min(len(p.token_ids) for p in prompts)} tokens)"
        raise DataError(f"all {len(prompts)} prompts are longer than {max_prompt_tokens} tokens", where=where(0), fix=fix)
    return kept, len(prompts) - len(kept)


def _prompt(row: Row, data: Data, tokenizer) -> Prompt:
    solution = tuple(tokenizer(row.solution, add_special_tokens=False)["input_ids"]) if row.solution else ()
    return Prompt(row.id, row.question, tokens(row.question, data, tokenizer), row.reference, solution, row.rubric)


def tokens(question: str, data: Data, tokenizer) -> tuple[int, ...]:
    """The ids the model reads. `plain`: system text and question, a line break after each. `chat`: the model's template."""
    if data.template == "plain":
        text = "".join(part + "\n" for part in (data.system, question) if part)
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not tokenizer.chat_template:
        fix = "set data.template=plain, or use an instruct model"
        raise DataError("the model has no chat template", where="data.template=chat", fix=fix)
    messages = [{"role": role, "content": text} for role, text in (("system", data.system), ("user", question)) if text]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def gold(answer: str, extract: str) -> str | None:
    """The gold answer cut out of its column. `gsm8k`: after `####` if there is one. `boxed`: the last box. None: not found."""
    if extract == "plain" or (extract == "gsm8k" and "####" not in answer):
        return answer.strip() or None
    found = final_answer(answer, extract)
    return found.replace(",", "") if found and extract == "gsm8k" else found


def _empty(where: str) -> DataError:
    return DataError("the data set is empty", where=where, fix="check the file, the split and the limit")


def _row(source: Source, fields: dict, number: int, place: str) -> Row:
    columns = {"prompt": source.prompt, "answer": source.answer, "solution": source.solution, "rubric": source.rubric}
    for key, column in columns.items():
        if column is not None and column not in fields:
            have = ", ".join(map(str, list(fields)[:8]))
            raise DataError(f"no column {column!r}", where=place, fix=f"set {key}: to one of the columns there: {have}")
    question, answer = _text(fields, source.prompt, place), fields[source.answer]
    reference = gold(str(answer), source.answer_extract) if answer is not None else None
    if reference is None:
        fix = f"mend the row, or set answer_extract (now {source.answer_extract})"
        raise DataError(f"no gold answer in column {source.answer!r}", where=place, fix=fix)
    solution = "" if source.solution is None else _text(fields, source.solution, place)
    rubric = () if source.rubric is None else _rubric(fields, source.rubric, place)
    return Row(str(fields.get("id", number)), question, reference, solution, rubric)


def _text(fields: dict, column: str, place: str) -> str:
    text = fields[column]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"column {column!r} holds no text", where=place, fix="remove or mend the row")
    return text


def _rubric(fields: dict, column: str, place: str) -> tuple[Criterion, ...]:
    """A list of criteria, or the same as JSON in a string, which is how data sets on the Hub store it."""
    items = fields[column]
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except (ValueError, RecursionError) as error:
            raise DataError(f"column {column!r} is not JSON: {error}", where=place, fix="a list of criteria as JSON") from None
    if not isinstance(items, list) or not items:
        fix = 'at least one criterion, e.g. [{"text": "adds the two prices", "weight": 2}]'
        raise DataError(f"column {column!r} holds no list of criteria", where=place, fix=fix)
    return tuple(_criterion(item, f"criterion {i} in column {column!r}", place) for i, item in enumerate(items, 1))


def _criterion(item: object, name: str, place: str) -> Criterion:
    def bad(what: str, fix: str) -> DataError:
        return DataError(f"{name}: {what}", where=place, fix=fix)

    if not isinstance(item, dict):
        raise bad("not an object", f"an object with the keys {', '.join(CRITERION)}")
    given = {key: value for key, value in item.items() if value is not None}  # on the Hub a key that is not there is null
    if unknown := [key for key in given if key not in CRITERION]:
        raise bad(f"unknown key {unknown[0]!r}{nearest(str(unknown[0]), CRITERION)}", f"use {', '.join(CRITERION)}")
    text, kind, weight = given.get("text"), given.get("kind", "process"), given.get("weight", 1)
    if not isinstance(text, str) or not text.strip():
        raise bad("no text", "add text: what must hold, in words")
    if kind not in ("factual", "process"):
        raise bad(f"kind {kind!r}", "one of factual, process")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT:
        raise bad(f"weight {weight!r}", f"a number above 0, at most {MAX_WEIGHT:g}")
    rules: list[Rule] = [rule for rule in RULES if rule in given]
    if len(rules) > 1:
        raise bad(f"{' and '.join(rules)} at once", "keep one of them, or make two criteria of it")
    rule = rules[0] if rules else None
    return Criterion(text, kind, float(weight), rule, _value(rule, given[rule], bad) if rule else "")


def _value(rule: str, value: object, bad: Callable[[str, str], DataError]) -> str:
    """What a rule compares with, checked."""
    if rule == "numeric" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise bad(f"{rule} {value!r}", f"give {rule} as text")
    if rule == "numeric" and as_number(value) is None:
        raise bad(f"numeric {value!r} is no number", "e.g. 12, 0.5 or 3/4")
    if rule == "regex":
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise bad(f"the pattern is no regular expression: {error}", "mend the pattern") from None
    return value.strip() if rule == "unit" else value


def _from_jsonl(source: Source, where: str) -> Iterator[Row]:
    path = Path(source.path or "")
    if not path.is_file():
        raise DataError(f"no such file: {path}", where=where, fix="check the path, relative to the current folder")
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(source, _parse(line, f"{path}:{number}"), number, f"{path}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}", where=where, fix="a JSONL file is UTF-8, one object a line") from None


def _parse(line: str, place: str) -> dict:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=place, fix="one JSON object a line") from None
    if not isinstance(fields, dict):
        raise DataError("not a JSON object", where=place, fix="one JSON object a line, with the columns as keys")
    return fields


def _from_hub(source: Source, where: str) -> Iterator[Row]:
    try:
        from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        fix = 'pip install "lgrpo-lite[data]", or give path: FILE.jsonl'
        raise EnvironmentFault("reading from the Hub needs the package datasets", where=where, fix=fix) from None
    try:
        rows = load_dataset(source.hf, source.config, split=source.split)
    except Exception as error:  # the library raises a dozen kinds, from no network to no such split
        fix = "check the name, config and split, and the network; or give path: FILE.jsonl"
        raise DataError(f"cannot load {source.hf} ({source.split}): {error}", where=where, fix=fix) from error
    for number, fields in enumerate(rows):
        yield _row(source, fields, number, f"{source.hf} row {number}")
