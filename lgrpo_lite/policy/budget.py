"""Bytes of what a model takes on a GPU, from its config.json alone; nothing is loaded and torch is not needed.

Weights, adapter and optimiser are counted tensor by tensor. What a pass keeps was read off autograd and off the live tensors of
real passes; tests/test_plan.py measures it again. GB is 2^30 everywhere: a card that is sold as 24 GB has 24 GiB.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from lgrpo_lite.config import Lora
from lgrpo_lite.policy.shape import Linear, Shape, heads_of, settings

GIB = 2**30
WIDTH = {"nf4": 2, "int8": 2, "bf16": 2, "fp16": 2, "fp32": 4}  # bytes of a number that a GPU computes with
SLOT_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
VLLM_TOKENS = 8192  # of one forward pass of vLLM, its default under 70 GiB
VLLM_BLOCK = 128  # tokens; a sequence is rounded up to whole blocks and has one to spare
TILE = 32 << 20  # logits of a tile, where 2 GiB are free
SCRATCH = 14  # bytes for each logit of a tile in 16 bits: two buffers and a product of 4, one of 2


# ------------------------------------------------------------------------------------------- what stays


def weights_bytes(config: Any, weights: str, *, compute: int | None = None, trained: bool = False) -> int:
    """The base model as it is held. `compute`: bytes of the type of all that is not quantised (None: a GPU's).

    nf4, n numbers: ⌈n/2⌉ packed, a byte for each block of 64, 4 for each 256 blocks, and float32 tables of 16 and 256 with an
    offset; without double quantisation, 4 bytes a block. int8: a byte a number, a float32 a row. Embeddings, head, biases and
    norms stay in the compute type; two float32 tables of rotary frequencies. trained: all of it in float32.
    """
    shape = config if isinstance(config, Shape) else Shape.of(config)
    plain = 4 if trained else compute or WIDTH[weights]
    total = plain * (sum(shape.outer) + shape.layers * sum(shape.vectors)) + 8 * (shape.head_dim // 2)
    if trained or weights not in ("nf4", "int8"):
        return total + plain * shape.layers * sum(linear.numbers for linear in shape.linears)
    sizes = {linear.name: _quantised(linear, weights, shape.saved) for linear in shape.linears}
    patterns = (shape.saved or {}).get("llm_int8_skip_modules") or ()
    blocks = [(layer, linear) for layer in range(shape.layers) for linear in shape.linears] if patterns else []
    whole = [linear for layer, linear in blocks if _skips(f"model.layers.{layer}.{linear.name}", patterns)]
    return total + shape.layers * sum(sizes.values()) + sum(plain * linear.numbers - sizes[linear.name] for linear in whole)


def _quantised(linear: Linear, weights: str, saved: Mapping[str, Any] | None) -> int:
    if weights == "int8":
        return linear.numbers + 4 * linear.outputs
    packed, blocks = ceil(linear.numbers / 2), ceil(linear.numbers / 64)
    if saved is not None and not saved.get("bnb_4bit_use_double_quant"):
        return packed + 4 * blocks + 4 * 16
    return packed + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256 + 1)


def _skips(name: str, patterns: Sequence[str]) -> bool:
    """transformers' rule for modules that a checkpoint left unquantised."""
    return any(re.match(pattern, name) or name.endswith(pattern) for pattern in patterns)


def adapter_sizes(shape: Shape, lora: Lora) -> list[int]:
    """Elements of each A (rank × inputs) and B (outputs × rank), all held in float32."""
    outer = [("lm_head", shape.hidden, shape.vocabulary), ("model.embed_tokens", shape.vocabulary, shape.hidden)]
    sizes = [lora.rank * width for name, *widths in outer if targeted(lora, name) for width in widths]
    for layer in range(shape.layers):
        for linear in shape.linears:
            if targeted(lora, f"model.layers.{layer}.{linear.name}"):
                sizes += [lora.rank * linear.inputs, lora.rank * linear.outputs]
    return sizes


def targeted(lora: Lora, name: str) -> bool:
    """PEFT's rule: all-linear leaves the head out, another text is a pattern for the whole name, a list names endings."""
    if lora.targets == "all-linear":
        return name.endswith("_proj")
    if isinstance(lora.targets, str):
        return re.fullmatch(lora.targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in lora.targets)


def moments_bytes(sizes: Sequence[int], use: str) -> int:
    """AdamW's two moments of each tensor: 8 bytes a number; 8bit: 2, and 8 for each block of 256, from 4096 numbers on.

    Paged moments of 100,000 numbers and more leave the GPU when it is full, so they are not counted.
    """
    total = 0
    for n in sizes:
        if use.startswith("paged") and n >= 100_000:
            continue
        total += 2 * n + 8 * ceil(n / 256) if use.endswith("8bit") and n >= 4096 else 8 * n
    return total


# ------------------------------------------------------------------------------------------- what a pass takes


@dataclass(frozen=True, slots=True)
class Pass:
    """How a training pass runs. `width`: bytes of the compute type. lora None: all parameters, float32 under autocast."""

    width: int
    lora: Lora | None
    int8: bool = False
    gathered: bool = True  # layouts packed and shared gather sequences for attention
    expanded: bool = True  # keys and values stand once for each query head, as kernels for packed sequences want on a GPU
    keys: float = 1.0  # keys a token attends with, on average: above 1 where a shared prompt stands before every answer


def layer_bytes(shape: Shape, p: Pass) -> int:
    """What autograd keeps of one layer for each token. b: bytes of a number, q and k: width of all query and of all key heads.

    norms 4·width, a float32 copy (8 where they are trained) · 4 for each row of a norm and of attention · MLP 3·b·i ·
    attention b·(2·q + 2·k), k the width of q where expanded · inputs of linear layers, see below.
    """
    query, key = shape.query, shape.query if p.expanded else shape.kv_heads * shape.head_dim
    norms, rows = 2 * shape.hidden, 2 + shape.heads
    if shape.head_norms:
        norms, rows = norms + query + shape.kv_heads * shape.head_dim, rows + shape.heads + shape.kv_heads
    attention = 2 * query + ceil(2 * p.keys * key)
    kept = norms * (4 if p.lora else 8) + 4 * rows + p.width * (3 * shape.inner + attention)
    return kept + _inputs_bytes(shape, p) + _hidden_bytes(shape, p)


def _inputs_bytes(shape: Shape, p: Pass) -> int:
    """An adapted layer keeps its input as float32, its own copy where b < 4, and 4·rank; dropout a copy and a mask of a byte.

    Without an adapter every layer keeps its input in b, its own copy where autocast made one. Attention's output is counted
    there, unless gathering sequences copies it.
    """
    kept, seen = 0, set()
    if not p.gathered and (p.width == 4 or p.lora is None):
        seen.add("heads")
    for linear in shape.linears:
        if p.lora and not targeted(p.lora, f"model.layers.0.{linear.name}"):
            continue
        if p.lora:
            kept += 4 * p.lora.rank
        if p.lora and p.lora.dropout:
            kept += 5 * linear.inputs
        elif linear.source not in seen:
            kept += linear.inputs * (4 if p.lora else p.width)
        if p.width == 4:
            seen.add(linear.source)
    return kept


def _hidden_bytes(shape: Shape, p: Pass) -> int:
    """What bitsandbytes' int8 layers hold on to outside autograd's reach, recomputed or not: their input."""
    if not p.int8 or p.width == 4:
        return 0
    inputs = {linear.source: linear.inputs for linear in shape.linears if linear.source != "heads" or p.gathered}
    return p.width * sum(inputs.values())


def kept_bytes(shape: Shape, p: Pass) -> int:
    """What a recomputed layer keeps for each token: its input, and what int8 layers do not let go."""
    return (p.width if p.lora else 4) * shape.hidden + _hidden_bytes(shape, p)


def head_bytes(shape: Shape, p: Pass) -> int:
    """Kept for each token outside the layers: the gradient towards the last hidden state (where all is trained, that state and
    the last norm's), rotary tables, places."""
    return (p.width if p.lora else 12) * shape.hidden + 2 * p.width * shape.head_dim + 40


def saved_bytes(shape: Shape, p: Pass, tokens: int, recomputed: int = 0, *, offload: bool = False) -> int:
    """What a pass of `tokens` keeps on the GPU until its backward pass, with so many layers recomputed."""
    if offload:
        return tokens * shape.layers * _hidden_bytes(shape, p)
    layers = (shape.layers - recomputed) * layer_bytes(shape, p) + recomputed * kept_bytes(shape, p)
    return tokens * (layers + head_bytes(shape, p))


def backward_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what the backward pass of one layer makes on top of what the layer kept: gradients inside the MLP."""
    down = p.lora is None or targeted(p.lora, "model.layers.0.mlp.down_proj")  # its kept input is free by then
    copies = p.lora is not None and down and p.width < 4
    return (2 if down else 3) * p.width * shape.inner + (13 if copies else 4) * shape.hidden


def forward_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what one layer makes in a forward pass without gradient: the MLP with its adapter's float32 products."""
    mlp = p.lora is not None and any(
        targeted(p.lora, f"model.layers.0.{linear.name}") for linear in shape.linears if linear.source in ("mlp", "inner")
    )
    inner = 2 * p.width + 8 if mlp else 8 if p.lora is None and p.width < 4 else 3 * p.width
    return inner * shape.inner + (14 if p.lora and p.width < 4 else 19) * shape.hidden


def offloaded_bytes(shape: Shape, p: Pass) -> int:
    """For each token, what is on the GPU at once where activations wait in CPU memory and no layer is recomputed."""
    return max(forward_bytes(shape, p), 5 * p.width * shape.inner + 4 * shape.hidden)


def unpacked_bytes(shape: Shape, weights: str, p: Pass) -> int:
    """Weights as numbers, for a moment: the largest quantised layer; all layers under autocast; gradients of a trained head."""
    table = shape.vocabulary * shape.hidden
    if p.lora is None:  # a tied table has two gradients, and a pass adds to those that are there
        copies = shape.layers * sum(linear.numbers for linear in shape.linears) * p.width if p.width < 4 else 0
        return 4 * table + copies
    head = (4 + 3 * p.width) * table if targeted(p.lora, "lm_head") else 0  # B·A, head and sum, gradient
    return head + (shape.largest * p.width if weights in ("nf4", "int8") else 0)


def tiles_bytes(shape: Shape, p: Pass, rows: int | None) -> int:
    """Buffers of the head for one tile of logits, `rows` × 8192 (None: 32 MiB of logits), and three of `rows` × hidden."""
    columns = min(shape.vocabulary, 8192)
    rows = rows or max(64, TILE // (4 * columns) // 64 * 64)
    trained = p.lora is None or targeted(p.lora, "lm_head")
    logit = (4 if p.width == 4 else SCRATCH) + (12 if trained else 0)
    return rows * columns * logit + 12 * rows * shape.hidden + (8 * columns * shape.hidden if trained else 0)


# ------------------------------------------------------------------------------------------- sampling


def kv_bytes_per_token(config: Any, width: int) -> int:
    """Keys and values of one token in all layers: 2 · layers · heads of keys · their width · bytes of a number. Any family."""
    if isinstance(config, Shape):
        return 2 * config.layers * config.kv_heads * config.head_dim * width
    c = settings(config)
    _, heads, each = heads_of(c)
    return 2 * c["num_hidden_layers"] * heads * each * width


def sequence_bytes(config: Any, width: int, tokens: int) -> int:
    """Keys and values of one sequence in vLLM's cache: whole blocks, and one to spare."""
    return (ceil(tokens / VLLM_BLOCK) + 1) * VLLM_BLOCK * kv_bytes_per_token(config, width)


def slot_bytes(shape: Shape, rank: int, width: int) -> int:
    """vLLM's copy of one adapter: every linear layer, in the compute type, at the next rank vLLM knows."""
    held = next((r for r in SLOT_RANKS if r >= rank), rank)
    return shape.layers * sum(linear.inputs + linear.outputs for linear in shape.linears) * held * width


def vllm_bytes(shape: Shape, width: int, sequences: int) -> int:
    """vLLM's forward pass: an MLP of VLLM_TOKENS tokens, the largest weight as numbers, 16 bytes for each logit sampled from."""
    forward = VLLM_TOKENS * (3 * shape.inner + 4 * shape.hidden) * width
    return forward + shape.largest * width + 16 * sequences * shape.vocabulary


def generate_bytes(shape: Shape, p: Pass, rows: int, prompt: int, tokens: int) -> int:
    """transformers' generate() beside its cache: all prompts in one pass, or later one layer's keys and values once for each
    query head, a longer copy of one of them, and 20 bytes for each logit."""
    prefill = rows * prompt * forward_bytes(shape, p)
    decode = rows * tokens * p.width * (2 * shape.query + shape.kv_heads * shape.head_dim) + 20 * rows * shape.vocabulary
    return max(prefill, decode)
