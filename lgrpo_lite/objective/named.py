"""What an algorithm's name stands for: a row of parts. The one table of names; it
validates, lists and documents.

A row is a value of `Algorithm`. `objective.Objective` composes the functions the parts name; no code anywhere
asks which algorithm it is running. Torch is not needed to read a row.

Common form, per token t of answer i in group x (letters as in batch.py):

    loss = - Σ coef · weight · gain  +  β Σ coef · KL
    gain = min(ρ A, clip(ρ, 1-low, 1+high) A) or another surrogate
"""

from typing import Any

from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe import words
from lgrpo_lite.recipe.algorithm import (
    Algorithm,
    BestDraft,
    Clip,
    Guide,
    Kl,
    LengthPreference,
    ProbeValues,
    RefineBest,
    Residual,
    Select,
    Shaped,
    Trace,
    ValueCache,
)
from lgrpo_lite.recipe.marks import shown
from lgrpo_lite.recipe.plugin import blamed, found, is_file, line_of


def grpo() -> Algorithm:
    """GRPO (arXiv:2402.03300): A = (R - mean)/(std + 1e-4), each answer a mean over
    its tokens, KL to the reference.

    Use this when you want the usual baseline, close to the base model by a KL.

    Limit: one update per batch, β = 0: policy gradient with a group baseline.
    """
    return Algorithm(use="grpo", advantage="mean_std", reduce="sequence_mean", kl=Kl(coef=0.04))


def dapo() -> Algorithm:
    """DAPO (arXiv:2503.14476): a mean over all tokens of the step, clip-higher, groups all
    right or all wrong drawn again.

    Use this when many groups are all right or all wrong, and answers are long: such groups are drawn again.

    Its length penalty is the reward `overlong`. Limit: equal lengths, clip high
    0.2, admit all: GRPO without KL.
    """
    return Algorithm(use="dapo", reduce="token_mean", clip=Clip(low=0.2, high=0.28), admit="mixed")


def dr_grpo() -> Algorithm:
    """Dr. GRPO (arXiv:2503.20783): A = R - mean, tokens summed over a constant M
    instead of the answer's length.

    Use this when answers grow longer without getting better: length no longer changes what an answer counts.

    Limit: equal lengths L and M = L: GRPO without the standard deviation.
    """
    return Algorithm(use="dr_grpo", advantage="mean_only", reduce="constant")


def bnpo() -> Algorithm:
    """BNPO (arXiv:2506.02864): A = (R - p)/f(p), f the Beta density of the success rates
    p of the step. Rewards 0 or 1.

    Use this when the reward is 0 or 1 and how often prompts are solved differs much between steps.

    Limit: all p equal: Dr. GRPO's advantage. Not TRL's loss of that name, which is `bnpo_trl`.
    """
    return Algorithm(use="bnpo", advantage="beta", reduce="sequence_mean")


def bnpo_trl() -> Algorithm:
    """TRL's loss_type "bnpo": a token mean in each block of `reduce_rows`
    answers, then a mean over the blocks.

    Use this when you want to repeat a run of TRL with loss_type=bnpo.

    Limit: blocks of one answer: GRPO's reduction; one block: DAPO's.
    """
    return Algorithm(use="bnpo_trl", reduce="micro_token_mean")


def gspo() -> Algorithm:
    """GSPO (arXiv:2507.18071): one ratio an answer, s = exp(mean of its log-ratios),
    clipped to 1 - 3e-4, 1 + 4e-4.

    Use this when you make several updates of a batch, or train a mixture of experts.

    Limit: one update per batch: GRPO without KL, exactly; it differs from optim.updates_per_batch=2 on.
    """
    return Algorithm(use="gspo", ratio="sequence", clip=Clip(low=3e-4, high=4e-4))


def cispo() -> Algorithm:
    """CISPO (arXiv:2506.13585): stopgrad(min(ρ, 5)) A log π, a mean over all
    tokens; no token loses its gradient.

    Use this when you make several updates of a batch and rare tokens of a solution must keep their gradient.

    Limit: one update per batch: the gradient of DAPO without redraws.
    """
    return Algorithm(use="cispo", surrogate="cispo", reduce="token_mean")


def rloo() -> Algorithm:
    """RLOO (arXiv:2402.14740): A = R - mean of the other answers of the group.

    Use this when you want the plainest unbiased baseline, without a standard deviation.

    Limit: G/(G-1) times the advantage of Dr. GRPO.
    """
    return Algorithm(use="rloo", advantage="leave_one_out")


