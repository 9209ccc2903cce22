"""SmolLM2-135M, tuned for a few steps, as GGUF: llama.cpp's own script and quantisation, held to the policy."""

import json
import os
from pathlib import Path

import pytest
from support import lgrpo

pytest.importorskip("llama_cpp")

FOLDER = os.environ.get("LGRPO_REAL_MODELS")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs real weights: make test-gguf")
TUNED = [
    "train.steps=4", "train.save_every=4", "rollout.prompts_per_step=4", "rollout.group_size=6", "data.train.limit=64",
    "data.eval.limit=16", "eval.k=1", "eval.greedy=false", "safety.baseline_check=false", "memory.micro_tokens=2048",
    "export.formats=[]", "model.max_new_tokens=32", "optim.lr=2e-4", "safety.sync_proof_every=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    weights = Path(str(FOLDER)).resolve() / WEIGHTS
    settings = [f"model.id={weights}", "model.revision=null", *TUNED]
    assert lgrpo("recipe", "smollm-sums", *settings, "--runs", runs, "--name", "tuned", "--ui", "none") == 0
    return runs / "tuned"


def exported(run: Path, capsys, *asked: str) -> dict:
    capsys.readouterr()
    assert lgrpo("export", run, *asked, "--json") == 0
    result = json.loads(capsys.readouterr().out)["result"]
    return {row["quant"]: row for row in result["report"]["files"]} | {"report": result["report"]}


def test_the_16_bit_file_and_the_8_bit_one_are_the_policy(run, capsys):
    rows = exported(run, capsys, "gguf", "--quant", "f16,Q8_0,Q4_K_M")
    # beyond 1e-4 a file in 32 bits had to be the policy: 16 are few for weights that came from 4 bits
    assert rows["f16"]["kl"] <= 3e-4 and rows["f16"]["greedy_equal"] == rows["f16"]["prompts"]
    assert rows["Q8_0"]["same_top"] >= 0.9  # of some thirty tokens
    assert rows["f16"]["kl"] < rows["Q8_0"]["kl"] < rows["Q4_K_M"]["kl"]
    noisy = rows["Q4_K_M"]["kl"] > rows["report"]["training_kl"]
    assert any(note.startswith("Q4_K_M moves") for note in rows["report"]["notes"]) == noisy


def test_the_adapter_on_its_base_is_the_policy(run, capsys):
    rows = exported(run, capsys, "lora-gguf")
    assert rows["f32"]["kl"] <= 1e-5 and rows["f32"]["greedy_equal"] == rows["f32"]["prompts"]
