"""The Python files that a recipe names: what a run of it executes besides ours, each with its SHA-256."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lgrpo_lite.recipe.plugin import is_file, read_file
from lgrpo_lite.recipe.schema import Recipe

PARTS = ("algorithm.advantage", "algorithm.surrogate")  # that a file may give
SHORT = 12  # hex digits of a hash that people are shown


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A file as it was when it was read."""

    path: str  # as the recipe gives it
    text: bytes

    @property
    def place(self) -> str:
        """Where it lies, whatever the working directory is."""
        return str(Path(self.path).resolve())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


def files_of(recipe: Recipe) -> list[tuple[str, str]]:
    """(key, file.py:function) of all code that a run of the recipe runs besides ours."""
    named = {"algorithm.use": recipe.algorithm.use}
    for key in PARTS:
        named[key] = getattr(recipe.algorithm, key.rpartition(".")[2])
    for i, reward in enumerate(recipe.rewards):
        named[f"rewards.{i}.use"] = reward.use
    return [(key, use) for key, use in named.items() if is_file(use)]


def paths_of(recipe: Recipe) -> dict[str, str]:
    """Each file of `files_of` once, as the recipe gives it, with the key that names it first."""
    paths: dict[str, str] = {}
    for key, use in files_of(recipe):
        paths.setdefault(use.rpartition(":")[0], key)
    return paths


def code_of(recipe: Recipe) -> list[CodeFile]:
    """The files, read and not run. One that is not there: DataError."""
    return [CodeFile(path, read_file(path, recipe.where(key))) for path, key in paths_of(recipe).items()]


def told(files: Iterable[CodeFile]) -> list[str]:
    """What is said of each file before it is executed."""
    return [f"executes   {file.path}, SHA-256 {file.sha256[:SHORT]}" for file in files]
