"""Sources -> prompts: rows and golds checked, the template applied, token ids decided once, all counted."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from lgrpo_lite.data.rows import Row, rows
from lgrpo_lite.data.sound import Shown
from lgrpo_lite.data.template import chat, tokens
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.data import Data, Part, Source
from lgrpo_lite.types import Prompt

R = TypeVar("R")

# why a gold answer cannot be compared with, in a sentence; None: it can
GoldFault = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Wants:
    """What the rewards of a recipe want of a row."""

    gold_fault: GoldFault | None = None
    columns: tuple[str, ...] = ()  # that it must have
    every_column: bool = False  # and all others that it has
    reserved: tuple[str, ...] = ()  # names that to a user's reward are no column


@dataclass(slots=True)
class Counts:
    """What became of the rows of one source; filled in as they are read."""

    source: str
    rows: int = 0  # kept as rows, before the length of prompts is known
    bad: list[DataError] = field(default_factory=list)  # left out by bad_rows=skip
    repeated: int = 0  # questions that a row before them has, in this source or an earlier one; kept
    too_long: int = 0  # prompts above model.max_prompt_tokens, left out
    hidden: str = ""  # columns whose name a reward takes for something else, in a sentence

    def notes(self) -> list[str]:
        """What a person should know, in sentences."""
        notes = []
        if self.bad:
            first = self.bad[0]
            count = f"{len(self.bad)}, the first at {first.where}: {first.what}"
            notes.append(f"{self.source}: bad rows left out: {count}")
        if self.repeated:
            count = f"{self.repeated} of {self.rows}"
            notes.append(f"{self.source}: questions that a row before them has: {count}; they are kept")
        if self.hidden:
            notes.append(self.hidden)
        return notes


def _question(row: Row) -> str:
    return row.question


def read(source: Source, where: str, wants: Wants = Wants(), counts: Counts | None = None) -> Iterator[Row]:
    """Rows of one source, at most `limit`, and of them its `part`.

    A bad row raises DataError with file:line, and so does one that lacks what `wants` says. With
    bad_rows=skip it is left out instead; the faults are kept in `counts`.
    """
    if source.part is None:
        yield from islice(_good(rows(source, where), source, wants, counts), source.limit)
        return
    # divided before the rewards are asked, so that whoever reads the source, for whatever, divides it alike
    everything = Wants(every_column=True)
    readable = islice(_good(rows(source, where), source, everything, counts), source.limit)
    yield from _good(part_of(source.part, list(readable), where), source, wants, counts)


def _good(
    rows: Iterable[Row | DataError], source: Source, wants: Wants, counts: Counts | None
) -> Iterator[Row]:
    kept = 0
    for row in rows:
        if counts is not None and kept == 0 and isinstance(row, Row):
            counts.hidden = _hidden(row, source, wants)
        checked = row if isinstance(row, DataError) else _checked(row, wants)
        if isinstance(checked, Row):
            kept += 1
            yield checked
        elif source.bad_rows == "refuse":
            raise checked
        elif counts is not None:
            counts.bad.append(checked)


def part_of(part: Part, rows: Sequence[R], where: str, question: Callable[[R], str] = _question) -> list[R]:
    """The held-out rows or all others, in their order. A question that stands in several rows is in one part.

    Which questions are held out follows from the seed and all of them: round(share · questions), at least one
    and not all. Fewer than two: DataError.
    """
    digests = {}
    for row in rows:
        text = same(question(row))
        digests[text] = hashlib.sha256(f"{part.seed}/{text}".encode("utf-8", "backslashreplace")).digest()
    if len(digests) < 2:
        what = f"{len(digests)} questions cannot be divided into those to train on and those held out"
        raise DataError(what, where=where, fix="give more rows, or name held-out ones as data.eval")
    count = min(max(1, round(part.share * len(digests))), len(digests) - 1)
    held_out = set(sorted(digests, key=digests.__getitem__)[:count])
    return [row for row in rows if (same(question(row)) in held_out) == part.held_out]


def survey(
    sources: Sequence[Source], where: Callable[[int], str], wants: Wants = Wants()
) -> tuple[list[list[Row]], list[Counts]]:
    """All rows of several sources, each one checked, and their counts. A source without any: DataError."""
    rows_of_sources = []
    counts = []
    questions: set[str] = set()
    for i, source in enumerate(sources):
        count = Counts(name(source))
        checked = list(read(source, where(i), wants, count))
        count.rows = len(checked)
        for row in checked:
            question = same(row.question)
            count.repeated += question in questions
            questions.add(question)
        rows_of_sources.append(checked)
        counts.append(count)
        if not checked:
            what = "the data set is empty"
            if count.bad:
                first = count.bad[0].what
                what += f": all {len(count.bad)} rows were left out, the first for: {first}"
            raise DataError(what, where=where(i), fix="check the file, the split and the limit")
    return rows_of_sources, counts


def load(
    sources: Sequence[Source],
    data: Data,
    tokenizer,
    max_prompt_tokens: int,
    where: Callable[[int], str],
    wants: Wants = Wants(),
) -> tuple[list[Prompt], list[Counts]]:
    """All prompts of several sources that are short enough, and each source's counts. None left, or a chat of
    which the template loses a turn: DataError.

    An id that an earlier prompt has gets `#2`, `#3`, …, so that an id names one prompt.
    """
    rows_of_sources, counts = survey(sources, where, wants)
    shown = Shown(data, tokenizer)
    kept: list[Prompt] = []
    lengths: list[int] = []
    ids = Counter()
    for source, source_rows, count in zip(sources, rows_of_sources, counts, strict=True):
        for row in source_rows:
            prompt = prompt_of(row, data, tokenizer, source.weight)
            shown.check(prompt.messages, row.place or row.id)
            lengths.append(len(prompt.token_ids))
            ids[prompt.id] += 1
            uses = ids[prompt.id]
            if lengths[-1] > max_prompt_tokens:
                count.too_long += 1
            elif uses == 1:
                kept.append(prompt)
            else:
                kept.append(replace(prompt, id=f"{prompt.id}#{uses}"))
    if not kept:
        shortest = min(lengths, default=None)
        what = f"all {len(lengths)} prompts are longer than {max_prompt_tokens} tokens"
        fix = f"raise model.max_prompt_tokens (shortest: {shortest} tokens)"
        raise DataError(what, where=where(0), fix=fix)
    return kept, counts


def shared(train: Iterable[str], held_out: Iterable[str]) -> str | None:
    """A warning where questions of the evaluation are trained on; None where there are none."""
    known = {same(question) for question in train}
    trained = [same(question) in known for question in held_out]
    if not any(trained):
        return None
    count = f"{sum(trained)} of {len(trained)}"
    return f"questions of data.eval that are in data.train too: {count}; the evaluation flatters the run"


def apart(
    train: Sequence[R], held_out: Iterable[str], where: str, question: Callable[[R], str]
) -> tuple[list[R], list[str]]:
    """Of sources that were each divided: what is trained on, without questions that another one of them holds
    out, and how many those are, in a sentence. None left: DataError.
    """
    asked = {same(text) for text in held_out}
    kept = [item for item in train if same(question(item)) not in asked]
    if not kept:
        what = "every question to train on is held out in another source"
        raise DataError(
            what, where=where, fix="name the held-out ones as data.eval, or remove repeated sources"
        )
    count = len(train) - len(kept)
    told = f"questions that another source of data.train holds out: {count}; they are not trained on"
    return kept, [told] if count else []


def same(question: str) -> str:
    """What two questions share that differ in spaces or in the composition of accents; case matters."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def on_hub(source: Source) -> bool:
    """Whether reading it may need a network; a local folder does not."""
    return bool(source.hf) and source.path is None and not os.path.isdir(source.hf)


