"""Values that several settings share, or whose bounds have a reason to tell. Part of the schema."""

from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST_NAME = 100  # characters; a folder's name has at most 255 bytes, and the time is put behind it
LEAST_TEMPERATURE = 0.01  # vLLM samples with it whatever is lower


def _folder_name(value: str) -> str:
    """Stays inside the folder of runs, on every system and in every shell."""
    if not 1 <= len(value) <= LONGEST_NAME or len(value.encode()) > 2 * LONGEST_NAME:
        raise ValueError(f"run folders are named after it: at most {LONGEST_NAME} characters, at least 1")
    if value[0] in ".-" or value != value.strip() or any(c in "/\\" or not c.isprintable() for c in value):
        allowed = "no slash and no control character, and no dot, dash or space at its start"
        raise ValueError(f"run folders are named after it: {allowed}")
    return value


def _temperature(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        least = f"a temperature is {LEAST_TEMPERATURE} or more"
        raise ValueError(f"{least}: the update divides by it, and vLLM samples no colder")
    return value


def _decays(values: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= value < 1 for value in values):
        raise ValueError("a decay of a moving average is from 0 up to, and below, 1")
    return values


FolderName = Annotated[str, AfterValidator(_folder_name)]
Temperature = Annotated[float, AfterValidator(_temperature)]
Decays = Annotated[tuple[float, float], AfterValidator(_decays)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]  # what a socket or a timer can wait
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # torch and vLLM hold 64 bits with a sign
AdamRate = Annotated[float, Field(gt=0, le=1)]  # a step moves every number by up to as much
