"""A run on a simulated card, moment by moment, with the project's own code wherever it asks for memory.

vLLM is a ledger: what it maps is what policy/budget.py says, since nothing here can measure it. The trainer's
passes are real ones over FakeTensors, so what they take is counted and not predicted.
"""

import gc
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import patch

import torch
from card import Card, fake_policy
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import clip_grad_norm_

from lgrpo_lite.checks.check import check
from lgrpo_lite.engines.vllm_fit import cache_of
from lgrpo_lite.errors import OutOfMemory
from lgrpo_lite.export import export
from lgrpo_lite.layout import split
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.plan.parts import MOMENTS
from lgrpo_lite.policy import budget, memory, passes, policy, prove
from lgrpo_lite.policy.probe import in_float32
from lgrpo_lite.policy.shape import Shape, find_config
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.guard import within_memory
from lgrpo_lite.train.optim import Optimizers

CELLS = [  # model and tokens of the longest answer: what `docs/memory.md` tells of
    *(("Qwen/Qwen2.5-3B", n) for n in (1024, 4096, 32_768)),
    *(("Qwen/Qwen2.5-7B", n) for n in (1024, 4096, 16_384)),
    *(("meta-llama/Llama-3.1-8B", n) for n in (1024, 4096, 16_384)),
    *(("Qwen/Qwen2.5-14B", n) for n in (1024, 4096, 8192)),
]
LONGEST = [
    ("Qwen/Qwen2.5-3B", 49_152), ("Qwen/Qwen2.5-7B", 24_576), ("meta-llama/Llama-3.1-8B", 24_576),
    ("Qwen/Qwen2.5-14B", 12_288, "rollout.vllm.cuda_graphs=false"),
]  # fmt: skip
AWAY = [("meta-llama/Llama-3.1-8B", 40_960), ("Qwen/Qwen2.5-14B", 16_384)]  # that fit with
OFFLOADED = ("memory.offload_activations=true", "memory.checkpointing=true")


def recipe_of(model: str, answers: int, *more: str):
    """The recipe for one card with another model and answers of that length, checked."""
    return check(
        load_recipe(
            "qwen3b-math",
            [
                f"model.id={model}",
                "model.revision=null",
                f"model.max_new_tokens={answers}",
                "rollout.engine=vllm",
                *more,
            ],
        )
    )


# prompts and answers of a proof's scoring
PROOF = tuple((ahead, 16) for ahead in (110, 111, 256, 255) for _ in range(8))


def with_gradients(card: Card, policy) -> None:
    for parameter in policy.trainable():
        parameter.grad = card.tensor(*parameter.shape, dtype=parameter.dtype)


@dataclass
class Moment:
    """`peak`: bytes of the card taken at most, what torch cached left out. `full`: what did not fit, and how."""

    peak: int
    full: str | None = None


