"""Base model and adapter, from the recipe's `model` section: transformers, peft, and bitsandbytes for NF4."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.ops.logprob import Head
from lgrpo_lite.policy import lean
from lgrpo_lite.policy.dequantise import folder_of
from lgrpo_lite.policy.fetch import bars_told, download_bar
from lgrpo_lite.policy.gguf import is_gguf
from lgrpo_lite.policy.memory import out_of_memory
from lgrpo_lite.policy.structure import is_text
from lgrpo_lite.recipe.schema import Model, Recipe

BUILTIN = "builtin:"
FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
BFLOAT16 = (8, 0)  # compute capability from which a GPU multiplies it


def locate(model_id: str, where: str = "model.id", revision: str | None = None) -> str:
    """`builtin:NAME` as the folder inside the package, a GGUF file as the folder that is made of it, anything
    else unchanged.
    """
    if is_gguf(model_id):
        return str(folder_of(model_id, revision, where))
    if not model_id.startswith(BUILTIN):
        return model_id
    folder = resources.files("lgrpo_lite") / "models" / model_id.removeprefix(BUILTIN)
    if not os.path.isfile(str(folder / "config.json")):
        what = f"no embedded model {model_id!r}"
        raise ConfigError(what, where=where, fix="use model.id=builtin:tiny-math")
    return str(folder)


def device_of() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether this GPU multiplies it. Before the RTX 30 series none does, and torch emulates it."""
    return torch.cuda.get_device_capability(device) >= BFLOAT16


def compute_dtype(weights: str, device: torch.device) -> torch.dtype:
    """What matmuls run in.

    Quantised weights compute in float32 on a CPU, where bfloat16 is slower and less exact; on a GPU in
    bfloat16, or in float16 where it has none.
    """
    if weights in ("nf4", "int8"):
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if has_bfloat16(device) else torch.float16
    return FLOATS[weights]


def config_of(model: Model, where: str = "model.id"):
    """The model's own configuration, as transformers reads it."""
    return fetch(AutoConfig.from_pretrained, model, where)


def load_tokenizer(model: Model, where: str = "model.id"):
    """The base model's tokenizer; a missing pad token is the end-of-sequence one (masks never look at it)."""
    tokenizer = fetch(AutoTokenizer.from_pretrained, model, where)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def generation_ends(model: Model, where: str = "model.id") -> frozenset[int]:
    """End tokens of the model's generation settings; none where it has no such file."""
    try:
        settings = GenerationConfig.from_pretrained(
            locate(model.id, where, model.revision), revision=model.revision or "main"
        )
    except OSError:
        return frozenset()
    eos = settings.eos_token_id
    ends: list = [eos] if eos is None or isinstance(eos, int) else eos
    return frozenset(ends) - {None}


def load_base(model: Model, device: torch.device, where: str = "model.id"):
    """The base model on `device`, frozen unless all its parameters are trained.

    nf4: bitsandbytes 4-bit with double quantisation; int8: its LLM.int8. A model that was saved quantised is
    loaded as it was saved. 16 bits without an adapter are held in float32 and compute in 16, since steps of
    1e-6 vanish in a 16-bit parameter.
    """
    kind, options = how_to_load(model, device, where)
    with bars_told(), on_default_stream(device):
        base, info = fetch(kind.from_pretrained, model, where, **options)
        demand_weights(base, info, model, where)
        if "device_map" not in options:
            base = base.to(device)
    base.requires_grad_(model.lora is None)
    return settle(base, compute_dtype(model.weights, device))


