"""What this model can be trusted with, found out on a probe before the first step: its
head, its layouts, its memory.
"""

import torch

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.budget import FRAGMENTATION, SPARE, moments_bytes
from lgrpo_lite.policy.layouts import NEAR, usable_layouts
from lgrpo_lite.policy.memory import MARGIN, Recompute, Saved, fitting, free_bytes, layers_of, recompute
from lgrpo_lite.policy.passes import Pass, pass_tokens, work_bytes
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.probe import evaluating, probe
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.policy.structure import turning
from lgrpo_lite.recipe.schema import Recipe

PROBED = ((64, 64), (64, 65), (64, 66), (64, 67))  # prompt and answer tokens of the probe of memory


def prove(policy: Policy, recipe: Recipe) -> tuple[str, ...]:
    """Settles `policy.layouts` and how many layers are recomputed; returns what a user should know about it.

    ConfigError if the head's formula does not give the model's own logits, if sequences may be so long that
    they change each other's positions, or if a layout that was asked for is wrong here.
    """
    memory = recipe.memory
    check_head(policy, recipe.where("model.id"))
    _check_positions(policy, recipe)
    policy.layouts, refused = _allowed_layouts(policy, recipe)
    notes = []
    if memory.layout == "auto":
        notes += [f"memory.layout: {name} is not used: {reason}" for name, reason in refused.items()]
        narrow = _narrow(policy, recipe)
        if narrow and len(policy.layouts) > 1:
            others = " and ".join(policy.layouts[1:])
            notes.append(f"memory.layout: {others} only for a batch without a longer sequence: {narrow}")
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
    usable, refused = usable_layouts(policy)
    if layout == "auto":
        return usable, refused
    narrow = _narrow(policy, recipe)
    if narrow:
        refused = dict.fromkeys(("packed", "shared"), narrow) | refused
    if layout in refused:
        what = f"this model cannot be laid out as {layout!r}: {refused[layout]}"
        raise ConfigError(what, where=recipe.where("memory.layout"), fix="use memory.layout=rows or auto")
    return (layout,), refused


def _narrow(policy: Policy, recipe: Recipe) -> str | None:
    """That some of the recipe's sequences may be longer than a layer's window, if so."""
    longest = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens
    if policy.window is None or longest <= policy.window:
        return None
    return f"it attends to {policy.window} tokens back, and sequences may have {longest}"


def _check_positions(policy: Policy, recipe: Recipe) -> None:
    limit = turning(policy.base)
    longest = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens
    if limit is None or longest - 1 <= limit:  # the last token of a sequence is in no pass
        return
    what = f"in a pass with a sequence of more than {limit} tokens this model turns all positions otherwise"
    why = f"log-probs would depend on what else is in it, and sequences may have {longest}"
    fix = f"lower model.max_prompt_tokens and model.max_new_tokens to {limit + 1} together"
    raise ConfigError(f"{what}: {why}", where=recipe.where("model.max_new_tokens"), fix=fix)


@torch.no_grad()
def check_head(policy: Policy, where: str) -> None:
    """`head_of` must be what the model does between its last hidden state and its logits."""
    batch = probe(policy.base.get_output_embeddings().weight.shape[0], ((6, 9),))
    device = policy.device
    with evaluating(policy):
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
