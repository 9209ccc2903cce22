"""What a first run on a card uses: it always ends in a JSON that says what happened,
and the kit it brings is whole.
"""

import json
import os
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "bench"), str(ROOT / "docs")]  # last: both places have a card.py

import first_contact  # noqa: E402
import generate  # noqa: E402
import gpu_check  # noqa: E402
import gpu_kit  # noqa: E402
import vllm_in_pieces  # noqa: E402

GIB = 2**30


def test_no_name_in_tests_and_benches_is_undefined():
    """Some lines of them run on a card alone."""
    done = subprocess.run(
        [sys.executable, "-m", "pyflakes", "tests", "bench", "docs"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------- gpu_check


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_failed_command_is_quoted_and_none_other():
    found = gpu_check.command(python("import sys; print('note', file=sys.stderr); sys.exit('the last word')"))
    assert (found["exit"], found["said"]) == (1, ["note", "the last word"])
    assert "said" not in gpu_check.command(python("import sys; print('note', file=sys.stderr)"))


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ({"model": {"exit": 5}}, 5),
        ({"selftest": {"exit": 0}, "train": {"exit": 3}, "peak_gib": None}, 3),
        ({"selftest": {"exit": 0}, "train": {"exit": 0}, "peak_gib": 24.5}, 4),
        ({"selftest": {"exit": 0}, "train": {"exit": 0}, "peak_gib": None}, 0),
    ],
)
def test_exit_of_a_check(found, code):
    assert gpu_check.exit_of(found) == code


def test_a_run_without_steps_has_no_speed(tmp_path):
    assert gpu_check.steps_of(tmp_path / "metrics.jsonl")["rollout_tokens_per_s"] == []


@pytest.mark.parametrize("kv", [0, 6])
@pytest.mark.parametrize(("card", "taken", "left"), [(80, 1, 23), (80, 60, 0), (24, 1, 23)])
def test_a_larger_card_looks_like_one_of_the_cap(monkeypatch, card, taken, left, kv):
    """24 GiB, of which the rest is taken; torch has them less a context, and more by the
    cache that it goes on counting.
    """
    shares, seen = [], []
    properties = SimpleNamespace(total_memory=card * GIB)
    for module in (torch.cuda, torch.cuda.memory):
        monkeypatch.setattr(module, "mem_get_info", lambda device=None: ((card - taken) * GIB, card * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(
        "lgrpo_lite.cli.main.main", lambda words: seen.append((words, torch.cuda.mem_get_info(0)))
    )
    monkeypatch.setattr(sys, "argv", ["-c", *map(str, (24 * GIB, kv * GIB, GIB)), "train", "x"])
    with pytest.raises(SystemExit):
        exec(gpu_check.CAPPED, {})
    assert seen == [(["train", "x"], (left * GIB, 24 * GIB))]
    assert shares == ([(24 - 1 + kv) / card] if card > 24 else [])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is here")
def test_a_check_without_its_engine_says_so():
    command = [sys.executable, ROOT / "bench" / "gpu_check.py", "--tiny", "--engine", "vllm"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    said = json.loads(done.stdout)["train"]["said"]
    assert any("not installed: vllm" in line for line in said), said


# ------------------------------------------------------------------------------------------- first contact


def part(name: str, text: str, limit: float = 60.0) -> first_contact.Part:
    return first_contact.Part(name, limit, ("-c", text), ("-c", text))


KEEP = "import json, os; json.dump({'settings': {}, 'rows': {'a': 1}}, open(os.environ['BENCH_OUT'] + '/loss-cpu.json', 'w'))"


def test_a_part_that_fails_or_hangs_is_told_and_the_rest_goes_on(tmp_path):
    out = tmp_path / "out.json"
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parts = [
        part("fails", "import sys; sys.exit('no such card')"),
        part("hangs", f"{KEEP}; print('busy', flush=True); {child}", limit=3),
        part("well", KEEP),
    ]
    began = time.monotonic()
    assert not first_contact.contact(parts, out, dry=False)
    assert time.monotonic() - began < 30
    found = json.loads(out.read_text("utf-8"))["parts"]
    assert {name: row["state"] for name, row in found.items()} == {
        "fails": "failed",
        "hangs": "time limit",
        "well": "ok",
    }
    assert found["fails"]["said"] == ["no such card"] and found["fails"]["exit"] == 1
    assert found["hangs"]["said"] == ["busy"]
    assert (
        found["hangs"]["results"] == found["well"]["results"] == {"loss": {"settings": {}, "rows": {"a": 1}}}
    )


def test_what_there_is_no_time_for_is_not_started(tmp_path):
    out = tmp_path / "out.json"
    assert not first_contact.contact([part("first", KEEP), part("second", KEEP)], out, dry=True, deadline=5)
    found = json.loads(out.read_text("utf-8"))
    assert found["dry_run"] and [row["state"] for row in found["parts"].values()] == ["not started"] * 2
    assert found["versions"]["torch"]


def test_tests_are_counted_and_the_failing_named(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import pytest\ndef test_well(): pass\ndef test_ill(): assert 0\ndef test_broken(nothing): pass\n"
        "@pytest.mark.skip\ndef test_off(): pass\n",
        "utf-8",
    )
    report = tmp_path / "tests.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--junitxml", report, tmp_path],
        capture_output=True,
        cwd=tmp_path,
    )
    counts = {"passed": 1, "failed": 2, "skipped": 1}
    assert first_contact.tests(report) == counts | {"failing": ["test_ill", "test_broken"]}


@pytest.mark.slow
def test_a_dry_run_ends_well(tmp_path):
    """bench/gpu_check.py, fit.py, loss.py and step.py in their tiny forms."""
    surroundings = os.environ | {"PYTHON": sys.executable, "KIT": str(tmp_path), "OUT": str(tmp_path)}
    command = [ROOT / "bench" / "first_contact.sh", "--dry-run", "--out", tmp_path / "folder" / "out.json"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: row["state"] for name, row in found["parts"].items()} == {
        p.name: "ok" for p in first_contact.PARTS
    }
    assert len(found["parts"]["recipe"]["results"]["gpu-check"]["rows"]["transformers"]["disagreement"]) == 3
    assert found["parts"]["fit"]["results"]["fit"]["rows"]["tiny, ours"]["fits"]


def test_no_dry_run_becomes_a_baseline():
    command = [
        sys.executable,
        ROOT / "bench" / "first_contact.py",
        "--dry-run",
        "--out",
        ROOT / "bench" / "baselines" / "x.json",
    ]
    assert (
        subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True).returncode
        == 2
    )


