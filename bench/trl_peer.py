"""The update of TRL 1.16's GRPOTrainer on given answers, for benchmarks: no sampling,
no rewards, no loop around it.

There is one log-prob path and no option for it: `add_fused_lm_head` patches the causal LM, and
`ChunkedLogProbFunction` runs the head in tiles of 4096 tokens × 32768 tokens of the vocabulary, on every
device. It costs three products with the vocabulary (forward, its recomputation, the gradient of the hidden
states), and the forward also folds an entropy, always, for a metric. On CUDA only the tokens of completions
reach the head; on a CPU each position of the padded batch does, prompts included.

Its sampler is `generate` and one generation batch is one optimisation step, so it makes no pass for old
log-probs: the ratio is that to the detached log-probs, and the sampler's log-probs go unused. Run as a
script, it checks itself against plain torch.
"""

import copy
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.kernels import ChunkedLogProbFunction
from trl.trainer import utils as trl_utils

# prompt, completion, the sampler's log-probs, advantage
Answer = tuple[list[int], list[int], list[float], float]


class GivenAnswers(GRPOTrainer):
    """Takes answers where TRL would sample and score them; it shuffles, splits and trains them as ever."""

    def _generate_and_score_completions(self, inputs: list[Answer]) -> dict[str, Tensor]:
        def padded(rows: list[Tensor], value: int, side: str) -> Tensor:
            return trl_utils.pad(rows, value, side, self.pad_to_multiple_of).to(self.accelerator.device)

        prompts, completions = ([torch.tensor(answer[part]) for answer in inputs] for part in (0, 1))
        completion_mask = padded([torch.ones_like(ids) for ids in completions], 0, "right")
        return {
            "prompt_ids": padded(prompts, self._tokenizer.pad_token_id, "left"),
            "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
            "completion_ids": padded(completions, self._tokenizer.pad_token_id, "right"),
            "completion_mask": completion_mask,
            "advantages": torch.tensor([answer[3] for answer in inputs], device=self.accelerator.device),
            "num_items_in_batch": self.accelerator.gather(completion_mask.sum()).sum(),
        }

    def _send_telemetry(self) -> None:
        """A benchmark asks no server."""


class TrlUpdate:
    """One GRPOTrainer with its defaults, but for bf16 and gradient checkpointing
    off and a constant learning rate.

    The trainer patches the model's forward and resets torch's global seed, from which
    every update draws its shuffle.
    """

    def __init__(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, *, temperature: float = 1.0, learning_rate: float = 1e-5,
        per_device_rows: int, gradient_checkpointing: bool = False, **grpo_config_overrides: Any,
    ) -> None:  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        settings = {
            "output_dir": self._folder.name, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(), "bf16": False, "gradient_checkpointing": gradient_checkpointing,
            "temperature": temperature, "learning_rate": learning_rate, "lr_scheduler_type": "constant", "max_grad_norm": 1.0,
            "per_device_train_batch_size": per_device_rows, "shuffle_dataset": False, "beta": 0.0, "loss_type": "dapo",
            # `update` knows the number of rows
            "num_iterations": 1, "gradient_accumulation_steps": 2, "num_generations": 2,
        }  # fmt: skip
        self.trainer = GivenAnswers(
            model=model, args=GRPOConfig(**(settings | grpo_config_overrides)), processing_class=tokenizer,
            reward_funcs=lambda completions, **_: [0.0] * len(completions), train_dataset=Dataset.from_dict({"prompt": ["", ""]}),
        )  # fmt: skip
        if gradient_checkpointing:  # `train` does so before its loop
            self.trainer.model.gradient_checkpointing_enable(self.trainer.args.gradient_checkpointing_kwargs)
        self.model, _ = self.trainer._prepare_for_training(1, None, None)

    def update(self, answers: list[Answer]) -> dict[str, float]:
        """One optimisation step on all the answers, as in the body of `Trainer._run_epoch`."""
        trainer, args = self.trainer, self.trainer.args
        steps, rest = divmod(len(answers), args.per_device_train_batch_size)
        if rest or not steps:  # TRL would drop the rest without a word
            raise ValueError(
                f"{len(answers)} answers are no multiple of {args.per_device_train_batch_size} rows"
            )
        args.gradient_accumulation_steps = args.steps_per_generation = (
            trainer.current_gradient_accumulation_steps
        ) = steps
        trainer._step, trainer._buffered_inputs = 0, None
        loss = torch.zeros((), device=args.device)
        for step in range(1, steps + 1):
            trainer.accelerator.gradient_state._set_sync_gradients(step == steps)
            loss += trainer.training_step(self.model, answers, None)
        grad_norm = trainer._get_grad_norm(
            self.model, trainer._clip_grad_norm(self.model) if args.max_grad_norm > 0 else None
        )
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        self.model.zero_grad()
        trainer._metrics["train"].clear()  # `log` does, every few steps
        return {"loss": float(loss), "grad_norm": float(grad_norm)}


