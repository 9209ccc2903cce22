"""A simulated card: FakeTensors of real models, and a ledger that gives them memory as
CUDA's caching allocator would.

    with Card(24 * GIB) as card:                     # torch.cuda.mem_get_info, memory_allocated, … answer from the ledger
        policy = fake_policy(card, "Qwen/Qwen2.5-3B", recipe) policy.logprobs(batch).logp.sum().backward() #
        shapes and live bytes of the real pass; OutOfMemoryError where it is full

Nothing is computed, so a 14B model takes seconds and no memory. What torch makes inside one kernel is added
by HIDDEN. The allocator's rules (sizes, best fit, splitting, freeing whole segments when the card is full)
are those of torch's c10/cuda/CUDACachingAllocator, with expandable segments and without.
"""

import weakref
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
ROUND, SMALL, SMALL_SEGMENT, LARGE_SEGMENT, LARGEST_OF_THOSE = 512, 2**20, 2 * 2**20, 20 * 2**20, 10 * 2**20


# ------------------------------------------------------------------------------------------- the caching allocator


@dataclass(eq=False, slots=True)
class Block:
    """A piece of a segment; neighbours in address are `before` and `after`."""

    size: int
    small: bool
    used: bool = False
    before: "Block | None" = None
    after: "Block | None" = None
    number: int = 0


