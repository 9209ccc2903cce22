"""Composition root: a checked recipe -> a Run. The only place that turns settings into objects."""

import re

import torch

from lgrpo_lite.checks.check import wants_of
from lgrpo_lite.data.curriculum import order_of
from lgrpo_lite.data.prompts import Counts, Wants, apart, load, shared
from lgrpo_lite.data.sound import begins, check_model, ends
from lgrpo_lite.engines.base import open_engine
from lgrpo_lite.engines.probe import proof_of
from lgrpo_lite.errors import ConfigError, OutOfMemory
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.plan.plan import card_size, plan, too_small
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.budget import GIB
from lgrpo_lite.policy.memory import grow_segments
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import prove
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rewards.total import RewardSum, judged_by_policy
from lgrpo_lite.rollout.plan import RolloutPlan
from lgrpo_lite.train.optim import Optimizers
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Prompt


def build(recipe: Recipe) -> Run:
    """Load policy and data, compose the objective. Seeds torch; raises the errors of its parts.

    A GPU that is full before the first step: OutOfMemory, in the words of the plan.
    """
    try:
        return _build(recipe)
    except torch.OutOfMemoryError as error:
        tried = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
        gap = f"t{tried[0][1:]}" if tried else "out of memory"
        what = f"the run {too_small(card_size(recipe), gap, 'build')}"
        fix = "`lgrpo-lite plan … --fit` proposes settings; `lgrpo-lite doctor` shows who else is on the GPU"
        raise OutOfMemory(what, where=recipe.where("model.id"), fix=fix) from error


def _build(recipe: Recipe) -> Run:
    if recipe.model.threads:
        torch.set_num_threads(recipe.model.threads)
    checkpoint.seed(recipe.seed)
    engine = open_engine(recipe)
    if torch.cuda.is_available():
        # of the engine's start: an adapter that is made inside it would keep all of it from the card
        torch.cuda.empty_cache()
    if getattr(engine, "expandable_segments", True):
        grow_segments()
    again = planned_again(recipe, getattr(engine, "cache_stays", 0))
    policy = Policy.load(recipe, engine.network(recipe))
    notes = [*engine.notes, *again, *prove(policy, recipe)]
    objective = _objective(recipe, policy)
    reward = RewardSum.of(recipe)
    wants = wants_of(recipe)
    prompts, counts = _prompts(recipe, "train", policy, wants)
    held_out: list[Prompt] = []
    if recipe.data.eval:
        held_out, of_held_out = _prompts(recipe, "eval", policy, wants)
        counts = [*counts, *of_held_out]
    for count in counts:
        notes += count.notes()
    if any(source.part for source in recipe.data.train):
        asked = (prompt.text for prompt in held_out)
        prompts, told = apart(prompts, asked, recipe.where("data.train"), lambda prompt: prompt.text)
        notes += told
    own, settings = policy.tokenizer.eos_token_id, policy.generation_ends
    notes += begins(recipe.data, policy.tokenizer)
    notes += ends(recipe.data, policy.tokenizer, policy.eos_ids, own, settings)
    overlap = shared((prompt.text for prompt in prompts), (prompt.text for prompt in held_out))
    reward.check([*prompts, *held_out])
    _demand_judge(recipe, policy, [*prompts, *held_out])
    # the first rollout draws the same numbers however the parts above were built
    checkpoint.seed(recipe.seed)
    return Run(
        recipe=recipe,
        policy=policy,
        engine=engine,
        objective=objective,
        optimizer=Optimizers(recipe, policy, objective),
        reward=reward,
        plan=RolloutPlan(recipe),
        prompts=order_of(recipe, prompts),
        eval_prompts=held_out,
        proof=proof_of(engine, policy, prompts, recipe) if recipe.safety.sync_proof_every else None,
        micro_tokens=recipe.memory.micro_tokens,
        counts=tuple(counts),
        notes=tuple(notes),
        warnings=(overlap,) if overlap else (),
    )


def _objective(recipe: Recipe, policy: Policy) -> Objective:
    """On the policy's device, its log Z head as wide as the policy's last hidden state."""
    width = policy.base.get_output_embeddings().weight.shape[1]
    objective = Objective(recipe.algorithm, max_new_tokens=recipe.model.max_new_tokens, hidden=width)
    if objective.log_z is not None:
        objective.log_z.to(policy.device)
    return objective


def _demand_judge(recipe: Recipe, policy: Policy, prompts: list[Prompt]) -> None:
    """Criteria that the policy is to judge without its adapter need one to be taken off."""
    if policy.has_adapter or not any(judged_by_policy(reward) for reward in recipe.rewards):
        return
    criteria = [criterion for prompt in prompts for criterion in prompt.rubric]
    if all(criterion.rule is not None for criterion in criteria):
        return
    what = (
        "criteria without a rule are for the policy without its adapter to judge, and with"
        " model.lora=null there is none"
    )
    fix = "give every criterion a rule, set judge=endpoint, or train an adapter"
    raise ConfigError(what, where=recipe.where("rewards"), fix=fix)


def planned_again(recipe: Recipe, cache_stays: int) -> tuple[str, ...]:
    """Where vLLM keeps its cache while training, the plan is another one: said, and
    OutOfMemory where it does not fit.
    """
    if not cache_stays:
        return ()
    try:
        expected = plan(recipe, cache_stays=cache_stays)
    except ConfigError:  # a family of models that it cannot count
        return ()
    expected.demand("set rollout.vllm.kv_cache_gb lower: it stays while the policy is trained")
    cache = f"{cache_stays / GIB:.2f} GiB of keys and values that stay"
    return (f"with {cache}, the plan {expected.verdict()}",)


def eval_prompts(recipe: Recipe, policy: Policy, *, imports: bool = False) -> list[Prompt]:
    """Prompts to look at a policy with: the evaluation set, or the training set where there is none.

    Without `imports` the recipe's code is not run: of what its own rewards want of a row nothing is known.
    """
    which = "eval" if recipe.data.eval else "train"
    return _prompts(recipe, which, policy, wants_of(recipe, imports=imports))[0]


def _prompts(recipe: Recipe, which: str, policy: Policy, wants: Wants) -> tuple[list[Prompt], list[Counts]]:
    sources = recipe.data.train if which == "train" else recipe.data.eval
    check_model(recipe.data, policy.tokenizer, recipe.where)
    limit = recipe.model.max_prompt_tokens
    return load(
        sources, recipe.data, policy.tokenizer, limit, lambda i: recipe.where(f"data.{which}.{i}"), wants
    )
