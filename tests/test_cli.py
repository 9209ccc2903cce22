"""The command line: (argv, exit code, words), and the main job in small."""

import json
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from support import lgrpo

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.export.formats import FORMATS
from lgrpo_lite.monitor.text import STEP_LINE
from lgrpo_lite.recipe.reward import REWARD_KEYS

SMALL = [
    "train.steps=2",
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "data.train.limit=20",
    "data.eval.limit=4",
    "eval.k=1",
]

TABLE = [
    (["recipe"], 0, "tiny-math"),
    (["recipe", "ls", "--json"], 0, '"ok": true'),
    (["recipe", "show", "tiny-math", "seed=5"], 0, "seed: 5"),
    (["recipe", "tiny-mat"], 2, "did you mean 'tiny-math'"),
    (["recipe", "show"], 2, "needs a name"),
    (["recipe", "tiny-math", "--dry-run"], 0, "arithmetic: 4096 rows"),
    (["recipe", "tiny-gsm8k", "--dry-run"], 0, "openai/gsm8k (train), on the Hub"),
    (["recipe", "qwen3b-math", "--dry-run"], 0, "DigitalLearningGmbH/MATH-lighteval"),
    (["recipe", "tiny-math", "seeed=1"], 2, "did you mean 'seed'"),
    (["recipe", "tiny-math", "--nmae", "x"], 2, "unknown option --nmae"),
    (["recipe", "tiny-math", "algorithm.use=grpo3"], 2, "did you mean 'grpo'"),
    (["recipe", "tiny-math", "rollout.group_size=1"], 2, "nothing to compare"),
    (["recipe", "tiny-math", "rollout.engine=vllm"], 3, "not installed: vllm"),
    (["recipe", "tiny-math", "model.id=builtin:none"], 2, "no embedded model"),
    (["recipe", "tiny-math", "model.id=/nowhere/at/all"], 2, "no such model folder: '/nowhere/at/all'"),
    (["recipe", "tiny-math", "model.lora.targets=[nothing]"], 2, "no adapter fits"),
    (["recipe", "tiny-math", "data.train.path=none.jsonl"], 5, "no such file"),
    (["recipe", "tiny-math", "data.train.path=none.jsonl", "--dry-run"], 5, "no such file"),
    (["recipe", "tiny-math", "data.template=chat"], 5, "no chat template"),
    (["recipe", "tiny-math", "rewards.0.use=nope"], 2, "unknown reward 'nope'"),
    (["recipe", "tiny-math", "model.max_prompt_tokens=2"], 5, "longer than 2 tokens"),
    (["recipe", "tiny-math", "data.train.path=/dev/null"], 5, "no such file"),
    (["train", "none.yaml"], 2, "cannot read the recipe"),
    (["validate", "tiny-math"], 0, "valid"),
    (["validate", "qwen3b-math", "--strict"], 0, "valid"),
    (["validate", "qwen3b-math", "--strict", "model.revision=null"], 2, "revision is not pinned"),
    (["config", "algorithm.trace"], 0, "algorithm.trace.lambda"),
    (["config", "--json"], 0, '"properties"'),
    (["watch", "nothing"], 2, "no run 'nothing'"),
    (["export", "nothing", "merged"], 2, "no run 'nothing'"),
    (["export", "nothing"], 2, "a run and a format"),
    (
        ["export", "x", "gguf", "--base", "original"],
        2,
        "does not read --base\n  at  command line\n  fix leave it out; it is read by merged",
    ),
    (["export", "x", "gguf", "--dtype", "bf16"], 2, "does not read --dtype"),
    (["export", "x", "gguf", "--tolerance", "5"], 2, "does not read --tolerance"),
    (["export", "x", "merged", "--quant", "Q8_0"], 2, "it is read by gguf, ollama"),
    (["export", "x", "merged", "--eval", "3"], 2, "it is read by gguf, lora-gguf, ollama"),
    (["export", "x", "lora-gguf", "--quant", "Q4_K_M"], 2, "does not read --quant"),
    (["export", "x", "adapter", "--llama-cpp", "y"], 2, "does not read --llama-cpp"),
    (["export", "x", "card", "--private"], 2, "does not read --private"),
    (
        ["export", "x", "hub", "--quant", "Q8_0"],
        2,
        "make that export first (gguf or ollama), with this option",
    ),
    (["export", "x", "ollama", "--quant", "Q8_0, Q4_K_M"], 2, "ollama makes one file"),
    (["expotr"], 2, "did you mean 'export'"),
    (["recipe", "show", "tiny-math", "--json"], 0, '"result": {"schema": 1, "recipe": {"name": "tiny-math"'),
    (["recipe", "tiny-math", "--dry-run", "--json"], 0, '"result": {"lines": ["recipe     tiny-math: '),
    (["recipe", "tiny-math", "--seed", "3"], 2, "without dashes: seed=…"),
    (["recipe", "cp", "tiny-math", "x.yaml", "seed=3"], 2, "settings are for the file"),
    ([], 0, "start here"),
]


