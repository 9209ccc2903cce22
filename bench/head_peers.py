"""What others do for the log-probabilities of given tokens through a
language-model head, behind one signature.

    python bench/head_peers.py          self-check: each peer's gradient against float64, also where tokens are nearly certain

A peer maps (hidden [N, D], weight [V, D] frozen, ids [N], temperature, g [N]) to a scalar; the gradient of
that scalar by `hidden` is that of −Σ g·logp, with logp[t] = log softmax(hidden[t] @ weightᵀ /
temperature)[ids[t]]. "Matmuls" below are those of one token with the whole vocabulary, forward and backward
together. Nothing but torch is imported before a peer is called.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Peer = Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]


def naive(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor) -> Tensor:
    """All logits, kept for the backward pass, and log_softmax in float32. 2 matmuls."""
    logp = F.log_softmax(F.linear(hidden, weight).float() / temperature, -1)
    return -(g * logp.gather(-1, ids[:, None])[:, 0]).sum()


def chunk_checkpoint(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor, chunk: int = 1024
) -> Tensor:
    """Rows in chunks, each under torch's checkpoint: logits are recomputed in the backward pass. 3 matmuls."""

    def block(h: Tensor, i: Tensor) -> Tensor:
        logits = F.linear(h, weight).float() / temperature
        return logits.gather(-1, i[:, None])[:, 0] - logits.logsumexp(-1)

    pairs = zip(hidden.split(chunk), ids.split(chunk), strict=True)
    return -(g * torch.cat([checkpoint(block, h, i, use_reentrant=False) for h, i in pairs])).sum()


def _verl_forward(h: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = (h @ weight.t() / temperature).float()
    probs = logits.softmax(-1)
    entropy = logits.logsumexp(-1) - (probs * logits).sum(-1)
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0], entropy


def _verl_backward(
    h: Tensor, weight: Tensor, ids: Tensor, d: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = (h @ weight.t() / temperature).float()
    probs = logits.softmax(-1)
    one_hot = torch.zeros_like(logits).scatter_(-1, ids[:, None], 1)
    dlogits = 0 + d[:, None] * (one_hot - probs)  # verl adds to a zero: one more pass over the logits
    dlogits = dlogits.to(h.dtype) / temperature
    return dlogits @ weight, dlogits.t() @ h


class _Verl(torch.autograd.Function):
    """verl's FusedLinearForPPOFunction (verl/utils/experimental/torch_functional.py at
    015bc55), its arithmetic step by step.

    Left out: the entropy's gradient, which verl skips too where the loss has no entropy, and flash_attn's
    cross entropy. A frozen head's gradient is formed and dropped, as there.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logp, entropy = hidden.new_zeros(len(ids), dtype=torch.float32), hidden.new_zeros(len(ids))
        for s in (slice(a, a + chunk) for a in range(0, len(ids), chunk)):
            logp[s], entropy[s] = _verl_forward(hidden[s], weight, ids[s], temperature)
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx, dlogp: Tensor, _) -> tuple[Tensor | None, ...]:
        hidden, weight, ids = ctx.saved_tensors
        dhidden = torch.zeros_like(hidden)
        for s in (slice(a, a + ctx.chunk) for a in range(0, len(ids), ctx.chunk)):
            h, _ = _verl_backward(hidden[s], weight, ids[s], dlogp[s], ctx.temperature)
            dhidden[s] += h
        return dhidden, None, None, None, None


def verl(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor, chunk: int = 512
) -> Tensor:
    """verl's torch back-end for fused kernels, always with the entropy. 4 matmuls: one is the
    frozen head's unused gradient.
    """
    return -(g * _Verl.apply(hidden, weight, ids, temperature, chunk)[0]).sum()


def liger(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    temperature: float,
    g: Tensor,
    block: int = 256,
    compiled: bool = True,
) -> Tensor:
    """Liger's GRPO loss. 3 matmuls, the last in float32 whatever the dtype; the gradient
    is formed in the forward pass.

    With no old log-probabilities the ratio is exp(logp − logp.detach()), so its gradient is logp's; KL is off
    and one token in the batch makes the normaliser 1. The value is −Σ g, not −Σ g·logp. An advantage belongs
    to a sequence, and Liger goes one by one: g has to be constant in blocks of `block` rows; `block=1` takes
    any g, slowly. Compiled is only the loss, no matmul.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    assert len(ids) % block == 0, f"{len(ids)} rows are no multiple of {block}"
    rows, targets, weights = (
        hidden.reshape(-1, block, hidden.shape[1]),
        ids.view(-1, block),
        g.view(-1, block),
    )
    assert (weights == weights[:, :1]).all(), f"g has to be constant in blocks of {block}"
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, temperature=temperature, compiled=compiled)
    return loss(rows, weight, targets, torch.ones_like(targets), weights[:, 0], num_items_in_batch=1)[0]


def cce(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor, eps: str | None = "high"
) -> Tensor:
    """Cut cross-entropy as its defaults are. On CUDA 3 matmuls, less the blocks that its
    filter skips in the backward pass.

    It knows no temperature, so `hidden` is scaled. Its kernels take a half-precision `hidden` only.
    Without CUDA it is its torch.compile form, which keeps all logits: 2 matmuls. `cce_exact`, CUDA only,
    has the filter off: 3 matmuls.
    """
    from cut_cross_entropy import linear_cross_entropy

    if eps is None and not hidden.is_cuda:
        raise NotImplementedError("CUDA only: the filter is part of the kernels")
    settings = {"reduction": "none", "filter_eps": eps, "impl": "cce" if hidden.is_cuda else "torch_compile"}
    return (g * linear_cross_entropy(hidden / temperature, weight, ids, **settings)).sum()


