"""Token weights that depend on whole answers: the learnable token preference, and the process-set share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgrpo_lite.recipe.algorithm import LengthPreference as Settings

EPS_LENGTH = 1e-6
H_MIN = 1e-6  # h is positive for r·sqrt(G-1) < 1, which `check` demands; the bound is for vectors outside it
MAX_LOG_G = 60.0  # softmax takes exp of g = h^λ; beyond e^60 only "one answer has it all" is left to say


class LengthPreference(nn.Module):
    """λ-GRPO's token preference (arXiv:2510.06870): one scalar decides how answers of different length count.

    z_i = (L_i - mean L)/(std L + 1e-6) inside a group,  h_i = 1 + r z_i,  g_i = h_i^λ,
    f_i = G exp(g_i)/Σ_j exp(g_j), so that Σ_i f_i = G.   `power` instead: f_i = G g_i/Σ_j g_j.

    λ = 0: f = 1 (DAPO's rule). λ < 0 favours short answers (towards GRPO), λ > 0 long ones. f depends on
    lengths and λ alone, so λ gets exact gradients under any split as long as the whole group's lengths travel
    with the batch. λ and all of the above are float64: R numbers cost nothing, and ∂f/∂λ of a saturated
    softmax is a difference of equals.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        init = torch.tensor(settings.lambda_init, dtype=torch.float64)
        self.lam = nn.Parameter(init, requires_grad=not settings.freeze)

    def h(self, length: Int[Tensor, " R"], group: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
        """1 + r z per rollout; constant in λ. Equal lengths or a single answer give exactly 1."""
        size = torch.bincount(group)[group].double()
        centred = length - _group_sum(length.double(), group) / size
        spare = 1.0 if self.settings.length_std == "sample" else 0.0
        variance = _group_sum(centred.square(), group) / (size - spare).clamp(min=1.0)
        std = variance.sqrt()
        return (1 + self.settings.r * centred / (std + EPS_LENGTH)).clamp(min=H_MIN)

    def forward(self, length: Int[Tensor, " R"], group: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
        """f per rollout, float64, differentiable in λ."""
        log_g = self.lam * self.h(length, group).log()
        g = log_g.clamp(max=MAX_LOG_G).exp() if self.settings.normalizer == "softmax" else log_g
        size = torch.bincount(group)[group].double()
        top = torch.full((int(group.max()) + 1,), -torch.inf, dtype=g.dtype, device=g.device)
        top = top.scatter_reduce(0, group, g.detach(), "amax")
        mass = (g - top[group]).exp()
        return size * mass / _group_sum(mass, group)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep λ inside settings.clamp; called after its optimiser step. Beyond about |5| f is one-hot."""
        if self.settings.clamp is not None:
            self.lam.clamp_(*self.settings.clamp)


def grpo_lambda(length: Int[Tensor, " R"], group: Int[Tensor, " R"], r: float) -> float:
    """λ that weighs like GRPO's 1/L to first order: -(std L/mean L)/r, averaged over groups."""
    spreads = []
    for number in torch.unique(group):
        lengths = length[group == number].double()
        spreads.append(float(lengths.std(correction=0) / lengths.mean()))
    return -sum(spreads) / len(spreads) / r


def prefix_share(answers: Sequence[Sequence[int]]) -> list[list[float]]:
    """1/|process set| per token (arXiv:2509.21154): of the answers that share the tokens up to this one.

    A token nobody shares weighs 1. Linear in the tokens of the group: one walk down a prefix tree.
    """
    child: dict[tuple[int, int], int] = {}
    visits = [0]
    paths = []
    for answer in answers:
        node, path = 0, []
        for token in answer:
            node = child.setdefault((node, token), len(visits))
            if node == len(visits):
                visits.append(0)
            visits[node] += 1
            path.append(node)
        paths.append(path)
    shares = []
    for path in paths:
        shares.append([1.0 / visits[node] for node in path])
    return shares


def top_entropy(entropy: Float[Tensor, " T"], seq: Int[Tensor, " T"], share: float) -> Float[Tensor, " T"]:
    """1 for the ceil(share · L) tokens of highest entropy of each answer, else 0 (after arXiv:2506.01939).

    Taken inside an answer, so that it does not depend on how a step is split; ties keep the
    earlier token. share → 1: all.
    """
    count = torch.bincount(seq)
    order = torch.argsort(entropy, descending=True, stable=True)
    order = order[torch.argsort(seq[order], stable=True)]  # by answer, inside it by falling entropy
    place = torch.empty_like(seq)
    place[order] = torch.arange(len(seq), device=seq.device)
    place = place - (count.cumsum(0) - count)[seq]
    top = torch.ceil(share * count.double())[seq]
    return (place < top).to(entropy.dtype)


def _group_sum(values: Tensor, group: Tensor) -> Tensor:
    total = torch.zeros(int(group.max()) + 1, dtype=values.dtype, device=values.device)
    return total.index_add(0, group, values)[group]
