"""What keeps a fault from becoming a broken run: finite checks before every update, smaller passes on OOM."""

import gc
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from lgrpo_lite.errors import OutOfMemory
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.memory import layers_of, out_of_memory, recompute
from lgrpo_lite.train.run import Run
from lgrpo_lite.types import Group

T = TypeVar("T")
MIN_TOKENS = 32  # of a micro-batch; below it every answer is one of its own anyway
MAX_REFUSED = 3  # steps in a row without a finite loss before the run gives up


class NonFinite(Exception):
    """A number of the update is NaN or infinite. Raised before any parameter moved.

    `groups`: the answers of the step, to look at.
    """

    def __init__(self, what: str, groups: Sequence[Group] = ()):
        super().__init__(what)
        self.groups = groups


def check_finite(step: int, groups: Sequence[Group], **numbers: float | None) -> None:
    """Raise NonFinite naming the first number that is not finite."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise NonFinite(f"{name} is {value} at step {step}", groups)


def within_memory(run: Run, attempt: Callable[[], T]) -> T:
    """attempt() once it fits: on out-of-memory with half the micro-batch, at last with all
    layers recomputed, and told so.

    `attempt` begins anew: gradients are cleared and random numbers drawn again, so the step is the one it
    would have been. Nothing left to shrink: OutOfMemory (exit 4).
    """
    while True:
        random = checkpoint.random_state()
        try:
            return attempt()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            reason = _words(error)
        run.optimizer.zero_grad()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        checkpoint.set_random_state(random)
        run.notices.append(f"out of memory ({reason}): {_shrink(run, reason)}, and the same step again")


def _words(error: Exception) -> str:
    """What torch says of it, without where in its source: 'DefaultCPUAllocator: …',
    'CUDA out of memory …'.
    """
    text = str(error).strip() or type(error).__name__
    return text[max(0, text.find("DefaultCPUAllocator")) :].split(". ")[0]


def _shrink(run: Run, reason: str) -> str:
    """Make a pass smaller; what was done."""
    if run.micro_tokens > MIN_TOKENS:
        run.micro_tokens //= 2
        return f"memory.micro_tokens is {run.micro_tokens} from here on"
    layers = layers_of(run.policy.base)
    if not all(layer.gradient_checkpointing for layer in layers):
        recompute(run.policy.base, len(layers))
        return "all layers are recomputed from here on"
    raise OutOfMemory(
        f"a pass of a single answer does not fit: {reason}",
        where="memory, update",
        fix="lower model.max_new_tokens, or set memory.offload_activations=true; --resume auto goes on",
    )
