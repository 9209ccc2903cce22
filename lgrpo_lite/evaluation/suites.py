"""Suites: a set of problems with its prompt and its checker, as a YAML file.

Closed like a recipe: a fault names file:line. A suite is laid over a recipe: it sets where the problems come
from, the prompt and the rewards; what it leaves out stays the recipe's own. `key=value` wins over both.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lgrpo_lite.data.files import records
from lgrpo_lite.data.prompts import GoldFault, part_of
from lgrpo_lite.data.rows import Row, row_or_fault, rows, value_at
from lgrpo_lite.data.sound import Shown, check_model
from lgrpo_lite.data.template import chat, tokens
from lgrpo_lite.errors import ConfigError, DataError, nearest
from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.marks import Marks, load_marked
from lgrpo_lite.recipe.read import packaged, recipe_of, validated
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.recipe.schema import Recipe, Source
from lgrpo_lite.types import Prompt

LETTERS = "ABCDEFGHIJ"


class SuiteName(Section):
    name: str = Field(description="how tables and result folders call it")
    title: str = Field(default="", description="what it is, in a line")
    licence: str = Field(default="unknown", description="of the data")
    note: str = Field(default="", description="what a user must know first: gated, or how others score it")


class Choices(Section):
    """Multiple choice: options A, B, … in a shuffled order; the gold answer becomes the right letter."""

    wrong: list[str] = Field(
        min_length=1, max_length=len(LETTERS) - 1, description="columns of the wrong options"
    )
    seed: int = Field(
        default=0, ge=0, description="of the order; the same for every model, so that all are asked the same"
    )


class Form(Section):
    template: str | None = Field(default=None, description="data.template; null: the recipe's")
    system: str | None = Field(default=None, description="data.system; null: the recipe's")
    question: str = Field(
        default="{question}", description="what is asked; {question} and {choices} are filled in"
    )


def _as_list(value):
    return [value] if isinstance(value, dict) else value


class Suite(Section):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    suite: SuiteName
    data: Annotated[list[Source], BeforeValidator(_as_list)] = Field(
        min_length=1, description="as data.eval of a recipe"
    )
    category: list[str] = Field(default_factory=list, description="columns to make a table by")
    choices: Choices | None = Field(default=None, description="for multiple choice")
    prompt: Form = Form()
    rewards: list[Reward] | None = Field(
        default=None, min_length=1, description="the checker first; null: the recipe's"
    )
    max_prompt_tokens: int | None = Field(
        default=None, ge=1, description="model.max_prompt_tokens; null: the recipe's"
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="model.max_new_tokens; null: the recipe's"
    )


def suite_names() -> list[str]:
    """Names of the suites inside the package, sorted."""
    files = [file.name for file in (packaged() / "suites").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_suite(name: str | None, file: str | None) -> Suite:
    """By name, or from a file: YAML is a suite, anything else has problems (columns question and answer).

    Both: the suite of that name on the problems of that file. Every fault is a ConfigError that names its
    place.
    """
    if file is not None and file.endswith((".yaml", ".yml")):
        if name is not None:
            fix = "name one of them; a file of problems (JSONL) may stand beside --suite"
            raise ConfigError("two suites are given", where="command line", fix=fix)
        return _parse(_text(Path(file)), file)
    own = Source(path=file) if file is not None else None
    if name is None:
        assert own is not None, "one of the two is given"
        stem = Path(own.path or "").name.partition(".")[0]
        return Suite(suite=SuiteName(name=stem), data=[own])
    known = suite_names()
    if name not in known:
        what = f"unknown suite {name!r}{nearest(name, known)}"
        fix = f"use one of: {', '.join(known)}; or --suite-file FILE"
        raise ConfigError(what, where="command line", fix=fix)
    packed = packaged() / "suites" / f"{name}.yaml"
    suite = _parse(packed.read_text("utf-8"), f"suite {name}")
    return suite if own is None else suite.model_copy(update={"data": [own]})


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the suite: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        raise ConfigError(what, where=str(path), fix="name a readable YAML or JSONL file") from None


def _parse(text: str, origin: str) -> Suite:
    raw, marks = load_marked(text, origin)
    suite = validated(Suite, raw, marks, help_="docs/evaluation.md lists the keys of a suite")
    form = suite.prompt.question
    if "{question}" not in form:
        where = marks.where(("prompt", "question"))
        raise ConfigError(
            "the prompt does not ask the question", where=where, fix="put {question} into prompt.question"
        )
    if suite.choices is not None and "{choices}" not in form:
        where = marks.where(("prompt", "question"))
        raise ConfigError(
            "the prompt does not show the options", where=where, fix="put {choices} into prompt.question"
        )
    return suite


def lay_over(suite: Suite, recipe: Recipe, overrides: list[str]) -> Recipe:
    """The recipe that an evaluation follows: the suite's problems, prompt and checker, then the overrides.

    What only training reads is put aside, so that it can contradict nothing; log-probs are taken at the
    samples' temperature.
    """
    raw = recipe.model_dump(mode="json", by_alias=True)
    raw["algorithm"] = {"use": "grpo"}
    raw["data"]["holdout"] = None
    sources = [source.model_dump(mode="json") for source in suite.data]
    raw["data"]["eval"] = raw["data"]["train"] = sources
    for key in ("template", "system"):
        if (value := getattr(suite.prompt, key)) is not None:
            raw["data"][key] = value
    if suite.rewards is not None:
        raw["rewards"] = [reward.model_dump(mode="json") for reward in suite.rewards]
    for key in ("max_prompt_tokens", "max_new_tokens"):
        if (value := getattr(suite, key)) is not None:
            raw["model"][key] = value
    combined = recipe_of(raw, _marks(suite, recipe), overrides)
    rollout = combined.rollout.model_copy(update={"temperature": combined.eval.temperature or 1.0})
    done = combined.model_copy(update={"rollout": rollout})
    done._marks = combined._marks
    return done


def _marks(suite: Suite, recipe: Recipe) -> Marks:
    """Where the keys of the combined recipe come from."""
    origin = f"suite {suite.suite.name}"
    replaced = {"data"}
    own: dict[tuple[str, ...], str] = {("data", "eval"): f"{origin}, data"}
    if suite.rewards:
        replaced.add("rewards")
        own[("rewards",)] = f"{origin}, rewards"
    kept = {path: line for path, line in recipe._marks.lines.items() if path[0] not in replaced}
    return Marks(recipe._marks.origin, kept | own)


@dataclass(frozen=True, slots=True)
class Asked:
    """The problems of an evaluation. `notes` are what a reader of its figures should know."""

    prompts: list[Prompt]
    categories: list[dict[str, str]]  # of each prompt, by column
    left_out: int  # longer than model.max_prompt_tokens
    notes: list[str]


def problems(
    suite: Suite, recipe: Recipe, tokenizer, limit: int | None, gold_fault: GoldFault | None = None
) -> Asked:
    """The first `limit` problems, as prompts. None, or none that is short enough: DataError."""
    pairs = list(islice(_read(suite, recipe, tokenizer), limit))
    check_model(recipe.data, tokenizer, recipe.where)
    shown = Shown(recipe.data, tokenizer)
    for prompt, _ in pairs:
        shown.check(prompt.messages, f"problem {prompt.id}")
    longest = recipe.model.max_prompt_tokens
    kept = [(prompt, category) for prompt, category in pairs if len(prompt.token_ids) <= longest]
    if not kept:
        what, fix = "the suite has no problems", "check the file, the split and the limit"
        if pairs:
            what = f"all {len(pairs)} problems are longer than {longest} tokens"
            fix = "raise model.max_prompt_tokens"
        raise DataError(what, where=recipe.where("data.eval"), fix=fix)
    prompts = [prompt for prompt, _ in kept]
    categories = [category for _, category in kept]
    left_out = len(pairs) - len(kept)
    notes = []
    if left_out:
        notes.append(f"{left_out} problems are longer than {longest} tokens and were left out")
    if gold_fault is not None:
        notes += _fault_note(prompts, gold_fault)
    return Asked(prompts, categories, left_out, notes)


def _fault_note(prompts: list[Prompt], gold_fault: GoldFault) -> list[str]:
    """A line about the gold answers that are at fault; none where all are good."""
    faults = []
    for prompt in prompts:
        if fault := gold_fault(prompt.reference):
            faults.append(f"problem {prompt.id}, {fault}")
    if not faults:
        return []
    what = f"{len(faults)} gold answers cannot be compared with, so no answer is right there"
    return [f"{what}; the first: {faults[0]}"]


def _read(suite: Suite, recipe: Recipe, tokenizer) -> Iterator[tuple[Prompt, dict[str, str]]]:
    for i, source in enumerate(recipe.data.eval):
        where = recipe.where(f"data.eval.{i}")
        source_rows: Iterable[tuple[Row, dict[str, Any]]] = islice(_rows(source, where), source.limit)
        if source.part is not None:
            source_rows = part_of(source.part, list(source_rows), where, lambda pair: pair[0].question)
        for row, fields in source_rows:
            reference, options = row.reference, ""
            if suite.choices is not None:
                wrong = [_option(fields, column, row.place) for column in suite.choices.wrong]
                seed = f"{suite.choices.seed}/{row.question}"
                options, reference = _shuffled(reference, wrong, seed)
            question = _filled(suite.prompt.question, row.question, options)
            ids = tokens(question, recipe.data, tokenizer, row.messages)
            category = {}
            for column in suite.category:
                value = value_at(fields, column)
                if isinstance(value, str | int | float):
                    category[column] = str(value)
            prompt = Prompt(
                id=row.id,
                text=question,
                token_ids=ids,
                reference=reference,
                rubric=row.rubric,
                columns=row.columns,
                messages=() if recipe.data.template == "plain" else chat(question, recipe.data, row.messages),
                prefill=recipe.data.prefill or "",
            )
            yield prompt, category


def _filled(form: str, question: str, choices: str) -> str:
    """In one pass, so that a question that holds "{choices}" stays as it is."""
    values = {"{question}": question, "{choices}": choices}
    return re.sub(r"\{question\}|\{choices\}", lambda name: values[name[0]], form)


def _rows(source: Source, where: str) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Rows with all that their source has of them; a bad row raises, or is left out by bad_rows=skip."""
    if source.path is None and source.hf is None:
        pairs: Iterator = ((row, {}) for row in rows(source, where))
    else:
        pairs = ((row_or_fault(source, record), record.fields) for record in records(source, where))
    for row, fields in pairs:
        if isinstance(row, Row):
            yield row, fields
        elif source.bad_rows == "refuse":
            raise row


def _option(fields: dict[str, Any], column: str, place: str) -> str:
    value = value_at(fields, column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"no option in column {column!r}",
            where=place,
            fix="set choices.wrong to the columns of the wrong options",
        )
    return value.strip()


def _shuffled(right: str, wrong: list[str], seed: str) -> tuple[str, str]:
    """The options as lines "A) …", and the letter of the right one. The same seed gives the same order."""
    order = list(range(len(wrong) + 1))
    random.Random(seed).shuffle(order)
    options = [right, *wrong]
    lines = []
    for letter, i in zip(LETTERS, order, strict=False):
        lines.append(f"{letter}) {options[i]}")
    return "\n".join(lines), LETTERS[order.index(0)]
