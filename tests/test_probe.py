"""Proofs that rollouts come from this policy: faults are found by name, noise
is none, nothing is left behind.
"""

import itertools
import json
import math
import random
import re
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from support import lgrpo, tiny_recipe

import lgrpo_lite.engines.probe as probe
import lgrpo_lite.train.loop as loop
from lgrpo_lite.batch import for_scoring
from lgrpo_lite.engines.probe import Slope, SyncProof, demand_passed, proof_of
from lgrpo_lite.engines.selftest import stages, timed
from lgrpo_lite.engines.transformers import TransformersEngine, TransformersSampler
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.policy.fingerprint import fingerprint
from lgrpo_lite.policy.passes import SCORED_TOKENS
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step

SHORT = ["model.max_prompt_tokens=24", "model.max_new_tokens=16"]
SMALL = [
    *SHORT, "rollout.prompts_per_step=2", "rollout.group_size=4", "data.train.limit=20", "data.eval.limit=1", "eval.k=1",
    "eval.greedy=false", "algorithm.kl.coef=0.04",  # so that every step is an update
]  # fmt: skip


def started(*overrides: str, cache: bool = False):
    """A run; its engine may say that it has a prefix cache, so that it is asked about it."""
    run = build(tiny_recipe(*SHORT, *overrides))
    run.engine.caches_prefixes = cache
    return run


def proved(run):
    with run.engine.serving(run.policy) as sampler:
        return run.proof(sampler)


