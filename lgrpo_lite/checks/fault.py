"""A fault of a recipe: why, the key that is shown, what to do."""

from collections.abc import Iterator
from typing import Any

Fault = tuple[str, str, str]  # why, the key that is shown, what to do
Row = tuple[Any, str, str, str]  # whether it is one, and the fault


def that_hold(*rows: Row) -> Iterator[Fault]:
    """Of rows (condition, why, key, what to do) those whose condition is true."""
    for condition, why, key, fix in rows:
        if condition:
            yield why, key, fix
