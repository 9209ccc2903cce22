"""A model whose weights stay in its files: those of one layer are in memory while they are asked for."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from lgrpo_lite.export.given import Given
from lgrpo_lite.export.merge import unit_of
from lgrpo_lite.policy.fetch import bars_told
from lgrpo_lite.policy.load import (
    adapted,
    compute_dtype,
    demand_weights,
    device_of,
    fetch,
    how_to_load,
    load_tokenizer,
    on_default_stream,
    settle,
    settle_weights,
)
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.structure import is_text
from lgrpo_lite.progress import listening
from lgrpo_lite.recipe.schema import Model, Recipe


class Slices:
    """`base` is that model on the meta device, to be wrapped and computed with as a whole one is. Inside
    `here(unit)` the weights of that unit are there, bit for bit what `load_base` makes of them: transformers
    reads, converts and quantises them.

    A unit is what `unit_of` says of a parameter's name. What a whole load refuses is refused here, by the
    names in the files and, of a shape, by `here`: ConfigError. kind: a class for it; None: that of
    `load_base`.
    """

    def __init__(self, model: Model, device: torch.device, where: str = "model.id", kind: Any = None):
        self.model, self.device, self.where = model, device, where
        self.dtype = compute_dtype(model.weights, device)
        self.base = _Reader(model, device, where, kind).base
        self._reader = _Reader(model, device, where, kind)
        self.given = self._reader.given
        self.read_as = self._reader.read_as
        found = set(self.read_as.values())
        state = self.base.state_dict(keep_vars=True).keys()
        self._tied = _tied(self.base, self.given, self.read_as)
        missing = state - found - self._tied.keys()
        self.info = {"missing_keys": missing, "mismatched_keys": set(), "unexpected_keys": found - state}
        demand_weights(self.base, self.info, model, where)
        self.names: dict[str, list[str]] = defaultdict(list)  # of parameters and buffers, by unit
        for name in state - missing:
            self.names[unit_of(name)].append(name)
        self._stored: dict[str, list[str]] = defaultdict(list)  # names in the files, by unit
        for stored, name in self.read_as.items():
            self._stored[unit_of(name)].append(stored)
        # by their plain names, whatever is wrapped around them later
        self._modules = dict(self.base.named_modules())
        self._empty = {name: self.tensor(name) for name in state}
        self.trained: Path | None = None  # a file of values that take the base's place, by plain name

    def tensor(self, name: str) -> Any:
        """A parameter or buffer by its plain name; on the meta device where its unit is not here."""
        return _tensor(self._modules, name)

    @contextmanager
    def here(self, unit: str) -> Iterator[None]:
        """Inside it the weights of that unit are in memory."""
        units = {unit} | {unit_of(self._tied[name]) for name in self.names[unit] if name in self._tied}
        stored = [name for one in sorted(units) for name in self._stored[one]]
        # transformers' own word on these few would take the place of that of the whole work
        with on_default_stream(self.device), bars_told(), listening(lambda _: None):
            values, mismatched = self._reader.read(stored)
        demand_weights(self.base, self.info | {"mismatched_keys": mismatched}, self.model, self.where)
        trained = self._trained(self.names[unit])
        for name in self.names[unit]:
            value = trained.get(name, values.get(self._tied.get(name, name)))
            _put(self._modules, name, value)
        del values, trained
        settle_weights(self._modules[unit], self.dtype)
        try:
            yield
        finally:
            for name in self.names[unit]:
                _put(self._modules, name, self._empty[name])

    def _trained(self, names: list[str]) -> dict[str, nn.Parameter]:
        """Those of the names that the file of trained values has; of tied ones it has one."""
        if self.trained is None:
            return {}
        found = {}
        with safe_open(self.trained, "pt") as file:
            there = set(file.keys())
            for name in names:
                tied = [name, *(one for pair in self._tied.items() if name in pair for one in pair)]
                for one in tied:
                    if one in there:
                        value = file.get_tensor(one).to(self.device)
                        found[name] = nn.Parameter(value, requires_grad=False)
        return found

    @contextmanager
    def passing(self, tick: Callable[[], None]) -> Iterator[None]:
        """Inside it a text can be passed through `base`, or what is wrapped around it: each unit is here
        while it computes, `tick` is called after it. Without gradient.
        """
        text = is_text(self.base)
        entered: dict[str, Any] = {}
        hooks = []

        def begin(unit: str) -> None:
            entered[unit] = self.here(unit)
            entered[unit].__enter__()

        def end(unit: str) -> None:
            if unit in entered:
                entered.pop(unit).__exit__(None, None, None)
                tick()

        for unit in list(self.names):
            if not text(unit):
                continue
            module = self._modules[unit]
            # before all that others do with the weights
            hooks.append(module.register_forward_pre_hook(lambda *_, unit=unit: begin(unit), prepend=True))
            hooks.append(module.register_forward_hook(lambda *_, unit=unit: end(unit), always_call=True))
        try:
            with torch.no_grad():
                yield
        finally:
            for hook in hooks:
                hook.remove()


class SlicedPolicy(Policy):
    """A policy on slices: its adapter is in memory, its base is not."""

    slices: Slices

    @classmethod
    def of(cls, recipe: Recipe) -> "SlicedPolicy":
        """That of a recipe, with no weights of an adapter until `restore`."""
        slices = Slices(recipe.model, device_of(), recipe.where("model.id"))
        base = settle(slices.base, slices.dtype).requires_grad_(recipe.model.lora is None)
        tokenizer = load_tokenizer(recipe.model, recipe.where("model.id"))
        policy = cls(
            adapted(base, recipe), tokenizer, temperature=recipe.rollout.temperature, dtype=slices.dtype
        )
        policy.chunk = recipe.memory.logprob_chunk
        policy.slices = slices
        return policy

    @property
    def device(self) -> torch.device:
        return self.slices.device

    def restore(self, folder: Path) -> None:
        """What `save` wrote: an adapter is loaded, of all parameters the file is looked into."""
        own = [name for name, _ in self._own()]
        if not self.has_adapter:
            file = folder / "model.safetensors"
            with safe_open(file, "pt") as opened:
                lacking = sorted(set(own) - set(opened.keys()))
            if lacking:
                raise KeyError(lacking[0])
            self.slices.trained = file
            return
        saved = load_file(folder / "adapter_model.safetensors", device=str(self.device))
        modules = dict(self.model.named_modules())
        for name in own:
            value = saved[name.replace(".default.", ".")]
            if value.shape != _tensor(modules, name).shape:
                raise ValueError(f"{name} has the shape {tuple(value.shape)}")
            _put(modules, name, nn.Parameter(value.float()))


class _Reader:
    """The model on the meta device, and how transformers would fill it."""

    def __init__(self, model: Model, device: torch.device, where: str, kind: Any):
        usual, options = how_to_load(model, device, where)
        options["device_map"] = {"": device}
        with _prepared() as kept:
            self.base, _ = fetch((kind or usual).from_pretrained, model, where, **options)
        ((self._config, self.given, self.read_as),) = kept
        for parameter in self.base.parameters():
            vars(parameter).pop("_is_hf_initialized")
        self._modules = dict(self.base.named_modules())
        self._empty = {name: _tensor(self._modules, name) for name in self.base.state_dict()}

    def read(self, stored: list[str]) -> tuple[dict[str, Any], set[Any]]:
        """(tensors of the model by name, those of another shape), of what is stored under these names."""
        slices = {name: self.given.slice(name) for name in stored}
        info, _ = convert_and_load_state_dict_in_model(self.base, slices, self._config)
        del slices
        self.given.close()
        values = {}
        for name, empty in self._empty.items():
            value = _tensor(self._modules, name)
            if value is not empty:
                values[name] = value
                _put(self._modules, name, empty)
        return values, info.mismatched_keys


@contextmanager
def _prepared() -> Iterator[list[Any]]:
    """Inside it `from_pretrained` does all but load weights, and leaves (how it would, the files, what each
    name in them becomes). transformers has no other way to ask for that.
    """
    kept: list[Any] = []
    library: Any = PreTrainedModel
    real = library._load_pretrained_model

    def keep(model: Any, _state: Any, files: list[str], config: Any, *_: Any) -> tuple[Any, None]:
        given = Given(Path(files[0]).parent)
        read_as = _read_as(model, given, config.weight_mapping)
        kept.append((config, given, read_as))
        for parameter in model.parameters():  # not to be made up: it is a quantised one's place, or empty
            parameter._is_hf_initialized = True
        buffers = {name for name, _ in model.named_buffers()}
        missing = (model.state_dict().keys() & buffers) - set(read_as.values())
        return LoadStateDictInfo(missing, set(), set(), [], {}, set()), None

    library._load_pretrained_model = staticmethod(keep)
    try:
        yield kept
    finally:
        library._load_pretrained_model = staticmethod(real)


def _read_as(model: Any, given: Given, mapping: list[Any]) -> dict[str, str]:
    """What transformers reads each name in the files as; of several tensors made of one, the first."""
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    found = {}
    for name in given.stored:
        read_as, _ = rename_source_key(name, renamings, converters, prefix, state)
        if read_as not in state and name in state:  # transformers' own second look
            read_as, _ = rename_source_key(name, [], [], prefix, state)
        found[name] = read_as
    return found


def _tied(base: Any, given: Given, read_as: dict[str, str]) -> dict[str, str]:
    """{a parameter: that whose values it has}. They become one in `base` too, but where the files hold two
    that differ, which stay two: transformers' rule.
    """
    stored_as = {name: stored for stored, name in read_as.items()}
    tied = {}
    for one, other in list(base.all_tied_weights_keys.items()):
        if one in stored_as and other in stored_as:
            both = [given.tensor(stored_as[name]) for name in (one, other)]
            if not torch.equal(*both):
                base.all_tied_weights_keys.pop(one)
                continue
        path, _, leaf = one.rpartition(".")
        setattr(base.get_submodule(path), leaf, base.get_parameter(other))
        if other in stored_as:
            tied[one] = other
        else:
            tied[other] = one
    given.close()
    return tied


def _tensor(modules: dict[str, nn.Module], name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    module = modules[path]
    return module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]


def _put(modules: dict[str, Any], name: str, tensor: Any) -> None:
    path, _, leaf = name.rpartition(".")
    module = modules[path]
    setattr(module, leaf, tensor)
    state: Any = getattr(module, "state", None)
    if leaf == "weight" and hasattr(state, "CB"):  # LLM.int8 keeps the numbers there after a pass
        state.CB = state.SCB = None
