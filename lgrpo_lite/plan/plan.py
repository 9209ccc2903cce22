"""What a recipe takes on a GPU, part by part, at each moment of a run. From configs
alone: nothing loaded, no torch.

found = plan(recipe, 24 * GIB)
found.fits, found.parts, found.lines()
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from lgrpo_lite.engines.base import ENGINES, FALLBACK, PREFERRED, engine_name, unservable
from lgrpo_lite.errors import OutOfMemory
from lgrpo_lite.machine.facts import cuda_devices, gpu_memory
from lgrpo_lite.plan.parts import CACHE, CONTEXT, MOMENTS, Job, Part
from lgrpo_lite.policy import budget
from lgrpo_lite.policy.budget import GIB
from lgrpo_lite.policy.shape import Shape, find_config
from lgrpo_lite.recipe.schema import Recipe

UNKNOWN = 24  # GiB planned for where there is no GPU and the recipe names none


@dataclass(frozen=True, slots=True)
class Plan:
    """`recomputed` of `layers` are checkpointed; `at_once` answers have room for keys and
    values (0: a server's matter).

    size: the card's, as on its box; capacity: what torch sees of it.
    """

    engine: str
    size: int
    parts: tuple[Part, ...]
    recomputed: int
    layers: int
    at_once: int
    offloaded: int  # bytes in CPU memory
    warnings: tuple[str, ...] = ()

    @property
    def capacity(self) -> int:
        return budget.visible(self.size)

    def peak(self, moment: str) -> int:
        return sum(part.at(moment) for part in self.parts)

    @property
    def worst(self) -> str:
        """The moment with the highest peak: the one that binds."""
        return max(MOMENTS, key=self.peak)

    @property
    def spare(self) -> int:
        """Bytes left at the peak; negative where it does not fit."""
        return self.capacity - self.peak(self.worst)

    @property
    def fits(self) -> bool:
        return self.spare >= 0

    @property
    def kv_bytes(self) -> int:
        return sum(part.bytes for part in self.parts if part.name == CACHE)

    def verdict(self) -> str:
        gap = f"{abs(self.spare) / GIB:.2f} GiB"
        if self.fits:
            return f"fits {_size(self.size)} with {gap} to spare: the {self.worst} binds"
        return too_small(self.size, f"short by {gap}", self.worst)

    def lines(self) -> list[str]:
        """As plain text: a line a part, GiB at the peak of each moment, and the verdict."""
        rows = [(part.name, [part.at(moment) for moment in MOMENTS], part.note) for part in self.parts]
        rows.append(("peak", [self.peak(moment) for moment in MOMENTS], f"GiB; engine {self.engine}"))
        head = f"{'memory':24}" + "".join(f"{moment:>9}" for moment in MOMENTS)
        body = [
            f"{name:24}"
            + "".join(f"{size / GIB:9.2f}" if size else " " * 9 for size in sizes)
            + f"  {note}".rstrip()
            for name, sizes, note in rows
        ]
        return [head, *body, self.verdict()]

    def demand(self, fix: str = "`lgrpo-lite plan … --fit` proposes settings") -> None:
        """OutOfMemory, with its largest part, where the plan does not fit."""
        if self.fits:
            return
        largest = max(self.parts, key=lambda part: part.at(self.worst))
        where = f"{self.worst}, most of all {largest.name} with {largest.bytes / GIB:.2f} GiB"
        raise OutOfMemory(f"the plan {self.verdict()}", where=where, fix=fix)


def too_small(size: int, gap: str, moment: str) -> str:
    """What a plan says of a card that is too small, and a run that finds it so."""
    return f"does not fit {_size(size)}: {gap} in the {moment}"


def _size(size: int) -> str:
    return f"{size / GIB:.4g} GB"


def plan(
    recipe: Recipe, size: int | None = None, config: Any = None, *, cache_stays: int | None = None
) -> Plan:
    """The memory of a checked recipe. size: bytes (None: this GPU's, else what the
    recipe is written for, else 24 GiB).

    config: the model's, where it is loaded already. A model that is not here, or whose type is not known:
    ConfigError. memory.checkpointing=auto recomputes as few layers as fit; without kv_cache_gb, keys and
    values take what is free.
    cache_stays: bytes of keys and values that vLLM will not give back for training.
    """
    where = recipe.where("model.id")
    job = Job(recipe, Shape.of(config or find_config(recipe.model, where), where), planned_engine(recipe))
    size = size or card_size(recipe)
    capacity = budget.visible(size)
    stays, layers, fixed = [*job.stays()], job.shape.layers, recipe.memory.checkpointing
    beside = sum(part.at("update") for part in stays) + (cache_stays or 0)

    def fits(recomputed: int) -> bool:
        return beside + sum(part.at("update") for part in job.update(recomputed)) <= capacity

    recomputed = layers if fixed is True else 0
    if fixed == "auto" and not job.offload:
        recomputed = bisect_left(range(layers), True, key=fits)
    sampled = [*job.rollout(capacity - CONTEXT, cache_stays)]
    alone = sum(part.at("export") for part in stays)
    parts = (*stays, *sampled, *job.build(), *job.update(recomputed), *job.export(capacity - alone))
    held = sum(part.bytes for part in parts if part.name == CACHE)
    at_once = min(job.sequences, held // job.one)
    away = job.offloaded(recomputed)
    return Plan(job.engine, size, parts, recomputed, layers, at_once, away, tuple(job.warnings(away)))


def planned_engine(recipe: Recipe) -> str:
    """The recipe's engine; `auto` on a machine without a GPU is planned for one that has
    it, so vllm where that can serve.
    """
    if recipe.rollout.engine != "auto" or cuda_devices():
        return engine_name(recipe)
    return FALLBACK if next(unservable(recipe, ENGINES[PREFERRED].can), None) else PREFERRED


def card_size(recipe: Recipe) -> int:
    """Bytes of this machine's GPU as on its box, else of the one that the recipe is written for,
    else 24 GiB.
    """
    here = gpu_memory()
    return here[0][1] if here else int((recipe.recipe.min_vram_gb or UNKNOWN) * GIB)
