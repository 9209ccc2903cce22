"""Decayed sums along a row, for eligibility traces. O(T), plain autograd, no loop over tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 64


def decayed_scan(x: Float[Tensor, "S L"], decay: float) -> Float[Tensor, "S L"]:
    """y_t = Σ_{j≤t} decay^{t-j} x_j along each row. decay 0 returns x; decay 1 is the running sum.

    Blocks of CHUNK tokens are one small triangular matmul; what flows from block to block is the same scan on
    the block ends with decay^CHUNK, so the work is linear in L.
    """
    rows, length = x.shape
    if length <= CHUNK:
        return x @ _triangle(length, decay, x).T
    padded = torch.nn.functional.pad(x, (0, -length % CHUNK)).view(rows, -1, CHUNK)
    inside = padded @ _triangle(CHUNK, decay, x).T
    ends = decayed_scan(inside[:, :, -1].contiguous(), decay**CHUNK)
    ends_before = torch.nn.functional.pad(ends[:, :-1], (1, 0))[:, :, None]
    carried = ends_before * _powers(CHUNK, decay, x) * decay
    return (inside + carried).reshape(rows, -1)[:, :length]


def _powers(count: int, base: float, like: Tensor) -> Tensor:
    powers = [base**k for k in range(count)]  # 0.0**0 is 1
    return torch.tensor(powers, dtype=like.dtype, device=like.device)


def _triangle(size: int, decay: float, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device)
    lag = place[:, None] - place
    powers = _powers(size, decay, like)
    return torch.where(lag >= 0, powers[lag.clamp(min=0)], 0.0)
