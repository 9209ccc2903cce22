"""What the trainer leaves for whoever looks on: credit of tokens, samples, heartbeat,
progress, alarms, a resumable record.
"""

import dataclasses
import gzip
import json
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_recipe

from lgrpo_lite import progress
from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.folder.samples import picks, pieces, samples
from lgrpo_lite.machine.disk import disk_fault
from lgrpo_lite.monitor.tail import Tail
from lgrpo_lite.objective.trace import column_sums
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step
from lgrpo_lite.types import Completion, Outcome, Prompt, Rollout, Score, StepRecord

# ------------------------------------------------------------------------------------------- credit


def trained(*overrides):
    run = build(tiny_recipe("data.eval=[]", "model.weights=fp32", *overrides))
    record, groups = train_step(1, run)
    return run, record, groups


@pytest.mark.parametrize("micro", [40, 4096])
def test_credit_of_a_policy_gradient_is_the_advantage(micro):
    run, record, groups = trained(
        "algorithm.use=dapo", f"memory.micro_tokens={micro}", "algorithm.rollout_correction=null"
    )
    advantages, _ = run.objective.credit(groups)
    seen = 0
    for group, row in zip(groups, advantages, strict=True):
        for rollout, advantage in zip(group.rollouts, row, strict=True):
            if rollout.credit:
                assert rollout.credit == pytest.approx(
                    [advantage] * len(rollout.completion.token_ids), rel=1e-4
                )
                seen += 1
    assert seen and record.credit_first + record.credit_middle + record.credit_last == pytest.approx(1)
    assert record.ratio_max == 1 and record.credit_floored is None


def test_credit_under_a_trace_is_the_advantage_times_the_sum_of_its_column():
    run, record, groups = trained(
        "algorithm.use=trace", "algorithm.kl.coef=0", "algorithm.rollout_correction=null"
    )
    t = run.recipe.algorithm.trace
    seen = 0
    for rollout in (r for g in groups for r in g.rollouts if r.credit):
        count = len(rollout.completion.token_ids)
        column = column_sums(
            torch.zeros(count, dtype=torch.long), decay=t.gamma * t.lambda_, style=t.style, floor=t.floor
        )
        per_token = torch.tensor(rollout.credit, dtype=torch.float64) / column
        assert torch.allclose(per_token, per_token[0].expand(count), rtol=1e-3)
        seen += 1
    assert seen and 0 <= record.credit_floored <= 1


def test_credit_with_a_token_preference_is_weighted_by_the_length_of_the_answer():
    _, record, groups = trained(
        "algorithm.length_preference={lambda_init: 2.0}", "algorithm.rollout_correction=null"
    )
    plain = build(tiny_recipe("data.eval=[]", "model.weights=fp32", "algorithm.rollout_correction=null"))
    sizes = {}
    for group in groups:
        advantages = plain.objective.credit([group])[0][0]
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            if rollout.credit and advantage:
                sizes.setdefault(group.prompt.id, []).append(
                    (len(rollout.completion.token_ids), rollout.credit[0] / advantage)
                )
    for rows in sizes.values():
        weights = [weight for _, weight in sorted(rows)]
        assert weights == sorted(weights) and min(weights) > 0
    assert record.weight_short < record.weight_long and 0 < record.weight_effective < 1


# ------------------------------------------------------------------------------------------- samples


def rollout(kind: str, prompt: str) -> Rollout:
    outcome = Outcome.ok if kind == "right" else Outcome.wrong
    completion = Completion((1,), None, kind, "length" if kind == "truncated" else "stop", 0)
    return Rollout(
        Prompt(prompt, prompt, (1,), ""), completion, Score(1.0 if kind == "right" else 0.0, outcome)
    )


@given(
    st.lists(
        st.tuples(st.sampled_from(["right", "wrong", "truncated"]), st.sampled_from("abc")), max_size=12
    ),
    st.integers(0, 6),
)
def test_of_each_kind_one_is_kept_before_any_gets_a_second(made, keep):
    found = [r.completion.text for r in picks([rollout(*m) for m in made], keep)]
    assert len(found) == min(keep, len(made))
    kinds = {kind for kind, _ in made}
    assert set(found) == kinds or len(found) < len(kinds) <= 3 or len(set(found)) == min(keep, len(kinds))


BYTES = st.text(alphabet="ab é中😀\n", max_size=30)