def name(source: Source) -> str:
    """What a source is called in a message."""
    if source.path:
        return source.path
    if source.hf:
        return f"{source.hf} ({source.split})"
    return str(source.task)


def _checked(row: Row, wants: Wants) -> Row | DataError:
    fault = wants.gold_fault(row.reference) if wants.gold_fault else None
    if fault is not None:
        fix = "mend the row, name another column or answer_extract, or leave such rows out by bad_rows=skip"
        return DataError(fault, where=row.place, fix=fix)
    missing = [column for column in wants.columns if column not in row.columns]
    if missing:
        there = ", ".join(list(row.columns)[:8]) or "none"
        what = f"a reward asks for {', '.join(missing)}, and the row has no column of that name"
        fix = f"name one of the columns there: {there}; or set an option of that name beside `use`"
        return DataError(what, where=row.place, fix=fix)
    if wants.every_column:
        return row
    return replace(row, columns={column: row.columns[column] for column in wants.columns})


def _hidden(row: Row, source: Source, wants: Wants) -> str:
    """What a person should know of columns with a name that is a reward's for something else."""
    meant = {"prompt": source.prompt, "reference": source.answer, "rubric": source.rubric}
    names = [name for name in wants.reserved if name in row.columns and meant.get(name) != name]
    if not names:
        return ""
    other = "what docs/rewards.md says of that name, and not that column"
    return f"{row.place}: a column of the name {', '.join(names)}: a reward that asks for it is given {other}"


def prompt_of(row: Row, data: Data, tokenizer, weight: float = 1.0) -> Prompt:
    """The row as the model is asked it. A template that refuses it: DataError, at the row."""
    solution = ()
    if row.solution:
        solution = tuple(tokenizer(row.solution, add_special_tokens=False)["input_ids"])
    try:
        ids = tokens(row.question, data, tokenizer, row.messages)
    except DataError as fault:  # of the template, at this row
        where = f"{fault.where}, for the row {row.place}" if row.place else fault.where
        raise DataError(fault.what, where=where, fix=fault.fix) from fault
    return Prompt(
        id=row.id,
        text=row.question,
        token_ids=ids,
        reference=row.reference,
        solution_ids=solution,
        rubric=row.rubric,
        columns=row.columns,
        messages=() if data.template == "plain" else chat(row.question, data, row.messages),
        prefill=data.prefill or "",
        weight=weight,
    )
