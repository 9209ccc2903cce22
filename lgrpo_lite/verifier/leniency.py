"""What users differ in, and this package asks them about."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Leniency:
    """What users differ in; docs/rewards.md says what each choice means."""

    units: Literal["ignore", "compare"] = "ignore"
    percent: Literal["either", "fraction"] = "either"
    order: Literal["any", "same"] = "any"
    rounding: Literal["gold", "none"] = "gold"
