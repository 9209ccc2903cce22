"""A merge that holds no whole model: what it writes is, bit for bit, what a whole one writes, and it is proven."""

import json
import math
from importlib import resources
from types import SimpleNamespace
from unittest.mock import patch

import gguf_files
import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import SHAPES, saved
from support import slow_but_for, tiny_recipe
from transformers import AutoTokenizer

from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import ConfigError, DataError, VerificationError
from lgrpo_lite.export import export, merge, room, verify
from lgrpo_lite.export.export import export_merged
from lgrpo_lite.export.slices import SlicedPolicy, Slices
from lgrpo_lite.export.stamp import STAMP
from lgrpo_lite.policy import checkpoint, dequantise
from lgrpo_lite.policy.load import FLOATS, load_base, locate
from lgrpo_lite.policy.passes import VERIFY_SPARE, merged_width
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
    """All of an export but what its report says of the comparison, and how long that is."""
    files = [path for path in folder.iterdir() if path.name not in ("merge_report.json", STAMP)]
    return {path.name: path.read_bytes() for path in files}


def demand_same_export(tmp_path, recipe, policy, **how):
    whole, compared = export_merged(policy, recipe, tmp_path / "whole", PROMPTS, **how)
    sliced = in_slices(recipe, policy, tmp_path / "adapter")
    out, in_parts = export_merged(sliced, recipe, tmp_path / "out", PROMPTS, **how)
    assert (compared.compared, in_parts.compared) == ("whole", "in slices")
    assert in_parts.tensors > 0 and compared.passed and in_parts.passed
    written = files_of(whole)
    assert files_of(out) == written
    assert all(
        parameter.is_meta for parameter in sliced.slices.base.parameters() if not parameter.requires_grad
    )
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["model.lora.rank=4", "model.lora=null"])
@pytest.mark.parametrize("turn", [_bin, _other_head, _head_alone])
def test_so_are_they_however_the_base_was_written(tmp_path, tokenizer, turn, lora):
    base = saved("qwen3", tmp_path / "base", tokenizer)
    turn(base)
    recipe, policy = trained(base, "model.weights=fp32", lora, *(["optim.lr=1e-5"] if "null" in lora else []))
    demand_same_export(tmp_path, recipe, policy)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_so_are_they_of_a_base_that_was_saved_quantised(tmp_path, tokenizer, kind):
    full = saved("qwen3", tmp_path / "full", tokenizer)
    quantised = load_base(tiny_recipe(f"model.id={full}", f"model.weights={kind}").model, torch.device("cpu"))
    base = tmp_path / "base"
    quantised.save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe, policy = trained(base, f"model.weights={kind}")
    demand_same_export(tmp_path, recipe, policy)


def test_so_are_they_of_a_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(dequantise, "LEAST", -99.0)  # of a random model nothing is expected
    settings = gguf_files.byte_level(gguf_files.trained())
    model = gguf_files.tiny("llama", len(settings["tokenizer.ggml.tokens"]))
    file = gguf_files.write(tmp_path / "tiny.gguf", model, "llama", settings, kind="Q8_0")
    recipe, policy = trained(file, "model.weights=nf4")
    demand_same_export(tmp_path, recipe, policy)


# ------------------------------------------------------------------------------------------- the type


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    return saved("llama3", tmp_path_factory.mktemp("base"), tokenizer)


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_all_is_written_in_the_type_that_was_asked_for(tmp_path, llama, weights, dtype):
    recipe, policy = trained(llama, f"model.weights={weights}", f"export.dtype={dtype}")
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    wanted = FLOATS[dtype]
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {wanted}
    assert json.loads((out / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")
    assert json.loads((out / "merge_report.json").read_text())["dtype"] == str(wanted)
    assert compared.tolerance == verify.TOLERANCE[wanted][0] and compared.passed
    given = load_file(llama / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert torch.equal(load_file(out / "model.safetensors")[name], given[name].to(wanted))


def test_of_itself_the_type_is_that_of_the_policy_and_what_did_not_learn_is_as_given(tmp_path, llama):
    recipe, policy = trained(llama, "model.weights=fp32")
    out, _ = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    written = load_file(out / "model.safetensors")
    assert written["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert written["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("sliced", [False, True])
def test_a_number_that_fp16_has_no_place_for_is_named(tmp_path, tokenizer, sliced):
    base = saved("llama3", tmp_path / "base", tokenizer)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe, policy = trained(base, "model.weights=bf16", "export.dtype=fp16")
    if sliced:
        policy = in_slices(recipe, policy, tmp_path / "adapter")
    with pytest.raises(
        VerificationError, match=r"layers.1.mlp.up_proj.weight holds .* no more than 65504"
    ) as error:
        export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert error.value.exit_code == 6 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "width"), [("auto", 2), ("fp32", 4), ("fp16", 2)])
def test_the_plan_counts_the_type_that_is_written(dtype, width):
    recipe = tiny_recipe("model.weights=bf16", f"export.dtype={dtype}")
    assert merged_width(recipe) == width
    assert merged_width(recipe, 4) == (4 if dtype == "auto" else width)


# ------------------------------------------------------------------------------------------- what is refused

Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.weight"


def _changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _swapped(folder):
    def swap(tensors):
        tensors[Q], tensors[K] = tensors[K], tensors[Q]

    _changed(folder, swap)


def _one_number(folder):
    def move(tensors):
        tensors[Q][3, 5] *= 1.02

    _changed(folder, move)


def _untouched(folder):
    _changed(folder, lambda tensors: tensors["model.norm.weight"].mul_(1.01))


def _other_type(folder):
    _changed(folder, lambda tensors: tensors.update({Q: tensors[Q].half()}))


def _other_type_of_the_untouched(folder):
    _changed(
        folder, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].double()})
    )


