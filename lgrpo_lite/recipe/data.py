"""The section `data` of a recipe: where questions come from, and how they are put to the model."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NaiveDatetime

from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.bounds import Seed


class Part(Section):
    """One of two parts of a source's rows; data.holdout divides every source of data.train so."""

    share: float = Field(gt=0, lt=1, description="of its questions that are held out")
    held_out: bool = Field(description="true: those; false: all others")
    seed: Seed = 0


class Source(Section):
    """Questions and gold answers: `path` (a local file) wins over `hf` (the Hub), `task` is generated."""

    path: str | None = Field(
        default=None,
        description=(
            "local .jsonl, .json, .csv, .tsv (each also .gz) or .parquet, relative to the current folder"
        ),
    )
    hf: str | None = Field(
        default=None, description="data set on the Hub, or a local folder that `datasets` reads"
    )
    config: str | None = Field(default=None, description="configuration of the data set on the Hub")
    split: str = Field(default="train", description="of the data set; a task has train and heldout")
    task: Literal["arithmetic", "sums"] | None = Field(default=None, description="generated problems")
    prompt: str = Field(
        default="question", description="column of the question: text or chat messages; a.b is b inside a"
    )
    answer: str = Field(default="answer", description="column of the gold answer; a.b is b inside a")
    solution: str | None = Field(
        default=None, description="column of a worked solution, for algorithm.guide; a task has its own"
    )
    rubric: str | None = Field(default=None, description="column of the criteria, for the reward `rubric`")
    answer_extract: Literal["plain", "gsm8k", "boxed"] = Field(
        default="plain", description="how the gold answer is cut out"
    )
    limit: int | None = Field(default=None, ge=1, description="use at most this many rows")
    part: Part | None = Field(default=None, description="only a part of them, which follows from a seed")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="of data.train: how often an epoch draws each of its questions; 0.5: half of them",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="refuse: a bad row ends the command, with its file:line; skip: left out, with a count",
    )


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class Shot(Section):
    """A worked example that is shown before every question."""

    question: str = Field(min_length=1, description="as the user's turn")
    answer: str = Field(min_length=1, description="as the turn of the assistant")


class Data(Section):
    train: Annotated[list[Source], BeforeValidator(_as_list)] = Field(min_length=1)
    eval: Annotated[list[Source], BeforeValidator(_as_list)] = Field(default_factory=list)
    holdout: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of data.train that is not trained on and evaluated instead, by the seed",
    )
    template: str = Field(
        default="chat",
        description=(
            "chat: the model's own; plain: texts and line breaks alone; or the path of a Jinja file"
        ),
    )
    system: str | None = Field(
        default=None, description="system message, put before every question that has none of its own"
    )
    few_shot: list[Shot] | None = Field(
        default=None, description="examples as turns of the chat, after the system message"
    )
    prefill: str | None = Field(
        default=None,
        min_length=1,
        description="how every answer begins: given to the model, and part of the answer for the rewards",
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="what the template reads besides the chat, e.g. {enable_thinking: false}"
    )
    date: NaiveDatetime | None = Field(
        default=None,
        description=(
            "the time that a template reads as now, local, e.g. 2026-11-27T09:30; null: when the run begins"
        ),
    )
    draft_template: str = Field(
        default=(
            "{question}\n\nA previous attempt, a guidance that may be wrong:\n{draft}\n\nWrite a strictly"
            " better answer: correct what is wrong, and do not repeat the attempt word for word."
        ),
        description="question of algorithm.best_draft; {question} and {draft} are filled in",
    )
    refine_template: str = Field(
        default=(
            "{question}\n\nAn earlier answer:\n{best}\n\nIt does not satisfy:\n{failed}\n\n"
            "Write a corrected, complete answer."
        ),
        description="question of algorithm.refine_best; {question}, {best} and {failed} are filled in",
    )