CONTACT = {
    "card": "NVIDIA X", "card_gib": 23.6, "driver": "580.1", "date": "2026-12-01", "versions": {"torch": "2.13.0"},
    "parts": {
        "tests": {"state": "failed", "seconds": 31.2, "results": {
            "tests": {"passed": 9, "failed": 1, "skipped": 0, "failing": ["test_ill"]}}},
        "recipe": {"state": "ok", "seconds": 100.0, "results": {"gpu-check": {"settings": {}, "rows": {"transformers": {
            "selftest": {"exit": 0}, "train": {"exit": 0}, "peak_gib": 9.53, "rollout_tokens_per_s": [1.0, 1234.0],
            "trained_tokens_per_s": [1.0, 2345.0], "disagreement": []}}}}},
        "fit": {"state": "time limit", "seconds": 200.0, "results": {"fit": {"settings": {}, "rows": {
            "3B, ours, 1,024": {"fits": True, "answers": 1024, "answer_tokens_per_second": 5000.0, "peak_gib": 7.25},
            "7B, TRL, 4,096": {"fits": False, "answers": 4096}}}}},
        "head": {"state": "ok", "seconds": 20.0, "results": {"loss": {"settings": {}, "rows": {
            "bfloat16": {"own": {"median": 1.0}, "trl": {"median": 1.5}, "verl": {"worst_gradient_error": 1.0}}}}}},
        "update": {"state": "not started"},
    },
}  # fmt: skip
TABLE = """2026-12-01, NVIDIA X (24 GiB), driver 580.1; torch 2.13.0.

| part | ended | s | what it found |
|---|---|---:|---|
| tests | failed | 31 | 9 passed, 1 failed, 0 skipped; test_ill |
| recipe | ok | 100 | transformers, exit 0 (selftest) and 0; peak 9.5 GiB; 1,234 tokens/s sampled; 2,345 tokens/s trained |
| fit | time limit | 200 | 3B, ours, 1,024: 5,000 tokens/s, 7.2 GiB; 7B, TRL, 4,096: does not fit |
| head | ok | 20 | bfloat16: own 1.00 x ours, trl 1.50 x ours |
| update | not started |  |  |"""


