"""A base model whose files are not what its config describes is refused: transformers would make weights up."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import saved
from transformers import AutoTokenizer

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy.load import load_base, locate
from lgrpo_lite.recipe.schema import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(locate("builtin:tiny-math"))


def _set(**settings):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def _tensors(change):
    def write(folder):
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return write


def _without(part):
    return _tensors(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def _cut(folder):
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 50)


def _as_bin(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    os.truncate(folder / "pytorch_model.bin", (folder / "pytorch_model.bin").stat().st_size - 200)


FAULTS = {
    "a weight that is not there": ("qwen3", _without("layers.2.mlp.up_proj"), "it lacks model.layers.2.mlp.up_proj.weight"),
    "a head that is not there": ("llama3", _without("lm_head"), "it lacks lm_head.weight"),
    "a layer more than there are": (
        "qwen3", _set(num_hidden_layers=5, layer_types=["full_attention"] * 5), r"it lacks model.layers.4.* \(and 10 more\)",
    ),
    "a bias that the model has no place for": (
        "qwen3", _tensors(lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
        "it has beside it model.layers.0.self_attn.q_proj.bias",
    ),
    "a file that is cut": ("qwen3", _cut, "cannot load .*not fully covered"),
    "an old file that is cut": ("qwen3", _as_bin, "cannot load .*failed reading"),
}  # fmt: skip


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_base_is_refused_that_has(name, weights, tmp_path, tokenizer):
    shape, damage, words = FAULTS[name]
    folder = saved(shape, tmp_path / "base", tokenizer)
    load_base(Model(id=str(folder), weights=weights), CPU)
    damage(folder)
    with pytest.raises(ConfigError, match=words) as error:
        load_base(Model(id=str(folder), weights=weights), CPU)
    assert len(error.value.lines()) == 3


def test_a_weight_of_another_shape_is_named(tmp_path, tokenizer):
    folder = saved("qwen3", tmp_path / "base", tokenizer)
    _set(intermediate_size=64)(folder)
    with pytest.raises(ConfigError, match=r"holds in another shape model.layers.0.mlp.down_proj.weight"):
        load_base(Model(id=str(folder), weights="fp32"), CPU)
