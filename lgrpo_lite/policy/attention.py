"""Attention over sequences that lie end to end: never across a border, and no work for foreign tokens.

The linear layers of a model see one row of tokens without padding. Only here do sequences become rows again,
in buckets of similar length, so that plain scaled_dot_product_attention (causal, no mask) does the work on
any device; with CUDA and 16 bits torch's variable-length FlashAttention does it without rows at all.
Registered with transformers under NAME; the plan arrives as a keyword that models hand down to their
attention layers. Without a plan it is transformers' own `sdpa`.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lgrpo_lite.batch import ranges
from lgrpo_lite.layout import Segment

NAME = "lgrpo"
SLACK, SMALL = 1.25, 512  # a bucket may be padded by this factor, or up to so many tokens
POSITIONS = ("position_ids", "cache_position")  # told to attention, and in the keys already
_watching: list[set[int]] = []  # one set for each `watched` that is open


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments as padded rows. Padding points at token 0 and is dropped, or masked among the keys."""

    rows: int
    query: Int[Tensor, " RQ"]
    key: Int[Tensor, " RK"]
    mask: Bool[Tensor, "#R 1 Q K"] | None  # None: causal, keys are the queries' own

    def to(self, device: torch.device) -> "Bucket":
        mask = None if self.mask is None else self.mask.to(device)
        return Bucket(self.rows, self.query.to(device), self.key.to(device), mask)


@dataclass(frozen=True, slots=True)
class Plan:
    """How the tokens of one forward pass attend to each other."""

    buckets: tuple[Bucket, ...]
    order: Int[Tensor, " N"]  # where a token's output stands in the buckets' rows, end to end
    key: Int[Tensor, " K"]  # keys of all segments, end to end; equal to all tokens where nothing is shared
    ends_q: Int[Tensor, " S1"]  # int32 borders of segments in the tokens
    ends_k: Int[Tensor, " S1"]  # and in `key`
    longest: tuple[int, int]
    shares: bool
    varlen: bool = False

    def to(self, device: torch.device, *, varlen: bool) -> "Plan":
        return replace(
            self,
            buckets=() if varlen else tuple(bucket.to(device) for bucket in self.buckets),
            order=self.order.to(device),
            key=self.key.to(device),
            ends_q=self.ends_q.to(device),
            ends_k=self.ends_k.to(device),
            varlen=varlen,
        )


def plan(segments: Sequence[Segment]) -> Plan:
    """Segments that cover tokens 0..N-1 in order, each once."""
    filled = [s for s in segments if s.length]
    groups = []
    for shares in (False, True):
        groups += _bucketed([s for s in filled if (s.context > 0) == shares])
    length = torch.tensor([s.length for s in filled])
    total = torch.tensor([s.context + s.length for s in filled])
    return Plan(
        buckets=tuple(_bucket(group) for group in groups),
        order=_order(groups),
        key=_keys(filled),
        ends_q=_ends(length),
        ends_k=_ends(total),
        longest=(int(length.max()), int(total.max())),
        shares=any(s.context for s in filled),
    )


def _order(groups: Sequence[Sequence[Segment]]) -> Tensor:
    """Where each token stands in the padded rows of all buckets, end to end."""
    order = torch.empty(sum(s.length for group in groups for s in group), dtype=torch.long)
    begin = 0
    for group in groups:
        width = max(s.length for s in group)
        for s in group:
            order[s.start : s.start + s.length] = torch.arange(begin, begin + s.length)
            begin += width
    return order


def _keys(segments: Sequence[Segment]) -> Tensor:
    """The keys of each segment, end to end: its context, then its own tokens."""
    start, length = [], []
    for s in segments:
        start += [s.context_start, s.start]
        length += [s.context, s.length]
    key, _ = ranges(torch.tensor(start), torch.tensor(length))
    return key


