"""Downloads and loading of the libraries under us, told as progress: their own bars are
replaced, never drawn beside them.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from httpx import HTTPError
from huggingface_hub import is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled
from tqdm import tqdm
from transformers.utils import logging

from lgrpo_lite import progress

MB = 10**6
WEIGHTS = ("*.safetensors",)  # of a model on the Hub,
OTHERS = ("original/*", "consolidated*")  # which some bring a second time
BESIDE = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*",
    "README.md",
)  # fmt: skip


class Told(tqdm):
    """A bar that draws nothing and tells whoever listens what it would show; bytes as MB, from one MB on."""

    what: str | None = None  # instead of the bar's own description

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **(options | {"disable": True}))
        description = str(options.get("desc") or "").strip().lower()
        self.name = self.what or description
        self.in_bytes = options.get("unit") == "B"
        # of the two bars of a transfer the network's moves first, that of the file on the disk follows it
        follows = "reconstruct" in description
        self.silent = follows or (bool(self.what) and not self.in_bytes)
        self._tell()

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable or ():
            yield item
            self.update()

    def update(self, n: float | None = 1) -> None:
        with self.get_lock():  # several files come at once, each in its thread
            self.n += n or 0
            self._tell()

    def refresh(self, *_: Any, **__: Any) -> None:
        """A library that changes `total` calls it."""
        self._tell()

    def _tell(self) -> None:
        if self.silent or not self.name:
            return
        done = int(self.n)
        total = None if self.total is None else int(self.total)
        if not self.in_bytes:
            progress.told(self.name, done, total)
        elif (total or done) >= MB:
            total_mb = None if total is None else -(-total // MB)
            done_mb = total_mb if total_mb and done == total else done // MB
            progress.told(f"{self.name}, MB", done_mb, total_mb)


Told.set_lock(threading.RLock())  # tqdm's own would start a process


def download_bar(what: str) -> Any:
    """For `tqdm_class` of a download of the Hub. None, so the library's own bar, where those are wanted."""
    return type("Download", (Told,), {"what": what}) if are_progress_bars_disabled() else None


@contextmanager
def bars_told() -> Iterator[None]:
    """Inside it the bars of transformers ("Loading weights") are told; where they are wanted they stay."""

    def hook(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **options) if logging.is_progress_bar_enabled() else Told(*args, **options)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


def fetch_ahead(model_id: str, revision: str | None) -> str:
    """The weights of a model on the Hub into its cache, for an engine that would fetch them without a word.

    What to give that engine: the folder with them, so that it has nothing to ask the Hub; `model_id` where
    there is none. Whatever goes wrong, and whatever else it needs, that engine meets again and says so.
    """
    if Path(model_id).exists():
        return model_id
    _into_cache(model_id, revision, [*WEIGHTS, "*.json"])
    folder = _cached(model_id, revision)
    return model_id if folder is None else str(folder)


def folder_of(model_id: str, revision: str | None) -> Path | None:
    """The folder with the files of a model that was loaded from there: its own, or one in the Hub's cache, to
    which the small files beside its weights are fetched where the Hub can be reached. None: there is none.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    _into_cache(model_id, revision, list(BESIDE))
    with suppress(ValueError):  # not the name of a repository
        config = try_to_load_from_cache(model_id, "config.json", revision=revision)
        if isinstance(config, str):
            return Path(config).parent
    return None


def _into_cache(model_id: str, revision: str | None, patterns: list[str]) -> None:
    """The files of those names, where the Hub can be reached and has them; else nothing."""
    if is_offline_mode():
        return
    with suppress(OSError, ValueError, HTTPError):
        snapshot_download(
            model_id,
            revision=revision,
            tqdm_class=download_bar(f"downloading {model_id}"),
            allow_patterns=patterns,
            ignore_patterns=list(OTHERS),
        )


def _cached(model_id: str, revision: str | None) -> Path | None:
    """The folder in the Hub's cache with this revision's configuration and all its weights; no network."""
    with suppress(ValueError):  # not the name of a repository
        config = try_to_load_from_cache(model_id, "config.json", revision=revision)
        if isinstance(config, str) and _whole(Path(config).parent):
            return Path(config).parent
    return None


def _whole(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        return all((folder / name).is_file() for name in weight_map.values())
    return any(folder.glob("*.safetensors"))
