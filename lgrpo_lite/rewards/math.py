"""The reward `math`: 1 when the answer is the gold one, however it is written (docs/rewards.md)."""

from typing import Annotated, Literal

from lgrpo_lite.rewards.text import Extract
from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.leniency import Leniency
from lgrpo_lite.verifier.verify import verify


def math(
    completion: str,
    reference: str,
    *,
    extract: Extract = "final",
    units: Annotated[
        Literal["ignore", "compare"], "ignore: drop a unit that only one side has; compare: both have it"
    ] = "ignore",
    percent: Annotated[
        Literal["either", "fraction"], "what 35% equals; either: 35 and 0.35, fraction: 0.35 alone"
    ] = "either",
    order: Annotated[Literal["any", "same"], "of the elements of a list without brackets"] = "any",
    rounding: Annotated[
        Literal["gold", "none"], "gold: an exact value may round to a gold decimal of 3 digits or more"
    ] = "gold",
) -> tuple[float, Outcome]:
    """1 for an answer equal to the gold; `unparsable` when none can be read. Undecided is wrong."""
    leniency = Leniency(units, percent, order, rounding)
    outcome = verify(completion, reference, leniency, extract=extract)
    return float(outcome == Outcome.ok), outcome
