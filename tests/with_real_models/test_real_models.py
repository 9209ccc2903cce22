"""SmolLM2-135M-Instruct and Gemma 3 270M from their GGUF files: through every command, trained, exported, asked
in plain transformers and peft.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import sums
from peft import PeftModel
from safetensors.torch import load_file
from support import lgrpo
from transformers import AutoModelForCausalLM, AutoTokenizer

from lgrpo_lite.policy.dequantise import nats_a_character, record_of
from lgrpo_lite.policy.load import locate

ASKED = [f"What is {a} + {b}?" for a, b in ((3, 4), (12, 9), (20, 7), (30, 2), (5, 5), (17, 16))]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def prompt(tokenizer, question: str) -> torch.Tensor:
    chat = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def answers(model, tokenizer, tokens: int = 8) -> list[list[int]]:
    """Greedy, each question alone."""
    said = []
    for question in ASKED:
        ids = prompt(tokenizer, question)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        said.append(out[0, ids.shape[1] :].tolist())
    return said


# ------------------------------------------------------------------------------------------- what comes out of a file


def test_smollm_answers_in_its_own_template_and_ends_by_itself(smollm):
    folder = locate(smollm)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = prompt(tokenizer, "What is the capital of France?")
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    said = tokenizer.decode(out[0, ids.shape[1] :])
    assert said == "The capital of France is Paris.<|im_end|>"
    assert tokenizer("12345", add_special_tokens=False)["input_ids"] == [33, 34, 35, 36, 37]
    record = record_of(folder)
    assert record is not None and record["stored_as"] == "Q4_1, Q8_0" and record["logprob"] > -0.65


def test_gemma_reads_words_with_its_bos_and_without_letters(gemma):
    folder = locate(gemma)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert tokenizer("The capital of Italy")["input_ids"] == [2, 818, 5279, 529, 11702]
    ids = tokenizer("The capital of Italy is the city of", return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(" Rome")
    assert nats_a_character(model, tokenizer) > -0.6


# ------------------------------------------------------------------------------------------- before training


def test_validate_plan_and_reward_test_take_the_file(smollm, capsys):
    assert lgrpo("validate", *sums(smollm)) == 0
    assert lgrpo("plan", *sums(smollm), "--gpu", "8GB") == 0
    assert lgrpo("reward", "test", *sums(smollm)) == 0
    said = capsys.readouterr().out
    assert "valid" in said and "fits" in said


def test_baseline_finds_a_signal(smollm, capsys):
    assert lgrpo("baseline", *sums(smollm), "-n", "4", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"]


def test_the_rollouts_come_from_the_policy(smollm, capsys):
    assert lgrpo("selftest", *sums(smollm, "model.lora.rank=4"), "--json") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert result and all(check["passed"] for check in result)


# ------------------------------------------------------------------------------------------- three steps, and what comes out


@pytest.fixture(
    scope="module", params=["length_preference fp32", "trace fp32", "length_preference nf4", "trace nf4"]
)
def run(request, smollm, tmp_path_factory):
    """(run folder, how the weights are held) of three steps with both exports."""
    algorithm, weights = request.param.split()
    runs = tmp_path_factory.mktemp("runs")
    more = [f"algorithm.use={algorithm}", f"model.weights={weights}", "safety.sync_proof_every=0"]
    assert lgrpo("train", *sums(smollm, *more), "--runs", runs, "--name", "three", "--ui", "none") == 0
    return runs / "three", weights


def test_three_steps_move_the_adapter_and_say_where_the_base_came_from(run):
    folder, _ = run
    steps = rows(folder / "metrics.jsonl")
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(math.isfinite(row["loss"]) and row["disagreement"] < 1e-3 for row in steps)
    adapter = load_file(folder / "export" / "adapter" / "adapter_model.safetensors")
    moved = sum(tensor.abs().sum().item() for name, tensor in adapter.items() if "lora_B" in name)
    assert moved > 0
    assert "dequantised from Q4_1, Q8_0" in (folder / "report.md").read_text("utf-8")


@torch.no_grad()
def test_the_exports_answer_alike_in_plain_transformers_and_peft(run, smollm):
    folder, weights = run
    merged = AutoModelForCausalLM.from_pretrained(folder / "export" / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "export" / "merged")
    base = AutoModelForCausalLM.from_pretrained(locate(smollm), dtype=torch.float32).eval()
    kept = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, folder / "export" / "adapter").eval()
    report = json.loads((folder / "export" / "merged" / "merge_report.json").read_text("utf-8"))
    assert report["passed"] and report["greedy_equal"] == report["prompts"]
    if weights == "fp32":  # of nf4 the base is another one here
        assert answers(merged, tokenizer) == answers(adapted, tokenizer)
    assert tokenizer.eos_token == "<|im_end|>" and merged.generation_config.eos_token_id == 2
    asked = tokenizer.decode(prompt(tokenizer, ASKED[0])[0])
    source = AutoTokenizer.from_pretrained(locate(smollm))
    assert asked == source.decode(prompt(source, ASKED[0])[0]) + "The answer is "  # as the policy was trained
    embedding = merged.get_input_embeddings().weight
    assert torch.equal(embedding, kept["model.embed_tokens.weight"])
    assert record_of(folder / "export" / "merged") is None  # it is another model than the file's


def test_a_run_is_evaluated_and_its_base_too(run, capsys):
    folder, weights = run
    if weights == "nf4":
        pytest.skip("the same code as in fp32")
    for checkpoint in ("last", "base"):
        more = ["--checkpoint", checkpoint, "--limit", "2", "--k", "2", "--json"]
        assert lgrpo("eval", folder, *more) == 0
        figures = json.loads(capsys.readouterr().out)["result"]["figures"]
        assert figures
