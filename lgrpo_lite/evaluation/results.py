"""The folder of one evaluation: killed at any moment and started again, it ends with the same figures.

about.json      what was asked of whom and how; an evaluation goes on only with the same
recipe.yaml     all settings
samples.jsonl   one line a problem, with its k samples (figures.Problem); whole blocks only
result.json     about, figures, versions; written at the end
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.evaluation.figures import Figures, Problem
from lgrpo_lite.evaluation.suites import Asked
from lgrpo_lite.machine.disk import lock, plain, write_whole
from lgrpo_lite.machine.stacks import installed_packages, normal
from lgrpo_lite.recipe.marks import differences
from lgrpo_lite.recipe.schema import Recipe

PACKAGES = ("lgrpo-lite", "torch", "transformers", "peft", "vllm", "math-verify", "numpy")
LOGS = {"eval.log", "rewards.log"}
# settings of the sampler that move its random numbers or its rounding
ROLLOUT = ("engine", "batch_rows", "vllm")


class ResultFolder:
    """Open for one process at a time. `done` are the problems whose samples are on the disk."""

    def __init__(self, path: Path, about: dict[str, Any], recipe: Recipe):
        """Create the folder, or go on in it. Another evaluation in it, or another process: ConfigError."""
        self.path, self.about = path, about
        check_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what, fix = f"cannot write the results: {error.strerror}", "choose another place with --out DIR"
            raise ConfigError(what, where=str(path), fix=fix) from None
        fix = "wait for it, or choose another --out"
        self._lock = lock(path, "another process writes these results", fix)
        self._check()
        write_whole(path / "recipe.yaml", recipe.to_yaml())
        write_whole(path / "about.json", json.dumps(about, indent=1) + "\n")
        self.done = self._recover()

    def append(self, block: Sequence[Problem]) -> None:
        """A block's lines, on the disk before this returns."""
        with (self.path / "samples.jsonl").open("ab") as file:
            file.write(_lines(block))
            file.flush()
            os.fsync(file.fileno())
        self.done += block

    def finish(self, figures: Figures | None, warnings: list[str]) -> dict[str, Any]:
        """Write result.json and return it."""
        result = {
            "schema": 1,
            "about": self.about,
            "figures": None if figures is None else figures.to_json(),
            "versions": versions(),
            "warnings": warnings,
        }
        write_whole(self.path / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        return result

    def close(self) -> None:
        self._lock.close()

    def _check(self) -> None:
        """Whether what is there is this evaluation."""
        file = self.path / "about.json"
        if not file.exists():
            return
        before = json.loads(plain(file).read_text("utf-8"))
        now = json.loads(json.dumps(self.about))
        changed = differences(before, now, free=())
        if changed:
            more = "; …" if len(changed) > 5 else ""
            shown = "; ".join(changed[:5]) + more
            fix = "go on with the settings it was started with, or choose another --out"
            raise ConfigError(f"these results are of another evaluation: {shown}", where=str(file), fix=fix)

    def _recover(self) -> list[Problem]:
        """The whole blocks of samples.jsonl; what a kill left behind them is cut off."""
        path = self.path / "samples.jsonl"
        data = plain(path).read_bytes() if path.exists() else b""
        lines = data.split(b"\n")[:-1]
        read = []
        for line in lines:
            try:
                read.append(Problem.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                break
        block, total = self.about["block"], self.about["problems"]
        whole = total if len(read) >= total else len(read) // block * block
        size = sum(len(line) + 1 for line in lines[:whole])
        if size < len(data):
            with path.open("r+b") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        return read[:whole]


def check_folder(path: Path) -> None:
    """Refuse a folder that holds anything but an evaluation: ConfigError."""
    if not path.is_dir():
        return
    names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    foreign = sorted(names - LOGS)
    if foreign and "about.json" not in names:
        what = f"that folder holds something else: {', '.join(foreign[:3])}"
        raise ConfigError(what, where=str(path), fix="choose another --out")


def about(
    recipe: Recipe, suite: str, subject: dict[str, Any], asked: Asked, *, seed: int, block: int
) -> dict[str, Any]:
    """What an evaluation is.

    Two with the same `problems_hash` and `checker` can be compared problem by problem.
    """
    rollout = {}
    for key in ROLLOUT:
        value = getattr(recipe.rollout, key)
        rollout[key] = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return {
        "suite": suite,
        "problems": len(asked.prompts),
        "problems_hash": problems_hash((p.text, p.reference) for p in asked.prompts),
        "left_out": asked.left_out,
        "checker": [reward.changed() for reward in recipe.rewards],
        "prompt": _asked(recipe),
        "subject": subject,
        "model": recipe.model.model_dump(mode="json"),
        "rollout": rollout,
        "k": recipe.eval.k,
        "temperature": recipe.eval.temperature,
        "seed": seed,
        "block": block,
    }


def _asked(recipe: Recipe) -> dict[str, Any]:
    """How a question is put, and what ends its answer; what is not set is left out, but for the first two."""
    data, rollout = recipe.data, recipe.rollout
    more = {
        "few_shot": [shot.model_dump() for shot in data.few_shot or ()],
        "prefill": data.prefill,
        "chat_template_kwargs": data.chat_template_kwargs,
        "stop": rollout.stop,
        "stop_shown": None if rollout.stop_shown else False,
    }
    given = {key: value for key, value in more.items() if value or value is False}
    return {"template": data.template, "system": data.system} | given


def problems_hash(pairs) -> str:
    """Of (question, gold answer) in order; what is shown of a suite to the model and to the checker."""
    digest = hashlib.sha256()
    for question, reference in pairs:
        digest.update(json.dumps([question, reference]).encode() + b"\n")
    return digest.hexdigest()[:16]


def write_samples(path: Path, problems: Sequence[Problem]) -> None:
    """One line a problem, compressed; the file appears whole. Equal samples give equal bytes."""
    path.parent.mkdir(exist_ok=True)
    write_whole(path, gzip.compress(_lines(problems), mtime=0))


def _lines(problems: Sequence[Problem]) -> bytes:
    rows = [json.dumps(p.to_json(), ensure_ascii=False) for p in problems]
    return "".join(row + "\n" for row in rows).encode()


def read_samples(path: Path) -> list[Problem]:
    """All problems of a finished samples file, compressed or not. A foreign line: ConfigError (file:line)."""
    data = plain(path).read_bytes()
    fix = "run the evaluation again with another --out"
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            what = f"the samples cannot be unpacked: {error}"
            raise ConfigError(what, where=str(path), fix=fix) from None
    problems = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            problems.append(Problem.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            what = f"no line of an evaluation: {error}"
            raise ConfigError(what, where=f"{path}:{number}", fix=fix) from None
    return problems


def versions() -> dict[str, str]:
    """Of the packages that make the figures; those that are not installed are left out."""
    installed = installed_packages()
    return {name: installed[normal(name)] for name in PACKAGES if normal(name) in installed}