def _bucketed(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Neighbours in length share a bucket as long as padding stays small."""
    groups: list[list[Segment]] = []
    for s in sorted(segments, key=lambda s: (-s.context, -s.length)):
        if groups and _joins(s, groups[-1]):
            groups[-1].append(s)
        else:
            groups.append([s])
    return groups


def _joins(s: Segment, group: Sequence[Segment]) -> bool:
    """Whether the padding of `group` stays small with `s` in it."""
    if s.context < 0.8 * group[0].context:
        return False
    lengths = [t.length for t in (*group, s)]
    area = len(lengths) * max(lengths)
    return area <= max(SLACK * sum(lengths), SMALL)


def _bucket(group: Sequence[Segment]) -> Bucket:
    rows = len(group)
    wide = max(s.length for s in group)
    ahead = max(s.context for s in group)
    own, before = torch.arange(wide), torch.arange(ahead)
    start, length, context_start, context = (torch.tensor(x)[:, None] for x in zip(*group, strict=True))
    query = torch.where(own < length, start + own, 0)
    if not ahead:
        return Bucket(rows, query.flatten(), query.flatten(), None)
    is_context = before < context
    key = torch.cat([torch.where(is_context, context_start + before, 0), query], 1)
    every_context = torch.ones(wide, ahead, dtype=torch.bool)
    causal = torch.cat([every_context, own <= own[:, None]], 1)
    real = torch.cat([is_context, torch.ones(rows, wide, dtype=torch.bool)], 1)
    mask = causal[None] if bool(real.all()) else causal & real[:, None]
    return Bucket(rows, query.flatten(), key.flatten(), mask[:, None])


def _ends(length: Tensor) -> Tensor:
    return torch.nn.functional.pad(length.cumsum(0), (1, 0)).to(torch.int32)


def attend(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask, *, plan: Plan | None = None, **options
):
    """transformers' AttentionInterface: query [B H N d], key and value [B H' N d] -> [B N H d]."""
    if plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    _refuse_unknown(options, plan, attention_mask)
    for seen in _watching:
        seen.add(id(module))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N H d]
    scale = options.get("scaling")
    if plan.varlen:
        if plan.shares:
            k, v = k[plan.key], v[plan.key]
        return _varlen(q, k, v, plan, scale)[None], None
    outs = [_padded(q, k, v, bucket, scale) for bucket in plan.buckets]
    return torch.cat(outs)[plan.order][None], None


def _refuse_unknown(options: dict, plan: Plan, mask: Tensor | None) -> None:
    window = options.get("sliding_window")
    narrow = window and window < plan.longest[1]
    if options.get("softcap") or options.get("s_aux") is not None or narrow:
        what = "sliding windows, soft-caps and sinks of attention are for the layout `rows`"
        raise NotImplementedError(what)
    # what the policy hands down is one 0: a larger mask is the model's own, of positions or of chosen keys
    if mask is not None and mask.numel() > 1:
        raise NotImplementedError("a mask that the model makes for itself is for the layout `rows`")
    for name, value in options.items():  # which keys are chosen, a bias by position
        if isinstance(value, Tensor) and name not in POSITIONS:
            raise NotImplementedError(f"what {name!r} does to the model's attention is for the layout `rows`")


def _padded(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, scale: float | None) -> Tensor:
    """One bucket's outputs, padding included, rows end to end: [RQ H d]."""

    def rows_of(x: Tensor, tokens: Tensor) -> Tensor:
        return x[tokens].view(bucket.rows, -1, *x.shape[1:]).transpose(1, 2)

    rows_q = rows_of(q, bucket.query)
    rows_k = rows_of(k, bucket.key)
    rows_v = rows_of(v, bucket.key)
    causal = bucket.mask is None
    groups = q.shape[1] // k.shape[1]
    native = causal or not q.is_cuda  # with a mask, CUDA's fast kernels know no grouped heads
    if groups > 1 and not native:
        rows_k = rows_k.repeat_interleave(groups, 1)
        rows_v = rows_v.repeat_interleave(groups, 1)
    out = scaled_dot_product_attention(
        rows_q,
        rows_k,
        rows_v,
        attn_mask=bucket.mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=groups > 1 and native,
    )
    return out.transpose(1, 2).flatten(0, 1)


def _varlen(q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # causal; a shorter query side is aligned with the end of its keys
    options: dict = {"scale": scale, "window_size": (-1, 0)}
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and "enable_gqa" in _varlen_options():
        options["enable_gqa"] = True
    elif groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return varlen_attn(q, k, v, plan.ends_q, plan.ends_k, *plan.longest, **options)  # pyright: ignore


def has_varlen() -> bool:
    """Whether this torch has variable-length attention with windows."""
    return {"window_size", "scale"} <= _varlen_options()


@cache
def _varlen_options() -> frozenset[str]:
    """Parameters of torch's variable-length attention; of a torch without it none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def watched() -> Iterator[set[int]]:
    """The ids of the modules that attend by a plan while it is open."""
    seen: set[int] = set()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def window_of(base) -> int | None:
    """Tokens of the narrowest window or chunk that a layer attends in; None: all there are.

    A sequence of at most so many tokens is attended to as if there were no window.
    """
    config = base.config.get_text_config()
    if not getattr(config, "use_sliding_window", True):
        return None
    widths = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((width for width in widths if width), default=None)


def install(base) -> str | None:
    """Make `base` attend through `attend`. Else why not: attention of its own, or dropout."""
    config = base.config.get_text_config()
    if getattr(config, "attention_dropout", 0.0):
        return f"its attention has a dropout of {config.attention_dropout}"
    if not base._can_set_attn_implementation():
        return "its attention is not that of transformers' AttentionInterface"
    base.set_attn_implementation(NAME)
    return None
