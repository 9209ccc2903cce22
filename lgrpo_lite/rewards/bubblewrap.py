"""The command line of bubblewrap, and the system calls that are closed inside it."""

import contextlib
import functools
import os
import platform
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

TMP_BYTES = 64 << 20

# System calls that code has no need of, by number. Without a second process the limits of one are the limits
# of the whole, and shared memory (shmget) would escape them. clone is allowed for threads; clone3 "does not
# exist", so that clone is used.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
# fork, vfork, ptrace, shmget, unshare, setns, process_vm_*, bpf, userfaultfd,
# perf_event_open, keys, io_uring_setup
DENIED = {
    "x86_64": (57, 58, 101, 29, 272, 308, 310, 311, 321, 323, 298, 248, 249, 250, 425),
    "aarch64": (117, 194, 97, 268, 270, 271, 280, 282, 241, 217, 218, 219, 425),
}


@functools.cache
def python() -> str:
    """The interpreter this one was made from, without the packages of this environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def bubblewrap(seccomp: Sequence[int]) -> list[str]:
    """The words before the command: a new root of the system's own folders, read-only, and this Python.

    `seccomp`: descriptors of files with rules, which the process must be given.
    """
    system = []
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        place = Path("/", name)
        if place.is_symlink():
            system += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            system += ["--ro-bind", str(place), str(place)]
    prefix = os.path.realpath(sys.base_prefix)
    own = [] if prefix.startswith("/usr") else ["--ro-bind", prefix, prefix]
    rules = [word for fd in seccomp for word in ("--seccomp", str(fd))]
    return [
        "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--clearenv",
        "--uid",
        "65534",
        "--gid",
        "65534",
        "--hostname",
        "sandbox",
        "--cap-drop",
        "ALL",
        "--ro-bind",
        "/usr",
        "/usr",
        *system,
        "--ro-bind-try",
        "/etc/ld.so.cache",
        "/etc/ld.so.cache",
        *own,
        "--dev-bind",
        "/dev/null",
        "/dev/null",
        "--dev-bind",
        "/dev/urandom",
        "/dev/urandom",
        "--size",
        str(TMP_BYTES),
        "--tmpfs",
        "/tmp",
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
        *rules,
        "--",
    ]


@contextlib.contextmanager
def closed_calls() -> Iterator[IO[bytes] | None]:
    """A file with the seccomp rules for this machine's system calls; None where their numbers are unknown."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH or sys.byteorder != "little":
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(rules_for(machine))
        file.seek(0)
        yield file


def rules_for(machine: str) -> bytes:
    """The classic BPF program: another architecture is killed; `DENIED`, and clone without CLONE_THREAD, fail
    with EPERM.
    """
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    # the x32 interface has numbers of its own
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, enosys)]
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, enosys)]
    for number in DENIED[machine]:
        program += [(equal, 0, 1, number), (give, 0, 0, eperm)]
    program += [
        (equal, 0, 3, CLONE[machine]),
        (load, 0, 0, 16),
        (any_bit, 1, 0, 0x10000),
        (give, 0, 0, eperm),
    ]
    program.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *row) for row in program)
