"""What a run holds of a GPU, part by part, and at which of its moments.

start     vLLM loads the base and tries a pass, with its keys and values there
build     the trainer's network on those weights, and the probes; keys and values sleep from here on
rollout   vLLM samples, the proofs score
update    a forward and a backward pass
step      the optimiser's
wake      keys and values come back
export    after the last step, without engine and optimiser: the merged model beside the policy
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from lgrpo_lite.engines.base import ENGINES, Engine
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.policy import budget, passes
from lgrpo_lite.policy.budget import GIB
from lgrpo_lite.policy.passes import Pass
from lgrpo_lite.policy.shape import Shape
from lgrpo_lite.recipe.schema import Recipe

MOMENTS = ("start", "build", "rollout", "update", "step", "wake", "export")
EVER = MOMENTS
LEARNING = ("build", "rollout", "update", "step", "wake")  # from the adapter to the last step
SERVED = ("start", *LEARNING)  # while there is an engine
CONTEXT = GIB // 2  # assumed: what the driver, CUDA and its libraries keep
CACHE = "keys and values"


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is held during some of MOMENTS."""

    name: str
    bytes: int
    moments: tuple[str, ...]
    note: str = ""

    def at(self, moment: str) -> int:
        return self.bytes if moment in self.moments else 0


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:.2f} billion" if numbers >= 1e9 else f"{numbers / 1e6:.1f} million"


