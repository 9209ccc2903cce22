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
        """A linear layer or a bare weight as a Head. A quantised one is a
        ConfigError: its rows cannot be read.
        """
        if isinstance(layer, Head):
            return layer
        weight = layer if isinstance(layer, Tensor) else layer.weight
        if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
            raise ConfigError(
                f"the output head is quantised ({type(weight).__name__}); log-probs need its rows as numbers",
                where="model.weights",
                fix=(
                    "keep the head in 16 bits: leave lm_head out when the model is quantised, as transformers"
                    " does by default"
                ),
            )
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
    """log softmax(z)[token_ids] and the entropy of that distribution, in nats; float32,
    or float64 for float64 inputs.

    A frozen head: gradient to `hidden` only, made in the forward pass (two vocabulary matmuls a token, T · D
    extra memory). A head that requires grad, or entropy_grad: the logits are made again in the backward pass,
    and gradients reach weight and bias too. Otherwise the entropy carries no gradient. `rows` positions share
    a tile (None: `size` bytes of logits). Under autocast the products are in its type. T = 0 gives two empty
    tensors; NaN or inf in a row of `hidden` stays in that row. ValueError for another device, a token outside
    the vocabulary, or a width that is not the head's.
    """
    head = Head.of(head)
    weight, bias = head.weight, head.bias
    if hidden.device != weight.device:
        raise ValueError(f"hidden is on {hidden.device}, the head on {weight.device}: move one of them")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden has width {hidden.shape[1]}, the head {weight.shape[1]}")
    if (
        len(token_ids)
        and token_ids.device.type == "cpu"
        and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < len(weight)
    ):
        raise ValueError(
            f"token ids {int(token_ids.min())}..{int(token_ids.max())} for a head of {len(weight)} tokens"
        )
    device = hidden.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    tile = tile_of(len(weight), rows, size)
    gradient = torch.is_grad_enabled() and hidden.requires_grad
    agreed = low if low == hidden.dtype or torch.is_autocast_enabled(device) else None
    form = Form(head.scale, head.softcap, temperature, tile, gradient, entropy_grad, agreed)
    learns = weight.requires_grad or (bias is not None and bias.requires_grad)
    function = _Recomputed if torch.is_grad_enabled() and (learns or entropy_grad) else _Frozen
    with torch.autocast(device, enabled=False):
        return function.apply(hidden, weight, bias, token_ids.to(hidden.device), form)


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
        return ((grad * size)[:, None] * towards).to(towards.dtype), *[None] * 4


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
        """Vocabulary outside, rows inside, so that a tile of the weight's gradient adds up
        in float32 before it is rounded.
        """
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
                sum_w, sum_b = torch.zeros_like(w, dtype=tiles.dtype), w.new_zeros(len(w), dtype=tiles.dtype)
                for i in range(0, len(hidden), rows):
                    part = slice(i, i + rows)
                    h = hidden[part].to(tiles.compute)
                    z, slope = tiles.logits(h, w, start)
                    at, here = given(ids[part], start, len(w))
                    log_p = z.sub_(norm[part, None])
                    p = log_p.exp()
                    dz = p * -grad[part, None]
                    dz.scatter_(
                        1, at, torch.where(here, (grad[part] * rest[part])[:, None], dz.gather(1, at))
                    )
                    if ctx.form.entropy_grad:
                        # 0 · -inf is no number
                        bent = log_p.clamp_(min=torch.finfo(p.dtype).min).add_(entropy[part, None])
                        dz -= p.mul_(bent).mul_(entropy_grad[part, None])
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
        return None if dh is None else dh.to(hidden.dtype), dw, db, None, None
