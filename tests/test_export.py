"""What comes out of a run: a PEFT adapter, and a merged model that is the policy in plain transformers."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.adapters.merge import write_shards
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.errors import ConfigError, VerificationError
from lgrpo_lite.policy.load import load_base, locate
from lgrpo_lite.train.build import build
from lgrpo_lite.train.export import export_adapter, export_merged

KINDS = ["fp32", "nf4", "bf16", "full fp32", "full bf16"]


def trained(kind: str):
    """A run whose policy is far enough from its base that a wrong merge cannot pass."""
    lora = ["model.lora=null"] if kind.startswith("full") else []
    run = build(tiny_recipe(f"model.weights={kind.split()[-1]}", "data.eval.limit=32", *lora))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif not run.policy.has_adapter:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_policy(tmp_path, kind):
    run = trained(kind)
    out, check = export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)
    assert check.passed and check.prompts == 32
    exact = not kind.endswith("bf16")
    assert check.max_logit_diff < 1e-3 if exact else check.mean_logit_diff < 0.2
    model = AutoModelForCausalLM.from_pretrained(out)  # plain transformers, nothing of ours
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == (torch.float32 if exact else torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(out)
    if exact:
        with run.engine.serving(run.policy) as sampler:
            answers = sampler.generate(run.eval_prompts, 1, SamplingParams(0.0, 24))
        for prompt, answer in zip(run.eval_prompts, answers, strict=True):
            ids = tokenizer(prompt.text + "\n", return_tensors="pt").input_ids
            assert tuple(ids[0].tolist()) == prompt.token_ids
            got = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :].tolist()
            assert got[: len(answer[0].token_ids)] == list(answer[0].token_ids)
    report = json.loads((out / "merge_report.json").read_text())
    assert report["greedy_equal"] == check.greedy_equal and report["base"] == "as trained"


def test_the_original_base_of_a_4_bit_policy_is_a_choice_and_reported(tmp_path):
    run = trained("nf4")
    _, dequantized = export_merged(run.policy, run.recipe, tmp_path / "a", run.eval_prompts)
    out, original = export_merged(run.policy, run.recipe, tmp_path / "b", run.eval_prompts, base="original")
    assert original.tolerance is None
    assert original.max_logit_diff > 100 * dequantized.max_logit_diff  # the quantisation error
    assert json.loads((out / "merge_report.json").read_text())["base"] == "original"
    plain = load_file(locate("builtin:tiny-math") + "/model.safetensors")
    merged = load_file(out / "model.safetensors")
    assert torch.equal(merged["model.norm.weight"], plain["model.norm.weight"].float())


def test_a_failed_check_leaves_nothing(tmp_path):
    run = trained("bf16")
    with pytest.raises(VerificationError, match="the merged model is not the policy") as error:
        export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts, tolerance=0.0)
    assert error.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_keeps_the_earlier_export(tmp_path):
    run = trained("bf16")
    out, _ = export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(VerificationError):
        export_merged(run.policy, run.recipe, out, run.eval_prompts, tolerance=0.0)
    assert (out / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


def test_a_policy_with_nan_is_not_exported(tmp_path):
    run = trained("fp32")
    with torch.no_grad():
        run.policy.trainable()[0].fill_(float("nan"))
    with pytest.raises((VerificationError, ConfigError)):
        export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fp32", "nf4"])
def test_the_adapter_loads_in_plain_peft(tmp_path, kind):
    run = trained(kind)
    out = export_adapter(run.policy, tmp_path / "adapter")
    base = load_base(run.recipe.model, torch.device("cpu"))
    model = PeftModel.from_pretrained(base, out).eval()
    ids = torch.tensor([run.eval_prompts[0].token_ids])
    run.policy.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, run.policy.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_all_parameters_have_no_adapter(tmp_path):
    with pytest.raises(ConfigError, match="there is no adapter"):
        export_adapter(trained("full fp32").policy, tmp_path / "adapter")


def test_a_foreign_folder_is_never_replaced(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.txt").write_text("years of work")
    run = trained("fp32")
    with pytest.raises(ConfigError, match="no earlier export"):
        export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)
    assert (tmp_path / "merged" / "thesis.txt").exists()


def test_shards(tmp_path):
    tensors = {f"w{i}": torch.full((256,), float(i)) for i in range(5)}
    write_shards(iter(tensors.items()), tmp_path, shard_bytes=2048)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"]["total_size"] == 5 * 1024
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
