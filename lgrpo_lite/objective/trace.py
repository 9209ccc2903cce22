"""Eligibility traces over token log-ratios (GRPO-λ, arXiv:2510.00194). All
O(tokens), in the input's precision.

Weights of token j seen from token t >= j, with b = γλ and 0^0 = 1:

    recent   W[t,j] = max(b^(t-j), floor)
    both     W[t,j] = max(b^(t-j), b^j, floor)
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgrpo_lite.batch import rows_of
from lgrpo_lite.ops.scan import decayed_scan


def accumulate(
    x: Float[Tensor, " T"], seq: Int[Tensor, " T"], *, decay: float, style: str, floor: float = 0.0
) -> Float[Tensor, " T"]:
    """y_t = Σ_{j≤t} W[t,j] x_j inside each sequence. decay 0, recent, no floor: y = x."""
    if not len(seq):
        return x
    rows, offset = rows_of(x, seq, int(seq.max()) + 1)
    return _accumulate_rows(rows, decay, style, floor)[seq, offset]


def column_sums(
    seq: Int[Tensor, " T"],
    *,
    decay: float,
    style: str,
    floor: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, " T"]:
    """c_j = Σ_{t≥j} W[t,j]: how often token j is credited. recent, no floor: (1-b^(T-j))/(1-b).

    On-policy (all log-ratios zero) the gradient of the trace objective is c_j times that of the plain one.
    """
    x = torch.zeros(len(seq), dtype=torch.float64, device=seq.device, requires_grad=True)
    with torch.enable_grad():
        total = accumulate(x, seq, decay=decay, style=style, floor=floor).sum()
    if not len(seq):
        return x.detach().to(dtype)
    (count,) = torch.autograd.grad(total, x)
    return count.to(dtype)


def terminal(
    seq: Int[Tensor, " T"], *, decay: float, dtype: torch.dtype = torch.float64
) -> Float[Tensor, " T"]:
    """b^(T-1-j): GAE with its only TD error at the last token. Weighs late tokens; a
    comparison, not the paper's method.
    """
    values = torch.zeros(len(seq), dtype=dtype, device=seq.device)
    number = int(seq.max()) + 1 if len(seq) else 0
    _, offset = rows_of(values, seq, number)
    left = torch.bincount(seq)[seq] - 1 - offset
    return torch.tensor(decay, dtype=dtype, device=seq.device) ** left


def _accumulate_rows(x: Tensor, decay: float, style: str, floor: float) -> Tensor:
    recent = _window(x, decay, floor)
    if style == "recent":
        return recent
    # the first half of the past (j < m = ceil(t/2)) is weighted by b^j, a running sum; the rest as above
    t = torch.arange(x.shape[1], device=x.device)
    m = (t + 1) // 2
    weighted = x * _weights(x.shape[1], decay, floor, x)
    early = _before(torch.cumsum(weighted, 1), m)
    return early + recent - _seen_from(x, decay, floor, t, m)


def _window(x: Tensor, decay: float, floor: float) -> Tensor:
    """Σ_{j≤t} max(b^(t-j), floor) x_j."""
    t = torch.arange(x.shape[1], device=x.device)
    return _seen_from(x, decay, floor, t, t + 1)


def _seen_from(x: Tensor, decay: float, floor: float, t: Tensor, upto: Tensor) -> Tensor:
    """Σ_{j<upto[t]} max(b^(t-j), floor) x_j for each t: decayed inside the horizon, floored beyond it."""
    scan = decayed_scan(x, decay)
    reach = torch.full_like(t, -1) if floor <= 0 else t - _horizon(decay, floor)  # j < reach are floored
    border = torch.minimum(reach.clamp(min=0), upto)
    lag = (t + 1 - upto).clamp(min=0)
    until = _before(scan, upto) * _power(decay, lag, x)
    beyond = _before(scan, border) * _power(decay, t + 1 - border, x)
    near = until - beyond
    if floor <= 0:
        return near
    return near + floor * _before(torch.cumsum(x, 1), border)


def _horizon(decay: float, floor: float) -> int:
    """Largest lag k with b^k >= floor (at the border both readings agree); floor 1 or
    more floors every lag above 0.
    """
    if decay <= 0 or floor >= 1:
        return 0 if floor <= 1 else -1
    if decay >= 1:
        return 2**31
    return math.floor(math.log(floor) / math.log(decay))


def _weights(length: int, decay: float, floor: float, like: Tensor) -> Tensor:
    return _power(decay, torch.arange(length, device=like.device), like).clamp(min=floor)


def _power(decay: float, exponent: Tensor, like: Tensor) -> Tensor:
    # 0.99^1000 loses digits in float32
    exact = torch.tensor(decay, dtype=torch.float64, device=like.device) ** exponent
    return exact.to(like.dtype)


def _before(prefix: Tensor, count: Tensor) -> Tensor:
    """prefix[:, count-1], 0 where count is 0."""
    return torch.nn.functional.pad(prefix, (1, 0))[:, count]
