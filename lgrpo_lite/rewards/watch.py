"""The time and the memory of sandboxes that run, as the system tells them from outside."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lgrpo_lite.rewards.bubblewrap import tmp_bytes

MAX_WALL = 30  # times its limit: the end of code on a machine that gives it no CPU at all
INODE_BYTES = 1536  # of the kernel's memory, for a file or folder with its name, rounded up
MAPPING_BYTES = 1536  # of the kernel's memory, for a range of a process's addresses, rounded up
MAX_NAMES = 4096  # of files and folders: /tmp limits what they hold, not how many there are
ABOVE = 1.04  # times its limit: a little for the interpreter's own pages and what the kernel keeps
KEPT_FREE = 512 << 20  # of the machine's memory, or a sixteenth where it has less than 8 GiB


class HostShort(RuntimeError):
    """The machine is about to run out of memory, and this sandbox holds a good part of it."""


class Watch:
    """Time and memory of some sandboxes from now on, given as the processes that were started.

    `used` seconds are wall time less waits for a CPU, or their CPU time if that is more: a busy machine thus
    changes no verdict, and code that sleeps is ended too. Of a container only wall time is known.
    `held` bytes are the most of all together: their processes' pages and mappings, and what is in /tmp.
    """

    def __init__(self, startup: float, seconds: float, memory_mb: int):
        self.began = time.monotonic()
        self.startup = startup
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.cpu = 0.0
        self.waits = 0.0
        self.held = 0
        self.names = 0

    def look(self, pids: Sequence[int]) -> None:
        """Read time and memory; what has ended keeps what it had. HostShort: the machine is at its end."""
        cpu = waits = 0.0
        held = names = 0
        for pid in pids:
            inside = tree(pid)
            for process in inside:
                its_cpu, its_waits = _cpu_and_waits(process)
                cpu += its_cpu
                waits += its_waits
            its_held, its_names = held_by(inside, self.memory_mb)
            held += its_held
            names += its_names
        self.names = max(names, self.names)
        self.held = max(held, self.held)
        self.cpu = max(cpu, self.cpu)
        self.waits = max(waits, self.waits)
        if self.held > self.memory_mb << 18:  # a quarter of what it may
            free, total = host_memory()
            if free < min(KEPT_FREE, total // 16):
                raise HostShort(f"the machine has {free >> 20} MiB of memory left")

    @property
    def wall(self) -> float:
        return time.monotonic() - self.began - self.startup

    @property
    def used(self) -> float:
        return max(self.cpu, self.wall - self.waits, 0.0)

    @property
    def over(self) -> bool:
        if self.held > ABOVE * (self.memory_mb << 20) or self.names > MAX_NAMES:
            return True
        return self.used > self.seconds or self.wall > MAX_WALL * self.seconds


def tree(pid: int) -> list[int]:
    """bubblewrap and the process inside it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *map(int, children)]


def held_by(processes: Sequence[int], memory_mb: int) -> tuple[int, int]:
    """Bytes that bubblewrap and what runs in it hold, and names in its /tmp; 0 where nothing tells,
    as of containers.
    """
    held = names = 0
    for pid in processes:
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    held += int(line.split()[1]) << 10
    for pid in processes[1:]:
        with contextlib.suppress(OSError):
            # a line each; hundreds in an honest process, and 65,000 where somebody makes them
            held += Path(f"/proc/{pid}/maps").read_bytes().count(b"\n") * MAPPING_BYTES
        with contextlib.suppress(OSError):
            its_tmp = os.statvfs(f"/proc/{pid}/root/tmp")
            # another file system stands there until bubblewrap is ready
            if its_tmp.f_blocks * its_tmp.f_frsize == tmp_bytes(memory_mb):
                held += (its_tmp.f_blocks - its_tmp.f_bfree) * its_tmp.f_frsize
                names += its_tmp.f_files - its_tmp.f_ffree
    return held + names * INODE_BYTES, names


def host_memory() -> tuple[int, int]:
    """Bytes of the machine's memory that are free for programs, and all of them; huge: it is not told."""
    figures = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            figures[name] = int(value.split()[0]) << 10
    unknown = 1 << 60
    return figures.get("MemAvailable", unknown), figures.get("MemTotal", unknown)


def _cpu_and_waits(pid: int) -> tuple[float, float]:
    """Seconds of a process; zeros where the system does not tell."""
    cpu = waits = 0.0
    with contextlib.suppress(OSError, ValueError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # user and system
        cpu = ticks / os.sysconf("SC_CLK_TCK")
        for thread in Path(f"/proc/{pid}/task").iterdir():
            nanoseconds = (thread / "schedstat").read_text().split()[1]
            waits += int(nanoseconds) / 1e9
    return cpu, waits