def length_preference() -> Algorithm:
    """λ-GRPO (arXiv:2510.06870): each answer's tokens weigh f = G softmax(h^λ), h = 1 +
    r z, z the standardised length.

    Use this when you cannot say if long or short answers should count more: it is learned. The default.

    λ is learned by its own SGD from the same loss. Limit: λ = 0 gives f = 1, the token
    mean of each group (DAPO's rule).
    """
    return Algorithm(use="length_preference", reduce="group_token_mean", length_preference=LengthPreference())


def trace() -> Algorithm:
    """GRPO-λ (arXiv:2510.00194): ρ_t = exp(Σ_{j≤t} W[t,j] Δlogp_j), eligibility
    traces of decay b = γλ; A ≥ -0.1.

    Use this when answers are long and few tokens decide: credit goes to single tokens, without a critic.

    Limit: λ = 0, style recent, no advantage floor: GRPO.
    """
    return Algorithm(use="trace", advantage_floor=-0.1, trace=Trace(), kl=Kl(coef=0.04))


def prefix_share() -> Algorithm:
    """λ-GRPO by process sets (arXiv:2509.21154): a token's loss is divided by the number of
    answers that share its prefix.

    Use this when answers of a group begin alike, and their common beginning should not count many times.

    Limit: no two answers begin alike: GRPO.
    """
    return Algorithm(use="prefix_share", prefix_share=True, kl=Kl(coef=0.04, weighted=True))


def cppo() -> Algorithm:
    """CPPO (arXiv:2503.22342): GRPO on the answers of largest |A| of each group; 1/k
    replaces 1/G, A is not computed anew.

    Use this when the update is what takes your time: only the most telling answers are trained.

    It saves update time, not sampling. As released: select.scope=batch
    reduce=token_mean. Limit: keep 1: GRPO.
    """
    return Algorithm(use="cppo", select=Select(), kl=Kl(coef=0.04))


def rebel() -> Algorithm:
    """REBEL (arXiv:2404.16767): (Δ_i - Δ_j - η (R_i - R_j))² over all pairs of a group, Δ an
    answer's log-ratio to the sampler.

    Use this when you make several updates of a batch and want a regression to rewards instead of a clip.

    Written as the group-centred square times 2G/(G-1), which is the same. Limit: one update per batch: a
    policy gradient with A = R - mean and tokens summed; it differs from optim.updates_per_batch=2 on.
    """
    pairs = Residual(anchor="old", centre="group", pairs=True)
    return Algorithm(use="rebel", advantage="reward", surrogate="residual", residual=pairs)


def a_star_po() -> Algorithm:
    """A*-PO (arXiv:2505.20686): (β2 Σ_t log π/π_ref - (R - V*))², V* = β1 log
    mean exp(R/β1) of the reference.

    Use this when sampling is dear: values are estimated once, then one answer a prompt is enough.

    V* is made before the first step. One answer a prompt is enough: rollout.group_size=1. Limit: π = π_ref:
    REINFORCE with the baseline V*, scaled by 2 β2.
    """
    drift = Residual(anchor="ref", slope=1e-3)
    return Algorithm(
        use="a_star_po",
        value_cache=ValueCache(),
        advantage="value_cache",
        surrogate="residual",
        residual=drift,
    )


def flowrl() -> Algorithm:
    """FlowRL (arXiv:2509.15207): w (log Z(q) + mean log π/π_ref - β Â)², β = 15, log Z a
    head on the prompt, w in 1 ± 0.2.

    Use this when you want many different right answers, not the likeliest one alone.

    As first released: residual.is_form=released. Limit: log Z = the group's centre: `flowrl_group`.
    """
    flow = Residual(target=15.0, length_norm=True, centre="learned", is_clip=0.2)
    return Algorithm(use="flowrl", advantage_eps=1e-6, surrogate="residual", residual=flow)


def flowrl_group() -> Algorithm:
    """FlowRL without a head: the group's mean stands for log Z (as GFlowRL,
    arXiv:2607.13394, has it). No extra parameters.

    Use this when you want what flowrl gives without extra parameters.

    Limit: π = π_old = π_ref: 2β times the gradient of GRPO.
    """
    flow = Residual(target=15.0, length_norm=True, centre="group", is_clip=0.2)
    return Algorithm(use="flowrl_group", advantage_eps=1e-6, surrogate="residual", residual=flow)


