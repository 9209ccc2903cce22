"""What a model card says, part by part, in Markdown."""

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgrpo_lite.evaluation.paired import FEW
from lgrpo_lite.export.card_proofs import proofs, quantised_alone
from lgrpo_lite.export.card_use import USES, Asked
from lgrpo_lite.export.place import json_of, report_of
from lgrpo_lite.folder.facts import (
    algorithm_name,
    algorithm_words,
    base_words,
    compared,
    facts,
    intervals_explained,
    result_lines,
    source_name,
    sources,
    trained_words,
)
from lgrpo_lite.folder.markdown import cell, fenced, inline, table, upper
from lgrpo_lite.folder.origin import Base, Licence, last_part
from lgrpo_lite.monitor.numbers import finite
from lgrpo_lite.monitor.tables import evaluations
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.part import REWARDS

QUESTION = "your question"
MADE = {
    "merged": "{base}, with {trained} merged into its weights",
    "adapter": "{trained}, for {base}, which is not part of it",
    "gguf": "GGUF files of {base}, with {trained} merged into its weights",
    "lora-gguf": "{trained}, as GGUF, for {base}, which is not part of it",
    "ollama": "for Ollama: {base}, with {trained} merged into its weights",
    "run": "a run that trained {trained} on {base}; nothing of it is exported yet",
}
WHOLE = {"merged": "{base}, {trained} trained", "gguf": "GGUF files of {base}, {trained} trained",
         "ollama": "for Ollama: {base}, {trained} trained", "run": MADE["run"]}  # fmt: skip
