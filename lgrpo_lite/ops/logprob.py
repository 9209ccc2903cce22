"""Log-probabilities of given tokens through a language-model head. Knows nothing of rewards or losses."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def logprobs(
    hidden: Float[Tensor, "T D"],
    head: Callable[[Tensor], Tensor],
    token_ids: Int[Tensor, " T"],
    *,
    temperature: float = 1.0,
    chunk: int = 4096,
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """log softmax(head(hidden)/temperature)[token_ids] and the entropy of that distribution, in nats, float32 or better.

    Logits exist for `chunk` positions at a time and are recomputed in the backward pass, so the memory is chunk · V and not
    T · V. The entropy carries no gradient. T = 0 gives two empty tensors.
    """
    parts = [
        checkpoint(_block, hidden[i : i + chunk], head, token_ids[i : i + chunk], temperature, use_reentrant=False)
        for i in range(0, max(len(token_ids), 1), chunk)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _block(hidden: Tensor, head: Callable[[Tensor], Tensor], token_ids: Tensor, temperature: float):
    logits = head(hidden)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    norm = logits.logsumexp(-1)
    logp = logits.gather(-1, token_ids[:, None])[:, 0] - norm
    with torch.no_grad():
        entropy = norm - ((logits - norm[:, None]).exp() * logits).sum(-1)
    return logp, entropy
