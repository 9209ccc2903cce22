"""Values that several settings share, or whose bounds have a reason to tell. Part of the schema."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

LARGEST = 1e18  # of any number: float32 and 64 bits hold it, and its square
LONGEST_NAME = 100  # characters; a folder's name has at most 255 bytes, and the time is put behind it
SEEDS = 2**32  # how many there are: others are made of one, and they have to fit into 64 bits
MOST_TEMPERATURE = 100
LEAST_TEMPERATURE = 0.01  # vLLM samples with it whatever is lower


def bounded(value: Any) -> Any:
    """Of any setting: a number that tensors and counters can hold."""
    numbers = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(number, int | float) and abs(number) > LARGEST for number in numbers):
        raise ValueError(f"no setting is a number beyond {LARGEST:g}")
    return value


def name_fault(value: str) -> str | None:
    """Why a run cannot have this name, on every system and in every shell; None: it can."""
    if not 1 <= len(value) <= LONGEST_NAME or len(value.encode(errors="replace")) > 2 * LONGEST_NAME:
        return f"run folders are named after it: at most {LONGEST_NAME} characters, at least 1"
    if value[0] in ".-" or value != value.strip() or any(c in "/\\" or not c.isprintable() for c in value):
        allowed = "no slash and no control character, and no dot, dash or space at its start"
        return f"run folders are named after it: {allowed}"
    return None


def _folder_name(value: str) -> str:
    fault = name_fault(value)
    if fault is not None:
        raise ValueError(fault)
    return value


def _temperature(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        least = f"a temperature is {LEAST_TEMPERATURE} or more"
        raise ValueError(f"{least}: the update divides by it, and vLLM samples no colder")
    if value > MOST_TEMPERATURE:
        raise ValueError(f"a temperature is at most {MOST_TEMPERATURE}: every token is as likely there")
    return value


def _decays(values: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= value < 1 for value in values):
        raise ValueError("a decay of a moving average is from 0 up to, and below, 1")
    return values


FolderName = Annotated[str, AfterValidator(_folder_name)]
Temperature = Annotated[float, AfterValidator(_temperature)]
Decays = Annotated[tuple[float, float], AfterValidator(_decays)]
Seconds = Annotated[float, Field(gt=0, le=1e6)]  # what a socket or a timer can wait
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
# as many as any run can mean: what is beyond is a typo, and would be found out when memory ends
Tokens = Annotated[int, Field(ge=1, le=2**20)]  # of a prompt, an answer, or a piece of one
Answers = Annotated[int, Field(ge=1, le=4096)]  # to one prompt
Sequences = Annotated[int, Field(ge=1, le=2**16)]  # prompts of a step, or answers at once
Steps = Annotated[int, Field(ge=1, le=10**7)]
Gigabytes = Annotated[float, Field(gt=0, le=16_384)]
AdamRate = Annotated[float, Field(gt=0, le=1)]  # a step moves every number by up to as much