def _turned(folder):
    _changed(folder, lambda tensors: tensors.update({Q: tensors[Q].T.contiguous()}))


def _cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


FAULTS = {
    _swapped: "is not what it was merged of",
    _one_number: "is not what it was merged of",
    _untouched: "was not trained and is not what it was|is not what it was merged of",
    _other_type: "is not what it was",
    _other_type_of_the_untouched: "norm.weight was not trained and is not what it was",
    _turned: "is not what it was merged of",
    _cut_short: "cannot be read",
}


@pytest.mark.parametrize(("fault", "what"), FAULTS.items(), ids=[fault.__name__ for fault in FAULTS])
def test_a_file_that_is_not_what_was_merged_is_refused(tmp_path, llama, monkeypatch, fault, what):
    real = merge.write_shards

    def write_shards(tensors, folder):
        real(tensors, folder)
        fault(folder)

    monkeypatch.setattr(merge, "write_shards", write_shards)
    recipe, policy = trained(llama, "model.weights=bf16")
    sliced = in_slices(recipe, policy, tmp_path / "adapter")
    with pytest.raises(VerificationError, match=what) as error:
        export_merged(sliced, recipe, tmp_path / "out", PROMPTS)
    assert error.value.exit_code == 6
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("scale", [1.02, 0.0, -1.0])
def test_a_wrong_scale_is_refused_however_small_the_adapter(tmp_path, llama, monkeypatch, scale):
    """Its changes are by less than what bf16 rounds off most of the time; the logits would not tell."""
    recipe, policy = trained(llama, "model.weights=bf16")
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.05)
    sliced = in_slices(recipe, policy, tmp_path / "adapter")
    real = merge._delta
    monkeypatch.setattr(merge, "_delta", lambda *layer: scale * real(*layer))
    with pytest.raises(VerificationError, match="is not what it was merged of"):
        export_merged(sliced, recipe, tmp_path / "out", PROMPTS)


def test_experts_with_an_adapter_are_merged_and_one_that_belongs_nowhere_is_refused(
    tmp_path, tokenizer, monkeypatch
):
    base = saved("mixtral", tmp_path / "base", tokenizer)
    recipe, policy = trained(base, "model.weights=fp32")
    assert any("experts.lora_B" in name for name, _ in policy.model.named_parameters())
    out, compared = export_merged(policy, recipe, tmp_path / "out", PROMPTS)
    assert compared.passed
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert {"w1", "w2", "w3", "gate"} <= {name.split(".")[-2] for name in changed}
    real = merge.weights_of
    monkeypatch.setattr(
        merge, "weights_of", lambda model: (one for one in real(model) if "experts" not in one.name)
    )
    with pytest.raises(VerificationError, match=r"no weight is known that the adapter of .*experts changes"):
        export_merged(policy, recipe, tmp_path / "other", PROMPTS)


