"""The learned log Z of FlowRL (arXiv:2509.15207): a small head on the mean hidden state of the prompt."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LogZ(nn.Module):
    """Linear H→H, GELU, LayerNorm, twice; then Linear H→1: one number a prompt, 2H² parameters, float32.

    It starts at 0 (the last layer is zero), so the first step is FlowRL without a centre. The paper's dropout
    is left out: it would make a step depend on how it is split. Its gradient reaches the policy through the
    hidden states, as in the paper's code. The head is saved with the run and never exported.
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        block = lambda: (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))  # noqa: E731
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*block(), *block(), last).to(dtype)
        self.dtype = dtype

    def forward(self, prompt_hidden: Float[Tensor, "S D"]) -> Float[Tensor, " S"]:
        """log Z per answer; answers of one prompt get the same number (guidance counts as prompt)."""
        return self.layers(prompt_hidden.to(self.dtype))[:, 0]
