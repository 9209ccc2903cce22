"""What several test files build: groups from plain numbers, and the loss and
gradients of an objective on them.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch

from lgrpo_lite.batch import TrainBatch
from lgrpo_lite.layout import split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.types import Completion, Group, Outcome, Prompt, Rollout, Score


def long_but_for(kept, cases: list) -> list:
    """All cases; those that are not among `kept` are left to `make test-long`."""
    return _but_for(kept, cases, pytest.mark.long)


def slow_but_for(kept, cases: list) -> list:
    """All cases; those that are not among `kept` are left to `make test-slow`."""
    return _but_for(kept, cases, pytest.mark.slow)


def _but_for(kept, cases: list, mark) -> list:
    """A case that is a tuple is of several arguments."""
    marked = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=[] if case in kept else mark))
    return marked


def named_pairs(table: dict[str, list[tuple[str, str]]]) -> list:
    """The pairs of every class of a table, each a case by its class and number."""
    found = []
    for name, pairs in table.items():
        for number, (prediction, gold) in enumerate(pairs):
            found.append(pytest.param(prediction, gold, id=f"{name} {number}"))
    return found


@dataclass
class Result:
    """Loss, ∂loss/∂logp in the order of the groups' tokens, ∂loss/∂λ (None without λ)."""

    loss: float
    logp_grad: torch.Tensor
    lam_grad: torch.Tensor | None
    hidden_grad: torch.Tensor | None = None  # ∂loss/∂(prompt's hidden state) per answer, unsplit only


@dataclass(frozen=True)
class Case:
    """Groups, and per rollout the log-probs of its tokens under the policy, the old policy and the reference."""

    groups: list[Group]
    logp: list[list[float]]
    old: list[list[float]]
    ref: list[list[float]]
    hidden: list[list[float]]  # mean hidden state of each group's prompt


def groups_of(cases: list[dict]) -> Case:
    """One group per dict of `lengths`, `rewards` and, if given, of
    `logp`, `old_logp`, `ref_logp`, `token_ids`, `off` (rollouts), `value` (V*)."""
    groups, logp, old, ref = [], [], [], []
    for number, case in enumerate(cases):
        lengths = case["lengths"]
        zeros = [[0.0] * n for n in lengths]
        off = case.get("off", ())
        prompt = Prompt(str(number), "?", tuple(range(1, number % 3 + 2)), "")
        now, before = case.get("logp", zeros), case.get("old_logp", zeros)
        ids = case.get("token_ids", [range(n) for n in lengths])
        rollouts = tuple(
            Rollout(
                prompt,
                Completion(tuple(ids[i]), None if i in off else tuple(before[i]), "", "stop", 0),
                Score(float(reward), Outcome.ok if reward else Outcome.wrong),
                off=i in off,
                spans=((0, lengths[i]),) if lengths[i] else (),
                values=(0.25,),
            )
            for i, reward in enumerate(case["rewards"])
        )
        groups.append(Group(prompt, rollouts, value=case.get("value", 0.5)))
        logp, old = logp + now, old + before
        ref = ref + case.get("ref_logp", zeros)
    hidden = [
        case.get("hidden", [math.cos(number * 4 + k) for k in range(4)]) for number, case in enumerate(cases)
    ]
    return Case(groups, logp, old, ref, hidden)


def laid_out(batch: TrainBatch, values: list[list[float]], dtype: torch.dtype) -> torch.Tensor:
    """Per-rollout lists as the batch's [T]."""
    return torch.tensor([x for row in batch.row.tolist() for x in values[row]], dtype=dtype)


