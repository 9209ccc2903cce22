"""The adapter on its way to vLLM: a PEFT folder a version, visible once complete, gone with the run."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
import weakref
from pathlib import Path

import torch
from safetensors import SafetensorError

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.policy.policy import Policy

SHARED_MEMORY = Path("/dev/shm")
OLD = 60.0  # seconds; a younger folder may be about to be locked


class AdapterFolder:
    """A folder `lgrpo-XXXXXXXX` under `root`, removed by `close`, with this object, or when the process ends.

    root None: $TMPDIR where it is set, else /dev/shm, else the system's temporary folder, readable by this
    user alone. A root that is given must exist; who may read below it is the umask's decision. `setting` is
    what moves the folder, for errors. A root that cannot be written: EnvironmentFault.
    """

    def __init__(self, root: Path | None = None, *, setting: str = "TMPDIR"):
        self.setting, self._count = setting, 0
        parent = default_root() if root is None else root.expanduser().absolute()
        self.path = parent / f"lgrpo-{uuid.uuid4().hex[:8]}"
        try:
            self.path.mkdir(mode=0o700 if root is None else 0o777)
        except OSError as error:
            fix = f"set {setting} to a folder that exists and can be written"
            what = f"no folder for adapters: {error.strerror}"
            raise EnvironmentFault(what, where=str(parent), fix=fix) from error
        descriptor = os.open(self.path, os.O_RDONLY)  # open and locked as long as this process lives
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if root is None:
            _sweep(parent)
        self._cleanup = weakref.finalize(self, _remove, self.path, os.getpid(), descriptor)

    def publish(self, policy: Policy) -> Path:
        """The policy's adapter in a fresh folder v1, v2, …

        Where it cannot be written nothing stays behind: EnvironmentFault.
        """
        self._count += 1
        final = self.path / f"v{self._count}"
        partial = self.path / f".partial-{self._count}"
        try:
            policy.save(partial)
            partial.rename(final)
        except (OSError, SafetensorError) as error:  # safetensors wraps the system's error into its own
            shutil.rmtree(partial, ignore_errors=True)
            raise self._fault(policy, error) from error
        return final

    def drop(self, path: Path) -> None:
        """Remove what `publish` returned."""
        shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder with all that is in it. More than once is fine."""
        self._cleanup()

    def _fault(self, policy: Policy, error: Exception) -> EnvironmentFault:
        size = sum(p.numel() * p.element_size() for p in policy.trainable())
        reason = error.strerror if isinstance(error, OSError) else str(error)
        try:
            free = f"{shutil.disk_usage(self.path).free:,}"
        except OSError:  # the folder itself is gone
            free = "no"
        what = f"the adapter cannot be written: {reason}; it takes {size:,} bytes, {free} are free"
        fix = f"free some room there, or set {self.setting} to a folder with more"
        return EnvironmentFault(what, where=str(self.path), fix=fix)


def checksum(policy: Policy) -> str:
    """SHA-256 of what is trained, in order: equal only while no bit of it changed."""
    digest = hashlib.sha256()
    for parameter in policy.trainable():
        values = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def default_root() -> Path:
    """Where adapters go when no setting says: TMPDIR if it is set, else memory rather than a disk."""
    if chosen := os.environ.get("TMPDIR"):
        return Path(chosen)
    if os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _sweep(parent: Path) -> None:
    """Remove what runs that were killed left in memory: folders that no process holds locked."""
    for folder in parent.glob("lgrpo-????????"):
        with contextlib.suppress(OSError):  # another user's, or locked
            if time.time() - folder.stat().st_mtime < OLD:
                continue
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _remove(path: Path, owner: int, descriptor: int) -> None:
    if os.getpid() == owner:  # a forked child runs this too when it exits
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)
