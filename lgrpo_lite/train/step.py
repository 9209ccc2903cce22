"""One training step, top to bottom. Start reading here.

prompts -> completions -> rewards -> groups -> batch -> gradient -> record
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.checks.rules import answers_left
from lgrpo_lite.train.guard import check_finite, within_memory
from lgrpo_lite.train.run import Run
from lgrpo_lite.train.summary import Clock, Sums, Taken, credited, summarise
from lgrpo_lite.types import Group, StepRecord


def gradient(run: Run, batch: TrainBatch) -> tuple[float, Sums, Tensor]:
    """Adds the gradient of a step's loss to all that is trained; the loss, sums over its
    tokens, and -∂loss/∂log π of each.
    """
    loss, sums, token_grad = 0.0, Sums(), torch.zeros_like(batch.advantage)
    for rows, micro in run.split(batch):
        scored = run.policy.logprobs(micro, prompt_hidden=run.objective.log_z is not None)
        scored.logp.retain_grad()
        part, terms = run.objective(scored.logp, micro, scored.entropy, scored.prompt_hidden)
        (run.policy.loss_scale * part).backward()
        loss += part.item()
        sums.add(terms | {"entropy": scored.entropy.sum().item()})
        if scored.logp.grad is not None:
            grad = scored.logp.grad.to(token_grad.dtype)
            token_grad[batch.tokens_of(rows)] = -grad / run.policy.loss_scale
    run.unscale()
    return loss, sums, token_grad


def train_step(step: int, run: Run) -> tuple[StepRecord, list[Group]]:
    """Sample, score, update. A loss that is not finite raises NonFinite before
    its update moves any parameter.
    """
    recipe, policy, objective = run.recipe, run.policy, run.objective
    clock = Clock(run.on_phase)
    lr = run.optimizer.set_lr(step)
    shape = recipe.rollout.prompts_per_step, answers_left(recipe)

    # Rollout. The engine owns the device inside this block: weights are synced on entry,
    # memory is handed back on exit.
    groups: list[Group] = []
    sampled: list[Group] = []
    draws = 0
    with clock.entering("sync", run.engine.serving(policy)) as sampler:
        tools = run.tools(sampler, clock)
        prompts_left = objective.wanted(groups, *shape)
        while prompts_left and draws <= recipe.rollout.max_redraw:
            # sampled and scored; a timeout is a missing reward, never a zero
            fresh = run.plan(run.prompts.draw(prompts_left), tools)
            run.prompts.observe(fresh)
            sampled += fresh
            groups += [group for group in fresh if objective.admit(group)]
            draws += 1
            prompts_left = objective.wanted(groups, *shape)
        run.plan.observe(sampled)

    # Credit and normalisation are settled here, once, for the whole step.
    batch = objective.batch(groups) if groups else None
    taken = Taken(step, run, sampled, draws, tools, clock, lr)
    if batch is None:
        return summarise(replace(taken, skipped=objective.silence(sampled))), sampled
    with clock("score"), torch.no_grad():
        if recipe.optim.updates_per_batch > 1:
            batch = replace(batch, old_logp=within_memory(run, partial(run.logprobs, batch))[0])
        if objective.parts.needs_reference:
            with policy.reference():  # the adapter, switched off
                batch = replace(batch, ref_logp=within_memory(run, partial(run.logprobs, batch))[0])

    # Update. A micro-batch's loss is already divided, so the sum over any split is the loss of the step.
    with clock("update"):
        for _ in range(recipe.optim.updates_per_batch):
            loss, sums, token_grad = within_memory(run, partial(gradient, run, batch))
            grad_norm = clip_grad_norm_(policy.trainable(), recipe.optim.max_grad_norm).item()
            own = {"length_lambda_grad": objective.lambda_grad, "log_z_grad": objective.log_z_grad}
            check_finite(step, sampled, loss=loss, grad_norm=grad_norm, **own)
            taken = replace(
                taken, batch=batch, loss=loss, grad_norm=grad_norm, sums=sums, token_grad=token_grad
            )
            record = summarise(taken)
            run.optimizer.step()  # AdamW on the policy, SGD on λ, AdamW on a log Z head
            run.optimizer.zero_grad()
            policy.version += 1
    done = record.after_update(policy.version, objective.length_lambda, clock.seconds)
    return done, credited(sampled, groups, objective, batch, token_grad)
