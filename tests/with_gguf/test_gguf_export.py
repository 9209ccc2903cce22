"""The packaged model as GGUF, through a real llama.cpp: each file is the policy, or nothing is there."""

import dataclasses
import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from modelfiles import read_modelfile
from planted import FAULTS, OF_ADAPTER, plant
from support import lgrpo, tiny_recipe

pytest.importorskip("llama_cpp")

from llama_cpp import Llama

from lgrpo_lite.data.template import tokens
from lgrpo_lite.engines.base import sampling_of
from lgrpo_lite.errors import ConfigError, DiskFault, VerificationError
from lgrpo_lite.export import gguf, gguf_proof, gguf_report
from lgrpo_lite.export.formats import FORMATS, Job
from lgrpo_lite.export.go_chat import as_ollama_has_it
from lgrpo_lite.export.go_template import render
from lgrpo_lite.rollout.tools import tools_of
from lgrpo_lite.train.build import build


def job_of(folder: Path, *settings: str, std: float = 0.02) -> tuple[Job, object]:
    """A run whose policy is far enough from its base that a wrong file cannot pass, and the run itself."""
    run = build(tiny_recipe("data.eval.limit=64", *settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=std)

    def tools(sampler):
        return tools_of(run.recipe, run.policy, run.reward, sampler, sampling_of(run.recipe, 0.0))

    (folder / "a run").mkdir()
    load = (run.policy, run.eval_prompts)
    return Job(run.recipe, folder / "a run", "step-000002", lambda: load, tools), run


def shown(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    made, run = job_of(tmp_path_factory.mktemp("run"), "export.eval=64")
    yield made
    run.reward.close()


@pytest.fixture(scope="module")
def made(job):
    """Every file there is, once."""
    out = job.at("gguf")
    return out, gguf.export_gguf(job, out, list(gguf_report.BITS))


def test_the_16_bit_file_is_the_policy(made):
    out, report = made
    row = report["files"][0]
    assert row["quant"] == "f16" and row["kl"] <= 1e-5 and row["same_top"] == 1.0
    assert row["greedy_equal"] == row["prompts"] == gguf_proof.ANSWERED
    assert report["training_kl"] > 100 * row["kl"]
    assert shown(out) == sorted(
        [*(f"a-run-{quant}.gguf" for quant in gguf_report.BITS), "export_report.json"]
    )


def test_a_smaller_file_is_further_away_and_says_so(made):
    _, report = made
    rows = {row["quant"]: row for row in report["files"]}
    assert rows["Q8_0"]["same_top"] >= 0.95
    assert rows["Q8_0"]["kl"] < rows["Q5_K_M"]["kl"] < rows["Q4_K_M"]["kl"]
    assert rows["f16"]["bytes"] > rows["Q8_0"]["bytes"] > rows["Q4_K_M"]["bytes"]


def test_it_solves_held_out_problems_as_often_as_the_policy(made):
    _, report = made
    solved = report["files"][0]["eval"]
    assert solved["problems"] == 64
    assert solved["difference_low"] <= 0 <= solved["difference_high"]
    assert solved["low"] <= solved["accuracy"] <= solved["high"]


def test_noise_larger_than_training_is_warned_of_with_a_better_choice():
    rows = [
        {"quant": quant, "kl": kl, "kept": True}
        for quant, kl in (("f16", 1e-6), ("Q8_0", 1e-3), ("Q4_K_M", 0.1))
    ]
    assert gguf_report.noise(rows, 0.2) == []
    assert gguf_report.noise(rows[:1], 0.0) == []  # of a checkpoint before training
    [alone] = gguf_report.noise(rows, None)  # all parameters were trained: there is no base beside it
    assert "Q4_K_M" in alone and "0.05 is much" in alone
    [note] = gguf_report.noise(rows, 0.01)
    assert "Q4_K_M" in note and note.endswith("take Q8_0")
    assert [note[-3:] for note in gguf_report.noise(rows, 2e-4)] == ["f16", "f16"]
    assert gguf_report.noise([rows[0], rows[2] | {"kept": False}], 0.01) == []


@pytest.mark.parametrize(
    "settings", [(), ("model.lora.rslora=true",), ("model.weights=nf4",)], ids=["lora", "rslora", "nf4"]
)
def test_an_adapter_on_its_base_is_the_policy(tmp_path, settings):
    job, run = job_of(tmp_path, *settings)
    report = gguf.export_lora_gguf(job, tmp_path / "out")
    run.reward.close()
    [row] = report["files"]
    assert row["kl"] <= 1e-5 and row["greedy_equal"] == row["prompts"] and report["training_kl"] > 1e-3
    assert shown(tmp_path / "out") == ["a-run-lora.gguf", "export_report.json"]


@pytest.mark.parametrize(
    "settings", [("model.weights=nf4",), ("model.lora=null",)], ids=["nf4", "all parameters"]
)
def test_other_policies_come_out_whole(tmp_path, settings):
    job, run = job_of(tmp_path, *settings)
    report = gguf.export_gguf(job, tmp_path / "out", ["f16"])
    run.reward.close()
    assert report["files"][0]["kl"] <= 1e-5
    assert (report["training_kl"] is None) == (settings[0] == "model.lora=null")


def test_where_16_bits_are_too_few_32_are_the_policy(job, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_proof, "MOST_KL", 1e-8)  # as a policy would want it that rounding moves far
    report = gguf.export_gguf(job, tmp_path / "out", ["f16"])
    assert report["files"][0]["kl"] > 1e-8
    assert shown(tmp_path / "out") == ["a-run-f16.gguf", "export_report.json"]


# ------------------------------------------------------------------------------------------- faults


@contextmanager
def nothing_new(folder: Path):
    """What is there when it begins is all there is when it ends."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield
    after = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"
    }
    assert {path for path in after if path not in before} == set()
    assert all(after[path] == before[path] for path in after)


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_with_a_fault_is_refused(job, made, tmp_path, monkeypatch, name):
    convert = gguf._convert

    def with_fault(making, out, **more):
        convert(making, out, **more)
        plant(out, FAULTS[name])

    monkeypatch.setattr(gguf, "_convert", with_fault)
    out, _ = made
    with nothing_new(out), pytest.raises(VerificationError) as error:
        gguf.export_gguf(job, out, ["Q8_0"])
    assert error.value.exit_code == 6 and not list(out.parent.glob(".*"))


@pytest.mark.parametrize("name", ["swapped tensor", "rope", "norm"])
def test_a_fault_of_the_16_bit_file_alone_is_no_rounding(job, tmp_path, monkeypatch, name):
    convert = gguf._convert

    def with_fault(making, out, **more):
        convert(making, out, **more)
        if more.get("kind", "f16") == "f16":
            plant(out, FAULTS[name])

    monkeypatch.setattr(gguf, "_convert", with_fault)
    with pytest.raises(VerificationError, match="is not the same in 32 bits"):
        gguf.export_gguf(job, tmp_path / "out", ["f16"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rope", "swapped tensor"])
def test_a_quantised_file_that_is_another_model_is_refused(job, tmp_path, monkeypatch, name):
    quantise = gguf._quantise

    def with_fault(making, source, out, quant):
        quantise(making, source, out, quant)
        plant(out, FAULTS[name])

    monkeypatch.setattr(gguf, "_quantise", with_fault)
    with pytest.raises(VerificationError, match="of any file"):
        gguf.export_gguf(job, tmp_path / "out", ["Q8_0"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", OF_ADAPTER)
def test_an_adapter_with_a_fault_is_refused(job, tmp_path, monkeypatch, name):
    convert = gguf._convert_adapter

    def with_fault(making, out):
        convert(making, out)
        plant(out, OF_ADAPTER[name])

    monkeypatch.setattr(gguf, "_convert_adapter", with_fault)
    with pytest.raises(VerificationError, match="is not the policy"):
        gguf.export_lora_gguf(job, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_ends_the_process_is_refused(job, tmp_path, monkeypatch):
    convert = gguf._convert

    def cut(making, out, **more):
        convert(making, out, **more)
        plant(out, lambda reader: reader.data.__setitem__(slice(24, 400), 0))

    monkeypatch.setattr(gguf, "_convert", cut)
    with pytest.raises((VerificationError, ConfigError)):
        gguf.export_gguf(job, tmp_path / "out", ["f16"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_script_does_not_know_is_named_before_anything_is_merged(job, tmp_path, monkeypatch):
    monkeypatch.setattr("lgrpo_lite.export.gguf_writer.knows", lambda folder: False)
    monkeypatch.setattr(gguf.merge, "merged_tensors", None)
    with pytest.raises(ConfigError, match="does not take Qwen2ForCausalLM") as error:
        gguf.export_gguf(job, tmp_path / "out", ["f16"])
    assert "export merged" in error.value.fix and list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before(job, tmp_path, monkeypatch):
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000, "total": usage.f_blocks})()
    )
    with pytest.raises(DiskFault, match="the export takes") as error:
        gguf.export_gguf(job, tmp_path / "out", ["f16"])
    assert error.value.exit_code == 7 and list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("left", [1_000_000, 1_900_000])
def test_a_disk_that_fills_while_files_are_made_leaves_nothing(job, small_disk, monkeypatch, left):
    monkeypatch.setattr(gguf, "_demand_room", lambda *_: None)
    (small_disk / "ballast").write_bytes(b"0" * (4 * 2**20 - left - 300_000))
    with pytest.raises(DiskFault, match="the disk is full"):
        gguf.export_gguf(job, small_disk / "out", ["Q8_0", "Q6_K"])
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of a few steps whose recipe asks for GGUF."""
    runs = tmp_path_factory.mktemp("runs")
    small = ["train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=4", "data.train.limit=16", "data.eval.limit=8",
             "eval.k=1", "safety.sync_proof_every=0", "safety.baseline_check=false", "model.max_new_tokens=24"]  # fmt: skip
    asked = ["export.formats=[gguf]", "export.quant=[Q8_0]"]
    assert lgrpo("recipe", "tiny-math", "--runs", runs, "--name", "one", "--ui", "none", *small, *asked) == 0
    return runs / "one"


def test_a_run_ends_with_what_its_recipe_asks_for(run_folder):
    names = [path.name for path in (run_folder / "export" / "gguf").iterdir()]
    assert "one-Q8_0.gguf" in names and not (run_folder / "export" / "merged").exists()


def test_the_command_shows_a_table_and_the_same_as_json(run_folder, tmp_path, capsys):
    asked = ["export", run_folder, "gguf", "--quant", "f16,Q4_K_M", "--eval", "8"]
    assert lgrpo(*asked, "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "one-f16.gguf" in said and "one-Q4_K_M.gguf" in said and "KL to the policy" in said
    assert lgrpo(*asked, "--out", tmp_path / "b", "--json") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    stored = json.loads((tmp_path / "b" / "export_report.json").read_text())
    assert result["report"] == stored and stored["checkpoint"] == "step-000001"
    assert lgrpo("export", run_folder, "lora-gguf", "--out", tmp_path / "c") == 0


def test_a_modelfile_has_llama_cpp_read_what_the_policy_read(job, tmp_path):
    """The text that its template renders, cut into tokens as Ollama's runner cuts it."""
    data = job.recipe.data.model_copy(update={"system": "Add {{ it }} up.", "prefill": "= "})
    export = job.recipe.export.model_copy(update={"quant": ["Q8_0"], "eval": 0})
    recipe = job.recipe.model_copy(update={"data": data, "export": export})
    made = FORMATS["ollama"](dataclasses.replace(job, recipe=recipe), tmp_path / "ollama")
    commands = read_modelfile((made.path / "Modelfile").read_text("utf-8"))
    [name] = commands["FROM"]
    assert made.facts["report"]["kind"] == "ollama"
    model = Llama(str(made.path / name), vocab_only=True, verbose=False)
    for question in ("12+30=?", ' "{{ x }}"\n数 '):
        text = render(
            commands["TEMPLATE"][0], as_ollama_has_it([{"role": "user", "content": question}], data.system)
        )
        assert tuple(model.tokenize(text.encode(), add_bos=True, special=True)) == tokens(
            question, data, job.policy.tokenizer
        )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--quant", "Q3_K"], 2, "Q8_0"),
        (["--llama-cpp", "nowhere"], 2, "convert_hf_to_gguf.py"),
        (["--eval", "-1"], 2, "export.eval"),
    ],
)
def test_what_is_asked_wrongly_is_told(run_folder, tmp_path, capsys, words, code, said):
    assert lgrpo("export", run_folder, "gguf", "--out", tmp_path / "x", *words) == code
    told = capsys.readouterr().err
    assert said in told and "fix" in told and list(tmp_path.iterdir()) == []


def test_a_foreign_gguf_beside_the_run_is_not_touched(run_folder, tmp_path, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "another.gguf").write_bytes(b"GGUF of another model")
    assert lgrpo("export", run_folder, "gguf", "--out", tmp_path / "models") == 2
    assert "no earlier export" in capsys.readouterr().err
    assert (tmp_path / "models" / "another.gguf").read_bytes() == b"GGUF of another model"