TEMPLATES = {"chat": "its own chat template", "plain": "plain text: each turn and a line break"}
OF_POLICY = (
    "These figures are those of the policy as it was trained, not of the quantised files here: how far each"
    " is from it stands under the checks of this export."
)
ALONE = "carries all of it: send the question alone, as the user's turn."
CARRIED = {
    "merged": f"The chat template in this folder {ALONE}",
    "adapter": f"The chat template in this folder {ALONE}",
    "gguf": f"The chat template in the file {ALONE}",
    "lora-gguf": "The base's GGUF has a template of its own: give it what stands here.",
    "ollama": f"The Modelfile {ALONE}",
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card is made of: a run as it was at the exported step."""

    run: RunView
    recipe: Recipe
    folder: Path
    kind: str
    step: int
    base: Base
    licence: Licence | None
    picked: bool  # it has the best of several evaluations, those after it too

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def quantised(self) -> bool:
        """Whether no file of it is the policy in 16 bits."""
        return quantised_alone(self.folder, self.kind)

    @property
    def evaluated(self) -> dict[str, Any] | None:
        """The newest evaluation up to the step."""
        rows = evaluations(self.run)
        return rows[-1] if rows else None


def head(card: Card) -> Iterator[str]:
    algorithm, _ = algorithm_name(card.run)
    yield f"# {inline(card.name)}: {inline(card.base.short)} trained with {algorithm}"
    yield ""
    made = MADE if card.recipe.model.lora else WHOLE
    words = made.get(card.kind, MADE["run"])
    what = upper(words.format(trained=trained_words(card.run), base=base_words(card.base)))
    yield f"{what}. Trained by reinforcement learning with {algorithm_words(card.run)}."
    if title := card.recipe.recipe.title:
        yield f"Recipe `{inline(card.recipe.recipe.name)}`: {inline(title)}."
    yield ""
    yield compared(card.run) or _without_comparison(card)
    if card.evaluated and card.quantised:
        yield OF_POLICY
    if card.step == 0 or not any(record.skipped is None for record in card.run.records):
        yield ""
        yield "**No step up to this checkpoint made an update: this is the base model still.**"


def _without_comparison(card: Card) -> str:
    if card.evaluated is None:
        return "It was not evaluated: how good it is, nobody has measured."
    return "How good it is stands below; it was not compared with its base problem by problem."


# ------------------------------------------------------------------------------------------- how good


def _evaluation(card: Card) -> Iterator[str]:
    if card.evaluated is None:
        yield "There is no evaluation of this checkpoint, nor of the policy before training."
    else:
        yield from result_lines(card.run)
        yield from intervals_explained(card.run)
        if card.quantised:
            yield from ("", OF_POLICY)
        step = card.evaluated.get("step")
        if step != card.step:
            yield ""
            yield f"The last evaluation is of step {inline(step)}; this checkpoint is of step {card.step:,}."
    yield from _suites(card)


def _suites(card: Card) -> Iterator[str]:
    """What `lgrpo-lite eval` measured of this checkpoint, and on the same suite of the base."""
    label = f"step-{card.step:06d}"
    found: dict[str, list[tuple[str, ...]]] = {}
    for file in sorted(card.run.path.glob("evals/*/result.json")):
        row = _suite(json_of(file))
        if row is not None and row[1] in (label, "base"):
            found.setdefault(row[0], []).append(row)
    rows = [row for of in found.values() if any(one[1] == label for one in of) for row in sorted(of)]
    if rows:
        head = ("suite", "policy", "problems × samples", "temperature", "accuracy")
        yield from ("", *table(head, [map(cell, row) for row in rows], "|---|---|---:|---:|---:|"))


def _suite(result: dict[str, Any]) -> tuple[str, ...] | None:
    """A row of the table; None where a result is not as it should be."""
    try:
        about, figures = result["about"], result["figures"]
        avg = [float(figures["avg"][key]) for key in ("value", "low", "high")]
        asked = f"{figures['problems']} × {figures['k']}"
        accuracy = "{:.3f} ({:.3f} to {:.3f})".format(*avg)
        return (
            str(about["suite"]),
            str(about["subject"]["label"]),
            asked,
            f"{about['temperature']:g}",
            accuracy,
        )
    except (KeyError, TypeError, ValueError):
        return None


# ------------------------------------------------------------------------------------------- how to use it


def _prompt(card: Card) -> Iterator[str]:
    data = card.recipe.data
    template = TEMPLATES.get(data.template)
    if template is None:
        template = f"a template of the run's own, `{inline(last_part(data.template))}`"
    yield f"Questions were put to the model by {template}. {CARRIED.get(card.kind, '')}".rstrip()
    if data.system:
        yield from ("", "The system prompt:", "", *fenced(data.system))
    if data.few_shot:
        yield from (
            "",
            f"Before every question stand {len(data.few_shot)} worked examples, as turns of the chat.",
        )
    if data.prefill:
        yield from ("", "Every answer begins with this, which the template gives:", "", *fenced(data.prefill))
    if data.chat_template_kwargs:
        given = json.dumps(data.chat_template_kwargs, ensure_ascii=False)
        yield from (
            "",
            "Arguments of the template, which has them by itself here:",
            "",
            *fenced(given, "json"),
        )


def _use(card: Card) -> Iterator[str]:
    ways = USES.get(card.kind)
    if ways is None:
        return
    asked = Asked(card.recipe, card.folder, card.base, card.name, _question(card), _gguf(card))
    yield "As typed in this folder. On the Hub, the repository's name stands for the dot."
    for use in ways(asked):
        yield from ("", f"### {use.heading}", "", *fenced(use.text, use.language))
    if card.base.kind in ("folder", "gguf") and card.kind in ("adapter", "lora-gguf"):
        yield from ("", f"The base is {base_words(card.base)}: for `path/to` put the place where it lies.")


def _gguf(card: Card) -> str | None:
    """The GGUF file to run: the first that the report says is kept, which is the most exact."""
    files = report_of(card.folder).get("files")
    named = [row.get("file") for row in files if isinstance(row, dict)] if isinstance(files, list) else []
    there = sorted(file.name for file in card.folder.glob("*.gguf"))
    return next((name for name in (*named, *there) if name in there), None)


def _question(card: Card) -> str:
    """One of the problems where they are generated; a user's own data is not published."""
    asked = (*card.recipe.data.train, *card.recipe.data.eval)
    if all(source.task for source in asked):
        for row in card.run.samples:
            if isinstance(row.get("prompt"), str):
                return row["prompt"]
    return QUESTION


def _training(card: Card) -> Iterator[str]:
    yield from table(("", ""), facts(card.run), "|---|---|")


def _proofs(card: Card) -> Iterator[str]:
    return proofs(card.folder, card.kind, card.recipe)


# ------------------------------------------------------------------------------------------- limits


def _limits(card: Card) -> Iterator[str]:
    for limit in (*_of_evaluation(card), *_of_training(card)):
        yield f"- {limit}"


def _of_evaluation(card: Card) -> Iterator[str]:
    """What a reader could take for granted of the figures and must not, each in a sentence."""
    row = card.evaluated
    if row is None:
        yield "Nothing was evaluated: whether it is better than its base is not known."
        return
    named = [inline(source_name(source)) for source in sources(card.run, "eval")]
    of = f", of {'; '.join(dict.fromkeys(named))}" if named else ""
    problems = finite(row.get("problems"))
    count = "?" if problems is None else f"{problems:,.0f}"
    nothing = "That says nothing of other tasks, other languages or longer conversations."
    yield f"It was evaluated on {count} problems{of}. {nothing}"
    if problems is not None and problems < FEW:
        yield "So few problems show large differences alone."
    if card.picked:
        yield "It is the best of several checkpoints by these very problems, so its figures flatter it."
    seed = inline(card.run.get("seed", 0))
    yield f"It is one run, of seed {seed}: what another seed would change is not in the intervals."
    cut = finite(row.get("truncated"))
    if cut is not None:
        most = card.recipe.model.max_new_tokens
        yield f"Answers were cut at {most:,} tokens, in the last evaluation {cut:.1%} of them."


def _of_training(card: Card) -> Iterator[str]:
    model, run = card.recipe.model, card.run
    for reward in card.recipe.rewards:
        told = inspect.getdoc(REWARDS[reward.use]) if reward.use in REWARDS else None
        means = f": {inline(told.split(chr(10) * 2)[0])}" if told else ", a function of the run's own."
        yield f"It was rewarded by `{inline(last_part(reward.use))}`{means}"
    unseen = "What no reward sees, such as harm, bias, style or the truth of single steps"
    yield f"{unseen}, was neither trained nor measured."
    if run.step < run.steps:
        yield f"It is of step {card.step:,}; the recipe is for {run.steps:,} steps."
    yield f"Questions of more than {model.max_prompt_tokens:,} tokens were left out."
    if model.weights in ("nf4", "int8"):
        other = "On the same base in 16 bits it answers a little differently."
        yield f"It was trained and evaluated on a base held in {model.weights}. {other}"
    if card.licence is None:
        look = "It binds this too: look it up before you publish it."
        yield f"The licence of the base is not known here. {look}"


def _about(card: Card) -> Iterator[str]:
    yield "Written by lgrpo-lite from the files of the run; no figure in it was typed by hand."


PARTS: dict[str, Callable[[Card], Iterator[str]]] = {
    "Before and after": _evaluation,
    "How to run it": _use,
    "Prompt": _prompt,
    "What was trained, and where": _training,
    "Checks of this export": _proofs,
    "Limits": _limits,
    "About this card": _about,
}
