"""float64 reference vectors of every algorithm: 1e-9 in float64, 1e-5 in float32, gradients included.

The folder is tests/vectors, or the one named by the environment variable LGRPO_VECTORS; the files may lie in
it or in its folders core/ and related/. A file that no test reads fails the first test.
"""

import json
import os
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import groups_of, laid_out, value_and_grads

from lgrpo_lite.evaluation.diagnostics import coverage, crossover, never_upper, pass_curve, tilted
from lgrpo_lite.objective import trace
from lgrpo_lite.objective.advantage import beta_density, beta_moments, next_value, step_credit, step_values
from lgrpo_lite.objective.log_z import LogZ
from lgrpo_lite.objective.named import complete
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.objective.select import selected
from lgrpo_lite.objective.surrogate import Terms, residual, shaped
from lgrpo_lite.objective.weight import LengthPreference as Preference
from lgrpo_lite.objective.weight import prefix_share
from lgrpo_lite.recipe.algorithm import (
    Algorithm,
    Cispo,
    Clip,
    Guide,
    Kl,
    LengthPreference,
    Residual,
    Select,
    Shaped,
    Trace,
)
from lgrpo_lite.rewards import rubric
from lgrpo_lite.rewards.text import overlong
from lgrpo_lite.rollout.drafts import best_index, shortcomings
from lgrpo_lite.rollout.guide import GuideLength, guided_count
from lgrpo_lite.rollout.values import v_star
from lgrpo_lite.types import Completion, Criterion, Group, Outcome, Prompt, Rollout, Score

FOLDER = Path(os.environ.get("LGRPO_VECTORS") or Path(__file__).parent / "vectors")
OURS = Path(__file__).parent / "vectors"
READ: set[str] = set()


def vectors(name: str) -> dict:
    """A file of the folder; of the repository's own where another folder holds a part of them only."""
    READ.add(f"{name}.json")
    places = [root / part for root in (FOLDER, OURS) for part in (".", "core", "related")]
    return json.loads(next(p / f"{name}.json" for p in places if (p / f"{name}.json").exists()).read_text())


LEARNABLE, TRACES, PREFIX = map(
    vectors, ("lambda_grpo_learnable", "grpo_lambda_traces", "lambda_grpo_prefix")
)
COMMON, GRPO, DAPO, DR_GRPO, BNPO, GSPO, CISPO = map(
    vectors, ("common", "grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo")
)
CPPO, REBEL, A_STAR_PO, FLOWRL, IGRPO = map(vectors, ("cppo", "rebel", "a_star_po", "flowrl", "igrpo"))
G2RPO_A, RGR_GRPO, VINEPPO, DIAGNOSTICS = map(vectors, ("g2rpo_a", "rgr_grpo", "vineppo", "diagnostics"))
DTYPES = [torch.float64, torch.float32]
REDUCE = {"seq_mean": "sequence_mean", "token_mean": "token_mean"}


def close(actual, expected, dtype) -> None:
    """Relative 1e-9 / 1e-5, with the same number as the absolute tolerance of values near zero."""
    tol = 1e-9 if dtype == torch.float64 else 1e-5
    actual = flat(actual) if isinstance(actual, list) else actual
    actual = torch.as_tensor(actual, dtype=torch.float64).flatten()
    expected = torch.tensor(flat(expected), dtype=torch.float64)
    scale = max(1.0, float(expected.abs().max())) if len(expected) else 1.0
    torch.testing.assert_close(actual, expected, rtol=tol, atol=tol * scale)


def flat(values) -> list[float]:
    return [x for v in values for x in flat(v)] if isinstance(values, list) else [values]


def names(cases, key="name"):
    return [str(case.get(key, i)) for i, case in enumerate(cases)]


def preference_settings(params: dict, lam: float) -> LengthPreference:
    std = params.get("std_kind", params.get("len_std", "population"))
    return LengthPreference(lambda_init=lam, r=params["r"], length_std=std, clamp=None)


def preference_parts(params: dict, lam: float, reduce: str = "group_token_mean") -> Algorithm:
    return Algorithm(
        use="length_preference",
        advantage_std=params.get("adv_std", "sample"),
        reduce=reduce,
        clip=Clip(low=params.get("clip_low", 0.2), high=params.get("clip_high", 0.2)),
        kl=Kl(coef=params.get("kl_coef", 0.0), weighted=params.get("kl_weighted", False)),
        length_preference=preference_settings(params, lam),
        rollout_correction=None,
    )


