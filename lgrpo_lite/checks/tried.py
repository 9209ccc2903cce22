"""A user's own algorithm, called once on two made-up groups: its faults are told before anything loads."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from lgrpo_lite.objective import own
from lgrpo_lite.recipe.plugin import blamed, from_file, is_file
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.part import names_of
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score

LENGTHS = (3, 5, 2, 6)  # tokens of answers, over and over
STEP = 2  # tokens of a step of an answer, where steps have values


def try_algorithm(recipe: Recipe) -> None:
    """Credit, loss and gradient of two groups, one of answers right and wrong, one of equal ones, where a
    checked recipe names a file for advantage or surrogate. What is wrong with it: DataError at its line.

    Without such a file: nothing. torch is imported for a surrogate alone, which is not tried where it lacks.
    """
    parts = recipe.algorithm
    size = max(2, min(recipe.rollout.group_size, 8))
    groups = [_group(recipe, number, size, equal=bool(number)) for number in range(2)]
    if is_file(parts.advantage):
        own.advantage(parts.advantage, from_file(parts.advantage, "algorithm.advantage"))(groups, parts)
    if is_file(parts.surrogate) and find_spec("torch") is not None:
        _try_loss(recipe, groups)


def _try_loss(recipe: Recipe, groups: Sequence[Group]) -> None:
    import torch

    from lgrpo_lite.objective.objective import Objective

    most = recipe.model.max_new_tokens
    objective = Objective(recipe.algorithm, max_new_tokens=most, hidden=4)
    batch = objective.batch(groups)
    if batch is None:
        return
    logp = torch.full_like(batch.sampler_logp, -0.9).nan_to_num(-0.9).requires_grad_()
    if recipe.algorithm.needs_reference:
        batch = replace(batch, ref_logp=logp.detach() - 0.1)
    hidden = torch.zeros(len(batch.length), 4) if objective.log_z is not None else None
    entropy = torch.full_like(logp, 0.5)
    loss, _ = objective(logp, batch, entropy, hidden)
    with blamed(recipe.algorithm.surrogate, own.GAIN):
        loss.backward()
    own.demand_gradient(recipe.algorithm.surrogate, logp.grad)


def _group(recipe: Recipe, number: int, size: int, *, equal: bool) -> Group:
    prompt = Prompt(f"made-up-{number}", "1 + 1 = ?", (1, 2, 3), "2")
    rollouts = tuple(_rollout(recipe, prompt, i, 0.0 if equal else float(i % 2)) for i in range(size))
    return Group(prompt, rollouts, value=0.5 if recipe.algorithm.value_cache else None)


def _rollout(recipe: Recipe, prompt: Prompt, i: int, reward: float) -> Rollout:
    length = LENGTHS[i % len(LENGTHS)]
    ids = tuple(range(length))
    completion = Completion(ids, (-1.0,) * length, "2", "stop", 0)
    outcome = Outcome.ok if reward else Outcome.wrong
    score = Score(reward, outcome, dict.fromkeys(names_of(recipe.rewards), reward))
    if recipe.algorithm.probe_values is None:
        return Rollout(prompt, completion, score)
    spans = tuple((begin, min(begin + STEP, length)) for begin in range(0, length, STEP))
    return Rollout(prompt, completion, score, spans=spans, values=(0.5,) * len(spans))