def failed(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


@torch.no_grad()
def updated(run, size: float, seed: int = 0) -> list[torch.Tensor]:
    """The next version, its B moved by noise of that size; the parameters of the one before."""
    before = [p.detach().clone() for p in run.policy.trainable()]
    drawn = torch.Generator().manual_seed(seed)
    for name, parameter in run.policy.model.named_parameters():
        if "lora_B" in name:
            parameter += torch.randn(parameter.shape, generator=drawn) * size
    run.policy.version += 1
    return before


def test_a_recipe_of_few_tokens_is_proven_too():
    """Prompts of a probe are never empty, also where prompt and answer have
    fewer tokens than its own answers.
    """
    run = build(tiny_recipe("model.max_new_tokens=2"))
    short = tiny_recipe("model.max_prompt_tokens=12", "model.max_new_tokens=2")
    proof = proof_of(run.engine, run.policy, run.prompts.prompts, short)
    run.engine.caches_prefixes = True
    with run.engine.serving(run.policy) as sampler:
        assert not failed(proof(sampler))
    assert all(prompt.token_ids for prompt in proof.prompts)


# ------------------------------------------------------------------------------------------- the slope

ANSWER = torch.arange(32).repeat_interleave(12)
D = torch.randn(len(ANSWER), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(len(ANSWER), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# one token moves more than all others
DOMINATED = 1e-3 * D + 5.0 * (ANSWER == 7) * (torch.arange(len(ANSWER)) % 12 == 0)
ELSEWHERE = D * (ANSWER == 3)


@pytest.mark.parametrize(
    ("r", "d", "beta", "held"),
    [
        (D, D, 1.0, True),
        (0 * D, D, 0.0, False),
        (-D, D, -1.0, False),
        (D + 0.1 * NOISE, D, 1.0, True),
        (0.1 * NOISE, D, 0.0, False),
        (1e-6 * D, 1e-6 * D, 1.0, True),  # however small, without noise it can be told
        (1e-3 * D + NOISE, 1e-3 * D, None, None),
        (NOISE, 1e-3 * D, None, None),
        (1e-3 * D + 1e-4 * NOISE, DOMINATED, None, None),  # the sampler is right but for that token
        (NOISE, DOMINATED, None, None),
        (ELSEWHERE, ELSEWHERE, 0.0, None),  # all that moves is one answer: nothing to compare it with
        (0 * D, 0 * D, 0.0, None),
        (NOISE, 0 * D, 0.0, None),
    ],
)
def test_what_the_sampler_holds_is_told_or_doubted(r, d, beta, held):
    slope = Slope.of(r, d, ANSWER)
    assert slope.held is held
    assert beta is None or slope.beta == pytest.approx(beta, abs=0.05)
    assert ("too small" in str(slope)) == (held is None)


@given(
    seed=st.integers(0, 10**6), answers=st.integers(8, 40), noise=st.sampled_from([0.01, 0.3, 1.0, 3.0, 30.0])
)
def test_noise_is_never_taken_for_another_adapter(seed, answers, noise):
    drawn = torch.Generator().manual_seed(seed)
    answer = torch.arange(answers).repeat_interleave(10)
    d, e = torch.randn(2, len(answer), generator=drawn, dtype=torch.float64)
    assert Slope.of(d + noise * e, d, answer).held is not False
    assert Slope.of(noise * e, d, answer).held is not True


@given(seed=st.integers(0, 10**6), answers=st.integers(2, 12))
def test_its_error_is_a_jackknife_over_answers(seed, answers):
    drawn = torch.Generator().manual_seed(seed)
    answer = torch.arange(answers).repeat_interleave(3)
    d, r = torch.randn(2, len(answer), generator=drawn, dtype=torch.float64)
    left = [answer != i for i in range(answers)]
    without = torch.stack([(r[keep] * d[keep]).sum() / d[keep].square().sum() for keep in left])
    slope = Slope.of(r, d, answer)
    assert slope.beta == pytest.approx(float((r * d).sum() / d.square().sum()))
    assert slope.error == pytest.approx(math.sqrt((answers - 1) ** 2 / answers * float(without.var())))
    shuffled = torch.randperm(len(answer), generator=drawn)
    other = Slope.of(5 * r[shuffled], 5 * d[shuffled], answer[shuffled])
    assert (other.beta, other.error) == pytest.approx((slope.beta, slope.error))


# ------------------------------------------------------------------------------------------- planted faults


@contextmanager
def holding(parameters, values):
    """Inside it the parameters have other values."""
    now = [p.detach().clone() for p in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data.copy_(value)
    try:
        yield
    finally:
        for parameter, value in zip(parameters, now, strict=True):
            parameter.data.copy_(value)


def sampling(monkeypatch, around) -> None:
    """`around(sampler, settings)` is entered for every call of generate; what it yields
    are the settings, where it does.
    """
    real = TransformersSampler.generate

    def generate(self, prompts, n, settings, prefixes=None):
        with around(self, settings) as changed:
            return real(self, prompts, n, changed or settings, prefixes)

    monkeypatch.setattr(TransformersSampler, "generate", generate)


def adapter_off(monkeypatch, run, before):
    sampling(monkeypatch, lambda sampler, _: sampler.policy.reference())


def adapter_before(monkeypatch, run, before):
    adapter = run.policy.trainable()
    sampling(monkeypatch, lambda *_: holding(adapter, before))


def prefixes_before(monkeypatch, run, before):
    """Keys and values of the last version serve on wherever the cache may be used."""
    adapter = run.policy.trainable()
    sampling(monkeypatch, lambda _, settings: nullcontext() if settings.salt else holding(adapter, before))


def cooler(monkeypatch, run, before):
    sampling(monkeypatch, lambda _, s: nullcontext(replace(s, temperature=0.9 * s.temperature)))


def another_trainer_temperature(monkeypatch, run, before):
    run.policy.temperature, own = 1.1, run.policy.temperature
    sampling(monkeypatch, lambda _, s: nullcontext(replace(s, temperature=own) if s.temperature else None))


def a_frozen_weight(run) -> torch.Tensor:
    return next(
        p.data for n, p in run.policy.model.named_parameters() if "layers.0.mlp.down_proj.base_layer" in n
    )


def a_sampler_weight(monkeypatch, run, before):
    """One number of the base differs, only while sampling: two copies that drifted apart."""
    weight = a_frozen_weight(run)
    other = weight.clone()
    other[3, 5] += 1
    sampling(monkeypatch, lambda *_: holding([weight], [other]))


def a_trainer_weight(monkeypatch, run, before):
    a_frozen_weight(run).view(torch.int32)[3, 5] ^= 1


def an_old_stamp(monkeypatch, run, before):
    real = TransformersSampler.generate

    def generate(self, *asked, **more):
        rows = real(self, *asked, **more)
        return [[replace(c, policy_version=c.policy_version - 1) for c in row] for row in rows]

    monkeypatch.setattr(TransformersSampler, "generate", generate)


def a_base_with_adapter(monkeypatch, run, before):
    monkeypatch.setattr(TransformersSampler, "reference", lambda self: nullcontext())


def nothing(monkeypatch, run, before):
    pass


FAULTS = [
    (nothing, set()),
    (adapter_off, {"adapter", "temperature", "agreement"}),
    (adapter_before, {"version", "agreement"}),
    (prefixes_before, {"prefix cache", "version", "agreement"}),
    (cooler, {"temperature", "agreement"}),
    (another_trainer_temperature, {"temperature", "agreement"}),
    (a_sampler_weight, {"base answers", "agreement"}),
    (a_trainer_weight, {"base weights"}),
    (an_old_stamp, {"stamp"}),
    (a_base_with_adapter, {"base answers"}),
]


@pytest.mark.parametrize(("plant", "names"), FAULTS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_planted_fault_is_found_by_name(monkeypatch, plant, names):
    run = started(cache=plant in (nothing, prefixes_before))
    updated(run, 0.02)
    assert failed(proved(run)) == set()
    plant(monkeypatch, run, updated(run, 0.01, seed=1))
    checks = proved(run)
    assert failed(checks) == names
    if names:
        with pytest.raises(VerificationError) as error:
            demand_passed(checks, "proof before step 2")
        assert error.value.exit_code == 6 and error.value.where == "proof before step 2"
        assert all(
            f"{check.name}: {check.found}" in error.value.what for check in checks if check.name in names
        )


@pytest.mark.parametrize("weights", ["bf16", "int8", "nf4"])
def test_a_small_update_that_did_not_arrive_is_found_with_any_weights(monkeypatch, weights):
    """It moves log-probs by less than the kernels of these weights may differ."""
    run = started(f"model.weights={weights}")
    for seed, (plant, wrong) in enumerate(
        [(nothing, set()), (nothing, set()), (adapter_before, {"version"})]
    ):
        before = updated(run, 0.005, seed)
        with monkeypatch.context() as patch:
            plant(patch, run, before)
            assert failed(proved(run)) == wrong


@pytest.mark.parametrize("weights", ["fp32", "nf4"])
def test_a_sampler_one_update_behind_is_found_long_after_the_last_proof(monkeypatch, weights):
    """Most of what changed since then is there, so it takes the version before the last update to see it."""
    run = started(f"model.weights={weights}")
    assert failed(proved(run)) == set()
    for late in (False, True):
        for seed in range(6):
            run.proof.remember()
            before = updated(run, 0.01, 10 * late + seed)
        if late:
            adapter_before(monkeypatch, run, before)
        checks = proved(run)
        assert "last update" in {check.name for check in checks}
        assert ("last update" in failed(checks)) == late


def test_an_adapter_that_is_off_is_found_with_4_bit_weights(monkeypatch):
    run = started("model.weights=nf4")
    updated(run, 0.005)
    adapter_off(monkeypatch, run, None)
    assert failed(proved(run)) == {"adapter"}


def test_where_nothing_can_be_told_nothing_is_said_for_sure():
    """B is zero: with the adapter and without it are the same."""
    unsure = [check.name for check in proved(started()) if not check.sure]
    assert unsure == ["adapter"]


def test_all_parameters_have_neither_adapter_nor_base():
    run = started("model.lora=null", cache=True)
    names = [check.name for check in proved(run)]
    assert names == ["stamp", "base weights", "temperature", "agreement", "prefix cache"]
    with torch.no_grad():
        run.policy.trainable()[0].mul_(1.01)
    assert failed(proved(run)) == set()


# ------------------------------------------------------------------------------------------- noise


def noisy(monkeypatch, size: float) -> None:
    """Log-probs of another kernel: noise on a logit leaves a token that is sure as it is."""
    real, drawn = TransformersSampler.generate, random.Random(0)

    def generate(self, *asked, **more):
        rows = real(self, *asked, **more)
        return [
            [
                replace(c, logprobs=tuple(x + drawn.gauss(0, size) * (1 - math.exp(x)) for x in c.logprobs))
                for c in row
            ]
            for row in rows
        ]

    monkeypatch.setattr(TransformersSampler, "generate", generate)


@pytest.mark.slow
def test_noise_of_a_kernel_raises_no_alarm_over_30_updates(monkeypatch):
    """On half of the tokens that a run's proofs have, so with more doubt."""
    monkeypatch.setattr(probe, "TOKENS", 8)
    run = started("model.weights=bf16", cache=True)
    noisy(monkeypatch, 0.02)
    for seed in range(30):
        assert failed(proved(run)) == set(), seed
        run.engine.caches_prefixes = seed % 5 == 0
        updated(run, 10 ** (-4 + seed % 3), seed)  # far below the noise, near it, above it


@pytest.mark.parametrize(
    ("first", "later", "fails"),
    [
        (0.0015, 0.0015, ()),  # the first proof records: there is nothing stale yet
        (0.0025, 0.0, (True, False)),  # more than two kernels may differ by
        (0.0001, 0.0008, ()),  # later ones may differ by what one kernel does
        (0.0001, 0.0015, (False, True)),
        (0.0004, 0.0015, ()),  # or by five times what the first did
        (0.0015, 0.0025, (False, True)),  # but never by more than two kernels
    ],
)
def test_prompts_through_the_cache_may_differ_by_rounding(monkeypatch, first, later, fails):
    """fp32: 0.001 of one kernel with itself, 0.002 of two."""
    run, apart = started(cache=True), [0.0]
    real = TransformersSampler.generate

    def generate(self, prompts, n, settings, prefixes=None):
        rows = real(self, prompts, n, settings, prefixes)
        if not settings.salt:
            return rows
        return [[replace(c, logprobs=tuple(x + apart[0] for x in c.logprobs)) for c in row] for row in rows]

    monkeypatch.setattr(TransformersSampler, "generate", generate)
    found = []
    for apart[0] in (first, later):
        found.append("prefix cache" in failed(proved(run)))
    assert tuple(found) == (fails or (False, False))


def test_scoring_in_small_passes_gives_the_same_numbers(monkeypatch):
    """What a proof scores while keys and values are there has at most so many
    tokens at once, padding included.
    """
    run = started("model.weights=fp32")
    updated(run, 0.02)
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.proof.prompts, probe.ANSWERS, run.sampling)
    pairs = [(p, c) for p, row in zip(run.proof.prompts, answers, strict=True) for c in row]
    batch = for_scoring(pairs, torch.float64)
    run.policy.model.double()  # where passes of another shape round alike
    run.policy.dtype = torch.float64
    with torch.no_grad():
        whole = run.policy.logprobs(batch).logp
    sizes, real = [], Policy.logprobs

    def logprobs(self, part, **more):
        sizes.append(part.num_sequences * (int(part.length.max()) - 1))
        return real(self, part, **more)

    monkeypatch.setattr(Policy, "logprobs", logprobs)
    torch.testing.assert_close(probe.scored(run.policy, batch), whole, rtol=0, atol=1e-12)
    assert len(sizes) > 1 and max(sizes) <= SCORED_TOKENS
    sizes.clear()
    run.policy.model.float()
    run.policy.dtype = torch.float32
    proved(run)
    assert max(sizes) <= SCORED_TOKENS


class OtherKernel(TransformersEngine):
    """Samples with a copy of its own, in other precision."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.copy = Policy.load(recipe)

    @contextmanager
    def serving(self, policy):
        for own, value in zip(self.copy.trainable(), policy.trainable(), strict=True):
            own.data.copy_(value)
        self.copy.version = policy.version
        with super().serving(self.copy) as sampler:
            yield sampler


def test_a_real_copy_in_bf16_raises_no_alarm_and_a_forgotten_sync_does():
    run = started()
    run.engine = OtherKernel(tiny_recipe(*SHORT, "model.weights=bf16"))
    run.proof = SyncProof(run.engine, run.policy, run.prompts.prompts, weights="bf16", longest=40)
    for seed in range(4):
        assert failed(proved(run)) == set()
        updated(run, 0.003, seed)
    assert failed(proved(run)) == set()
    with run.engine.serving(run.policy) as sampler:
        updated(run, 0.01, 9)
        assert failed(run.proof(sampler)) >= {"version", "stamp"}


# ------------------------------------------------------------------------------------------- nothing left behind


def random_numbers() -> list[torch.Tensor]:
    _, keys, *rest = np.random.get_state()
    return [
        torch.get_rng_state(),
        torch.from_numpy(keys.copy()).view(torch.uint8),
        torch.tensor(rest[0]).view(1).view(torch.uint8),
    ]


def everything(run) -> tuple:
    """All that a proof must leave as it was. Not Python's random numbers: beartype
    draws from them while testing.
    """
    policy = run.policy
    state = torch.cat(
        [*random_numbers(), *(p.detach().flatten().view(torch.uint8) for p in policy.trainable())]
    )
    modes = [m.training for m in policy.model.modules()]
    off = [m.disable_adapters for m in policy.model.modules() if isinstance(m, LoraLayer)]
    return state.numpy().tobytes(), fingerprint(policy.model), modes, off, policy.temperature, policy.version


def test_a_proof_leaves_everything_as_it_was():
    run = started("rollout.temperature=0.8", "model.lora.dropout=0.3", cache=True)
    for seed, training in enumerate([True, False, True]):
        with run.engine.serving(run.policy) as sampler:
            run.policy.model.train(training)
            before = everything(run)
            assert failed(run.proof(sampler)) == set()
            assert everything(run) == before
        updated(run, 0.02, seed)


def test_what_a_proof_finds_does_not_depend_on_the_random_numbers_of_the_run():
    found = []
    for seed in (1, 2):
        run = started()
        updated(run, 0.02)
        torch.manual_seed(seed)
        found.append(proved(run) + proved(run))
    assert found[0] == found[1]


def breaking(real, number: int):
    """`real`, but its call of that number finds the device gone."""
    count = itertools.count(1)

    def call(*asked, **more):
        if next(count) == number:
            raise ConnectionError
        return real(*asked, **more)

    return call


def test_so_does_one_that_breaks_off(monkeypatch):
    """At every place where it asks the trainer or the sampler for something."""
    run = started("rollout.temperature=0.8")
    proved(run)
    updated(run, 0.02)
    before = everything(run)
    for holder, name in ((Policy, "logprobs"), (TransformersSampler, "generate")):
        for number in itertools.count(1):
            with monkeypatch.context() as patch:
                patch.setattr(holder, name, breaking(getattr(holder, name), number))
                try:
                    assert failed(proved(run)) == set()
                    break  # it asks no more often
                except ConnectionError:
                    assert everything(run) == before, (name, number)
        assert number > 2


def test_a_run_is_the_same_with_and_without_proofs():
    found = []
    for proving in (True, False):
        run = started("rollout.prompts_per_step=2", "model.lora.dropout=0.1")
        for step in (1, 2):
            if proving:
                proved(run)
            train_step(step, run)
        found.append(torch.cat([p.detach().flatten() for p in run.policy.trainable()]))
    assert torch.equal(*found)


# ------------------------------------------------------------------------------------------- selftest


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (
            ["model.weights=nf4", "rollout.temperature=0.6"],
            ["as loaded", "an adapter", "another adapter", "temperature 1"],
        ),
        (["model.lora=null"], ["as loaded", "temperature 0.7"]),
    ],
)
def test_a_sound_stack_passes_every_stage(overrides, names):
    run = started(*overrides)
    done = list(stages(run.engine, run.policy, run.proof))
    assert [stage.partition(" that moves")[0] for stage, _ in done] == names
    assert [failed(checks) for _, checks in done] == [set()] * len(names)


def selftest(capsys, *more: str) -> tuple[int, str, str]:
    code = lgrpo("selftest", "tiny-math", *SMALL, *more)
    out, err = capsys.readouterr()
    return code, out, err


def test_selftest_gives_one_json_object(capsys):
    code, out, _ = selftest(capsys, "--json")
    whole = json.loads(out)
    assert code == 0 and (whole["ok"], whole["command"], whole["schema"]) == (True, "selftest", 1)
    named = [
        stage.partition(" that moves")[0] for stage in dict.fromkeys(row["stage"] for row in whole["result"])
    ]
    assert named == ["as loaded", "an adapter", "another adapter", "temperature 0.7"]
    assert all(row["passed"] for row in whole["result"])
    assert {"stamp", "adapter", "version", "agreement", "base answers"} <= {
        row["check"] for row in whole["result"]
    }
    rollout, recipe = whole["rollout"], tiny_recipe(*SMALL)
    assert (rollout["weights"], rollout["engine"]) == (recipe.model.weights, "transformers")
    assert rollout["answers"] == recipe.rollout.prompts_per_step * recipe.rollout.group_size
    assert (
        0 < rollout["tokens"] <= rollout["answers"] * rollout["limit"]
        and rollout["limit"] == recipe.model.max_new_tokens
    )
    assert rollout["tokens_per_second"] == rollout["tokens"] / rollout["seconds"] > 0


def test_selftest_says_how_fast_the_rollouts_are(capsys):
    code, out, _ = selftest(capsys)
    last, of = out.splitlines()[-1], r"\(fp32, transformers, 8 answers of up to 16 tokens\)"
    said = re.fullmatch(rf"rollout ([\d,]+) tokens/s {of}", last)
    assert code == 0 and said and int(said[1].replace(",", "")) > 0


@pytest.mark.parametrize(("asked", "n", "answers"), [(40, 4, 128), (40, 200, 128), (3, 50, 100), (2, 4, 8)])
def test_a_rollout_is_timed_in_bounds(asked, n, answers):
    run = started()
    for longest, limit in ((4, 4), (500, 64)):
        found = timed(run.engine, run.policy, run.prompts.first(asked), n, longest=longest)
        assert (found.answers, found.limit) == (answers, limit) and answers <= found.tokens <= limit * answers
        assert found.tokens_per_second > 0


def test_selftest_finds_a_planted_fault(capsys, monkeypatch):
    adapter_off(monkeypatch, None, None)
    code, out, err = selftest(capsys, "--json")
    whole = json.loads(out)
    wrong = {row["check"] for row in whole["result"] if not row["passed"]}
    assert code == 6 and whole["ok"] is False and {"adapter", "version"} <= wrong
    assert whole["rollout"] is None  # how fast a wrong sampler is says nothing
    assert "error: the rollouts do not come from this policy" in err and "at  selftest of tiny-math" in err
    assert "Traceback" not in err


def test_selftest_prints_what_failed(capsys, monkeypatch):
    an_old_stamp(monkeypatch, None, None)
    code, out, _ = selftest(capsys)
    assert code == 6 and out.count("FAIL stamp") == 4 and out.count("FAIL") == 4


# ------------------------------------------------------------------------------------------- a run


def rows(path, name: str) -> list[dict]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def proofs(path) -> list[dict]:
    return [row for row in rows(path, "events.jsonl") if row["kind"] == "proof"]


def trained(folder, name: str, *more: str) -> int:
    options = ["export.formats=[]", "train.save_every=1", "--runs", folder, "--name", name, "--ui", "none"]
    return lgrpo("recipe", "tiny-math", *SMALL, *options, *more)


def test_a_run_proves_its_first_two_steps_and_every_so_many(tmp_path):
    assert trained(tmp_path, "sound", "train.steps=5", "safety.sync_proof_every=4") == 0
    found = proofs(tmp_path / "sound")
    assert [(row["step"], row["version"]) for row in found] == [(1, 0), (2, 1), (4, 3)]
    assert all(check["passed"] for row in found for check in row["checks"])
    assert [{"version"} <= {check["name"] for check in row["checks"]} for row in found] == [False, True, True]


@pytest.mark.parametrize(("plant", "name"), [(a_trainer_weight, "base weights"), (adapter_before, "version")])
def test_a_fault_after_the_first_step_ends_the_run(tmp_path, monkeypatch, capfd, plant, name):
    """Nothing is trained on what failed, and the run goes on when the fault is gone."""

    def faulty(step, run):
        before = [p.detach().clone() for p in run.policy.trainable()]
        result = train_step(step, run)
        plant(patch, run, before)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", faulty)
        assert trained(tmp_path, "faulty", "train.steps=2") == 6
    folder, err = tmp_path / "faulty", capfd.readouterr().err
    status = json.loads((folder / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 6)
    assert (
        name in err
        and "proof before step 2, policy version 1, engine transformers" in err
        and "Traceback" not in err
    )
    first, second = proofs(folder)
    assert failed_rows(first) == set() and name in failed_rows(second)
    assert [row["step"] for row in rows(folder, "metrics.jsonl")] == [1]
    assert trained(tmp_path, "faulty", "train.steps=2", "--resume", "auto") == 0
    assert [row["policy_version"] for row in rows(folder, "metrics.jsonl")] == [1, 2]


def failed_rows(event: dict) -> set[str]:
    return {check["name"] for check in event["checks"] if not check["passed"]}
