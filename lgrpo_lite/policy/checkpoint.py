"""Checkpoints: everything a run is, written so that a kill at any moment leaves the previous one whole.

    checkpoints/step-000040/{adapter/, trainer.pt, state.json, SHA256SUMS}
    checkpoints/latest -> step-000040        checkpoints/best -> step-000020

A checkpoint is written under a temporary name, every file and folder fsynced, then renamed. A folder whose
sums do not match is never loaded: the one before it is, and the caller is told.
"""

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from lgrpo_lite.errors import DataError
from lgrpo_lite.machine.disk import opened, text_of
from lgrpo_lite.policy.policy import Policy

NAME = re.compile(r"step-\d{6,}")


@dataclass(frozen=True, slots=True)
class State:
    """The small part, kept as readable JSON."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    step: int  # steps done
    policy_version: int  # optimiser updates done
    prompts_drawn: int  # position in the data
    length_lambda: float | None = None
    score: float | None = None  # accuracy of the newest evaluation
    best_score: float | None = None
    best_step: int | None = None  # the first one with that score
    refused: int = 0  # steps in a row whose loss was not finite


def save(
    root: Path, policy: Policy, tensors: dict[str, Any], state: State, *, keep_last: int, keep_best: int
) -> Path:
    """Write step-NNNNNN under `root`, move `latest` (and `best`, if this is it), remove what is not kept.

    `root` is made where it is not there, and nothing above it: a run folder that is gone stays gone.
    """
    root.mkdir(exist_ok=True)
    final = root / f"step-{state.step:06d}"
    partial = root / f".partial-{state.step:06d}"
    for leftover in root.glob(".partial-*"):
        _remove(leftover)
    partial.mkdir()
    try:
        policy.save(partial / "adapter")
        torch.save({**tensors, "rng": random_state()}, partial / "trainer.pt")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=1), "utf-8")
        _seal(partial)
    except Exception:  # a full disk: what was written of it is in the way of the run's last words
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _remove(final)
    partial.rename(final)
    _sync(root)
    _point(root / "latest", final.name)
    if keep_best and is_best(state):
        _point(root / "best", final.name)
    _prune(root, keep_last)
    return final


def find(root: Path, which: str = "last") -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint (`last`), `best`, or a step's; and a warning for each one passed over.

    Only `last` has others to fall back to: whoever asks for the best or for a step gets that or None.
    """
    warnings = []
    if which == "last":
        folders = _folders(root)[::-1]
    elif which == "best":
        folders = [(root / "best").resolve()] if (root / "best").exists() else []
    else:
        folders = [root / f"step-{int(which):06d}"] if which.isdigit() else []
    for folder in folders:
        fault = broken(folder)
        if fault is None:
            return folder, warnings
        warnings.append(f"checkpoint {folder.name} is corrupt ({fault})")
    return None, warnings


def repair(root: Path, *, keep_best: int) -> None:
    """Put the links where the states of the whole checkpoints say, and remove what a killed save left.

    For a run that is resumed: a kill may fall between a checkpoint and the links to it, or before a whole one
    has its name. That one is kept: where it takes the place of an earlier one, that is gone by then. A
    checkpoint of another version: DataError.
    """
    for partial in root.glob(".partial-*"):
        if broken(partial) is None:
            final = root / partial.name.replace(".partial", "step")
            _remove(final)
            partial.rename(final)
    for leftover in (*root.glob(".partial-*"), *root.glob(".*.new")):
        _remove(leftover)
    whole = [path for path in _folders(root) if broken(path) is None]
    states = [(read_state(path), path) for path in whole]
    if states:
        _point(root / "latest", states[-1][1].name)
    scored = [(state.score, -state.step, path) for state, path in states if state.score is not None]
    if scored and keep_best:
        _, _, best = max(scored)  # the first of equals
        _point(root / "best", best.name)
    elif (root / "best").is_symlink():
        (root / "best").unlink()


def broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Whole files of another version: DataError."""
    try:
        lines = text_of(folder / "SHA256SUMS").splitlines()
        for line in lines:
            digest, _, name = line.partition("  ")
            if _digest(folder / name) != digest:
                return f"{name} was changed or cut short"
    except (OSError, UnicodeDecodeError) as error:
        return str(error)
    names = {line.partition("  ")[2] for line in lines}
    weights = {f"adapter/{file.name}" for file in (folder / "adapter").glob("*.safetensors")}
    if not names >= {"trainer.pt", "state.json", *weights}:
        return "SHA256SUMS is cut short"
    step = read_state(folder).step
    renamed = folder.name.startswith("step-") and folder.name != f"step-{step:06d}"
    return f"its state is of step {step}" if renamed else None


def load(folder: Path, policy: Policy) -> tuple[State, dict[str, Any]]:
    """Restore the policy's parameters and all random states; returns the state and the other tensors."""
    state = load_weights(folder, policy)
    with _fitting(folder):
        tensors = torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True)
    set_random_state(tensors.pop("rng"))
    return state, tensors


def load_weights(folder: Path, policy: Policy) -> State:
    """Restore the policy's parameters alone: whoever looks at a policy needs no moments of its optimiser."""
    with _fitting(folder):
        policy.restore(folder / "adapter")
        state = read_state(folder)
    policy.version = state.policy_version
    return state


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """What does not fit inside it is DataError."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        fix = "resume with the recipe the run was started with (config.resolved.yaml beside it)"
        what = f"the checkpoint does not fit this run: {error}"
        raise DataError(what, where=str(folder), fix=fix) from error


def read_state(folder: Path) -> State:
    """state.json of a checkpoint. One that holds something else: DataError."""
    path = folder / "state.json"
    try:
        return TypeAdapter(State).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"])) or "it"
        what = f"no state of a run as this version writes it: {key}: {error.errors()[0]['msg'].lower()}"
        fix = (
            "resume with the version that wrote it, or remove the checkpoint: the one before it is used then"
        )
        raise DataError(what, where=str(path), fix=fix) from None


def improved(state: State, score: float | None) -> State:
    """The state after an evaluation: the best score only rises, so the first of two equals stays the best."""
    if score is None or (state.best_score is not None and score <= state.best_score):
        return replace(state, score=score)
    return replace(state, score=score, best_score=score, best_step=state.step)


def is_best(state: State) -> bool:
    """Whether no evaluation before this step's was as good."""
    return state.score is not None and state.best_step == state.step


def seed(number: int) -> None:
    """Every generator that a run, its rewards or its engine may draw from begins anew."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def random_state() -> dict[str, Any]:
    """Of the generators that `seed` begins."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave; a generator that an older checkpoint lacks goes on as it is."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


@contextmanager
def random_kept() -> Iterator[None]:
    """What is drawn inside it changes no draw afterwards."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _seal(folder: Path) -> None:
    """Sums of all files, then everything fsynced, files before the folders that hold them."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(lines), "utf-8")
    folders = [p for p in folder.rglob("*") if p.is_dir()]
    for path in (*files, sums, *folders, folder):
        _sync(path)


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point(link: Path, target: str) -> None:
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)  # a copy of a checkpoint, by a tool that follows links
    os.replace(fresh, link)


def _remove(path: Path) -> None:
    """A file, a folder or a link; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _folders(root: Path) -> list[Path]:
    """Checkpoints by step. A folder of another name, as a copy of one, is not counted and not removed."""
    found = [path for path in root.glob("step-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _prune(root: Path, keep_last: int) -> None:
    best = (root / "best").resolve() if (root / "best").exists() else None
    for folder in _folders(root)[:-keep_last]:
        if folder.resolve() != best:
            _remove(folder)
