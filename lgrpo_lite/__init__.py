"""lgrpo-lite: reinforcement fine-tuning with λ-GRPO and GRPO-λ on one consumer GPU.

As a library, six names:

    from lgrpo_lite import build, check, load_recipe, train_step
    run = build(check(load_recipe("tiny-math", ["algorithm.use=trace"])))
    record, groups = train_step(1, run)

and `Objective` with its table `NAMED`. A seventh is all of it: `lgrpo_lite.train("tiny-math")` checks,
trains, evaluates and exports as the command does. They are imported when asked for: `import lgrpo_lite`
alone stays light.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load_recipe": "recipe.read",
    "check": "checks.check",
    "build": "train.build",
    "train_step": "train.step",
    "Objective": "objective.objective",
    "NAMED": "objective.named",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "train":  # a package that can be called
        return importlib.import_module("lgrpo_lite.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'lgrpo_lite' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lgrpo_lite.{_HOMES[name]}"), name)
