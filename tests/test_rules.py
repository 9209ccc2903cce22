"""Combinations without a meaning are refused before anything is loaded, each with its reason; the others run."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import tiny_recipe

from lgrpo_lite.checks.check import check
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.errors import ConfigError, LgrpoError
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.read import parse_recipe

GOOD = "model: {id: m}\ndata: {train: {path: x.jsonl}}\nrewards: [{use: exact}]\n"
RESIDUAL = ["algorithm.use=flowrl_group"]
GUIDED = ["algorithm.use=g2rpo_a", "data.train.solution=worked"]


@pytest.mark.parametrize(
    ("overrides", "where", "words"),
    [
        (
            [*RESIDUAL, "algorithm.advantage=next_value", "algorithm.probe_values={}"],
            "advantage",
            "credits tokens",
        ),
        ([*RESIDUAL, "rollout.group_size=1"], "rollout.group_size", "nothing to compare"),
        (["algorithm.use=rebel", "rollout.group_size=1"], "rollout.group_size", "nothing to compare"),
        (
            ["algorithm.use=a_star_po", "rollout.group_size=1", "algorithm.admit=varied"],
            "admit",
            "one answer has one",
        ),
        (
            ["algorithm.use=a_star_po", "rollout.group_size=1", "algorithm.admit=mixed"],
            "admit",
            "one answer has one",
        ),
        (["algorithm.use=rgr_grpo", "optim.updates_per_batch=2"], "optim.updates_per_batch", "runs away"),
        (["algorithm.use=grpo", "algorithm.shaped={}"], "algorithm.shaped", "there are none"),
        (["algorithm.use=grpo", "algorithm.advantage=next_value"], "algorithm.advantage", "needs the values"),
        (["algorithm.use=grpo", "algorithm.probe_values={}"], "algorithm.probe_values", "read by nothing"),
        (["algorithm.use=grpo", "algorithm.advantage=value_cache"], "algorithm.advantage", "needs the V*"),
        (["algorithm.use=grpo", "algorithm.value_cache={}"], "algorithm.value_cache", "read by nothing"),
        (["algorithm.use=gspo", "algorithm.reduce=token_mean"], "algorithm.reduce", "by their length"),
        (["algorithm.use=gspo", "algorithm.reduce=constant"], "algorithm.reduce", "by their length"),
        (["algorithm.use=gspo", "algorithm.trace={}"], "algorithm.trace", "tells tokens apart"),
        (["algorithm.use=gspo", "algorithm.trace={mode: weight}"], "algorithm.trace", "tells tokens apart"),
        (["algorithm.use=gspo", "algorithm.top_entropy=0.2"], "algorithm.top_entropy", "tells tokens apart"),
        (
            ["algorithm.use=gspo", "algorithm.prefix_share=true"],
            "algorithm.prefix_share",
            "tells tokens apart",
        ),
        (
            ["algorithm.use=vineppo", "algorithm.ratio=sequence", "algorithm.reduce=sequence_mean"],
            "advantage",
            "credits tokens",
        ),
        (["algorithm.use=cispo", "algorithm.trace={}"], "algorithm.trace", "carries no gradient"),
        (
            ["algorithm.use=cispo", "algorithm.cispo={floor: 10, cap: 5}"],
            "algorithm.cispo.floor",
            "above cap",
        ),
        (
            ["algorithm.use=rgr_grpo", "algorithm.trace={mode: weight}"],
            "algorithm.trace",
            "would have no trace",
        ),
        (
            ["algorithm.use=vineppo", "rollout.group_size=1", "algorithm.probe_values.only=mixed"],
            "probe_values",
            "probed",
        ),
        (["algorithm.use=igrpo", "rollout.group_size=1"], "rollout.group_size", "no answer for a draft"),
        (
            ["algorithm.use=grpo", "algorithm.trace={mode: terminal, style: recent}"],
            "algorithm.trace.style",
            "not read by",
        ),
        (["algorithm.use=dapo", "algorithm.kl.max=1"], "algorithm.kl.max", "not read by kl.coef=0"),
        (
            ["algorithm.use=flowrl_group", "algorithm.residual.log_z_lr=1"],
            "algorithm.residual.log_z_lr",
            "not read by",
        ),
        (
            ["algorithm.use=grpo", "algorithm.advantage=none.py:f"],
            "algorithm.advantage",
            "no such Python file",
        ),
        (["algorithm.use=bnpo", "rewards.0.weight=2"], "algorithm.advantage", "0 or 1"),
        (["algorithm.use=bnpo", "rewards=[{use: exact}, {use: numeric}]"], "algorithm.advantage", "0 or 1"),
        (["algorithm.use=bnpo", "rewards=[{use: rubric}]"], "algorithm.advantage", "0 or 1"),
        ([*RESIDUAL, "algorithm.reduce=token_mean"], "algorithm.reduce", "once a token"),
        ([*RESIDUAL, "algorithm.trace={}"], "algorithm.trace", "weighs tokens"),
        ([*RESIDUAL, "algorithm.prefix_share=true"], "algorithm.prefix_share", "weighs tokens"),
        ([*RESIDUAL, "algorithm.top_entropy=0.2"], "algorithm.top_entropy", "weighs tokens"),
        ([*RESIDUAL, "algorithm.ratio=sequence"], "algorithm.ratio", "not read"),
        (
            [*RESIDUAL, "algorithm.refine_best={}", "algorithm.shaped={}"],
            "algorithm.shaped",
            "a residual has none",
        ),
        (
            ["algorithm.use=a_star_po", "algorithm.residual.pairs=true"],
            "algorithm.residual.pairs",
            "inside a group",
        ),
        (
            ["algorithm.use=rebel", "algorithm.residual.is_form=released"],
            "is_form",
            "not read by residual.is_clip=None",
        ),
        (
            [*GUIDED, "rollout.group_size=4", "algorithm.guide.baseline=separate"],
            "guide.baseline",
            "nothing to compare",
        ),
        ([*RESIDUAL, "algorithm.select={keep: 0.1}"], "algorithm.select.keep", "one answer stays"),
        (["algorithm.use=vineppo", "algorithm.select={}"], "algorithm.select", "ranks answers"),
        (["algorithm.use=a_star_po", "algorithm.best_draft={}"], "algorithm.best_draft", "plain prompt"),
        (
            ["algorithm.use=igrpo", "algorithm.best_draft.drafts=8"],
            "rollout.group_size",
            "no answer after the drafts",
        ),
        (
            ["algorithm.use=igrpo", "algorithm.best_draft.drafts=7"],
            "rollout.group_size",
            "nothing to compare",
        ),
        (
            ["algorithm.use=igrpo", "data.draft_template='{draft}'"],
            "data.draft_template",
            "does not show the question",
        ),
        (
            ["algorithm.use=rgr_grpo", "data.refine_template='{question}'"],
            "data.refine_template",
            "does not show the best",
        ),
        (["algorithm.use=g2rpo_a"], "data.train.0", "names none"),
        (["algorithm.use=flowrl", "model.lora=null"], "algorithm.residual.anchor", "there is none"),
        (["algorithm.use=grpo", "model.lora=null"], "algorithm.kl.coef", "there is none"),
        (["algorithm.use=grpo", "algorithm.cispo.cap=2"], "algorithm.cispo", "not read by surrogate=clipped"),
        (["algorithm.use=cispo", "algorithm.clip.high=0.5"], "algorithm.clip", "not read by surrogate=cispo"),
        (
            ["algorithm.use=grpo", "algorithm.residual.slope=2"],
            "algorithm.residual",
            "not read by surrogate=clipped",
        ),
        (["algorithm.use=grpo", "algorithm.reduce_rows=2"], "algorithm.reduce_rows", "not read by reduce="),
        (
            ["algorithm.use=dr_grpo", "algorithm.advantage_std=population"],
            "algorithm.advantage_std",
            "not read by advantage=",
        ),
        (
            ["algorithm.use=grpo", "algorithm.advantage=mean_sdt"],
            "algorithm.advantage",
            "did you mean 'mean_std'",
        ),
        (
            ["algorithm.use=grpo", "rewards=[{use: overlong, cache: 9}]"],
            "rewards.0.use",
            "put the verifier first",
        ),
        (
            ["algorithm.use=length_preference", "rollout.group_size=82"],
            "algorithm.length_preference.r",
            "may reach 0",
        ),
    ],
)
def test_refused_with_a_reason(overrides, where, words):
    with pytest.raises(LgrpoError) as error:
        check(parse_recipe(GOOD, "r", overrides))
    assert error.value.exit_code == (2 if isinstance(error.value, ConfigError) else 5)
    assert words in str(error.value), str(error.value)
    fix = str(error.value).splitlines()[-1]
    assert len(fix) > 10
    assert any(part in error.value.where for part in (where, "command line", "r:")), error.value.where


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["algorithm.use=flowrl", "algorithm.kl.coef=0.1"], "twice"),
        (["algorithm.use=flowrl", "algorithm.admit=varied"], "equal rewards"),
        (["algorithm.use=gspo"], "differs from a policy gradient in nothing"),
        (["algorithm.use=rebel"], "differs from a policy gradient in nothing"),
        (["algorithm.use=vineppo"], "from every step"),
        (["algorithm.use=vineppo", "algorithm.probe_values={k: 3, only: mixed, first: group_mean}"], None),
        (["algorithm.use=gspo", "optim.updates_per_batch=2"], None),
        (["algorithm.use=length_preference"], None),
    ],
)
def test_warned_about(overrides, words):
    held_out = "data.eval={task: arithmetic, split: heldout, limit: 4}"
    told = warnings(check(parse_recipe(GOOD, "r", [held_out, *overrides])))
    assert (words is None and not told) or any(words in line for line in told)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_row_is_legal_and_so_is_its_resolved_form(name):
    recipe = tiny_recipe(f"algorithm.use={name}")
    assert check(parse_recipe(recipe.to_yaml(), "again")).to_yaml() == recipe.to_yaml()


# ------------------------------------------------------------------------------------------- random combinations

PARTS = {
    "advantage": ["mean_std", "mean_only", "leave_one_out", "beta", "reward"],
    "advantage_floor": ["null", "-0.1"],
    "admit": ["all", "varied", "mixed"],
    "select": [
        "null",
        "{keep: 0.5}",
        "{rule: max_variance, keep: 0.5, refill: false}",
        "{keep: 0.5, scope: batch}",
    ],
    "mask_truncated": ["true", "false"],
    "ratio": ["token", "sequence"],
    "surrogate": ["clipped", "unclipped", "cispo", "residual"],
    "kl": [
        "{coef: 0.0}",
        "{coef: 0.1, estimator: k1}",
        "{coef: 0.1, estimator: k2, weighted: true}",
        "{coef: 0.1, max: 1}",
    ],
    "reduce": ["sequence_mean", "token_mean", "group_token_mean", "micro_token_mean", "constant"],
    "length_preference": ["null", "{}", "{normalizer: power, length_std: sample}"],
    "trace": [
        "null",
        "{}",
        "{style: recent, mode: weight, normalize: mean}",
        "{mode: terminal, lambda: 0.5}",
    ],
    "prefix_share": ["true", "false"],
    "top_entropy": ["null", "0.5"],
    "rollout_correction": ["null", "{cap: 1.5}"],
    "best_draft": ["null", "{}"],
    "guide": ["null", "{init: 8, max: 20}", "{init: 8, train_guidance: true, baseline: separate}"],
    "refine_best": ["null", "{}"],
    "shaped": ["null", "{}", "{form: old}"],
}


@given(
    use=st.sampled_from(sorted(NAMED)),
    chosen=st.lists(
        st.sampled_from([(k, v) for k, values in PARTS.items() for v in values]), min_size=2, max_size=5
    ),
    updates=st.integers(1, 2),
)
@pytest.mark.slow
@settings(max_examples=20, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
def test_random_legal_combinations_run(use, chosen, updates):
    import torch

    from lgrpo_lite.train.build import build
    from lgrpo_lite.train.step import train_step

    small = {"vineppo": ["algorithm.probe_values={k: 2, max_states: 2}"]}
    parts = [f"algorithm.{key}={value}" for key, value in dict(chosen).items()]
    try:
        recipe = tiny_recipe(
            f"algorithm.use={use}", *small.get(use, []), *parts, f"optim.updates_per_batch={updates}"
        )
    except ConfigError:
        assume(False)
    run = build(recipe)
    if run.plan.values:
        run.plan.values.rewards = {run.plan.values.key(p): [0.0, 1.0] for p in run.prompts.prompts}
    record, _ = train_step(1, run)
    assert record.skipped is not None or (record.loss == record.loss and record.grad_norm < float("inf"))
    assert all(p.isfinite().all() for p in run.policy.trainable())
    assert torch.isfinite(torch.tensor([p.detach().sum() for p in run.objective.parameters()])).all()


def test_a_function_of_the_users_own_may_read_any_part(tmp_path):
    """What a plug-in looks at is its own affair."""
    (tmp_path / "mine.py").write_text(
        "from lgrpo_lite.algorithm import Algorithm, Clip\n"
        "def advantage(groups, parts): return [[r * parts.advantage_eps for r in g.rewards] for g in groups]\n"
        "def gain(t): return t.x * t.parts.clip.high, {}\n"
        "def row(): return Algorithm(surrogate=f'{__file__}:gain', clip=Clip(high=0.28), reduce='constant', reduce_constant=7)\n"
    )
    mine = f"{tmp_path}/mine.py"
    for overrides in (
        [f"algorithm.surrogate={mine}:gain", "algorithm.clip.high=0.3"],
        [f"algorithm.advantage={mine}:advantage", "algorithm.advantage_eps=0.1", "algorithm.value_cache={}"],
        [f"algorithm.use={mine}:row", "algorithm.reduce=token_mean"],
    ):
        check(parse_recipe(GOOD, "r", ["algorithm.length_preference=null", *overrides]))
    with pytest.raises(LgrpoError, match="no function 'nope'"):
        check(parse_recipe(GOOD, "r", [f"algorithm.surrogate={mine}:nope"]))