@pytest.mark.parametrize(
    ("argv", "code", "words"), TABLE, ids=[" ".join(a) or "nothing" for a, _, _ in TABLE]
)
def test_table(tmp_path, monkeypatch, capfd, argv, code, words):
    monkeypatch.chdir(tmp_path)
    assert lgrpo(*argv) == code
    out, err = capfd.readouterr()
    assert words in out + err
    assert "Traceback" not in err
    if code:
        error = err[err.index("error: ") :].splitlines()
        assert len(error) == 3 and error[1].startswith("  at  ") and error[2].startswith("  fix ")


@pytest.mark.parametrize(
    ("argv", "first"), [(["help"], "usage: lgrpo-lite [-h]"), (["help", "eval"], "usage: lgrpo-lite eval")]
)
def test_help_is_a_verb_too(argv, first, capsys):
    with pytest.raises(SystemExit) as done:
        lgrpo(*argv)
    assert done.value.code == 0 and capsys.readouterr().out.startswith(first)


def test_without_a_gpu_the_product_says_what_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lgrpo_lite", "recipe", "qwen3b-math"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 3
    for words in ("no NVIDIA GPU", "vllm", "pip install", "tiny-math"):
        assert words in done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert list(tmp_path.iterdir()) == []


def test_data_from_the_hub_needs_a_package(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lgrpo_lite.checks.check.find_spec", lambda name: None if name == "datasets" else find_spec(name)
    )
    assert lgrpo("recipe", "tiny-gsm8k") == 3
    assert "not installed: datasets" in capfd.readouterr().err


