"""What a run of a recipe would be, in words, without loading anything."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from lgrpo_lite.checks.check import wants_of
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.data.prompts import Counts, Wants, apart, name, on_hub, shared, survey
from lgrpo_lite.data.rows import DEFAULT_TASK_SIZE, Row
from lgrpo_lite.data.stream import places
from lgrpo_lite.errors import ConfigError, DataError, LgrpoError, noted, raise_all
from lgrpo_lite.policy.shape import Shape, find_config
from lgrpo_lite.recipe.code import paths_of
from lgrpo_lite.recipe.schema import Recipe, Source

BRICKS = (
    "best_draft",
    "guide",
    "refine_best",
    "probe_values",
    "value_cache",
    "select",
    "length_preference",
    "trace",
    "prefix_share",
)


def describe(recipe: Recipe, *, imports: bool = True) -> list[str]:
    """What a run of the recipe would be, without loading anything; local data is read and checked: DataError,
    with the first fault of each other source in its `also`.

    `imports` as in `check`: without it no code of the recipe is run, and the columns that it asks for stay
    unknown.
    """
    r, a = recipe.rollout, recipe.algorithm
    adapter = f"LoRA rank {recipe.model.lora.rank}" if recipe.model.lora else "all parameters"
    form = f"clip {a.clip.low}/{a.clip.high}" if a.surrogate == "clipped" else a.surrogate
    algorithm = [a.advantage, a.reduce, form, f"kl {a.kl.coef}"]
    algorithm += [name for name in BRICKS if getattr(a, name)]
    answers = f"{r.group_size} answers of up to {recipe.model.max_new_tokens} tokens"
    lines = [
        f"recipe     {recipe.recipe.name}: {recipe.recipe.title}".removesuffix(": "),
        f"model      {recipe.model.id} in {recipe.model.weights}, {adapter}",
        f"algorithm  {a.use}: {', '.join(algorithm)}",
        f"rollout    {r.prompts_per_step} prompts × {answers}, engine {r.engine}",
        f"training   {recipe.train.steps} steps",
    ]
    lines += [f"warning    {line}" for line in (*warnings(recipe), *_beyond_context(recipe))]
    return [*lines, *_describe_data(recipe, imports)]


def _beyond_context(recipe: Recipe) -> Iterator[str]:
    """Where the model's config is on this machine, or its shape in the package: is there room for all?"""
    model = recipe.model
    longest = model.max_prompt_tokens + model.max_new_tokens
    with suppress(ConfigError):  # a model that is not here, or of a family that nobody counts
        context = Shape.of(find_config(model)).context
        if context and longest > context:
            most = f"prompt and answer may have {longest:,} tokens"
            yield f"{most}, and the model's context is {context:,}: what is beyond it is noise"


def not_run(recipe: Recipe) -> list[str]:
    """What `check(…, imports=False)` left unknown, in sentences."""
    return [
        f"{file} is code of the recipe and was not run; --import runs it, to check it too"
        for file in paths_of(recipe)
    ]


def _describe_data(recipe: Recipe, imports: bool) -> list[str]:
    """What is known of the data without a network: rows, questions twice, questions in train and eval."""
    wants = wants_of(recipe, imports=imports)
    lines: list[str] = []
    notes: list[str] = []
    questions: dict[str, list[str]] = {}
    faults: list[LgrpoError] = []
    for which in ("train", "eval"):
        label = f"{which + ' data':10}"
        local, locations, remote = [], [], []
        for i, source in enumerate(getattr(recipe.data, which)):
            if on_hub(source):
                remote.append(source)
            else:
                local.append(source)
                locations.append(recipe.where(f"data.{which}.{i}"))
        seen = [_first_of_task(source) for source in local]
        rows_of_sources, counts = _surveyed(seen, locations, wants, faults)
        questions[which] = [row.question for rows in rows_of_sources for row in rows]
        for source, count in zip(local, counts, strict=not faults):
            rows = count.rows if source.task is None else source.limit or count.rows
            lines.append(f"{label} {count.source}: {rows} rows")
        lines += [f"{label} {name(source)}, on the Hub: not read now" for source in remote]
        for count in counts:
            notes += [f"note       {line}" for line in count.notes()]
        if which == "train" and not faults:
            with noted(faults):
                _demand_drawn(local, [count.rows for count in counts], {source.weight for source in remote})
    raise_all(faults)
    if any(source.part for source in recipe.data.train) and questions["eval"]:
        place = recipe.where("data.train")
        questions["train"], told = apart(questions["train"], questions["eval"], place, str)
        notes += [f"note       {line}" for line in told]
    if overlap := shared(questions["train"], questions["eval"]):
        notes.append(f"warning    {overlap}")
    count, drawn = len(questions["train"]), recipe.rollout.prompts_per_step
    if count < drawn and not any(map(on_hub, recipe.data.train)):
        notes.append(
            f"note       {count} questions, and a step draws {drawn}: some come up twice or more in it"
        )
    return [*lines, *notes]


def _demand_drawn(local: list[Source], rows: list[int], unknown: set[float]) -> None:
    """A weight with which no question is ever drawn: DataError. Of an `unknown` one not all rows are here."""
    counts: Counter[float] = Counter()
    for source, count in zip(local, rows, strict=True):
        counts[source.weight] += count
    for weight, count in counts.items():
        if weight not in unknown:
            places(weight, count)


def _surveyed(
    sources: list[Source], locations: list[str], wants: Wants, faults: list[LgrpoError]
) -> tuple[list[list[Row]], list[Counts]]:
    """`survey`; where a source is at fault, nothing, and the first fault of each joins `faults`."""
    try:
        return survey(sources, locations.__getitem__, wants)
    except DataError:
        for source, location in zip(sources, locations, strict=True):
            with noted(faults):
                survey([source], [location].__getitem__, wants)
        return [], []


def _first_of_task(source: Source) -> Source:
    """A generated task with so few problems that making them takes no time: one is as right as another."""
    if source.task is None:
        return source
    return source.model_copy(update={"limit": min(source.limit or DEFAULT_TASK_SIZE, DEFAULT_TASK_SIZE)})
