"""What a run of a recipe would be, in words, without loading anything."""

from lgrpo_lite.checks.check import gold_fault_of
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.data.prompts import name, on_hub, shared, survey
from lgrpo_lite.recipe.schema import Recipe


def describe(recipe: Recipe) -> list[str]:
    """What a run of the recipe would be, without loading anything; local data is read and checked."""
    r, a = recipe.rollout, recipe.algorithm
    adapter = f"LoRA rank {recipe.model.lora.rank}" if recipe.model.lora else "all parameters"
    bricks = (
        "best_draft",
        "guide",
        "refine_best",
        "probe_values",
        "value_cache",
        "select",
        "length_preference",
        "trace",
    )
    extra = [name for name in (*bricks, "prefix_share") if getattr(a, name)]
    form = f"clip {a.clip.low}/{a.clip.high}" if a.surrogate == "clipped" else a.surrogate
    lines = [
        f"recipe     {recipe.recipe.name}: {recipe.recipe.title}",
        f"model      {recipe.model.id} in {recipe.model.weights}, {adapter}",
        f"algorithm  {a.use}: {a.advantage}, {a.reduce}, {form}, kl {a.kl.coef}"
        + "".join(f", {name}" for name in extra),
        (
            f"rollout    {r.prompts_per_step} prompts × {r.group_size} answers of up to"
            f" {recipe.model.max_new_tokens} tokens, engine {r.engine}"
        ),
        f"training   {recipe.train.steps} steps",
    ]
    lines += [f"warning    {line}" for line in warnings(recipe)]
    return [*lines, *_describe_data(recipe)]


def _describe_data(recipe: Recipe) -> list[str]:
    """What is known of the data without a network: rows, questions twice, questions of the
    evaluation that are trained on.
    """
    lines, told, questions = [], [], {"train": [], "eval": []}
    for which, asked in questions.items():
        sources = getattr(recipe.data, which)
        here = [(i, source) for i, source in enumerate(sources) if not on_hub(source)]
        places = [recipe.where(f"data.{which}.{i}") for i, _ in here]
        found, counts = survey([source for _, source in here], places.__getitem__, gold_fault_of(recipe))
        asked += [row.question for rows in found for row in rows]
        lines += [f"{which + ' data':10} {c.source}: {c.rows} rows" for c in counts]
        told += [f"note       {line}" for c in counts for line in c.notes()]
        lines += [f"{which + ' data':10} {name(s)}, on the Hub: not read now" for s in sources if on_hub(s)]
    if overlap := shared(questions["train"], questions["eval"]):
        told.append(f"warning    {overlap}")
    return [*lines, *told]
