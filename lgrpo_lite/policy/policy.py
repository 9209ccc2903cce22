"""The policy: a base model and its adapter, as the three things training asks of it.

policy.logprobs(batch)    log-probs of the batch's completion tokens, with gradient
policy.reference()        inside it, the policy is the base model: the adapter is switched off
policy.trainable()        the parameters that learn
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgrpo_lite.batch import TrainBatch, ranges
from lgrpo_lite.layout import LAYOUT, Laid
from lgrpo_lite.ops.logprob import logprobs
from lgrpo_lite.policy import attention
from lgrpo_lite.policy.load import adapted, compute_dtype, device_of, head_of, load_base, load_tokenizer
from lgrpo_lite.policy.memory import free_bytes, tile_bytes
from lgrpo_lite.recipe.schema import Recipe


class Scored(NamedTuple):
    """What one forward pass says about a batch's completion tokens."""

    logp: Float[Tensor, " T"]
    entropy: Float[Tensor, " T"]  # nats; with gradient only for an entropy bonus
    prompt_hidden: Float[Tensor, "S D"] | None = None  # on the policy's device


class Policy:
    """`model` is a PeftModel, or the bare model if all parameters are trained; `version` counts updates.

    `layouts` are those a batch may come in: `rows` works for any model, `prove` finds out about the others.
    `window`: tokens of a sequence up to which the others give what `rows` gives; None: of any length.
    """

    def __init__(self, model, tokenizer, *, temperature: float, dtype: torch.dtype, chunk: int | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.dtype = dtype
        self.chunk = chunk
        self.version = 0
        self.layouts: tuple[str, ...] = ("rows",)
        self.window: int | None = None
        self.offload = self.varlen = self.entropy_grad = False
        # float16 loses gradients below 6e-8; halved when too much
        self.loss_scale = 2.0**12 if dtype == torch.float16 else 1.0

    @classmethod
    def load(cls, recipe: Recipe, net=None) -> "Policy":
        """Tokenizer, base, fresh adapter. Loading faults are ConfigError or EnvironmentFault.

        `net` is a network with an adapter on the base weights of an engine; it computes in its own type.
        """
        model, device = recipe.model, device_of()
        where = recipe.where("model.id")
        tokenizer = load_tokenizer(model, where)
        if net is None:
            dtype = compute_dtype(model.weights, device)
            net = adapted(load_base(model, device, where), recipe)
        else:
            dtype = net.get_input_embeddings().weight.dtype
        policy = cls(
            net,
            tokenizer,
            temperature=recipe.rollout.temperature,
            dtype=dtype,
            chunk=recipe.memory.logprob_chunk,
        )
        policy.offload = recipe.memory.offload_activations
        policy.entropy_grad = recipe.algorithm.entropy_coef > 0
        return policy

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def base(self):
        """The causal language model with the adapter's layers in it."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def body(self):
        """What of `base` gives the last hidden states; some name a part as theirs that they do not have."""
        named = self.base.base_model
        return self.base.model if named is self.base and hasattr(self.base, "model") else named

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end an answer, by the model's generation settings and its tokenizer."""
        return self.generation_ends | {self.tokenizer.eos_token_id} - {None}

    @property
    def generation_ends(self) -> frozenset[int]:
        """Those of the generation settings."""
        eos = self.base.generation_config.eos_token_id  # None, a number, or several
        ends: list = [eos] if eos is None or isinstance(eos, int) else eos
        return frozenset(ends) - {None}

    def trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def layouts_for(self, batch: TrainBatch) -> tuple[str, ...]:
        """Those of `layouts` that are right for this batch: `rows` where a sequence exceeds the window.

        It depends on model and batch alone, so a resumed run makes the same choice.
        """
        # the last token of a sequence is in no pass
        fits = self.window is None or int(batch.length.max()) - 1 <= self.window
        return self.layouts if fits else ("rows",)

    def compute(self) -> AbstractContextManager:
        """Autocast for float32 parameters that compute in bf16, else nothing."""
        mixed = not self.has_adapter and self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if mixed else nullcontext()

    def reference(self) -> AbstractContextManager:
        """The base model, without a second copy. Needs an adapter; `check` demands one for a KL."""
        return self.model.disable_adapter()

    def logprobs(self, batch: TrainBatch, *, prompt_hidden: bool = False) -> Scored:
        """log π(token | before) and entropy of each completion token at the sampling temperature.

        Both are on the batch's device.
        prompt_hidden asks for the mean of the last hidden states over each sequence's prompt too, with
        gradient. The batch's layout decides what the model is given; only positions that predict a
        completion token reach the head.
        """
        inputs = LAYOUT[batch.layout](batch)
        with self.compute(), self._saving():
            hidden = self._hidden(inputs).flatten(0, 1)
            predicting = inputs.place[batch.at].to(self.device)
            logp, entropy = logprobs(
                hidden[predicting],
                head_of(self.base),
                batch.token_ids,
                self.temperature,
                rows=self.chunk,
                size=tile_bytes(free_bytes(self.device)),
                entropy_grad=self.entropy_grad,
            )
        device = batch.advantage.device
        mean = _prompt_mean(hidden, inputs, batch) if prompt_hidden else None
        return Scored(logp.to(device), entropy.to(device), mean)

    def _hidden(self, inputs: Laid) -> Tensor:
        """Last hidden states [B W D]."""
        ids, positions = inputs.input_ids, inputs.position_ids
        options = {"input_ids": ids.to(self.device), "use_cache": False}
        if inputs.segments is not None:
            options["position_ids"] = None if positions is None else positions.to(self.device)
            options["plan"] = attention.plan(inputs.segments).to(self.device, varlen=self.varlen)
            # Models hand on a mask of 4 dimensions; without one they build one of all tokens by all tokens.
            options["attention_mask"] = torch.zeros(1, 1, 1, 1, device=self.device)
        return self.body(**options).last_hidden_state

    def _saving(self) -> AbstractContextManager:
        """Where autograd keeps what the backward pass needs."""
        if not self.offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")

    # ------------------------------------------------------------------------------------------- saving

    def save(self, folder: Path) -> None:
        """What is trained: a PEFT adapter that `PeftModel.from_pretrained` loads, or all parameters."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.has_adapter:
            self.model.save_pretrained(folder)
            _sort_lists(folder / "adapter_config.json")
        else:
            tensors = {name: p.detach().cpu().contiguous() for name, p in self._own()}
            save_file(tensors, folder / "model.safetensors")

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Load what `save` wrote into the parameters, bit for bit. A foreign folder: OSError or KeyError."""
        if self.has_adapter:
            saved = load_file(folder / "adapter_model.safetensors")
            for name, parameter in self._own():
                parameter.copy_(saved[name.replace(".default.", ".")])
        else:
            saved = load_file(folder / "model.safetensors")
            for name, parameter in self._own():
                parameter.copy_(saved[name])

    def _own(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)


def _prompt_mean(hidden: Tensor, inputs: Laid, batch: TrainBatch) -> Tensor:
    """Mean of hidden [tokens D] over each sequence's positions before its first completion token."""
    count = batch.context
    device = hidden.device
    position, owner = ranges(batch.start, count)
    place = inputs.place[position].to(device)
    total = hidden.new_zeros(len(count), hidden.shape[1])
    total = total.index_add(0, owner.to(device), hidden[place])
    return total / count.to(device)[:, None]


def _sort_lists(path: Path) -> None:
    """peft writes sets in hash order; sorted, the same run gives the same file."""
    if path.exists():
        config = json.loads(path.read_text("utf-8"))
        for key, value in config.items():
            if isinstance(value, list):
                config[key] = sorted(value)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
