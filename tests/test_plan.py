"""The memory plan beside what really loads, what autograd really keeps, and what is really
alive; and its proposals, pasted.
"""

import io
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import lgrpo, tiny_recipe
from test_hub import served
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache

from lgrpo_lite.checks.check import check
from lgrpo_lite.cli.plan import _parts_table
from lgrpo_lite.cli.terminal.output import console
from lgrpo_lite.errors import ConfigError, OutOfMemory
from lgrpo_lite.machine.facts import cuda_devices, memory_of
from lgrpo_lite.ops.logprob import logprobs
from lgrpo_lite.plan.cards import CARDS, capacity, plain
from lgrpo_lite.plan.fit import faster, fit
from lgrpo_lite.plan.parts import MOMENTS
from lgrpo_lite.plan.plan import plan
from lgrpo_lite.plan.weigh import full_pass
from lgrpo_lite.policy import budget, load, passes
from lgrpo_lite.policy.budget import GIB
from lgrpo_lite.policy.memory import Saved, layers_of, loaded_bytes, recompute
from lgrpo_lite.policy.passes import Pass
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.policy.prove import probe, usable_layouts
from lgrpo_lite.policy.shape import FAMILIES, Shape, find_config, shapes
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.recipe.schema import Lora, Model

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 128, "intermediate_size": 448, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 1000, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
MODELS = {
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 32, "tie_word_embeddings": True},
    "qwen3.5": {
        "model_type": "qwen3_5_text",
        "head_dim": 32,
        "num_hidden_layers": 4,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "model_type": "mistral",
        "head_dim": 16,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
    },
}


