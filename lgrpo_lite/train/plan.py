"""What a recipe takes on a GPU, part by part, while it samples, learns and steps. From configs alone: nothing loaded, no torch.

found = plan(recipe, 24 * GIB)
found.fits, found.parts, found.lines()
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lgrpo_lite.config import Recipe
from lgrpo_lite.engines.base import ENGINES, engine_name, unservable
from lgrpo_lite.errors import ConfigError, OutOfMemory
from lgrpo_lite.machine import cuda_devices, gpu_memory
from lgrpo_lite.policy import budget
from lgrpo_lite.policy.budget import GIB, Pass
from lgrpo_lite.policy.shape import Shape, find_config

PHASES = ("rollout", "update", "step")
CONTEXT = GIB * 3 // 4  # assumed: what the driver, CUDA and its libraries keep
GRAPHS = GIB // 2  # assumed: vLLM's CUDA graphs
FRAGMENTATION = 0.1  # assumed: of what comes and goes in a pass
CACHE = "keys and values"
CACHE_SHARE = 0.9  # of what is free then; the rest is for what a plan does not know
UNKNOWN = 24  # GiB planned for where there is no GPU and the recipe names none


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is held during some of PHASES."""

    name: str
    bytes: int
    phases: tuple[str, ...]
    note: str = ""

    def at(self, phase: str) -> int:
        return self.bytes if phase in self.phases else 0


