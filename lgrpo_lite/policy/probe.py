"""Made-up sequences to try a model with, and a policy as it is tried: without dropout, or in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lgrpo_lite.batch import Answer, TrainBatch, flatten
from lgrpo_lite.policy.memory import layers_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score

HALF = (torch.float16, torch.bfloat16)
PIECE = 8192  # tokens of the vocabulary that a head is float32 for at once


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


@contextmanager
def evaluating(policy: Policy) -> Iterator[None]:
    """No dropout."""
    training = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(training)


@contextmanager
def in_float32(policy: Policy) -> Iterator[None]:
    """Inside it `policy.logprobs` and `policy.model` compute in float32, without gradient, whatever they do
    otherwise.

    A layer's weights are float32 while it is at work and have their own bits again after it, so that no
    second copy of the model is made; a head works in pieces, embeddings are what they are in 16 bits. 4-bit
    weights are the numbers they stand for; 8-bit ones are still multiplied by bitsandbytes, which rounds
    what goes in.
    """
    if policy.dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            yield
        return
    dtype, policy.dtype = policy.dtype, torch.float32
    hooks = []
    heads = []
    for unit in _units(policy.base):
        if isinstance(unit, nn.Embedding):
            hooks.append(unit.register_forward_hook(lambda module, given, out: out.float()))
            continue
        if type(unit) is nn.Linear:
            heads.append((unit, vars(unit).get("forward")))
            unit.forward = partial(_in_pieces, unit)
            continue
        widened = _Widened(unit)
        hooks.append(unit.register_forward_pre_hook(widened.begin))
        hooks.append(unit.register_forward_hook(widened.end, always_call=True))
    try:
        with torch.no_grad():
            yield
    finally:
        policy.dtype = dtype
        for hook in hooks:
            hook.remove()
        for head, own in heads:
            del head.forward  # the class's is there again
            if own is not None:
                head.forward = own


def _units(base: Any) -> list[nn.Module]:
    """The modules that compute one after the other: whole layers, and what lies outside them, each once."""
    layers = layers_of(base)
    inside = {id(module) for layer in layers for module in layer.modules()}
    outside = [m for m in base.modules() if id(m) not in inside and _own_floats(m)]
    return [*layers, *outside]


def _in_pieces(head: nn.Linear, input: Tensor) -> Tensor:
    """input W^T + b in float32, PIECE rows of W at a time."""
    pieces = []
    for begin in range(0, head.out_features, PIECE):
        piece = slice(begin, begin + PIECE)
        bias = None if head.bias is None else head.bias[piece].float()
        pieces.append(nn.functional.linear(input, head.weight[piece].float(), bias))
    return torch.cat(pieces, -1)


def _own_floats(module: nn.Module) -> bool:
    return any(p.dtype in HALF for p in module.parameters(recurse=False))


class _Widened:
    """The 16-bit numbers of a module and of all in it, float32 between `begin` and `end`."""

    def __init__(self, unit: nn.Module):
        self.unit = unit
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.computed: list[tuple[Any, torch.dtype]] = []

    def begin(self, *_: Any) -> None:
        for tensor in (*self.unit.parameters(), *self.unit.buffers()):
            if tensor.dtype in HALF:
                self.kept.append((tensor, tensor.data))
                tensor.data = tensor.data.float()
        module: Any
        for module in self.unit.modules():
            if getattr(module, "compute_dtype", None) in HALF:  # a 4-bit layer of bitsandbytes
                self.computed.append((module, module.compute_dtype))
                module.compute_dtype = torch.float32

    def end(self, *_: Any) -> None:
        for tensor, data in self.kept:
            tensor.data = data
        for module, dtype in self.computed:
            module.compute_dtype = dtype
        self.kept, self.computed = [], []
