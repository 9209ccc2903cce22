"""docs/unrolled.py, the loop for readers, makes the updates of the library."""

import runpy
from pathlib import Path

import pytest
import torch

from lgrpo_lite import build, check, load_recipe, train_step

LOOP = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "unrolled.py"))
STEPS = 3


@pytest.mark.slow
def test_the_unrolled_loop_is_the_step_of_the_library(capsys):
    policy, history = LOOP["main"](STEPS)
    assert capsys.readouterr().out.count("step") == STEPS
    run = build(check(load_recipe("tiny-math", [*LOOP["SETTINGS"], f"train.steps={STEPS}"])))
    for step, told in enumerate(history, 1):
        record, _ = train_step(step, run)
        for mine, theirs in (("reward", "reward"), ("loss", "loss"), ("grad_norm", "grad_norm"),
                             ("lambda", "length_lambda"), ("lambda_grad", "length_lambda_grad")):  # fmt: skip
            assert told[mine] == pytest.approx(getattr(record, theirs), rel=1e-4, abs=1e-6), (step, mine)
    for ours, theirs in zip(policy.trainable(), run.policy.trainable(), strict=True):
        # AdamW's first steps are a sign of the gradient
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_it_is_short_enough_to_read():
    lines = (Path(__file__).parent.parent / "docs" / "unrolled.py").read_text("utf-8").splitlines()
    assert len(lines) < 200
