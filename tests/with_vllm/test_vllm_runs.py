"""Whole runs on a vLLM in this process, as on a CPU and as on CUDA: a kill, a resume,
and what can go wrong on a card.
"""

import gc
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from like_cuda import SHAPES, filled_by_another, seeds_from_numpy, shaped
from support import lgrpo, tiny_recipe
from test_machine import put_nvidia_smi
from test_progress import COMMIT

pytest.importorskip("vllm")
import psutil
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

import lgrpo_lite.engines.vllm as vllm_engine
from lgrpo_lite.engines import vllm_sampler
from lgrpo_lite.engines.base import open_engine
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.load import load_base, locate
from lgrpo_lite.train.build import build
from lgrpo_lite.train.loop import steps
from lgrpo_lite.train.stop import StopRequest

NF4 = [
    "rollout.engine=vllm", "model.weights=nf4", "train.steps=5", "train.save_every=1", "rollout.vllm.kv_cache_gb=0.1",
    "rollout.prompts_per_step=4", "rollout.group_size=4", "data.train.limit=64", "data.eval.limit=8", "eval.k=1",
    "export.formats=[]",
]  # fmt: skip


def params(*shapes: str):
    return [pytest.param(shape, marks=pytest.mark.xdist_group(f"runs {shape}")) for shape in shapes]


@pytest.fixture(scope="module", params=params(*SHAPES))
def shape(request):
    with shaped(request.param):
        yield request.param


as_on_cuda = pytest.mark.parametrize("shape", params("as on CUDA"), indirect=True)


def command(runs: Path, name: str, *more: str) -> list[str]:
    return ["train", "tiny-math", *NF4, *more, "--runs", str(runs), "--name", name, "--ui", "none"]


def rows(folder: Path, name: str) -> list[dict]:
    path = folder / name
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def told(folder: Path) -> list[str]:
    return [row["message"] for row in rows(folder, "events.jsonl") if row["kind"] in ("note", "warning")]


def result(folder: Path) -> dict:
    """Of a run of five steps: its adapter, what it answered, and the numbers that are no seconds."""
    last = folder / "checkpoints" / "step-000005"
    kept = ("step", "policy_version", "reward", "loss", "grad_norm", "disagreement")
    return {
        "adapter": (last / "adapter" / "adapter_model.safetensors").read_bytes(),
        "steps": [{key: row[key] for key in kept if key in row} for row in rows(folder, "metrics.jsonl")],
        "accuracy": [row["accuracy"] for row in rows(folder, "evals.jsonl")],
    }


@pytest.fixture(scope="module")
def whole(shape, tmp_path_factory):
    """Five steps through the command line, undisturbed."""
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo(*command(runs, "whole")) == 0
    return runs / "whole"