def test_unwritable_run_folder(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert lgrpo("recipe", "tiny-math", "--runs", tmp_path / "file") == 2
    assert "cannot write the run folder" in capfd.readouterr().err


def test_a_foreign_folder_is_left_alone(tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert lgrpo("recipe", "tiny-math", "--runs", tmp_path, "--name", "mine") == 2
    assert "holds something else" in capfd.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_start_that_failed_does_not_use_up_its_name(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1=?"}\n')
    argv = ["recipe", "tiny-math", "--name", "x", *SMALL, "data.train.path=rows.jsonl", "--ui", "none"]
    assert lgrpo(*argv) == 5
    assert "rows.jsonl:1" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1=?", "answer": "2"}\n')
    assert lgrpo(*argv, "model.max_prompt_tokens=2") == 5  # found out only with the tokenizer
    assert list((tmp_path / "runs").iterdir()) == []
    assert lgrpo(*argv, "safety.baseline_check=false") == 0


def test_a_fault_of_ours_is_three_lines_and_a_traceback_in_the_log(tmp_path, monkeypatch, capfd):
    from lgrpo_lite.policy.policy import Policy

    monkeypatch.setattr(Policy, "logprobs", lambda self, batch, **asked: 1 / 0)
    argv = [
        "recipe",
        "tiny-math",
        "--runs",
        tmp_path,
        "--name",
        "x",
        *SMALL,
        "rollout.prompts_per_step=8",
        "--ui",
        "none",
    ]
    assert lgrpo(*argv) == 1  # before it is a run
    err = capfd.readouterr().err
    assert (
        "unexpected ZeroDivisionError" in err
        and "Traceback" not in err
        and len(err.strip().splitlines()) == 5
    )
    assert f"log {tmp_path / 'x.log'}" in err and "Traceback" in (tmp_path / "x.log").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]
    assert lgrpo("runs", "--runs", tmp_path) == 0
    assert "no run in" in capfd.readouterr().out


@pytest.mark.slow
def test_copy_edit_train(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert lgrpo("recipe", "cp", "tiny-math", "my.yaml") == 0
    assert lgrpo("recipe", "cp", "tiny-math", "my.yaml") == 2
    assert lgrpo("recipe", "cp", "tiny-math", "my.yaml", "--force") == 0
    assert lgrpo("train", "my.yaml", "--name", "x", *SMALL, "--ui", "none") == 0
    assert "before" in capfd.readouterr().out


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small finished run, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    argv = ["recipe", "tiny-math", "--runs", str(runs), "--name", "one", *SMALL]
    result = subprocess.run(
        [sys.executable, "-m", "lgrpo_lite", *argv], capture_output=True, text=True, check=True
    )
    return runs / "one", result


PROMISED = """
config.yaml config.resolved.yaml env.json STATUS.json metrics.jsonl events.jsonl evals.jsonl report.md
completions/step-000002.jsonl.gz checkpoints/step-000002/trainer.pt checkpoints/latest logs/attempt_1/main.log
export/adapter/adapter_model.safetensors export/merged/model.safetensors
"""


def test_the_main_job_leaves_what_it_promises(done):
    path, result = done
    for name in PROMISED.split():
        assert (path / name).exists(), name
    assert (
        "before" in result.stderr
        and "λ" in result.stderr
        and str(path / "export" / "merged") in result.stderr
    )
    assert "eval step 2" in result.stderr and "Traceback" not in result.stderr
    assert "Loading weights" not in result.stderr  # libraries write to the log, not to the terminal
    status = json.loads((path / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("done", 0)
    assert "| accuracy, 4 problems" in (path / "report.md").read_text()
    resolved = yaml.safe_load((path / "config.resolved.yaml").read_text())
    assert resolved["train"]["steps"] == 2 and resolved["algorithm"]["length_preference"]["r"]


@pytest.mark.parametrize("kind", [pytest.param("adapter", marks=pytest.mark.slow), "merged"])
def test_export_again(done, tmp_path, kind):
    path, _ = done
    argv = [sys.executable, "-m", "lgrpo_lite", "export", str(path), kind, "--json"]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    told = [
        line for line in result.stderr.splitlines() if not line.startswith("starting: ")
    ]  # of a slow machine
    assert told == []  # what the libraries say is in logs/export.log
    report = json.loads(result.stdout)
    assert report["ok"] and Path(report["result"]["out"]).is_dir()
    assert (
        lgrpo("export", "one", kind, "--runs", path.parent, "--out", tmp_path / "x", "--checkpoint", "best")
        == 0
    )


def test_help_says_what_each_format_is(capfd):
    with pytest.raises(SystemExit) as ended:
        lgrpo("export", "-h")
    said = capfd.readouterr().out
    assert ended.value.code == 0 and "lora-gguf  the LoRA alone as a GGUF" in said
    assert all(f"\n  {kind} " in said for kind in FORMATS)


@pytest.mark.parametrize(
    ("quant", "words"),
    [(",", "at least 1 item"), ("", "at least 1 item"), ("Q8", "'Q8_0'"), ("a]: {", "'f16'")],
)
def test_files_that_there_are_not_are_told_as_such(done, quant, words, capfd):
    path, _ = done
    assert lgrpo("export", path, "gguf", "--quant", quant) == 2
    said = capfd.readouterr().err
    assert "export.quant" in said and words in said and "YAML" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_export_that_is_ended_leaves_nothing_half_made(done, tmp_path, number, code):
    path, _ = done
    argv = [sys.executable, "-m", "lgrpo_lite", "export", str(path), "merged", "--out", str(tmp_path / "x")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        while not (tmp_path / ".x.partial").exists():
            assert child.poll() is None
            time.sleep(0.001)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == code and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_failed_check_exits_6(done, tmp_path, capfd):
    path, _ = done
    assert lgrpo("export", path, "merged", "--out", tmp_path / "x", "--tolerance", "0") == 6
    assert not list(tmp_path.iterdir())
    assert lgrpo("export", path, "merged", "--checkpoint", "77") == 5
    assert "no usable checkpoint '77'" in capfd.readouterr().err


def test_watch_shows_a_finished_run_and_draws_it(done, tmp_path, capfd):
    path, _ = done
    assert lgrpo("watch", path) == 0
    out, err = capfd.readouterr()
    assert out.startswith("step 1/2 | ") and out.count("\n") == 2 and "eval step 2" in err
    assert lgrpo("watch", path, "--svg", tmp_path / "view.svg") == 0
    assert (
        "token" in (tmp_path / "view.svg").read_text() and "preference" in (tmp_path / "view.svg").read_text()
    )


def test_on_a_pipe_a_step_is_a_line_and_nothing_else_is_on_stdout(done):
    """`lgrpo-lite recipe tiny-math | cat`."""
    found = [re.fullmatch(STEP_LINE, line) for line in done[1].stdout.splitlines()]
    assert all(found) and [m["step"] for m in found] == ["1", "2"]
    assert (
        all(m["reward"] and m["groups"] and m["length_lambda"] for m in found)
        and "\x1b" not in done[1].stdout + done[1].stderr
    )


@pytest.mark.slow
def test_json_is_one_object_on_stdout(tmp_path, capfd):
    assert (
        lgrpo(
            "recipe",
            "tiny-math",
            "--runs",
            tmp_path,
            "--json",
            *SMALL,
            "algorithm.use=dapo",
            "export.formats=[]",
        )
        == 0
    )
    out, _ = capfd.readouterr()
    result = json.loads(out)
    assert result["schema"] == 1 and result["result"]["steps"] == 2 and len(result["result"]["evals"]) == 2


@pytest.mark.slow
def test_three_refused_steps_end_the_run_with_its_state_saved(tmp_path, capfd, monkeypatch):
    """Every loss is NaN: nothing is learned from it, nothing is lost."""
    from lgrpo_lite.policy.policy import Policy

    real = Policy.logprobs

    def spoilt(self, *args, **asked):
        scored = real(self, *args, **asked)
        return scored._replace(logp=scored.logp * float("nan")) if torch.is_grad_enabled() else scored

    monkeypatch.setattr(Policy, "logprobs", spoilt)
    more = ["train.steps=9", "rollout.prompts_per_step=8"]
    assert (
        lgrpo("recipe", "tiny-math", "--runs", tmp_path, "--name", "x", "--ui", "plain", *SMALL, *more) == 1
    )
    err = capfd.readouterr().err
    assert err.count("refused: loss is nan") == 3 and "3 steps in a row" in err and "Traceback" not in err
    state = json.loads((tmp_path / "x" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert (state["step"], state["policy_version"]) == (3, 0)
    assert json.loads((tmp_path / "x" / "STATUS.json").read_text())["state"] == "failed"
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [r["skipped"] for r in rows] == [f"loss is nan at step {i}" for i in (1, 2, 3)]
    kept = [path.name for path in sorted((tmp_path / "x" / "completions").iterdir())]
    assert kept == [f"step-{i:06d}.jsonl.gz" for i in (1, 2, 3)]  # to look at, as the message says


@pytest.mark.slow
def test_a_library_user_trains_as_the_command_does(tmp_path):
    """The same folder, the same adapter; stopped by its time limit it says so, and goes on."""
    import lgrpo_lite

    settings = [*SMALL, "export.formats=[adapter]", "safety.baseline_check=false"]
    assert (
        lgrpo("recipe", "tiny-math", *settings, "--runs", tmp_path, "--name", "command", "--ui", "none") == 0
    )
    result = lgrpo_lite.train("tiny-math", settings, runs=tmp_path, name="library")
    assert (result.exit_code, result.path) == (0, tmp_path / "library")
    adapters = [
        tmp_path / name / "export" / "adapter" / "adapter_model.safetensors"
        for name in ("command", "library")
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    stopped = lgrpo_lite.train(
        "tiny-math", [*settings, "train.time_limit=1e-6"], runs=tmp_path, name="stopped"
    )
    assert stopped.exit_code == 75 and not stopped.exports
    status = json.loads((tmp_path / "stopped" / "STATUS.json").read_text())
    assert status["state"] == "stopped" and "stopping" not in status
    again = lgrpo_lite.train("tiny-math", settings, runs=tmp_path, name="stopped", resume="auto")
    assert again.exit_code == 0 and again.exports
    with pytest.raises(ConfigError, match="takes no settings"):
        lgrpo_lite.train(lgrpo_lite.load_recipe("tiny-math"), settings, runs=tmp_path)


@pytest.mark.slow
def test_a_run_resolved_before_options_were_arguments_goes_on(tmp_path):
    """Its config.resolved.yaml has every key that all rewards once had; and a
    setting that differs still refuses.
    """
    settings = [*SMALL, "export.formats=[]", "safety.baseline_check=false"]
    where = ["--runs", tmp_path, "--name", "old", "--ui", "none"]
    assert lgrpo("recipe", "tiny-math", *settings, *where) == 0
    resolved = tmp_path / "old" / "config.resolved.yaml"
    raw = yaml.safe_load(resolved.read_text())
    raw["rewards"][0] = {**REWARD_KEYS, **raw["rewards"][0]}
    resolved.write_text(yaml.safe_dump(raw))
    assert lgrpo("recipe", "tiny-math", *settings, *where, "--resume", "auto") == 0
    raw["rewards"][0]["extract"] = "boxed"
    resolved.write_text(yaml.safe_dump(raw))
    assert lgrpo("recipe", "tiny-math", *settings, *where, "--resume", "auto") == 2
