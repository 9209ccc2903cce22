"""Sources -> prompts: questions read, gold answers cut out, the template applied, token ids decided once."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lgrpo_lite.answers import final_answer
from lgrpo_lite.arithmetic import problems
from lgrpo_lite.config import Data, Source
from lgrpo_lite.errors import DataError, EnvironmentFault
from lgrpo_lite.types import Prompt

DEFAULT_TASK_SIZE = 4096  # problems of a generated task when no limit is given


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its gold answer, as read; `id` names the row of its source."""

    id: str
    question: str
    reference: str


def read(source: Source, where: str) -> Iterator[Row]:
    """Rows of one source, at most `limit`. A bad row raises DataError with file:line."""
    if source.path is not None:
        rows = _from_jsonl(source, where)
    elif source.hf is not None:
        rows = _from_hub(source, where)
    elif source.task is not None:
        split = "heldout" if source.split == "heldout" else "train"
        made = islice(problems(0, split), source.limit or DEFAULT_TASK_SIZE)
        rows = (Row(f"{source.task}-{split}-{i}", p.question, p.answer) for i, p in enumerate(made))
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
    prompts = [Prompt(row.id, row.question, tokens(row.question, data, tokenizer), row.reference) for row in rows]
    kept = [p for p in prompts if len(p.token_ids) <= max_prompt_tokens]
    if not kept:
        fix = f"raise model.max_prompt_tokens (shortest: {min(len(p.token_ids) for p in prompts)} tokens)"
        raise DataError(f"all {len(prompts)} prompts are longer than {max_prompt_tokens} tokens", where=where(0), fix=fix)
    return kept, len(prompts) - len(kept)


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
    for key, column in (("prompt", source.prompt), ("answer", source.answer)):
        if column not in fields:
            have = ", ".join(map(str, list(fields)[:8]))
            raise DataError(f"no column {column!r}", where=place, fix=f"set {key}: to one of the columns there: {have}")
    question, answer = fields[source.prompt], fields[source.answer]
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"column {source.prompt!r} holds no text", where=place, fix="remove or mend the row")
    reference = gold(str(answer), source.answer_extract) if answer is not None else None
    if reference is None:
        fix = f"mend the row, or set answer_extract (now {source.answer_extract})"
        raise DataError(f"no gold answer in column {source.answer!r}", where=place, fix=fix)
    return Row(str(fields.get("id", number)), question, reference)


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
