"""The folder that adapters go through on their way to vLLM."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_recipe

from lgrpo_lite.engines.adapter import AdapterFolder, checksum
from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.policy.policy import Policy


@pytest.fixture(scope="module")
def policy():
    return Policy.load(tiny_recipe())


@pytest.mark.parametrize("most", [1, 2048, 300_000])
def test_an_adapter_that_does_not_fit_leaves_nothing_behind(tmp_path, policy, most):
    """A limit on the size of files makes the system refuse the write, as a full device does."""
    folder = AdapterFolder(tmp_path, setting="rollout.server.adapter_dir")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(
            EnvironmentFault, match=r"cannot be written: .*[Ff]ile too large.*; it takes [\d,]+ bytes"
        ) as fault:
            folder.publish(policy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "rollout.server.adapter_dir" in fault.value.fix and str(folder.path) in fault.value.where
    assert list(folder.path.iterdir()) == []
    assert (folder.publish(policy) / "adapter_model.safetensors").exists()


def test_versions_are_whole_and_apart(tmp_path, policy):
    folder = AdapterFolder(tmp_path)
    first, second = folder.publish(policy), folder.publish(policy)
    assert first != second and sorted(folder.path.iterdir()) == sorted([first, second])
    folder.drop(first)
    assert [*folder.path.iterdir()] == [second]
    folder.close()
    assert [*tmp_path.iterdir()] == []


def test_a_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match="No such file") as fault:
        AdapterFolder(tmp_path / "missing", setting="rollout.server.adapter_dir")
    assert "rollout.server.adapter_dir" in fault.value.fix


@pytest.mark.slow
def test_a_process_that_ends_by_an_error_takes_its_folder_along(tmp_path):
    """A forked child that exits before it does not."""
    lines = (
        "import os, pathlib, sys",
        "from lgrpo_lite.engines.adapter import AdapterFolder",
        "folder = AdapterFolder()",
        "child = os.fork()",
        "child or sys.exit(0)",
        "os.waitpid(child, 0)",
        "print(folder.path, folder.path.exists(), oct(folder.path.stat().st_mode & 0o777))",
        "raise RuntimeError",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    path, existed, mode = done.stdout.split()
    assert done.returncode == 1 and existed == "True" and mode == "0o700"
    assert Path(path).parent == tmp_path and [*tmp_path.iterdir()] == []


@torch.no_grad()
def test_the_checksum_changes_with_one_bit_and_comes_back(policy):
    before, weight = checksum(policy), policy.trainable()[3]
    bits = weight.data.view(torch.int32).view(-1)
    bits[5] ^= 1
    assert checksum(policy) != before
    bits[5] ^= 1
    assert checksum(policy) == before


@pytest.mark.slow
def test_what_a_killed_run_left_in_memory_is_swept(tmp_path, monkeypatch):
    """SIGKILL runs no clean-up: the next run finds the folder unlocked. One that is alive keeps its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    lines = (
        "import os, signal",
        "from lgrpo_lite.engines.adapter import AdapterFolder",
        "folder = AdapterFolder()",
        "print(folder.path, flush=True)",
        "os.kill(os.getpid(), signal.SIGKILL)",
    )
    left = Path(
        subprocess.run(
            [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True
        ).stdout.strip()
    )
    alive = AdapterFolder()
    assert left.exists() and left.parent == tmp_path  # it is young: its process might be about to lock it
    for folder in (left, alive.path):
        os.utime(folder, (0, 0))
    other = AdapterFolder()
    assert not left.exists() and alive.path.exists() and other.path.exists()
    alive.close()
    other.close()