def test_every_file_is_read():
    assert {p.name for p in FOLDER.rglob("*.json")} <= READ


@pytest.mark.parametrize("case", LEARNABLE["weights"], ids=names(LEARNABLE["weights"]))
def test_length_weights(case):
    dtype = torch.float64  # whatever the batch is held in
    preference = Preference(preference_settings(case["params"], case["lam"]))
    length = torch.tensor(case["lengths"])
    group = torch.zeros_like(length)
    f = preference(length, group)
    slope = [torch.autograd.grad(x, preference.lam, retain_graph=True)[0] for x in f]
    close(preference.h(length, group), case["expect"]["h"], dtype)
    close(f.detach(), case["expect"]["f"], dtype)
    close(torch.stack(slope), case["expect"]["df_dlam"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LEARNABLE["losses"], ids=names(LEARNABLE["losses"]))
def test_length_preference_loss(case, dtype):
    objective = Objective(preference_parts(case["params"], case["lam"]), max_new_tokens=16, dtype=dtype)
    out = value_and_grads(objective, groups_of([case]), dtype)
    close(out.loss, case["expect"]["loss"], dtype)
    close(out.lam_grad, case["expect"]["dloss_dlam"], dtype)
    close(out.logp_grad, case["expect"]["dloss_dlogp"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "reduce", "constant"),
    [
        ("grpo", "sequence_mean", None),
        ("dapo", "token_mean", None),
        ("dr_grpo", "constant", 1),
        ("dr_grpo_const", "constant", None),
    ],
)
def test_special_cases(name, reduce, constant, dtype):
    case = LEARNABLE["special_cases"]
    parts = Algorithm(use=name, reduce=reduce, reduce_constant=constant, rollout_correction=None)
    out = value_and_grads(
        Objective(parts, max_new_tokens=case["max_len"], dtype=dtype), groups_of([case]), dtype
    )
    close(-out.loss, case["expect"][name]["J"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "reduce"), [("group_mean", "group_token_mean"), ("global", "token_mean")])
def test_several_groups(name, reduce, dtype):
    case = LEARNABLE["multi_group"]
    parts = preference_parts({"r": 1 / 9}, case["lam"], reduce)
    out = value_and_grads(Objective(parts, max_new_tokens=16, dtype=dtype), groups_of(case["groups"]), dtype)
    close(out.loss, case["expect"][name]["loss"], dtype)
    close(out.lam_grad, case["expect"][name]["dloss_dlam"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lambda_follows_its_own_sgd(dtype):
    case = LEARNABLE["sgd_trajectory"]
    objective = Objective(
        preference_parts({"r": 1 / 9}, case["steps"][0]["lam"]), max_new_tokens=16, dtype=dtype
    )
    settings = {key: case[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(objective.parameters(), **settings)
    for step in case["steps"]:
        close(objective.preference.lam.detach(), step["lam"], dtype)
        optimizer.zero_grad()
        out = value_and_grads(objective, groups_of([case["batch"]]), dtype)
        close(out.loss, step["loss"], dtype)
        close(objective.preference.lam.grad, step["dloss_dlam"], dtype)
        optimizer.step()
    close(objective.preference.lam.detach(), case["final_lam"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", TRACES["matrices"], ids=lambda c: f"{c['style']}-b{c['decay']}-T{c['T']}-floor{c['floor']}"
)
def test_trace_matrices(case, dtype):
    kind = {"decay": float(case["decay"]), "style": case["style"], "floor": float(case["floor"])}
    seq = torch.zeros(case["T"], dtype=torch.long)
    x = torch.tensor(case["x"], dtype=dtype)
    close(trace.accumulate(x, seq, **kind), case["y"], dtype)
    close(trace.column_sums(seq, **kind, dtype=dtype), case["col_sums"], dtype)
    columns = [trace.accumulate(unit, seq, **kind) for unit in torch.eye(case["T"], dtype=dtype)]
    close(torch.stack(columns, 1), case["W"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TRACES["losses"], ids=names(TRACES["losses"]))
def test_trace_loss(case, dtype):
    parts = Algorithm(
        use="trace",
        advantage_std=case["adv_std"],
        advantage_floor=case["adv_min"],
        clip=Clip(low=case["clip_low"], high=case["clip_high"]),
        kl=Kl(coef=case["kl_coef"]),
        reduce=REDUCE[case["aggregation"]],
        trace=Trace(lambda_=case["decay"], style=case["style"], mode=case["mode"], floor=case["floor"]),
        rollout_correction=None,
    )
    out = value_and_grads(Objective(parts, max_new_tokens=16, dtype=dtype), groups_of([case]), dtype)
    close(out.loss, case["expect"]["loss"], dtype)
    close(out.logp_grad, case["expect"]["dloss_dlogp"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", PREFIX["cases"], ids=names(PREFIX["cases"]))
def test_prefix_share(case, dtype):
    close(
        torch.tensor([s for row in prefix_share(case["seqs"]) for s in row]),
        case["expect"]["scale"],
        torch.float32,
    )
    on_policy = {
        "lengths": [len(s) for s in case["seqs"]],
        "rewards": case["rewards"],
        "token_ids": case["seqs"],
    }
    for kind, shared in (("plain", False), ("scaled", True)):
        for name, reduce in REDUCE.items():
            parts = Algorithm(
                reduce=reduce,
                prefix_share=shared,
                advantage_std=case.get("adv_std", "sample"),
                rollout_correction=None,
            )
            out = value_and_grads(
                Objective(parts, max_new_tokens=16, dtype=dtype), groups_of([on_policy]), dtype
            )
            close(out.loss, case["expect"][f"loss_{name}_{kind}"], dtype)


# ------------------------------------------------------------------------------------------- related algorithms

NUMBER = r"[0-9.]+(?:e-?[0-9]+)?"


def common(reward=None, rows=None, **more) -> list[dict]:
    """The shared batch as one case per group; `rows` cuts a part out of it."""
    rows = list(range(COMMON["S"])) if rows is None else rows
    reward = COMMON["reward"] if reward is None else reward
    cases = []
    for number in sorted({COMMON["group"][i] for i in rows}):
        mine = [i for i in rows if COMMON["group"][i] == number]
        cut = {key: [COMMON[key][i][: COMMON["lengths"][i]] for i in mine] for key in ("logp", "old", "ref")}
        cases.append(
            {
                "lengths": [COMMON["lengths"][i] for i in mine], "rewards": [reward[i] for i in mine], "logp": cut["logp"],
                "old_logp": cut["old"], "ref_logp": cut["ref"],
            } | {key: value[number] if isinstance(value, list) else value for key, value in more.items()}
        )  # fmt: skip
    return cases


def own(values) -> list[float]:
    """[S][T] of the shared batch without its padding."""
    return [x for row, length in zip(values, COMMON["lengths"], strict=True) for x in row[:length]]


def made(parts: Algorithm, dtype, max_new_tokens: int = 16) -> Objective:
    plain = parts.model_copy(update={"rollout_correction": None})
    return Objective(plain, max_new_tokens=max_new_tokens, hidden=4, dtype=dtype)


def check(parts: Algorithm, case: dict, dtype, cases=None):
    out = value_and_grads(made(parts, dtype), groups_of(common() if cases is None else cases), dtype)
    close(out.loss, case["loss"], dtype)
    if "dloss_dlogp" in case:
        close(out.logp_grad, own(case["dloss_dlogp"]), dtype)
    return out


def row(name: str, **changes) -> Algorithm:
    """A named row with some parts replaced."""
    return complete(Algorithm(use=name, **changes), "here")


def advantages(parts: Algorithm, reward, group) -> list:
    groups = [
        groups_of(
            [
                {
                    "lengths": [1] * group.count(g),
                    "rewards": [r for r, n in zip(reward, group, strict=True) if n == g],
                }
            ]
        )
        for g in sorted(set(group))
    ]
    return made(parts, torch.float64).advantage([case.groups[0] for case in groups], parts)


def bounds(name: str) -> Clip:
    low, high = re.search(rf"({NUMBER})/({NUMBER})", name).groups()
    return Clip(low=float(low), high=float(high))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GRPO["cases"], ids=names(GRPO["cases"]))
def test_grpo(case, dtype):
    p = GRPO["params"]
    std = {1: "sample", 0: "population"}[p["ddof"]]
    kl = Kl(coef=float(case["name"].removeprefix("kl=")))
    check(
        row(
            "grpo", kl=kl, clip=Clip(low=p["low"], high=p["high"]), advantage_eps=p["eps"], advantage_std=std
        ),
        case,
        dtype,
    )


def test_grpo_advantages():
    flat_rewards = GRPO["zero_variance"]
    close(advantages(row("grpo"), COMMON["reward"], COMMON["group"]), GRPO["advantage"], torch.float64)
    population = row("grpo", advantage_std="population", advantage_eps=1e-6)
    close(
        advantages(population, COMMON["reward"], COMMON["group"]), GRPO["advantage_population"], torch.float64
    )
    assert advantages(row("grpo"), flat_rewards["reward"], [0] * len(flat_rewards["reward"])) == [
        flat_rewards["advantage"]
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dapo(dtype):
    check(row("dapo", clip=bounds(DAPO["case"]["name"])), DAPO["case"], dtype)
    close(advantages(row("dapo"), COMMON["reward"], COMMON["group"]), DAPO["advantage"], torch.float64)
    whole, split = DAPO["micro_batch"], DAPO["micro_batch"]["split"]
    objective = made(row("dapo", clip=bounds(DAPO["case"]["name"])), dtype)
    case = groups_of(common())
    batch = replace(objective.batch(case.groups), old_logp=None)
    batch = replace(batch, old_logp=laid_out(batch, case.old, dtype))
    parts = [batch.select(torch.arange(*ends)) for ends in ((0, split[0]), (split[0], sum(split)))]
    losses = [objective(laid_out(part, case.logp, dtype), part)[0] for part in parts]
    close(sum(losses), whole["correct"], dtype)  # the step's normaliser: any split adds up
    wrong = [loss * batch.num_tokens / part.num_tokens for loss, part in zip(losses, parts, strict=True)]
    close(sum(wrong) / 2, whole["wrong_mean_of_token_means"], dtype)


def test_dapo_rewards_and_groups():
    long = DAPO["overlong"]
    for case in long["rows"]:
        value, _ = overlong(case["length"], limit=long["l_max"], cache=long["l_cache"])
        close(value, case["penalty"], torch.float64)
    sampling = DAPO["dynamic_sampling"]
    groups = groups_of([{"lengths": [1] * len(r), "rewards": r} for r in sampling["groups"]]).groups
    assert [made(row("dapo"), torch.float64).admit(g) for g in groups] == sampling["keep_group"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dr_grpo(dtype):
    check(row("dr_grpo", reduce_constant=DR_GRPO["const"]), DR_GRPO["case"], dtype)
    close(advantages(row("dr_grpo"), COMMON["reward"], COMMON["group"]), DR_GRPO["advantage"], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bnpo_of_trl(dtype):
    case = BNPO["trl_loss_type"]
    rows = len(case["micro_batches"][0])
    check(row("bnpo_trl", reduce_rows=rows), case, dtype)
    for micro, loss in zip(case["micro_batches"], case["micro_losses"], strict=True):
        check(row("bnpo_trl", reduce_rows=rows), {"loss": loss}, dtype, common(rows=micro))


def test_bnpo_of_the_paper():
    case = BNPO["paper"]
    a, b = beta_moments(case["p"])
    close([a, b, 1 + a / 3, 1 + b / 3], [case["a"], case["b"], case["alpha"], case["beta"]], torch.float64)
    scales = [beta_density(p, case["alpha"], case["beta"]) for p in case["p"]]
    close(scales, case["f"], torch.float64)
    close([scales[g] for g in case["group"]], case["scale"], torch.float64)
    close(advantages(row("bnpo"), case["reward"], case["group"]), case["advantage"], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", GSPO["cases"], ids=names(GSPO["cases"]))
def test_gspo(case, dtype):
    parts = row("gspo", clip=bounds(case["name"]))
    check(parts, case, dtype)
    seen = groups_of(common())
    objective = made(parts, dtype)
    batch = objective.batch(seen.groups)
    x = laid_out(batch, seen.logp, dtype) - laid_out(batch, seen.old, dtype)
    first = torch.bincount(batch.seq).cumsum(0) - 1
    close(objective._log_ratio(x, batch)[first].exp(), GSPO["ratio"], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CISPO["cases"], ids=names(CISPO["cases"]))
def test_cispo(case, dtype):
    check(row("cispo", cispo=Cispo(cap=case["cap"], floor=case["floor"])), case, dtype)


@pytest.mark.parametrize("case", CPPO["selections"], ids=lambda c: f"{c['scope']}-{c['pruning']}")
def test_cppo_selection(case):
    advantage = advantages(row("grpo"), CPPO["reward"], CPPO["group"])
    close(advantage, CPPO["advantage"], torch.float64)
    rewards = [
        [r for r, n in zip(CPPO["reward"], CPPO["group"], strict=True) if n == g]
        for g in sorted(set(CPPO["group"]))
    ]
    kept = selected(advantage, rewards, Select(keep=1 - case["pruning"], scope=case["scope"]))
    first = [sum(map(len, rewards[:g])) for g in range(len(rewards))]
    assert [first[g] + i for g, rows in enumerate(kept) for i in rows] == case["kept"]
    assert [len(rows) for rows in kept] == case["per_group"]
    close(
        sum(advantage[g][i] for g, rows in enumerate(kept) for i in rows),
        case["kept_advantage_sum"],
        torch.float64,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("case", "reduce"), list(zip(CPPO["losses"], ("sequence_mean", "token_mean"), strict=True))
)
def test_cppo_losses(case, reduce, dtype):
    keep = sum(CPPO["kept_common"]) / len(CPPO["kept_common"])
    check(row("cppo", reduce=reduce, select=Select(keep=keep)), case, dtype)


def test_cppo_claims():
    """Its own times are a fixed part and a part per kept answer, which is why pruning is no shorter sampling."""
    for name, times in CPPO["paper_times"].items():
        kept = [float(k) for k in times]
        fit = statistics.linear_regression(kept, list(times.values()))
        expected = CPPO["linear_fit"][name]
        close(
            [fit.intercept, fit.slope],
            [expected["fixed_s"], expected["per_kept_completion_s"]],
            torch.float64,
        )
        close(fit.intercept / (fit.intercept + 16 * fit.slope), expected["fixed_share_at_k16"], torch.float64)
    for case in CPPO["amdahl"]:
        close(
            1 / (case["gen_share"] + (1 - case["gen_share"]) * (1 - case["pruning"])),
            case["bound"],
            torch.float64,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", REBEL["groups"], ids=lambda c: f"eta={c['eta']}")
def test_rebel(case, dtype):
    pairs, mean = (
        Residual(anchor="old", centre="group", pairs=pairs, target=case["eta"]) for pairs in (True, False)
    )
    check(
        row("rebel", residual=pairs), {"loss": case["pair_mean"], "dloss_dlogp": case["dpair_dlogp"]}, dtype
    )
    check(row("rebel", residual=mean), {"loss": case["centred_square_mean"]}, dtype)
    close(residuals(row("rebel", residual=mean), dtype), [abs(x) for x in case["residual"]], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rebel_of_one_pair(dtype):
    case = REBEL["one_pair"]
    pair = Residual(anchor="old", centre="group", pairs=True, target=case["eta"])
    check(row("rebel", residual=pair), {"loss": case["loss"]}, dtype, common(rows=case["rows"]))


def residuals(parts: Algorithm, dtype) -> list[float]:
    """|residual| per answer of the shared batch."""
    seen, objective = groups_of(common()), made(parts, dtype)
    batch = objective.batch(seen.groups)
    batch = replace(batch, ref_logp=laid_out(batch, seen.ref, dtype))
    logp, old = laid_out(batch, seen.logp, dtype), laid_out(batch, seen.old, dtype)
    _, told = residual(
        Terms(logp, old, logp - old, batch, parts, torch.zeros(batch.num_sequences, dtype=dtype))
    )
    return told["residual"][torch.bincount(batch.seq).cumsum(0) - 1].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_star_po(dtype):
    for case in A_STAR_PO["v_star"]:
        rewards = [1.0] * case["correct"] + [0.0] * (case["of"] - case["correct"])
        close(v_star(rewards, case["beta1"]), case["v_star"], torch.float64)
    slope = float(A_STAR_PO["case"]["name"].removeprefix("beta2="))
    values = [A_STAR_PO["V"][COMMON["group"].index(g)] for g in sorted(set(COMMON["group"]))]
    check(row("a_star_po", residual=Residual(slope=slope)), A_STAR_PO["case"], dtype, common(value=values))


class Given(torch.nn.Module):
    """log Z as handed in: the first number of the prompt's hidden state."""

    def forward(self, hidden):
        return hidden[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FLOWRL["cases"], ids=names(FLOWRL["cases"]))
def test_flowrl(case, dtype):
    p = FLOWRL["residual_params"]
    centre = {"given": "learned"}.get(case["centre"], case["centre"])
    parts = row(
        "flowrl",
        residual=Residual(target=p["beta"], length_norm=True, centre=centre, is_clip=case["is_clip"]),
    )
    given = FLOWRL["log_z_given"]
    hidden = [[given[COMMON["group"].index(g)]] for g in sorted(set(COMMON["group"]))]
    objective = made(parts, dtype)
    objective.log_z = Given() if centre == "learned" else None
    seen = groups_of([c | {"hidden": h} for c, h in zip(common(), hidden, strict=True)])
    out = value_and_grads(objective, seen, dtype)
    close(out.loss, case["loss"], dtype)
    close(out.logp_grad, own(case["dloss_dlogp"]), dtype)
    if centre == "learned":
        close(out.hidden_grad[:, 0], case["d_log_z"], dtype)
    else:
        close(residuals(parts, dtype), [abs(x) for x in case["residual"]], dtype)
    close(advantages(parts, COMMON["reward"], COMMON["group"]), FLOWRL["r_hat"], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_z_head(dtype):
    case = FLOWRL["log_z_head"]
    head = LogZ(len(case["W1"]), dtype)
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    for i, layer in enumerate(linear, 1):
        layer.weight.data, layer.bias.data = (torch.tensor(case[f"{key}{i}"], dtype=dtype) for key in "Wb")
    mean = torch.tensor(case["prompt_hidden"], dtype=dtype).mean(0)
    close(mean, case["mean_hidden"], dtype)
    close(head(mean[None]).detach(), case["log_z"], dtype)


def test_igrpo():
    assert [best_index(rewards) for rewards in IGRPO["draft_rewards"]] == IGRPO["best_index"]
    refined = IGRPO["refinement_rewards"]
    close(advantages(row("igrpo"), refined, [0] * len(refined)), IGRPO["refinement_advantage"], torch.float64)
    for case in IGRPO["expected_best"]:
        close(1 - (1 - case["p"]) ** case["n"], case["value"], torch.float64)
    printed = IGRPO["paper_row_check"]
    close(statistics.fmean(printed["row"]), printed["mean"], torch.float64)


@pytest.mark.parametrize(
    ("key", "schedule"), [("every_step_T2", "every"), ("released_three_step_cycle", "released")]
)
def test_guidance_length(key, schedule):
    rows = G2RPO_A[key]
    first = rows[0]["before"]
    controller = GuideLength(
        Guide(init=first, max=max(3072, *(r["after"] for r in rows)), history=2, schedule=schedule)
    )
    for case in rows:
        assert controller.length == case["before"]
        controller.observe(case["reward"])
        assert controller.length == case["after"]


def test_guided_groups():
    count = G2RPO_A["guided_count"]
    assert [guided_count(count["n"], share) for share in count["ratios"]] == count["ceil"]
    group = G2RPO_A["group_with_guided"]
    close(
        advantages(row("g2rpo_a"), group["reward"], [0] * len(group["reward"])),
        group["advantage"],
        torch.float64,
    )
    masks = G2RPO_A["masks"]
    shown, sampled = masks["guidance_tokens"], masks["generated_tokens"]
    for train_guidance, mask in ((False, masks["loss_mask_masked"]), (True, masks["loss_mask_released"])):
        prompt = Prompt("0", "?", (1,), "")
        answer = Completion(tuple(range(shown + sampled)), (-1.0,) * sampled, "", "stop", 0, given=shown)
        plain = Completion((1,), (-1.0,), "", "stop", 0)
        rollouts = tuple(Rollout(prompt, c, Score(r, Outcome.ok)) for c, r in ((answer, 1.0), (plain, 0.0)))
        parts = row("g2rpo_a", guide=Guide(train_guidance=train_guidance))
        batch = made(parts, torch.float64).batch([Group(prompt, rollouts)])
        first = batch.select(torch.tensor([0]))
        # the guidance is read whether it is trained or not
        assert len(first.input_ids) - 1 == len(masks["context"])
        assert first.num_tokens == sum(mask) and (first.at[-first.num_tokens :] >= mask.index(1)).all()


def test_rubric_rewards():
    criteria = [Criterion("", c["kind"], c["w"]) for c in RGR_GRPO["criteria"]]
    held = [tuple(map(bool, row)) for row in RGR_GRPO["satisfied"]]
    close([rubric.aggregate(criteria, h) for h in held], RGR_GRPO["aggregate"], torch.float64)
    rewards = [rubric.reward(criteria, h, "factual") for h in held]
    close(rewards, RGR_GRPO["reward"], torch.float64)
    assert best_index(rewards) == RGR_GRPO["best"]
    prompt = Prompt("0", "?", (1,), "", rubric=tuple(replace(c, text=str(i)) for i, c in enumerate(criteria)))
    best = held[RGR_GRPO["best"]]
    failed = shortcomings(
        Rollout(prompt, Completion((1,), (0.0,), "", "stop", 0), Score(1.0, Outcome.ok, {}, best))
    )
    assert failed == [str(i) for i in RGR_GRPO["failed_of_best"]] and bool(failed) == RGR_GRPO["refine"]
    group = RGR_GRPO["group_reward"]
    close(advantages(row("rgr_grpo"), group, [0] * len(group)), RGR_GRPO["group_advantage"], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", RGR_GRPO["losses"], ids=names(RGR_GRPO["losses"]))
def test_rgr_grpo(case, dtype):
    sizes = [COMMON["group"].count(g) for g in sorted(set(COMMON["group"]))]
    first = [sum(sizes[:g]) for g in range(len(sizes))]
    off = [
        [i - begin for i in RGR_GRPO["off_rows"] if begin <= i < begin + n]
        for begin, n in zip(first, sizes, strict=True)
    ]
    check(
        row("rgr_grpo", shaped=Shaped(gamma=case["gamma"], form=case["form"])), case, dtype, common(off=off)
    )


def test_shaping():
    case = RGR_GRPO["shaping"]
    logp = torch.tensor(case["p"], dtype=torch.float64).log().requires_grad_()
    rollouts = groups_of([{"lengths": [1] * len(logp), "rewards": [1.0] * len(logp)}])
    for form, key in (("self", "dlogp_self"), ("old", "dlogp_old_onpolicy")):
        parts = row("rgr_grpo", shaped=Shaped(gamma=0.1, form=form), advantage="reward")
        batch = made(parts, torch.float64).batch(rollouts.groups)
        gain = shaped(Terms(logp, logp.detach(), logp - logp.detach(), batch, parts))
        close(torch.autograd.grad(gain.sum(), logp)[0], case[key], torch.float64)
        if form == "self":
            close(gain.detach(), case["value_self"], torch.float64)


@pytest.mark.parametrize("case", VINEPPO["cases"], ids=names(VINEPPO["cases"]))
def test_vineppo(case):
    spans = tuple(tuple(span) for span in case["spans"])
    values = tuple(statistics.fmean(rewards) for rewards in case["mc_rewards"])
    close(step_values(values, len(spans), case["final_reward"]), case["values"], torch.float64)
    count = spans[-1][1]
    answer = Completion(tuple(range(count)), (0.0,) * count, "", "stop", 0)
    rollout = Rollout(
        Prompt("0", "?", (1,), ""),
        answer,
        Score(case["final_reward"], Outcome.ok),
        spans=spans,
        values=values,
    )
    tokens = step_credit(rollout)
    close([tokens[begin] for begin, _ in spans], case["step_advantage"], torch.float64)
    close(tokens, case["token_advantage"], torch.float64)
    brick = next_value([Group(rollout.prompt, (rollout,))], row("vineppo"))
    close(brick, case["whitened_sample_var"], torch.float64)


def test_diagnostics():
    d = DIAGNOSTICS
    base, tuned = (pass_curve(d["n"], d[key], d["k"]) for key in ("base_correct", "tuned_correct"))
    close([base, tuned], [d["base_curve"], d["tuned_curve"]], torch.float64)
    assert crossover(base, tuned, d["k"]) == d["crossover_k"]
    assert coverage(d["base_correct"], d["tuned_correct"]) == d["quadrants"]
    for case in d["tilt"]:
        close(tilted(case["p"], case["beta"]), case["p_star"], torch.float64)
        close(1 / case["beta"], case["logit_shift"], torch.float64)
    for case in d["zero_count_upper95"]:
        close(never_upper(case["n"]), case["upper"], torch.float64)
