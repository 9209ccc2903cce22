"""What this model can be trusted with, found out on a probe before the first step: its
head, its layouts, its memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lgrpo_lite.batch import Answer, TrainBatch, flatten
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.budget import FRAGMENTATION, SPARE, moments_bytes
from lgrpo_lite.policy.memory import MARGIN, Recompute, Saved, fitting, free_bytes, layers_of, recompute
from lgrpo_lite.policy.passes import Pass, pass_tokens, work_bytes
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score

PROBED = ((64, 64), (64, 65), (64, 66), (64, 67))  # prompt and answer tokens of the probe of memory
# Mean |Δ log-prob| that is only rounding; a foreign token is worth more.
NEAR = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
BENT = 5  # times as much may gradients differ, as a share: rounding adds up on the way back too


def prove(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Settles `policy.layouts` and how many layers are recomputed; returns what a user should know about it.

    ConfigError if the head's formula does not give the model's own logits, or if a layout
    that was asked for is wrong here.
    """
    memory = recipe.memory
    check_head(policy, recipe.where("model.id"))
    policy.layouts, refused = _allowed_layouts(policy, recipe)
    notes = []
    if memory.layout == "auto":
        notes += [f"memory.layout: {name} is not used: {reason}" for name, reason in refused.items()]
    if isinstance(memory.checkpointing, bool):
        recompute(policy.base, len(layers_of(policy.base)) if memory.checkpointing else 0)
    else:
        chosen = by_memory(policy, recipe)
        recompute(policy.base, chosen.layers)
        if chosen.layers:
            notes.append(str(chosen))
    return tuple(notes)


def _allowed_layouts(policy: Policy, recipe: Recipe) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layouts that the recipe asks for and this model takes, and why not the others."""
    layout = recipe.memory.layout
    if layout == "rows":
        return ("rows",), {}
    longest = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens
    usable, refused = usable_layouts(policy, longest)
    if layout == "auto":
        return usable, refused
    if layout not in usable:
        what = f"this model cannot be laid out as {layout!r}: {refused[layout]}"
        raise ConfigError(what, where=recipe.where("memory.layout"), fix="use memory.layout=rows or auto")
    return (layout,), refused


def probe(
    vocabulary: int, answers: tuple[tuple[int, int], ...] = ((6, 9), (6, 5), (11, 1), (3, 14))
) -> TrainBatch:
    """Sequences of made-up tokens; equal prompt lengths are equal prompts."""
    ids = torch.randint(vocabulary, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt_lengths = sorted({ahead for ahead, _ in answers})
    made = []
    for number, (ahead, count) in enumerate(answers):
        prompt_ids = tuple(ids[(ahead + k) % 4096] for k in range(ahead))
        answer_ids = tuple(ids[64 * number + k % 64] for k in range(count))
        prompt = Prompt(str(ahead), "", prompt_ids, "")
        completion = Completion(answer_ids, None, "", "stop", 0)
        rollout = Rollout(prompt, completion, Score(0.0, Outcome.wrong))
        made.append(Answer(rollout, 0.0, 0, group=prompt_lengths.index(ahead)))
    everyone = list(range(len(made)))
    return flatten(made, everyone, torch.ones(len(made)), torch.float32)


@torch.no_grad()
def check_head(policy: Policy, where: str) -> None:
    """`head_of` must be what the model does between its last hidden state and its logits."""
    batch = probe(policy.base.get_output_embeddings().weight.shape[0], ((6, 9),))
    device = policy.device
    with _evaluating(policy):
        with policy.compute():
            logits = policy.base(input_ids=batch.input_ids[None].to(device), use_cache=False).logits[0]
        own = (logits.float() / policy.temperature).log_softmax(-1)[batch.at.to(device)]
        own = own.gather(1, batch.token_ids.to(device)[:, None])[:, 0]
        ours = policy.logprobs(batch).logp
    difference = (own.cpu() - ours.cpu()).abs().mean().item()
    if not own.isfinite().all():
        fix = "check its weights, or use other precision"
        raise ConfigError("the model's log-probs are not finite", where=where, fix=fix)
    if not difference <= NEAR.get(policy.dtype, 1e-3):
        what = (
            f"the head of {type(policy.base).__name__} does more than is known here: its log-probs differ by"
            f" {difference:.3g} from weight · hidden, scaled and capped as the config says"
        )
        raise ConfigError(what, where=where, fix="use another model, or report this one")


def usable_layouts(policy: Policy, longest: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layouts that give the log-probs of `rows` on a probe, and why not the others. `longest`: tokens.

    Settles `policy.varlen` too: where FlashAttention is wrong or fails, buckets do its work, and why is said.
    """
    reason = attention.install(policy.base, longest)
    if reason:
        return ("rows",), {"packed": reason, "shared": reason}
    usable, refused = ["rows"], {}
    policy.varlen = _may_varlen(policy)
    if policy.varlen:
        fault = _differs(policy, "shared")
        if fault:
            policy.varlen = False
            refused["variable-length attention"] = fault
    for layout in ("packed", "shared"):
        fault = _differs(policy, layout)
        if fault:
            refused[layout] = fault
        else:
            usable.append(layout)
    return tuple(usable), refused


