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
CONTEXT = GIB // 2  # assumed: what the driver, CUDA and its libraries keep; on a CPU Python, torch and theirs
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
    if numbers >= 1e9:
        return f"{numbers / 1e9:.2f} billion"
    return f"{numbers / 1e6:.1f} million"


@dataclass(frozen=True)
class Job:
    """A recipe, its model and its engine, and what follows from the three."""

    recipe: Recipe
    shape: Shape
    engine: str
    on_cpu: bool = False  # planned is the memory of a machine without a GPU

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
        widths = budget.ON_CPU if self.on_cpu else budget.WIDTH
        return widths[self.recipe.model.weights]

    @cached_property
    def sizes(self) -> list[int]:
        """Elements of every tensor that is trained."""
        lora = self.recipe.model.lora
        return budget.adapter_sizes(self.shape, lora) if lora else self.shape.parameters

    @cached_property
    def run(self) -> Pass:
        return passes.pass_of(self.recipe, rows_only=self.row.rows_only, on_cpu=self.on_cpu)

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
        a_token = budget.kv_bytes_per_token(self.shape, self.width)
        return max(1, self.longest * a_token)  # where no layer attends, there are none

    @cached_property
    def held(self) -> dict[str, int]:
        twice = self.row.own_copy and not self.recipe.rollout.vllm.share_weights
        return budget.held_bytes(
            self.shape, self.recipe, colocated=self.colocated, twice=twice, compute=self.width
        )

    # ------------------------------------------------------------------------------------------- parts

    def stays(self) -> Iterator[Part]:
        """What does not come and go with a step."""
        model = self.recipe.model
        adapter = ""
        if model.lora:
            count = f"{sum(self.sizes) / 1e6:.1f} million"
            adapter = f"{count}, rank {model.lora.rank}, fp32"
        weights = model.weights if model.lora else "fp32"
        numbers = _count(sum(self.shape.parameters))
        sizes = budget.graph_sizes(self.sequences)
        graphs = f"assumed: {sizes} sizes, {budget.GRAPH >> 10} KiB a layer, with and without adapter"
        known = {
            "base weights": (EVER, f"{numbers} in {weights}"),
            "vLLM's own weights": (SERVED, "rollout.vllm.share_weights=false"),
            "adapter": ((*LEARNING, "export"), adapter),
            "optimiser moments": (LEARNING, self.recipe.optim.use),
            "adapter inside vLLM": (SERVED, "one slot"),
            "CUDA graphs": (SERVED, graphs),
        }
        yield Part("Python and torch" if self.on_cpu else "CUDA context", CONTEXT, EVER, "assumed")
        for name, size in self.held.items():
            moments, note = known[name]
            yield Part(name, size, moments, note)

    def build(self) -> Iterator[Part]:
        """The trainer's probes: a pass of a few answers of which one layer is kept whole."""
        shape = self.shape
        kept = passes.saved_bytes(shape, self.run, passes.PROBED_TOKENS, shape.layers - 1)
        work = passes.work_bytes(shape, self.recipe, self.run, passes.PROBED_TOKENS)
        yield Part("probes", kept + sum(work.values()), ("build",))

    def rollout(self, room: int, cache_stays: int | None) -> Iterator[Part]:
        """`room`: bytes before anything but CUDA's own is on the card. A vllm-server has its own GPU."""
        if self.colocated:
            sampling = ("start", "rollout")
            work = passes.sampling_bytes(self.shape, self.recipe)
            note = f"{passes.VLLM_TOKENS:,} tokens at once, or the proofs' scoring"
            yield Part("vLLM's forward pass", work, sampling, note)
            cache = cache_stays or self._cache(room, work)
            cache_moments = SERVED if cache_stays else (*sampling, "wake")
        elif self.row.on_trainer:
            sampling = ("rollout",)
            ahead = self.recipe.model.max_prompt_tokens
            work = passes.generate_bytes(self.shape, self.run, self.sequences, ahead, self.longest)
            yield Part("generate()", work, sampling, f"{self.sequences} rows at once")
            cache = self.sequences * self.one
            cache_moments = sampling
        else:
            return
        at_once = min(self.sequences, cache // self.one)
        size = f"{self.one / 2**20:,.4g} MiB"
        note = f"{at_once} of {self.answers} answers at once, {size} each"
        yield Part(CACHE, cache, cache_moments, note)
        yield Part("fragmentation", int(budget.FRAGMENTATION * work), sampling, "assumed")

    def _cache(self, room: int, work: int) -> int:
        fixed = self.recipe.rollout.vllm.kv_cache_gb
        if fixed is None:
            held = sum(self.held.values())
            return budget.cache_bytes(self.one, self.sequences, room, held, work)
        if fixed * GIB < self.one:
            size = f"{self.one / GIB:.3f}"
            one = f"one of {self.longest:,} tokens takes {size}"
            what = f"a KV cache of {fixed:g} GiB holds no answer: {one}"
            where = self.recipe.where("rollout.vllm.kv_cache_gb")
            raise ConfigError(what, where=where, fix="set it higher, or to null")
        return int(fixed * GIB)

    def update(self, recomputed: int) -> Iterator[Part]:
        """Of one pass and, after all of them, of the optimiser's step."""
        shape = self.shape
        run = self.run
        tokens = passes.pass_tokens(self.recipe)
        only = ("update",)
        kept = passes.saved_bytes(shape, run, tokens, recomputed, offload=self.offload)
        work = passes.work_bytes(shape, self.recipe, run, tokens, recomputed)
        yield Part("gradient", 4 * sum(self.sizes), ("update", "step"), "fp32")
        note = f"{tokens:,} tokens, {recomputed} of {shape.layers} layers recomputed"
        yield Part("activations", kept, only, note)
        for name, size in work.items():
            if size:
                yield Part(name, size, only)
        whole = kept + sum(work.values())
        lost = int(budget.FRAGMENTATION * whole) + budget.SPARE
        yield Part("fragmentation", lost, only, "assumed")
        if self.recipe.optim.use == "adamw":
            yield Part("optimiser in work", 4 * sum(self.sizes), ("step",))

    def export(self, room: int) -> Iterator[Part]:
        """The merged model, where it fits into `room` beside the policy; else it is looked at on the CPU."""
        if "merged" not in self.recipe.export.formats:
            return
        merged = passes.merged_bytes(self.shape, self.recipe, self.width)

        def answering(rows: int) -> int:
            recipe = self.recipe
            return passes.checked_bytes(self.shape, recipe.model.lora, rows, recipe.model.max_prompt_tokens)

        beside = passes.verify_rows(lambda rows: merged + answering(rows), room)
        if beside:
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
        tokens = passes.pass_tokens(self.recipe)
        saved = passes.saved_bytes(self.shape, self.run, tokens, recomputed)
        if recomputed or self.recipe.model.weights in ("nf4", "int8"):
            return saved
        return saved + self.width * sum(block.numbers for block in self.shape.blocks)

    def warnings(self, offloaded: int) -> Iterator[str]:
        use = self.recipe.optim.use
        context = self.shape.context
        yield from self.shape.unknown
        if offloaded:
            yield f"offloaded activations take {offloaded / GIB:.1f} GiB of CPU memory"
        if context and self.longest > context:
            yield f"prompt and answer may have {self.longest:,} tokens, the model's context is {context:,}"
        if not (self.colocated or self.row.on_trainer):
            yield "the server's GPU is not counted: this is the trainer's"
        if use.startswith("paged"):
            yield f"{use}: moments of large tensors may leave the GPU and are not counted"
        if self.recipe.model.weights == "int8":
            saving = "where a layer is recomputed or activations are offloaded"
            yield f"int8 layers hold their inputs even {saving}"
