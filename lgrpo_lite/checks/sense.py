"""Values that the schema lets through and that no run can mean. No torch here."""

from collections.abc import Iterator

from lgrpo_lite.checks.fault import Fault
from lgrpo_lite.recipe.schema import Recipe

MOST_PROBLEMS = 1_000_000  # of a generated task: each is made, and kept
MOST_ANSWERS = 2**20  # of a step
FAST = 0.01  # of AdamW, whose step moves a number by as much
SLOW = 1e-10  # of AdamW: a step is lost in the rounding of most numbers of a policy
LEAST_NORM = 1e-6  # of a clipped gradient: below it AdamW's epsilon of 1e-8 is what it divides by
FAST_LAMBDA = 10  # of λ's SGD, where nothing bounds λ
WIDEST_LAMBDA = 100  # at 5 one answer of a group counts nearly alone; a clamp beyond it bounds nothing
LEAST_WEIGHT = 1e-6  # of a reward: what is below it is lost in algorithm.advantage_eps


def nonsense(recipe: Recipe) -> Iterator[Fault]:
    """What trains nothing, never ends or overflows."""
    if all(abs(reward.weight) < LEAST_WEIGHT for reward in recipe.rewards):
        what = "all rewards weigh 0 or next to it, so every answer is worth the same and nothing is learned"
        yield what, "rewards.0.weight", "give the reward that says what is right a weight above 0"
    for which in ("train", "eval"):
        for i, source in enumerate(getattr(recipe.data, which)):
            generated = source.task is not None and source.path is None and source.hf is None
            if generated and (source.limit or 0) > MOST_PROBLEMS:
                what = f"limit {source.limit:,} asks for more problems than are made: {MOST_PROBLEMS:,}"
                yield what, f"data.{which}.{i}.limit", f"set it to at most {MOST_PROBLEMS}"
    answers = recipe.rollout.prompts_per_step * recipe.rollout.group_size
    if answers > MOST_ANSWERS:
        what = f"a step would sample {answers:,} answers, and more than {MOST_ANSWERS:,} are not held at once"
        yield what, "rollout.prompts_per_step", "set it or rollout.group_size lower"
    preference = recipe.algorithm.length_preference
    if preference and abs(preference.lambda_init) > WIDEST_LAMBDA:
        what = f"λ={preference.lambda_init:g} leaves one answer of a group that counts"
        key, fix = "algorithm.length_preference.lambda_init", f"set it within ±{WIDEST_LAMBDA}; 0 is plain"
        yield what, key, fix
    clamp = preference.clamp if preference else None
    bounded = clamp is not None and max(map(abs, clamp)) <= WIDEST_LAMBDA
    if preference and not bounded and preference.lr > FAST_LAMBDA:
        given = "null" if clamp is None else f"[{clamp[0]:g},{clamp[1]:g}]"
        what = f"λ runs away: its rate is {preference.lr:g} and clamp={given} bounds it nowhere"
        fix = f"set lr to at most {FAST_LAMBDA}, or clamp=[-5,5]"
        yield what, "algorithm.length_preference.lr", fix


def unlikely(recipe: Recipe) -> Iterator[str]:
    """What runs and is seldom meant, in sentences."""
    if recipe.optim.lr > FAST:
        least = f"AdamW moves every number of the policy by up to {recipe.optim.lr:g} a step"
        yield f"optim.lr={recipe.optim.lr:g} is far above what policies bear (1e-6 to 1e-3): {least}"
    if recipe.optim.lr < SLOW:
        yield f"optim.lr={recipe.optim.lr:g} moves next to nothing: policies learn at 1e-6 to 1e-3"
    if recipe.optim.max_grad_norm < LEAST_NORM:
        norm = recipe.optim.max_grad_norm
        yield f"optim.max_grad_norm={norm:g} leaves next to nothing of a gradient: 1 is usual"