@dataclass(frozen=True)
class Job:
    """A recipe, its model and its engine, and what follows from the three."""

    recipe: Recipe
    shape: Shape
    engine: str

    @property
    def colocated(self) -> bool:
        """vLLM in this process."""
        return self.row.colocated

    @property
    def row(self) -> Engine:
        """What is true of the engine."""
        return ENGINES[self.engine]

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
        return passes.pass_of(self.recipe, rows_only=self.row.rows_only)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.recipe.model.max_prompt_tokens + self.recipe.model.max_new_tokens

    @property
    def answers(self) -> int:
        """Of a step."""
        return self.recipe.rollout.prompts_per_step * self.recipe.rollout.group_size

    @property
    def sequences(self) -> int:
        """Answers sampled at once, if there is room."""
        if self.row.on_trainer:
            return min(self.recipe.rollout.batch_rows, self.answers)
        return budget.sequences_at_once(self.recipe)

    @cached_property
    def one(self) -> int:
        """Bytes of one sequence's keys and values."""
        if self.colocated:
            return budget.sequence_bytes(self.shape, self.width, self.longest)
        return self.longest * budget.kv_bytes_per_token(self.shape, self.width)

    @cached_property
    def held(self) -> dict[str, int]:
        twice = self.row.own_copy and not self.recipe.rollout.vllm.share_weights
        return budget.held_bytes(self.shape, self.recipe, colocated=self.colocated, twice=twice)

    # ------------------------------------------------------------------------------------------- parts

    def stays(self) -> Iterator[Part]:
        """What does not come and go with a step."""
        model = self.recipe.model
        base = f"{_count(sum(self.shape.parameters))} in {model.weights if model.lora else 'fp32'}"
        adapter = f"{sum(self.sizes) / 1e6:.1f} million, rank {model.lora.rank}, fp32" if model.lora else ""
        sizes = budget.graph_sizes(self.sequences)
        known = {
            "base weights": (EVER, base),
            "vLLM's own weights": (SERVED, "rollout.vllm.share_weights=false"),
            "adapter": ((*LEARNING, "export"), adapter),
            "optimiser moments": (LEARNING, self.recipe.optim.use),
            "adapter inside vLLM": (SERVED, "one slot"),
            "CUDA graphs": (
                SERVED,
                f"assumed: {sizes} sizes, {budget.GRAPH >> 10} KiB a layer, with and without adapter",
            ),
        }
        yield Part("CUDA context", CONTEXT, EVER, "assumed")
        for name, size in self.held.items():
            moments, note = known[name]
            yield Part(name, size, moments, note)

    def build(self) -> Iterator[Part]:
        """The trainer's probes: a pass of a few answers of which one layer is kept whole."""
        shape, run, only = self.shape, self.run, ("build",)
        kept = passes.saved_bytes(shape, run, passes.PROBED_TOKENS, shape.layers - 1)
        yield Part(
            "probes",
            kept + sum(passes.work_bytes(shape, self.recipe, run, passes.PROBED_TOKENS).values()),
            only,
        )

    def rollout(self, room: int, cache_stays: int | None) -> Iterator[Part]:
        """`room`: bytes before anything but CUDA's own is on the card. The server
        of vllm-server has its own GPU.
        """
        if self.colocated:
            work, sampling = passes.sampling_bytes(self.shape, self.recipe), ("start", "rollout")
            yield Part(
                "vLLM's forward pass",
                work,
                sampling,
                f"{passes.VLLM_TOKENS:,} tokens at once, or the proofs' scoring",
            )
            cache = cache_stays or self._cache(room, work)
            there = SERVED if cache_stays else (*sampling, "wake")
        elif self.row.on_trainer:
            sampling = there = ("rollout",)
            work = passes.generate_bytes(
                self.shape, self.run, self.sequences, self.recipe.model.max_prompt_tokens, self.longest
            )
            yield Part("generate()", work, sampling, f"{self.sequences} rows at once")
            cache = self.sequences * self.one
        else:
            return
        held = (
            f"{min(self.sequences, cache // self.one)} of {self.answers} answers at once,"
            f" {self.one / 2**20:,.4g} MiB each"
        )
        yield Part(CACHE, cache, there, held)
        yield Part("fragmentation", int(budget.FRAGMENTATION * work), sampling, "assumed")

    def _cache(self, room: int, work: int) -> int:
        fixed = self.recipe.rollout.vllm.kv_cache_gb
        if fixed is None:
            return budget.cache_bytes(self.one, self.sequences, room, sum(self.held.values()), work)
        if fixed * GIB < self.one:
            what = (
                f"a KV cache of {fixed:g} GiB holds no answer: one of {self.longest:,} tokens takes"
                f" {self.one / GIB:.3f}"
            )
            raise ConfigError(
                what, where=self.recipe.where("rollout.vllm.kv_cache_gb"), fix="set it higher, or to null"
            )
        return int(fixed * GIB)

    def update(self, recomputed: int) -> Iterator[Part]:
        """Of one pass and, after all of them, of the optimiser's step."""
        shape, run, n, only = self.shape, self.run, passes.pass_tokens(self.recipe), ("update",)
        kept = passes.saved_bytes(shape, run, n, recomputed, offload=self.offload)
        work = passes.work_bytes(shape, self.recipe, run, n, recomputed)
        yield Part("gradient", 4 * sum(self.sizes), ("update", "step"), "fp32")
        yield Part(
            "activations", kept, only, f"{n:,} tokens, {recomputed} of {shape.layers} layers recomputed"
        )
        for name, size in work.items():
            if size:
                yield Part(name, size, only)
        lost = int(budget.FRAGMENTATION * (kept + sum(work.values()))) + budget.SPARE
        yield Part("fragmentation", lost, only, "assumed")
        if self.recipe.optim.use == "adamw":
            yield Part("optimiser in work", 4 * sum(self.sizes), ("step",))

    def export(self, room: int) -> Iterator[Part]:
        """The merged model, where it fits into `room` beside the policy; else it is looked at on the CPU."""
        if "merged" not in self.recipe.export.formats:
            return
        merged = passes.merged_bytes(self.shape, self.recipe)

        def answering(rows: int) -> int:
            return passes.checked_bytes(self.shape, self.run, rows, self.recipe.model.max_prompt_tokens)

        if beside := passes.verify_rows(lambda rows: merged + answering(rows), room):
            yield Part("merged model", merged, ("export",), "beside the policy")
            yield Part("both answer", answering(beside), ("export",), f"{beside} prompts at once")
        else:
            rows = passes.verify_rows(answering, room) or 1
            note = f"the merged model is verified on the CPU ({merged / GIB:.1f} GiB there): slower"
            yield Part("policy answers", answering(rows), ("export",), note)

    def offloaded(self, recomputed: int) -> int:
        """Bytes in CPU memory: torch moves all that autograd keeps, plain weights too."""
        if not self.offload:
            return 0
        plain = self.shape.layers * sum(linear.numbers for linear in self.shape.linears) * self.width
        saved = passes.saved_bytes(self.shape, self.run, passes.pass_tokens(self.recipe), recomputed)
        return saved + (0 if self.recipe.model.weights in ("nf4", "int8") or recomputed else plain)

    def warnings(self, offloaded: int) -> Iterator[str]:
        model, use = self.recipe.model, self.recipe.optim.use
        if offloaded:
            yield f"offloaded activations take {offloaded / GIB:.1f} GiB of CPU memory"
        if self.shape.context and self.longest > self.shape.context:
            yield (
                f"prompt and answer may have {self.longest:,} tokens, the model's context is"
                f" {self.shape.context:,}"
            )
        if not (self.colocated or self.row.on_trainer):
            yield "the server's GPU is not counted: this is the trainer's"
        if use.startswith("paged"):
            yield f"{use}: moments of large tensors may leave the GPU and are not counted"
        if model.weights == "int8":
            yield (
                "int8 layers hold their inputs even where a layer is recomputed or activations are offloaded"
            )
