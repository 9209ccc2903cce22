"""How token terms add up: the coefficient of a token, decided once per step from
the lengths of all its rollouts.

L_i tokens of answer i, N_x tokens of group x, G_x answers of group x, P groups, N tokens of the step. A
coefficient is per rollout here; every token of the rollout gets it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sequence_mean(
    length: Int[Tensor, " R"], group: Int[Tensor, " R"], constant: int, rows: int | None
) -> Float[Tensor, " R"]:
    """1/(P G_x L_i): each answer a mean over its tokens, each group a mean over its answers (GRPO)."""
    return 1.0 / (_groups(group) * _answers(group) * length.double().clamp(min=1))


def token_mean(
    length: Int[Tensor, " R"], group: Int[Tensor, " R"], constant: int, rows: int | None
) -> Float[Tensor, " R"]:
    """1/N: a mean over all tokens of the step (DAPO)."""
    return torch.full_like(length, 1.0, dtype=torch.float64) / length.sum().clamp(min=1)


def group_token_mean(
    length: Int[Tensor, " R"], group: Int[Tensor, " R"], constant: int, rows: int | None
) -> Float[Tensor, " R"]:
    """1/(P N_x): a mean over the tokens of each group, then over groups (λ-GRPO,
    arXiv:2510.06870). P = 1: token_mean.
    """
    tokens = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
    tokens = tokens.index_add(0, group, length.double())
    return 1.0 / (_groups(group) * tokens[group].clamp(min=1))


def constant(
    length: Int[Tensor, " R"], group: Int[Tensor, " R"], constant: int, rows: int | None
) -> Float[Tensor, " R"]:
    """1/(P G_x M): tokens summed over a constant M (Dr. GRPO)."""
    return 1.0 / (_groups(group) * _answers(group) * float(constant))


def micro_token_mean(
    length: Int[Tensor, " R"], group: Int[Tensor, " R"], constant: int, rows: int | None
) -> Float[Tensor, " R"]:
    """1/(M N_m): a token mean inside each block of `rows` answers, then a mean
    over the M blocks (TRL's `bnpo`).

    The blocks follow the rollouts' order, not the micro-batches that memory allows, so the loss does not
    change with them. rows None: a block is a group (group_token_mean); 1: sequence_mean for equal groups.
    """
    block = group if rows is None else torch.arange(len(length)) // rows
    return group_token_mean(length, block, constant, rows)


REDUCE = {f.__name__: f for f in (sequence_mean, token_mean, group_token_mean, micro_token_mean, constant)}


def _groups(group: Tensor) -> int:
    return len(torch.unique(group))


def _answers(group: Tensor) -> Tensor:
    return torch.bincount(group)[group].double()
