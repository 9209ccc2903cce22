"""SmolLM2-135M-Instruct from its GGUF file on a real vLLM on the CPU: three steps on one copy of the weights, each
proof passed, and the merged model equal.
"""

import json

import pytest

pytest.importorskip("vllm")

from conftest import sums
from support import lgrpo

CASES = ["length_preference fp32", "trace nf4"]


@pytest.mark.parametrize("case", CASES)
def test_three_steps_on_one_copy_of_the_weights(case, smollm, tmp_path):
    algorithm, weights = case.split()
    more = [f"algorithm.use={algorithm}", f"model.weights={weights}", "rollout.engine=vllm"]
    more += ["rollout.vllm.kv_cache_gb=0.2", "export.formats=[merged]"]
    assert lgrpo("train", *sums(smollm, *more), "--runs", tmp_path, "--name", "three", "--ui", "none") == 0
    events = [
        json.loads(line) for line in (tmp_path / "three" / "events.jsonl").read_text("utf-8").splitlines()
    ]
    proofs = [row for row in events if row["kind"] == "proof"]
    assert len(proofs) >= 2 and all(check["passed"] for row in proofs for check in row["checks"])
    assert not [row for row in events if "second copy" in str(row.get("message"))]
    report = json.loads((tmp_path / "three" / "export" / "merged" / "merge_report.json").read_text("utf-8"))
    assert report["passed"] and report["greedy_equal"] == report["prompts"]
