"""What a recipe says of a reward: name, weight, deadline. All else is for its function to know."""

from typing import Any

from pydantic import ConfigDict, Field

from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.bounds import Seconds


class Endpoint(Section):
    """A judge behind an OpenAI-compatible HTTP interface; read by judge=endpoint."""

    url: str = Field(description="base address, e.g. http://127.0.0.1:8000/v1")
    model: str = Field(description="name of the model there")
    api_key_env: str | None = Field(
        default=None, description="environment variable that holds the key; null sends none"
    )
    timeout: Seconds = Field(
        default=60.0, description="seconds a request; a request that fails leaves the reward missing"
    )
    parallel: int = Field(default=8, ge=1, le=4096, description="requests at once")


# What every reward could be given until options became the arguments of their functions. A recipe or a run
# folder from before may hold all of them; at these values they say nothing.
REWARD_KEYS: dict[str, Any] = {
    "extract": "final",
    "pattern": None,
    "limit": None,
    "cache": 4096,
    "judge": "policy",
    "endpoint": None,
    "override": "factual",
    "units": "ignore",
    "percent": "either",
    "order": "any",
    "rounding": "gold",
    "sandbox": "auto",
    "image": None,
    "memory_mb": 512,
}


class Reward(Section):
    """One reward of the sum. All other keys are options of its function: arguments that it names."""

    model_config = ConfigDict(extra="allow")

    use: str = Field(default="numeric", description="a name of the rewards table, or file.py:function")
    weight: float = Field(default=1.0, ge=-1e6, le=1e6, description="in the weighted sum")
    timeout: Seconds = Field(
        default=5.0,
        description="seconds for one completion, waits for a CPU not counted; then the reward is missing",
    )

    @property
    def options(self) -> dict[str, Any]:
        """As the recipe sets them; `checks.check` adds those that it leaves out."""
        return dict(self.model_extra or {})

    def changed(self) -> dict[str, Any]:
        """What differs from a reward's defaults, as plain values."""
        return without_defaults(self.model_dump(mode="json", exclude_defaults=True))


def without_defaults(reward: dict[str, Any]) -> dict[str, Any]:
    """A reward's keys, less those of REWARD_KEYS that say nothing."""
    return {
        key: value for key, value in reward.items() if key not in REWARD_KEYS or value != REWARD_KEYS[key]
    }
