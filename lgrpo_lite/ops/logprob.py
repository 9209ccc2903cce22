"""Log-probabilities of given tokens through a language-model head. Knows nothing of rewards or losses.

z = softcap(scale · (h Wᵀ + b)) / temperature, logp = z_y - log Σ_j exp z_j, y the given token. Logits exist
for one tile of rows × vocabulary at a time. Everything is built from the *other* tokens, j ≠ y:

    d = log Σ_{j≠y} exp z_j - z_y             the log-odds against y
    logp = -log(1 + e^d)                      exact near 0
    1 - p_y = sigmoid(d)
    ∂logp/∂h = (1 - p_y) · (W_y - Σ_{j≠y} r_j W_j) · scale/temperature,    r_j = p_j / (1 - p_y)

so the gradient of a sure token keeps its digits where softmax - onehot rounds to 0. The sum over r_j W_j
needs no knowledge of the loss: the forward pass makes ∂logp/∂h, and the backward pass is g[:, None] *
∂logp/∂h. Two vocabulary matmuls a token for any objective.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.ops.tiles import TILE_BYTES, Form, Tiles, block, from_sums, given, tile_of


@dataclass(frozen=True, slots=True)
class Head:
    """The output layer as numbers. `weight` may require grad; `softcap` c stands for c · tanh(z / c)."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, layer: "Head | nn.Module | Tensor") -> "Head":
        """A linear layer or a bare weight as a Head. A quantised one is a ConfigError."""
        if isinstance(layer, Head):
            return layer
        weight = layer if isinstance(layer, Tensor) else layer.weight
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            kind = type(weight).__name__
            what = f"the output head is quantised ({kind}); log-probs need its rows as numbers"
            fix = "leave lm_head out when the model is quantised, as transformers does by default"
            fix = f"keep the head in 16 bits: {fix}"
            raise ConfigError(what, where="model.weights", fix=fix)
        return cls(weight, getattr(layer, "bias", None))


def logprobs(
    hidden: Float[Tensor, "T D"],
    head: "Head | nn.Module | Tensor",
    token_ids: Int[Tensor, " T"],
    temperature: float = 1.0,
    *,
    rows: int | None = None,
    size: int = TILE_BYTES,
    entropy_grad: bool = False,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """log softmax(z)[token_ids] and the entropy of that distribution, in nats.

    float32, or float64 for float64 inputs.

    A frozen head: gradient to `hidden` only, made in the forward pass (two vocabulary matmuls a token, T · D
    extra memory). A head that requires grad, or entropy_grad: the logits are made again in the backward pass,
    and gradients reach weight and bias too. Otherwise the entropy carries no gradient. `rows` positions share
    a tile (None: `size` bytes of logits). Under autocast the products are in its type. T = 0 gives two empty
    tensors; NaN or inf in a row of `hidden` stays in that row. ValueError for another device, a token outside
    the vocabulary, or a width that is not the head's.
    """
    head = Head.of(head)
    _check(hidden, head.weight, token_ids)
    weight, bias = head.weight, head.bias
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    low = torch.get_autocast_dtype(device) if autocast else weight.dtype
    agreed = low if autocast or low == hidden.dtype else None
    tile = tile_of(len(weight), rows, size)
    gradient = torch.is_grad_enabled() and hidden.requires_grad
    form = Form(head.scale, head.softcap, temperature, tile, gradient, entropy_grad, agreed)
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _Recomputed if torch.is_grad_enabled() and (learns or entropy_grad) else _Frozen
    with torch.autocast(device, enabled=False):
        return function.apply(hidden, weight, bias, token_ids.to(hidden.device), form)


def _check(hidden: Tensor, weight: Tensor, token_ids: Tensor) -> None:
    if hidden.device != weight.device:
        raise ValueError(f"hidden is on {hidden.device}, the head on {weight.device}: move one of them")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden has width {hidden.shape[1]}, the head {weight.shape[1]}")
    if len(token_ids) and token_ids.device.type == "cpu":
        first, last = int(token_ids.min()), int(token_ids.max())
        if first < 0 or last >= len(weight):
            raise ValueError(f"token ids {first}..{last} for a head of {len(weight)} tokens")


# ------------------------------------------------------------------------------------------- frozen head


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, form):
        rows = form.tile[0]
        tiles = Tiles(weight, bias, form, hidden, gradient=form.gradient)
        logp, entropy = hidden.new_empty(2, len(hidden), dtype=tiles.dtype)
        rest = torch.empty_like(logp)
        # W_y - Σ r_j W_j: of moderate size, whatever p_y
        towards = torch.empty_like(hidden) if tiles.gradient else None
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            sums = block(tiles, hidden[part].to(tiles.compute), ids[part])
            logp[part], entropy[part], rest[part] = from_sums(sums)
            if towards is not None and sums.mean_weight is not None:
                own = weight[ids[part]].to(tiles.dtype)
                towards[part] = own.mul_(sums.slope).sub_(sums.mean_weight)
        if towards is not None:
            ctx.save_for_backward(towards, rest * tiles.alpha)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        towards, size = ctx.saved_tensors
        grad_hidden = (grad * size)[:, None] * towards
        return grad_hidden.to(towards.dtype), None, None, None, None


