"""Sources -> prompts: rows read and checked, golds looked at, the template applied, token ids
decided once, all of it counted.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

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
        told = []
        if self.bad:
            told.append(
                f"{self.source}: bad rows left out: {len(self.bad)}, the first at {self.bad[0].where}:"
                f" {self.bad[0].what}"
            )
        if self.repeated:
            told.append(
                f"{self.source}: questions that a row before them has: {self.repeated} of {self.rows}; they"
                " are kept"
            )
        return told


def read(
    source: Source, where: str, gold_fault: GoldFault | None = None, counts: Counts | None = None
) -> Iterator[Row]:
    """Rows of one source, at most `limit`.

    A bad row raises DataError with file:line, and so does a gold answer in which `gold_fault` finds a fault.
    With bad_rows=skip it is left out instead; the faults are kept in `counts`.
    """
    kept = 0
    for row in rows(source, where):
        found = row if isinstance(row, DataError) else _checked(row, gold_fault)
        if isinstance(found, Row):
            kept += 1
            yield found
        elif source.bad_rows == "refuse":
            raise found
        elif counts is not None:
            counts.bad.append(found)
        if kept == source.limit:
            return


def survey(
    sources: Sequence[Source], where: Callable[[int], str], gold_fault: GoldFault | None = None
) -> tuple[list[list[Row]], list[Counts]]:
    """All rows of several sources, each of them checked, and their counts. A source without any:
    DataError.
    """
    found, counts, seen = [], [], set()
    for i, source in enumerate(sources):
        count = Counts(name(source))
        found.append(list(read(source, where(i), gold_fault, count)))
        count.rows = len(found[-1])
        for row in found[-1]:
            key = same(row.question)
            count.repeated += key in seen
            seen.add(key)
        counts.append(count)
        if not count.rows:
            hint = (
                f": all {len(count.bad)} rows were left out, the first for: {count.bad[0].what}"
                if count.bad
                else ""
            )
            raise DataError(
                f"the data set is empty{hint}", where=where(i), fix="check the file, the split and the limit"
            )
    return found, counts


def load(
    sources: Sequence[Source],
    data: Data,
    tokenizer,
    max_prompt_tokens: int,
    where: Callable[[int], str],
    gold_fault: GoldFault | None = None,
) -> tuple[list[Prompt], list[Counts]]:
    """All prompts of several sources that are short enough, and the counts of
    each source. None left: DataError.

    An id that an earlier prompt has gets `#2`, `#3`, …, so that an id names one prompt.
    """
    found, counts = survey(sources, where, gold_fault)
    kept: list[Prompt] = []
    shortest, ids = None, Counter()
    for of_source, count in zip(found, counts, strict=True):
        for prompt in (_prompt(row, data, tokenizer) for row in of_source):
            ids[prompt.id] += 1
            length = len(prompt.token_ids)
            shortest = min(length, length if shortest is None else shortest)
            if length > max_prompt_tokens:
                count.too_long += 1
            else:
                kept.append(
                    prompt if ids[prompt.id] == 1 else replace(prompt, id=f"{prompt.id}#{ids[prompt.id]}")
                )
    if not kept:
        what = f"all {sum(map(len, found))} prompts are longer than {max_prompt_tokens} tokens"
        raise DataError(
            what, where=where(0), fix=f"raise model.max_prompt_tokens (shortest: {shortest} tokens)"
        )
    return kept, counts


def shared(train: Iterable[str], held_out: Iterable[str]) -> str | None:
    """A warning where questions of the evaluation are trained on; None where there are none."""
    known = {same(question) for question in train}
    asked = [same(question) in known for question in held_out]
    if not any(asked):
        return None
    return (
        f"questions of data.eval that are in data.train too: {sum(asked)} of {len(asked)}; the evaluation"
        " flatters the run"
    )


def same(question: str) -> str:
    """What two questions share that differ in spaces or in the composition of accents
    only. Case tells variables apart.
    """
    return " ".join(unicodedata.normalize("NFC", question).split())


def on_hub(source: Source) -> bool:
    """Whether reading it may need a network; a local folder does not."""
    return bool(source.hf) and source.path is None and not Path(source.hf).is_dir()


def name(source: Source) -> str:
    """What a source is called in a message."""
    return source.path or (f"{source.hf} ({source.split})" if source.hf else str(source.task))


def _checked(row: Row, gold_fault: GoldFault | None) -> Row | DataError:
    fault = gold_fault(row.reference) if gold_fault else None
    if fault is None:
        return row
    fix = "mend the row, name another column or answer_extract, or leave such rows out by bad_rows=skip"
    return DataError(fault, where=row.place, fix=fix)


def _prompt(row: Row, data: Data, tokenizer) -> Prompt:
    solution = tuple(tokenizer(row.solution, add_special_tokens=False)["input_ids"]) if row.solution else ()
    ids = tokens(row.question, data, tokenizer, row.messages)
    return Prompt(row.id, row.question, ids, row.reference, solution, row.rubric)