@dataclass
class SimulatedRun:
    """Of a checked recipe with engine vllm, on a card of `size` bytes as on its box."""

    recipe: object
    size: int
    found: dict[str, Moment] = field(default_factory=dict)

    def __post_init__(self):
        self.config = find_config(self.recipe.model)
        self.shape = Shape.of(self.config)
        self.held = budget.held_bytes(self.shape, self.recipe, colocated=True)
        self.sampling = passes.sampling_bytes(self.shape, self.recipe)
        self.context = self.recipe.model.max_prompt_tokens + self.recipe.model.max_new_tokens
        self.card = Card(budget.visible(self.size))
        self.run = None

    def all(self) -> dict[str, Moment]:
        """Every moment in order; one that does not fit is left, and the next begins."""
        with ExitStack() as stack:
            stack.enter_context(self.card)
            stack.enter_context(patch.object(policy.Policy, "_saving", lambda made: self._saving(made)))
            for module in (memory, policy, prove):
                stack.enter_context(patch.object(module, "free_bytes", self._free))
            for moment in MOMENTS:
                self._at(moment, getattr(self, moment))
        return self.found

    def _free(self, device) -> int:
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def _saving(self, made):
        """torch.autograd.graph.save_on_cpu for tensors without numbers."""

        def pack(kept):
            return (tuple(kept.shape), kept.dtype) if isinstance(kept, FakeTensor) else kept

        def unpack(packed):
            return self.card.tensor(*packed[0], dtype=packed[1]) if isinstance(packed, tuple) else packed

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack) if made.offload else nullcontext()

    def _at(self, moment: str, what: Callable[[], None]) -> None:
        gc.collect()
        card, full = self.card, None
        self.high = card.used
        torch.cuda.reset_peak_memory_stats()
        try:
            what()
        except (torch.OutOfMemoryError, RuntimeError, OutOfMemory) as error:
            if "out of memory" not in str(error):
                raise
            full = str(error)
        self._mark()
        self.found[moment] = Moment(self.high, full)
        gc.collect()

    def _mark(self) -> None:
        """The peak until now, before a pool changes."""
        self.high = max(self.high, self.card.used - self.card.torch.allocated + self.card.torch.peak)
        torch.cuda.reset_peak_memory_stats()

    def _in_work(self, size: int) -> None:
        self.card.torch.give_back(self.card.torch.take(size))

    # ------------------------------------------------------------------------------------------- moments

    def start(self) -> None:
        card = self.card
        cache = cache_of(self.recipe, self.config, self.context, card.free())
        card.map("weights", self.held["base weights"])
        card.map("slot", self.held["adapter inside vLLM"])
        self._in_work(passes.vllm_bytes(self.shape, 2, budget.sequences_at_once(self.recipe)))
        self.cache = cache
        torch.cuda.empty_cache()
        card.map("cache", cache)
        card.map("graphs", self.held.get("CUDA graphs", 0))
        self._in_work(passes.vllm_bytes(self.shape, 2, budget.sequences_at_once(self.recipe)))
        self._mark()
        card.unmap("cache")

    def build(self) -> None:
        torch.cuda.empty_cache()  # as train/build.py does
        self.card.unmap("weights")  # the same bytes come with the network
        made = fake_policy(self.card, self.recipe)
        self.chosen = prove.by_memory(made, self.recipe)
        objective = Objective(self.recipe.algorithm, max_new_tokens=self.recipe.model.max_new_tokens)
        torch.cuda.empty_cache()  # as Optimizers does where the policy is on a card
        with self.card.mode:
            optimizer = Optimizers(self.recipe, made, objective)
        for group in optimizer.policy.param_groups:
            group["foreach"] = True  # as on a card
        for state in optimizer.policy.state.values():
            state["step"] = torch.tensor(0.0)  # is a number, on the CPU
        self.run = SimpleNamespace(
            policy=made,
            optimizer=optimizer,
            micro_tokens=self.recipe.memory.micro_tokens,
            notices=[],
            recipe=self.recipe,
        )
        fixed = self.recipe.memory.checkpointing
        layers = self.chosen.layers if fixed == "auto" else self.chosen.of * bool(fixed)
        memory.recompute(made.base, layers)

    def rollout(self) -> None:
        self.wake()
        self._in_work(passes.vllm_bytes(self.shape, 2, budget.sequences_at_once(self.recipe)))
        batch = prove.probe(self.shape.vocabulary, PROOF)
        with torch.no_grad():
            (_, micro), *_ = split(batch, passes.SCORED_TOKENS)  # all are of one size
            self.run.policy.logprobs(micro)
        self._mark()
        self.card.unmap("cache")

    def update(self) -> None:
        run, model = self.run, self.recipe.model
        longest = model.max_prompt_tokens + model.max_new_tokens - 1
        # answers that fill a pass, none longer than allowed; a probe has 60
        count = min(60, -(-run.micro_tokens // longest))
        length = min(longest, max(longest, run.micro_tokens) // count)
        ahead = model.max_prompt_tokens
        batch = prove.probe(self.shape.vocabulary, ((ahead, length + 1 - ahead),) * count)

        def attempt() -> None:
            with_gradients(self.card, run.policy)  # as from the second pass on
            (_, micro), *_ = split(batch, run.micro_tokens, ("packed",))
            run.policy.logprobs(micro).logp.sum().backward()

        within_memory(run, attempt)

    def step(self) -> None:
        clip_grad_norm_(self.run.policy.trainable(), 1.0)
        self.run.optimizer.policy.step()
        self.run.optimizer.policy.zero_grad(set_to_none=True)

    def wake(self) -> None:
        torch.cuda.empty_cache()
        self.card.map("cache", self.cache)

    def export(self) -> None:
        """What export/export.py does on a card: engine and moments go, both models answer; the
        merged one here or on the CPU.
        """
        card, run, longest = self.card, self.run, self.recipe.model.max_prompt_tokens
        for name in ("cache", "graphs", "slot"):
            card.unmap(name)
        run.optimizer.zero_grad()
        run.optimizer.policy.state.clear()
        gc.collect()
        torch.cuda.empty_cache()
        self.high = card.used
        torch.cuda.reset_peak_memory_stats()
        merged, free = passes.merged_bytes(self.shape, self.recipe), self._free(None)
        rows = export.room_for(run.policy, self.recipe, merged, longest, free)
        if rows:
            card.map("merged model", merged)
        else:
            rows = max(1, export.room_for(run.policy, self.recipe, 0, longest, free))
        cache = card.tensor(
            rows * (longest + passes.VERIFY_TOKENS) * budget.kv_bytes_per_token(self.shape, 4),
            dtype=torch.int8,
        )
        # the merged model's pass holds a whole layer as float32, the policy's its largest weight
        widened = card.tensor(self.shape.blocks[0].numbers - self.shape.largest, dtype=torch.float32)
        ids = card.tensor(rows, longest, dtype=torch.long)
        with in_float32(run.policy):
            run.policy.base.base_model(input_ids=ids, use_cache=False)
        self._in_work(20 * rows * self.shape.vocabulary)  # of the last token, in three types
        del cache, widened