# ------------------------------------------------------------ trained head, entropy bonus


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, ids, form):
        rows = form.tile[0]
        tiles = Tiles(weight, bias, form, hidden, gradient=False)
        logp, entropy = hidden.new_empty(2, len(hidden), dtype=tiles.dtype)
        rest, norm = torch.empty_like(logp), torch.empty_like(logp)
        for i in range(0, len(hidden), rows):
            part = slice(i, i + rows)
            sums = block(tiles, hidden[part].to(tiles.compute), ids[part])
            logp[part], entropy[part], rest[part] = from_sums(sums)
            norm[part] = sums.target - logp[part]
        ctx.save_for_backward(hidden, weight, bias, ids, rest, norm, entropy)
        ctx.form = form
        if not form.entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, entropy_grad):
        """Vocabulary outside, rows inside: a tile of the weight's gradient adds up in float32."""
        hidden, weight, bias, ids, rest, norm, entropy = ctx.saved_tensors
        rows, columns = ctx.form.tile
        tiles = Tiles(weight, bias, ctx.form, hidden, gradient=False)
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden.device.type, enabled=False):
            dh = torch.zeros_like(hidden, dtype=tiles.dtype) if to_hidden else None
            dw = torch.empty_like(weight) if to_weight else None
            db = torch.empty_like(bias) if to_bias else None
            for start in range(0, len(weight), columns):
                w = tiles.columns_of(start)
                sum_w = torch.zeros_like(w, dtype=tiles.dtype)
                sum_b = w.new_zeros(len(w), dtype=tiles.dtype)
                for i in range(0, len(hidden), rows):
                    part = slice(i, i + rows)
                    h = hidden[part].to(tiles.compute)
                    z, slope = tiles.logits(h, w, start)
                    column, here = given(ids[part], start, len(w))
                    log_p = z.sub_(norm[part, None])
                    p = log_p.exp()
                    dz = p * -grad[part, None]
                    dz_given = (grad[part] * rest[part])[:, None]
                    dz.scatter_(1, column, torch.where(here, dz_given, dz.gather(1, column)))
                    if ctx.form.entropy_grad:
                        finite_log_p = log_p.clamp_(min=torch.finfo(p.dtype).min)  # 0 · -inf is no number
                        deviation = finite_log_p.add_(entropy[part, None])
                        dz -= p.mul_(deviation).mul_(entropy_grad[part, None])
                    dz.mul_(tiles.alpha)
                    if slope is not None:
                        dz.mul_(slope)
                    if dh is not None:
                        dh[part] += tiles.product(tiles.narrow(dz), w)
                    if dw is not None:
                        sum_w += tiles.product(tiles.narrow(dz).T, h)
                    if db is not None:
                        sum_b += dz.sum(0)
                if dw is not None:
                    dw[start : start + columns] = sum_w
                if db is not None:
                    db[start : start + columns] = sum_b
        grad_hidden = None if dh is None else dh.to(hidden.dtype)
        return grad_hidden, dw, db, None, None