def _may_varlen(policy: Policy) -> bool:
    return policy.device.type == "cuda" and policy.dtype != torch.float32 and attention.has_varlen()


@contextmanager
def _evaluating(policy: Policy) -> Iterator[None]:
    """No dropout."""
    training = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(training)


def _differs(policy: Policy, layout: str) -> str | None:
    """Why this layout is not `rows`: its log-probs, the gradients of its backward pass, or an error."""
    batch = probe(policy.base.get_output_embeddings().weight.shape[0])
    try:
        with _evaluating(policy):
            rows, rows_grad = _with_gradient(policy, batch)
            logp, grad = _with_gradient(policy, replace(batch, layout=layout))
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    near = NEAR.get(policy.dtype, 1e-3)
    difference = (logp - rows).abs().mean().item()
    if not difference <= near:
        return f"its log-probs differ from those of `rows` by {difference:.3g}"
    share = ((grad - rows_grad).norm() / rows_grad.norm()).item()
    if not share <= BENT * near:
        return f"its gradients differ from those of `rows` by {share:.3g} of their size"
    return None


def _with_gradient(policy: Policy, batch: TrainBatch) -> tuple[Tensor, Tensor]:
    """Log-probs [T], and the gradient of their sum towards the tokens' embeddings, added up over tokens [D].

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
    (grad,) = torch.autograd.grad(logp.sum(), embedded)
    return logp.detach(), grad.float().sum((0, 1))


def by_memory(policy: Policy, recipe: Recipe) -> Recompute:
    """Layers to recompute so that the largest pass of the recipe fits into the free memory.

    What a layer keeps is measured on PROBED, of which one layer at most is kept whole, so that this
    fits where the run will. What a pass needs beside that is budget.py's; of a model that it does not
    know, 1 - MARGIN of what is free.
    """
    layers = len(layers_of(policy.base))
    tokens = pass_tokens(recipe)
    free = free_bytes(policy.device)
    try:
        layer, kept, rest = (int(tokens * size) for size in kept_bytes(policy))
    except torch.OutOfMemoryError:
        return Recompute(layers, layers, tokens, 0, free)
    needed = layers * layer + rest
    if policy.offload:
        return Recompute(0, layers, tokens, needed, free)
    room = _room(policy, recipe, tokens, free) - rest
    return Recompute(fitting(layer, kept, layers, room), layers, tokens, needed, free)


def _room(policy: Policy, recipe: Recipe, tokens: int, free: int) -> int:
    """Bytes for what a pass keeps: less gradients, what is in work, and a share lost between tensors."""
    try:
        shape = Shape.of(policy.base.config)
    except ConfigError:
        return int(MARGIN * free)
    run = Pass(
        policy.dtype.itemsize,
        recipe.model.lora,
        int8=recipe.model.weights == "int8",
        gathered=policy.layouts != ("rows",),
    )
    sizes = [p.numel() for p in policy.trainable()]
    # gradients, and moments that are made after this
    to_come = 4 * sum(sizes) + moments_bytes(sizes, recipe.optim.use)
    work = sum(work_bytes(shape, recipe, run, tokens).values())
    return int((free - to_come - SPARE) / (1 + FRAGMENTATION)) - work


def kept_bytes(policy: Policy) -> tuple[float, int, float]:
    """Bytes a token that autograd keeps of a layer, of a recomputed one (its input), and of what is no layer.

    Leaves all layers recomputed.
    """
    vocabulary, width = policy.base.get_output_embeddings().weight.shape
    batch = probe(vocabulary, PROBED)
    tokens = batch.num_sequences * (int(batch.length.max()) - 1)
    layers = len(layers_of(policy.base))

    def measured(whole: int) -> float:
        recompute(policy.base, layers - whole)
        with Saved(policy.model) as saved:
            policy.logprobs(batch)
        return saved.bytes / tokens

    one_whole, none = measured(1), measured(0)
    kept = width * policy.dtype.itemsize
    return one_whole - none + kept, kept, none - layers * kept
