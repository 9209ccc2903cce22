"""A merge that holds no whole model: what it writes is, bit for bit, what a whole one writes, and it is proven."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import SHAPES, saved
from support import slow_but_for, tiny_recipe
from transformers import AutoTokenizer

from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.export import export, merge, verify
from lgrpo_lite.export.export import export_merged
from lgrpo_lite.export.formats import FORMATS, Job
from lgrpo_lite.export.slices import SlicedPolicy, Slices
from lgrpo_lite.policy.load import load_base, locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Prompt

BUILTIN = locate("builtin:tiny-math")
PROMPTS = [Prompt(str(i), text, tuple(range(40 + i, 60)), "") for i, text in enumerate(("1+1=", "2 plus 2?"))]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUILTIN)


@pytest.fixture(autouse=True)
def only_means_are_judged(monkeypatch):
    """Of a random model, as all these are, any token is hardly likelier than the next."""
    monkeypatch.setattr(export, "VERIFY_TOKENS", 2)
    for dtype, (mean, _) in verify.TOLERANCE.items():
        monkeypatch.setitem(verify.TOLERANCE, dtype, (mean, 0.0))
    monkeypatch.setattr(verify, "ROUNDED", (0.3, 0.0))


def trained(folder, *overrides: str):
    """Recipe and policy of that base, which has learned something everywhere that text passes through."""
    recipe = tiny_recipe(f"model.id={folder}", *overrides)
    policy = Policy.load(recipe)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif not policy.has_adapter and "vis" not in name:
                parameter.add_(0.01)
    return recipe, policy


def in_slices(recipe, policy, folder):
    """The same policy on slices, out of what a checkpoint would hold."""
    policy.save(folder)
    sliced = SlicedPolicy.of(recipe)
    sliced.restore(folder)
    return sliced


def files_of(folder):
    """All of an export but what its report says of the comparison."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "merge_report.json"}


def demand_same_export(tmp_path, recipe, policy, **how):
    whole, compared = export_merged(policy, recipe, tmp_path / "whole", PROMPTS, **how)
    sliced = in_slices(recipe, policy, tmp_path / "adapter")
    out, in_parts = export_merged(sliced, recipe, tmp_path / "out", PROMPTS, **how)
    assert (compared.compared, in_parts.compared) == ("whole", "in slices")
    assert in_parts.tensors > 0 and compared.passed and in_parts.passed
    written = files_of(whole)
    assert files_of(out) == written
    assert all(parameter.is_meta for parameter in sliced.slices.base.parameters() if not parameter.requires_grad)
    return out


# ------------------------------------------------------------------------------------------- the same files

WEIGHTS = {
    "fp32": ["model.weights=fp32"],
    "bf16": ["model.weights=bf16"],
    "nf4": ["model.weights=nf4"],
    "int8": ["model.weights=int8"],
    "full": ["model.weights=fp32", "model.lora=null", "optim.lr=1e-5"],
}
CASES = [(shape, weights) for shape in SHAPES for weights in WEIGHTS]
KEPT = [("qwen2.5", weights) for weights in WEIGHTS] + [
    ("qwen3.5", "nf4"), ("mixtral", "int8"), ("gpt-oss", "fp32"), ("gemma3", "full"), ("smolvlm", "bf16"), ("granite-hybrid", "nf4"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "weights"), slow_but_for(KEPT, CASES))
def test_the_files_are_those_of_a_whole_merge(tmp_path, tokenizer, shape, weights):
    base = saved(shape, tmp_path / "base", tokenizer, max_shard_size="60KB")
    recipe, policy = trained(base, *WEIGHTS[weights])
    demand_same_export(tmp_path, recipe, policy)


ADAPTERS = {
    "rslora": ["model.lora.rslora=true", "model.lora.alpha=7"],
    "two modules": ["model.lora.targets=[q_proj,down_proj]"],
    "a head that is tied": ["model.lora.targets=[q_proj,lm_head]"],
    "in fp32": ["export.dtype=fp32"],
    "in bf16": ["export.dtype=bf16"],
    "in fp16": ["export.dtype=fp16"],
}


@pytest.mark.parametrize("kind", ["nf4", "bf16"])
@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_so_are_they_of_every_adapter_and_type(tmp_path, tokenizer, settings, kind):
    base = saved("llama3", tmp_path / "base", tokenizer)
    recipe, policy = trained(base, f"model.weights={kind}", *settings)
    demand_same_export(tmp_path, recipe, policy)


def test_so_are_they_of_the_original_base_of_a_4_bit_policy(tmp_path, tokenizer):
    base = saved("qwen3", tmp_path / "base", tokenizer)
    recipe, policy = trained(base, "model.weights=nf4")
    whole, _ = export_merged(policy, recipe, tmp_path / "whole", PROMPTS, base="original")
    sliced = in_slices(recipe, policy, tmp_path / "adapter")
    out, compared = export_merged(sliced, recipe, tmp_path / "out", PROMPTS, base="original")
    assert files_of(out) == files_of(whole) and compared.tolerance is None and compared.tensors > 0


def _bin(folder):
    """As older models come, with the head that is tied in it and names without a prefix."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _other_head(folder):
    """Tied by its config, and not by its numbers: two for transformers."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _head_alone(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("lora", ["model.lora.rank=4", "model.lora=null"])
@pytest.mark.parametrize("turn", [_bin, _other_head, _head_alone])
def test_so_are_they_however_the_base_was_written(tmp_path, tokenizer, turn, lora):
    base = saved("qwen3", tmp_path / "base", tokenizer)
    turn(base)
    recipe, policy = trained(base, "model.weights=fp32", lora, *(["optim.lr=1e-5"] if "null" in lora else []))
    demand_same_export(tmp_path, recipe, policy)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_so_are_they_of_a_base_that_was_saved_quantised(tmp_path, tokenizer, kind):
    full = saved("qwen3", tmp_path / "full", tokenizer)
    quantised = load_base(tiny_recipe(f"model.id={full}", f"model.weights={kind}").model, torch.device("cpu"))
    base = tmp_path / "base"
    quantised.save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe, policy = trained(base, f"model.weights={kind}")
    demand_same_export(tmp_path, recipe, policy)
