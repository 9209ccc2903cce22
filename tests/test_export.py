"""What comes out of a run: a PEFT adapter, and a merged model that is the policy in plain transformers."""

import json
import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from support import tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.cli import export as command
from lgrpo_lite.cli.main import main
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.engines.transformers import TransformersEngine, TransformersSampler
from lgrpo_lite.errors import ConfigError, OutOfMemory, VerificationError
from lgrpo_lite.export import export, verify
from lgrpo_lite.export.export import (
    VERIFY_PROMPTS,
    answering_bytes,
    export_adapter,
    export_merged,
    places,
    room_for,
)
from lgrpo_lite.export.merge import dense, merged_tensors, plain_name, write_shards
from lgrpo_lite.policy.load import load_base, locate
from lgrpo_lite.policy.passes import VERIFY_ROWS, VERIFY_SPARE
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.progress import listening
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step

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
    assert (
        check.max_logit_diff < 1e-3 if exact else check.mean_logit_diff < 0.01
    )  # weights are rounded, no more
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
    assert torch.equal(merged["model.norm.weight"], plain["model.norm.weight"])


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
    out = export_adapter(run.policy, run.recipe, tmp_path / "adapter", run.eval_prompts)
    base = load_base(run.recipe.model, torch.device("cpu"))
    model = PeftModel.from_pretrained(base, out).eval()
    ids = torch.tensor([run.eval_prompts[0].token_ids])
    run.policy.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, run.policy.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5
        )


def test_all_parameters_have_no_adapter(tmp_path):
    run = trained("full fp32")
    with pytest.raises(ConfigError, match="there is no adapter"):
        export_adapter(run.policy, run.recipe, tmp_path / "adapter", run.eval_prompts)


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
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert index["metadata"]["total_size"] == 5 * 1024
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


# ------------------------------------------------------------------------------------------- memory


def cuda_is_full(*_, **__):
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.5 GiB."
    )


def cpu_is_full(*_, **__):
    torch.empty(1 << 52)  # what torch's own allocator raises


def python_is_full(*_, **__):
    raise MemoryError


@contextmanager
def holding(rows: int, full=cuda_is_full):
    """A memory for answers to that many prompts at once; yields how many were tried."""
    real, tried = TransformersSampler._sample, []

    def sample(self, asked, sampling):
        tried.append(len(asked))
        if len(asked) > rows:
            full()
        return real(self, asked, sampling)

    with patch.object(TransformersSampler, "_sample", sample):
        yield tried


@pytest.fixture(scope="module")
def fp32():
    return trained("fp32")


@pytest.fixture(scope="module")
def compared(fp32, tmp_path_factory):
    """What its export says where there is room for all."""
    return export_merged(
        fp32.policy, fp32.recipe, tmp_path_factory.mktemp("room") / "merged", fp32.eval_prompts
    )[1]


@pytest.mark.parametrize(
    ("rows", "full"), [(VERIFY_ROWS, cuda_is_full), (VERIFY_ROWS, python_is_full), (1, cpu_is_full)]
)
def test_where_memory_ends_fewer_prompts_are_answered_at_once_and_one_by_one_but_few(
    tmp_path, fp32, compared, rows, full
):
    training = fp32.policy.model.training
    with holding(rows, full) as tried:
        out, check = export_merged(fp32.policy, fp32.recipe, tmp_path / "merged", fp32.eval_prompts)
    one_by_one = rows < VERIFY_ROWS
    assert check.passed and out.exists()
    assert check.prompts == export.FEW_PROMPTS if one_by_one else check == compared
    assert tried[0] == 32 and tried[-1] == rows
    assert fp32.policy.model.training == training


def test_where_nothing_fits_the_error_is_of_the_export_and_nothing_is_left(tmp_path, fp32, monkeypatch):
    monkeypatch.setattr(export, "compared_in_slices", cpu_is_full)
    with holding(0), pytest.raises(OutOfMemory, match="the export does not fit into memory") as error:
        export_merged(fp32.policy, fp32.recipe, tmp_path / "merged", fp32.eval_prompts)
    assert error.value.exit_code == 4 and error.value.where == "export"
    assert "lgrpo-lite export RUN merged" in error.value.fix and "micro_tokens" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_another_fault_is_not_taken_for_memory(tmp_path, fp32):
    def broken():
        raise RuntimeError("a shape is wrong")

    with holding(0, broken), pytest.raises(RuntimeError, match="a shape is wrong"):
        export_merged(fp32.policy, fp32.recipe, tmp_path / "merged", fp32.eval_prompts)