def _lose(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(Q)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut_row(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[Q] = tensors[Q][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("fault", "what"), [(_lose, "it lacks"), (_cut_row, "it holds in another shape")])
def test_a_base_that_is_not_whole_is_refused_as_by_a_whole_load(tmp_path, tokenizer, fault, what):
    base = saved("llama3", tmp_path / "base", tokenizer)
    recipe, _ = trained(base, "model.weights=fp32")
    fault(base)
    for load in (load_base, _each_unit):
        with pytest.raises(ConfigError, match=f"{what} {Q}"):
            load(recipe.model, torch.device("cpu"))


def _each_unit(model, device):
    slices = Slices(model, device)
    for unit in list(slices.names):
        with slices.here(unit):
            pass


@pytest.mark.parametrize("lora", ["model.lora.rank=4", "model.lora=null"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, llama, tokenizer, lora):
    more = ["optim.lr=1e-5"] if "null" in lora else []
    recipe, policy = trained(llama, "model.weights=fp32", lora, *more)
    policy.save(tmp_path / "step-000001" / "adapter")
    (tmp_path / "step-000001" / "state.json").write_text("{}")
    other = tmp_path / "other"
    file = next((tmp_path / "step-000001" / "adapter").glob("*.safetensors"))
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if ".2." not in name}, file)
    with pytest.raises(DataError, match="the checkpoint does not fit this run"):
        checkpoint.load_weights(tmp_path / "step-000001", SlicedPolicy.of(recipe))
    assert not other.exists()


# ------------------------------------------------------------------------------------------- which way


def test_the_way_is_decided_by_what_is_free(llama, monkeypatch):
    recipe = tiny_recipe(f"model.id={llama}", "model.weights=fp32")
    monkeypatch.setattr(room, "SHARD_BYTES", 0)
    policy, merged, answer = room._sizes(recipe, torch.device("cpu"))
    needed = math.ceil((policy + merged + answer) / (1 - VERIFY_SPARE))
    monkeypatch.setattr(room, "free_bytes", lambda device: needed + 2)
    assert room.too_little(recipe) is None
    monkeypatch.setattr(room, "free_bytes", lambda device: needed - 2)
    assert room.too_little(recipe).startswith("policy and merged model take")


GIB = 2**30


@pytest.mark.parametrize(
    ("weights", "card", "host", "said"),
    [
        ("nf4", 24, 16, None),  # of a 7B: 5 GiB, and 14 merged beside them
        ("bf16", 24, 64, None),  # the merged model on the CPU
        ("bf16", 24, 14, "the policy passes through the machine's memory"),
        ("nf4", 12, 14, "the merged model takes 14."),
        ("bf16", 12, 64, "the policy takes"),
    ],
)
def test_so_it_is_on_a_card(monkeypatch, weights, card, host, said):
    recipe = tiny_recipe("model.id=shapes", f"model.weights={weights}")
    shape = json.loads((resources.files("lgrpo_lite") / "models/shapes/qwen2.5-7b.json").read_text())
    monkeypatch.setattr(room, "config_of", lambda *_: SimpleNamespace(to_dict=lambda: shape))
    monkeypatch.setattr(room, "device_of", lambda: torch.device("cuda", 0))
    free = {"cuda": card * GIB, "cpu": host * GIB}
    monkeypatch.setattr(room, "free_bytes", lambda device: free[device.type])
    why = room.too_little(recipe)
    assert why is None if said is None else why.startswith(said)


def test_a_family_whose_size_is_not_known_is_counted_by_its_files(llama, monkeypatch):
    recipe = tiny_recipe(f"model.id={llama}", "model.weights=fp32")
    by_config = room._sizes(recipe, torch.device("cpu"))[1]

    def unknown(*_):
        raise ConfigError("not known", where="model.id", fix="none")

    monkeypatch.setattr(room.Shape, "of", unknown)
    assert room._sizes(recipe, torch.device("cpu"))[1] == by_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step, in a process's place."""
    runs = tmp_path_factory.mktemp("runs")
    small = ["train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "model.max_new_tokens=8", "data.eval.limit=4",
             "data.train.limit=8", "eval.k=1", "safety.sync_proof_every=0", "safety.baseline_check=false",
             "export.formats=[]"]  # fmt: skip
    assert main(["recipe", "tiny-math", "--runs", str(runs), "--name", "one", "--ui", "none", *small]) == 0
    return runs / "one"


def test_the_command_says_that_it_went_in_slices_and_why(tmp_path, run, monkeypatch, capsys):
    whole, sliced = tmp_path / "whole", tmp_path / "sliced"
    assert main(["export", str(run), "merged", "--out", str(whole), "--dtype", "bf16"]) == 0
    assert "made in slices" not in capsys.readouterr().out
    monkeypatch.setattr(room, "free_bytes", lambda device: 1 << 20)
    monkeypatch.setattr(Policy, "load", None)  # the whole policy is never loaded
    heard = []
    with patch("lgrpo_lite.cli.terminal.progress.Line.hear", lambda _, work: heard.append(work)):
        assert main(["export", str(run), "merged", "--out", str(sliced), "--dtype", "bf16"]) == 0
    said = capsys.readouterr().out
    assert "made in slices: policy and merged model take" in said and "tensors read back" in said
    files, others = files_of(whole), files_of(sliced)
    cards = [found.pop("README.md").decode() for found in (files, others)]
    assert files == others
    assert ["in slices: " in card for card in cards] == [False, True]
    assert "loading weights" not in {work.what for work in heard}
    for what in ("merging", "verifying in slices"):
        steps = [work for work in heard if work.what == what]
        done = [work.done for work in steps]
        assert done == sorted(done) and steps[-1].finished and len(done) > 5
        assert all(work.left is not None for work in steps[1:])
