"""Values that the schema lets through and that no run can mean. No torch here."""

from collections.abc import Iterator

from lgrpo_lite.checks.fault import Fault
from lgrpo_lite.recipe.schema import Recipe

MOST_PROBLEMS = 1_000_000  # of a generated task: each is made, and kept
FAST = 0.01  # of AdamW, whose step moves a number by as much
FAST_LAMBDA = 10  # of λ's SGD, where nothing bounds λ


def nonsense(recipe: Recipe) -> Iterator[Fault]:
    """What trains nothing, never ends or overflows."""
    if all(reward.weight == 0 for reward in recipe.rewards):
        what = "all rewards weigh 0, so every answer is worth the same and nothing is learned"
        yield what, "rewards.0.weight", "give the reward that says what is right a weight above 0"
    for which in ("train", "eval"):
        for i, source in enumerate(getattr(recipe.data, which)):
            generated = source.task is not None and source.path is None and source.hf is None
            if generated and (source.limit or 0) > MOST_PROBLEMS:
                what = f"limit {source.limit:,} asks for more problems than are made: {MOST_PROBLEMS:,}"
                yield what, f"data.{which}.{i}.limit", f"set it to at most {MOST_PROBLEMS}"
    preference = recipe.algorithm.length_preference
    if preference and preference.clamp is None and preference.lr > FAST_LAMBDA:
        what = f"λ runs away: its rate is {preference.lr:g} and clamp=null bounds it nowhere"
        fix = f"set lr to at most {FAST_LAMBDA}, or clamp=[-5,5]"
        yield what, "algorithm.length_preference.lr", fix


def unlikely(recipe: Recipe) -> Iterator[str]:
    """What runs and is seldom meant, in sentences."""
    if recipe.optim.lr > FAST:
        least = f"AdamW moves every number of the policy by up to {recipe.optim.lr:g} a step"
        yield f"optim.lr={recipe.optim.lr:g} is far above what policies bear (1e-6 to 1e-3): {least}"
