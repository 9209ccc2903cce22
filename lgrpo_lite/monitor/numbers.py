"""What a file held as a number to compute with (`finite`), and as text (`figure`)."""

import math
from typing import Any


def finite(value: Any, below: float = math.inf) -> float | None:
    """A number smaller than `below` in size, as a float; None for nan, an infinity, a bool and all else."""
    if type(value) is not float:  # nearly all are
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if abs(value) < below else None


def figure(value: Any, form: str = ".3f", width: int = 0) -> str:
    """Right-aligned; a dash where there is none, `nan` and `inf` as they are."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–".rjust(width)
    try:
        return format(float(value), form).rjust(width)
    except OverflowError:
        return "inf".rjust(width)