def value_and_grads(
    objective: Objective, case: Case, dtype: torch.dtype, budget: int | None = None
) -> Result:
    """Loss and gradients, over micro-batches of `budget` tokens if given. λ's gradient adds up in its .grad."""
    grads = [torch.zeros(len(row), dtype=dtype) for row in case.logp]
    loss = 0.0
    batch = objective.batch(case.groups)
    if batch is not None:
        _, chosen = objective.credit(case.groups)
        first = [sum(len(g.rollouts) for g in case.groups[:i]) for i in range(len(case.groups))]
        # rollouts that were not pruned
        home = [begin + i for begin, rows in zip(first, chosen, strict=True) for i in rows]
        now, old, ref = ([values[i] for i in home] for values in (case.logp, case.old, case.ref))
        batch = replace(
            batch,
            old_logp=laid_out(batch, old, dtype),
            ref_logp=laid_out(batch, ref, dtype) if objective.parts.needs_reference else None,
        )
        whole = objective.parts.whole_groups
        for micro in [batch] if budget is None else [m for _, m in split(batch, budget, whole_groups=whole)]:
            logp = laid_out(micro, now, dtype).requires_grad_()
            hidden = torch.tensor(case.hidden, dtype=dtype)[micro.step_group[micro.row]]
            part, _ = objective(logp, micro, logp.detach().cos(), hidden.requires_grad_())
            part.backward()
            loss += part.item()
            rows = micro.row.tolist()
            for row, grad in zip(rows, logp.grad.split([len(now[r]) for r in rows]), strict=True):
                grads[home[row]] = grad
    lam = objective.preference.lam if objective.preference else None
    lam_grad = None if lam is None else (torch.zeros_like(lam) if lam.grad is None else lam.grad)
    return Result(loss, torch.cat(grads), lam_grad, None if batch is None else hidden.grad)


# ------------------------------------------------------------------------------------------- real runs


def tiny_recipe(*overrides: str, name: str = "tiny-math"):
    """A packaged recipe, made small, checked."""
    from lgrpo_lite.checks.check import check
    from lgrpo_lite.recipe.read import load_recipe

    small = [
        "train.steps=2",
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "data.train.limit=64",
        "data.eval.limit=8",
    ]
    if name != "tiny-math":
        small.pop()
    return check(load_recipe(name, [*small, "eval.k=1", *overrides]))


def tokenizer_of(template: str | None, *, bos: bool = False):
    """The packaged one with another chat template, and with a first token if that is asked for."""
    from transformers import AutoTokenizer

    from lgrpo_lite.policy.load import locate

    tokenizer = AutoTokenizer.from_pretrained(locate("builtin:tiny-math"))
    tokenizer.chat_template = template
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
        tokenizer.add_bos_token = True
    return tokenizer


def lgrpo(*argv: str) -> int:
    """The command line, in this process."""
    from lgrpo_lite.cli.main import main

    return main([str(a) for a in argv])


# ------------------------------------------------------------------------------------------- a scripted engine


class Scripted:
    """A sampler whose answers are written down: `script(question, prefix, number)`
    gives what follows the prefix.

    One token a character; an answer that fits its limit ends with token 0. `asked` keeps
    (question, prefix, n) of every row.
    """

    policy_version = 0

    def __init__(self, script):
        self.script, self.asked, self.calls = script, [], 0

    def reference(self):
        return nullcontext()

    def generate(self, prompts, n, sampling, prefixes=None):
        self.calls += 1
        rows = []
        for prompt, prefix in zip(prompts, prefixes or [()] * len(prompts), strict=True):
            question, begun = text_of(prompt.token_ids), text_of(prefix)
            self.asked.append((question, begun, n))
            rows.append([self._answer(question, begun, i, sampling.max_new_tokens) for i in range(n)])
        return rows

    def _answer(self, question, begun, number, limit):
        ids = (*ids_of(begun + self.script(question, begun, number)), 0)
        kept, given = ids[:limit], len(begun)
        reason = "stop" if len(ids) <= limit else "length"
        return Completion(kept, (-1.0,) * (len(kept) - given), text_of(kept), reason, 0, given=given)


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def text_of(ids) -> str:
    return "".join(chr(i) for i in ids if i)


def scripted_tools(script, *rewards, limit: int = 64):
    """Tools over a scripted sampler; the reward is the number after `####` unless others are given."""
    from contextlib import nullcontext

    from lgrpo_lite.engines.base import SamplingParams
    from lgrpo_lite.recipe.reward import Reward
    from lgrpo_lite.rewards.total import RewardSum
    from lgrpo_lite.rollout.tools import Tools

    reward = RewardSum(
        rewards or [Reward(use="numeric", extract="gsm8k")], lambda key: key, max_new_tokens=limit
    )
    return Tools(Scripted(script), SamplingParams(1.0, limit), reward, ids_of, text_of, nullcontext)


def asked(question: str, reference: str = "1", **more) -> Prompt:
    """A prompt for a scripted sampler."""
    return Prompt(question, question, ids_of(question), reference, **more)