def head_function() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """`f(hidden[N, D], weight[V, D], ids[N], temperature)`: log-probs [N] as
    `GRPOTrainer` gets them, entropy included.
    """

    def head(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float) -> Tensor:
        # tile, softcap, scale, outputs
        shape = (trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy"))
        return ChunkedLogProbFunction.apply(hidden, weight, None, ids, temperature, *shape)[0]

    return head


def plain_loss(model: Any, answers: list[Answer], temperature: float) -> Tensor:
    """The token-mean clipped loss at ratio 1, answer by answer, with whole logits and no padding."""
    losses = []
    for prompt, completion, _, advantage in answers:
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
        logps = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])
        ratio = (logps - logps.detach()).exp()
        losses.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
    return torch.cat(losses).mean()


def main() -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(
        Path(__file__).parents[1] / "lgrpo_lite" / "models" / "tiny-math"
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    # two vocabulary tiles
    config = Qwen2Config(vocab_size=33_000, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
    base = get_peft_model(
        Qwen2ForCausalLM(config), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]])
    advantages = (
        ((rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten().tolist()
    )
    prompts, lengths = [torch.randint(256, (n,)).tolist() for n in (9, 14)], [5, 40, 17, 29, 33, 8, 21, 12]
    answers = [
        (prompts[i // 4], torch.randint(256, (n,)).tolist(), [0.0] * n, advantages[i])
        for i, n in enumerate(lengths)
    ]
    (goal := plain_loss(plain := copy.deepcopy(base), answers, 0.7)).backward()
    for rows, checkpoints in ((8, False), (2, False), (1, False), (2, True)):
        settings = {
            "per_device_rows": rows,
            "gradient_checkpointing": checkpoints,
            "temperature": 0.7,
            "max_grad_norm": 1e9,
        }
        peer = TrlUpdate(copy.deepcopy(base), tokenizer, **settings)
        peer.model.zero_grad = lambda: None  # leaves the gradients there
        loss = peer.update(answers)["loss"]
        pairs = [
            (p.grad, q.grad)
            for p, q in zip(peer.model.parameters(), plain.parameters(), strict=True)
            if q.requires_grad
        ]
        worst = max(float((found - expected).abs().max() / expected.abs().max()) for found, expected in pairs)
        del peer.model.zero_grad  # the class has its own
        took = 1000 * timeit.timeit(lambda peer=peer: peer.update(answers), number=3) / 3
        line = f"{rows} rows, checkpoints {checkpoints!s:5}: {took:4.0f} ms an update, loss {loss:.6f} (plain {goal.item():.6f})"
        print(f"{line}, max relative gradient difference {worst:.1e}")
    hidden, weight, ids = (
        torch.randn(50, 64, requires_grad=True),
        torch.randn(33_000, 64) / 8,
        torch.randint(33_000, (50,)),
    )
    gap = (
        head_function()(hidden, weight, ids, 0.7) - (hidden @ weight.T / 0.7).log_softmax(-1)[range(50), ids]
    )
    gaps = gap.abs().max().item(), torch.autograd.grad(gap.sum(), hidden)[0].abs().max().item()
    print("head: log-probs differ by {:.1e}, gradients by {:.1e}".format(*gaps))


if __name__ == "__main__":
    main()
