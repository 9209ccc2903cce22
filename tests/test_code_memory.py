"""The reward `code`: what a program can hold of the machine's memory, in any form, is within its limit."""

import json

import pytest
from test_code import RIGHT, WRONG, block, boxed

from lgrpo_lite.rewards import sandbox, watch
from lgrpo_lite.rewards.bubblewrap import DENIED, rules_for, tmp_bytes
from lgrpo_lite.rewards.code import code
from lgrpo_lite.rewards.sandbox import Limits, SandboxFault, open_sandbox, run_program, run_tests
from lgrpo_lite.rewards.watch import MAX_NAMES

LIMIT = 128  # MiB


@pytest.fixture
def watches(monkeypatch) -> list[watch.Watch]:
    """The watches of the sandboxes that a test opens."""
    opened = []

    class Kept(watch.Watch):
        def __init__(self, *given):
            super().__init__(*given)
            opened.append(self)

    open_sandbox("bwrap", None)  # its probe is none of the test's
    monkeypatch.setattr(sandbox, "Watch", Kept)
    return opened


CALLS = """
import ctypes, json, os, socket
c = ctypes.CDLL(None, use_errno=True)
def said(name, *given):
    ctypes.set_errno(0)
    return [getattr(c, name)(*given), ctypes.get_errno()]
pipe, pair, path = os.pipe(), socket.socketpair(), b"/tmp/a"
open(path, "w").close()
print(json.dumps({
    "memfd_create": said("memfd_create", b"x", 0), "msgget": said("msgget", 0, 0o1600), "semget": said("semget", 0, 9, 0o1600),
    "shmget": said("shmget", 0, 1 << 20, 0o1600), "mq_open": said("mq_open", b"/x", 0o102, 0o600, None),
    "vmsplice": said("vmsplice", pipe[1], None, 0, 0), "a larger pipe": said("fcntl", pipe[1], 1031, 1 << 20),
    "a larger buffer": said("setsockopt", pair[0].fileno(), 1, 7, b"\\0\\0\\1\\0", 4),
    "an attribute of a file": said("setxattr", path, b"user.a", b"x", 1, 0), "a socket": said("socket", 2, 1, 0),
    "fcntl for its flags": said("fcntl", pipe[1], 3, 0)[1:], "a pair of sockets": [pair[0].send(b"x"), 0],
}))
""".strip()  # fmt: skip
EPERM, NO_FAMILY = [-1, 1], [-1, 97]


@boxed
def test_memory_that_no_limit_counts_is_not_to_be_had():
    said = json.loads(run_program(open_sandbox("bwrap", None), CALLS, "", Limits(10, 512)).printed)
    assert said.pop("a socket") == NO_FAMILY
    assert said.pop("fcntl for its flags") == [0] and said.pop("a pair of sockets") == [1, 0]
    assert said == dict.fromkeys(said, EPERM)


HEAP = "import os, time\nx = []\nwhile len(x) < {}:\n  try: x.append(b'1' * (1 << 20))\n  except MemoryError: break\n"
FILES = (
    "try:\n  for i in range(999): open(f'/tmp/{i}', 'wb', 0).write(bytes(1 << 20))\nexcept OSError: pass\n"
)
FOLDERS = "i = 0\nwhile True:\n  i += 1\n  os.mkdir('/tmp/' + 'y' * 200 + str(i))\n"
HOGS = {
    "lists": (HEAP.format(9999) + "time.sleep(99)", False),
    "lists and files": (FILES + HEAP.format(9999) + "time.sleep(99)", False),
    "files that are unlinked": (
        "import os, time\nx = []\nfor i in range(99):\n  try:\n    f = open('/tmp/a', 'wb', 0); f.write(bytes(1 << 20)); x.append(f)\n"
        "    os.unlink('/tmp/a')\n  except OSError: break\n" + HEAP.format(9999) + "time.sleep(99)",
        False,
    ),
    "folders": ("import os\n" + FOLDERS, True),
    "lists and folders": (HEAP.format(90) + FOLDERS, True),
    "empty files": ("i = 0\nwhile True:\n  open(f'/tmp/{i}', 'w').close(); i += 1", True),
    "links": ("import os\nopen('/tmp/a', 'w').close()\ni = 0\nwhile True:\n  os.link('/tmp/a', f'/tmp/b{i}'); i += 1", True),
    "a heap in pieces": (
        "import ctypes, mmap\nc = ctypes.CDLL(None)\nx = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "for _ in range(64): x.write(bytes(1 << 20))\nat = ctypes.addressof(ctypes.c_char.from_buffer(x))\n" + HEAP.format(9999) +
        "for i in range(0, 64 << 20, 8192): c.mprotect(ctypes.c_void_p(at + i), ctypes.c_size_t(4096), 1)\ntime.sleep(99)",
        False,
    ),
    "shared mappings": (
        "import mmap, time\nx = []\nwhile True:\n  try: x.append(mmap.mmap(-1, 1 << 20)); x[-1].write(bytes(1 << 20))\n"
        "  except (OSError, MemoryError): time.sleep(99)",
        False,
    ),
}  # fmt: skip


