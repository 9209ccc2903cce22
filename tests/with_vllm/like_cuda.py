"""vLLM on a CPU in the two shapes it has: as it comes, and as it is on CUDA; as a program,
the command line in the second.

On CUDA one batch is in flight while the next is scheduled, and the memory of keys and values can be given
back. vLLM switches both off on a CPU. Here scheduler and engine core are as on CUDA; the pass itself stays
what a CPU can do. What is given back is written over, and a pass while it is away ends as it would there.

    python tests/with_vllm/like_cuda.py train tiny-math rollout.engine=vllm
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

SHAPES = ("as on a CPU", "as on CUDA")
# what is read where keys and values were given back; finite, since masked places are read and multiplied by 0
LOST = 1000.0
NO_ROOM = "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:139"  # vLLM's own words


@contextmanager
def shaped(shape: str) -> Iterator[None]:
    """Inside it an engine that is started has that shape; it is to live inside it too."""
    with ExitStack() as stack:
        for target, name, changed in _changes() if shape == "as on CUDA" else ():
            stack.enter_context(patch.object(target, name, changed))
        yield


def _changes() -> Iterator[tuple[type, str, object]]:
    """(a class, its attribute, what that is on CUDA)."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from lgrpo_lite.engines.vllm import VllmEngine

    settle, prepare = CpuPlatform.check_and_update_config.__func__, GPUModelRunner.__init__
    start, execute = VllmEngine.__init__, CPUWorker.execute_model

    def scheduled_ahead(cls, vllm_config) -> None:
        settle(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    def one_pass_at_a_time(self, vllm_config, *more, **options) -> None:
        vllm_config.scheduler_config.async_scheduling = False
        try:
            prepare(self, vllm_config, *more, **options)
        finally:
            vllm_config.scheduler_config.async_scheduling = True

    def discard(self, tags: tuple[str, ...]) -> None:
        assert tags == ("kv_cache",), "the weights are the trainer's too"
        for kept in self.model_runner.kv_caches:
            kept.fill_(LOST)
        self.away = True

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.away = False

    def execute_model(self, *what, **options):
        if getattr(self, "away", False):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return execute(self, *what, **options)

    def tried_to_release(self, recipe) -> None:
        start(self, recipe)
        self.releases = self._can_release()

    yield CpuPlatform, "check_and_update_config", classmethod(scheduled_ahead)
    yield GPUModelRunner, "__init__", one_pass_at_a_time
    yield CPUWorker, "discard", discard
    yield CPUWorker, "wake_up", wake_up
    yield CPUWorker, "execute_model", execute_model
    yield VllmEngine, "__init__", tried_to_release


@contextmanager
def seeds_from_numpy() -> Iterator[None]:
    """Inside it a request is seeded as Model Runner V2 does it: by numpy's global
    generator, when it reaches the worker.
    """
    import numpy as np
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    update, limits = GPUModelRunner._update_states, np.iinfo(np.int64)

    def seeded(self, scheduler_output):
        for request in scheduler_output.scheduled_new_reqs:
            settings = copy.copy(request.sampling_params)
            if settings.seed is None:
                settings.seed = int(np.random.randint(limits.min, limits.max))
            # kept since it was asked for: without a seed it is another
            vars(settings).pop("sampling_type", None)
            request.sampling_params = settings
        return update(self, scheduler_output)

    with patch.object(GPUModelRunner, "_update_states", seeded):
        yield


@contextmanager
def filled_by_another(now: Callable[[], bool]) -> Iterator[None]:
    """Inside it another process has taken the room of the cache wherever it is to come back and `now` holds."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    wake_up = CPUWorker.wake_up

    def full(self, tags: list[str] | None = None) -> None:
        if now():
            raise RuntimeError(NO_ROOM)
        wake_up(self, tags)

    with patch.object(CPUWorker, "wake_up", full):
        yield


if __name__ == "__main__":
    from lgrpo_lite.cli.main import main

    with shaped("as on CUDA"):
        code = main()
    sys.exit(code)