def igrpo() -> Algorithm:
    """iGRPO (arXiv:2602.09000): half of a group are drafts; the best one joins the prompt of the others.

    Use this when the model can mend its own first try when it sees it.

    These are trained under that longer prompt; the model is used without it. Limit: no draft is ever shown
    (best_draft.when=wrong, all right): GRPO with half the group.
    """
    return Algorithm(use="igrpo", best_draft=BestDraft())


def g2rpo_a() -> Algorithm:
    """G²RPO-A (arXiv:2508.13023): a quarter of a group begins with ℓ tokens of a worked
    solution; ℓ ← ℓ · mean(earlier R)/R.

    Use this when problems are too hard to be solved at all and the data has worked solutions.

    Needs a solution in the data. As released: guide.schedule=released
    guide.train_guidance=true. Limit: share 0: GRPO.
    """
    return Algorithm(use="g2rpo_a", guide=Guide(), kl=Kl(coef=0.04))


def rgr_grpo() -> Algorithm:
    """RGR-GRPO (arXiv:2511.12344): one answer refines the best of the others and is
    trained without that hint, π/(π+γ) A.

    Use this when answers are judged by a rubric, and criteria that failed tell how to mend them.

    Made for the reward `rubric`. As printed: shaped.form=old. Limit: nothing to
    refine: the plain policy gradient.
    """
    parts = {"refine_best": RefineBest(), "shaped": Shaped(), "surrogate": "unclipped"}
    return Algorithm(use="rgr_grpo", **parts, reduce="constant", reduce_constant=1)


def vineppo() -> Algorithm:
    """VinePPO (arXiv:2410.01679): A of a reasoning step = V(after) - V(before), V the mean
    reward of k fresh continuations.

    Use this when it matters which step of a solution was right, and you can pay for many more samples.

    Costs about k · steps/2 answers per answer; probe_values.{k: 3, only: mixed, first: group_mean} is the
    cheap form. Limit: one step an answer, V(prompt) the group's mean: A = R - mean.
    """
    kl = Kl(coef=1e-4, max=10.0)
    return Algorithm(
        use="vineppo", probe_values=ProbeValues(), advantage="next_value", reduce="token_mean", kl=kl
    )


ROWS = (
    grpo, dapo, dr_grpo, bnpo, bnpo_trl, gspo, cispo, rloo, length_preference, trace, prefix_share, cppo,
    rebel, a_star_po,
    flowrl, flowrl_group, igrpo, g2rpo_a, rgr_grpo, vineppo,
)  # fmt: skip
NAMED = {row.__name__: row for row in ROWS}


def when(name: str) -> str:
    """For whom a row is, in a sentence that needs no formula: the paragraph of its docstring that says so."""
    paragraphs = (NAMED[name].__doc__ or "").split("\n\n")
    return next(" ".join(text.split()) for text in paragraphs if text.strip().startswith("Use this when"))


def complete(algorithm: Algorithm, where: str) -> Algorithm:
    """Lay the keys a recipe sets over the row it names. Unknown name: ConfigError that gives the nearest one.
    A function of a user's that raises: DataError at its line.
    """
    _explain(algorithm.use, where)
    row_of = found(algorithm.use, NAMED, where, "algorithm")
    expected = "the function takes no arguments and returns a lgrpo_lite.algorithm.Algorithm"
    with blamed(algorithm.use, expected):
        made = row_of()
    if not isinstance(made, Algorithm):
        what = f"{algorithm.use} gave no algorithm, but {type(made).__name__}"
        raise ConfigError(what, where=line_of(algorithm.use), fix=expected)
    row = made.model_dump(by_alias=True)
    return Algorithm.model_validate(_overlay(row, algorithm.model_dump(by_alias=True, exclude_unset=True)))


def _explain(use: str, where: str) -> None:
    """A name that is no row, but that people know: ConfigError says which row it is, or why there is none."""
    if use in NAMED or is_file(use):
        return
    name = words.plain(use)
    what, rows = words.ALGORITHMS.get(name, ("", ()))
    spelled = [row for row in NAMED if words.plain(row) == name]
    if spelled:
        what, rows = "it is spelled in another way", tuple(spelled)
    if rows:
        fix = " or ".join(f"algorithm.use={row}" for row in rows)
        what = f"no algorithm is called {shown(use)}: {what}"
        raise ConfigError(what, where=where, fix=f"write {fix}", key="algorithm.use")


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if both else value
    return merged
