"""A GGUF file -> a model folder in the cache, which everything after reads as any base. Made once a file.

Weights are dequantised by transformers, in float32, which is what the blocks stand for to the last bit;
config and tokenizer are built from the file's metadata (`policy.gguf`, `policy.gguf_tokenizer`). What was
made is loaded again and must be a language model that reads a plain text, or nothing is kept.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers import modeling_gguf_pytorch_utils as loader

from lgrpo_lite import progress
from lgrpo_lite.errors import ConfigError, DiskFault, EnvironmentFault, OutOfMemory, VerificationError
from lgrpo_lite.policy.fetch import Told, bars_told, download_bar
from lgrpo_lite.policy.gguf import FOLDER, WHOLE, Header, local_file, on_hub, read_header
from lgrpo_lite.policy.gguf_config import ROPE_FACTORS, config_of_header
from lgrpo_lite.policy.gguf_tokenizer import ROUND_TRIPS, check_tokenizer, end_ids, tokenizer_of

MADE_BY = 2  # of the rules here: a folder of other ones is made again
RECORD = "origin.gguf-record"  # no name that exports copy
GIB = 2**30
PLAIN = (
    "The history of the bicycle goes back to the early nineteenth century, when a German baron built a"
    " machine with two wheels and no pedals. Riders pushed it along with their feet. Later inventors added"
    " pedals to the front wheel, and in the 1880s the chain made it possible to drive the rear wheel instead."
    " Today people all over the world use bicycles to go to work, to stay healthy, and simply because they"
    " enjoy it."
)
LEAST = (
    -0.8
)  # nats a character of PLAIN: two real models gave -0.53 and -0.59, with heads in another order -0.99


def folder_of(model_id: str, revision: str | None = None, where: str = "model.id") -> Path:
    """The model folder of a GGUF file, made if it is not there. What cannot be trusted: ConfigError or
    VerificationError, and no folder. A lack of memory or disk is named before anything is loaded.
    """
    path = _fetched(model_id, revision, where)
    header = read_header(path, where)
    folder = _cache() / f"{path.name.removesuffix('.gguf')}-{digest(path)[:16]}-{MADE_BY}"
    if not _is_whole(folder):
        with _alone(folder):
            if not _is_whole(folder):  # who had it before may have made it
                _make(header, folder, model_id, where)
    return folder


def record_of(folder: str | Path) -> dict[str, Any] | None:
    """Of a folder that was made from a GGUF: its file, sha256, `stored_as` and `logprob`. Of others None."""
    try:
        return json.loads((Path(folder) / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, once a process for as long as the file stays as it is."""
    state = path.stat()
    return _digest(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _digest(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetched(model_id: str, revision: str | None, where: str) -> Path:
    named = on_hub(model_id)
    if named is None:
        return local_file(model_id, where)
    try:
        bar = download_bar(f"downloading {model_id}")
        return Path(hf_hub_download(*named, revision=revision, tqdm_class=bar))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        fix = "check repository, file, revision and network, or give the path of a file"
        raise ConfigError(f"cannot load {model_id}: {reason}", where=where, fix=fix) from error


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "lgrpo-lite" / "gguf"


def _mark(path: Path) -> int | str:
    """What tells whether a file is as it was made: its sha256, of weights the size alone."""
    return path.stat().st_size if path.suffix == ".safetensors" else digest(path)


def _is_whole(folder: Path) -> bool:
    """Whether all is there as it was made. One file that lacks or is another would go unseen: generation
    settings, a chat template.
    """
    try:
        files = (record_of(folder) or {})["files"]
        return {name: _mark(folder / name) for name in files} == files
    except (OSError, KeyError):
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside it no other process makes `folder`; what one that was killed left of it, or what is damaged, is
    gone. A cache that cannot be written: EnvironmentFault.
    """
    lock = folder.parent / f"{folder.name}.lock"
    fix = "set XDG_CACHE_HOME to a folder that can be written and has room"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.told("waiting for another process to dequantise the same file", 0, 1)
                fcntl.flock(held, fcntl.LOCK_EX)
            leftovers = list(folder.parent.glob(f".{glob.escape(folder.name)}-*"))
            if not _is_whole(folder):
                leftovers.append(folder)
            for path in leftovers:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"the dequantised model cannot be kept: {reason}"
        raise EnvironmentFault(what, where=str(folder.parent), fix=fix) from error


def _make(header: Header, folder: Path, model_id: str, where: str) -> None:
    config = config_of_header(header, where)
    tokenizer = tokenizer_of(header, where)
    _demand_room(header, folder.parent, where)
    # beside the folder, so that it appears whole
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model = dequantised(header, config, where)
        model.generation_config = _generation(header, tokenizer)
        with bars_told():
            model.save_pretrained(partial)
        del model
        tokenizer.save_pretrained(partial)
        record = {
            "file": model_id,
            "sha256": digest(header.path),
            "stored_as": header.stored_as,
            "dequantised": header.quantised,
            "logprob": _checked(partial, tokenizer, header, where),
        }
        record["files"] = {path.name: _mark(path) for path in sorted(partial.iterdir())}
        (partial / RECORD).write_text(json.dumps(record, indent=1), "utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _demand_room(header: Header, place: Path, where: str) -> None:
    need = 4 * header.numbers
    what = f"{header.path} takes {need / GIB:.1f} GiB in float32"
    free = shutil.disk_usage(place).free
    if free < need:
        fix = "free some, or set XDG_CACHE_HOME to a folder on another disk"
        raise DiskFault(f"{what}, and {free / GIB:.1f} GiB are free on the disk", where=str(place), fix=fix)
    free = psutil.virtual_memory().available
    if free < 2 * need:
        lack = f"{what}, loading it as much again, and {free / GIB:.1f} GiB of memory are free"
        raise OutOfMemory(lack, where=where, fix=FOLDER)


def dequantised(header: Header, config: dict[str, Any], where: str = "model.id") -> Any:
    """The model in float32. A tensor without a place in it, or a weight that the file lacks: ConfigError."""
    try:
        settings = AutoConfig.for_model(**config)
        with _told_loading(), tempfile.TemporaryDirectory() as alone:
            # away from what else lies beside it: an adapter there would be loaded too
            (Path(alone) / header.path.name).symlink_to(header.path)
            both: Any = AutoModelForCausalLM.from_pretrained(
                alone,
                gguf_file=header.path.name,
                config=settings,
                dtype=torch.float32,
                output_loading_info=True,
            )
            loaded, info = both
    except ImportError as error:
        fix = 'pip install "lgrpo-lite[train]"'
        raise EnvironmentFault(f"cannot load {header.path}: {error}", where=where, fix=fix) from error
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot load {header.path}: {reason}", where=where, fix=FOLDER) from error
    weights = dict(loaded.named_parameters())
    stored = set(header.tensors) - {ROPE_FACTORS}
    if info["missing_keys"] or len(stored) != len(weights):
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        lack = f", without {missing}" if missing else ""
        what = f"{header.path} has {len(stored)} tensors{lack}, and the model {len(weights)} weights"
        raise ConfigError(what, where=where, fix=WHOLE if missing else FOLDER)
    # into a fresh model: the loaded one calls itself quantised, and would not be saved
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    expected = dict(model.named_parameters())  # a head tied to the embedding is in it, and not in the file
    for name, weight in weights.items():
        if weight.shape != expected[name].shape:
            shape, other = tuple(weight.shape), tuple(expected[name].shape)
            what = f"{header.path} holds {name} as {shape}, and by its settings it is {other}"
            raise ConfigError(what, where=where, fix=FOLDER)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie_weights()
    return model


@contextmanager
def _told_loading() -> Iterator[None]:
    """The loader's own bar is told like any other."""
    bar = loader.tqdm
    loader.tqdm = _Dequantising
    try:
        with bars_told():
            yield
    finally:
        loader.tqdm = bar


class _Dequantising(Told):
    what = "dequantising the GGUF, tensors"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.silent = False


def _generation(header: Header, tokenizer: Any) -> GenerationConfig:
    ends = end_ids(header)
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def _checked(folder: Path, made: Any, header: Header, where: str) -> float:
    """Nats a character of a plain text, by the folder as everyone else will load it. Too few, or another
    tokenizer than was made: VerificationError.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, header, where)
    for text in ROUND_TRIPS:
        if tokenizer(text)["input_ids"] != made(text)["input_ids"]:
            what = f"transformers reads the tokenizer of {header.path} back as another one"
            raise VerificationError(what, where=where, fix=FOLDER)
    progress.told("checking the dequantised model", 0, 1)
    with bars_told():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = nats_a_character(model, tokenizer)
    progress.told("checking the dequantised model", 1, 1)
    if not found >= LEAST:
        what = f"{header.path} does not come over: it gives a plain text {found:.2f} nats a character"
        fix = f"{FOLDER}; a language model gives more than {LEAST}"
        raise VerificationError(what, where=where, fix=fix)
    return round(found, 4)


@torch.no_grad()
def nats_a_character(model: Any, tokenizer: Any, text: str = PLAIN) -> float:
    """log p(text) / characters, the first token given where no BOS stands before it."""
    ids: Tensor = tokenizer(text, return_tensors="pt")["input_ids"]
    logp = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None]).sum().item() / len(text)