def test_five_steps_are_trained_and_proven(shape, whole):
    proofs = [row for row in rows(whole, "events.jsonl") if row["kind"] == "proof"]
    assert [row["step"] for row in rows(whole, "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert len(proofs) == 2 and all(check["passed"] for row in proofs for check in row["checks"])
    assert not [message for message in told(whole) if "KV cache" in message]


def test_a_run_that_is_killed_and_resumed_is_the_run(shape, whole, tmp_path):
    start = {
        "as on a CPU": ["-m", "lgrpo_lite"],
        "as on CUDA": [str(Path(__file__).with_name("like_cuda.py"))],
    }
    process = subprocess.Popen(
        [sys.executable, *start[shape], *command(tmp_path, "killed")], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(rows(tmp_path / "killed", "metrics.jsonl")) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert lgrpo(*command(tmp_path, "killed"), "--resume", "auto") == 0
    assert "resumed" in {row["kind"] for row in rows(tmp_path / "killed", "events.jsonl")}
    assert result(tmp_path / "killed") == result(whole)


# ------------------------------------------------------------------------------------------- what can go wrong on a card


@as_on_cuda
def test_a_release_that_is_refused_in_a_run_is_told_and_the_run_goes_on(shape, tmp_path, monkeypatch):
    """vLLM's own refusal: without those steps a batch is still in flight after a
    rollout, and none at the start.
    """
    monkeypatch.setattr(vllm_engine, "STEPS_TO_IDLE", 0)
    assert lgrpo(*command(tmp_path, "refused", "train.steps=2")) == 0
    said = [message for message in told(tmp_path / "refused") if "KV cache" in message]
    reason = "release_kv_cache_memory() requires a completed pause first"
    assert said == [f"vLLM keeps its KV cache while training from here on: {reason}"]
    assert len(rows(tmp_path / "refused", "metrics.jsonl")) == 2


@as_on_cuda
def test_a_card_that_another_process_fills_is_exit_4_with_its_pid_and_the_run_is_kept(
    shape, tmp_path, monkeypatch, capfd
):
    """Between two steps; it is what vLLM's allocator raises, and the rest is real."""
    put_nvidia_smi(
        tmp_path,
        monkeypatch,
        """case "$1" in *compute-apps*) echo "GPU-1, 4242, /usr/bin/python other.py, 20000" ;; esac""",
    )
    folder = tmp_path / "filled"
    with filled_by_another(lambda: len(rows(folder, "metrics.jsonl")) == 2):
        assert lgrpo(*command(tmp_path, "filled", "train.steps=3")) == 4
    said = capfd.readouterr().err
    assert (
        "vLLM finds no room: CUDA Error: out of memory at" in said and "PID 4242 (python, 19.5 GiB)" in said
    )
    assert (
        "fix stop the other process" in said and "--resume auto goes on" in said and "Traceback" not in said
    )
    status = json.loads((folder / "STATUS.json").read_text("utf-8"))
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert checkpoint.find(folder / "checkpoints")[0].name == "step-000002"
    assert lgrpo(*command(tmp_path, "filled", "train.steps=3"), "--resume", "auto") == 0
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == [1, 2, 3]


@as_on_cuda
def test_a_resumed_run_draws_the_same_samples_where_vllm_seeds_requests_from_numpy(
    shape, tmp_path, monkeypatch
):
    """Model Runner V2. Left to numpy it draws others: evaluations and proofs have drawn from there too."""
    fp32 = ["rollout.engine=vllm", "model.weights=fp32", "rollout.vllm.kv_cache_gb=0.1", "train.save_every=1"]

    def sampled(name: str, last: int, *, resume: bool = False) -> list[list[str]]:
        """Answers of each step. A process that starts has numbers of its own."""
        np.random.seed(len(name) + last)
        run = build(
            tiny_recipe(
                *fp32, "log.completions_per_step=16", f"train.steps={last}", "optim.scheduler=constant"
            )
        )
        folder = RunFolder(tmp_path / name)
        folder.open()
        try:
            assert steps(run, folder, StopRequest(), resume=resume)
        finally:
            run.engine.close()
            folder.close()
        return [drawn(path) for path in sorted((tmp_path / name / "completions").iterdir())]

    with seeds_from_numpy():
        expected = sampled("whole", 3)
        assert sampled("killed", 2) == expected[:2]
        shutil.copytree(tmp_path / "killed", tmp_path / "lost", symlinks=True)
        assert sampled("killed", 3, resume=True) == expected
        with patch.object(vllm_sampler, "_numpy_after_torch", nullcontext):
            assert sampled("lost", 3, resume=True)[2] != expected[2]


@pytest.mark.xdist_group("runs as on a CPU")
def test_vllm_stops_by_itself_where_the_answer_is_cut():
    """Without a tokenizer it would know of no text, and go on to the end of each answer."""
    stop = ("=", "##")
    own = ["rollout.engine=vllm", "model.weights=fp32", "rollout.vllm.kv_cache_gb=0.1", "data.eval.limit=8"]
    run = build(tiny_recipe(*own, "rollout.stop=['=','##']", "safety.sync_proof_every=0"))
    outputs = []
    generate = run.engine.llm.generate

    def heard(*args, **more):
        outputs.extend(generate(*args, **more))
        return outputs[-len(args[0]) :]

    with patch.object(run.engine.llm, "generate", heard), run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 2, run.sampling)
    run.engine.close()
    raw = [one for output in outputs for one in output.outputs]
    stopped = 0
    for one, answer in zip(raw, [c for row in answers for c in row], strict=True):
        stopped += one.stop_reason in stop
        assert tuple(one.token_ids) == answer.token_ids and answer.finish_reason == "stop"
    assert stopped


def drawn(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line)["completion"] for line in file]


# ------------------------------------------------------------------------------------------- models that are at hand

TWO_MODELS = """
from support import tiny_recipe
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.train.build import build
for name, revision in (("me/whole", "v1"), ("me/without-weights", "main")):
    try:
        options = [f"model.id={name}", f"model.revision={revision}", "model.weights=nf4", "rollout.engine=vllm"]
        run = build(tiny_recipe(*options, "rollout.vllm.kv_cache_gb=0.1"))
        with run.engine.serving(run.policy) as sampler:
            print(len(sampler.generate(run.eval_prompts, 1, SamplingParams(1.0, 2))), "answers")
        run.engine.close()
    except LgrpoError as error:
        print(error.exit_code, error)
"""


# as is remembered
ABSENT = ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja")


@pytest.mark.xdist_group("runs as on a CPU")
def test_a_cached_model_needs_no_network_and_one_that_is_not_says_so(tmp_path):
    """Of a revision that has a name. HF_HUB_OFFLINE is not set: the Hub's address
    is a port where nobody listens.
    """
    source = Path(locate("builtin:tiny-math"))
    for name, revision in (("whole", "v1"), ("without-weights", "main")):
        cached = tmp_path / "hub" / f"models--me--{name}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / revision).write_text(COMMIT)
        shutil.copytree(source, cached / "snapshots" / COMMIT)
        (cached / ".no_exist" / COMMIT).mkdir(parents=True)
        for file in ABSENT:
            (cached / ".no_exist" / COMMIT / file).touch()
    (tmp_path / "hub" / "models--me--without-weights" / "snapshots" / COMMIT / "model.safetensors").unlink()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGINGFACE_"))}
    own = {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    child = subprocess.run([sys.executable, "-c", TWO_MODELS], env=kept | own, capture_output=True, text=True)
    said = child.stdout.splitlines()
    assert child.returncode == 0 and said[0] == "8 answers", child.stdout + child.stderr
    assert said[1].startswith("3 error: vLLM does not start: "), child.stdout + child.stderr


def test_the_trainers_model_takes_no_memory_of_its_own(shape, tmp_path):
    """Growth of the process, on weights of 180 MB: the shared model next to none, a second copy all of it."""
    shape = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
    }
    config = Qwen2Config(**shape, num_key_value_heads=4, vocab_size=2048, eos_token_id=256, bos_token_id=None)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path)
    for file in Path(locate("builtin:tiny-math")).glob("token*"):
        shutil.copy(file, tmp_path)
    recipe = tiny_recipe(
        f"model.id={tmp_path}", "model.weights=bf16", "model.lora.rank=1", "rollout.engine=vllm"
    )
    size = (tmp_path / "model.safetensors").stat().st_size
    engine = open_engine(recipe)
    fingerprint(engine.served)  # its own buffers are there from here on
    grown = growth(lambda: engine.network(recipe))
    assert engine.share_weights and grown < 0.2 * size
    assert growth(lambda: load_base(recipe.model, torch.device("cpu"))) > 0.8 * size
    engine.close()


def growth(make) -> int:
    """Bytes that the process has more of while what `make` made is alive."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    made = make()
    fingerprint(made)  # reads every weight: pages of a file count once they were read
    grown = psutil.Process().memory_info().rss - before
    del made
    return grown
