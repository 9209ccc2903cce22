"""What is read off a machine: nvidia-smi in its moods, limits of memory, room on disks."""

import socket
import sysconfig
import time
from pathlib import Path

import pytest

from lgrpo_lite.machine import facts as machine_module
from lgrpo_lite.machine import hub
from lgrpo_lite.machine.facts import (
    Gpu,
    GpuProcess,
    compiler,
    gpu_memory,
    gpu_processes,
    memory_limit,
    no_header,
    parse_gpus,
    parse_processes,
    read_machine,
    room,
    smi_fault,
)
from lgrpo_lite.machine.hub import has_token, model_cache, name_found, unreachable

GIB = 2**30
ADA, TURING = "GPU-5f1cf6c8-0ba4-4f3c-a2d5-000000000000", "GPU-a90b1f0e-22c7-4b6a-9d11-111111111111"

GPUS = f"""0, NVIDIA GeForce RTX 4090, {ADA}, 580.95.05, 23638, 24564, 8.9
1, NVIDIA GeForce RTX 2080 Ti, {TURING}, 580.95.05, 10837, 11264, 7.5
"""
PROCESSES = f"""{ADA}, 4242, /opt/conda/bin/python3.11 train.py --out /data/x, 18432
{ADA}, 977, VLLM::EngineCore, 1024
{TURING}, 31, a name, with a comma, [N/A]
"""


def test_gpus_of_nvidia_smi():
    first, second = parse_gpus(GPUS)
    assert first == Gpu(0, "NVIDIA GeForce RTX 4090", ADA, "580.95.05", (8, 9), 23638 * 2**20, 24564 * 2**20)
    assert (second.index, second.uuid, second.capability) == (1, TURING, (7, 5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"0, Tesla V100, {ADA}, 470.82.01, 16000, 16160",
            (None, 16000 * 2**20),
        ),  # a driver that cannot tell the capability
        (
            f"0, NVIDIA GB10, {ADA}, 580.82.09, [N/A], [N/A], 12.1",
            ((12, 1), None),
        ),  # shares the machine's memory
        (f"0, NVIDIA X, {ADA}, 580.82.09, 5, 6, [N/A]", (None, 5 * 2**20)),
    ],
)
def test_what_nvidia_smi_does_not_tell_is_none(text, expected):
    (gpu,) = parse_gpus(text)
    assert (gpu.capability, gpu.free) == expected


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n"])
def test_no_gpu_in_the_answer(text):
    assert parse_gpus(text) == [] and parse_processes(text) == []


def test_processes_of_nvidia_smi():
    assert parse_processes(PROCESSES) == [
        GpuProcess(4242, "python3.11", 18432 * 2**20, ADA),
        GpuProcess(977, "VLLM::EngineCore", 1024 * 2**20, ADA),
        GpuProcess(31, "a name, with a comma", 0, TURING),
    ]


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n",
            "was updated",
            "reboot",
        ),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure",
            "not loaded",
            "modprobe nvidia",
        ),
        (
            "Failed to initialize NVML: Unknown Error\n",
            "taken away from this container",
            "restart the container",
        ),
        ("Failed to initialize NVML: Insufficient Permissions\n", "may not use", "usermod"),
        ("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", "bad state", "reboot"),
        ("No devices were found\n", "finds no GPU", "--gpus all"),
        ("something new\nmore", "nvidia-smi fails: something new", "reboot"),
        ("", "prints nothing", "reboot"),
    ],
)
def test_a_failed_nvidia_smi_is_named(text, what, fix):
    fault = smi_fault(text)
    assert what in fault.what and fix in fault.fix and "\n" not in fault.what + fault.fix


