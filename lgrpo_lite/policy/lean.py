"""Makes a network with an adapter keep less for its backward pass: ops/lean.py in place of
what PEFT and transformers do.

A module stays of its class (it becomes one of a subclass), with its weights, its names and all that is saved.
Only modules are changed of which a probe says that nothing else would come out.
"""

import inspect
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lgrpo_lite.ops.lean import adapter, rms_norm, swiglu

MLP = ("gate_proj", "up_proj", "down_proj", "act_fn")


def install(net: nn.Module) -> None:
    """For every adapted linear layer, gated MLP and RMS norm of `net`, its base frozen. Twice is once."""
    for module in net.modules():
        for part in (_Adapted, _GatedMlp, _Norm):
            if isinstance(module, part) or "forward" in vars(module):
                continue
            if part.fits(module):
                module.__class__ = _lean(part, type(module))


@cache
def _lean(part: type, kind: type) -> type:
    return type(kind.__name__, (part, kind), {"__module__": kind.__module__})


class _Adapted:
    """A linear layer with PEFT's LoRA. Whatever is out of the ordinary goes PEFT's own way."""

    @staticmethod
    def fits(layer: Any) -> bool:
        if not isinstance(layer, LoraLayer) or layer.lora_variant or any(layer.lora_bias.values()):
            return False
        return isinstance(layer.get_base_layer(), nn.Linear)

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        (name,) = active
        y = self.base_layer(x)
        return adapter(
            self.lora_dropout[name](x),
            y,
            self.lora_A[name].weight,
            self.lora_B[name].weight,
            self.scaling[name],
        )


class _GatedMlp:
    """down(silu(gate(x)) · up(x))"""

    @staticmethod
    def fits(mlp: Any) -> bool:
        if not all(hasattr(mlp, name) for name in MLP):
            return False
        weight = _numbers(3, 8, 8)
        x = _numbers(8, 5) * torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0])  # some would be clamped
        layers = {name: weight[i].matmul for i, name in enumerate(MLP[:3])}
        stand_in = SimpleNamespace(**layers, act_fn=mlp.act_fn)
        return _same(mlp, _GatedMlp, stand_in, x)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class _Norm:
    """weight · x / √(mean x² + ε), with a weight that does not learn."""

    @staticmethod
    def fits(norm: Any) -> bool:
        if not hasattr(norm, "variance_epsilon") or any(p.requires_grad for p in norm.parameters()):
            return False
        weight, x = _numbers(9, 8).to(torch.bfloat16).split([1, 8])
        stand_in = SimpleNamespace(weight=weight[0], variance_epsilon=norm.variance_epsilon)
        return _same(norm, _Norm, stand_in, x)

    def forward(self: Any, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.variance_epsilon)


def _same(module: Any, part: Any, stand_in: Any, x: Tensor) -> bool:
    """Bit for bit, with `stand_in` for the module. A class that asks for more, or takes more than x (a gate
    beside it), does something else.
    """
    if len(inspect.signature(type(module).forward).parameters) != 2:
        return False
    with torch.no_grad():
        try:
            return torch.equal(type(module).forward(stand_in, x), part.forward(stand_in, x))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return False


def _numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
