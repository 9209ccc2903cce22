"""Bytes that a pass through a model takes on a GPU, from its config.json alone:
what it keeps and what is in work.

What a pass keeps was read off autograd and off the live tensors of real passes; tests/test_plan.py and
tests/test_card.py measure it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from lgrpo_lite.policy.budget import ON_CPU, WIDTH, kv_bytes_per_token, sequences_at_once, targeted
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Lora, Recipe

SCORED_TOKENS = 1024  # of one pass of the proofs' scoring, which runs while keys and values are there
PROBED_TOKENS = 520  # of the probe of memory (policy/prove.py), padding included
BLOCK_ROWS = 1024  # of ops/lean.py
VERIFY_PROMPTS = 32  # that a merged model and the policy answer
VERIFY_ROWS = 4  # of them at once; fewer only where memory is short, and then of few prompts
VERIFY_TOKENS = 64  # of an answer
VERIFY_SPARE = 0.05  # of the free memory: what an allocator loses between tensors
VLLM_TOKENS = 8192  # of one forward pass of vLLM, its default under 70 GiB
TILE = 32 << 20  # logits of a tile, where 2 GiB are free
SCRATCH = 14  # bytes for each logit of a tile in 16 bits: two buffers and a product of 4, one of 2


# ------------------------------------------------------------ what a pass takes


@dataclass(frozen=True, slots=True)
class Pass:
    """How a training pass runs. lora None: all parameters are trained, in float32 under autocast."""

    width: int  # bytes of the compute type
    lora: Lora | None
    int8: bool = False
    # packed and shared gather sequences for attention, where there is no kernel for them (float32, a CPU)
    gathered: bool = True
    # keys a token attends with, on average: above 1 where a shared prompt stands before every answer
    keys: float = 1.0


def pass_of(recipe: Recipe, *, rows_only: bool = False, on_cpu: bool = False) -> Pass:
    """That of a recipe's updates. rows_only: the engine's models take no other layout."""
    model = recipe.model
    layout = "rows" if rows_only else recipe.memory.layout
    width = ON_CPU[model.weights] if on_cpu else WIDTH[model.weights]
    keys = 1.0
    if layout in ("auto", "shared"):
        keys = 1 + model.max_prompt_tokens / model.max_new_tokens
    gathered = layout != "rows" and (width == 4 or on_cpu)
    return Pass(width, model.lora, int8=model.weights == "int8", gathered=gathered, keys=keys)


def pass_tokens(recipe: Recipe) -> int:
    """Of the largest pass: micro_tokens, but at least one sequence (or one whole group), at most all."""
    rollout = recipe.rollout
    each = recipe.model.max_prompt_tokens + recipe.model.max_new_tokens - 1  # the last token predicts nothing
    least = each * (rollout.group_size if recipe.algorithm.whole_groups else 1)
    most = each * rollout.prompts_per_step * rollout.group_size
    return max(least, min(recipe.memory.micro_tokens, most))


def layer_bytes(shape: Shape, p: Pass) -> int:
    """What autograd keeps of one layer for each token. b: bytes of a number, q and k: width of
    all query and of all key heads.

    With an adapter (policy/lean.py): norms b·width · 4 for each row of a norm and of attention · MLP 2·b·i
    · attention b·(2·q + 2·k) · inputs of linear layers, see below. All parameters: norms 8·width (a
    float32 copy twice), MLP 3·b·i.
    """
    query, key = shape.query, shape.kv_heads * shape.head_dim
    normed = shape.family.norms * shape.hidden
    rows = shape.family.norms + shape.heads
    if shape.family.head_norms:
        normed += query + key
        rows += shape.heads + shape.kv_heads
    norms = (p.width if p.lora else 8) * normed + 4 * rows
    mlp = (2 if p.lora else 3) * shape.inner
    attention = 2 * query + ceil(2 * p.keys * key)
    kept = norms + p.width * (mlp + attention)
    return kept + _inputs_bytes(shape, p) + _hidden_bytes(shape, p, adapted=False)


def _inputs_bytes(shape: Shape, p: Pass) -> int:
    """Trained and adapted layers keep their input, once for those that read the same.

    Dropout keeps a copy and a mask of a byte, autocast a copy for each. Attention's output is counted there,
    unless gathering sequences copies it.
    """
    autocast = p.lora is None and p.width < 4
    counted = set() if p.gathered or autocast else {"heads"}
    kept = 0
    for linear in shape.linears:
        if p.lora and not targeted(p.lora, f"model.layers.0.{linear.name}"):
            continue
        if p.lora and p.lora.dropout:
            kept += (p.width + 1) * linear.inputs
        elif linear.source not in counted:
            kept += p.width * linear.inputs
        if p.lora or p.width == 4:
            counted.add(linear.source)
    return kept


def _hidden_bytes(shape: Shape, p: Pass, *, adapted: bool = True) -> int:
    """What bitsandbytes' int8 layers hold on to outside autograd's reach, recomputed or not: their input.

    adapted: also of layers whose adapter keeps the same input.
    """
    if not p.int8 or p.width == 4:
        return 0
    lora = p.lora if p.lora is not None and not p.lora.dropout else None  # keeps the input as it is
    inputs = {}
    for linear in shape.linears:
        kept = lora is not None and targeted(lora, f"model.layers.0.{linear.name}")
        if adapted or not kept:
            inputs[linear.source] = linear.inputs
    if not p.gathered:
        inputs.pop("heads", None)
    return p.width * sum(inputs.values())


def kept_bytes(shape: Shape, p: Pass) -> int:
    """What a recomputed layer keeps for each token: its input, and what int8 layers do not let go."""
    return (p.width if p.lora else 4) * shape.hidden + _hidden_bytes(shape, p)


def head_bytes(shape: Shape, p: Pass) -> int:
    """Kept for each token outside the layers: the gradient towards the last hidden state (where all is
    trained, that state and the last norm's), rotary tables, places. The last norm's input makes up for the
    first one's, which needs no gradient."""
    last = (p.width if p.lora else 12) * shape.hidden
    rotary = 2 * p.width * shape.head_dim
    return last + rotary + 40


def saved_bytes(shape: Shape, p: Pass, tokens: int, recomputed: int = 0, *, offload: bool = False) -> int:
    """What a pass of `tokens` keeps on the GPU until its backward pass, with so many layers recomputed."""
    if offload:
        return tokens * shape.layers * _hidden_bytes(shape, p)
    whole = (shape.layers - recomputed) * layer_bytes(shape, p)
    layers = whole + recomputed * kept_bytes(shape, p)
    # its input stays where it is computed again
    first = p.width * shape.hidden if recomputed and p.lora else 0
    return tokens * (layers + first + head_bytes(shape, p))


def work_bytes(shape: Shape, recipe: Recipe, p: Pass, tokens: int, recomputed: int = 0) -> dict[str, int]:
    """What is in work at the peak of a pass beside what it keeps, by name: the larger of the head's tiles, at
    the end of the forward pass, and of a layer in the backward pass."""
    layer = layer_work_bytes(shape, recipe, p, tokens, recomputed)
    tiles = tiles_bytes(shape, p, recipe.memory.logprob_chunk)
    head = tiles + tokens * head_work_bytes(shape, p)
    return {"head tiles": head} if head > sum(layer.values()) else layer


def layer_work_bytes(
    shape: Shape, recipe: Recipe, p: Pass, tokens: int, recomputed: int = 0
) -> dict[str, int]:
    """Of a layer in the backward pass, which is there a second time where it is computed again."""
    offload = recipe.memory.offload_activations
    alone = recomputed == shape.layers or offload  # else other layers' activations are free by then
    again = 0
    if recomputed and alone:
        counted = 0 if offload else p.width * shape.hidden  # its input
        again = tokens * (layer_bytes(shape, p) - counted)
    each = offloaded_bytes(shape, p) if offload and not recomputed else backward_bytes(shape, p)
    # beside an adapter's block no weight of a layer is unpacked any more
    weights = "bf16" if p.lora else recipe.model.weights
    beside = max(block_bytes(shape, p, tokens), unpacked_bytes(shape, weights, p))
    return {"recomputed layer": again, "layer in work": tokens * each + beside}


def head_work_bytes(shape: Shape, p: Pass) -> int:
    """For each token, beside its tile: the last hidden states, the last norm's, and those gathered."""
    return 3 * p.width * shape.hidden


def backward_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what the backward pass of one layer makes beside what it kept: the MLP's gradients."""
    down_learns = p.lora is None or targeted(p.lora, "model.layers.0.mlp.down_proj")
    inner = 2 if down_learns else 3  # the input it kept is free by then
    towards_input = (p.width if p.lora else 4) * shape.hidden
    return inner * p.width * shape.inner + towards_input


def forward_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what one layer makes in a forward pass without gradient: the MLP."""
    autocast = p.lora is None and p.width < 4
    inner = 8 if autocast else 3 * p.width
    outer = 3 * p.width if p.lora else 19
    return inner * shape.inner + outer * shape.hidden


def block_bytes(shape: Shape, p: Pass, tokens: int) -> int:
    """A block of rows in work (ops/lean.py): its widest tensor in float32, or two in 16 bits."""
    return 4 * min(tokens, BLOCK_ROWS) * shape.inner if p.lora else 0


def offloaded_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what is on the GPU at once if activations wait on the CPU and nothing is recomputed."""
    backward = 5 * p.width * shape.inner + 4 * shape.hidden
    return max(forward_bytes(shape, p), backward)


def unpacked_bytes(shape: Shape, weights: str, p: Pass) -> int:
    """Weights as numbers, for a moment: the largest quantised layer, all under autocast, a trained head."""
    table = shape.vocabulary * shape.hidden
    if p.lora is None:  # a tied table has two gradients, and a pass adds to those that are there
        copies = 0
        if p.width < 4:
            copies = p.width * sum(block.numbers for block in shape.blocks)
        return 4 * table + copies
    head = layer = 0
    if targeted(p.lora, "lm_head"):
        head = (4 + 3 * p.width) * table  # B·A, head and sum, gradient
    if weights in ("nf4", "int8"):
        layer = shape.largest * p.width
    return head + layer


def tiles_bytes(shape: Shape, p: Pass, rows: int | None) -> int:
    """Buffers of the head of a tile, `rows` × 8192 (None: 32 MiB), and three of `rows` × hidden."""
    columns = min(shape.vocabulary, 8192)
    rows = rows or max(64, TILE // (4 * columns) // 64 * 64)
    logit = 4 if p.width == 4 else SCRATCH
    gradient = 0
    if p.lora is None or targeted(p.lora, "lm_head"):
        logit += 12
        gradient = 8 * columns * shape.hidden
    return rows * columns * logit + 12 * rows * shape.hidden + gradient


# ------------------------------------------------------------------------------------------- sampling


def vllm_bytes(shape: Shape, width: int, sequences: int) -> int:
    """vLLM's forward pass: an MLP of VLLM_TOKENS tokens, the largest weight as numbers, 16 bytes a logit."""
    forward = VLLM_TOKENS * (3 * shape.inner + 4 * shape.hidden) * width
    logits = 16 * sequences * shape.vocabulary
    return forward + shape.largest * width + logits


def sampling_bytes(shape: Shape, recipe: Recipe) -> int:
    """What is in work beside vLLM's keys and values: its own pass, or the trainer's over the proofs."""
    width = WIDTH[recipe.model.weights]
    run = Pass(width, recipe.model.lora, gathered=False)
    scoring = SCORED_TOKENS * forward_bytes(shape, run)
    scoring += 2 * block_bytes(shape, run, SCORED_TOKENS)
    scoring += unpacked_bytes(shape, recipe.model.weights, run)
    scoring += tiles_bytes(shape, run, recipe.memory.logprob_chunk)
    return max(vllm_bytes(shape, width, sequences_at_once(recipe)), scoring)


def generate_bytes(shape: Shape, p: Pass, rows: int, prompt: int, tokens: int) -> int:
    """transformers' generate() beside its cache: all prompts in one pass, or later one layer's keys and
    values once for each query head, a longer copy of one of them, and 20 bytes for each logit."""
    first = rows * prompt
    prefill = first * forward_bytes(shape, p) + 2 * block_bytes(shape, p, first)
    copies = 2 * shape.query + shape.kv_heads * shape.head_dim
    logits = 20 * rows * shape.vocabulary
    return max(prefill, rows * tokens * p.width * copies + logits)


# ------------------------------------------------------------------------------------------- export


def merged_bytes(shape: Shape, recipe: Recipe, width: int | None = None) -> int:
    """The merged model, as it is checked beside the policy. width: as in `merged_width`."""
    return merged_width(recipe, width) * sum(shape.parameters)


def merged_width(recipe: Recipe, width: int | None = None) -> int:
    """Bytes of one of its numbers. width: of those the policy computes with; None: on a GPU."""
    if recipe.export.dtype != "auto":
        return WIDTH[recipe.export.dtype]
    return width or WIDTH[recipe.model.weights]


def checked_bytes(shape: Shape, lora: Lora | None, rows: int, prompt: int) -> int:
    """What answering `rows` prompts at once takes beside a model, in float32: a pass, keys and values, and
    one layer's weights, which are float32 while it is at work."""
    longest = prompt + VERIFY_TOKENS
    run = Pass(4, lora)
    layer = 4 * max(block.numbers + sum(block.rest) for block in shape.blocks)
    cache = rows * longest * kv_bytes_per_token(shape, 4)
    return layer + cache + generate_bytes(shape, run, rows, prompt, longest)


def verify_rows(needed: Callable[[int], int], free: int) -> int:
    """Prompts that are answered at once: VERIFY_PROMPTS, halved until there is room; 0: not even for one."""
    room = int((1 - VERIFY_SPARE) * free)
    rows = VERIFY_PROMPTS
    while rows and needed(rows) > room:
        rows //= 2
    return rows
