"""The look before the first step: what it measures, what it calls the cause, and that
it changes nothing that follows.
"""

import json

import pytest
import torch
from support import asked, ids_of, lgrpo, tiny_recipe

from lgrpo_lite.errors import DataError
from lgrpo_lite.evaluation.signal import Baseline, cause, demand_signal, has_signal, summary
from lgrpo_lite.train.baseline import check_prompts, due, measure
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step
from lgrpo_lite.types import Completion, Group, Outcome, Rollout, Score

RECIPE = tiny_recipe()


def group(*marks: str, missing: int = 0) -> Group:
    """Answers by letter: r right, w wrong, u unparsable, t cut and unparsable, g right and guided."""
    prompt = asked("q")
    rollouts = []
    for mark in marks:
        outcome = Outcome.ok if mark in "rg" else Outcome.wrong if mark == "w" else Outcome.unparsable
        reason = "length" if mark == "t" else "stop"
        completion = Completion(ids_of("abc"), None, "abc", reason, 0, given=2 * (mark == "g"))
        rollouts.append(Rollout(prompt, completion, Score(float(outcome is Outcome.ok), outcome)))
    return Group(prompt, tuple(rollouts), missing=missing)


# ------------------------------------------------------------------------------------------- figures


def test_summary_of_groups():
    found = summary([group(*"rrww"), group(*"rrrr"), group(*"wwut"), group(missing=4), group(*"gwww")], True)
    assert (found.prompts, found.answers, found.missing) == (5, 20, 4)
    assert found.solved == 6 / 15  # the guided answer is not the policy's own
    assert (found.groups_right, found.groups_mixed, found.groups_wrong, found.groups_varied) == (1, 1, 2, 2)
    assert (found.truncated, found.unparsable, found.length) == (1 / 15, 2 / 15, 3.0)
    assert 0 <= found.solved_low < found.solved < found.solved_high <= 1


@pytest.mark.parametrize(
    ("groups", "low", "high"),
    [
        ([group(*"wwww")] * 30, 0.0, 0.1135),  # Wilson's 0 of 30: prompts count, not answers
        ([group(*"rrrr")] * 30, 0.8865, 1.0),
        ([group(*"rrww")] * 30, 0.3315, 0.6685),  # no prompt differs: one answer a prompt is all that is sure
        (
            [group(*"wwww"), group(*"rrrr")] * 15,
            0.3315,
            0.6685,
        ),  # always or never: worth as many answers as prompts
    ],
)
def test_the_interval_is_wilsons(groups, low, high):
    found = summary(groups, True)
    assert found.solved_low == pytest.approx(low, abs=2e-4) and found.solved_high == pytest.approx(
        high, abs=2e-4
    )


def test_the_interval_is_narrower_where_answers_of_a_prompt_differ_as_much_as_any():
    alike = summary([group(*"rrww"), group(*"rwww"), group(*"rrrw")] * 10, True)
    assert alike.solved_high - alike.solved_low < 0.25  # of 120 answers; 30 would give 0.34


def test_a_baseline_of_nothing_has_no_figures():
    found = summary([group(missing=4)], False)
    assert (
        found.solved is None
        and found.length is None
        and found.lines() == ["4 answers to 1 prompts, every reward missing"]
    )


@pytest.mark.parametrize(
    ("override", "groups", "signal"),
    [
        ("algorithm.use=grpo", [group(*"rrww")], True),
        ("algorithm.use=grpo", [group(*"rrrr"), group(*"wwww")], False),
        ("algorithm.use=grpo", [group(missing=4)], False),
        (
            "algorithm.advantage=reward",
            [group(*"rrrr"), group(*"wwww")],
            True,
        ),  # answers are not compared inside a group
        ("algorithm.advantage=reward", [group(*"wwww")], False),
    ],
)
def test_signal(override, groups, signal):
    assert has_signal(groups, tiny_recipe("algorithm.use=grpo", override)) is signal


# ------------------------------------------------------------------------------------------- the decision table

HALF = [group(*"rrww"), group(*"rrww")]
CAUSES = [
    ([group(missing=4), group(*"w", missing=3)], "rewards are missing", "reward test"),
    ([group(missing=4)], "4 of 4 rewards are missing", "logs/"),
    ([group(*"rrrr")] * 3, "too easy", "harder problems"),
    ([group(*"tttw")] * 3, "75% of the answers are cut at 48 tokens", "model.max_new_tokens (now 48)"),
    ([group(*"uuuw")] * 3, "75% of the answers hold no final answer", "data.system"),
    ([group(*"wwwu")] * 3, "too hard, or the gold answers are wrong", "reward test"),
    ([group(*"rrrr"), group(*"wwww")], "always or never", "rollout.group_size"),
    (HALF, "all get the same reward", "rewards.N.weight"),
]


