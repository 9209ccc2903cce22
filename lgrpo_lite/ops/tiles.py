"""Logits of a block of rows, one tile of rows × vocabulary at a time, and what
they add up to. No autograd here.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

COLUMNS = 8192  # of the vocabulary in a tile; fewer make the matmuls slower, more only cost memory
TILE_BYTES = 32 << 20


def tile_of(vocabulary: int, rows: int | None = None, size: int = TILE_BYTES) -> tuple[int, int]:
    """Rows and vocabulary columns whose logits are held at once; without `rows`, `size` bytes of float32."""
    columns = min(vocabulary, COLUMNS)
    fitting = size // (4 * columns) // 64 * 64
    return rows or max(64, fitting), columns


class Form(NamedTuple):
    """Everything that is no tensor."""

    scale: float
    softcap: float | None
    temperature: float
    tile: tuple[int, int]
    gradient: bool  # to hidden
    entropy_grad: bool
    low: torch.dtype | None  # the 16 bits of both hidden and weight, if they agree


@cache
def _bf16_cpu() -> bool:
    """Whether this CPU multiplies bfloat16, and not only widens it."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 does not tell: tiles are widened
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class Tiles:
    """The logits of a block of rows, tile by tile, in float32 or float64. Buffers are made once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form, like: Tensor, *, gradient: bool):
        rows, self.columns = form.tile
        rows = min(rows, max(1, len(like)))
        self.weight, self.bias, self.form = weight, bias, form
        self.alpha = form.scale / form.temperature
        self.dtype = torch.promote_types(torch.promote_types(like.dtype, weight.dtype), torch.float32)
        low = form.low in (torch.float16, torch.bfloat16)
        self.half = low and like.is_cuda  # products of halves that add up to float32: one instruction
        self.split = form.low == torch.bfloat16 and not like.is_cuda and _bf16_cpu()  # else tiles are widened
        self.compute = form.low if form.low and (self.half or self.split) else self.dtype
        self.exact = self.compute == self.dtype  # nothing is rounded to 16 bits on the way
        self.gradient = gradient
        # where z is linear in h and nothing is rounded, the mean logit is h · Σ r_j W_j, made anyway
        self.free = gradient and self.exact and bias is None and form.softcap is None
        self.buffer = like.new_empty(rows * self.columns, dtype=self.dtype)
        self.spare = self.buffer if self.free else torch.empty_like(self.buffer)
        self.low = None if self.exact else like.new_empty(rows * self.columns, dtype=self.compute)
        same = weight.dtype == self.compute
        self.wide = None if same else like.new_empty(self.columns * like.shape[1], dtype=self.compute)

    def columns_of(self, start: int) -> Tensor:
        weight = self.weight[start : start + self.columns].detach()
        if self.wide is None:
            return weight
        return self.wide[: weight.numel()].view_as(weight).copy_(weight)

    def spare_like(self, tile: Tensor) -> Tensor:
        """A second tile; the first one itself where none is needed."""
        return self.spare[: tile.numel()].view(tile.shape)

    def narrow(self, values: Tensor) -> Tensor:
        """`values` in the type that is multiplied."""
        if self.low is None:
            return values
        return self.low[: values.numel()].view(values.shape).copy_(values)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b of values as `narrow` gives them. A CPU with bfloat16 rounds it, as gradients are anyway."""
        return torch.mm(a, b, out_dtype=torch.float32) if self.half else torch.mm(a, b)

    def raw_logits(self, h: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """h Wᵀ in float32, into `out`."""
        if self.half:
            return torch.mm(h, weight.T, out_dtype=torch.float32)
        # rounded to bfloat16, then what that lost: 2 fast products, not 1 slow one
        if self.split and self.low is not None:
            high = torch.mm(h, weight.T, out=self.low[: out.numel()].view_as(out))
            out.copy_(high)
            lost = torch.addmm(high, h, weight.T, beta=-1, out=high)
            return out.add_(self.spare_like(out).copy_(lost))  # adding bfloat16 to float32 in one go is slow
        return torch.mm(h, weight.T, out=out)

    def logits(self, h: Tensor, weight: Tensor, start: int) -> tuple[Tensor, Tensor | None]:
        """z of one tile and the slope of the soft-cap (None: 1). The next tile overwrites it."""
        rows, columns = len(h), len(weight)
        out = self.buffer[: rows * columns].view(rows, columns)
        z = self.raw_logits(h, weight, out)
        if self.bias is not None:
            z += self.bias[start : start + self.columns].detach().to(self.dtype)
        if self.form.scale != 1.0:
            z.mul_(self.form.scale)
        slope = None
        if self.form.softcap is not None:
            z.div_(self.form.softcap).tanh_()
            slope = 1 - z.square()
            z.mul_(self.form.softcap)
        if self.form.temperature != 1.0:
            # not folded into another factor: 1/T is rounded, and one way for all logits
            z.div_(self.form.temperature)
        return z, slope

    def logit_of(self, h: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """z of each row's token, [rows], and the soft-cap's slope there, [rows 1]. Added up in float64."""
        parts = []
        for i in range(0, len(h), 256):
            part = slice(i, i + 256)
            parts.append((h[part].double() * self.weight[ids[part]].double()).sum(1))
        z, form = torch.cat(parts), self.form
        if self.bias is not None:
            z = z + self.bias[ids].double()
        z = z * form.scale
        slope = torch.ones_like(z)
        if form.softcap is not None:
            z = (z / form.softcap).tanh()
            z, slope = z * form.softcap, 1 - z.square()
        return (z / form.temperature).to(self.dtype), slope[:, None].to(self.dtype)


def given(ids: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Column of each row's token in this tile [rows, 1], clamped into it, and whether it really is there."""
    column = ids[:, None] - start
    here = (column >= 0) & (column < width)
    return column.clamp(0, width - 1), here


@dataclass(slots=True)
class Sums:
    """What one block of rows adds up to over the vocabulary. `others` excludes the given token."""

    target: Tensor  # z_y
    slope: Tensor  # soft-cap slope at y
    top: Tensor  # max_{j≠y} z_j
    total: Tensor  # Σ_{j≠y} exp(z_j - top)
    mean_logit: Tensor  # Σ r_j (z_j - top)
    mean_weight: Tensor | None  # Σ r_j slope_j W_j


def block(tiles: Tiles, h: Tensor, ids: Tensor) -> Sums:
    """One pass over the vocabulary with a running maximum, as online softmax does."""
    count, vocabulary = len(h), len(tiles.weight)
    top = h.new_full((count, 1), -torch.inf, dtype=tiles.dtype)
    total, mean = torch.zeros_like(top), torch.zeros_like(top)
    target, slope_y = tiles.logit_of(h, ids)
    summed = h.new_zeros(count, h.shape[1], dtype=tiles.dtype) if tiles.gradient else None
    for start in range(0, vocabulary, tiles.columns):
        weight = tiles.columns_of(start)
        z, slope = tiles.logits(h, weight, start)
        column, here = given(ids, start, z.shape[1])
        z.scatter_(1, column, torch.where(here, -torch.inf, z.gather(1, column)))
        higher = torch.maximum(top, z.amax(1, keepdim=True))
        finite = torch.where(higher == -torch.inf, 0.0, higher)  # a tile of the given token alone
        shrink = (top - finite).exp_()
        z.sub_(finite)
        if tiles.free:
            shares = z.exp_()
        else:
            shares = torch.exp(z, out=tiles.spare_like(z))
            moved = torch.where(top == -torch.inf, 0.0, top - finite)
            mean = mean * shrink + total * shrink * moved
            finite_z = z.clamp_(min=torch.finfo(z.dtype).min)  # 0 · -inf is no number
            mean += torch.bmm(shares[:, None], finite_z[:, :, None])[:, 0]
        total = total.mul_(shrink).add_(shares.sum(1, keepdim=True))
        if summed is not None:
            factors = tiles.narrow(shares if slope is None else shares.mul_(slope))
            summed.mul_(shrink)
            if tiles.exact:
                summed.addmm_(factors, weight)
            else:
                summed += tiles.product(factors, weight)
        top = higher
    total.clamp_(min=torch.finfo(tiles.dtype).tiny)  # a vocabulary of one token has no others
    if summed is not None:
        summed.div_(total)
    if tiles.free and summed is not None:
        mean = (h.to(tiles.dtype) * summed).sum(1, keepdim=True) * tiles.alpha - top
    else:
        mean = mean / total
    return Sums(target, slope_y, top[:, 0], total[:, 0], mean[:, 0], summed)


def from_sums(s: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """logp, entropy and 1 - p_y.

    The entropy is that of {y, not y} plus the others' own, so a sure token keeps its digits.
    """
    lead = s.target - s.top
    log_total = s.total.log()
    against = log_total - lead
    rest, log_rest = against.sigmoid(), logsigmoid(against)
    # a sure token by its log-odds, which keep 1 - p_y; any other as log_softmax does, with one rounding less
    sure = logsigmoid(-against)
    unsure = lead - (s.total + lead.exp()).log()
    logp = torch.where(against < 0, sure, unsure)
    among = torch.where(rest > 0, rest * (log_total - s.mean_logit - log_rest), 0.0)
    entropy = (among - logp.exp() * logp).clamp(min=0.0)
    return logp, entropy, rest