def how_to_load(model: Model, device: torch.device, where: str = "model.id") -> tuple[Any, dict[str, Any]]:
    """The class of `load_base` and what it asks of `from_pretrained`, which then says what it loaded too."""
    dtype = compute_dtype(model.weights, device)
    options: dict[str, Any]
    if model.weights in ("nf4", "int8"):
        options = {"device_map": {"": device}, "dtype": dtype}
        if saved_as(model, where) is None:
            options["quantization_config"] = _quantization(model.weights, dtype)
    else:
        options = {"dtype": dtype if model.lora else torch.float32}
    _check_saved(model, where)
    config = _language_config(model, where)
    options["attn_implementation"] = attention_of(config)
    options["tqdm_class"] = download_bar(f"downloading {model.id}")
    # what does not fit is asked for by name later: transformers makes it up, or fails without saying what
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    return _class_of(config), options


def demand_weights(base, info: dict[str, Any], model: Model, where: str) -> None:
    """ConfigError where, by transformers' `output_loading_info`, loading made a weight up, or left one out
    that a layer of `base` has no place for.
    """
    made_up = sorted(info["missing_keys"] & dict(base.named_parameters()).keys())
    others = sorted(str(key[0]) for key in info["mismatched_keys"])
    linears = {f"{name}.bias" for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    left_out = sorted(info["unexpected_keys"] & linears)
    for names, what in ((made_up, "lacks"), (others, "holds in another shape"), (left_out, "has beside it")):
        if names:
            count = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            fault = (
                f"the files of {model.id} are not what its config.json describes: it {what} {names[0]}{count}"
            )
            fix = "download the whole model again, or mend its config.json"
            raise ConfigError(fault, where=where, fix=fix)


def attention_of(config) -> str:
    """torch's own attention, or transformers' plain one for a model that needs more than that (sinks)."""
    kind: Any = _class_of(config)._model_mapping.get(type(config), None)
    return "sdpa" if kind is None or kind._supports_sdpa else "eager"


def _language_config(model: Model, where: str):
    """The model's configuration. One of no model that continues a text by itself: ConfigError."""
    config = config_of(model, where)
    known = type(config) in _class_of(config)._model_mapping
    if not known or getattr(config, "is_encoder_decoder", False):
        what = (
            f"{model.id} is a model of type {config.model_type!r}, which does not continue a text by itself"
        )
        raise ConfigError(
            what, where=where, fix="use a causal language model, for text or for text and images"
        )
    return config


def _class_of(config) -> Any:
    """Of a model of text, or of text and images where transformers knows no other for this config."""
    text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees and not text else AutoModelForCausalLM


@contextmanager
def on_default_stream(device: torch.device) -> Iterator[None]:
    """On a GPU: what is inside runs on the default stream, after what was begun before it,
    and what follows waits for it.

    bitsandbytes quantises there whatever stream is current, and after its start vLLM's own one is: a weight
    would be read while it is still being copied, and its statistics before they are written.
    """
    if device.type != "cuda":
        yield
        return
    current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(current)
    with torch.cuda.stream(default):
        yield
    current.wait_stream(default)


def empty_base(model: Model, dtype: torch.dtype, where: str = "model.id"):
    """The base model without weights, on the meta device: an engine puts its own in and calls `settle`."""
    _check_saved(model, where)
    config = _language_config(model, where)
    with init_empty_weights(include_buffers=False):
        options = {"attn_implementation": attention_of(config), "dtype": dtype}
        base = _class_of(config).from_config(config, **options)
    with suppress(OSError):  # a base without one: what its config says stays
        path, revision = locate(model.id, where, model.revision), model.revision or "main"
        base.generation_config = GenerationConfig.from_pretrained(path, revision=revision)
    return base


def adapted(base, recipe: Recipe):
    """The network a policy trains, in training mode: the base itself, or with the recipe's adapter."""
    if not recipe.model.lora:
        return base.train()
    where = recipe.where("model.lora.targets")
    return attach_adapter(base, recipe.model, seed=recipe.seed, where=where).train()


def saved_as(model: Model, where: str = "model.id") -> str | None:
    """How the model was quantised when it was saved: nf4, int8, another method's name; None: not at all."""
    saved = getattr(config_of(model, where), "quantization_config", None)
    if saved is None:
        return None
    settings = saved if isinstance(saved, dict) else saved.to_dict()
    if settings.get("quant_method", "bitsandbytes") != "bitsandbytes":
        return str(settings["quant_method"])
    if settings.get("load_in_8bit"):
        return "int8"
    return str(settings.get("bnb_4bit_quant_type", "fp4"))


def _check_saved(model: Model, where: str) -> None:
    saved = saved_as(model, where)
    if saved is not None and saved != model.weights:
        known = saved in ("nf4", "int8")
        fix = f"set model.weights={saved}" if known else "use the model it was made from"
        what = f"{model.id} was saved as {saved}, the recipe wants {model.weights}"
        raise ConfigError(what, where=where, fix=fix)


def _quantization(weights: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if weights == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def settle(base, dtype: torch.dtype):
    """What this project wants of any base model."""
    settle_weights(base, dtype)
    # generate() fills every unset option from here: Qwen's repetition penalty or top-p would bias rollouts
    own = base.generation_config
    base.generation_config = GenerationConfig(eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)
    return base


def settle_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """What `settle` does to weights: to those of `module` and of all in it."""
    part: Any
    for part in module.modules():
        # in eval mode bitsandbytes would repack 4-bit weights for this CPU and compute in bf16:
        # rollouts would disagree with the update, and with the merged model
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
        if hasattr(part, "compute_dtype"):  # a model that was saved in 4 bits names its own
            part.compute_dtype = dtype
            state = getattr(part.weight, "quant_state", None)
            if state is not None:
                state.dtype = dtype
    if dtype == torch.float32:  # a model that was saved in 4 bits has the rest in 16
        for parameter in module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()


def head_of(base) -> Head:
    """The output layer of a language model, with what its config does to logits and an adapter's part in it.

    `policy.prove` checks it against the model's own logits.
    """
    config = base.config.get_text_config()

    def factor(name: str) -> float:
        return float(getattr(config, name, None) or 1.0)

    scale = factor("logit_scale") * factor("lm_head_multiplier") / factor("logits_scaling")
    softcap = getattr(config, "final_logit_softcapping", None)
    layer = base.get_output_embeddings()
    adapted_layer = isinstance(layer, BaseTunerLayer)
    head = Head.of(layer.get_base_layer() if adapted_layer else layer)
    weight = head.weight
    if adapted_layer and not layer.disable_adapters:
        for name in layer.active_adapters:
            weight = weight + layer.get_delta_weight(name).to(weight.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return Head(weight, head.bias, scale, softcap)


def attach_adapter(base, model: Model, *, seed: int, where: str = "model.lora.targets") -> PeftModel:
    """A fresh LoRA adapter (B = 0, so the policy starts as the base); its parameters are float32. Seeded."""
    lora = model.lora
    assert lora is not None, "only called for a recipe with an adapter"
    text = is_text(base)
    # an adapter on a tower of images would learn nothing, and engines that sample take none there
    beside = [
        name for name, module in base.named_modules() if isinstance(module, nn.Linear) and not text(name)
    ]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=beside or None,
        use_rslora=lora.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        net = get_peft_model(base, config)
    except ValueError as error:
        fix = "use all-linear, or names of linear layers"
        raise ConfigError(f"no adapter fits: {error}", where=where, fix=fix) from error
    lean.install(net)
    return net


def fetch(from_pretrained, model: Model, where: str, **options):
    path = locate(model.id, where, model.revision)
    try:
        return from_pretrained(path, revision=model.revision, **options)
    except ImportError as error:
        fix = 'pip install "lgrpo-lite[train]"'
        raise EnvironmentFault(f"cannot load {model.id}: {error}", where=where, fix=fix) from error
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "check the name, the revision and the network, or give a folder"
        if os.path.exists(path):
            fix = "give a whole model folder"
        raise ConfigError(f"cannot load {model.id}: {reason}", where=where, fix=fix) from error