def put_nvidia_smi(folder: Path, monkeypatch, lines: str) -> None:
    """A program of that name, which runs these shell lines, before everything else on PATH."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_asking_nvidia_smi(tmp_path, monkeypatch):
    (tmp_path / "gpus").write_text(GPUS)
    (tmp_path / "apps").write_text(PROCESSES)
    apps, gpus = f"cat {tmp_path}/apps", f"cat {tmp_path}/gpus"
    put_nvidia_smi(
        tmp_path,
        monkeypatch,
        f'case "$1" in *compute-apps*) {apps} ;; *compute_cap) {gpus} ;; *) exit 2 ;; esac',
    )
    assert [p.pid for p in gpu_processes()] == [4242, 977, 31]
    assert gpu_memory() == [(23638 * 2**20, 24564 * 2**20), (10837 * 2**20, 11264 * 2**20)]
    machine = read_machine()
    assert (len(machine.gpus), len(machine.gpu_processes), machine.gpu_fault) == (2, 3, None)


def test_an_old_driver_is_asked_without_the_capability(tmp_path, monkeypatch):
    refusal = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    answer = f'echo "0, Tesla T4, {TURING}, 470.82.01, 15000, 15109"'
    put_nvidia_smi(tmp_path, monkeypatch, f'case "$1" in *compute_cap) {refusal} ;; esac; {answer}')
    (gpu,) = read_machine().gpus
    assert (gpu.driver, gpu.capability) == ("470.82.01", None)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "old kernel module"),
        ("echo 'No devices were found'", "finds no GPU"),
        ("exec sleep 60", "does not answer"),
    ],
)
def test_a_broken_nvidia_smi_is_a_fault_and_no_gpu(tmp_path, monkeypatch, lines, what):
    monkeypatch.setattr(machine_module, "SMI_TIMEOUT", 1)
    put_nvidia_smi(tmp_path, monkeypatch, lines)
    machine = read_machine()
    assert machine.gpus == () and machine.gpu_fault and what in machine.gpu_fault.what
    assert gpu_processes() == [] and gpu_memory() == []


@pytest.mark.parametrize(
    ("files", "group", "limit"),
    [
        ({"memory.max": "8589934592\n"}, "0::/\n", 8 * GIB),
        ({"memory.max": "max\n"}, "0::/\n", None),
        (
            {"memory.max": "max\n", "a/memory.max": "2147483648\n", "a/b/memory.max": "max\n"},
            "0::/a/b\n",
            2 * GIB,
        ),
        ({"memory/memory.limit_in_bytes": "4294967296\n"}, "5:memory:/docker/x\n", 4 * GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, "5:memory:/\n", None),
        ({}, "", None),
    ],
)
def test_the_memory_limit_of_a_container(tmp_path, files, group, limit):
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    (tmp_path / "own").write_text(group)
    assert memory_limit(tmp_path / "fs", tmp_path / "own") == limit


def test_room_of_a_folder_that_is_not_there_yet(tmp_path):
    assert room(tmp_path / "a" / "b").total == room(tmp_path).total > 0


def test_where_models_are_kept(tmp_path):
    assert model_cache({"HF_HUB_CACHE": "/x"}) == Path("/x")
    assert model_cache({"HF_HOME": "/h"}) == Path("/h/hub")
    assert model_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")


def test_a_token_of_the_hub(tmp_path):
    assert [has_token({"HF_HOME": str(tmp_path), **more}) for more in ({}, {"HF_TOKEN": "x"})] == [
        False,
        True,
    ]
    (tmp_path / "token").write_text("hf_x")
    assert has_token({"HF_HOME": str(tmp_path)})


# ------------------------------------------------------------------------------------------- compiler and network


@pytest.mark.parametrize(
    ("programs", "named", "expected"),
    [
        (("gcc", "clang"), None, "gcc"),
        (("clang",), None, "clang"),
        (("gcc", "mine"), "mine", "mine"),
        (("gcc",), "gone", None),
        (("cc",), None, None),  # Triton does not look for it
        ((), None, None),
    ],
)
def test_the_compiler_that_triton_would_call(tmp_path, monkeypatch, programs, named, expected):
    for program in programs:
        (tmp_path / program).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = compiler({"CC": named} if named else {})
    assert found == (expected and str(tmp_path / expected))


def test_the_headers_of_this_python(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert no_header() == str(tmp_path)
    (tmp_path / "Python.h").touch()
    assert no_header() is None


NOWHERE = {"HF_ENDPOINT": "https://hub.invalid/x"}  # a name that nobody may own


@pytest.mark.parametrize(
    ("environment", "cached", "expected"),
    [
        (NOWHERE, True, "hub.invalid"),
        (NOWHERE, False, None),
        (NOWHERE | {"HF_HUB_OFFLINE": "yes"}, True, None),
        (NOWHERE | {"TRANSFORMERS_OFFLINE": "1"}, True, None),
        (NOWHERE | {"HF_HUB_OFFLINE": "0"}, True, "hub.invalid"),
        (NOWHERE | {"https_proxy": "http://proxy:3128"}, True, None),  # that looks names up
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, True, None),
    ],
)
def test_a_hub_that_is_not_there(tmp_path, environment, cached, expected):
    if cached:
        (tmp_path / "models--a--b" / "snapshots" / "0123").mkdir(parents=True)
    assert unreachable({**environment, "HF_HUB_CACHE": str(tmp_path)}) == expected


def test_a_resolver_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a: time.sleep(5))
    begin = time.monotonic()
    assert not name_found("hub.example") and time.monotonic() - begin < 2