def config_for(**changes):
    settings = SMALL | changes
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random weights of every shape in MODELS, as checkpoints."""
    root = tmp_path_factory.mktemp("models")
    for name, changes in MODELS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_for(**changes), dtype=torch.bfloat16)
        model.save_pretrained(root / name)
    return root


# ------------------------------------------------------------------------------------------- what stays


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_shape_has_the_parameters_of_transformers(kind, bias, tied):
    config = config_for(model_type=kind, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sorted(Shape.of(config).parameters) == sorted(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.defaults])
def test_what_a_config_leaves_out_is_what_transformers_fills_in(kind):
    filled = AutoConfig.for_model(kind).to_dict()
    defaults = dict(FAMILIES[kind].defaults)
    if defaults.pop("full_attention_interval", None):
        defaults["layer_types"] = [
            "linear_attention",
            "linear_attention",
            "linear_attention",
            "full_attention",
        ] * 8
    assert {key: filled[key] for key in defaults} == defaults
    # keys whose absence means something else than transformers' default are not left to chance
    assert Shape.of({"model_type": kind}).parameters == Shape.of(AutoConfig.for_model(kind)).parameters


VISION = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 56, "patch_size": 14}  # fmt: skip


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_a_model_for_images_too_has_the_parameters_that_are_loaded(kind, head):
    text = SMALL | {"model_type": f"{kind}_text", "num_hidden_layers": 8}
    vision = VISION | {"vision_use_head": head} if kind == "gemma3" else {}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of(config)
    assert sorted(shape.parameters) == sorted(p.numel() for p in model.parameters())
    assert shape.unknown


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "of type 'bert' is not known"),
        ({"model_type": "qwen2"}, "not whole"),
        ({"model_type": "qwen2", "hidden_size": "x"}, "not whole"),
        ({}, "of type 'None' is not known"),
    ],
)
def test_a_config_that_says_too_little_is_refused(config, words):
    with pytest.raises(ConfigError) as error:
        Shape.of(config)
    assert words in error.value.what


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, "was saved as mxfp4"),
        ({"model_type": "gpt_oss"}, "experts"),
        ({"model_type": "gemma2"}, "not measured"),
        ({"model_type": "llava", "text_config": SMALL | {"model_type": "llama"}}, "'llava' has beside"),
        (SMALL | {"model_type": "llama"}, ""),
    ],
)
def test_a_shape_says_what_it_does_not_know(changes, words):
    unknown = Shape.of(changes).unknown
    assert any(words in sentence for sentence in unknown) if words else not unknown


@pytest.mark.parametrize("weights", ["nf4", "int8", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_and_adapter_weigh_what_is_predicted(folders, name, weights):
    model = Model(id=str(folders / name), weights=weights, lora=Lora(rank=8))
    network = load.attach_adapter(load.load_base(model, CPU), model, seed=0)
    shape = Shape.of(find_config(model))
    base, adapter = loaded_bytes(network)
    width = load.compute_dtype(weights, CPU).itemsize
    assert budget.weights_bytes(shape, weights, compute=width) == pytest.approx(base, rel=0.03)
    assert 4 * sum(budget.adapter_sizes(shape, model.lora)) == adapter


@pytest.mark.parametrize(
    "targets",
    [["q_proj", "v_proj"], ["lm_head", "mlp.down_proj"], ["embed_tokens"], r".*\.1\..*_proj", "all-linear"],
    ids=str,
)
def test_an_adapter_has_the_tensors_that_peft_makes(folders, targets):
    model = Model(id=str(folders / "qwen2"), lora=Lora(rank=4, targets=targets))
    network = load.attach_adapter(load.load_base(model, CPU), model, seed=0)
    made = [p.numel() for n, p in network.named_parameters() if "lora_" in n]
    assert sorted(budget.adapter_sizes(Shape.of(find_config(model)), model.lora)) == sorted(made)


def test_all_parameters_are_held_in_float32(folders):
    model = Model(id=str(folders / "qwen2"), weights="bf16", lora=None)
    base, adapter = loaded_bytes(load.load_base(model, CPU))
    assert (budget.weights_bytes(Shape.of(find_config(model)), "bf16", trained=True), 0) == (base, adapter)


@pytest.mark.parametrize("double", [True, False])
def test_a_checkpoint_saved_in_4_bits_weighs_what_it_says(folders, tmp_path, double):
    skipped = ["lm_head", "model.layers.0.mlp.down_proj"]
    saved = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        llm_int8_skip_modules=skipped,
    )
    whole = AutoModelForCausalLM.from_pretrained(
        folders / "llama", quantization_config=saved, device_map={"": CPU}
    )
    whole.save_pretrained(tmp_path / "4bit")
    model = Model(id=str(tmp_path / "4bit"), weights="nf4")
    base, _ = loaded_bytes(load.load_base(model, CPU))
    width = load.compute_dtype("nf4", CPU).itemsize
    assert budget.weights_bytes(Shape.of(find_config(model)), "nf4", compute=width) == pytest.approx(
        base, rel=0.03
    )


@pytest.mark.parametrize("use", ["adamw", "adamw_8bit"])
def test_moments_take_what_the_optimiser_makes(use):
    from lgrpo_lite.train.build import build

    run = build(tiny_recipe(f"optim.use={use}"))
    for p in run.policy.trainable():
        p.grad = torch.ones_like(p)
    run.optimizer.step()
    held = [item for state in run.optimizer.policy.state.values() for item in state.items()]
    made = sum(
        t.nbytes for name, t in held if isinstance(t, torch.Tensor) and name not in ("step", "qmap1", "qmap2")
    )
    assert budget.moments_bytes([p.numel() for p in run.policy.trainable()], use) == made


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_values_of_a_token(name):
    config = config_for(**MODELS[name])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(input_ids=torch.zeros(3, 7, dtype=torch.long), past_key_values=cache)
    held = sum(
        t.nbytes for layer in cache.layers if hasattr(layer, "keys") for t in (layer.keys, layer.values)
    )
    for form in (config, config.to_dict(), Shape.of(config)):
        assert budget.kv_bytes_per_token(form, 2) * 3 * 7 == held


# ------------------------------------------------------------------------------------------- what a pass takes


def policy_of(
    name: str, weights: str, dtype: torch.dtype, lora: Lora | None, folders: Path, monkeypatch
) -> Policy:
    """Quantised weights computing in `dtype` on this CPU too, as they do on a GPU."""
    monkeypatch.setattr(load, "compute_dtype", lambda weights, device: dtype)
    model = Model(id=str(folders / name), weights=weights, lora=lora)
    base = load.load_base(model, CPU)
    network = load.attach_adapter(base, model, seed=0) if lora else base
    policy = Policy(network.train(), None, temperature=1.0, dtype=dtype)
    usable_layouts(policy)
    return policy


def batch_in(layout: str):
    """Answers of one length to prompts of different lengths."""
    return replace(probe(SMALL["vocab_size"], tuple((12 + k, 53 - k) for k in range(8))), layout=layout)


LORA = Lora(rank=8)
PASSES = [
    ("qwen2 tied", "nf4", torch.bfloat16, LORA, "packed"),
    ("qwen2 tied", "nf4", torch.float32, LORA, "rows"),
    ("qwen2", "bf16", torch.bfloat16, LORA, "rows"),
    ("llama", "bf16", torch.bfloat16, LORA, "packed"),
    ("llama", "fp32", torch.float32, LORA, "packed"),
    ("qwen3", "bf16", torch.bfloat16, LORA, "packed"),
    ("qwen3", "fp32", torch.float32, LORA, "rows"),
    ("mistral", "nf4", torch.bfloat16, Lora(rank=64, targets=["q_proj", "v_proj"]), "packed"),
    ("mistral", "bf16", torch.bfloat16, Lora(rank=8, dropout=0.1), "packed"),
    ("qwen2", "fp32", torch.float32, None, "packed"),
]


@pytest.mark.parametrize(("name", "weights", "dtype", "lora", "layout"), PASSES, ids=lambda x: str(x)[:24])
def test_autograd_keeps_what_is_predicted(folders, monkeypatch, name, weights, dtype, lora, layout):
    policy = policy_of(name, weights, dtype, lora, folders, monkeypatch)
    batch = batch_in(layout)
    with Saved(policy.model) as saved:
        policy.logprobs(batch)
    shape, tokens = Shape.of(policy.base.config), int((batch.length - 1).sum())
    run = Pass(dtype.itemsize, lora, gathered=layout != "rows")
    predicted = passes.saved_bytes(shape, run, tokens)
    # a mask is of bytes on a GPU, of the compute type here; none where the first layer reads embeddings
    if lora and lora.dropout:
        inputs = shape.layers * sum(linear.inputs for linear in shape.linears)
        predicted += tokens * ((dtype.itemsize - 1) * inputs - dtype.itemsize * 3 * shape.hidden)
    assert predicted == pytest.approx(saved.bytes, rel=0.03)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that were made inside it and are still there."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        old = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        } | self.known
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in old:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, which: int, size: int) -> None:
        self.known.discard(which)
        self.now -= size


PEAKS = [
    ("qwen2", "nf4", torch.bfloat16, LORA, 2),
    ("qwen2", "nf4", torch.bfloat16, LORA, 0),
    ("llama", "bf16", torch.bfloat16, LORA, 2),
    ("qwen3", "fp32", torch.float32, LORA, 2),
    ("qwen3", "fp32", torch.float32, LORA, 0),
    ("llama", "int8", torch.bfloat16, LORA, 2),
    ("mistral", "bf16", torch.bfloat16, Lora(rank=8, targets=["q_proj", "v_proj"]), 2),
]


@pytest.mark.parametrize(("name", "weights", "dtype", "lora", "recomputed"), PEAKS, ids=lambda x: str(x)[:24])
def test_a_pass_peaks_where_it_is_predicted(folders, monkeypatch, name, weights, dtype, lora, recomputed):
    policy = policy_of(name, weights, dtype, lora, folders, monkeypatch)
    recompute(policy.base, recomputed)
    assert len(layers_of(policy.base)) == SMALL["num_hidden_layers"]
    batch = batch_in("packed")
    policy.logprobs(batch).logp.sum().backward()  # gradients are there from now on
    with Live() as live:
        scored = policy.logprobs(batch)
        live.peak = 0
        scored.logp.sum().backward()
    shape, tokens = Shape.of(policy.base.config), int((batch.length - 1).sum())
    run = Pass(dtype.itemsize, lora, int8=weights == "int8")
    recipe = check(load_recipe("qwen3b-math", [f"model.weights={weights}", "rollout.engine=transformers"]))
    work = passes.layer_work_bytes(shape, recipe, run, tokens, recomputed)
    predicted = passes.saved_bytes(shape, run, tokens, recomputed) + sum(work.values())
    assert 0.95 * live.peak < predicted < 1.2 * live.peak, predicted / live.peak


@pytest.mark.parametrize(
    ("dtype", "lora"), [(torch.bfloat16, LORA), (torch.float32, LORA), (torch.float32, None)], ids=str
)
def test_sampling_takes_no_more_than_predicted(folders, monkeypatch, dtype, lora):
    policy = policy_of(
        "llama", "fp32" if dtype == torch.float32 else "bf16", dtype, lora, folders, monkeypatch
    )
    ids = torch.zeros(8, 64, dtype=torch.long)
    with torch.no_grad(), Live() as live:
        policy.base.base_model(input_ids=ids, use_cache=False)
    shape, run = Shape.of(policy.base.config), Pass(dtype.itemsize, lora)
    predicted = ids.numel() * passes.forward_bytes(shape, run) + 2 * passes.block_bytes(
        shape, run, ids.numel()
    )
    assert 0.9 * live.peak < predicted < 1.3 * live.peak


def test_tiles_of_the_head():
    shape = replace(Shape.of(config_for(model_type="llama")), vocabulary=32768)
    hidden = torch.randn(256, 128, requires_grad=True)
    head, ids = torch.randn(32768, 128), torch.zeros(256, dtype=torch.long)
    with Live() as live:
        logprobs(hidden, head, ids, rows=128)
    predicted = passes.tiles_bytes(shape, Pass(4, LORA), 128) + hidden.nbytes
    assert 0.9 * live.peak < predicted < 1.2 * live.peak


# ------------------------------------------------------------------------------------------- the plan


def planned(*overrides: str, gib: float = 24, name: str = "qwen3b-math"):
    return plan(check(load_recipe(name, list(overrides))), int(gib * GIB))


def test_shapes_in_the_package_have_the_published_sizes():
    published = {
        "Qwen/Qwen2.5-1.5B": 1.54e9, "Qwen/Qwen2.5-3B": 3.09e9, "Qwen/Qwen2.5-7B": 7.61e9, "Qwen/Qwen2.5-14B": 14.7e9,
        "meta-llama/Llama-3.1-8B": 8.03e9,
    }  # fmt: skip
    found = {name: sum(Shape.of(config).parameters) for name, config in shapes().items()}
    assert found == pytest.approx(published, rel=0.006)


def test_a_config_comes_from_a_folder_the_cache_or_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert find_config(Model(id="Qwen/Qwen2.5-3B"))["num_hidden_layers"] == 36
    assert find_config(Model(id="builtin:tiny-math"))["num_hidden_layers"] == 3
    folder = tmp_path / "hub" / "models--Qwen--Qwen2.5-3B"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text('{"num_hidden_layers": 1}')
    for revision in (None, "abc"):
        assert find_config(Model(id="Qwen/Qwen2.5-3B", revision=revision)) == {"num_hidden_layers": 1}
    assert find_config(Model(id=str(folder / "snapshots" / "abc"))) == {"num_hidden_layers": 1}
    with pytest.raises(ConfigError, match="not on this machine"):
        find_config(Model(id="some/model"))
    with pytest.raises(ConfigError, match="type 'gemma9' is not known"):
        Shape.of({"model_type": "gemma9"})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["rollout.engine=vllm", "rollout.vllm.share_weights=false"], "vLLM's own weights"),
        (["rollout.engine=vllm"], "adapter inside vLLM"),
        (["rollout.engine=transformers"], "generate()"),
        (["memory.checkpointing=true"], "recomputed layer"),
    ],
    ids=str,
)
def test_what_a_setting_adds(changes, part):
    assert part in [p.name for p in planned(*changes).parts]


def test_a_server_has_a_gpu_of_its_own():
    found = planned("rollout.engine=vllm-server")
    assert found.kv_bytes == 0 and found.peak("rollout") < found.peak("update")
    assert any("server's GPU is not counted" in warning for warning in found.warnings)


def test_keys_and_values_take_what_is_free_and_are_given_back_for_the_update():
    small, large = (planned("rollout.engine=vllm", "model.max_new_tokens=8192", gib=gib) for gib in (12, 80))
    assert small.at_once < large.at_once == 128
    assert all(p.moments == ("start", "rollout", "wake") for p in large.parts if p.name == "keys and values")
    assert planned("rollout.engine=vllm", "rollout.vllm.kv_cache_gb=2").kv_bytes == 2 * GIB
    with pytest.raises(ConfigError, match="holds no answer"):
        planned("rollout.engine=vllm", "rollout.vllm.kv_cache_gb=0.01")


def test_a_cache_that_vllm_keeps_makes_another_plan():
    """It is there at every moment but the export, so what is learned beside it is less."""
    from lgrpo_lite.train.build import planned_again

    recipe = check(load_recipe("qwen3b-math", ["rollout.engine=vllm"]))
    freed, kept = plan(recipe, 24 * GIB), plan(recipe, 24 * GIB, cache_stays=4 * GIB)
    assert kept.recomputed > freed.recomputed and kept.peak("build") == freed.peak("build") + 4 * GIB
    assert kept.peak("export") == freed.peak("export")
    assert planned_again(recipe, 0) == ()
    (told,) = planned_again(recipe, 4 * GIB)
    assert told.startswith("with 4.00 GiB of keys and values that stay, the plan fits 24 GB")
    with pytest.raises(OutOfMemory, match="does not fit 24 GB: short by") as error:
        planned_again(recipe, 22 * GIB)
    assert "rollout.vllm.kv_cache_gb" in error.value.fix


def test_a_run_that_is_full_while_it_is_built_says_so_in_the_plans_words(monkeypatch):
    from lgrpo_lite.train import build

    def full(recipe):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.20 GiB. GPU 0 has a total capacity of 23.6 GiB."
        )

    recipe = check(load_recipe("qwen3b-math", ["rollout.engine=vllm"]))
    said = plan(recipe, 24 * GIB, cache_stays=22 * GIB)
    assert said.peak("build") > said.capacity and said.verdict().startswith("does not fit 24 GB: short by")
    monkeypatch.setattr(build, "_build", full)
    with pytest.raises(
        OutOfMemory, match=r"does not fit 24 GB: tried to allocate 1.20 GiB in the build"
    ) as error:
        build.build(recipe)
    assert error.value.exit_code == 4


def test_sixteen_bits_are_proposed_where_they_fit():
    recipe = check(load_recipe("qwen3b-math", ["rollout.engine=vllm"]))
    told = faster(recipe, 24 * GIB)
    assert told and told.startswith("model.weights=bf16 fits 24 GB") and "6.2 GB" in told and "0.58" in told
    assert faster(recipe, 8 * GIB) is None
    assert faster(check(load_recipe("qwen3b-math", ["model.weights=bf16"])), 24 * GIB) is None


def test_auto_recomputes_as_few_layers_as_fit():
    found = planned(gib=20)
    assert 0 < found.recomputed < found.layers and found.fits
    assert planned(gib=200).recomputed == 0
    assert planned("memory.checkpointing=true").recomputed == found.layers
    assert planned("memory.checkpointing=false").recomputed == 0


FITS = [
    (["rollout.engine=vllm"], 4, ["memory.micro_tokens"]),
    (["rollout.engine=transformers", "rollout.batch_rows=256", "memory.checkpointing=false"], 16, ["memory.checkpointing"]),
    (["rollout.engine=vllm", "rollout.vllm.kv_cache_gb=8"], 8, ["rollout.vllm.kv_cache_gb"]),
    (["rollout.engine=vllm", "rollout.vllm.share_weights=false", "model.weights=bf16"], 14, ["rollout.vllm.share_weights"]),
    (["rollout.engine=transformers", "model.lora=null", "model.weights=bf16"], 24, ["model.lora"]),
    (["model.weights=bf16", "rollout.engine=vllm", "memory.micro_tokens=1024"], 6, ["model.weights"]),
    (["model.id=Qwen/Qwen2.5-14B-Instruct", "model.revision=null", "rollout.engine=vllm", "model.max_new_tokens=131072"], 24,
     ["memory.offload_activations", "model.max_new_tokens"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "gib", "keys"), FITS, ids=lambda x: str(x)[:40])
def test_proposals_fit_when_pasted_and_none_is_idle(overrides, gib, keys):
    assert not planned(*overrides, gib=gib).fits
    settings, promised = fit(check(load_recipe("qwen3b-math", overrides)), gib * GIB)
    assert set(keys) <= {s.key for s in settings} and all(s.reason for s in settings)
    assert planned(*overrides, *map(str, settings), gib=gib) == promised and promised.fits
    for left_out in settings:
        rest = [str(s) for s in settings if s is not left_out]
        less = planned(*overrides, *rest, gib=gib)
        assert not less.fits or less.offloaded > 64 * GIB


def test_nothing_is_proposed_where_it_fits_or_never_will():
    assert fit(check(load_recipe("qwen3b-math")), 24 * GIB)[0] == []
    assert not fit(check(load_recipe("qwen3b-math")), GIB)[1].fits


def test_lines_add_up():
    found = planned()
    lines = found.lines()
    assert len(lines) == len(found.parts) + 3 and lines[-1] == found.verdict()
    assert [float(x) for x in lines[-2].split()[1:8]] == [
        round(found.peak(moment) / GIB, 2) for moment in MOMENTS
    ]
    planned(gib=400).demand()
    with pytest.raises(OutOfMemory, match="short by"):
        planned(gib=2).demand()


# ------------------------------------------------------------------------------------------- the command


def test_the_command_needs_no_torch(tmp_path):
    code = (
        "import sys; from lgrpo_lite.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, "plan", "qwen3b-math", "--gpu", "24GB", "--fit"]
    out = (
        subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True)
        .stdout.strip()
        .splitlines()
    )
    assert out[-1] == "0 False" and out[-2].startswith("fits 24 GB with")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["qwen3b-math", "--gpu", "24576MiB"], 0, "fits 24 GB"),
        (["qwen3b-math", "--gpu", "2GB"], 4, "does not fit 2 GB: short by"),
        (["qwen3b-math", "--gpu", "4GB", "--fit"], 0, "memory.micro_tokens="),
        (["qwen3b-math", "--gpu", "1GB", "--fit"], 4, "no setting makes this one fit"),
        (["qwen3b-math", "--gpu", "4090"], 0, "fits 24 GB"),
        (["qwen3b-math", "--gpu", "NVIDIA GeForce RTX 4090"], 0, "fits 24 GB"),
        (["qwen3b-math", "--gpu", "A100 80GB"], 0, "fits 80 GB"),
        (["qwen3b-math", "--gpu", "80"], 0, "fits 80 GB"),
        (["tiny-math", "--gpu", "3060"], 2, "--gpu 8GB or --gpu 12GB"),
        (["tiny-math", "--gpu", "4090 48GB"], 2, "is sold with 24 GB"),
        (["tiny-math", "--gpu", "4099"], 2, "did you mean '4090'"),
        (["tiny-math", "model.id=some/model"], 2, "--fetch-config"),
        (["qwen3b-math", "model.id=/nowhere", "--gpu", "24GB"], 2, "there is no /nowhere/config.json"),
        (["tiny-math", "--gpu", "many"], 2, "no card of that name"),
        (["tiny-math", "model.weights=bf16", "--probe"], 0, "activations of"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_command_line(capfd, argv, code, words):
    assert lgrpo("plan", *argv) == code
    out, err = capfd.readouterr()
    assert words in out + err
    if code:
        error = err[err.index("error: ") :].splitlines()
        assert len(error) == 3 and error[1].startswith("  at  ") and error[2].startswith("  fix ")


def test_at_80_columns_every_part_is_named_whole():
    planned = plan(check(load_recipe("qwen3b-math")), 24 * GIB)
    screen = console(io.StringIO(), width=80)
    screen.print(_parts_table(planned, noted=False))
    lines = screen.file.getvalue().splitlines()
    assert [line[: len(p.name)] for line, p in zip(lines[1:], planned.parts, strict=False)] == [
        p.name for p in planned.parts
    ]
    assert max(map(len, lines)) <= 80 and lines[-1].startswith("peak")


def test_json_is_one_object_whether_it_fits_or_not(capfd):
    for size, code in (("24GB", 0), ("2GB", 4)):
        assert lgrpo("plan", "qwen3b-math", "--gpu", size, "--json") == code
        made = json.loads(capfd.readouterr().out)
        assert set(made) == {"schema", "ok", "command", "result", "warnings"} and made["ok"] == (code == 0)
        parts = made["result"]["parts"]
        for moment, peak in made["result"]["peak_bytes"].items():
            assert sum(p["bytes"] for p in parts if moment in p["moments"]) == peak


@pytest.mark.parametrize("weights", ["nf4", "int8", "fp32"])
def test_the_probe_agrees_with_the_prediction(capfd, weights):
    assert lgrpo("plan", "tiny-math", f"model.weights={weights}", "--probe", "--json") == 0
    rows = json.loads(capfd.readouterr().out)["result"]["probe"]
    assert [row["name"].split()[0] for row in rows] == ["base", "adapter", "activations"]
    assert all(row["ratio"] == pytest.approx(1, abs=0.03) for row in rows)


def test_a_full_pass_fills_the_budget_of_tokens():
    recipe = tiny_recipe("memory.micro_tokens=1000")
    batch, tokens, predicted = full_pass(Policy.load(recipe), recipe)
    assert 900 < tokens <= 1000 and int(batch.length.max()) == 64 + 48
    assert predicted > budget.weights_bytes(find_config(recipe.model), "fp32")


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_known_by_its_name_with_and_without_its_maker(name):
    assert plain(name) == name
    sizes = {gb * GIB for gb in CARDS[name]}
    for written in (f"RTX {name.upper()}", f"nvidia-{name}"):
        if len(sizes) == 1:
            assert capacity(written) in sizes
        assert {capacity(f"{written} {gb}GB") for gb in CARDS[name]} == sizes


no_gpu = pytest.mark.skipif(cuda_devices() > 0, reason="there is a GPU")


@no_gpu
def test_without_a_gpu_this_machine_is_planned(capfd):
    assert lgrpo("plan", "tiny-math", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["result"]["on_cpu"] and told["result"]["engine"] == "transformers"
    assert told["result"]["size_bytes"] == told["result"]["capacity_bytes"] == memory_of()[0]
    assert "CUDA context" not in {part["name"] for part in told["result"]["parts"]}
    lgrpo("plan", "qwen3b-math")
    said = capfd.readouterr().out
    assert "no NVIDIA GPU was found" in said and "--gpu 24GB plans that" in said
    assert "planned as rollout.engine=transformers" in said


@pytest.mark.parametrize(("weights", "more"), [("nf4", 2), ("int8", 2), ("bf16", 1), ("fp32", 1)])
def test_a_cpu_computes_with_quantised_weights_in_float32(weights, more):
    recipe = check(load_recipe("qwen3b-math", [f"model.weights={weights}", "rollout.engine=transformers"]))
    gpu, cpu = plan(recipe, 999 * GIB), plan(recipe, 999 * GIB, on_cpu=True)
    assert cpu.kv_bytes == more * gpu.kv_bytes
    assert cpu.capacity == 999 * GIB > gpu.capacity


def test_what_fits_a_machine_without_a_gpu_moves_nothing_to_where_it_is():
    recipe = check(load_recipe("qwen3b-math"))
    settings, planned = fit(recipe, 8 * GIB, on_cpu=True)
    assert planned.fits and planned.on_cpu and settings
    assert not any(setting.key == "memory.offload_activations" for setting in settings)


def test_a_config_is_fetched_and_planned_with(tmp_path, monkeypatch, capfd):
    text = SMALL | {"model_type": "qwen3_5_text", "num_hidden_layers": 4}
    config = {"model_type": "qwen3_5", "text_config": text}
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with served({"/some/model/raw/main/config.json": (200, json.dumps(config).encode())}, []) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        argv = ["plan", "tiny-math", "model.id=some/model", "--gpu", "24GB", "--json"]
        assert lgrpo(*argv) == 2
        assert "--fetch-config" in capfd.readouterr().err
        assert lgrpo(*argv, "--fetch-config") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["result"]["layers"] == 4 and any("linear attention" in line for line in told["warnings"])
    assert not list(tmp_path.iterdir())