def test_the_merged_model_on_the_cpu_is_compared_with_a_policy_elsewhere(tmp_path, fp32, monkeypatch):
    """`cpu:0` is not the policy's `cpu`: this device is another for torch, and is there."""
    tried = [(torch.device("cpu"), 32), (torch.device("cpu:0"), 4)]
    monkeypatch.setattr(export, "places", lambda *_: tried)
    heard = []
    with holding(4), listening(heard.append):
        out, check = export_merged(fp32.policy, fp32.recipe, tmp_path / "merged", fp32.eval_prompts)
    assert check.passed and check.prompts == export.FEW_PROMPTS
    assert heard[-1].what.startswith("verifying on the CPU") and heard[-1].finished
    report = json.loads((out / "merge_report.json").read_text())
    assert report["device"] == "cpu" and report["prompts"] == check.prompts


GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
LONGEST = 40
MERGED = 100 << 20


def free_for(needed: int) -> int:
    """The least that has to be free, so that the spare share is left."""
    return math.ceil(needed / (1 - VERIFY_SPARE))


@pytest.mark.parametrize(
    (
        "beside",
        "host",
        "expected",
    ),  # prompts that there is room for beside the merged model, bytes of the machine
    [
        (32, MERGED, [(GPU, 32), (GPU, 4), (GPU, 1), (CPU, 32), (CPU, 4), (CPU, 1)]),
        (32, MERGED - 1, [(GPU, 32), (GPU, 4), (GPU, 1)]),
        (9, MERGED, [(GPU, 8), (GPU, 4), (GPU, 1), (CPU, 32), (CPU, 4), (CPU, 1)]),
        (4, 0, [(GPU, 4), (GPU, 1)]),
        (1, MERGED, [(GPU, 1), (CPU, 32), (CPU, 4), (CPU, 1)]),
        (0, MERGED, [(CPU, 32), (CPU, 4), (CPU, 1)]),  # no room on the GPU for an answer beside the model
        (0, 0, []),
    ],
)
def test_the_places_ask_for_less_and_less(fp32, monkeypatch, beside, host, expected):
    free = free_for(MERGED + answering_bytes(fp32.policy, fp32.recipe, beside, LONGEST))
    monkeypatch.setattr(export, "free_bytes", lambda device: host if device.type == "cpu" else free)
    policy = SimpleNamespace(device=GPU, base=fp32.policy.base, dtype=fp32.policy.dtype)
    prompts = [SimpleNamespace(token_ids=range(n)) for n in (3, LONGEST, 7)]
    assert places(policy, fp32.recipe, MERGED, prompts) == expected


