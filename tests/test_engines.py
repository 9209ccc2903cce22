"""The contract of a rollout engine, on the real one."""

import json
import shutil

import pytest
import torch
from packaging.specifiers import SpecifierSet
from support import tiny_recipe

from lgrpo_lite.checks.check import demand
from lgrpo_lite.engines.base import SamplingParams, engine_name, installed, open_engine
from lgrpo_lite.engines.vllm_fit import TESTED, check_version
from lgrpo_lite.errors import ConfigError, EnvironmentFault
from lgrpo_lite.machine.facts import cuda_devices
from lgrpo_lite.machine.stacks import allowed
from lgrpo_lite.objective.objective import Objective
from lgrpo_lite.policy.load import locate
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import build
from lgrpo_lite.types import Group, Outcome, Rollout, Score


@pytest.fixture(scope="module")
def run():
    return build(tiny_recipe("rollout.temperature=0.7"))


def scored(run, completions):
    """Groups with made-up rewards, so that every token is in the batch."""
    return [
        Group(p, tuple(Rollout(p, c, Score(float(i % 2), Outcome.ok)) for i, c in enumerate(answers)))
        for p, answers in zip(run.eval_prompts, completions, strict=True)
    ]


@pytest.mark.parametrize("weights", ["fp32", "nf4", "bf16"])
def test_sampler_and_trainer_agree_at_another_temperature(weights):
    run = build(tiny_recipe("rollout.temperature=0.7", f"model.weights={weights}"))
    for name, parameter in run.policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with run.engine.serving(run.policy) as sampler:
        groups = scored(run, sampler.generate(run.eval_prompts, 4, run.sampling))
    batch = run.objective.batch(groups)
    logp = run.policy.logprobs(batch).logp
    apart = (logp - batch.sampler_logp).abs()
    # a bf16 logit near 20 is rounded to 1/8
    assert apart.mean() < 0.01 if weights == "bf16" else apart.max() < 2e-4


def test_counts_versions_and_ends(run):
    run.policy.version = 7
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 3, run.sampling)
        cut = sampler.generate(run.eval_prompts[:2], 1, SamplingParams(1.0, 2))
    run.policy.version = 0
    assert [len(a) for a in answers] == [3] * len(run.eval_prompts)
    for completion in (c for a in answers for c in a):
        assert completion.policy_version == 7
        assert len(completion.logprobs) == len(completion.token_ids)
        ends = [t in run.policy.eos_ids for t in completion.token_ids]
        assert sum(ends) == (completion.finish_reason == "stop") and ends[-1] == (
            completion.finish_reason == "stop"
        )
        assert "<|" not in completion.text
    assert {c.finish_reason for a in cut for c in a} == {"length"}


def test_greedy_answers_do_not_depend_on_the_batch(run):
    greedy = SamplingParams(0.0, 16)
    with run.engine.serving(run.policy) as sampler:
        together = sampler.generate(run.eval_prompts, 1, greedy)
        alone = [sampler.generate([p], 1, greedy)[0] for p in run.eval_prompts]
    assert [a[0].token_ids for a in together] == [a[0].token_ids for a in alone]


def test_training_mode_comes_back(run):
    run.policy.model.train()
    with run.engine.serving(run.policy):
        assert not run.policy.model.training
    assert run.policy.model.training


def test_a_model_that_brings_its_own_sampling_settings_does_not_bias_the_rollouts(tmp_path):
    """Qwen2.5 ships repetition_penalty, top_p and top_k; generate() would fill them in."""
    folder = tmp_path / "model"
    shutil.copytree(locate("builtin:tiny-math"), folder)
    own = {"repetition_penalty": 5.0, "top_p": 0.1, "top_k": 1, "temperature": 0.1, "do_sample": True}
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | own))
    recipe = tiny_recipe(f"model.id={folder}")
    policy, engine = Policy.load(recipe), open_engine(recipe)
    prompts = build(tiny_recipe()).eval_prompts
    with engine.serving(policy) as sampler:
        answers = sampler.generate(prompts, 8, SamplingParams(1.0, 16))
    assert any(len({c.token_ids for c in a}) > 1 for a in answers)  # top_k 1 would make all eight equal
    groups = [
        Group(p, tuple(Rollout(p, c, Score(float(i % 2), Outcome.ok)) for i, c in enumerate(a)))
        for p, a in zip(prompts, answers, strict=True)
    ]
    batch = Objective(recipe.algorithm, max_new_tokens=16).batch(groups)
    assert (policy.logprobs(batch)[0] - batch.sampler_logp).abs().max() < 2e-4


def test_pad_may_equal_eos(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(locate("builtin:tiny-math"), folder)
    for name in ("tokenizer_config.json",):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"pad_token": settings["eos_token"]}))
    recipe = tiny_recipe(f"model.id={folder}", "export.formats=[]")
    run = build(recipe)
    assert run.policy.tokenizer.pad_token_id == run.policy.tokenizer.eos_token_id
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(run.eval_prompts, 2, run.sampling)
    assert all(c.token_ids[-1] in run.policy.eos_ids for a in answers for c in a if c.finish_reason == "stop")