def test_the_table_of_a_first_contact():
    assert generate.first_contact(CONTACT) == TABLE
    assert "Not run yet on a GPU" in generate.first_contact(None)


# ------------------------------------------------------------------------------------------- the kit and the pieces


@pytest.mark.parametrize(
    ("names", "locked"), [("gpu-kit.txt", "constraints-cpu.txt"), ("vllm-needs.txt", "constraints-vllm.txt")]
)
def test_every_package_of_a_kit_has_one_version(names, locked):
    listed = [
        line
        for line in (ROOT / "bench" / names).read_text("utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    lines = (ROOT / locked).read_text("utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    unpinned = [name for name in listed if "==" not in name and name.lower().replace("_", "-") not in pinned]
    assert not unpinned and len(set(listed)) == len(listed)


def test_the_kit_has_whatever_the_package_needs_of_other_places():
    """All of `dependencies`, and of the extra `train` what torch and transformers do not bring."""
    listed = (ROOT / "bench" / "gpu-kit.txt").read_text("utf-8").lower()
    needs = (
        "pydantic",
        "pyyaml",
        "rich",
        "psutil",
        "peft",
        "bitsandbytes",
        "jaxtyping",
        "math-verify",
        "latex2sympy2_extended",
    )
    assert all(f"\n{name}\n" in listed for name in needs)


def test_a_slim_wheel_is_still_a_wheel(tmp_path):
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    files = {
        "thing/__init__.py": "here = 1\n",
        "thing/big.so": "x" * 1000,
        "thing-1.0.dist-info/RECORD": "thing/big.so,,\n",
    }
    files["thing-1.0.dist-info/WHEEL"] = (
        "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files["thing-1.0.dist-info/METADATA"] = "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    gpu_kit.repack(wheel, lambda name: not name.endswith(".so"))
    vllm_in_pieces.join(tmp_path, tmp_path / "site")
    assert (tmp_path / "site" / "thing" / "__init__.py").read_text("utf-8") == "here = 1\n"
    record = (tmp_path / "site" / "thing-1.0.dist-info" / "RECORD").read_text("utf-8")
    assert "thing/__init__.py,sha256=" in record and "big.so" not in record


def test_pieces_lose_nothing_and_are_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_in_pieces, "LIMIT", 100)
    sizes = [90, 60, 30, 30, 20, 10]
    files = [tmp_path / f"file{number}" for number in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(bytes(size))
    vllm_in_pieces.pack(files, tmp_path / "out")
    pieces = [
        sorted(file.stat().st_size for file in piece.iterdir())
        for piece in sorted((tmp_path / "out").iterdir())
    ]
    assert pieces == [[10, 90], [30, 60], [20, 30]]
    (tmp_path / "huge").write_bytes(bytes(101))
    with pytest.raises(SystemExit, match="huge"):
        vllm_in_pieces.pack([tmp_path / "huge"], tmp_path / "out")


def test_a_cut_wheel_comes_together_without_what_was_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_in_pieces, "ALONE", 1000)
    files = {
        "vllm/a.py": b"a",
        "vllm/_moe.so": os.urandom(2000),
        f"{vllm_in_pieces.LEFT_OUT[0]}2_C.abi3.so": os.urandom(3000),
    }
    with zipfile.ZipFile(tmp_path / "vllm.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
    parts = tmp_path / "parts"
    parts.mkdir()
    vllm_in_pieces.cut(tmp_path / "vllm.whl", parts)
    assert sorted(file.name for file in parts.iterdir()) == ["_moe.so.zip", "vllm.zip"]
    vllm_in_pieces.join(parts, tmp_path / "site")
    whole = {
        str(f.relative_to(tmp_path / "site")): f.read_bytes()
        for f in (tmp_path / "site").rglob("*")
        if f.is_file()
    }
    assert whole == dict(list(files.items())[:2])
