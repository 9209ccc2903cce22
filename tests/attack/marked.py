"""Processes of an attack, known by a mark in their environment: what lives on after its run has ended is found."""

import os
import platform
import subprocess
import time
import uuid
from typing import Any

import psutil

from lgrpo_lite.machine.facts import environment

MARK = "LGRPO_LITE_ATTACK"


def marked(**more: str) -> tuple[str, dict[str, str]]:
    """A fresh mark, and an environment that carries it."""
    mark = uuid.uuid4().hex
    return mark, {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **more}


def living(mark: str) -> list[psutil.Process]:
    """Processes that carry the mark and are no zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or somebody else's
            continue
    return found


def stamp() -> dict[str, Any]:
    """Date, machine, commit and versions, as stored benches have them."""
    facts = environment()
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {facts['cpus']} cores",
        "commit": commit,
        "versions": facts["packages"],
    }
