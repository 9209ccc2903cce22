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

MAX_TMP = 64 << 20
PAGE = 4096

# System calls that code has no need of, by number: those that make a second process, whose limits would be
# counted anew, and those that take memory which no limit of a process counts. clone is allowed for threads;
# clone3 "does not exist", so that clone is used. Sockets are those of socketpair.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE = {"x86_64": 56, "aarch64": 220}
FCNTL = {"x86_64": 72, "aarch64": 25}
SOCKET = {"x86_64": 41, "aarch64": 198}
CLONE3 = 435
F_SETPIPE_SZ = 1031
DENIED = {
    "x86_64": {
        "fork": 57, "vfork": 58, "ptrace": 101, "unshare": 272, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "userfaultfd": 323,
        "perf_event_open": 298, "add_key": 248, "request_key": 249, "keyctl": 250,
        "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319, "memfd_secret": 447,
        "io_setup": 206, "io_uring_setup": 425, "vmsplice": 278, "fanotify_init": 300,
        "landlock_create_ruleset": 444,
        "setsockopt": 54, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463,
    },
    "aarch64": {
        "ptrace": 117, "unshare": 97, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "userfaultfd": 282,
        "perf_event_open": 241, "add_key": 217, "request_key": 218, "keyctl": 219,
        "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "memfd_secret": 447,
        "io_setup": 0, "io_uring_setup": 425, "vmsplice": 75, "fanotify_init": 262,
        "landlock_create_ruleset": 444,
        "setsockopt": 208, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "setxattrat": 463,
    },
}  # fmt: skip


def tmp_bytes(memory_mb: int) -> int:
    """Of /tmp, whose files are memory too: a sixteenth of what a program may have, at most 64 MiB."""
    return min(MAX_TMP, (memory_mb << 20) // 16 // PAGE * PAGE)


@functools.cache
def python() -> str:
    """The interpreter this one was made from, without the packages of this environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def bubblewrap(seccomp: Sequence[int], memory_mb: int) -> list[str]:
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
        str(tmp_bytes(memory_mb)),
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
    """The classic BPF program: another architecture is killed; `DENIED`, clone without CLONE_THREAD and a
    pipe made larger fail with EPERM, a socket as if no family of addresses were there.
    """
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, eperm, enosys, no_family = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026, 0x00050061
    number, architecture, first, second = 0, 4, 16, 24  # where they stand in what the kernel hands over
    program = [
        (load, 0, 0, architecture),
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, number),
    ]
    # the x32 interface has numbers of its own
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, enosys)]
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, enosys)]
    program += [(equal, 0, 1, SOCKET[machine]), (give, 0, 0, no_family)]
    for call in DENIED[machine].values():
        program += [(equal, 0, 1, call), (give, 0, 0, eperm)]
    program += [
        (equal, 0, 4, FCNTL[machine]),
        (load, 0, 0, second),
        (equal, 0, 1, F_SETPIPE_SZ),
        (give, 0, 0, eperm),
        (load, 0, 0, number),
    ]
    program += [
        (equal, 0, 3, CLONE[machine]),
        (load, 0, 0, first),
        (any_bit, 1, 0, 0x10000),
        (give, 0, 0, eperm),
    ]
    program.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *row) for row in program)
