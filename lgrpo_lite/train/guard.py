"""What keeps a fault from becoming a broken run: finite checks before every update,
and the two-stage Ctrl-C.
"""

import gc
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from lgrpo_lite.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_TIME_LIMIT, OutOfMemory
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.memory import layers_of, out_of_memory, recompute
from lgrpo_lite.train.run import Run

T = TypeVar("T")
MIN_TOKENS = 32  # of a micro-batch; below it every answer is one of its own anyway
MAX_REFUSED = 3  # steps in a row without a finite loss before the run gives up


class NonFinite(Exception):
    """A number of the update is NaN or infinite. Raised before any parameter moved."""


def check_finite(step: int, **numbers: float | None) -> None:
    """Raise NonFinite naming the first number that is not finite."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise NonFinite(f"{name} is {value} at step {step}")


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
        run.told.append(f"out of memory ({reason}): {_shrink(run, reason)}, and the same step again")


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


class StopRequest:
    """Ctrl-C or SIGTERM asks; the loop stops after the step and saves. A second one ends the process at once.

    `exit_code` is None until something asked: 130 (SIGINT), 143 (SIGTERM), 75 (time limit).
    """

    def __init__(self, time_limit_minutes: float | None = None):
        self.exit_code: int | None = None
        self._deadline = time.monotonic() + 60 * time_limit_minutes if time_limit_minutes else math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether to stop now; true from the first signal or the time limit on."""
        if self.exit_code is None and time.monotonic() > self._deadline:
            self.exit_code = EXIT_TIME_LIMIT
        return self.exit_code is not None

    def _asked(self, number: int, _frame) -> None:
        code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
        if self.exit_code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise Stopped(code)
        self.exit_code = code
        text = "\nfinishing this step, then saving; once more to stop now\n"
        os.write(2, text.encode())  # print() is not safe inside a signal handler


class Stopped(BaseException):
    """The second signal: unwinds everything (the terminal is restored), nothing more is saved."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code