class Allocator:
    """torch's caching allocator over `room()` bytes that the rest of the card leaves; all sizes in bytes."""

    def __init__(self, room):
        self.room = room  # () -> bytes of the card that are not this allocator's
        self.reserved = self.allocated = self.peak = 0
        self.free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self.count = 0

    def take(self, wanted: int) -> Block:
        """OutOfMemoryError where neither a cached block nor the card has room,
        also after the cache was emptied.
        """
        size = max(ROUND, -(-wanted // ROUND) * ROUND)
        small = size <= SMALL
        block = self._cached(size, small) or self._segment(size, small)
        if block is None:
            self.empty_cache()
            block = self._segment(size, small)
        if block is None:
            free = (self.room() - self.reserved) / GIB
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {wanted / GIB:.2f} GiB, {free:.2f} GiB is free. "
            )
        self._split(block, size)
        block.used = True
        self.allocated += block.size
        self.peak = max(self.peak, self.allocated)
        return block

    def give_back(self, block: Block) -> None:
        block.used = False
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and not other.used:
                self._forget(other)
                first, second = (other, block) if other is block.before else (block, other)
                block.size, block.before, block.after = first.size + second.size, first.before, second.after
                if block.before is not None:
                    block.before.after = block
                if block.after is not None:
                    block.after.before = block
        self._keep(block)

    def empty_cache(self) -> None:
        """Whole free segments go back to the card; one with a used block in it stays, as on a card."""
        for blocks in self.free.values():
            for _, _, block in list(blocks):
                if block.before is None and block.after is None:
                    self._forget(block)
                    self.reserved -= block.size

    def _cached(self, size: int, small: bool) -> Block | None:
        blocks = self.free[small]
        at = bisect_left(blocks, (size, -1))
        if at == len(blocks):
            return None
        return blocks.pop(at)[2]

    def _segment(self, size: int, small: bool) -> Block | None:
        if small:
            whole = SMALL_SEGMENT
        elif size < LARGEST_OF_THOSE:
            whole = LARGE_SEGMENT
        else:
            whole = -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        if self.reserved + whole > self.room():
            return None
        self.reserved += whole
        self.count += 1
        return Block(whole, small, number=self.count)

    def _split(self, block: Block, size: int) -> None:
        rest = block.size - size
        if rest < (ROUND if block.small else SMALL + 1):
            return
        self.count += 1
        left = Block(rest, block.small, before=block, after=block.after, number=self.count)
        if block.after is not None:
            block.after.before = left
        block.size, block.after = size, left
        self._keep(left)

    def _keep(self, block: Block) -> None:
        insort(self.free[block.small], (block.size, block.number, block))

    def _forget(self, block: Block) -> None:
        blocks = self.free[block.small]
        del blocks[bisect_left(blocks, (block.size, block.number, block))]


@dataclass(eq=False, slots=True)
class Range:
    """A used piece of the address space of an expandable segment."""

    begin: int
    size: int
    small: bool


class Expandable:
    """The same with expandable segments: one endless range of addresses for small tensors, one for others,
    whose pages are mapped where a tensor needs them and given back, when the card is full, where none lies in
    them."""

    def __init__(self, room):
        self.room = room
        self.allocated = self.peak = 0
        # mapped ones, and how many tensors lie in each
        self.pages: dict[bool, dict[int, int]] = {True: {}, False: {}}
        # (begin, end) in order; the last has no end
        self.holes: dict[bool, list[tuple[int, int]]] = {True: [], False: []}

    @property
    def reserved(self) -> int:
        return sum(len(pages) * PAGE[small] for small, pages in self.pages.items())

    def take(self, wanted: int) -> Range:
        size = max(ROUND, -(-wanted // ROUND) * ROUND)
        small = size <= SMALL
        holes = self.holes[small] or [(0, ENDLESS)]
        self.holes[small] = holes
        at = min(
            (i for i, (begin, end) in enumerate(holes) if end - begin >= size),
            key=lambda i: holes[i][1] - holes[i][0],
        )
        begin, end = holes[at]
        needed = range(begin // PAGE[small], (begin + size - 1) // PAGE[small] + 1)
        if not self._map(needed, small):
            self.empty_cache()
            if not self._map(needed, small):
                free = (self.room() - self.reserved) / GIB
                what = f"Tried to allocate {wanted / GIB:.2f} GiB, {free:.2f} GiB is free. "
                raise torch.OutOfMemoryError(f"CUDA out of memory. {what}")
        for page in needed:
            self.pages[small][page] += 1
        holes[at : at + 1] = [(begin + size, end)] if begin + size < end else []
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return Range(begin, size, small)

    def give_back(self, block: Range) -> None:
        self.allocated -= block.size
        holes, begin, end = self.holes[block.small], block.begin, block.begin + block.size
        for page in range(begin // PAGE[block.small], (end - 1) // PAGE[block.small] + 1):
            self.pages[block.small][page] -= 1
        at = bisect_left(holes, (begin, end))
        if at < len(holes) and holes[at][0] == end:
            end = holes.pop(at)[1]
        if at and holes[at - 1][1] == begin:
            at -= 1
            begin = holes.pop(at)[0]
        holes.insert(at, (begin, end))

    def empty_cache(self) -> None:
        for small, pages in self.pages.items():
            self.pages[small] = {page: count for page, count in pages.items() if count}

    def _map(self, needed: range, small: bool) -> bool:
        fresh = [page for page in needed if page not in self.pages[small]]
        if self.reserved + len(fresh) * PAGE[small] > self.room():
            return False
        self.pages[small].update(dict.fromkeys(fresh, 0))
        return True


PAGE = {True: SMALL_SEGMENT, False: LARGE_SEGMENT}
ENDLESS = 1 << 60


# ------------------------------------------------------------------------------------------- the card


def _dequantised(args) -> int:
    """A 4-bit product of many rows unpacks the weight first (bitsandbytes/backends/cuda/ops.py)."""
    rows = args[0].numel() // args[0].shape[-1]
    return prod(args[2]) * 2 if rows > 16 else 0


HIDDEN = {"bitsandbytes::gemm_4bit": _dequantised}  # bytes that live inside one kernel, by its arguments
CUBLAS = 32 * 2**20  # workspace of the matrix products, taken at the first


@dataclass
class Card:
    """`size`: bytes that torch sees; `context`: what CUDA itself keeps. `pool`: by
    name what vLLM holds, mapped now.

    As a context manager it is what torch.cuda says of the card, and every FakeTensor
    made inside takes memory of it.
    """

    size: int
    context: int = int(0.45 * GIB)
    others: int = 0  # bytes of another process
    pool: dict[str, int] = field(default_factory=dict)
    expandable: bool = True  # torch's segments, as policy/memory.py sets them

    def __post_init__(self):
        self.torch = (Expandable if self.expandable else Allocator)(
            lambda: self.size - self.context - self.others - sum(self.pool.values())
        )
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.blocks: dict[int, Block | Range | None] = {}  # by storage; None: in a pool
        self.counting = True
        self._stack = ExitStack()

    def free(self) -> int:
        """Of the card, as the driver tells."""
        return self.torch.room() - self.torch.reserved

    @property
    def used(self) -> int:
        return self.size - self.torch.room() + self.torch.allocated

    def map(self, name: str, size: int) -> None:
        """vLLM takes memory; where there is none the error of its own allocator."""
        if size > self.free():
            raise RuntimeError(
                f"CUDA Error: out of memory at cumem_allocator.cpp: {name}, {size / GIB:.2f} GiB"
            )
        self.pool[name] = size

    def unmap(self, name: str) -> None:
        self.pool.pop(name, None)

    def tensor(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        with self.mode:
            return torch.empty(*shape, dtype=dtype)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Tensors made inside take nothing: they are in a pool already."""
        self.counting = False
        try:
            yield
        finally:
            self.counting = True

    def seen(self, tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.blocks or not storage.nbytes():
            return
        self.blocks[key] = self.torch.take(storage.nbytes()) if self.counting else None
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        if (block := self.blocks.pop(key)) is not None:
            self.torch.give_back(block)

    def __enter__(self) -> "Card":
        cuda = {
            "mem_get_info": lambda *_: (self.free(), self.size),
            "memory_allocated": lambda *_: self.torch.allocated,
            "memory_reserved": lambda *_: self.torch.reserved,
            "max_memory_allocated": lambda *_: self.torch.peak,
            "reset_peak_memory_stats": lambda *_: setattr(self.torch, "peak", self.torch.allocated),
            "empty_cache": self.torch.empty_cache,
        }
        for name, answer in cuda.items():
            self._stack.enter_context(patch.object(torch.cuda, name, answer))
        self._stack.enter_context(_Ledger(self))
        self.torch.take(CUBLAS)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()


class _Ledger(TorchDispatchMode):
    """Every storage of a FakeTensor takes memory of the card until it is collected."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        hidden = HIDDEN.get(function.name())
        if hidden is not None and (size := hidden(args)):
            self.card.torch.give_back(self.card.torch.take(size))
        for tensor in tree_leaves(out):
            if isinstance(tensor, FakeTensor):
                self.card.seen(tensor)
        return out


# ------------------------------------------------------------------------------------------- a policy on it


def fake_policy(card: Card, recipe, *, layout: str | None = None):
    """The recipe's policy without numbers, as it stands on a card: base in the pool
    "weights", a fresh adapter beside it.

    nf4 is held as vLLM's plugin does (float32 absmax). `layout` settles the layout
    and variable-length attention.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from lgrpo_lite.policy import attention
    from lgrpo_lite.policy.load import attach_adapter, settle
    from lgrpo_lite.policy.policy import Policy
    from lgrpo_lite.policy.shape import find_config

    told = {k: v for k, v in find_config(recipe.model).items() if v is not None and not k.startswith("_")}
    config = AutoConfig.for_model(**told)
    config.eos_token_id = config.bos_token_id = config.pad_token_id = None
    dtype = torch.bfloat16
    with init_empty_weights(include_buffers=False):
        net = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    with card.outside():
        held = _fill(card, net, config, recipe.model.weights, dtype)
    card.map("weights", held)
    _settle_as_on_a_card(card)
    net = attach_adapter(settle(net, dtype), recipe.model, seed=0).train()
    for module in net.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.requires_grad:
                module._parameters[name] = torch.nn.Parameter(
                    card.tensor(*parameter.shape, dtype=parameter.dtype)
                )
    policy = Policy(net, None, temperature=1.0, dtype=dtype)
    policy.offload = recipe.memory.offload_activations
    reason = attention.install(policy.base)
    assert reason is None, reason
    policy.varlen = True
    policy.layouts = ("rows", "packed", "shared") if layout is None else (layout,)
    return policy


def _fill(card: Card, net, config, weights: str, dtype: torch.dtype) -> int:
    """Tensors of the base for `net`, on the meta device until now; their bytes."""
    import bitsandbytes.nn
    from bitsandbytes.functional import QuantState

    from lgrpo_lite.engines.shared import Piece, set_linear4bit, set_plain

    def packed(data, requires_grad=False, **known):
        """bitsandbytes' Params4bit cannot be made of a FakeTensor."""
        parameter = torch.nn.Parameter(data, requires_grad=False)
        for name, value in known.items():
            if name != "module":
                setattr(parameter, name, value)
        return parameter

    held = 0
    with patch.object(bitsandbytes.nn, "Params4bit", packed):
        for path, module in list(net.named_modules()):
            for leaf, empty in list(module.named_parameters(recurse=False)):
                if path.endswith("lm_head") and config.tie_word_embeddings:
                    continue
                quantised = (
                    weights == "nf4" and isinstance(module, torch.nn.Linear) and not path.endswith("lm_head")
                )
                if quantised and leaf == "weight":
                    count = empty.numel()
                    absmax, code = (card.tensor(n, dtype=torch.float32) for n in (-(-count // 64), 16))
                    state = QuantState(absmax, empty.shape, code, 64, "nf4", dtype)
                    data = card.tensor(-(-count // 2), 1, dtype=torch.uint8)
                    set_linear4bit(net, path, module, Piece(data, state), dtype)
                    held += data.nbytes + absmax.nbytes + code.nbytes
                else:
                    data = card.tensor(*empty.shape, dtype=dtype)
                    set_plain(net.get_submodule(path), path, leaf, empty, data)
                    held += data.nbytes
    net.tie_weights()
    return held


def _settle_as_on_a_card(card: Card) -> None:
    """The branches that ask for a CUDA tensor: products of halves that add up to float32."""
    from lgrpo_lite.ops import tiles

    made = tiles.Tiles.__init__

    def as_on_a_card(self, weight, bias, form, like, *, gradient):
        made(self, weight, bias, form, like, gradient=gradient)
        if form.low is None or not isinstance(like, FakeTensor):
            return
        self.half, self.split, self.compute, self.exact, self.free, self.wide = (
            True,
            False,
            form.low,
            False,
            False,
            None,
        )
        self.spare = torch.empty_like(self.buffer)
        self.low = like.new_empty(self.buffer.numel(), dtype=form.low)

    card._stack.enter_context(patch.object(tiles.Tiles, "__init__", as_on_a_card))
