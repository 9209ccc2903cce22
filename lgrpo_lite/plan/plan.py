"""What a recipe takes on a GPU, part by part, at each moment of a run. From configs alone, without torch.

result = plan(recipe, 24 * GIB)
result.fits, result.parts, result.lines()
"""

from bisect import bisect_left
from collections.abc import Iterable
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
    """`recomputed` of `layers` are checkpointed; `at_once` answers have room in the cache (0: a server's).

    size: the card's, as on its box; capacity: what torch sees of it.
    """

    engine: str
    size: int
    parts: tuple[Part, ...]
    recomputed: int
    layers: int
    at_once: int
    offloaded: int  # bytes in CPU memory
    on_cpu: bool = False  # `size` is the memory of a machine without a GPU, and all of it can be used
    warnings: tuple[str, ...] = ()

    @property
    def capacity(self) -> int:
        return self.size if self.on_cpu else budget.visible(self.size)

    def peak(self, moment: str) -> int:
        return _sum(self.parts, moment)

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
            whose = " of this machine's memory" if self.on_cpu else ""
            return f"fits {_size(self.size)}{whose} with {gap} to spare: the {self.worst} binds"
        return too_small(self.size, f"short by {gap}", self.worst)

    def lines(self) -> list[str]:
        """As plain text: a line a part, GiB at the peak of each moment, and the verdict."""
        head = f"{'memory':24}"
        for moment in MOMENTS:
            head += f"{moment:>9}"
        lines = [head]
        for part in self.parts:
            sizes = [part.at(moment) for moment in MOMENTS]
            lines.append(_line(part.name, sizes, part.note))
        peaks = [self.peak(moment) for moment in MOMENTS]
        lines.append(_line("peak", peaks, f"GiB; engine {self.engine}"))
        lines.append(self.verdict())
        return lines

    def demand(self, fix: str = "`lgrpo-lite plan … --fit` proposes settings") -> None:
        """OutOfMemory, with its largest part, where the plan does not fit."""
        if self.fits:
            return
        largest = max(self.parts, key=lambda part: part.at(self.worst))
        size = f"{largest.bytes / GIB:.2f} GiB"
        where = f"{self.worst}, most of all {largest.name} with {size}"
        raise OutOfMemory(f"the plan {self.verdict()}", where=where, fix=fix)


def _sum(parts: Iterable[Part], moment: str) -> int:
    return sum(part.at(moment) for part in parts)


def _line(name: str, sizes: Iterable[int], note: str) -> str:
    line = f"{name:24}"
    for size in sizes:
        line += f"{size / GIB:9.2f}" if size else " " * 9
    return line + f"  {note}".rstrip()


def too_small(size: int, gap: str, moment: str) -> str:
    """What a plan says of a card that is too small, and a run that finds it so."""
    return f"does not fit {_size(size)}: {gap} in the {moment}"


def _size(size: int) -> str:
    return f"{size / GIB:.4g} GB"


def plan(
    recipe: Recipe,
    size: int | None = None,
    config: Any = None,
    *,
    cache_stays: int | None = None,
    on_cpu: bool = False,
) -> Plan:
    """The memory of a checked recipe. size: bytes (None: this GPU's, else the recipe's, else 24 GiB).

    config: the model's, where it is loaded already. A model that is not here, or whose type is not known:
    ConfigError. memory.checkpointing=auto recomputes as few layers as fit; without kv_cache_gb, keys and
    values take what is free.
    cache_stays: bytes of keys and values that vLLM will not give back for training.
    on_cpu: size is the memory of a machine without a GPU, where transformers samples.
    """
    where = recipe.where("model.id")
    shape = Shape.of(config or find_config(recipe.model, where), where)
    job = Job(recipe, shape, FALLBACK if on_cpu else planned_engine(recipe), on_cpu)
    size = size or card_size(recipe)
    capacity = size if on_cpu else budget.visible(size)
    stays = list(job.stays())
    layers = shape.layers
    fixed = recipe.memory.checkpointing
    beside = _sum(stays, "update") + (cache_stays or 0)

    def fits(recomputed: int) -> bool:
        return beside + _sum(job.update(recomputed), "update") <= capacity

    recomputed = layers if fixed is True else 0
    if fixed == "auto" and not job.offload:
        recomputed = bisect_left(range(layers), True, key=fits)
    alone = _sum(stays, "export")
    parts = (
        *stays,
        *job.rollout(capacity - CONTEXT, cache_stays),
        *job.build(),
        *job.update(recomputed),
        *job.export(capacity - alone),
    )
    cache = sum(part.bytes for part in parts if part.name == CACHE)
    offloaded = job.offloaded(recomputed)
    return Plan(
        engine=job.engine,
        size=size,
        parts=parts,
        recomputed=recomputed,
        layers=layers,
        at_once=min(job.sequences, cache // job.one),
        offloaded=offloaded,
        on_cpu=on_cpu,
        warnings=tuple(job.warnings(offloaded)),
    )


def planned_engine(recipe: Recipe) -> str:
    """The recipe's engine; `auto` without a GPU is planned as if there were one: vllm where it can serve."""
    if recipe.rollout.engine != "auto" or cuda_devices():
        return engine_name(recipe)
    faults = list(unservable(recipe, ENGINES[PREFERRED].can))
    return FALLBACK if faults else PREFERRED


def card_size(recipe: Recipe) -> int:
    """Bytes of this machine's GPU as on its box, else of the recipe's, else 24 GiB."""
    cards = gpu_memory()
    if cards:
        return cards[0][1]
    return int((recipe.recipe.min_vram_gb or UNKNOWN) * GIB)
