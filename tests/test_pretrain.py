"""The embedded model: made by a script of this project, small, and able to start the main job."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.models.pretrain import byte_tokenizer, pretrain
from lgrpo_lite.policy.load import locate

SHIPPED = Path(locate("builtin:tiny-math"))


def test_a_short_training_learns_and_saves(tmp_path, capfd):
    torch.manual_seed(0)
    out = pretrain(tmp_path / "model", steps=30, batch=16)
    lines = [line for line in capfd.readouterr().out.splitlines() if "loss" in line]
    assert float(lines[-1].split("loss ")[1].split(" ")[0]) < 3.0  # an untrained one: ln 258 = 5.6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = tokenizer("47+36=?\n", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] <= ids.shape[1] + 4
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_the_shipped_model_is_what_the_script_makes(tmp_path):
    out = pretrain(tmp_path / "model", steps=1, batch=2)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((SHIPPED / name).read_text()), name
    shapes = [
        {k: (v.shape, v.dtype) for k, v in load_file(f / "model.safetensors").items()} for f in (out, SHIPPED)
    ]
    assert shapes[0] == shapes[1]


def test_the_shipped_model_is_small():
    tensors = load_file(SHIPPED / "model.safetensors")
    config = json.loads((SHIPPED / "config.json").read_text())
    assert sum(t.numel() for t in tensors.values()) < 1_500_000
    assert (SHIPPED / "model.safetensors").stat().st_size < 3 * 1024**2
    assert config["model_type"] == "qwen2" and config["hidden_size"] // config["num_attention_heads"] >= 32


@pytest.mark.parametrize("text", ["47+36=?\n", "Größe 数学 🙂", "\x00\x01\xff", ""])
def test_the_tokenizer_is_lossless(text):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