@boxed
@pytest.mark.parametrize(("text", "names_without_end"), HOGS.values(), ids=HOGS)
def test_a_program_holds_no_more_than_its_limit(watches, text, names_without_end):
    ran = run_program(open_sandbox("bwrap", None), text, "", Limits(4 if names_without_end else 1, LIMIT))
    assert ran.exit_code is None
    assert watches[0].held < 1.1 * (LIMIT << 20)
    if names_without_end:
        assert watches[0].names > MAX_NAMES and ran.seconds < 3.9


@boxed
def test_solution_and_tests_hold_no_more_than_the_limit_together(watches):
    """A solution whose answers fill the other side too."""
    text = "class Kept: x = [b'1' * (1 << 20) for _ in range(60)]\ndef f(): return list(range(10**5))"
    tests = "a = []\nwhile True: a.append(f())"
    assert not run_tests(open_sandbox("bwrap", None), text, tests, Limits(5, LIMIT))
    assert LIMIT << 20 < watches[0].held < 1.1 * (LIMIT << 20)


@boxed
def test_programs_within_their_limit_are_left_alone(watches):
    text = (
        HEAP.format(80)
        + "print(len(x))\nopen('/tmp/a', 'wb').write(bytes(4 << 20))\nos.mkdir('/tmp/b')\nprint(len(os.listdir('/tmp')))"
    )
    ran = run_program(open_sandbox("bwrap", None), text, "", Limits(5, LIMIT))
    assert ran.printed.split() == ["80", "2"] and ran.exit_code == 0
    assert (
        code(block("def f(): return len('x' * (30 << 20))"), "assert f() == 30 << 20", memory_mb=64) == RIGHT
    )
    assert (
        code(block("def f(): return len('x' * (70 << 20))"), "assert f() == 70 << 20", memory_mb=64) == WRONG
    )


@boxed
def test_a_machine_at_its_end_says_nothing_of_the_code(monkeypatch):
    """Who holds a good part is ended, and its reward is missing; who holds little goes on."""
    box = open_sandbox("bwrap", None)
    monkeypatch.setattr(watch, "host_memory", lambda: (100 << 20, 16 << 30))
    assert run_program(box, "import time\ntime.sleep(0.2)\nprint(1)", "", Limits(5, LIMIT)).printed == "1\n"
    with pytest.raises(SandboxFault, match="the machine has 100 MiB of memory left"):
        run_program(box, HEAP.format(60) + "time.sleep(9)", "", Limits(5, LIMIT))


def test_the_memory_of_this_machine_is_told():
    free, total = watch.host_memory()
    assert 0 < free <= total


@pytest.mark.parametrize(("memory_mb", "mebibytes"), [(64, 4), (512, 32), (1024, 64), (4096, 64)])
def test_files_are_a_sixteenth_of_the_memory(memory_mb, mebibytes):
    assert tmp_bytes(memory_mb) == mebibytes << 20


@pytest.mark.parametrize("machine", DENIED)
def test_every_closed_call_stands_in_the_rules(machine):
    rules = rules_for(machine)
    compared = {int.from_bytes(rules[i + 4 : i + 8], "little") for i in range(0, len(rules), 8)}
    assert set(DENIED[machine].values()) <= compared
