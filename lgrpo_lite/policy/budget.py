"""Bytes of what a model takes on a GPU, from its config.json alone; nothing is
loaded and torch is not needed.

Weights, adapter and optimiser are counted tensor by tensor. What a pass keeps was read off autograd and off
the live tensors of real passes; tests/test_plan.py and tests/test_card.py measure it again. GB is 2^30
everywhere: a card that is sold as 24 GB has 24 GiB, of which torch sees a little less.
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from lgrpo_lite.policy.families import Linear, heads_of, layer_types
from lgrpo_lite.policy.shape import Shape, settings
from lgrpo_lite.recipe.schema import Lora, Recipe

GIB = 2**30
WIDTH = {"nf4": 2, "int8": 2, "bf16": 2, "fp16": 2, "fp32": 4}  # bytes of a number that a GPU computes with
ON_CPU = WIDTH | {"nf4": 4, "int8": 4}  # and a CPU
SEEN = 23.6 / 24  # of a card's size is what torch sees of it
# of what is free beside all else may go to keys and values; the rest is for what a plan does not know
CACHE_SHARE = 0.9
FRAGMENTATION = 0.1  # assumed: of what comes and goes in a pass
# left free beside what an update or the cache takes: a run that is made smaller costs less than one that ends
SPARE = GIB // 2
GRAPH = 350 << 10  # assumed: a CUDA graph of one layer; 0.6 to 1.5 GiB are reported for whole models
SLOT_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
VLLM_BLOCK = 128  # tokens; a sequence is rounded up to whole blocks and has one to spare


# ------------------------------------------------------------------------------------------- what stays


def visible(size: int) -> int:
    """What torch sees of a card of that size."""
    return int(SEEN * size)


def weights_bytes(
    config: Any, weights: str, *, compute: int | None = None, trained: bool = False, by_vllm: bool = False
) -> int:
    """The base model as it is held. `compute`: bytes of the type of all that is not quantised; None: a GPU's.

    nf4, n numbers: ⌈n/2⌉ packed, a byte for each block of 64, 4 for each 256 blocks, and float32 tables of 16
    and 256 with an offset; without double quantisation, which vLLM's plugin undoes (`by_vllm`), 4 bytes a
    block. int8: a byte a number, a float32 a row. Embeddings, head, biases and norms stay in the compute
    type; two float32 tables of rotary frequencies. trained: all of it in float32.
    """
    shape = config if isinstance(config, Shape) else Shape.of(config)
    plain = 4 if trained else compute or WIDTH[weights]
    rotary = 8 * (shape.head_dim // 2)
    total = plain * shape.rest + rotary
    if trained or weights not in ("nf4", "int8"):
        return total + plain * sum(block.numbers for block in shape.blocks)
    left = (shape.saved or {}).get("llm_int8_skip_modules") or ()  # as numbers, by a quantised checkpoint
    for name, linear in shape.named_linears:
        if left and _skips(name, left):
            total += plain * linear.numbers
        else:
            total += _quantised(linear, weights, shape.saved, by_vllm)
    return total


def _quantised(linear: Linear, weights: str, saved: Mapping[str, Any] | None, by_vllm: bool) -> int:
    if weights == "int8":
        return linear.numbers + 4 * linear.outputs
    packed, blocks = ceil(linear.numbers / 2), ceil(linear.numbers / 64)
    if by_vllm or (saved is not None and not saved.get("bnb_4bit_use_double_quant")):
        return packed + 4 * blocks + 4 * 16
    tables = 16 + 256 + 1
    return packed + blocks + 4 * ceil(blocks / 256) + 4 * tables


def _skips(name: str, patterns: Sequence[str]) -> bool:
    """transformers' rule for modules that a checkpoint left unquantised."""
    return any(re.match(pattern, name) or name.endswith(pattern) for pattern in patterns)


def adapter_sizes(shape: Shape, lora: Lora) -> list[int]:
    """Elements of each A (rank × inputs) and B (outputs × rank), all held in float32."""
    matrices = [
        ("lm_head", shape.hidden, shape.vocabulary),
        ("model.embed_tokens", shape.vocabulary, shape.hidden),
    ]
    matrices += [(name, linear.inputs, linear.outputs) for name, linear in shape.named_linears]
    sizes = []
    for name, inputs, outputs in matrices:
        if targeted(lora, name):
            sizes += [lora.rank * inputs, lora.rank * outputs]
    return sizes


