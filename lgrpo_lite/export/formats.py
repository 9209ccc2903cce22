"""The formats that a run is exported in, by name: what `export RUN FORMAT` and a recipe's `export.formats`
take.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lgrpo_lite.engines.base import Sampler
from lgrpo_lite.export.place import REPORT, demand_place
from lgrpo_lite.export.room import too_little
from lgrpo_lite.export.stamp import put_stamp, source_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Recipe
from lgrpo_lite.rollout.tools import Tools
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
    tools: Callable[[Sampler], Tools]  # with the run's rewards, to score what an export answers
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

    path: Path | str  # a folder, or an address
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

    beside = partial(described, job, "adapter")
    return Made(export_adapter(job.policy, job.recipe, out, job.prompts, beside=beside))


def merged(job: Job, out: Path) -> Made:
    from lgrpo_lite.export.export import export_merged

    base = job.recipe.export.base
    policy, prompts, why = job.policy_and_prompts()
    path, compared = export_merged(
        policy,
        job.recipe,
        out,
        prompts,
        base=base,
        tolerance=job.tolerance,
        beside=partial(described, job, "merged"),
    )
    facts = dataclasses.asdict(compared)
    text = IN_SLICES if compared.tensors else COMPARED
    lines = [text.format(**facts)]
    if why:
        lines.append(f"made in slices: {why}")
    return Made(path, tuple(lines), {"check": facts, "in_slices": why})


def gguf(job: Job, out: Path) -> Made:
    from lgrpo_lite.export.gguf import export_gguf
    from lgrpo_lite.export.gguf_report import table

    beside = partial(described, job, "gguf")
    report = export_gguf(job, out, job.recipe.export.quant, beside=beside)
    return Made(out, (*table(report), *_solved(job)), {"report": report})


def lora_gguf(job: Job, out: Path) -> Made:
    from lgrpo_lite.export.gguf import export_lora_gguf
    from lgrpo_lite.export.gguf_report import table

    report = export_lora_gguf(job, out, beside=partial(described, job, "lora-gguf"))
    return Made(out, (*table(report), *_solved(job)), {"report": report})


def _solved(job: Job) -> list[str]:
    """Told where fewer problems are held out than were to be solved."""
    asked = job.recipe.export.eval
    if not asked or len(job.prompts) >= asked:
        return []
    return [f"solved {len(job.prompts)} problems, not {asked}: no more are held out (data.eval)"]


def ollama(job: Job, out: Path) -> Made:
    """The first GGUF file that is asked for, and its Modelfile."""
    from lgrpo_lite.export.gguf import export_gguf, file_name
    from lgrpo_lite.export.gguf_report import table
    from lgrpo_lite.export.ollama import write_modelfile

    quant = job.recipe.export.quant[0]
    notes: list[str] = []

    def beside(folder: Path) -> None:
        notes.extend(write_modelfile(job, folder, f"{file_name(job.run)}-{quant}.gguf"))
        described(job, "ollama", folder)

    report = export_gguf(job, out, [quant], kind="ollama", beside=beside)
    return Made(out, (*table(report), *_solved(job), *notes), {"report": report, "notes": notes})


def described(job: Job, kind: str, folder: Path) -> None:
    """What every export has beside its own files: of which kind and checkpoint it is, its card, its stamp."""
    from lgrpo_lite.export.card import write_card

    if not (folder / REPORT).exists():
        report = {"kind": kind, "checkpoint": job.checkpoint}
        (folder / REPORT).write_text(json.dumps(report, indent=1), "utf-8")
    write_card(job.run, job.recipe, folder, kind, job.checkpoint)
    put_stamp(folder, kind, source_of(job.run, job.checkpoint))


def card(job: Job, out: Path) -> Made:
    """The cards of what was exported, anew. `out` other than its usual place: that of the export there."""
    from lgrpo_lite.export.card import write_cards

    asked = None if out == job.at("card") else out
    first, *others = write_cards(job.run, job.recipe, job.checkpoint, asked)
    return Made(first, tuple(map(str, others)))


def hub(job: Job, _: Path) -> Made:
    from lgrpo_lite.export.hub import upload

    return upload(job)


# in the order in which a run makes them; hub is the last, which uploads the others
FORMATS: dict[str, Callable[[Job, Path], Made]] = {
    "adapter": adapter, "merged": merged, "gguf": gguf, "lora-gguf": lora_gguf, "ollama": ollama,
    "card": card, "hub": hub,
}  # fmt: skip
OF_EXPORTS = ("card", "hub")  # these are about exports, and none themselves


def make(kind: str, job: Job, out: Path) -> Made:
    """The export in `out`, which knows from then on of which checkpoint it was made."""
    if kind not in OF_EXPORTS:
        out = demand_place(out, kind)  # before anything is loaded
    return FORMATS[kind](job, out)
