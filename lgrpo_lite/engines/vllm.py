# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingImports=false
# (this file has the name of the package that it imports)
"""vLLM in this process. It loads the base weights, which the trainer shares; adapters go in by version.

The public parts of vLLM this rests on: LLM.apply_model (its module), LoRARequest (a PEFT folder
under a new name and id each version, since a reused one serves the old adapter or its cached
prefixes), logprobs_mode=processed_logprobs, cache_salt, sleep(level=0) with release_kv_cache_memory
(memory for training; the weights stay).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from httpx import HTTPError

from lgrpo_lite import progress
from lgrpo_lite.engines.adapter import AdapterFolder, checksum
from lgrpo_lite.engines.shared import Unshareable, share
from lgrpo_lite.engines.vllm_fit import cache_of, check_version, serving_dtype
from lgrpo_lite.engines.vllm_sampler import VllmSampler, longest_request
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, OutOfMemory
from lgrpo_lite.machine.facts import gpu_processes
from lgrpo_lite.policy.budget import GIB, SLOT_RANKS, sequences_at_once
from lgrpo_lite.policy.checkpoint import random_kept
from lgrpo_lite.policy.fetch import fetch_ahead
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.load import adapted, config_of, device_of, empty_base, locate, settle
from lgrpo_lite.policy.memory import free_bytes, out_of_memory
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe

CPU_BLOCK = 32  # tokens a cache block; vLLM's own 128 on a CPU would never share a short prompt
STEPS_TO_IDLE = 4  # vLLM has two batches in flight at most; a step of an engine that is idle does nothing
# of the GPU, which vLLM asks to be free at its start; with the size of the cache given it means no more
SHARE = 0.01
NO_ADAPTER = -1  # version of a sampler that was never handed an adapter
ENVIRONMENT = {  # read by vLLM when it is imported
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: that is what sharing weights means
    "VLLM_CONFIGURE_LOGGING": "0",  # its messages go where ours go
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """`share_weights` is true while the policy's base weights are vLLM's; `notes` say so when they cannot be.

    `releases`: whether the memory of keys and values goes back after a rollout; `told`: what was found out
    since the start.
    """

    caches_prefixes = True

    def __init__(self, recipe: Recipe):
        self.notes: tuple[str, ...] = ()
        self.notices: list[str] = []
        self.recipe = recipe
        self.share_weights = recipe.rollout.vllm.share_weights
        check_version(recipe.where("rollout.engine"))
        # refuses a card, before anything is downloaded
        serving_dtype(recipe.model.weights, recipe.where("rollout.engine"))
        self.context = longest_request(recipe, config_of(recipe.model, recipe.where("model.id")))
        self.on_gpu = device_of().type == "cuda"
        self.folder = AdapterFolder()
        self.llm = self._start()
        self._paused = False
        self.releases = self.on_gpu and self._can_release()
        self._synced: tuple | None = None
        self._request: Any = None
        self._count = 0

    # ------------------------------------------------------------------------------------------- start

    def _start(self):
        os.environ.update(ENVIRONMENT)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would win over kv_cache_memory_bytes
        model = fetch_ahead(
            locate(self.recipe.model.id, revision=self.recipe.model.revision), self.recipe.model.revision
        )
        progress.told("starting vLLM", 0)
        from vllm import LLM

        unpacked = nullcontext()
        if self.share_weights and not self.on_gpu:
            unpacked = _weights_as_loaded()
        try:
            with unpacked, random_kept():  # vLLM seeds the process
                return LLM(**self._arguments(model))
        except torch.OutOfMemoryError as error:
            raise self._no_room(error) from error
        except (AssertionError, HTTPError, NotImplementedError, OSError, RuntimeError, ValueError) as error:
            if "memory" in str(error).lower():
                raise self._no_room(error) from error
            fix = "run `lgrpo-lite doctor`, or set rollout.engine=transformers"
            what = f"vLLM does not start: {_first_line(error)}"
            raise EnvironmentFault(what, where=self.recipe.where("rollout.engine"), fix=fix) from error
        finally:
            progress.told("starting vLLM", 1, 1)

    def _arguments(self, folder: str) -> dict[str, Any]:
        """`folder`: the model's, or its name on the Hub."""
        model = self.recipe.model
        vllm = self.recipe.rollout.vllm
        assert model.lora is not None, "capabilities refuse recipes without an adapter"
        arguments = {
            "model": folder,
            "revision": None if Path(folder).is_dir() else model.revision,
            "dtype": str(serving_dtype(model.weights)).rpartition(".")[2],
            # not the model's own top-p
            "seed": self.recipe.seed,
            "skip_tokenizer_init": not self.recipe.rollout.stop,  # stop strings alone are told from text
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "max_logprobs": 1,
            "enable_prefix_caching": True,
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": next(r for r in SLOT_RANKS if r >= model.lora.rank),
            "max_model_len": self.context,
            "max_num_seqs": sequences_at_once(self.recipe),
            "kv_cache_memory_bytes": self._kv_bytes(),
            "enforce_eager": not (vllm.cuda_graphs and self.on_gpu),
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
        }
        if model.weights == "nf4":
            arguments |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
        if self.on_gpu:
            arguments |= {"enable_cumem_allocator": True, "gpu_memory_utilization": SHARE}
        else:
            arguments |= {"block_size": CPU_BLOCK}
        return arguments

    def _kv_bytes(self) -> int:
        """Room for all answers of a step, or what is free beside all else; for one answer at least."""
        if self.recipe.rollout.vllm.kv_cache_gb:
            return int(self.recipe.rollout.vllm.kv_cache_gb * GIB)
        free = free_bytes(device_of())
        if not self.on_gpu:
            free //= 2
        config = config_of(self.recipe.model).to_dict()
        return cache_of(self.recipe, config, self.context, free)

    def _no_room(self, error: Exception, *, started: bool = False) -> OutOfMemory:
        """Of the start, or where the cache cannot come back (`started`); names who else is on the GPU."""
        key = "rollout.vllm.kv_cache_gb"
        what = f"vLLM finds no room: {_first_line(error)}"
        if started:
            fix = f"then --resume auto goes on; or start again under another --name with a smaller {key}"
        else:
            lower = f"set {key} or rollout.vllm.max_sequences lower"
            fix = f"{lower}; `lgrpo-lite plan --fit` proposes settings"
        others = []
        for process in gpu_processes():
            if process.pid != os.getpid():
                size = f"{process.bytes / 2**30:.1f} GiB"
                others.append(f"PID {process.pid} ({process.name}, {size})")
        if others:
            what += f"; also on this GPU: {', '.join(others)}"
            fix = f"stop the other process, {fix}"
        return OutOfMemory(what, where=self.recipe.where(key), fix=fix)

    def _can_release(self) -> bool:
        """Whether the memory of keys and values comes back without touching the weights; tried once, noted.

        Where it does, the cache sleeps until the first `serving`: what is built until then has that memory.
        """
        try:
            self._pause()
            self.llm.release_kv_cache_memory()
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            self.notes += (f"vLLM keeps its KV cache while training: {_first_line(error)}",)
            self._wake()
            return False
        return True

    @property
    def cache_stays(self) -> int:
        """Bytes of keys and values that are on the GPU while the policy is trained too."""
        if self.releases or not self.on_gpu:
            return 0
        return self.llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes

    # ------------------------------------------------------------ the shared base

    @property
    def served(self) -> torch.nn.Module:
        """vLLM's own module."""
        return self.llm.apply_model(lambda module: module)[0]

    def network(self, recipe: Recipe):
        """The policy's network on vLLM's tensors; None where it has to load a second copy, as `notes` say."""
        if not self.share_weights:
            return None
        dtype = serving_dtype(recipe.model.weights)
        try:
            net = empty_base(recipe.model, dtype, recipe.where("model.id"))
            share(self.served, net, dtype)
        except Unshareable as reason:
            self.share_weights = False
            self.notes += (f"the base weights are there twice, vLLM's and the trainer's: {reason}",)
            return None
        return adapted(settle(net, dtype), recipe)

    def fingerprint(self) -> str | None:
        """Of vLLM's own copy. None where that is the policy's, or where a CPU has packed it out of reach."""
        if self.share_weights or (not self.on_gpu and self.recipe.model.weights != "nf4"):
            return None
        return fingerprint(self.served)

    # ------------------------------------------------------------------------------------------- serving

    @contextmanager
    def serving(self, policy: Policy) -> Iterator["VllmSampler"]:
        """Wakes the cache, hands over the adapter if it changed; memory goes back on the way out."""
        self._wake()
        try:
            self._sync(policy)
            version = self._synced[0] if self._synced else NO_ADAPTER
            yield VllmSampler(self.llm, policy, self._request, version=version)
        finally:
            self._release()

    def _sync(self, policy: Policy) -> None:
        state = (policy.version, checksum(policy))
        if state == self._synced:
            return
        from vllm.lora.request import LoRARequest

        self._count += 1
        path = self.folder.publish(policy)
        name = f"{self.folder.path.name}-v{self._count}"
        fresh = LoRARequest(name, self._count, str(path))
        if self._request is not None:
            self.llm.llm_engine.remove_lora(self._request.lora_int_id)
        try:
            loaded = self.llm.llm_engine.add_lora(fresh)
        except (RuntimeError, ValueError) as error:
            what = f"vLLM refuses the adapter: {_first_line(error)}"
            fix = "use model.lora.targets=all-linear, or set rollout.engine=transformers"
            raise ConfigError(what, where=self.recipe.where("model.lora"), fix=fix) from error
        if not loaded or not self.llm.reset_prefix_cache():
            where = f"policy version {policy.version}"
            fix = "--resume auto goes on; please report it"
            raise LgrpoError("vLLM did not take the new adapter", where=where, fix=fix)
        self.folder.drop(path)  # it is in vLLM's memory
        self._synced, self._request = state, fresh

    def _release(self) -> None:
        """Whatever keeps vLLM from it ends no run: the cache stays from here on, and that is told."""
        if not self.releases:
            return
        try:
            self._pause()
            self.llm.release_kv_cache_memory()
        except Exception as error:
            self.releases = False
            self.notices.append(f"vLLM keeps its KV cache while training from here on: {_first_line(error)}")
            with suppress(OutOfMemory):  # the next `serving` meets it again
                self._wake()

    def _pause(self) -> None:
        """Stop the scheduler. It forgets ended requests and takes in batches in flight in later steps."""
        for _ in range(STEPS_TO_IDLE):
            self.llm.llm_engine.step()
        self.llm.sleep(level=0)
        self._paused = True

    def _wake(self) -> None:
        """OutOfMemory where somebody else has taken the room of the cache; the next call tries again."""
        if not self._paused:
            return
        if self.on_gpu:
            torch.cuda.empty_cache()
        try:
            self.llm.wake_up()
        except RuntimeError as error:  # what the allocator of vLLM raises, and torch's own
            if not out_of_memory(error):
                raise
            raise self._no_room(error, started=True) from error
        self._paused = False

    def close(self) -> None:
        """vLLM's memory goes with the object; a policy that stands on its tensors keeps those.

        A cache that sleeps is woken: vLLM would unmap it a second time, and its allocator then frees nothing.
        """
        self.folder.close()
        with suppress(OutOfMemory):
            self._wake()
        self.llm.llm_engine.engine_core.shutdown()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _weights_as_loaded() -> Iterator[None]:
    """On a CPU vLLM packs unquantised weights for its kernels and drops the originals; inside it does not."""

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        object.__setattr__(layer, "cpu_linear", torch.nn.functional.linear)

    from vllm.model_executor.layers import utils

    packing = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = plain
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packing
