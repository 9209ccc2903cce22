"""What several test files build: groups from plain numbers, and the loss and gradients of an objective on them."""

from dataclasses import dataclass, replace

import torch

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score


@dataclass
class Result:
    """Loss, ∂loss/∂logp in the order of the groups' tokens, ∂loss/∂λ (None without λ)."""

    loss: float
    logp_grad: torch.Tensor
    lam_grad: torch.Tensor | None


@dataclass(frozen=True)
class Case:
    """Groups, and per rollout the log-probs of its tokens under the policy, the old policy and the reference."""

    groups: list[Group]
    logp: list[list[float]]
    old: list[list[float]]
    ref: list[list[float]] | None


def groups_of(cases: list[dict]) -> Case:
    """One group per dict of `lengths`, `rewards` and, if given, `logp`, `old_logp`, `ref_logp`, `token_ids`."""
    groups, logp, old, ref = [], [], [], []
    for number, case in enumerate(cases):
        lengths = case["lengths"]
        zeros = [[0.0] * n for n in lengths]
        prompt = Prompt(str(number), "?", tuple(range(1, number % 3 + 2)), "")
        now, before = case.get("logp", zeros), case.get("old_logp", zeros)
        rollouts = tuple(
            Rollout(
                prompt,
                Completion(tuple(ids), tuple(sampled), "", "stop", 0),
                Score(float(reward), Outcome.ok if reward else Outcome.wrong),
            )
            for ids, sampled, reward in zip(
                case.get("token_ids", [range(n) for n in lengths]), before, case["rewards"], strict=True
            )
        )
        groups.append(Group(prompt, rollouts))
        logp, old = logp + now, old + before
        ref = ref + case.get("ref_logp", zeros)
    return Case(groups, logp, old, ref)


def laid_out(batch: TrainBatch, values: list[list[float]], dtype: torch.dtype) -> torch.Tensor:
    """Per-rollout lists as the batch's [T]."""
    return torch.tensor([x for row in batch.row.tolist() for x in values[row]], dtype=dtype)


def value_and_grads(objective: Objective, case: Case, dtype: torch.dtype, budget: int | None = None) -> Result:
    """Loss and gradients, over micro-batches of `budget` tokens if given. λ's gradient adds up in its .grad."""
    total = [len(row) for row in case.logp]
    grads = [torch.zeros(n, dtype=dtype) for n in total]
    loss = 0.0
    batch = objective.batch(case.groups)
    if batch is not None:
        ref = laid_out(batch, case.ref, dtype) if objective.parts.kl.coef else None
        batch = replace(batch, old_logp=laid_out(batch, case.old, dtype), ref_logp=ref)
        for micro in [batch] if budget is None else batch.split(budget):
            logp = laid_out(micro, case.logp, dtype).requires_grad_()
            part, _ = objective(logp, micro)
            part.backward()
            loss += part.item()
            for row, grad in zip(micro.row.tolist(), logp.grad.split([total[r] for r in micro.row.tolist()]), strict=True):
                grads[row] = grad
    lam = objective.preference.lam if objective.preference else None
    lam_grad = None if lam is None else (torch.zeros_like(lam) if lam.grad is None else lam.grad)
    return Result(loss, torch.cat(grads), lam_grad)


# ------------------------------------------------------------------------------------------- real runs


def tiny_recipe(*overrides: str, name: str = "tiny-math"):
    """A packaged recipe, made small, checked."""
    from lgrpo_lite.recipe import load_recipe
    from lgrpo_lite.train.check import check

    small = ["train.steps=2", "rollout.prompts_per_step=4", "rollout.group_size=4", "data.train.limit=64", "data.eval.limit=8"]
    if name != "tiny-math":
        small.pop()
    return check(load_recipe(name, [*small, "eval.k=1", *overrides]))


def lgrpo(*argv: str) -> int:
    """The command line, in this process."""
    from lgrpo_lite.cli.main import main

    return main([str(a) for a in argv])
