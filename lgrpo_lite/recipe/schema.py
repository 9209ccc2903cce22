"""The schema of a recipe. Closed: an unknown key is an error with the nearest name and its file:line.

Order of truth: the defaults below < the recipe file < `key=value` on the command line. What an algorithm's
name stands for is a row of `objective.named.NAMED`, laid under the keys of `algorithm` that the recipe sets.
No torch here.
"""

from typing import Any, Literal

import yaml
from pydantic import Field, PrivateAttr

from lgrpo_lite.recipe.algorithm import Algorithm, Section
from lgrpo_lite.recipe.bounds import (
    AdamRate,
    Answers,
    Decays,
    FolderName,
    Gigabytes,
    Seconds,
    Seed,
    Sequences,
    Steps,
    Temperature,
    Tokens,
)
from lgrpo_lite.recipe.data import Data
from lgrpo_lite.recipe.data import Source as Source  # of which Data is made
from lgrpo_lite.recipe.marks import Marks
from lgrpo_lite.recipe.reward import Reward


class About(Section):
    name: FolderName = Field(default="run", description="run folders are named after it")
    title: str = ""
    min_vram_gb: Gigabytes | None = Field(
        default=None, description="GPU memory the recipe is written for; null runs on any machine"
    )
    verified: str = Field(
        default="no", description="where and when this recipe was run in full; 'no' if it was not"
    )


class Lora(Section):
    rank: int = Field(default=16, ge=1, le=4096, description="of the matrices A and B")
    alpha: int = Field(default=32, ge=1, le=2**16, description="the adapter is scaled by alpha/rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = Field(default="all-linear", description="module names, or all-linear")
    rslora: bool = Field(default=False, description="scale by alpha/sqrt(rank) instead of alpha/rank")


class Model(Section):
    id: str = Field(
        description=(
            "Hub id, a folder, a GGUF file (its path, or owner/repo/file.gguf of the Hub), or builtin:NAME"
            " for a model inside the package"
        )
    )
    revision: str | None = Field(default=None, description="commit on the Hub")
    weights: Literal["nf4", "int8", "bf16", "fp16", "fp32"] = Field(
        default="bf16", description="how the base weights are held; nf4 and int8 by bitsandbytes"
    )
    lora: Lora | None = Field(default_factory=Lora, description="null trains all parameters")
    max_prompt_tokens: Tokens = Field(default=512, description="longer prompts are left out, with a count")
    max_new_tokens: Tokens = Field(default=512, description="an answer is cut here")
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="CPU threads; 1 is fastest for tiny models; null leaves torch's",
    )


class Vllm(Section):
    """vLLM inside this process; read by engine=vllm, and but for share_weights by engine=unsloth."""

    share_weights: bool = Field(
        default=True,
        description=(
            "the trainer stands on vLLM's own base weights; false: a second copy, which takes more memory"
        ),
    )
    kv_cache_gb: Gigabytes | None = Field(
        default=None, description="GiB for keys and values; null: by what is free"
    )
    max_sequences: Sequences | None = Field(
        default=None, description="answers sampled at once; null: all of a step, at most 256"
    )
    cuda_graphs: bool = Field(
        default=True, description="false starts faster and samples slower; a CPU has none"
    )


class Server(Section):
    """A running `vllm serve`; read by engine=vllm-server."""

    url: str = Field(default="http://127.0.0.1:8000", description="its address, without /v1")
    model: str | None = Field(default=None, description="name of the base model there; null is model.id")
    api_key_env: str | None = Field(
        default=None, description="environment variable that holds the key; null sends none"
    )
    timeout: Seconds = Field(default=600.0, description="seconds a request may take")
    parallel: int = Field(default=64, ge=1, le=4096, description="requests at once")
    adapter_dir: str | None = Field(
        default=None,
        description="written here and read by the server; null: $TMPDIR or /dev/shm, for one machine",
    )


