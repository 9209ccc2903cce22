"""The page itself, on the embedded model: every algorithm steps, a bad number moves
nothing, a missing reward is left out.
"""

import dataclasses
import json
from itertools import islice, product

import pytest
import torch
from support import slow_but_for, tiny_recipe

from lgrpo_lite.data.arithmetic import problems
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.policy.memory import layers_of
from lgrpo_lite.train.build import build
from lgrpo_lite.train.evaluate import evaluate
from lgrpo_lite.train.guard import NonFinite
from lgrpo_lite.train.step import train_step

SMALL_PROBES = {
    "igrpo": ["algorithm.best_draft.when=wrong"],
    "vineppo": ["algorithm.probe_values={k: 2, max_states: 2}"],
    "cppo": ["algorithm.select.refill=false"],
}


def with_values(run):
    """A run whose pre-pass, if it has one, was made: half of the answers were right."""
    if run.plan.values:
        run.plan.values.rewards = {run.plan.values.key(p): [0.0, 1.0] for p in run.prompts.prompts}
    return run


def weights(run) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.policy.trainable()])


OFTEN = ["grpo", "length_preference", "trace", "vineppo"]
PLAIN, KINDS = "model.weights=fp32", ["model.weights=nf4", "optim.updates_per_batch=2"]
STEPPED = [(name, PLAIN) for name in sorted(NAMED)] + [(name, kind) for name in OFTEN for kind in KINDS]


@pytest.mark.parametrize(
    ("name", "kind"), slow_but_for(STEPPED, list(product(sorted(NAMED), [PLAIN, *KINDS])))
)
def test_every_algorithm_steps(name, kind):
    bound = ["algorithm.surrogate=clipped"] if name == "rgr_grpo" else []
    run = with_values(build(tiny_recipe(f"algorithm.use={name}", kind, *SMALL_PROBES.get(name, []), *bound)))
    before = weights(run)
    record, groups = train_step(1, run)
    assert record.skipped is None and record.groups == len(groups) >= 4
    assert not torch.equal(weights(run), before)
    assert record.policy_version == run.policy.version == run.recipe.optim.updates_per_batch
    assert record.disagreement < 1e-4
    assert (record.kl is not None) == (run.recipe.algorithm.kl.coef > 0)
    assert record.guide_tokens is None or name == "g2rpo_a"
    assert (record.length_lambda is not None) == (name == "length_preference")
    assert all(p.grad is None for p in run.policy.trainable())


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_all_parameters_can_be_trained(kind):
    run = build(tiny_recipe("model.lora=null", f"model.weights={kind}", "optim.lr=1e-4"))
    before = weights(run)
    record, _ = train_step(1, run)
    assert record.skipped is None
    assert (weights(run) - before).abs().max() > 0
    assert weights(run).dtype == torch.float32  # steps of 1e-4 would vanish in bf16


def test_lambda_moves_by_its_own_rate_and_gradient():
    run = build(tiny_recipe("algorithm.length_preference.lr=0.5"))
    record, _ = train_step(1, run)
    assert record.length_lambda == pytest.approx(-0.5 * record.length_lambda_grad)
    assert record.length_lambda != 0
    frozen = build(
        tiny_recipe("algorithm.length_preference.freeze=true", "algorithm.length_preference.lambda_init=1.5")
    )
    record, _ = train_step(1, frozen)
    assert record.length_lambda == 1.5 and record.length_lambda_grad is None


def test_lambda_stays_inside_its_clamp():
    run = build(
        tiny_recipe("algorithm.length_preference.lr=1000", "algorithm.length_preference.clamp=[-0.01,0.01]")
    )
    record, _ = train_step(1, run)
    assert abs(record.length_lambda) == pytest.approx(0.01)


def test_a_loss_that_is_not_finite_moves_nothing(monkeypatch):
    run = build(tiny_recipe())
    real = run.policy.logprobs

    def broken(batch, **asked):
        scored = real(batch, **asked)
        return scored._replace(logp=scored.logp * torch.tensor(float("nan")))

    monkeypatch.setattr(run.policy, "logprobs", broken)
    before = weights(run)
    with pytest.raises(NonFinite, match="loss is nan at step 1"):
        train_step(1, run)
    assert torch.equal(weights(run), before)
    assert run.objective.length_lambda == 0 and run.policy.version == 0


def test_missing_rewards_leave_their_groups(tmp_path):
    (tmp_path / "mine.py").write_text(
        "calls = 0\ndef sometimes(completion, reference):\n    global calls\n    calls += 1\n"
        "    if calls % 4 == 0: raise TimeoutError\n    return float(completion.endswith(reference))\n"
    )
    one = "safety.reward_workers=1"  # it counts its calls in its own process
    run = build(tiny_recipe(f"rewards=[{{use: '{tmp_path}/mine.py:sometimes'}}]", one))
    record, groups = train_step(1, run)
    assert record.missing == 4
    assert all(len(g.rollouts) == 3 for g in groups)
    assert record.skipped is None


def test_dynamic_sampling_draws_again_but_not_forever(tmp_path):
    (tmp_path / "mine.py").write_text("def flat(completion): return 1.0\n")
    run = build(
        tiny_recipe(
            "algorithm.use=dapo", f"rewards=[{{use: '{tmp_path}/mine.py:flat'}}]", "rollout.max_redraw=3"
        )
    )
    record, _ = train_step(1, run)
    assert record.draws == 4
    assert record.skipped == "no group had two different rewards"
    assert run.policy.version == 0