def test_room_is_counted_to_two_bytes(fp32):
    for rows in (32, 16, 8, 4, 2, 1):
        needed = free_for(MERGED + answering_bytes(fp32.policy, fp32.recipe, rows, LONGEST))
        found = [room_for(fp32.policy, fp32.recipe, MERGED, LONGEST, free) for free in (needed - 2, needed)]
        assert found == [rows // 2, rows]
    assert room_for(fp32.policy, fp32.recipe, MERGED, LONGEST, 1 << 50) == VERIFY_PROMPTS


@pytest.mark.parametrize("fits", [False, True])
def test_a_model_that_fits_nowhere_is_read_back_in_slices(tmp_path, fp32, monkeypatch, fits):
    """Whether that is known before, or found out when even one prompt is too much."""
    if not fits:
        monkeypatch.setattr(export, "places", lambda *_: [])
        monkeypatch.setattr(export, "_loaded", None)
    training = fp32.policy.model.training
    with holding(0):
        out, check = export_merged(fp32.policy, fp32.recipe, tmp_path / "merged", fp32.eval_prompts)
    assert check.passed and check.compared == "in slices" and check.tensors > 20
    assert json.loads((out / "merge_report.json").read_text())["compared"] == "in slices"
    assert fp32.policy.model.training == training


def test_a_run_lets_go_of_engine_and_optimiser_and_the_policy_stays(tmp_path):
    run = build(tiny_recipe("data.eval.limit=8", "rollout.group_size=4", "algorithm.kl.coef=0.04"))
    train_step(1, run)
    for parameter in run.policy.trainable():
        parameter.grad = torch.ones_like(parameter)
    assert any(True for _ in run.optimizer.state_tensors())
    before = (
        export_adapter(run.policy, run.recipe, tmp_path / "before", run.eval_prompts)
        / "adapter_model.safetensors"
    )
    with patch.object(
        TransformersEngine, "close", side_effect=ValueError("cannot close")
    ) as closed:  # a fault of a library
        run.let_go()
    closed.assert_called_once()
    assert not any(True for _ in run.optimizer.state_tensors())
    assert all(parameter.grad is None for parameter in run.policy.trainable())
    after = (
        export_adapter(run.policy, run.recipe, tmp_path / "after", run.eval_prompts)
        / "adapter_model.safetensors"
    )
    assert after.read_bytes() == before.read_bytes()
    assert export_merged(run.policy, run.recipe, tmp_path / "merged", run.eval_prompts)[1].passed


def test_a_finished_run_closes_its_engine_before_it_exports(tmp_path, monkeypatch, capsys):
    order = []
    monkeypatch.setattr(TransformersEngine, "close", lambda self: order.append("closed"))

    def full(*_, **__):
        order.append("export")
        with export.memory_told():
            cuda_is_full()

    monkeypatch.setattr(export, "export_merged", full)
    small = ["train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "model.max_new_tokens=8", "data.eval.limit=2",
             "data.train.limit=8", "eval.k=1", "safety.sync_proof_every=0", "safety.baseline_check=false"]  # fmt: skip
    code = main(["recipe", "tiny-math", "--runs", str(tmp_path), "--name", "one", "--ui", "none", *small])
    assert (code, order) == (4, ["closed", "export"])
    assert "lgrpo-lite export RUN merged" in capsys.readouterr().err
    assert json.loads((tmp_path / "one" / "STATUS.json").read_text())["state"] == "failed"
    assert (tmp_path / "one" / "export" / "adapter").exists()


def test_export_by_hand_says_so_where_the_policy_itself_has_no_room(fp32, monkeypatch):
    monkeypatch.setattr(Policy, "load", cuda_is_full)
    with pytest.raises(OutOfMemory, match="CUDA out of memory") as error:
        command._loaded(fp32.recipe, Path())
    assert error.value.where == "export"


@pytest.mark.parametrize(
    ("moved", "mean"), [("all by the same", 0.0), ("every other", 0.5), ("to nan", -1.0)]
)
def test_what_all_logits_of_a_position_share_is_no_difference(moved, mean):
    def policy_logits(ids):
        return torch.arange(8.0).repeat(1, ids.shape[1], 1)

    def merged_logits(ids):
        logits = policy_logits(ids)
        if moved == "all by the same":
            return logits + 1
        logits[..., ::2] += 1 if moved == "every other" else float("nan")
        return logits

    prompts, answers = [[1, 2]], [[7, 7]]
    limits = {"tolerance": 1e-3, "least_same_top": 0.0}
    result = verify.compare(policy_logits, merged_logits, prompts, answers, answers, **limits)
    assert result.mean_logit_diff == mean and result.passed == (mean == 0)


def test_small_changes_are_not_rounded_away_from_4_bit_weights(monkeypatch):
    """Changes by an eighth of a step of bf16 and less arrive in a merged weight on the average."""
    monkeypatch.setattr("lgrpo_lite.policy.policy.compute_dtype", lambda weights, device: torch.bfloat16)
    monkeypatch.setattr("lgrpo_lite.policy.load.compute_dtype", lambda weights, device: torch.bfloat16)
    policy = Policy.load(tiny_recipe("model.weights=nf4"))
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2e-5)
    merged = dict(merged_tensors(policy.model, torch.bfloat16))
    for path, module in policy.model.named_modules():
        if isinstance(module, LoraLayer):
            delta = module.get_delta_weight("default").float().detach()
            before = dense(module.get_base_layer().weight)
            after = merged[f"{plain_name(path)}.weight"].float()
            assert delta.abs().mean() < before.abs().mean() / 2**11
            arrived = ((after - before.float()) * delta).sum() / delta.square().sum()
            assert arrived.item() == pytest.approx(1, abs=0.3), path
