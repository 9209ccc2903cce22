"""The parts an algorithm is made of, as a recipe writes them. Part of the schema; no torch here.

`Algorithm` is the type of a row of `objective.named.NAMED`: every algorithm of the field is one value of it.
A part that is null is off. Which brick reads a part is said where the brick is (`objective/`, `rollout/`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from lgrpo_lite.errors import nearest
from lgrpo_lite.recipe.bounds import AdamRate, Answers, Tokens, bounded


@dataclass(frozen=True, slots=True)
class Brick:
    """What is true of an advantage or a surrogate whoever composes it. A function of a user's is an OWN."""

    compares_answers: bool = True  # an advantage: one answer alone has none
    trains_all: bool = False  # a surrogate: an answer without an advantage has a gradient too
    anchored: bool = (
        False  # a surrogate that reads the section `residual`: it pulls to an anchor, about a centre
    )


OWN = Brick(trains_all=True)
# The one table of names of each kind; `objective.advantage` and `objective.surrogate`
# have a function for every row.
ADVANTAGES = {
    "mean_std": Brick(),
    "mean_only": Brick(),
    "leave_one_out": Brick(),
    "beta": Brick(),
    "reward": Brick(compares_answers=False),
    "value_cache": Brick(compares_answers=False),
    "next_value": Brick(compares_answers=False),
}
SURROGATES = {
    "clipped": Brick(),
    "unclipped": Brick(),
    "cispo": Brick(),
    "residual": Brick(trains_all=True, anchored=True),
}


