"""Sources -> prompts: rows and golds checked, the template applied, token ids decided once, all counted."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lgrpo_lite.data.rows import Row, rows
from lgrpo_lite.data.template import tokens
from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.schema import Data, Source
from lgrpo_lite.types import Prompt

# why a gold answer cannot be compared with, in a sentence; None: it can
GoldFault = Callable[[str], str | None]


@dataclass(slots=True)
class Counts:
    """What became of the rows of one source; filled in as they are read."""

    source: str
    rows: int = 0  # kept as rows, before the length of prompts is known
    bad: list[DataError] = field(default_factory=list)  # left out by bad_rows=skip
    repeated: int = 0  # questions that a row before them has, in this source or an earlier one; kept
    too_long: int = 0  # prompts above model.max_prompt_tokens, left out

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
        return notes


def read(
    source: Source, where: str, gold_fault: GoldFault | None = None, counts: Counts | None = None
) -> Iterator[Row]:
    """Rows of one source, at most `limit`.

    A bad row raises DataError with file:line, and so does a gold answer in which `gold_fault` finds a fault.
    With bad_rows=skip it is left out instead; the faults are kept in `counts`.
    """
    kept = 0
    for row in rows(source, where):
        checked = row if isinstance(row, DataError) else _checked(row, gold_fault)
        if isinstance(checked, Row):
            kept += 1
            yield checked
        elif source.bad_rows == "refuse":
            raise checked
        elif counts is not None:
            counts.bad.append(checked)
        if kept == source.limit:
            return


def survey(
    sources: Sequence[Source], where: Callable[[int], str], gold_fault: GoldFault | None = None
) -> tuple[list[list[Row]], list[Counts]]:
    """All rows of several sources, each one checked, and their counts. A source without any: DataError."""
    rows_of_sources = []
    counts = []
    questions: set[str] = set()
    for i, source in enumerate(sources):
        count = Counts(name(source))
        checked = list(read(source, where(i), gold_fault, count))
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
    gold_fault: GoldFault | None = None,
) -> tuple[list[Prompt], list[Counts]]:
    """All prompts of several sources that are short enough, and each source's counts. None left: DataError.

    An id that an earlier prompt has gets `#2`, `#3`, …, so that an id names one prompt.
    """
    rows_of_sources, counts = survey(sources, where, gold_fault)
    kept: list[Prompt] = []
    lengths: list[int] = []
    ids = Counter()
    for source_rows, count in zip(rows_of_sources, counts, strict=True):
        for row in source_rows:
            prompt = _prompt(row, data, tokenizer)
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


def _checked(row: Row, gold_fault: GoldFault | None) -> Row | DataError:
    fault = gold_fault(row.reference) if gold_fault else None
    if fault is None:
        return row
    fix = "mend the row, name another column or answer_extract, or leave such rows out by bad_rows=skip"
    return DataError(fault, where=row.place, fix=fix)


def _prompt(row: Row, data: Data, tokenizer) -> Prompt:
    solution = ()
    if row.solution:
        solution = tuple(tokenizer(row.solution, add_special_tokens=False)["input_ids"])
    ids = tokens(row.question, data, tokenizer, row.messages)
    return Prompt(row.id, row.question, ids, row.reference, solution, row.rubric)
