"""Three pieces of a transformer layer that keep little for their backward pass, with
the numbers of the usual code.

adapter   y + s · (x Aᵀ) Bᵀ        keeps x as it is; PEFT keeps a float32 copy for every reader
swiglu    silu(g) · u               keeps g and u, and computes silu(g) again
rms_norm  w · x / √(mean x² + ε)    keeps x and a number a row, where transformers keeps a float32 copy of x

The adapter's products and sums are in its own type, float32, block by block of rows, so that no
such tensor of all tokens exists.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

ROWS = 1024  # of a block


def adapter(
    x: Float[Tensor, "*T I"],
    y: Float[Tensor, "*T O"],
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "O R"],
    scaling: float,
) -> Float[Tensor, "*T O"]:
    """y + scaling · (x Aᵀ) Bᵀ in the type of A and B, rounded to y's; y is what the layer makes of x."""
    return _Adapter.apply(x, y, a, b, scaling)


def swiglu(gate: Float[Tensor, "*T I"], up: Float[Tensor, "*T I"]) -> Float[Tensor, "*T I"]:
    """silu(gate) · up; silu(gate) is rounded to its type first."""
    return _SwiGlu.apply(gate, up)


def rms_norm(x: Float[Tensor, "*T D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*T D"]:
    """weight · (x / √(mean x² + eps)), the quotient in float32 or better, rounded to x's type.

    The weight gets no gradient.
    """
    return _RmsNorm.apply(x, weight, eps)


def _blocks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The same rows of each tensor [*T W], as views; of one that is not contiguous, of a copy."""
    flat = [t.reshape(-1, t.shape[-1]) for t in tensors]
    for begin in range(0, len(flat[0]), ROWS):
        yield [t[begin : begin + ROWS] for t in flat]


class _Adapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, a, b, scaling):
        out = torch.empty_like(y, memory_format=torch.contiguous_format)
        for x_rows, y_rows, out_rows in _blocks(x, y, out):
            change = x_rows.to(a.dtype) @ a.T @ b.T
            change.mul_(scaling)
            out_rows.copy_(change.add_(y_rows.to(a.dtype)))
        ctx.save_for_backward(x, a, b)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, a, b = ctx.saved_tensors
        to_x, to_y = ctx.needs_input_grad[:2]
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if to_x else None
        written = [] if grad_x is None else [grad_x]
        for x_rows, grad_rows, *written_rows in _blocks(x, grad, *written):
            inner = _add_grads(grad_a, grad_b, x_rows.to(a.dtype), grad_rows.to(a.dtype), a, b, ctx.scaling)
            for rows in written_rows:
                rows.copy_(inner @ a)
        return grad_x, grad if to_y else None, grad_a, grad_b, None


def _add_grads(
    grad_a: Tensor, grad_b: Tensor, x: Tensor, grad: Tensor, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """Adds what a block of rows gives to ∂A and ∂B; returns its ∂(x Aᵀ)."""
    inner = (grad @ b).mul_(scaling)
    grad_b.addmm_(grad.T, x @ a.T, alpha=scaling)
    grad_a.addmm_(inner.T, x)
    return inner


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        grad_gate = torch.empty_like(gate, memory_format=torch.contiguous_format)
        grad_up = torch.empty_like(up, memory_format=torch.contiguous_format)
        for gate_rows, up_rows, rows, to_gate, to_up in _blocks(gate, up, grad, grad_gate, grad_up):
            torch.mul(rows, silu(gate_rows), out=to_up)
            to_gate.copy_(torch.ops.aten.silu_backward(rows * up_rows, gate_rows))
        return grad_gate, grad_up


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, inverse = ctx.saved_tensors
        normed_grad = (grad * weight).to(inverse.dtype)
        # in the order in which autograd rounds
        along_x = (normed_grad * x).sum(-1, keepdim=True)
        along_x = along_x * inverse.pow(3) / -x.shape[-1]
        grad_x = normed_grad.mul_(inverse).add_(x * along_x)
        return grad_x.to(x.dtype), None, None
