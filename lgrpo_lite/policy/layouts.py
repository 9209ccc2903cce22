"""Which layouts give what `rows` gives for this model: by its structure, then by a probe.

structure   a layer that is no softmax attention over keys that are placed leaves `rows` alone
leaks       no answer's log-prob has a gradient towards another's tokens: exactly 0, in any precision
log-probs   those of `rows`, in float32, to rounding
gradients   those of `rows`, in what the policy computes in
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lgrpo_lite.batch import TrainBatch, ranges
from lgrpo_lite.layout import LAYOUT
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import evaluating, in_float32, probe
from lgrpo_lite.policy.structure import unattended, unplaced

# Mean |Δ log-prob| that is only rounding, in what the policy computes in.
NEAR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
SAME = 1e-4  # the same in float32, where a model of 8 B parameters is 1e-5 from itself
BENT = 5  # times as much may gradients differ, as a share: rounding adds up on the way back too
NOISE = 5  # times as far as buckets are from `rows` may variable-length attention be, in 16 bits
FLOOR = 1e-3  # and so far in any case
LOOKED_AT = (1, 3)  # answers of the probe: the second to a prompt, and the last
FAULTS = (NotImplementedError, RuntimeError, TypeError, ValueError)


def usable_layouts(policy: Policy) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layouts that give the log-probs of `rows` on a probe, and why not the others.

    Settles `policy.window`, the longest sequence they are right for, and `policy.varlen` too: where
    FlashAttention is wrong or fails, buckets do its work, and why is said.
    """
    policy.window = attention.window_of(policy.base)
    batch = probe(policy.base.get_output_embeddings().weight.shape[0])
    longest = int(batch.length.max()) - 1
    reason = unplaced(policy.base)
    if reason is None and policy.window is not None and policy.window < longest:
        reason = f"it attends to {policy.window} tokens back"
    own = policy.base.config._attn_implementation
    truth = None if reason else _in_float32(policy, batch)
    reason = reason or attention.install(policy.base)
    if truth is None or reason:
        why = str(reason)
        return ("rows",), {"packed": why, "shared": why}
    usable, refused = ["rows"], {}
    policy.varlen = False
    for layout in ("packed", "shared"):
        fault = _fault(policy, batch, layout, truth)
        if fault:
            refused[layout] = fault
        else:
            usable.append(layout)
    if len(usable) == 1:  # what was installed may lack what the model's own attention has
        policy.base.set_attn_implementation(own)
    if len(usable) > 1 and _may_varlen(policy):
        fault = _varlen_fault(policy, batch, usable[-1])
        policy.varlen = fault is None
        if fault:
            refused["variable-length attention"] = fault
    return tuple(usable), refused


def _may_varlen(policy: Policy) -> bool:
    return policy.device.type == "cuda" and policy.dtype != torch.float32 and attention.has_varlen()


def _fault(policy: Policy, batch: TrainBatch, layout: str, truth: Tensor) -> str | None:
    """Why this layout is not `rows`, or `rows` no more what they were (`truth`, log-probs in float32)."""
    laid = replace(batch, layout=layout)
    try:
        with evaluating(policy), attention.watched() as attended:
            bent = _bent(policy, batch, laid, near=NEAR.get(policy.dtype, SAME))
            return unattended(policy.base, attended) or bent or _far(policy, (batch, laid), truth)
    except FAULTS as error:
        return _first_line(error)


def _varlen_fault(policy: Policy, batch: TrainBatch, layout: str) -> str | None:
    """Why variable-length attention does not do what buckets do."""
    laid = replace(batch, layout=layout)
    try:
        with evaluating(policy):
            with torch.no_grad():
                rows, buckets = (policy.logprobs(one).logp for one in (batch, laid))
            near = max(FLOOR, NOISE * (buckets - rows).abs().mean().item())
            policy.varlen = True
            return _bent(policy, batch, laid, near=min(near, NEAR.get(policy.dtype, near)))
    except FAULTS as error:
        return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _far(policy: Policy, batches: Sequence[TrainBatch], truth: Tensor) -> str | None:
    """Log-probs in float32 that are not those of `rows`."""
    # LLM.int8 rounds what goes into a layer by what else is in the pass
    near = NEAR[torch.bfloat16] if _is_int8(policy) else SAME
    for batch in batches:
        difference = (_in_float32(policy, batch) - truth).abs().mean().item()
        if not difference <= near:
            return _differ("log-probs", f"{difference:.3g} in float32")
    return None


def _in_float32(policy: Policy, batch: TrainBatch) -> Tensor:
    with evaluating(policy), in_float32(policy):
        return policy.logprobs(batch).logp


def _is_int8(policy: Policy) -> bool:
    return any(parameter.dtype == torch.int8 for parameter in policy.base.parameters())


def _differ(what: str, by: str) -> str:
    return f"its {what} differ from those of `rows` by {by}"


def _bent(policy: Policy, batch: TrainBatch, laid: TrainBatch, *, near: float) -> str | None:
    """A leak, or log-probs and gradients that are too far from those of `rows`."""
    rows, rows_grad, _ = _with_gradient(policy, batch)
    logp, grad, leaked = _with_gradient(policy, laid)
    if leaked:
        return f"an answer's log-probs depend on {leaked} tokens of other sequences"
    difference = (logp - rows).abs().mean().item()
    if not difference <= near:
        return _differ("log-probs", f"{difference:.3g}")
    share = ((grad - rows_grad).norm() / rows_grad.norm()).item()
    if not share <= BENT * near:
        return _differ("gradients", f"{share:.3g} of their size")
    return None


def _with_gradient(policy: Policy, batch: TrainBatch) -> tuple[Tensor, Tensor, int]:
    """Log-probs [T]; the gradient of their sum towards the tokens' embeddings, added up over tokens [D]; and
    how many tokens of others the answers LOOKED_AT have a gradient towards.

    It passes through every layer, is of one size in any layout, and touches no parameter's gradient.
    """
    embedded = []

    def as_leaf(module, inputs, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = policy.base.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        logp = policy.logprobs(batch).logp
    finally:
        hook.remove()
    chosen = torch.isin(batch.seq, torch.tensor(LOOKED_AT)).to(logp.device)
    (alone,) = torch.autograd.grad(logp[chosen].sum(), embedded, retain_graph=True)
    (grad,) = torch.autograd.grad(logp.sum(), embedded)
    return logp.detach(), grad.float().sum((0, 1)), _leaked(alone, batch)


def _leaked(grad: Tensor, batch: TrainBatch) -> int:
    """Tokens that are none of the answers LOOKED_AT, nor before them, and have a gradient."""
    looked_at = torch.tensor(LOOKED_AT)
    own, _ = ranges(batch.start[looked_at], batch.length[looked_at] - 1)
    reached = grad.flatten(0, 1).ne(0).any(-1).cpu()
    reached[LAYOUT[batch.layout](batch).place[own]] = False
    return int(reached.sum())
