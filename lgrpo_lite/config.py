"""The schema of a recipe. Closed: an unknown key is an error that names the nearest one and its file:line. No torch here.

Order of truth: the defaults below < the recipe file < `key=value` on the command line. What an algorithm's name stands for
is a row of `objective.named.NAMED`, laid under the keys of `algorithm` that the recipe sets.
"""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from lgrpo_lite.yaml_marks import Marks


class Section(BaseModel):
    """Base of every section: closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False)


class About(Section):
    name: str = "run"
    title: str = ""
    min_vram_gb: float | None = Field(default=None, description="GPU memory the recipe is written for; null runs on any machine")
    verified: str = Field(default="no", description="where and when this recipe was run in full; 'no' if it was not")


class Lora(Section):
    rank: int = Field(default=16, ge=1, description="of the matrices A and B")
    alpha: int = Field(default=32, ge=1, description="the adapter is scaled by alpha/rank")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | list[str] = Field(default="all-linear", description="module names, or all-linear")
    rslora: bool = Field(default=False, description="scale by alpha/sqrt(rank) instead of alpha/rank")


class Model(Section):
    id: str = Field(description="Hub id, a folder, or builtin:NAME for a model inside the package")
    revision: str | None = Field(default=None, description="commit on the Hub")
    weights: Literal["nf4", "bf16", "fp32"] = Field(default="bf16", description="how the base weights are held")
    lora: Lora | None = Field(default_factory=Lora, description="null trains all parameters")
    max_prompt_tokens: int = Field(default=512, ge=1, description="longer prompts are left out, with a count")
    max_new_tokens: int = Field(default=512, ge=1, description="an answer is cut here")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; 1 is fastest for tiny models; null leaves torch's")


class Source(Section):
    """Questions and gold answers: `path` (a local JSONL file) wins over `hf` (the Hub), `task` is generated."""

    path: str | None = Field(default=None, description="local JSONL file, relative to the current folder")
    hf: str | None = Field(default=None, description="data set on the Hub")
    config: str | None = Field(default=None, description="configuration of the data set on the Hub")
    split: str = Field(default="train", description="of the data set; a task has train and heldout")
    task: Literal["arithmetic"] | None = Field(default=None, description="generated problems")
    prompt: str = Field(default="question", description="column of the question")
    answer: str = Field(default="answer", description="column of the gold answer")
    answer_extract: Literal["plain", "gsm8k", "boxed"] = Field(default="plain", description="how the gold answer is cut out")
    limit: int | None = Field(default=None, ge=1, description="use at most this many rows")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class Data(Section):
    train: Annotated[list[Source], BeforeValidator(_as_list)] = Field(min_length=1)
    eval: Annotated[list[Source], BeforeValidator(_as_list)] = Field(default_factory=list)
    template: Literal["chat", "plain"] = Field(default="chat", description="plain: the question and a line break")
    system: str | None = Field(default=None, description="system message, put before every question")


class Rollout(Section):
    engine: str = Field(default="auto", description="who samples; auto is the fastest in this version")
    prompts_per_step: int = Field(default=16, ge=1, description="P")
    group_size: int = Field(default=8, ge=1, description="G, completions a prompt")
    temperature: float = Field(default=1.0, gt=0, description="used for sampling and for every log-prob of the update")
    max_redraw: int = Field(default=2, ge=0, description="extra rounds of sampling when algorithm.admit leaves too few groups")
    batch_rows: int = Field(default=256, ge=1, description="sequences generated at once by the transformers engine")


class Clip(Section):
    low: float = Field(default=0.2, ge=0)
    high: float = Field(default=0.2, ge=0)


class Kl(Section):
    coef: float = Field(default=0.0, ge=0, description="β; 0 asks for no reference pass")
    estimator: Literal["k1", "k2", "k3"] = "k3"
    weighted: bool = Field(default=False, description="multiply the KL term by the token weights too")


class LengthPreference(Section):
    """λ-GRPO, arXiv:2510.06870."""

    lambda_init: float = 0.0
    r: float = Field(default=1 / 9, gt=0, description="reduction of the standardised length, h = 1 + r z")
    lr: float = Field(default=0.1, ge=0, description="of λ's own SGD")
    clamp: tuple[float, float] | None = Field(default=(-5.0, 5.0), description="bounds of λ after a step; null as in the paper")
    freeze: bool = Field(default=False, description="keep λ at lambda_init")
    normalizer: Literal["softmax", "power"] = Field(default="softmax", description="softmax: f = G softmax(h^λ), the paper's")
    length_std: Literal["population", "sample"] = "population"


class Trace(Section):
    """GRPO-λ, arXiv:2510.00194."""

    lambda_: float = Field(default=0.99, ge=0, le=1, alias="lambda", description="the decay of a trace is γλ")
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount γ")
    style: Literal["recent", "both"] = Field(default="both", description="W[t,j]: recent b^(t-j), both max(b^(t-j), b^j)")
    mode: Literal["trace", "weight", "terminal"] = Field(
        default="trace", description="where the trace acts; trace is the paper's"
    )
    floor: float = Field(default=0.0, ge=0, le=1, description="lower bound of a trace weight")
    normalize: Literal["none", "mean"] = Field(default="none", description="mean: divide by a token's mean weight in its answer")


class RolloutCorrection(Section):
    cap: float = Field(default=2.0, gt=0, description="bound of the weight π_trainer/π_sampler of a token")


class Algorithm(Section):
    """`use` is a row of NAMED; any other key replaces that part of the row, `null` switches it off."""

    use: str = "length_preference"
    advantage: Literal["mean_std", "mean_only"] = Field(default="mean_std", description="R - mean, divided by std or not")
    advantage_std: Literal["sample", "population"] = Field(default="sample", description="standard deviation of mean_std")
    advantage_floor: float | None = Field(default=None, le=0, description="negative advantages are raised to this")
    admit: Literal["all", "varied"] = Field(default="all", description="varied: redraw groups whose rewards are all equal")
    mask_truncated: bool = Field(default=False, description="answers cut at max_new_tokens carry no loss")
    clip: Clip = Clip()
    kl: Kl = Kl()
    reduce: Literal["sequence_mean", "token_mean", "group_token_mean", "constant"] = Field(
        default="sequence_mean", description="how token terms add up to the loss"
    )
    reduce_constant: int | None = Field(default=None, ge=1, description="M of reduce=constant; null is model.max_new_tokens")
    length_preference: LengthPreference | None = None
    trace: Trace | None = None
    prefix_share: bool = Field(default=False, description="divide a token's loss by its process-set size, arXiv:2509.21154")
    rollout_correction: RolloutCorrection | None = RolloutCorrection()


class Reward(Section):
    use: str = Field(default="numeric", description="a name of the rewards table, or file.py:function")
    weight: float = Field(default=1.0, description="in the weighted sum")
    extract: Literal["final", "gsm8k", "boxed"] = Field(
        default="final", description="where the answer stands; final: anywhere usual"
    )
    pattern: str | None = Field(default=None, description="regular expression for `format`")


class Optim(Section):
    lr: float = Field(default=1e-5, gt=0, description="of the policy's AdamW")
    scheduler: Literal["constant", "linear", "cosine"] = Field(default="constant", description="after the warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="linear from 0")
    weight_decay: float = Field(default=0.0, ge=0, description="of the policy")
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = Field(default=1.0, gt=0, description="of the policy; λ is not part of it")
    updates_per_batch: int = Field(default=1, ge=1, description="μ; above 1 an extra pass records the old log-probs")


class Memory(Section):
    micro_tokens: int = Field(default=16384, ge=1, description="padded tokens of one forward-backward pass")
    logprob_chunk: int = Field(default=4096, ge=1, description="positions whose logits are held at once")
    checkpointing: bool = Field(default=False, description="recompute each layer in the backward pass")


class Keep(Section):
    last: int = Field(default=2, ge=1, description="newest checkpoints kept")
    best: int = Field(default=1, ge=0, le=1, description="1: also keep the one with the best evaluation")


class Train(Section):
    steps: int = Field(default=200, ge=1, description="rounds of sampling and updating")
    save_every: int = Field(default=20, ge=1, description="steps between checkpoints")
    eval_every: int | None = Field(default=None, ge=1, description="null: only before and after")
    keep: Keep = Keep()
    time_limit: float | None = Field(default=None, gt=0, description="minutes; the run then saves and exits 75")


class Eval(Section):
    k: int = Field(default=1, ge=1, description="samples a problem")
    temperature: float = Field(default=1.0, gt=0, description="of the evaluation's samples")
    greedy: bool = Field(default=True, description="also score one greedy answer a problem")


class Export(Section):
    formats: list[Literal["adapter", "merged"]] = Field(default_factory=lambda: ["adapter", "merged"])
    base: Literal["auto", "original", "dequantized"] = "auto"


class Log(Section):
    completions_per_step: int = Field(default=4, ge=0, description="sampled answers kept per step; 0 keeps none")


class Recipe(Section):
    schema_version: Literal[1] = Field(default=1, alias="schema")
    recipe: About = About()
    seed: int = Field(default=0, ge=0)
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
    log: Log = Log()

    _marks: Marks = PrivateAttr(default_factory=Marks)

    def where(self, key: str) -> str:
        """Where a dotted key was set: 'my.yaml:31', 'command line, key=value', or that it is the default."""
        return self._marks.where(tuple(key.split(".")))

    def to_yaml(self) -> str:
        """All settings, defaults included, in the form `load_recipe` reads."""
        return yaml.safe_dump(self.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def section_inside(annotation: Any) -> type[Section] | None:
    """The section a field holds, alone, optionally or in a list; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for a in getattr(annotation, "__args__", ()) if (found := section_inside(a))), None)
