# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportMissingImports=false
# (this file has the name of the package that it imports)
"""Unsloth in this process: it starts vLLM, whose weights the trainer shares; adapters go over in memory.

What this rests on: FastLanguageModel.from_pretrained with fast_inference=True and get_peft_model;
`vllm_engine` and `load_lora`, which they set on the model; and the switches of ENVIRONMENT.
tests/with_unsloth holds them against the source.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lgrpo_lite import progress
from lgrpo_lite.engines.adapter import AdapterFolder
from lgrpo_lite.engines.vllm import ENVIRONMENT as VLLM_ENVIRONMENT
from lgrpo_lite.engines.vllm_sampler import VllmSampler, longest_request
from lgrpo_lite.errors import ConfigError, EnvironmentFault, LgrpoError, OutOfMemory
from lgrpo_lite.machine.stacks import Package, compare, installed_packages
from lgrpo_lite.policy import budget, passes
from lgrpo_lite.policy.fetch import OTHERS, WEIGHTS, download_bar
from lgrpo_lite.policy.load import config_of, locate, settle
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Model, Recipe

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
NEEDED = ("unsloth", "unsloth-zoo", "vllm", "transformers", "trl", "torch")
FILES = (*WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja")  # of a model on the Hub
DTYPE = torch.bfloat16
ENVIRONMENT = VLLM_ENVIRONMENT | {  # read by Unsloth when it is imported or loads
    "UNSLOTH_VLLM_STANDBY": "1",  # keys and values leave the GPU while training, weights stay
    "UNSLOTH_VLLM_MERGED_ROLLOUT": "0",  # it would add B·A to 16-bit base weights for each rollout
    "UNSLOTH_DISABLE_STATISTICS": "1",  # it would report each start to the Hub
}


class UnslothEngine:
    """Sampler and trainer share Unsloth's base weights; one GPU. Unfit: ConfigError or EnvironmentFault."""

    caches_prefixes = True
    expandable_segments = False  # its standby refuses them

    def __init__(self, recipe: Recipe):
        self.notes: tuple[str, ...] = ()
        self.recipe = recipe
        self.where = recipe.where("rollout.engine")
        check_installed(recipe)
        check_process(self.where)
        self.folder = AdapterFolder()
        self._model: Any = None
        self._vllm: Any = None
        self._sleeps = False

    # ------------------------------------------------------------------------------------------- start

    def network(self, recipe: Recipe):
        """Unsloth's model on vLLM's weights, with a fresh float32 adapter. vLLM sleeps when it returns."""
        assert self._model is None, "an engine has one network"
        config = config_of(recipe.model, recipe.where("model.id"))
        folder = checkpoint(recipe.model, recipe.where("model.id"))
        progress.told("starting Unsloth and vLLM", 0)
        unsloth = self._import()
        options = self._options(folder, config)
        with self._errors_translated():
            model, _ = unsloth.from_pretrained(**options)
            self._vllm = engine_of(model, self.where)
            self._check_loaded(model, options["max_seq_length"])
            self._model = unsloth.get_peft_model(model, **_adapter(recipe))
        progress.told("starting Unsloth and vLLM", 1, 1)
        self._sleeps = self._vllm.llm_engine.vllm_config.model_config.enable_sleep_mode
        if not self._sleeps:
            self.notes += ("vLLM keeps its KV cache while training: Unsloth has no standby for this model",)
        self._sleep()
        # rebuilt from the weights, the model does not know its generation_config.json
        with contextlib.suppress(OSError):
            model.generation_config = GenerationConfig.from_pretrained(folder)
        # Unsloth's own forward pass drops masks in training: rows of one sequence are all it can be given
        model._can_set_attn_implementation = lambda: False
        settle(model, DTYPE)
        return self._model.train()

    def _import(self):
        os.environ.update(ENVIRONMENT)
        os.environ["UNSLOTH_COMPILE_LOCATION"] = str(self.folder.path / "compiled")  # else the current folder
        fixed_cache = self.recipe.rollout.vllm.kv_cache_gb
        os.environ["UNSLOTH_VLLM_STANDBY_UTIL_OVERRIDE"] = "1" if fixed_cache else "0"
        with self._errors_translated(), warnings.catch_warnings():
            # nothing that it replaces in transformers and peft was imported here to be used with its models
            warnings.filterwarnings("ignore", message="WARNING: Unsloth should be imported before")
            from unsloth import FastLanguageModel
        return FastLanguageModel

    def _options(self, folder: str, config) -> dict[str, Any]:
        """Of from_pretrained; it hands the last three on to vLLM."""
        recipe = self.recipe
        vllm = self.recipe.rollout.vllm
        lora = recipe.model.lora
        assert lora is not None, "capabilities refuse recipes without an adapter"
        options = {
            "model_name": folder,
            "use_exact_model_name": True,  # not a quantised copy of another repository
            "max_seq_length": longest_request(self.recipe, config),
            "dtype": DTYPE,
            "load_in_4bit": recipe.model.weights == "nf4",
            "fast_inference": True,
            "unsloth_vllm_standby": True,
            "float8_kv_cache": False,
            "max_lora_rank": lora.rank,
            "random_state": recipe.seed,
            "use_gradient_checkpointing": False,  # policy.prove decides
            "max_num_seqs": budget.sequences_at_once(self.recipe),
            "enforce_eager": not vllm.cuda_graphs,
            "max_logprobs": 1,
        }
        if vllm.kv_cache_gb is not None:
            options["gpu_memory_utilization"] = self._share(config, vllm.kv_cache_gb)
        return options

    def _share(self, config, kv_cache_gb: float) -> float:
        """Part of the free memory that vLLM may use so that this much is left for its cache."""
        model = self.recipe.model
        shape = Shape.of(config)
        width = DTYPE.itemsize
        assert model.lora is not None, "capabilities refuse recipes without an adapter"
        weights = budget.weights_bytes(shape, model.weights, by_vllm=True)
        slot = budget.slot_bytes(shape, model.lora.rank, width)
        work = passes.vllm_bytes(shape, width, budget.sequences_at_once(self.recipe))
        needed = weights + slot + work + int(kv_cache_gb * budget.GIB)
        free, _ = torch.cuda.mem_get_info()
        if needed > free:
            sizes = [f"{size / budget.GIB:.1f} GiB" for size in (needed, free)]
            what = f"vLLM needs {sizes[0]} with this cache, {sizes[1]} are free"
            where = self.recipe.where("rollout.vllm.kv_cache_gb")
            raise OutOfMemory(what, where=where, fix="set it lower, or to null")
        return needed / free

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        """What Unsloth prints goes to standard error; what it raises becomes an error of this project."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except LgrpoError:
            raise
        except Exception as error:  # of any class: asserts and bare RuntimeErrors are how it talks to users
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                raise self._no_room(error) from error
            what = f"Unsloth cannot serve here: {_first_line(error)}"
            fix = "run `lgrpo-lite doctor`, or set rollout.engine=vllm"
            raise EnvironmentFault(what, where=self.where, fix=fix) from error

    def _no_room(self, error: BaseException) -> OutOfMemory:
        where = self.recipe.where("rollout.vllm.kv_cache_gb")
        lower = "set rollout.vllm.kv_cache_gb or rollout.vllm.max_sequences lower"
        fix = f"{lower}; `lgrpo-lite plan --fit` proposes settings"
        return OutOfMemory(f"vLLM finds no room: {_first_line(error)}", where=where, fix=fix)

    def _check_loaded(self, model, tokens: int) -> None:
        """Unsloth prints and goes on where it cannot do what was asked."""
        weights = self.recipe.model.weights
        states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
        quantised = any(state is not None for state in states)
        if quantised != (weights == "nf4"):
            loaded, name = ("4-bit", "nf4") if quantised else ("16-bit", "bf16")
            what = f"Unsloth loaded {loaded} weights, the recipe wants {weights}"
            fix = f"set model.weights={name}, or rollout.engine=vllm"
            raise ConfigError(what, where=self.recipe.where("model.weights"), fix=fix)
        dtype = model.get_input_embeddings().weight.dtype
        if dtype != DTYPE:
            what = f"this GPU computes in {dtype}, Unsloth's rollouts need bfloat16"
            fix = "set rollout.engine=transformers, or rollout.engine=vllm with model.weights=fp16"
            raise EnvironmentFault(what, where=self.where, fix=fix)
        longest = self._vllm.llm_engine.vllm_config.model_config.max_model_len
        if longest < tokens:
            what = f"the KV cache holds sequences of {longest} tokens, the recipe needs {tokens}"
            fix = "set rollout.vllm.kv_cache_gb higher, or model.max_new_tokens lower"
            raise OutOfMemory(what, where=self.recipe.where("rollout.vllm.kv_cache_gb"), fix=fix)

    # ------------------------------------------------------------------------------------------- serving

    @contextmanager
    def serving(self, policy: Policy) -> Iterator[VllmSampler]:
        """Wakes the cache, hands the adapter over under a new id each time; frees memory on the way out."""
        assert self._model is policy.model, "the policy's network is the engine's own"
        if self._sleeps:
            self._vllm.wake_up()
        try:
            yield VllmSampler(self._vllm, policy, self._adapter_of(policy), version=policy.version)
        finally:
            self._sleep()

    def _adapter_of(self, policy: Policy):
        """The adapter as a request, loaded into vLLM already: later writes to the policy do not reach it.

        vLLM scales B in place, in a copy only where it has to convert; from float32 it has to.
        """
        request = policy.model.load_lora(str(self.folder.path / "adapter"), load_tensors=True)
        tensors = request.lora_tensors
        request.lora_tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
        try:
            loaded = self._vllm.llm_engine.add_lora(request)
        except (RuntimeError, ValueError) as error:
            fix = "use model.lora.targets=all-linear, or set rollout.engine=transformers"
            what = f"vLLM refuses the adapter: {_first_line(error)}"
            raise ConfigError(what, where=self.recipe.where("model.lora"), fix=fix) from error
        if not loaded:
            where = f"policy version {policy.version}"
            fix = "--resume auto goes on; please report it"
            raise LgrpoError("vLLM did not take the new adapter", where=where, fix=fix)
        return request

    def _sleep(self) -> None:
        if self._sleeps:
            self._vllm.sleep(level=1)  # Unsloth's standby: the weights stay

    def fingerprint(self) -> None:
        """The weights are the policy's."""

    def close(self) -> None:
        """vLLM's memory goes with the object; the policy keeps the weights."""
        self.folder.close()
        if self._vllm is not None:
            self._vllm.llm_engine.engine_core.shutdown()


