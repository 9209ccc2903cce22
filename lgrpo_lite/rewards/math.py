"""The reward `math`: 1 when the completion's answer is the gold answer, however
it is written (docs/rewards.md).
"""

from typing import Literal

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.compare import Policy
from lgrpo_lite.verifier.verify import verify


def math(
    completion: str,
    reference: str,
    *,
    extract: str,
    units: Literal["ignore", "compare"],
    percent: Literal["either", "fraction"],
    order: Literal["any", "same"],
    rounding: Literal["gold", "none"],
) -> tuple[float, Outcome]:
    """1 for an answer equal to the gold; `unparsable` when there is none that
    can be read. Undecided is wrong.
    """
    outcome = verify(completion, reference, Policy(units, percent, order, rounding), extract=extract)
    return float(outcome == Outcome.ok), outcome
