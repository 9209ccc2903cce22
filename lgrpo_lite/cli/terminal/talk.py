"""What a conversation on a terminal needs: lines that are asked for, text that flows, a Ctrl-C that ends an
answer and not the program.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.cells import cell_len

from lgrpo_lite.cli.terminal.output import say
from lgrpo_lite.monitor.theme import clean, place

PATIENCE = 3
LEAVE = "Ctrl-C again, Ctrl-D or /quit ends the chat"


def on_terminal() -> bool:
    """Whether somebody is there to be asked, and reads what is answered."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def lines(prompt: str) -> Iterator[str]:
    """Lines of stdin. On a terminal each is asked for, can be edited, and earlier ones come back by the arrow
    keys; Ctrl-D or Ctrl-C twice ends them. What is no UTF-8 is replaced.
    """
    with contextlib.suppress(AttributeError):  # a stream that was put in its place
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not on_terminal():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits with it
    presses = 0  # of Ctrl-C, one after the other
    while presses < 2:
        try:
            if presses:
                say("", LEAVE)
            line = input(prompt)
        except EOFError:
            break
        except KeyboardInterrupt:
            presses += 1
            continue
        presses = 0
        yield line
    say("")  # ends the line of the prompt


class Presses:
    """Of Ctrl-C since an answer began: one is to end it, more may be of impatience, PATIENCE of them are a
    KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        return self.count > 0

    def begin(self) -> None:
        """Of the next answer."""
        self.count = 0

    def press(self, *_: Any) -> None:
        """A handler of signals."""
        self.count += 1
        if self.count >= PATIENCE:
            raise KeyboardInterrupt


@contextmanager
def ctrl_c_noted() -> Iterator[Presses]:
    """Inside it Ctrl-C is noted. What is typed is not shown, and is there for the next prompt. Where nobody
    is there Ctrl-C is what it always is.
    """
    noted = Presses()
    if not on_terminal():
        yield noted
        return
    before = signal.signal(signal.SIGINT, noted.press)
    try:
        with _unechoed():
            yield noted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _unechoed() -> Iterator[None]:
    """Keys that are pressed inside it are not shown, so that only what is written moves the cursor."""
    try:
        import termios
    except ImportError:  # no terminal of that kind
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


class Flow:
    """Text that others wrote, shown as it comes. On a terminal a word that meets the edge moves to the next
    line as a whole; elsewhere lines are as they are. Nothing in the text moves the cursor.
    """

    def __init__(self, out: TextIO):
        self.out = out
        self.moves = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.size = shutil.get_terminal_size()
        self._rows = 0  # lines that are done
        self._column = 0
        self._word = ""  # the last word of the line, as far as it has come

    def write(self, text: str) -> None:
        for part in re.findall(r"\n| |[^ \n]+", text):
            if part == "\n":
                self._break()
            elif part == " ":
                self._blank()
            else:
                self._add(clean(part, len(part)))
        self.out.flush()

    def end(self) -> None:
        """What is written next begins a line."""
        if self._column:
            self._break()
        self.out.flush()

    def take_back(self) -> bool:
        """Off the screen again, and the cursor where it began. False: it stays, for it is too long, or the
        terminal is another size now.
        """
        if not self.moves or self._rows >= self.size.lines - 1 or self.size != shutil.get_terminal_size():
            return False
        up = f"\x1b[{self._rows}A" if self._rows else ""
        self.out.write(f"\r{up}\x1b[J")
        self.out.flush()
        self._rows = self._column = 0
        self._word = ""
        return True

    @property
    def _width(self) -> int:
        """Cells of a line; the last one stays free, where terminals differ in when they begin a new one."""
        return max(1, self.size.columns - 1) if self.moves else sys.maxsize

    def _break(self) -> None:
        self.out.write("\n")
        self._rows += 1
        self._column = 0
        self._word = ""

    def _blank(self) -> None:
        self._word = ""
        if self._column == self._width:
            self._break()
            return
        self.out.write(" ")
        self._column += 1

    def _add(self, part: str) -> None:
        """More of a word, without blanks."""
        done = cell_len(self._word)
        begins_line = done == self._column
        fits = self._column + cell_len(part) <= self._width
        if not fits and not begins_line and done + cell_len(part) <= self._width:
            if done:
                self.out.write(f"\x1b[{done}D\x1b[K")
            part = self._word + part
            self._break()
        self._put(part)

    def _put(self, part: str) -> None:
        """On this line, and on as many more as it takes."""
        while part:
            end = place(part, self._width - self._column)
            if not end and not self._column:
                end = 1  # wider than a line
            if not end:
                self._break()
                continue
            self.out.write(part[:end])
            self._column += cell_len(part[:end])
            self._word += part[:end]
            part = part[end:]