class Section(BaseModel):
    """Base of every section: closed and immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )
    _bounded = field_validator("*")(bounded)


def _known(names: Mapping[str, Brick], value: str) -> str:
    if value in names or ".py:" in value:
        return value
    raise ValueError(f"one of {', '.join(names)}, or file.py:function{nearest(value, list(names))}")


class Clip(Section):
    low: float = Field(default=0.2, ge=0, description="ratios below 1-low are silenced for A < 0")
    high: float = Field(default=0.2, ge=0, description="ratios above 1+high are silenced for A > 0")
    dual: float | None = Field(
        default=None, gt=1, description="dual clip c: for A < 0 the gain is at least c·A"
    )


class Cispo(Section):
    """CISPO, arXiv:2506.13585; read by surrogate=cispo."""

    cap: float = Field(default=5.0, gt=0, description="bound of the ratio itself, ρ ≤ cap")
    floor: float | None = Field(default=None, ge=0, description="lower bound of the ratio; null: none")


class Shaped(Section):
    """Answers trained under another prompt than they were sampled with (RGR-GRPO, arXiv:2511.12344)."""

    gamma: float = Field(default=0.1, gt=0, lt=1, description="γ of π/(π+γ)")
    form: Literal["self", "old"] = Field(
        default="self", description="π/(π+γ), or π/(π_old+γ) as the paper prints it"
    )


class Residual(Section):
    """(slope · log-ratio - target · A + centre)², read by surrogate=residual: REBEL, A*-PO and FlowRL."""

    anchor: Literal["old", "ref"] = Field(
        default="ref", description="the log-ratio is against the sampler or the reference"
    )
    slope: float = Field(default=1.0, gt=0, description="factor of the log-ratio")
    target: float = Field(default=1.0, gt=0, description="factor of the advantage (FlowRL's β, REBEL's η)")
    length_norm: bool = Field(
        default=False, description="the log-ratio is a mean over the answer's tokens, not a sum"
    )
    centre: Literal["none", "group", "learned"] = Field(
        default="none",
        description="group: the group's mean residual is taken off; learned: log Z by a head on the prompt",
    )
    pairs: bool = Field(
        default=False, description="all pairs of a group: with centre=group a factor 2G/(G-1)"
    )
    is_clip: float | None = Field(
        default=None, gt=0, lt=1, description="weight: the answer's ratio, clipped to 1±is_clip"
    )
    is_form: Literal["clipped", "released"] = Field(
        default="clipped", description="released: FlowRL's first code, clipped times unclipped ratio"
    )
    log_z_lr: AdamRate | None = Field(
        default=None, description="AdamW rate of the log Z head; null is optim.lr"
    )


class Kl(Section):
    coef: float = Field(default=0.0, ge=0, description="β; 0 asks for no reference pass")
    estimator: Literal["k1", "k2", "k3"] = "k3"
    weighted: bool = Field(default=False, description="multiply the KL term by the token weights too")
    max: float | None = Field(default=None, gt=0, description="upper bound of a token's KL (VinePPO: 10)")


class LengthPreference(Section):
    """λ-GRPO, arXiv:2510.06870."""

    lambda_init: float = 0.0
    r: float = Field(default=1 / 9, gt=0, description="reduction of the standardised length, h = 1 + r z")
    lr: float = Field(default=0.1, ge=0, le=1000, description="of λ's own SGD")
    clamp: tuple[float, float] | None = Field(
        default=(-5.0, 5.0), description="bounds of λ after a step; null as in the paper"
    )
    freeze: bool = Field(default=False, description="keep λ at lambda_init")
    normalizer: Literal["softmax", "power"] = Field(
        default="softmax", description="softmax: f = G softmax(h^λ), the paper's"
    )
    length_std: Literal["population", "sample"] = "population"


class Trace(Section):
    """GRPO-λ, arXiv:2510.00194."""

    lambda_: float = Field(default=0.99, ge=0, le=1, alias="lambda", description="the decay of a trace is γλ")
    gamma: float = Field(default=1.0, ge=0, le=1, description="discount γ")
    style: Literal["recent", "both"] = Field(
        default="both", description="W[t,j]: recent b^(t-j), both max(b^(t-j), b^j)"
    )
    mode: Literal["trace", "weight", "terminal"] = Field(
        default="trace", description="where the trace acts; trace is the paper's"
    )
    floor: float = Field(default=0.0, ge=0, le=1, description="lower bound of a trace weight")
    normalize: Literal["none", "mean"] = Field(
        default="none", description="mean: divide by a token's mean weight in its answer"
    )


class RolloutCorrection(Section):
    cap: float = Field(default=2.0, gt=0, description="bound of the weight π_trainer/π_sampler of a token")


class Select(Section):
    """Which scored answers are trained (CPPO, arXiv:2503.22342). Settled before any forward pass."""

    rule: Literal["top_abs", "max_variance"] = Field(
        default="top_abs",
        description="largest |A|, or the subset of largest reward variance (arXiv:2504.13818)",
    )
    keep: float = Field(
        default=0.25, gt=0, le=1, description="share kept, 1 minus CPPO's pruning rate; at least one answer"
    )
    scope: Literal["group", "batch"] = Field(
        default="group", description="batch: as CPPO's released code prunes"
    )
    refill: bool = Field(
        default=True, description="draw further prompts for the freed places, within rollout.max_redraw"
    )


class BestDraft(Section):
    """iGRPO, arXiv:2602.09000: of group_size answers some are drafts; the best one
    joins the prompt of the others.

    The prompt is made by data.draft_template.
    """

    drafts: Answers | None = Field(
        default=None, description="answers spent on drafts; null is half of group_size"
    )
    max_tokens: Tokens = Field(default=1024, description="a longer draft loses its beginning")
    when: Literal["always", "wrong"] = Field(
        default="always", description="wrong: a right draft is not shown, to forbid copying"
    )


class Guide(Section):
    """G²RPO-A, arXiv:2508.13023: some answers of a group begin with a piece of a reference solution."""

    share: float = Field(
        default=0.25, ge=0, le=1, description="share α of a group that is guided, rounded up"
    )
    init: Tokens = Field(default=3072, description="first guidance length ℓ, tokens")
    max: Tokens = Field(default=3072, description="bound of ℓ")
    history: int = Field(default=2, ge=1, le=10**6, description="rewards T that the controller averages")
    schedule: Literal["every", "released"] = Field(
        default="every", description="released: every third step, as the code does"
    )
    max_factor: float | None = Field(
        default=None, gt=1, description="bound of one change of ℓ, f or 1/f; null as in the paper"
    )
    max_share: float = Field(
        default=0.8, gt=0, le=1, description="of a solution that is ever shown, so that its answer is not"
    )
    train_guidance: bool = Field(
        default=False, description="give the guidance tokens a loss, as the released code does"
    )
    baseline: Literal["shared", "separate"] = Field(
        default="shared", description="separate: advantage apart from the unguided"
    )


class RefineBest(Section):
    """RGR-GRPO, arXiv:2511.12344: one answer of a group refines the best of the others,
    and is trained without the hint.

    The refining prompt is made by data.refine_template.
    """

    when: Literal["imperfect", "always"] = Field(
        default="imperfect", description="imperfect: only if a criterion failed"
    )
    max_tokens: Tokens = Field(default=1024, description="a longer best answer loses its beginning")


class ProbeValues(Section):
    """VinePPO, arXiv:2410.01679: the value of a step's start is the mean reward of
    k fresh continuations from it.
    """

    k: Answers = Field(default=9, description="continuations a state")
    max_states: int = Field(
        default=20, ge=1, le=10**5, description="states an answer; credit past them falls on the last one"
    )
    delimiter: str = Field(default="\n", min_length=1, description="text that ends a step")
    only: Literal["all", "mixed"] = Field(
        default="all", description="mixed: groups of equal rewards get A = 0, unprobed"
    )
    first: Literal["probe", "group_mean"] = Field(
        default="probe", description="group_mean: V(prompt) costs nothing"
    )
    whiten: Literal["none", "standard", "scale"] = Field(
        default="standard",
        description="advantages over the tokens of the step; scale: divide only, so that 0 stays 0",
    )


class ValueCache(Section):
    """A*-PO, arXiv:2505.20686: V* = β log mean exp(r/β) of n answers of the reference,
    before the first step.
    """

    n: Answers = Field(default=8, description="answers a prompt")
    beta: float = Field(default=0.5, ge=0, description="β1; 0: V* is the mean reward")
    drop_unsolved: bool = Field(
        default=False, description="leave out prompts that none of the n answers solved"
    )


class Algorithm(Section):
    """`use` is a row of NAMED or file.py:function; any other key replaces that part of
    the row, `null` switches it off.
    """

    use: str = "length_preference"
    # rollout: how a group of answers comes about
    best_draft: BestDraft | None = None
    guide: Guide | None = None
    refine_best: RefineBest | None = None
    probe_values: ProbeValues | None = None
    value_cache: ValueCache | None = None
    # credit
    advantage: Annotated[str, AfterValidator(partial(_known, ADVANTAGES))] = Field(
        default="mean_std", description=f"{', '.join(ADVANTAGES)}, or file.py:function"
    )
    advantage_std: Literal["sample", "population"] = Field(
        default="sample", description="standard deviation of mean_std"
    )
    advantage_eps: float = Field(
        default=1e-4, ge=0, description="added to the standard deviation of mean_std"
    )
    advantage_floor: float | None = Field(
        default=None, le=0, description="negative advantages are raised to this"
    )
    admit: Literal["all", "varied", "mixed"] = Field(
        default="all",
        description="redraw groups whose rewards are all equal (varied), or whose first reward is (mixed)",
    )
    select: Select | None = None
    mask_truncated: bool = Field(default=False, description="answers cut at max_new_tokens carry no loss")
    # loss
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="sequence: exp of the answer's mean log-ratio"
    )
    surrogate: Annotated[str, AfterValidator(partial(_known, SURROGATES))] = Field(
        default="clipped", description=f"{', '.join(SURROGATES)}, or file.py:function"
    )
    clip: Clip = Clip()
    cispo: Cispo = Cispo()
    shaped: Shaped | None = None
    residual: Residual = Residual()
    kl: Kl = Kl()
    entropy_coef: float = Field(
        default=0.0, ge=0, description="bonus on the entropy of every token's distribution; costs a pass"
    )
    reduce: Literal["sequence_mean", "token_mean", "group_token_mean", "micro_token_mean", "constant"] = (
        Field(default="sequence_mean", description="how token terms add up to the loss")
    )
    reduce_constant: int | None = Field(
        default=None, ge=1, le=2**24, description="M of reduce=constant; null is model.max_new_tokens"
    )
    reduce_rows: int | None = Field(
        default=None, ge=1, le=2**20, description="answers in a mean of micro_token_mean; null is group_size"
    )
    # token weights
    length_preference: LengthPreference | None = None
    trace: Trace | None = None
    prefix_share: bool = Field(
        default=False, description="divide a token's loss by its process-set size, arXiv:2509.21154"
    )
    top_entropy: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="train this share of an answer's tokens, those of highest entropy",
    )
    rollout_correction: RolloutCorrection | None = RolloutCorrection()

    @property
    def needs_reference(self) -> bool:
        """Whether the update compares with the reference, so that its log-probs are asked for."""
        return self.kl.coef > 0 or (self.anchored and self.residual.anchor == "ref")

    @property
    def whole_groups(self) -> bool:
        """Whether the loss of an answer needs the log-probs of its whole group."""
        return self.anchored and self.residual.centre == "group"

    @property
    def learns_log_z(self) -> bool:
        """Whether a head on the prompt's hidden states is trained along."""
        return self.anchored and self.residual.centre == "learned"

    @property
    def compares_answers(self) -> bool:
        """Whether one answer alone has no advantage."""
        return compares_answers(self.advantage, self.surrogate, self.residual.centre)

    @property
    def anchored(self) -> bool:
        """Whether the surrogate is one of the section `residual`."""
        return SURROGATES.get(self.surrogate, OWN).anchored

    @property
    def trains_all(self) -> bool:
        """Whether an answer without an advantage has a gradient all the same."""
        return self.kl.coef > 0 or self.entropy_coef > 0 or SURROGATES.get(self.surrogate, OWN).trains_all


def compares_answers(advantage: str | None, surrogate: str | None, centre: str | None) -> bool:
    """Whether one answer alone has no advantage. Where a recipe does not say (None): as most algorithms."""
    compares = ADVANTAGES.get(advantage or "", OWN).compares_answers
    whole = SURROGATES.get(surrogate or "", OWN).anchored and centre == "group"
    return compares or whole