def test_passes_that_nobody_asked_for_are_not_made(monkeypatch):
    def forwards(*overrides):
        run = build(tiny_recipe(*overrides, "memory.micro_tokens=1000000"))
        count = []
        real = run.policy.logprobs
        monkeypatch.setattr(
            run.policy, "logprobs", lambda batch, **asked: count.append(1) or real(batch, **asked)
        )
        train_step(1, run)
        return len(count)

    assert forwards("algorithm.use=dapo") == 1  # the update
    assert forwards("algorithm.use=grpo") == 2  # and the reference
    assert forwards("algorithm.use=grpo", "optim.updates_per_batch=2") == 4  # old, reference, two updates


def test_micro_batches_do_not_change_the_step():
    records = []
    for tokens in (100, 100_000):
        run = build(tiny_recipe(f"memory.micro_tokens={tokens}"))
        record, _ = train_step(1, run)
        records.append((record, weights(run)))
    (a, theta_a), (b, theta_b) = records
    assert a.loss == pytest.approx(b.loss, abs=1e-6)
    assert a.length_lambda_grad == pytest.approx(b.length_lambda_grad, rel=1e-4)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    # Adam's first step is lr · sign of each gradient
    torch.testing.assert_close(theta_a, theta_b, rtol=1e-3, atol=2e-4)


def test_only_answers_that_teach_are_computed(tmp_path):
    """Tokens through the first layer: no padding, a prompt once, no group with one
    reward, no last token, one pass.
    """
    (tmp_path / "mine.py").write_text(
        "def odd(completion, prompt): return float(len(completion) % 2) if '1' in prompt else 0.0\n"
    )
    reward = f"rewards=[{{use: '{tmp_path}/mine.py:odd'}}]"
    for layout in ("rows", "packed", "shared"):
        run = build(
            tiny_recipe(
                "algorithm.use=dapo",
                "algorithm.admit=all",
                reward,
                f"memory.layout={layout}",
                "rollout.prompts_per_step=8",
            )
        )
        seen = []
        layer = layers_of(run.policy.base)[0]
        layer.register_forward_pre_hook(
            lambda module, args, seen=seen: (
                seen.append(args[0].shape[:2]) if torch.is_grad_enabled() else None
            )
        )
        _, groups = train_step(1, run)
        teaching = [g for g in groups if g.varied]
        assert 0 < len(teaching) < len(groups)
        prompts = [len(g.prompt.token_ids) for g in teaching]
        answers = [[len(r.completion.token_ids) - 1 for r in g.rollouts] for g in teaching]
        tokens = sum(rows * width for rows, width in seen)
        exact = {
            "packed": sum(p * len(a) + sum(a) for p, a in zip(prompts, answers, strict=True)),
            "shared": sum(p + sum(a) for p, a in zip(prompts, answers, strict=True)),
        }
        assert len(seen) == 1
        assert tokens == exact.get(
            layout, sum(map(len, answers)) * max(p + max(a) for p, a in zip(prompts, answers, strict=True))
        )


def test_a_record_says_what_happened():
    run = build(tiny_recipe())
    record, groups = train_step(1, run)
    rewards = [r.reward for g in groups for r in g.rollouts]
    assert record.reward == pytest.approx(sum(rewards) / len(rewards))
    assert record.rollout_tokens == sum(len(r.completion.token_ids) for g in groups for r in g.rollouts)
    assert record.groups_right + record.groups_wrong <= record.groups
    assert 0 < record.trained_tokens <= record.rollout_tokens
    assert set(record.seconds) == {"sync", "rollout", "reward", "score", "update"}
    assert dataclasses.asdict(record)


def test_the_judge_is_the_policy_without_its_adapter():
    run = build(tiny_recipe())
    with run.engine.serving(run.policy) as sampler:
        untrained = run.tools(sampler).judge(["12+34=?"])
        for name, parameter in run.policy.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
        assert run.tools(sampler).judge(["12+34=?"]) == untrained
        with_adapter = sampler.generate(run.eval_prompts[:1], 1, SamplingParams(0.0, 16))[0][0].text
        with run.policy.reference():
            assert (
                sampler.generate(run.eval_prompts[:1], 1, SamplingParams(0.0, 16))[0][0].text != with_adapter
            )


@pytest.mark.parametrize("name", ["rgr_grpo", "grpo"])
def test_rubrics_train_and_evaluate(name, tmp_path):
    """Rules alone: the sum stands at the end, and the way there is shown."""
    rows = [
        {"question": p.question, "answer": p.answer, "criteria": [
            {"text": f"ends with {p.answer}", "kind": "factual", "weight": 3, "regex": f"#### {p.answer}$"},
            {"text": "shows a step", "kind": "process", "regex": "="},
        ]}
        for p in islice(problems(0, "train"), 32)
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{path: '{tmp_path}/r.jsonl', rubric: criteria}}"
    more = [f"algorithm.use={name}", f"data.train={source}", f"data.eval={source}", "rewards=[{use: rubric}]"]
    run = build(tiny_recipe(*more))
    record, groups = train_step(1, run)
    assert record.skipped is None and {len(r.score.criteria) for g in groups for r in g.rollouts} == {2}
    assert {round(r.reward, 2) for g in groups for r in g.rollouts} <= {0.0, 0.25, 0.75, 1.0}
    assert any(r.off for g in groups for r in g.rollouts) == (name == "rgr_grpo")
    assert evaluate(run, 1).accuracy > 0
