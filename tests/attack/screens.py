"""Terminal: texts that would do something to one, in whatever a command shows of what others wrote."""

import os
import random
import re
from pathlib import Path

from .case import Told, about, command
from .terminal import commands, hostile

COUNT, SECONDS, MEMORY = 500, 5.0, 700
COLOURED = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "120"}  # written as to a terminal
# a sequence, or any character that is neither text nor the end of a line
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b."
    r"|[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u034f\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ud800-\udfff\U000e0000-\U000e0fff]"
)
FAULTS = ("Traceback (most recent call last)", "fault of lgrpo-lite")


def controls(shown: str) -> set[str]:
    """The sequences and characters in it that are no text."""
    return set(CONTROL.findall(shown))


def prepare(place: Path) -> list[str]:
    return list(commands())


def attack(draw: random.Random, folder: Path, names: list[str]) -> Told:
    """One text in one command, which may write what it writes of a harmless text, and no other control."""
    os.environ.pop("CI", None)
    os.environ |= COLOURED
    name = draw.choice(names)
    text = draw.choice(hostile(60, draw.randrange(1 << 30)))
    about(f"{name}: {text!a}")
    shown = {}
    os.chdir(folder)
    for kind, said_of in (("calm", "a text without harm"), ("hostile", text)):
        (folder / kind).mkdir()
        shown[kind] = command(*commands()[name](folder / kind, said_of))
    about(str(shown["hostile"]))
    told = shown["hostile"].out + shown["hostile"].err
    more = controls(told) - controls(shown["calm"].out + shown["calm"].err)
    faults = [f"{name}: {fault}" for fault in FAULTS if fault in told]
    if more:
        faults.append(f"{name}: {ascii(sorted(more))[:200]}")
    return Told(f"{name}: exit {shown['hostile'].code}", tuple(faults))