@pytest.mark.parametrize(("groups", "why", "fix"), CAUSES, ids=[why for _, why, _ in CAUSES])
def test_the_likeliest_cause_is_named(groups, why, fix):
    found = summary(groups, False)
    told = cause(found, RECIPE)
    assert why in told[0] and fix in told[1]
    with pytest.raises(DataError, match="no signal") as error:
        demand_signal(found, RECIPE)
    assert (
        error.value.exit_code == 5
        and why in error.value.what
        and "safety.baseline_check=false" in error.value.fix
    )


def test_with_a_signal_there_is_nothing_to_say():
    demand_signal(summary(HALF, True), RECIPE)


@pytest.mark.parametrize(
    ("events", "check", "expected"),
    [
        ([], True, True),
        ([], False, False),
        ([{"kind": "saved"}, {"kind": "baseline", "signal": True}], True, False),
        ([{"kind": "baseline", "signal": False}], True, True),  # stopped there; a resumed run looks again
    ],
)
def test_a_run_looks_once(events, check, expected):
    assert due(tiny_recipe(f"safety.baseline_check={str(check).lower()}"), events) is expected


# ------------------------------------------------------------------------------------------- on the embedded model


def test_measuring_changes_nothing_that_follows():
    def steps(*, before: bool):
        run = build(tiny_recipe())
        if before:
            found = measure(run, check_prompts(run), early=True)
            assert found is not None and found.signal and found.prompts == 4  # one round is enough
        records = [train_step(step, run)[0] for step in (1, 2)]
        run.reward.close()
        return [(r.reward, r.loss, r.grad_norm) for r in records], [
            p.detach().clone() for p in run.policy.trainable()
        ]

    plain, looked = steps(before=False), steps(before=True)
    assert plain[0] == looked[0]
    assert all(torch.equal(a, b) for a, b in zip(plain[1], looked[1], strict=True))


def test_it_goes_on_until_there_is_a_signal_and_no_further_than_eight_rounds():
    recipe = tiny_recipe("model.max_new_tokens=2", "rollout.prompts_per_step=2", "rollout.group_size=2")
    run = build(recipe)
    prompts = check_prompts(run)
    found = measure(run, prompts, early=True)
    assert len(prompts) == 16 and found is not None and not found.signal
    assert (found.prompts, found.answers, found.truncated) == (16, 32, 1.0)
    assert "cut at 2 tokens" in cause(found, recipe)[0]
    assert measure(run, prompts, stop=lambda: True) is None
    run.reward.close()


HOPELESS = (
    "model.max_new_tokens=2",
    "rollout.prompts_per_step=2",
    "rollout.group_size=2",
    "train.steps=1",
    "data.eval=[]",
)
SMALL = ("data.train.limit=64", *HOPELESS)


def test_a_run_without_a_signal_stops_before_its_first_step(tmp_path, capsys):
    argv = (
        "recipe",
        "tiny-math",
        *SMALL,
        "export.formats=[]",
        "--runs",
        tmp_path,
        "--name",
        "r",
        "--ui",
        "none",
    )
    assert lgrpo(*argv) == 5
    told = capsys.readouterr().err
    assert "100% of the answers are cut at 2 tokens" in told and "raise model.max_new_tokens (now 2)" in told
    assert not (tmp_path / "r" / "metrics.jsonl").exists()
    assert lgrpo(*argv, "--resume", "auto") == 5  # not by resuming
    assert lgrpo(*argv, "--resume", "auto", "safety.baseline_check=false") == 0  # but when it is told to
    events = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    looks = [event for event in events if event["kind"] == "baseline"]
    assert len(looks) == 2 and not any(event["signal"] for event in looks)
    assert looks[0]["truncated"] == 1.0 and looks[0]["answers"] == 32
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_command_tells_what_the_run_would_find(capsys):
    assert lgrpo("baseline", "tiny-math", "-n", 4, "rollout.group_size=4", "data.train.limit=16") == 0
    assert "solved " in capsys.readouterr().out
    assert lgrpo("baseline", "tiny-math", "-n", 4, *SMALL, "--json") == 5
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    fields = set(Baseline.__dataclass_fields__) | {"cause", "fix"}
    assert (
        result["ok"] is False
        and set(result["result"]) == fields
        and "cut at 2 tokens" in result["result"]["cause"]
    )
    assert "no signal in 8 answers to 4 prompts" in captured.err
    assert lgrpo("baseline", "tiny-math", "-n", 0) == 2