@pytest.mark.parametrize(
    ("overrides", "where", "what"),
    [
        (["model.lora=null"], "rollout.engine", "takes adapters"),
        (["model.weights=int8"], "model.weights", "int8"),
        (["model.lora.rank=513"], "model.lora.rank", "up to rank 512"),
        (["model.lora.targets=[q_proj, lm_head]"], "model.lora.targets", "lm_head"),
        (["model.lora.dora=true"], "model.lora.dora", "DoRA"),
        (["model.lora.modules_to_save=[lm_head]"], "model.lora.modules_to_save", "whole modules"),
        (["model.lora.bias=all"], "model.lora.bias", "biases"),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "vllm-server", "unsloth"])
def test_what_vllm_cannot_serve_is_refused_before_anything_is_loaded(engine, overrides, where, what):
    with pytest.raises(ConfigError, match=what) as error:
        tiny_recipe(f"rollout.engine={engine}", "model.weights=bf16", *overrides)
    assert where in error.value.where


@pytest.mark.parametrize(("engine", "extra"), [("vllm", "vllm"), ("unsloth", "unsloth")])
def test_an_engine_that_is_not_installed_names_its_extra(engine, extra):
    if installed("vllm"):
        pytest.skip("this environment has vLLM")
    with pytest.raises(EnvironmentFault, match=r"not installed: .*vllm") as error:
        demand(tiny_recipe(f"rollout.engine={engine}", "model.weights=bf16"))
    assert f"lgrpo-lite[{extra}]" in error.value.fix and error.value.exit_code == 3


def test_auto_is_what_can_run_here():
    assert engine_name(tiny_recipe("rollout.engine=auto")) == (
        "vllm" if cuda_devices() and installed("vllm") else "transformers"
    )


def test_it_goes_on_from_a_prefix(run):
    """Greedy: from any piece of an answer on, the answer is the same; prefixes of
    different lengths share a batch.
    """
    greedy = SamplingParams(0.0, 16)
    with run.engine.serving(run.policy) as sampler:
        whole = [row[0] for row in sampler.generate(run.eval_prompts, 1, greedy)]
        shown = [tuple(c.token_ids[: i % 5]) for i, c in enumerate(whole)]
        again = [row[0] for row in sampler.generate(run.eval_prompts, 1, greedy, shown)]
    for c, prefix, full in zip(again, shown, whole, strict=True):
        assert c.token_ids == full.token_ids and c.text == full.text and c.finish_reason == full.finish_reason
        assert c.given == len(prefix) and len(c.logprobs) == len(c.token_ids) - c.given
        torch.testing.assert_close(c.logprobs, full.logprobs[c.given :], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("limit", "given", "sampled"), [(6, 6, 0), (6, 9, 0), (6, 5, 1), (6, 0, 6)])
def test_a_prefix_counts_towards_the_limit(run, limit, given, sampled):
    prefix = run.policy.tokenizer("999999999", add_special_tokens=False)["input_ids"][:given]
    with run.engine.serving(run.policy) as sampler:
        row = sampler.generate(run.eval_prompts[:2], 2, SamplingParams(1.0, limit), [prefix, ()])
    first, other = row
    for c in first:
        assert c.given == min(given, limit) and len(c.token_ids) - c.given <= sampled
        assert c.text.startswith("9" * c.given)
    assert all(c.given == 0 and c.token_ids for c in other)


def test_log_probs_of_guided_answers_are_those_of_the_trainer(run):
    """The guidance is context, the rest is compared token by token."""
    prefix = [tuple(run.policy.tokenizer("12+3", add_special_tokens=False)["input_ids"])] * len(
        run.eval_prompts
    )
    with run.engine.serving(run.policy) as sampler:
        groups = scored(run, sampler.generate(run.eval_prompts, 2, run.sampling, prefix))
    batch = run.objective.batch(groups)
    assert batch.num_tokens == sum(len(r.completion.token_ids) - 4 for g in groups for r in g.rollouts)
    assert (run.policy.logprobs(batch).logp - batch.sampler_logp).abs().max() < 2e-4


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("0.31.2", "0.31.2 is too old: this engine knows 0.32 up to but not 0.33"),
        ("0.33.0", "too new"),
        ("0.32.4", None),
    ],
)
def test_a_vllm_outside_the_tested_range_is_named_with_the_range(tmp_path, monkeypatch, version, said):
    """Before it is imported: by what is installed, here a distribution that has
    nothing but a name and a version.
    """
    folder = tmp_path / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(tmp_path)
    if said is None:
        check_version("rollout.engine")
        return
    with pytest.raises(EnvironmentFault, match=said) as error:
        check_version("rollout.engine")
    assert error.value.exit_code == 3 and "vllm>=0.32,<0.33" in error.value.fix


def test_the_range_of_the_engine_is_that_of_its_extra():
    """One is named in an error, the other is what pip installs."""
    least, below = TESTED
    assert SpecifierSet(allowed("vllm")["vllm"]) == SpecifierSet(f">={least},<{below}")