@given(BYTES)
def test_pieces_of_a_byte_tokenizer_join_to_the_text(text):
    found = pieces(list(text.encode()), text, lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert "".join(found) == text and len(found) == len(text.encode())


@given(st.lists(st.sampled_from(["▁a", "▁b", "c", "▁", "d"]), max_size=12))
def test_pieces_of_a_tokenizer_that_drops_the_first_space_join_to_the_text(tokens):
    def decode(ids):
        return "".join(tokens[i] for i in ids).replace("▁", " ").removeprefix(" ")

    ids = list(range(len(tokens)))
    found = pieces(ids, decode(ids), decode)
    assert "".join(found) == decode(ids) and len(found) == len(ids)


def test_a_step_writes_its_samples_with_credit(tmp_path):
    run, record, groups = trained()
    folder = RunFolder(tmp_path)
    folder.open()
    folder.record(record, samples(groups, 3, run.policy.tokenizer.decode))
    packed = tmp_path / "completions" / "step-000001.jsonl.gz"
    assert packed.read_bytes()[4:8] == bytes(4), "no time in it: a run that went on has the same bytes"
    with gzip.open(packed, "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 3 and {"ok", "wrong"} <= {row["outcome"] for row in rows}
    assert all(
        "".join(row["pieces"]) == row["completion"] and len(row["pieces"]) == row["tokens"] for row in rows
    )
    assert all(len(row["credit"]) in (0, row["tokens"]) for row in rows) and any(
        any(row["credit"]) for row in rows
    )
    assert Tail(tmp_path).refresh().samples == rows


# ------------------------------------------------------------------------------------------- signs of life


def waited(condition) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_heartbeat_phases_progress_and_the_wish_to_stop_reach_the_file(tmp_path):
    folder, asked = RunFolder(tmp_path), []
    folder.open()
    folder.set_status("training", 3, resume="lgrpo-lite recipe x")
    first = folder.status["heartbeat"]
    with folder.alive(lambda: bool(asked)):
        assert waited(lambda: folder.status["heartbeat"] > first + 1)
        folder.at("rollout")
        assert waited(lambda: folder.status.get("phase") == "rollout")
        progress.told("loading weights", 1, 4)
        progress.told("loading weights", 2, 4)
        assert waited(lambda: folder.status.get("progress", {}).get("done") == 2)
        assert folder.status["progress"]["of"] == 4 and folder.status["progress"]["left"] >= 0
        progress.told("loading weights", 4, 4)
        assert waited(lambda: "progress" not in folder.status)
        asked.append(True)
        assert waited(lambda: folder.status.get("stopping"))
    folder.set_status("stopped", 3, 130)
    assert "stopping" not in folder.status and folder.status["resume"] == "lgrpo-lite recipe x"
    assert Tail(tmp_path).refresh().health.state == "stopped"


def test_without_a_listener_progress_is_nobodys_business():
    progress.told("alone", 1, 2)
    heard = []
    with progress.listening(heard.append):
        progress.told("alone", 1, 2)  # it began before: this is its beginning for the listener
        progress.told("alone", 2, 2)
    assert [p.done for p in heard] == [1, 2] and heard[0].left is None and heard[1].finished


# ------------------------------------------------------------------------------------------- alarms


CUT = StepRecord(0, 0, reward=0.5, reward_std=0.5, groups=8, groups_mixed=8, length=30.0, truncated=0.9, rollout_tokens=100,
                 rollout_answers=64)  # fmt: skip


def test_an_alarm_is_told_once_counted_and_remembered_by_a_resumed_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.follow({})
    for step in range(1, 9):
        folder.record(dataclasses.replace(CUT, step=step))
    told = [e for e in folder.rows("events.jsonl") if e["kind"] == "alarm"]
    assert [e["name"] for e in told] == ["truncation"] and told[0]["fix"]
    rows = folder.rows("metrics.jsonl")
    held = [row["step"] for row in rows if row["alarms"] == ["truncation"]]
    assert held[0] == told[0]["step"] and held[-1] == 8
    again = RunFolder(tmp_path)
    again.rewind(7, evaluated=True)
    again.follow({})
    again.record(dataclasses.replace(CUT, step=8))
    assert len([e for e in again.rows("events.jsonl") if e["kind"] == "alarm"]) == 1
    again.set_status("training", 8)
    (tally,) = again.status["alarms"]
    assert tally["name"] == "truncation" and tally["count"] == len(held) and tally["first"] == held[0]


@pytest.mark.parametrize("part", ["completions", "evals", "logs"])
def test_a_part_of_a_run_folder_that_is_gone_is_named(tmp_path, part):
    with pytest.raises(OSError) as missing:
        (tmp_path / part / "step-000001").write_text("")
    fault = disk_fault(missing.value, tmp_path)
    assert fault is not None and fault.exit_code == 7
    assert fault.what == f"a part of the run folder is gone: {part}"
    assert disk_fault(missing.value, tmp_path.parent / "other") is not None  # gone as a whole
    with pytest.raises(OSError) as elsewhere:
        Path("/no/such/file").read_text()
    assert disk_fault(elsewhere.value, tmp_path) is None


def test_of_two_records_of_a_step_the_newer_stays(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "n": 1}\n{"step": 2}\n{"step": 1, "n": 2}\n{"step": 3}\n'
    )
    folder = RunFolder(tmp_path)
    folder.rewind(2, evaluated=True)
    assert folder.rows("metrics.jsonl") == [{"step": 1, "n": 2}, {"step": 2}]
