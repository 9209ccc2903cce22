"""A run on a terminal: the live view, resizing, Ctrl-C once and twice, a SIGKILL; the
terminal is left as it was found.
"""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import written

from lgrpo_lite.monitor.text import STEP_LINE, step_line
from lgrpo_lite.types import StepRecord

SMALL = [
    "train.steps=400",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "data.eval.limit=8",
    "eval.k=1",
]
ENTER, LEAVE, HIDE, SHOW = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25l", b"\x1b[?25h"
PATIENCE = 120  # seconds; nothing is timed, but a test must end


class Terminal:
    """A pseudo-terminal with a command on it, which has it as its controlling
    terminal, so that Ctrl-C is one.
    """

    def __init__(self, command: list[str], size: tuple[int, int] = (120, 40), **environment: str):
        self.own, other = pty.openpty()
        self.before = termios.tcgetattr(other)
        self.resize(*size)
        plain = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR", "COLUMNS", "LINES")}
        environment = plain | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
            preexec_fn=self._taken,
        )  # fmt: skip
        self.other, self.seen = other, b""

    def _taken(self) -> None:
        """In the child: the terminal is its own, and Ctrl-C is heard where the tests run in the background, too."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.own, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: bytes) -> None:
        os.write(self.own, keys)

    def read(self, until=lambda seen: False) -> bytes:
        """What was printed, until that holds or the command has ended."""
        begin, deadline = len(self.seen), time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not until(self.seen[begin:]):
            if select.select([self.own], [], [], 0.1)[0]:
                self.seen += os.read(self.own, 65536)
            elif self.process.poll() is not None:
                return self.seen[begin:]
        assert time.monotonic() < deadline, self.seen[-2000:]
        return self.seen[begin:]

    def clean(self) -> bool:
        """Back on the ordinary screen, with a cursor, and with the settings the terminal had."""
        paired = all(
            self.seen.count(on) > 0 and self.seen.rfind(off) > self.seen.rfind(on)
            for on, off in ((ENTER, LEAVE), (HIDE, SHOW))
        )
        return paired and termios.tcgetattr(self.other) == self.before


def recipe(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "lgrpo_lite",
        "recipe",
        "tiny-math",
        *SMALL,
        "--runs",
        str(folder),
        "--name",
        "a",
        *more,
    ]


def status(folder: Path) -> dict:
    return json.loads((folder / "a" / "STATUS.json").read_text())


def steps_made(folder: Path) -> int:
    path = folder / "a" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_the_live_view_is_resized_and_one_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    terminal = Terminal(recipe(tmp_path))
    terminal.read(lambda seen: b"training" in seen and steps_made(tmp_path) >= 3)
    for size in ((80, 24), (20, 5), (200, 60), (1, 1), (120, 40)):
        terminal.resize(*size)
        assert ENTER not in terminal.read(lambda seen: len(seen) > 20)
    terminal.press(b"\x03")
    words = terminal.read()
    assert terminal.process.wait() == 130 and terminal.clean()
    assert (
        b"go on with: lgrpo-lite recipe tiny-math" in words
        and b"--name a --resume auto" in words
        and b"Traceback" not in words
    )
    made = status(tmp_path)
    assert made["state"] == "stopped" and made["step"] == steps_made(tmp_path) > 0
    more = subprocess.run(
        recipe(tmp_path, "--resume", "auto", f"train.steps={made['step'] + 2}"),
        capture_output=True,
        text=True,
    )
    assert more.returncode == 0 and f"resumed after step {made['step']}" in more.stderr
    assert [line.split()[1] for line in more.stdout.splitlines()] == [
        f"{made['step'] + i}/{made['step'] + 2}" for i in (1, 2)
    ]


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_cleanly(tmp_path):
    terminal = Terminal(recipe(tmp_path, "rollout.prompts_per_step=64"))
    terminal.read(lambda seen: steps_made(tmp_path) >= 1)
    terminal.press(b"\x03")
    terminal.read(lambda seen: b"stopping" in seen or b"stop now" in seen)
    terminal.press(b"\x03")
    terminal.read()
    assert terminal.process.wait() == 130 and terminal.clean() and b"Traceback" not in terminal.seen
    assert status(tmp_path)["state"] == "stopped"
    again = subprocess.run(
        recipe(tmp_path, "rollout.prompts_per_step=64", "--resume", "auto", "train.steps=2"),
        capture_output=True,
    )
    assert again.returncode == 0


@pytest.mark.slow
def test_a_sigkill_leaves_the_terminal_in_order_and_is_told_with_the_command_that_resumes(tmp_path):
    shell = (
        f"{shlex.join(recipe(tmp_path))}; read enter"  # where a shell leads the session, as on any terminal
    )
    terminal = Terminal(["sh", "-c", shell])
    terminal.read(lambda seen: steps_made(tmp_path) >= 1)
    onlooker = Terminal([sys.executable, "-m", "lgrpo_lite", "watch", str(tmp_path / "a")])
    onlooker.read(lambda seen: b"training" in seen)
    os.kill(status(tmp_path)["pid"], signal.SIGKILL)
    onlooker.read()
    terminal.read(lambda seen: b"--name a --resume auto" in terminal.seen.partition(LEAVE)[2])
    for seen in (onlooker, terminal):
        words = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", seen.seen).replace(b"\r\n", b"\n")
        assert seen.clean() and b"the process is gone without a word" in words
        assert (
            f"go on with: lgrpo-lite recipe tiny-math {' '.join(SMALL)} --runs {tmp_path} --name a --resume auto"
            in words.decode()
        )
    assert onlooker.process.wait() == 0
    ago = re.search(r"(\d+) s after its last sign of life", onlooker.seen.decode(errors="replace"))
    assert ago and int(ago[1]) <= 5  # by the run's own heartbeat


@pytest.mark.slow
def test_without_its_view_a_run_goes_on_in_lines(tmp_path):
    terminal = Terminal(recipe(tmp_path, "train.steps=12"))
    terminal.read(lambda seen: steps_made(tmp_path) >= 1)
    (view,) = [
        p
        for p in psutil.Process(terminal.process.pid).children()
        if "lgrpo_lite.cli.terminal.live" in p.cmdline()
    ]
    view.kill()
    terminal.read()
    assert terminal.process.wait() == 0 and terminal.clean()
    after = terminal.seen[terminal.seen.rfind(LEAVE) :].decode().replace("\r", "")
    assert "step 12/12 | " in after and "before" in after and "Traceback" not in after


QUIET = [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"CI": "true"}]


@pytest.mark.parametrize("environment", QUIET, ids=lambda e: next(iter(e)))
def test_a_terminal_that_wants_no_drawing_gets_lines(tmp_path, environment):
    finished = written(tmp_path / "a", steps=2)
    terminal = Terminal([sys.executable, "-m", "lgrpo_lite", "watch", str(finished)], **environment)
    terminal.read()
    assert terminal.process.wait() == 0
    assert b"step 2/40 | " in terminal.seen and b"\x1b[?" not in terminal.seen


def test_the_documented_expression_is_the_one_that_is_tested():
    text = (Path(__file__).parents[1] / "docs" / "monitor.md").read_text("utf-8")
    assert STEP_LINE in text.replace("\n", "")


NUMBER = st.floats(0, 1e5)
TEXT = st.text(max_size=20).filter(lambda s: s.strip())


@given(
    record=st.builds(
        StepRecord, step=st.integers(1, 10**6), policy_version=st.just(1), skipped=st.none() | TEXT,
        reward=st.none() | st.floats(-1e4, 1e4), reward_std=NUMBER, groups=st.integers(0, 99), groups_mixed=st.integers(0, 99),
        length=st.none() | NUMBER, truncated=st.floats(0, 1), clip_low=st.none() | st.floats(0, 1), clip_high=st.floats(0, 1),
        kl=st.none() | st.floats(-9, 9), entropy=st.none() | NUMBER,
        disagreement=st.none() | NUMBER, mismatch_kl=st.none() | NUMBER,
        grad_norm=st.none() | NUMBER, length_lambda=st.none() | st.floats(-9, 9), guide_tokens=st.none() | st.integers(0, 99),
        missing=st.integers(0, 9), rollout_tokens=st.integers(0, 10**7),
        seconds=st.dictionaries(st.sampled_from(["rollout", "update"]), st.floats(0.001, 1e4)),
        memory=st.just({}) | st.just({"free": 2**30, "weights": 2**32, "host": 5}),
        alarms=st.lists(st.sampled_from(["truncation", "no_signal"]), max_size=2).map(tuple),
    ),
    eta=st.none() | st.floats(0, 1e6),
)  # fmt: skip
def test_every_line_of_a_step_is_parsed(record, eta):
    line = step_line(record, 10**6, eta)
    found = re.fullmatch(STEP_LINE, line)
    assert found and "\n" not in line, line
    assert int(found["step"]) == record.step and (found["skipped"] is None) == (record.skipped is None)
    assert (found["length_lambda"] is None) == (record.length_lambda is None) and (found["kl"] is None) == (
        record.kl is None
    )
