"""Words of other trainers, and what they are called here: data, and how a word is looked up."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from lgrpo_lite.recipe.algorithm import Section
from lgrpo_lite.recipe.schema import Recipe, section_inside

MOST = 4  # settings that one word may mean

# TRL's, Unsloth's, Axolotl's and verl's settings, by their last part in small letters -> ours, as `key` or as
# `key=value`. What is the last part of a key of ours and of no other (`steps`) needs no row.
SETTINGS: dict[str, tuple[str, ...]] = {
    # the model
    "base_model": ("model.id",),
    "model_name": ("model.id",),
    "model_name_or_path": ("model.id",),
    "pretrained_model_name_or_path": ("model.id",),
    "model.name": ("model.id",),
    "model.path": ("model.id",),
    "load_in_4bit": ("model.weights=nf4",),
    "4bit": ("model.weights=nf4",),
    "qlora": ("model.weights=nf4",),
    "load_in_8bit": ("model.weights=int8",),
    "load_in_16bit": ("model.weights=bf16",),
    "bf16": ("model.weights=bf16",),
    "fp16": ("model.weights=fp16",),
    "dtype": ("model.weights",),
    "torch_dtype": ("model.weights",),
    "full_finetuning": ("model.lora=null",),
    "adapter": ("model.lora",),
    "peft_config": ("model.lora",),
    "lora_r": ("model.lora.rank",),
    "lora_rank": ("model.lora.rank",),
    "max_lora_rank": ("model.lora.rank",),
    "r": ("model.lora.rank", "algorithm.length_preference.r"),
    "lora_alpha": ("model.lora.alpha",),
    "lora_dropout": ("model.lora.dropout",),
    "target_modules": ("model.lora.targets",),
    "lora_target_modules": ("model.lora.targets",),
    "use_rslora": ("model.lora.rslora=true",),
    "peft_use_rslora": ("model.lora.rslora=true",),
    "max_prompt_length": ("model.max_prompt_tokens",),
    "max_completion_length": ("model.max_new_tokens",),
    "max_response_length": ("model.max_new_tokens",),
    "max_tokens": ("model.max_new_tokens",),
    "max_seq_length": ("model.max_prompt_tokens", "model.max_new_tokens"),
    "max_model_len": ("model.max_prompt_tokens", "model.max_new_tokens"),
    "max_length": ("model.max_prompt_tokens", "model.max_new_tokens"),
    "sequence_len": ("model.max_prompt_tokens", "model.max_new_tokens"),
    # data
    "dataset": ("data.train",),
    "datasets": ("data.train",),
    "dataset_name": ("data.train",),
    "train_dataset": ("data.train",),
    "train_files": ("data.train",),
    "eval_dataset": ("data.eval",),
    "test_datasets": ("data.eval",),
    "val_files": ("data.eval",),
    "val_set_size": ("data.holdout",),
    "test_size": ("data.holdout",),
    "chat_template": ("data.template",),
    "system_prompt": ("data.system",),
    # rollouts
    "num_generations": ("rollout.group_size",),
    "num_return_sequences": ("rollout.group_size",),
    "num_rollouts": ("rollout.group_size",),
    "rollout_n": ("rollout.group_size",),
    "train_batch_size": ("rollout.prompts_per_step",),
    "batch_size": ("rollout.prompts_per_step",),
    "per_device_train_batch_size": ("rollout.prompts_per_step",),
    "generation_batch_size": ("rollout.batch_rows",),
    "use_vllm": ("rollout.engine=vllm",),
    "fast_inference": ("rollout.engine=vllm",),
    "vllm_mode": ("rollout.engine=vllm", "rollout.engine=vllm-server"),
    "vllm_server_base_url": ("rollout.server.url",),
    "vllm_server_host": ("rollout.server.url",),
    "gpu_memory_utilization": ("rollout.vllm.kv_cache_gb",),
    "vllm_gpu_memory_utilization": ("rollout.vllm.kv_cache_gb",),
    # the objective
    "loss_type": ("algorithm.use",),
    "adv_estimator": ("algorithm.use",),
    "beta": ("algorithm.kl.coef",),
    "kl_coef": ("algorithm.kl.coef",),
    "init_kl_coef": ("algorithm.kl.coef",),
    "kl_loss_coef": ("algorithm.kl.coef",),
    "epsilon": ("algorithm.clip.low", "algorithm.clip.high"),
    "cliprange": ("algorithm.clip.low", "algorithm.clip.high"),
    "clip_ratio": ("algorithm.clip.low", "algorithm.clip.high"),
    "epsilon_low": ("algorithm.clip.low",),
    "epsilon_high": ("algorithm.clip.high",),
    "delta": ("algorithm.clip.dual",),
    "entropy_coeff": ("algorithm.entropy_coef",),
    "scale_rewards": ("algorithm.advantage",),
    "num_iterations": ("optim.updates_per_batch",),
    "ppo_epochs": ("optim.updates_per_batch",),
    "importance_sampling_level": ("algorithm.ratio",),
    "mask_truncated_completions": ("algorithm.mask_truncated",),
    "top_entropy_quantile": ("algorithm.top_entropy",),
    "vllm_importance_sampling_correction": ("algorithm.rollout_correction",),
    "vllm_importance_sampling_cap": ("algorithm.rollout_correction.cap",),
    # rewards
    "reward": ("rewards",),
    "reward_funcs": ("rewards",),
    "reward_function": ("rewards",),
    "reward_model": ("rewards",),
    "reward_weights": ("rewards.0.weight",),
    # the optimiser
    "lr": ("optim.lr",),
    "learning_rate": ("optim.lr",),
    "optimizer": ("optim.use",),
    "lr_scheduler": ("optim.scheduler",),
    "lr_scheduler_type": ("optim.scheduler",),
    "warmup_ratio": ("optim.warmup_steps",),
    "adam_beta1": ("optim.betas",),
    "adam_beta2": ("optim.betas",),
    "gradient_clipping": ("optim.max_grad_norm",),
    "grad_clip": ("optim.max_grad_norm",),
    # memory
    "gradient_accumulation_steps": ("memory.micro_tokens",),
    "micro_batch_size": ("memory.micro_tokens",),
    "gradient_checkpointing": ("memory.checkpointing",),
    "use_gradient_checkpointing": ("memory.checkpointing",),
    "activation_offloading": ("memory.offload_activations",),
    "packing": ("memory.layout",),
    "sample_packing": ("memory.layout",),
    # the run
    "max_steps": ("train.steps",),
    "total_training_steps": ("train.steps",),
    "epochs": ("train.steps",),
    "num_epochs": ("train.steps",),
    "num_train_epochs": ("train.steps",),
    "total_epochs": ("train.steps",),
    "save_steps": ("train.save_every",),
    "save_freq": ("train.save_every",),
    "saves_per_epoch": ("train.save_every",),
    "eval_steps": ("train.eval_every",),
    "test_freq": ("train.eval_every",),
    "evals_per_epoch": ("train.eval_every",),
    "save_total_limit": ("train.keep.last",),
    "metric_for_best_model": ("train.keep.metric",),
    "random_state": ("seed",),
    "data_seed": ("seed",),
    "temperature": ("rollout.temperature", "eval.temperature"),
    "report_to": ("log.wandb=true", "log.tensorboard=true", "log.trackio=true"),
    "use_wandb": ("log.wandb=true",),
    "wandb_project": ("log.wandb=true", "log.project"),
    "log_completions": ("log.completions_per_step",),
    "num_completions_to_print": ("log.completions_per_step",),
}

# where the word counts in something else than the key
_STEPS = "a run counts steps, not passes over the data"
NOTES: dict[str, str] = {
    "epochs": _STEPS,
    "num_epochs": _STEPS,
    "num_train_epochs": _STEPS,
    "total_epochs": _STEPS,
    "warmup_ratio": "in steps, not as a share",
    "gradient_accumulation_steps": "a step is cut into passes of so many tokens by itself",
    "micro_batch_size": "in tokens of a pass, not in rows",
    "per_device_train_batch_size": "in prompts, each with rollout.group_size answers",
    "train_batch_size": "in prompts, each with rollout.group_size answers",
    "batch_size": "in prompts, each with rollout.group_size answers",
    "gpu_memory_utilization": "in GiB, not as a share",
    "vllm_gpu_memory_utilization": "in GiB, not as a share",
    "scale_rewards": "mean_std divides by the group's deviation, mean_only does not",
    "max_seq_length": "the length is the two together",
    "max_model_len": "the length is the two together",
    "max_length": "the length is the two together",
    "sequence_len": "the length is the two together",
}

_PURE = "answers are drawn from the policy itself, or the ratio of the update would be another one's"
_ONE_CARD = "one process trains on one card"
_SERVED = "vLLM serves no adapter that"
# what users of other trainers will try and no recipe has: (why, what there is instead)
NOT_HERE: dict[str, tuple[str, str]] = {
    "dora": ("vLLM serves no DoRA adapter, so none is trained here", "model.lora.rank gives an adapter more"),
    "use_dora": (
        "vLLM serves no DoRA adapter, so none is trained here",
        "model.lora.rank gives an adapter more",
    ),
    "modules_to_save": (
        f"{_SERVED} replaces whole modules, so none is trained here",
        "model.lora.targets names layers; model.lora=null trains all parameters",
    ),
    "bias": (f"{_SERVED} has biases, so none is trained here", "model.lora.rank gives an adapter more"),
    "top_p": (_PURE, "rollout.temperature"),
    "top_k": (_PURE, "rollout.temperature"),
    "min_p": (_PURE, "rollout.temperature"),
    "repetition_penalty": (_PURE, "rollout.temperature"),
    "deepspeed": (_ONE_CARD, "`lgrpo-lite plan RECIPE --fit` finds settings that fit it"),
    "fsdp": (_ONE_CARD, "`lgrpo-lite plan RECIPE --fit` finds settings that fit it"),
    "num_processes": (_ONE_CARD, "`lgrpo-lite plan RECIPE --fit` finds settings that fit it"),
    "tensor_parallel_size": (_ONE_CARD, "rollout.engine=vllm-server samples on cards of its own"),
    "vllm_tensor_parallel_size": (_ONE_CARD, "rollout.engine=vllm-server samples on cards of its own"),
    "logging_steps": ("every step is logged", "`lgrpo-lite watch RUN` shows them"),
    "output_dir": ("where runs are kept is no setting of one", "--runs DIR --name NAME"),
    "run_name": ("the name of a run is no setting of it", "--name NAME"),
    "resume_from_checkpoint": ("going on is no setting", "--name NAME --resume auto"),
    "critic": ("no algorithm here trains a critic", "algorithm.use=vineppo has values by sampling"),
    "vf_coef": ("no algorithm here trains a critic", "algorithm.use=vineppo has values by sampling"),
    "attn_implementation": ("attention is chosen by the model and the layout", "memory.layout"),
    "flash_attention": ("attention is chosen by the model and the layout", "memory.layout"),
    "device": ("a GPU is used where there is one", "`lgrpo-lite doctor` says what was found"),
    "device_map": ("a GPU is used where there is one", "`lgrpo-lite doctor` says what was found"),
}

_TWO_OF_THAT_NAME = (
    "λ-GRPO is two papers: with a learned λ for long and short answers (arXiv 2510.06870) it is"
    " length_preference here, by process sets (arXiv 2509.21154) prefix_share"
)
_TRACE = "GRPO-λ, eligibility traces over tokens (arXiv 2510.00194), is trace here"
_CRITIC = (
    "PPO trains a critic, and none is trained here: grpo takes the mean of a group for one,"
    " vineppo (arXiv 2410.01679) values by sampling"
)
_PAIRS = "it learns from pairs of answers or from written ones; here answers are sampled and rewarded"
_BASELINE = "a policy gradient against the other answers of the group is rloo here"
# names of algorithms, in small letters and digits alone -> (in a sentence, the rows that are meant)
ALGORITHMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "lambdagrpo": (_TWO_OF_THAT_NAME, ("length_preference", "prefix_share")),
    "λgrpo": (_TWO_OF_THAT_NAME, ("length_preference", "prefix_share")),
    "lambda": (f"{_TWO_OF_THAT_NAME}; {_TRACE}", ("length_preference", "prefix_share", "trace")),
    "λ": (f"{_TWO_OF_THAT_NAME}; {_TRACE}", ("length_preference", "prefix_share", "trace")),
    "grpolambda": (_TRACE, ("trace",)),
    "grpoλ": (_TRACE, ("trace",)),
    "ppo": (_CRITIC, ("grpo", "vineppo")),
    "actorcritic": (_CRITIC, ("grpo", "vineppo")),
    "a2c": (_CRITIC, ("grpo", "vineppo")),
    "reinforce": (_BASELINE, ("rloo",)),
    "reinforceplusplus": (_BASELINE, ("rloo",)),
    "remax": (_BASELINE, ("rloo",)),
    "dpo": (_PAIRS, ("grpo",)),
    "orpo": (_PAIRS, ("grpo",)),
    "kto": (_PAIRS, ("grpo",)),
    "sft": (_PAIRS, ("grpo",)),
}


def plain(name: str) -> str:
    """A name without what people write in different ways: case, dashes, dots, blanks."""
    return re.sub(r"[^a-z0-9λ]", "", name.casefold().replace("+", "plus"))


def ours(word: str) -> tuple[str, ...]:
    """The settings that a word of another trainer, or the last part of a key of ours, means; () if none."""
    return _row(SETTINGS, word) or keys_ending(_spelled(word).rpartition(".")[2])


def is_foreign(word: str) -> bool:
    """Whether other trainers say so."""
    return _row(SETTINGS, word) is not None


def note(word: str) -> str:
    """What else there is to say of `ours(word)`."""
    return _row(NOTES, word) or ""


def not_here(word: str) -> tuple[str, str] | None:
    """(why no recipe has it, what there is instead) of a setting of other trainers."""
    return _row(NOT_HERE, word)


def _row(table: Mapping[str, Any], word: str) -> Any:
    """Of the whole word, else of its last part."""
    word = _spelled(word)
    return table.get(word) or table.get(word.rpartition(".")[2])


def _spelled(word: str) -> str:
    return word.casefold().replace("-", "_").strip()


def called(key: str) -> list[str]:
    """What other trainers call a setting of ours."""
    return [word for word, meant in SETTINGS.items() if any(m.partition("=")[0] == key for m in meant)]


def keys_ending(leaf: str) -> tuple[str, ...]:
    """The key of ours that is this, else those whose last part it is; () where more than MOST are."""
    if leaf in all_keys():
        return (leaf,)
    found = tuple(key for key in all_keys() if key.rpartition(".")[2] == leaf)
    return found if len(found) <= MOST else ()


@cache
def all_keys() -> tuple[str, ...]:
    """Every dotted key of a recipe; an entry of a list is its first, `rewards.0.use`."""
    return tuple(_keys(Recipe, ""))


def _keys(section: type[Section], prefix: str) -> Iterable[str]:
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        inner = section_inside(field.annotation)
        if inner is not None:
            entry = "0." if _is_list(field.annotation) else ""
            yield from _keys(inner, f"{key}.{entry}")


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is list