def trl(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor) -> Tensor:
    """TRL's kernel, called as its GRPOTrainer calls it: entropy computed, unused here. 3
    matmuls, the last summed in float32.
    """
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    outputs = ("log_probs", "entropy")
    return -(
        g * ChunkedLogProbFunction.apply(hidden, weight, None, ids, temperature, CHUNK, None, 1.0, outputs)[0]
    ).sum()


PEERS: dict[str, Peer] = {f.__name__: f for f in (naive, chunk_checkpoint, verl, liger, cce, trl)}
PEERS |= {"liger_eager": partial(liger, compiled=False), "cce_exact": partial(cce, eps=None)}


def available(
    device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that get through a tiny call there, and why the others do not."""
    works, reasons = dict[str, Peer](), dict[str, str]()
    hidden, weight = (torch.ones(rows, 64, device=device, dtype=dtype) for rows in (256, 100))
    for name, peer in PEERS.items():
        try:
            gradient(
                peer,
                hidden,
                weight,
                torch.arange(256, device=device) % 100,
                1.0,
                torch.ones(256, device=device),
            )
            works[name] = peer
        except Exception as e:  # whatever a package raises where it cannot run
            reasons[name] = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    return works, reasons


def gradient(
    peer: Peer, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor
) -> Tensor:
    """The peer's gradient by `hidden`."""
    hidden = hidden.detach().requires_grad_()
    return torch.autograd.grad(peer(hidden, weight, ids, temperature, g), hidden)[0]


def truth(
    hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, g: Tensor
) -> tuple[Tensor, Tensor]:
    """That gradient in float64, and each token's 1 − p, both without ever subtracting p from 1."""
    hidden, weight = hidden.double(), weight.double()
    logits = hidden @ weight.t() / temperature
    chosen = logits.gather(-1, ids[:, None])
    others = logits.scatter(-1, ids[:, None], -torch.inf)
    rest = torch.sigmoid(others.logsumexp(-1, keepdim=True) - chosen)
    return -g.double()[:, None] * rest * (weight[ids] - others.softmax(-1) @ weight) / temperature, rest[:, 0]


def certain(n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden and weight in float64, and ids, where 1 − p runs from 1e-7 to 1e-1, evenly
    in its logarithm, temperature 1.
    """
    weight, ids = F.normalize(torch.randn(v, d, dtype=torch.float64), dim=-1), torch.randperm(v)[:n]
    cosines = (weight[ids] @ weight.t()).scatter(-1, ids[:, None], -torch.inf)
    wanted = torch.logspace(-7, -1, n, dtype=torch.float64)[torch.randperm(n)]
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 1000.0)
    for _ in range(60):  # bisection for hidden = alpha · its own row: 1 − p falls as alpha grows
        alpha = (low + high) / 2
        above = torch.sigmoid((alpha[:, None] * cosines).logsumexp(-1) - alpha) > wanted
        low, high = alpha.where(above, low), high.where(above, alpha)
    return low[:, None] * weight[ids], weight, ids


def main() -> None:
    torch.manual_seed(0)
    device, n, d, v = "cuda" if torch.cuda.is_available() else "cpu", 512, 64, 1000
    g = torch.tensor([0.7, -1.3], device=device).repeat_interleave(n // 2)
    hidden, weight, ids = (
        x.to(device) for x in (torch.randn(n, d), torch.randn(v, d) / d**0.5, torch.randint(v, (n,)))
    )
    peers = {dtype: available(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    right = truth(hidden, weight, ids, 0.7, g)[0]
    print(f"{'float32, temperature 0.7':26}relative error of the gradient")
    for name, peer in peers[torch.float32][0].items():
        error = ((gradient(peer, hidden, weight, ids, 0.7, g).double() - right).norm() / right.norm()).item()
        print(f"{name:26}{error:.1e}")
        assert error < 1e-5, name
    *made, ids = (x.to(device) for x in certain(n, d, v))
    for dtype, (works, reasons) in peers.items():
        hidden, weight = (x.to(dtype) for x in made)
        right, rest = truth(hidden, weight, ids, 1.0, g)
        print(
            f"\n{str(dtype)[6:]}, 1 − p from {rest.min():.1e} to {rest.max():.1e}: a token's relative error"
        )
        print(f"{'':26}{'worst':>9}{'median':>9}{'worst, 1 − p > 1e-3':>21}")
        grads = {name: gradient(peer, hidden, weight, ids, 1.0, g) for name, peer in works.items()}
        for name, grad in {"(the truth, rounded)": right.to(dtype), **grads}.items():
            errors = (grad.double() - right).norm(dim=-1) / right.norm(dim=-1)
            print(f"{name:26}{errors.max():9.1e}{errors.median():9.1e}{errors[rest > 1e-3].max():21.1e}")
        print("".join(f"{name:26}left out: {reason}\n" for name, reason in reasons.items()), end="")


if __name__ == "__main__":
    main()