class Curriculum(Section):
    """Which prompts come next; see data/curriculum.py."""

    use: Literal["none", "difficulty_pool"] = Field(
        default="none",
        description="none: every prompt once an epoch; difficulty_pool: those solved sometimes, more often",
    )
    rate: float = Field(
        default=0.5, gt=0, le=1, description="how far a group's mean reward moves its prompt's solve rate"
    )
    ordered_every: int = Field(
        default=8,
        ge=1,
        le=10**9,
        description="of so many draws one is the next in the order of use=none; 1: all",
    )


class Rollout(Section):
    engine: str = Field(
        default="auto", description="who samples; auto: vllm where it can run, else transformers"
    )
    prompts_per_step: Sequences = Field(default=16, description="P")
    group_size: Answers = Field(default=8, description="G, completions a prompt")
    temperature: Temperature = Field(
        default=1.0, gt=0, description="used for sampling and for every log-prob of the update"
    )
    stop: list[str] | None = Field(
        default=None, description="texts that end an answer; their tokens belong to it"
    )
    stop_shown: bool = Field(
        default=True, description="the rewards read the text that ended it too; false: the answer before it"
    )
    max_redraw: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="extra rounds of sampling when algorithm.admit leaves too few groups",
    )
    batch_rows: Sequences = Field(
        default=256, description="sequences generated at once by the transformers engine"
    )
    curriculum: Curriculum = Curriculum()
    vllm: Vllm = Vllm()
    server: Server = Server()


class Optim(Section):
    use: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        default="adamw",
        description=(
            "of the policy; 8bit: quantised moments, paged: moments may move to CPU memory (bitsandbytes)"
        ),
    )
    lr: AdamRate = Field(default=1e-5, description="learning rate of the policy's AdamW")
    scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after the warm-up"
    )
    warmup_steps: int = Field(default=0, ge=0, le=10**7, description="linear from 0")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="of the policy")
    betas: Decays = Field(default=(0.9, 0.99), description="decay of the first and the second moment")
    max_grad_norm: float = Field(default=1.0, gt=0, description="of the policy; λ is not part of it")
    updates_per_batch: int = Field(
        default=1, ge=1, le=1000, description="μ; above 1 an extra pass records the old log-probs"
    )


class Memory(Section):
    micro_tokens: int = Field(
        default=16384, ge=1, le=2**30, description="tokens of one forward-backward pass, padding included"
    )
    layout: Literal["auto", "rows", "packed", "shared"] = Field(
        default="auto",
        description=(
            "rows (padded), packed (end to end), shared (packed, equal prompts once); auto: the cheapest of"
            " those that are right for this model"
        ),
    )
    logprob_chunk: int | None = Field(
        default=None,
        ge=1,
        le=2**24,
        description=(
            "positions whose logits are held at once, for 8192 tokens of vocabulary; null: by free memory"
        ),
    )
    checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description=(
            "recompute layers in the backward pass: all, none, or as many as the free memory asks for"
        ),
    )
    offload_activations: bool = Field(
        default=False, description="keep what the backward pass needs in CPU memory; slower"
    )


class Keep(Section):
    last: int = Field(default=2, ge=1, le=10**5, description="newest checkpoints kept")
    best: int = Field(default=1, ge=0, le=1, description="1: also keep the one with the best evaluation")
    metric: Literal["avg", "pass", "maj", "greedy"] = Field(
        default="avg", description="by which it is the best: avg@k, pass@k, maj@k, or the greedy answer"
    )


class Train(Section):
    steps: Steps = Field(default=200, description="rounds of sampling and updating")
    save_every: Steps = Field(default=20, description="steps between checkpoints")
    eval_every: Steps | None = Field(default=None, description="null: only before and after")
    keep: Keep = Keep()
    time_limit: float | None = Field(
        default=None, gt=0, le=10**7, description="minutes; the run then saves and exits 75"
    )


class Eval(Section):
    k: Answers = Field(default=1, description="samples a problem")
    temperature: Temperature = Field(
        default=1.0, ge=0, description="of the evaluation's samples; 0 is greedy, with k=1"
    )
    greedy: bool = Field(default=True, description="also score one greedy answer a problem")