def targeted(lora: Lora, name: str) -> bool:
    """PEFT's rule: all-linear leaves the head out, a text is a pattern of whole names, a list ends them."""
    if lora.targets == "all-linear":
        return name.rpartition(".")[2] not in ("lm_head", "embed_tokens")
    if isinstance(lora.targets, str):
        return re.fullmatch(lora.targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in lora.targets)


def moments_bytes(sizes: Sequence[int], use: str) -> int:
    """AdamW's two moments of each tensor: 8 bytes a number; 8bit: 2, and 8 a block of 256, from 4096 on.

    Paged moments of 100,000 numbers and more leave the GPU when it is full, so they are not counted.
    """
    total = 0
    for n in sizes:
        if use.startswith("paged") and n >= 100_000:
            continue
        if use.endswith("8bit") and n >= 4096:
            total += 2 * n + 8 * ceil(n / 256)
        else:
            total += 8 * n
    return total


# ------------------------------------------------------------------------------------------- sampling


def kv_bytes_per_token(config: Any, width: int) -> int:
    """Keys and values of one token: 2 · layers · heads of keys · their width · bytes a number. Any family."""
    if isinstance(config, Shape):
        return 2 * config.attending * config.kv_heads * config.head_dim * width
    c = settings(config)
    _, heads, each = heads_of(c)
    attending = sum(kind != "linear_attention" for kind in layer_types(c))
    return 2 * attending * heads * each * width


def sequence_bytes(config: Any, width: int, tokens: int) -> int:
    """Keys and values of one sequence in vLLM's cache: whole blocks, and one to spare."""
    return (ceil(tokens / VLLM_BLOCK) + 1) * VLLM_BLOCK * kv_bytes_per_token(config, width)


def slot_bytes(shape: Shape, rank: int, width: int) -> int:
    """vLLM's copy of one adapter: every linear layer, in the compute type, at the next rank vLLM knows."""
    slot_rank = next((r for r in SLOT_RANKS if r >= rank), rank)
    widths = sum(linear.inputs + linear.outputs for _, linear in shape.named_linears)
    return widths * slot_rank * width


def graph_sizes(sequences: int) -> int:
    """How many batch sizes vLLM captures CUDA graphs for.

    1, 2, 4, then by 8 to 256 and by 16 to twice the sequences, at most 512.
    """
    most = min(2 * sequences, 512)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return sum(size <= most for size in sizes)


def graphs_bytes(shape: Shape, sequences: int) -> int:
    """vLLM's CUDA graphs: GRAPH for each layer and captured size, with an adapter and without one."""
    return 2 * graph_sizes(sequences) * shape.layers * GRAPH


def sequences_at_once(recipe: Recipe) -> int:
    """Answers that vLLM samples at the same time, if there is room for their keys and values."""
    rollout = recipe.rollout
    return rollout.vllm.max_sequences or min(256, rollout.prompts_per_step * rollout.group_size)


def held_bytes(
    shape: Shape, recipe: Recipe, *, colocated: bool, twice: bool = False, compute: int | None = None
) -> dict[str, int]:
    """What a run has on the card at any time, by name; gradients, passes, keys and values come and go.

    CUDA's own memory is not in it. colocated: vLLM is in this process; twice: on weights of its own; compute:
    bytes of the type of all that is not quantised, None: a GPU's.
    """
    model = recipe.model
    served = weights_bytes(shape, model.weights, by_vllm=True)
    own = weights_bytes(shape, model.weights, compute=compute, trained=model.lora is None)
    sizes = adapter_sizes(shape, model.lora) if model.lora else shape.parameters
    parts = {"base weights": served if colocated and not twice else own}
    if twice:
        parts["vLLM's own weights"] = served
    if model.lora:
        parts["adapter"] = 4 * sum(sizes)
    parts["optimiser moments"] = moments_bytes(sizes, recipe.optim.use)
    if colocated and model.lora:
        parts["adapter inside vLLM"] = slot_bytes(shape, model.lora.rank, WIDTH[model.weights])
        if recipe.rollout.vllm.cuda_graphs:
            parts["CUDA graphs"] = graphs_bytes(shape, sequences_at_once(recipe))
    return parts


def cache_bytes(one: int, sequences: int, free: int, held: int, work: int) -> int:
    """Keys and values of vLLM: of all `sequences` of `one` byte size, or as many as fit; at least one.

    They get CACHE_SHARE of what is left, all but SPARE at most. free: bytes of the card before anything is on
    it; held: what will stay there beside the cache; work: what is in work.
    """
    room = free - held - int((1 + FRAGMENTATION) * work)
    return max(one, min(sequences * one, int(CACHE_SHARE * room), room - SPARE))
