"""float64 reference vectors of the three λ papers: 1e-9 in float64, 1e-5 in float32.

The folder is tests/vectors, or the one named by the environment variable LGRPO_VECTORS.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from support import groups_of, value_and_grads

from lgrpo_lite.algorithm import Algorithm, Clip, Kl, LengthPreference, Trace
from lgrpo_lite.objective import trace
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.objective.weight import LengthPreference as Preference
from lgrpo_lite.objective.weight import prefix_share

FOLDER = Path(os.environ.get("LGRPO_VECTORS") or Path(__file__).parent / "vectors")
LEARNABLE = json.loads((FOLDER / "lambda_grpo_learnable.json").read_text())
TRACES = json.loads((FOLDER / "grpo_lambda_traces.json").read_text())
PREFIX = json.loads((FOLDER / "lambda_grpo_prefix.json").read_text())
DTYPES = [torch.float64, torch.float32]
REDUCE = {"seq_mean": "sequence_mean", "token_mean": "token_mean"}


def close(actual, expected, dtype) -> None:
    """Relative 1e-9 / 1e-5, with the same number as the absolute tolerance of values near zero."""
    tol = 1e-9 if dtype == torch.float64 else 1e-5
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
    out = value_and_grads(Objective(parts, max_new_tokens=case["max_len"], dtype=dtype), groups_of([case]), dtype)
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
    objective = Objective(preference_parts({"r": 1 / 9}, case["steps"][0]["lam"]), max_new_tokens=16, dtype=dtype)
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
@pytest.mark.parametrize("case", TRACES["matrices"], ids=lambda c: f"{c['style']}-b{c['decay']}-T{c['T']}-floor{c['floor']}")
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
    close(torch.tensor([s for row in prefix_share(case["seqs"]) for s in row]), case["expect"]["scale"], torch.float32)
    on_policy = {"lengths": [len(s) for s in case["seqs"]], "rewards": case["rewards"], "token_ids": case["seqs"]}
    for kind, shared in (("plain", False), ("scaled", True)):
        for name, reduce in REDUCE.items():
            parts = Algorithm(
                reduce=reduce, prefix_share=shared, advantage_std=case.get("adv_std", "sample"), rollout_correction=None
            )
            out = value_and_grads(Objective(parts, max_new_tokens=16, dtype=dtype), groups_of([on_policy]), dtype)
            close(out.loss, case["expect"][f"loss_{name}_{kind}"], dtype)