# ------------------------------------------------------------------------------------------- what it needs


def check_installed(recipe: Recipe) -> None:
    """EnvironmentFault that names each package of the stack that is missing or out of range. Imports none."""
    needed = NEEDED
    if recipe.model.weights == "nf4":
        needed = (*NEEDED, "vllm-bnb-plugin", "bitsandbytes")
    packages = compare("unsloth", installed_packages())
    unfit = [package for package in packages if package.name in needed and not package.fits]
    if unfit:
        problems = ", ".join(map(_problem, unfit))
        ranges = ", ".join(package.name + package.allowed for package in unfit)
        fix = 'pip install "lgrpo-lite[unsloth]", or set rollout.engine=vllm'
        what = f"{problems}: this engine takes {ranges}"
        raise EnvironmentFault(what, where=recipe.where("rollout.engine"), fix=fix)


def _problem(package: Package) -> str:
    if not package.installed:
        return f"{package.name} is not installed"
    return f"{package.name} {package.installed} is {package.status}"


def check_process(where: str) -> None:
    """Settings of the process that Unsloth's rollouts cannot live with."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        what = f"Unsloth's rollouts run in one process, WORLD_SIZE is {os.environ['WORLD_SIZE']}"
        raise ConfigError(what, where=where, fix="start one process, or set rollout.engine=vllm-server")
    for name in ALLOCATOR:
        if "expandable_segments:true" in os.environ.get(name, "").lower():
            what = f"{name} asks for expandable segments, vLLM cannot release memory with them"
            raise EnvironmentFault(what, where=where, fix=f"unset {name}")


def checkpoint(model: Model, where: str = "model.id") -> str:
    """A folder with the model, fetched at its revision, which Unsloth would ignore. None: ConfigError."""
    path = locate(model.id, where, model.revision)
    if Path(path).is_dir():
        return path
    from huggingface_hub import is_offline_mode, snapshot_download

    files = {"allow_patterns": list(FILES), "ignore_patterns": list(OTHERS)}
    try:
        bar = download_bar(f"downloading {model.id}")
        return snapshot_download(
            path, revision=model.revision, local_files_only=is_offline_mode(), tqdm_class=bar, **files
        )
    except (OSError, ValueError) as error:
        fix = "check the name, the revision and the network, or give a folder"
        what = f"cannot load {model.id}: {_first_line(error)}"
        raise ConfigError(what, where=where, fix=fix) from error


def engine_of(model, where: str):
    """Unsloth's vLLM. EnvironmentFault where it went on without, which it only prints."""
    if not hasattr(model, "vllm_engine"):
        fix = "run `lgrpo-lite doctor`, or set rollout.engine=transformers"
        raise EnvironmentFault("Unsloth loaded the model without vLLM", where=where, fix=fix)
    return model.vllm_engine


def _adapter(recipe: Recipe) -> dict[str, Any]:
    """Of get_peft_model."""
    lora = recipe.model.lora
    assert lora is not None, "capabilities refuse recipes without an adapter"
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets,
        "bias": "none",
        "use_rslora": lora.rslora,
        "random_state": recipe.seed,
        "use_gradient_checkpointing": False,
    }


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("Unsloth: ") if lines else type(error).__name__
