"""A merged export is the base it came from: its tensors under their names, its architectures, its files."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from shapes import saved
from support import tiny_recipe
from transformers import AutoTokenizer

from lgrpo_lite.errors import VerificationError
from lgrpo_lite.export import check, export
from lgrpo_lite.export.export import export_merged
from lgrpo_lite.export.given import Given
from lgrpo_lite.export.merge import dense
from lgrpo_lite.policy.load import locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.types import Prompt

BUILTIN = locate("builtin:tiny-math")
PROMPTS = [Prompt(str(i), text, tuple(range(40 + i, 60)), "") for i, text in enumerate(("1+1=", "2 plus 2?"))]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUILTIN)


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """The comparison itself is tests/test_export.py's."""
    monkeypatch.setattr(export, "VERIFY_TOKENS", 4)


def trained(folder, *overrides: str):
    """Recipe and policy of that base, with an adapter that is not nothing."""
    recipe = tiny_recipe(f"model.id={folder}", "model.weights=fp32", *overrides)
    policy = Policy.load(recipe)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif not policy.has_adapter and "q_proj" in name and "vis" not in name:
                parameter.add_(0.01)
    return recipe, policy


def tensors_of(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def unchanged(before, after):
    """Names of the tensors that are the same, bit for bit."""
    assert before.keys() == after.keys()
    names = [name for name in before if before[name].dtype == after[name].dtype]
    return {name for name in names if torch.equal(before[name], after[name])}


SEEING = [
    ("qwen3.5", "nf4"), ("gemma3", "fp32"), ("qwen2.5-vl", "fp32"), ("llava", "nf4"), ("mistral3", "fp32"), ("smolvlm", "fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "weights"), SEEING)
def test_a_model_that_sees_keeps_its_eyes(tmp_path, tokenizer, shape, weights):
    base = saved(shape, tmp_path / "base", tokenizer)
    recipe, policy = trained(base, f"model.weights={weights}")
    assert not [name for name, _ in policy.model.named_parameters() if "lora" in name and "vis" in name]
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert compared.passed and compared.greedy_equal == len(PROMPTS)
    before, after = tensors_of(base), tensors_of(out)
    same = unchanged(before, after)
    eyes = ("vis", "projector", "connector")
    assert {name for name in before if any(part in name for part in eyes)} <= same
    assert {name.split(".")[-2] for name in before.keys() - same} <= {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj",
    }  # fmt: skip
    for name in ("generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    given, written = (json.loads((folder / "config.json").read_text()) for folder in (base, out))
    assert written["architectures"] == given["architectures"]
    assert written | {"dtype": "", "text_config": ""} == given | {"dtype": "", "text_config": ""}
    named = getattr(transformers, given["architectures"][0])
    model, info = named.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.float32


@pytest.mark.parametrize("shape", ["mixtral", "gpt-oss", "granite-hybrid", "llama3"])
def test_every_tensor_keeps_its_name(tmp_path, tokenizer, shape):
    """Experts that transformers holds as one tensor are written one by one, as they were given."""
    base = saved(shape, tmp_path / "base", tokenizer, max_shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    recipe, policy = trained(base, "model.lora.targets=[q_proj]")
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert compared.passed
    before, after = tensors_of(base), tensors_of(out)
    changed = before.keys() - unchanged(before, after)
    assert changed and all("q_proj" in name for name in changed)


def _with_head(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def _bare(tensors):
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def _with_more(tensors):
    return tensors | {"mtp.layers.0.weight": torch.ones(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}  # fmt: skip


@pytest.mark.parametrize(
    ("turn", "kind", "lora"),
    [
        (_with_head, "safetensors", "model.lora.rank=4"),
        (_with_head, "bin", "model.lora=null"),
        (_bare, "safetensors", "model.lora.rank=4"),
        (_with_more, "bin", "model.lora.rank=4"),
    ],
)
def test_a_checkpoint_comes_back_however_it_was_written(tmp_path, tokenizer, turn, kind, lora):
    base = saved("qwen3", tmp_path / "base", tokenizer)
    tensors = turn(load_file(base / "model.safetensors"))
    (base / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(tensors, base / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe, policy = trained(base, lora, *(["optim.lr=1e-5"] if "null" in lora else []))
    with torch.no_grad():
        if not policy.has_adapter:  # embeddings learn too, and stand twice in one of them
            policy.base.get_input_embeddings().weight.add_(0.01)
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert compared.passed
    after = tensors_of(out)
    assert after.keys() == tensors.keys()
    if turn is _with_head:
        assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    if turn is _with_more:
        assert torch.equal(after["mtp.layers.0.weight"], torch.ones(3))


def test_a_base_that_was_saved_in_4_bits_comes_back_in_numbers(tmp_path, tokenizer):
    """With a tower that was quantised too and that the policy never held."""
    full = saved("qwen3.5", tmp_path / "full", tokenizer)
    quantised = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)  # fmt: skip
    model = transformers.Qwen3_5ForConditionalGeneration.from_pretrained(full, quantization_config=quantised)
    base = tmp_path / "base"
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(full).save_pretrained(base)
    assert any(name.endswith(".absmax") and "visual" in name for name in tensors_of(base))
    recipe, policy = trained(base, "model.weights=nf4")
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert compared.passed and "quantization_config" not in json.loads((out / "config.json").read_text())
    before, after = tensors_of(full), tensors_of(out)
    assert before.keys() == after.keys()
    for name, parameter in model.named_parameters():
        assert after[name].is_floating_point() and after[name].shape == before[name].shape
        if "visual" in name:
            assert torch.equal(after[name], dense(parameter).to(after[name].dtype))


# ------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def seeing(tmp_path, tokenizer):
    return trained(saved("qwen3.5", tmp_path / "base", tokenizer))


def _lose_tensor(monkeypatch):
    real = export.whole
    monkeypatch.setattr(
        export,
        "whole",
        lambda *given, **how: (one for one in real(*given, **how) if "pos_embed" not in one[0]),
    )


def _lose_architectures(monkeypatch):
    real = Given.config_for

    def config_for(self, dtype):
        return {key: value for key, value in real(self, dtype).items() if key != "architectures"}

    monkeypatch.setattr(Given, "config_for", config_for)


def _lose_rows(monkeypatch):
    real = export.whole

    def cut(*given, **how):
        for name, tensor in real(*given, **how):
            yield name, tensor[:3] if "pos_embed" in name else tensor

    monkeypatch.setattr(export, "whole", cut)


def _lose_unseen(monkeypatch):
    """What the first check would see, were it not there."""
    _lose_tensor(monkeypatch)
    monkeypatch.setattr(check, "demand_whole", lambda folder, given: None)


@pytest.mark.parametrize(
    ("lose", "what"),
    [
        (_lose_tensor, "1 of the 89 tensors of its base, e.g. model.visual.pos_embed.weight"),
        (_lose_architectures, "architectures, which were"),
        (_lose_rows, r"the shape of model.visual.pos_embed.weight, which was \(16, 32\) and is \(3, 32\)"),
        (_lose_unseen, "1 weights that loading it would make up, e.g. model.visual.pos_embed.weight"),
    ],
)
def test_an_export_that_lost_something_is_refused(tmp_path, seeing, monkeypatch, lose, what):
    recipe, policy = seeing
    lose(monkeypatch)
    with pytest.raises(VerificationError, match=f"the export would lose {what}") as error:
        export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert error.value.exit_code == 6 and "nothing was written" in error.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