class Hub(Section):
    """Where `export RUN hub` uploads to."""

    repo: str | None = Field(default=None, description="owner/name on the Hub")
    private: bool = Field(
        default=False, description="of a repository that is made; a public one that exists is refused"
    )
    holds: list[Literal["merged", "adapter", "gguf", "lora-gguf", "ollama"]] = Field(
        default_factory=lambda: ["merged"],
        min_length=1,
        description="what goes up; the first at the top of the repository, others in folders of their name",
    )


class Export(Section):
    formats: list[Literal["adapter", "merged", "gguf", "lora-gguf", "ollama", "hub"]] = Field(
        default_factory=lambda: ["adapter", "merged"], description="made at the end of a run"
    )
    base: Literal["auto", "original", "dequantized"] = Field(
        default="auto",
        description=(
            "what a 4-bit policy is merged into; auto: the weights it was trained on, dequantized; original:"
            " the 16-bit ones"
        ),
    )
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto",
        description=(
            "of merged weights; auto: what the policy computes with, and as given what did not learn"
        ),
    )
    quant: list[Literal["f16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]] = Field(
        default_factory=lambda: ["Q8_0", "Q4_K_M"],
        min_length=1,
        description="GGUF files that are kept; ollama takes the first",
    )
    eval: int = Field(
        default=0,
        ge=0,
        le=10**6,
        description="held-out problems that each GGUF file solves through llama.cpp",
    )
    llama_cpp: str | None = Field(
        default=None,
        description="folder of llama.cpp, for its conversion scripts; null: llama-cpp-python's are fetched",
    )
    hub: Hub = Hub()


class Safety(Section):
    sync_proof_every: int = Field(
        default=20,
        ge=0,
        le=10**7,
        description="steps between proofs that rollouts come from this policy, after the first two; 0: never",
    )
    baseline_check: bool = Field(
        default=True,
        description=(
            "before the first step, stop a run whose rewards would teach it nothing; false trains all the"
            " same"
        ),
    )
    reward_workers: int | None = Field(
        default=None, ge=1, le=1024, description="processes that score; null: one for each CPU, at most 16"
    )
    reward_memory_gb: Gigabytes = Field(
        default=4.0, description="GiB one of them may take, with all that it starts"
    )


class Log(Section):
    completions_per_step: int = Field(
        default=4, ge=0, le=10**5, description="sampled answers kept per step; 0 keeps none"
    )
    tensorboard: bool = Field(default=False, description="curves as TensorBoard events, in the run folder")
    wandb: bool = Field(
        default=False,
        description="curves to Weights & Biases; WANDB_MODE=offline keeps them in the run folder",
    )
    trackio: bool = Field(
        default=False, description="curves to trackio; on this machine unless TRACKIO_SPACE_ID names a Space"
    )
    project: str = Field(
        default="lgrpo-lite", min_length=1, description="under which wandb and trackio keep them"
    )


class Recipe(Section):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    recipe: About = About()
    seed: Seed = 0
    model: Model
    data: Data
    rollout: Rollout = Rollout()
    algorithm: Algorithm = Algorithm()
    rewards: list[Reward] = Field(default_factory=lambda: [Reward()], min_length=1)
    optim: Optim = Optim()
    memory: Memory = Memory()
    train: Train = Train()
    eval: Eval = Eval()
    export: Export = Export()
    safety: Safety = Safety()
    log: Log = Log()

    _marks: Marks = PrivateAttr(default_factory=Marks)

    def where(self, key: str) -> str:
        """Where a dotted key was set: 'my.yaml:31', 'command line, key=value', or that it is the default."""
        return self._marks.where(tuple(key.split(".")))

    def to_yaml(self, *, ascii_only: bool = False) -> str:
        """All settings, defaults included, in the form `load_recipe` reads."""
        settings = self.model_dump(mode="json", by_alias=True)
        return yaml.safe_dump(settings, sort_keys=False, allow_unicode=not ascii_only)


def section_inside(annotation: Any) -> type[Section] | None:
    """The section a field holds, alone, optionally or in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        section = section_inside(argument)
        if section:
            return section
    return None