@dataclass(frozen=True, slots=True)
class Plan:
    """`recomputed` of `layers` are checkpointed; `at_once` answers have room for keys and values (0: a server's matter)."""

    engine: str
    capacity: int
    parts: tuple[Part, ...]
    recomputed: int
    layers: int
    at_once: int
    offloaded: int  # bytes in CPU memory
    warnings: tuple[str, ...] = ()

    def peak(self, phase: str) -> int:
        return sum(part.at(phase) for part in self.parts)

    @property
    def worst(self) -> str:
        """The phase with the highest peak."""
        return max(PHASES, key=self.peak)

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
        size, gap = f"{self.capacity / GIB:.4g} GB", f"{abs(self.spare) / GIB:.2f} GiB"
        return f"fits {size} with {gap} to spare" if self.fits else f"does not fit {size}: short by {gap} in the {self.worst}"

    def lines(self) -> list[str]:
        """As plain text: a line a part, GiB at the peak of each phase, and the verdict."""
        rows = [(part.name, [part.at(phase) for phase in PHASES], part.note) for part in self.parts]
        rows.append(("peak", [self.peak(phase) for phase in PHASES], f"GiB; engine {self.engine}"))
        head = f"{'memory':24}" + "".join(f"{phase:>9}" for phase in PHASES)
        body = [
            f"{name:24}" + "".join(f"{size / GIB:9.2f}" if size else " " * 9 for size in sizes) + f"  {note}".rstrip()
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


def plan(recipe: Recipe, capacity: int | None = None, config: Any = None) -> Plan:
    """The memory of a checked recipe. capacity: bytes (None: this GPU's, else what the recipe is written for, else 24 GiB).

    config: the model's, where it is loaded already. A model that is not here, or whose type is not known: ConfigError.
    memory.checkpointing=auto recomputes as few layers as fit; without kv_cache_gb, keys and values take what is free.
    """
    where = recipe.where("model.id")
    job = _Job(recipe, Shape.of(config or find_config(recipe.model, where), where), planned_engine(recipe))
    capacity = capacity or _capacity(recipe)
    stays, layers, fixed = [*job.stays()], job.shape.layers, recipe.memory.checkpointing

    def fits(recomputed: int) -> bool:
        return sum(part.at("update") for part in (*stays, *job.update(recomputed))) <= capacity

    recomputed = layers if fixed is True else 0
    if fixed == "auto" and not job.offload:
        recomputed = bisect_left(range(layers), True, key=fits)
    parts = (*stays, *job.rollout(capacity - sum(part.bytes for part in stays)), *job.update(recomputed))
    held = sum(part.bytes for part in parts if part.name == CACHE)
    at_once = min(job.sequences, held // job.one)
    away = job.offloaded(recomputed)
    return Plan(job.engine, capacity, parts, recomputed, layers, at_once, away, tuple(job.warnings(away)))


def planned_engine(recipe: Recipe) -> str:
    """The recipe's engine; `auto` on a machine without a GPU is planned for one that has it, so vllm where that can serve."""
    if recipe.rollout.engine != "auto" or cuda_devices():
        return engine_name(recipe)
    return "transformers" if next(unservable(recipe, ENGINES["vllm"].can), None) else "vllm"


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:.2f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.1f} million"


def _capacity(recipe: Recipe) -> int:
    here = gpu_memory()
    return here[0][1] if here else int((recipe.recipe.min_vram_gb or UNKNOWN) * GIB)


@dataclass(frozen=True)
class _Job:
    """A recipe, its model and its engine, and what follows from the three."""

    recipe: Recipe
    shape: Shape
    engine: str

    @property
    def colocated(self) -> bool:
        """vLLM in this process."""
        return self.engine in ("vllm", "unsloth")

    @property
    def offload(self) -> bool:
        return self.recipe.memory.offload_activations

    @property
    def width(self) -> int:
        return budget.WIDTH[self.recipe.model.weights]

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of every tensor that is trained."""
        lora = self.recipe.model.lora
        return budget.adapter_sizes(self.shape, lora) if lora else self.shape.parameters

    @cached_property
    def run(self) -> Pass:
        """On a GPU 16-bit packed layouts want keys once for each query head, and so does a prompt that answers share.

        Unsloth's models take rows alone.
        """
        model, layout = self.recipe.model, "rows" if self.engine == "unsloth" else self.recipe.memory.layout
        keys = 1 + model.max_prompt_tokens / model.max_new_tokens if layout in ("auto", "shared") else 1.0
        expanded = layout != "rows" and (self.width < 4 or keys > 1)
        return Pass(self.width, model.lora, model.weights == "int8", layout != "rows", expanded, keys)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.recipe.model.max_prompt_tokens + self.recipe.model.max_new_tokens

    @property
    def answers(self) -> int:
        """Of a step."""
        return self.recipe.rollout.prompts_per_step * self.recipe.rollout.group_size

    @property
    def tokens(self) -> int:
        """Of the largest pass: micro_tokens, but at least one sequence (or group, where a loss needs it whole), at most all."""
        recipe, each = self.recipe, self.longest - 1  # the last token predicts nothing
        least = each * (recipe.rollout.group_size if recipe.algorithm.whole_groups else 1)
        return max(least, min(recipe.memory.micro_tokens, self.answers * each))

    @property
    def sequences(self) -> int:
        """Answers sampled at once, if there is room."""
        rollout = self.recipe.rollout
        if self.engine == "transformers":
            return min(rollout.batch_rows, self.answers)
        return rollout.vllm.max_sequences or min(256, self.answers)

    @cached_property
    def one(self) -> int:
        """Bytes of one sequence's keys and values."""
        if self.colocated:
            return budget.sequence_bytes(self.shape, self.width, self.longest)
        return self.longest * budget.kv_bytes_per_token(self.shape, self.width)

    # ------------------------------------------------------------------------------------------- parts

    def stays(self) -> Iterator[Part]:
        """In all phases."""
        model, vllm = self.recipe.model, self.recipe.rollout.vllm
        weights = budget.weights_bytes(self.shape, model.weights, trained=model.lora is None)
        held = model.weights if model.lora else "fp32"
        yield Part("base weights", weights, PHASES, f"{_count(sum(self.shape.parameters))} in {held}")
        if self.engine == "vllm" and not vllm.share_weights:
            yield Part("vLLM's own weights", weights, PHASES, "rollout.vllm.share_weights=false")
        if model.lora:
            yield Part(
                "adapter", 4 * sum(self.sizes), PHASES, f"{sum(self.sizes) / 1e6:.1f} million, rank {model.lora.rank}, fp32"
            )
        yield Part("optimiser moments", budget.moments_bytes(self.sizes, self.recipe.optim.use), PHASES, self.recipe.optim.use)
        yield Part("CUDA context", CONTEXT, PHASES, "assumed")
        if self.colocated and model.lora:
            slot = budget.slot_bytes(self.shape, model.lora.rank, self.width)
            yield Part("adapter inside vLLM", slot, PHASES, "one slot")
            if vllm.cuda_graphs:
                yield Part("CUDA graphs", GRAPHS, PHASES, "assumed")

    def rollout(self, room: int) -> Iterator[Part]:
        """`room` is what the rest leaves; the server of vllm-server has its own GPU."""
        only = ("rollout",)
        if self.colocated:
            work = budget.vllm_bytes(self.shape, self.width, self.sequences)
            yield Part("vLLM's forward pass", work, only, f"{budget.VLLM_TOKENS:,} tokens at once")
            cache = self._cache(room - int((1 + FRAGMENTATION) * work))
        elif self.engine == "transformers":
            work = budget.generate_bytes(
                self.shape, self.run, self.sequences, self.recipe.model.max_prompt_tokens, self.longest
            )  # fmt: skip
            yield Part("generate()", work, only, f"{self.sequences} rows at once")
            cache = self.sequences * self.one
        else:
            return
        held = f"{min(self.sequences, cache // self.one)} of {self.answers} answers at once, {self.one / 2**20:,.4g} MiB each"
        yield Part(CACHE, cache, only, held)
        yield Part("fragmentation", int(FRAGMENTATION * work), only, "assumed")

    def _cache(self, room: int) -> int:
        fixed = self.recipe.rollout.vllm.kv_cache_gb
        if fixed is None:
            return max(self.one, min(self.sequences * self.one, int(CACHE_SHARE * room)))
        if fixed * GIB < self.one:
            what = f"a KV cache of {fixed:g} GiB holds no answer: one of {self.longest:,} tokens takes {self.one / GIB:.3f}"
            raise ConfigError(what, where=self.recipe.where("rollout.vllm.kv_cache_gb"), fix="set it higher, or to null")
        return int(fixed * GIB)

    def update(self, recomputed: int) -> Iterator[Part]:
        """Of one pass and, after all of them, of the optimiser's step."""
        shape, run, n, only = self.shape, self.run, self.tokens, ("update",)
        layer, work = budget.layer_bytes(shape, run), budget.backward_bytes(shape, run)
        kept = budget.saved_bytes(shape, run, n, recomputed, offload=self.offload)
        again = n * layer if recomputed and (recomputed == shape.layers or self.offload) else 0
        if self.offload and not recomputed:
            work = budget.offloaded_bytes(shape, run)
        work = n * work + budget.unpacked_bytes(shape, self.recipe.model.weights, run)
        tiles = budget.tiles_bytes(shape, run, self.recipe.memory.logprob_chunk)
        yield Part("gradient", 4 * sum(self.sizes), ("update", "step"), "fp32")
        yield Part("activations", kept, only, f"{n:,} tokens, {recomputed} of {shape.layers} layers recomputed")
        if again:
            yield Part("recomputed layer", again, only)
        yield Part("layer in work", work, only)
        yield Part("head tiles", tiles, only)
        yield Part("fragmentation", int(FRAGMENTATION * (kept + again + work)), only, "assumed")
        if self.recipe.optim.use == "adamw":
            yield Part("optimiser in work", 4 * sum(self.sizes), ("step",))

    def offloaded(self, recomputed: int) -> int:
        """Bytes in CPU memory: torch moves all that autograd keeps, plain weights too."""
        if not self.offload:
            return 0
        plain = self.shape.layers * sum(linear.numbers for linear in self.shape.linears) * self.width
        saved = budget.saved_bytes(self.shape, self.run, self.tokens, recomputed)
        return saved + (0 if self.recipe.model.weights in ("nf4", "int8") or recomputed else plain)

    def warnings(self, offloaded: int) -> Iterator[str]:
        model, use = self.recipe.model, self.recipe.optim.use
        if offloaded:
            yield f"offloaded activations take {offloaded / GIB:.1f} GiB of CPU memory"
        if self.shape.context and self.longest > self.shape.context:
            yield f"prompt and answer may have {self.longest:,} tokens, the model's context is {self.shape.context:,}"
        if self.engine == "vllm-server":
            yield "the server's GPU is not counted: this is the trainer's"
        if use.startswith("paged"):
            yield f"{use}: moments of large tensors may leave the GPU and are not counted"
        if model.weights == "int8":
            yield "int8 layers hold their inputs even where a layer is recomputed or activations are offloaded"
