"""The formats that a run is exported in, by name: what `export RUN FORMAT` and a recipe's `export.formats`
take.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lgrpo_lite.export.room import too_little
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.types import Prompt


@dataclass
class Job:
    """A run at one of its checkpoints, of which exports are made.

    `recipe.export` holds what is asked for; `load` gives the policy and held-out prompts, and is asked once,
    by the first format that needs them.
    """

    recipe: Recipe
    run: Path
    checkpoint: str  # its name, as the card has it
    load: Callable[[], tuple[Policy, Sequence[Prompt]]]
    tolerance: float | None = None  # of a merge; None: by precision
    # as `load`, with a policy in slices; None: the policy is loaded already
    load_sliced: Callable[[], tuple[Policy, Sequence[Prompt]]] | None = None

    @cached_property
    def _loaded(self) -> tuple[Policy, Sequence[Prompt]]:
        return self.load()

    @property
    def policy(self) -> Policy:
        return self._loaded[0]

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._loaded[1]

    def policy_and_prompts(self) -> tuple[Policy, Sequence[Prompt], str | None]:
        """Those of `load`, or in slices where this machine has no room for a merge of them; then also why."""
        if self.load_sliced and "_loaded" not in vars(self):
            why = too_little(self.recipe)
            if why:
                return *self.load_sliced(), why
        return *self._loaded, None

    def at(self, kind: str) -> Path:
        """Where an export of that kind lies unless another place is named."""
        return self.run / "export" / kind


@dataclass(frozen=True)
class Made:
    """An export. `lines` are told after its path; `facts` are in its JSON."""

    path: Path
    lines: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


COMPARED = (
    "{greedy_equal}/{prompts} greedy answers equal, same top token at {same_top:.2%} of {tokens} positions, "
    "|Δlogit| max {max_logit_diff:.2g} mean {mean_logit_diff:.2g}"
)


IN_SLICES = (
    "{tensors} tensors read back and equal to the policy's, {greedy_equal}/{prompts} next tokens equal, "
    "same top token at {same_top:.2%} of {tokens} positions, "
    "|Δlogit| max {max_logit_diff:.2g} mean {mean_logit_diff:.2g}"
)


def adapter(job: Job, out: Path) -> Made:
    from lgrpo_lite.export.export import export_adapter

    return Made(export_adapter(job.policy, job.recipe, out, job.prompts))


def merged(job: Job, out: Path) -> Made:
    from lgrpo_lite.export.export import export_merged

    base = job.recipe.export.base
    policy, prompts, why = job.policy_and_prompts()
    path, compared = export_merged(policy, job.recipe, out, prompts, base=base, tolerance=job.tolerance)
    facts = dataclasses.asdict(compared)
    text = IN_SLICES if compared.tensors else COMPARED
    lines = [text.format(**facts)]
    if why:
        lines.append(f"made in slices: {why}")
    return Made(path, tuple(lines), {"check": facts, "in_slices": why})


FORMATS: dict[str, Callable[[Job, Path], Made]] = {"adapter": adapter, "merged": merged}
