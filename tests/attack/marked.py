"""Processes of an attack, known by a mark in their environment: what lives on after its run has ended is found."""

import os
import uuid

import psutil

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
