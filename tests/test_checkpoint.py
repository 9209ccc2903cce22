"""Checkpoints: whole or not at all, and a resumed run is the run."""

import json
import os
import random
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_recipe

from lgrpo_lite.errors import DataError
from lgrpo_lite.policy import checkpoint
from lgrpo_lite.policy.checkpoint import State
from lgrpo_lite.train.build import build
from lgrpo_lite.train.step import train_step


@pytest.fixture(scope="module")
def run():
    run = build(tiny_recipe())
    train_step(1, run)
    return run


def write(root, run, *steps, **state):
    tensors = {"optimizer": run.optimizer.state_dict(), "objective": run.objective.state_dict()}
    for step in steps:
        checkpoint.save(root, run.policy, tensors, State(step, step, 0, **state), keep_last=2, keep_best=1)


def test_restores_every_bit(tmp_path, run):
    write(tmp_path, run, 1)
    numbers = torch.rand(3)
    fresh = build(tiny_recipe("seed=9"))
    state, tensors = checkpoint.load(checkpoint.find(tmp_path)[0], fresh.policy)
    assert torch.equal(torch.rand(3), numbers)  # the random state of the moment of saving
    fresh.optimizer.load_state_dict(tensors["optimizer"])
    fresh.objective.load_state_dict(tensors["objective"])
    for a, b in zip(run.policy.trainable(), fresh.policy.trainable(), strict=True):
        assert torch.equal(a, b)
    assert fresh.objective.length_lambda == run.objective.length_lambda
    assert fresh.policy.version == state.policy_version == 1


def test_numbers_of_numpy_and_python_go_on_too_and_older_checkpoints_have_none_of_numpy(tmp_path, run):
    write(tmp_path, run, 1)
    folder = checkpoint.find(tmp_path)[0]
    version, internal, gauss = torch.load(folder / "trainer.pt", weights_only=True)["rng"]["python"]
    own = random.Random()  # Python's generator went on: the checks of types draw from it here
    own.setstate((version, tuple(internal), gauss))
    expected = np.random.randint(2**31, size=700).tolist(), np.random.standard_normal(), own.random()

    def drawn():
        checkpoint.load(folder, run.policy)
        return np.random.randint(2**31, size=700).tolist(), np.random.standard_normal(), random.random()

    assert drawn() == drawn() == expected
    tensors = torch.load(folder / "trainer.pt", weights_only=True)
    del tensors["rng"]["numpy"]
    torch.save(tensors, folder / "trainer.pt")
    assert drawn()[0] != expected[0] and drawn()[2] == expected[2]


def test_what_is_named_otherwise_than_its_step_is_no_checkpoint(tmp_path, run):
    """Nor is a link to `latest`, which `latest` would lead to."""
    write(tmp_path, run, 1, 2)
    (tmp_path / "step-000098").symlink_to("step-000001")
    (tmp_path / "step-000099").symlink_to("latest")
    checkpoint.repair(tmp_path, keep_best=1)
    assert (tmp_path / "latest").resolve().name == "step-000002"
    found, warnings = checkpoint.find(tmp_path)
    assert found.name == "step-000002"
    assert warnings[0] == "checkpoint step-000099 is corrupt (its state is of step 2)" and len(warnings) == 2


def test_keeps_the_last_two_and_the_best(tmp_path, run):
    write(tmp_path, run, 1, score=0.9, best_score=0.9, best_step=1)
    write(tmp_path, run, 2, 3, 4, score=0.5, best_score=0.9, best_step=1)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000001", "step-000003", "step-000004"]
    assert (tmp_path / "latest").resolve().name == "step-000004"
    assert checkpoint.find(tmp_path, "best")[0].name == "step-000001"
    assert checkpoint.find(tmp_path, "3")[0].name == "step-000003"
    assert checkpoint.find(tmp_path, "2")[0] is None
    assert checkpoint.find(tmp_path, "nonsense")[0] is None


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "missing", "no sums", "short sums", "no sum of the weights", "a pipe"]
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, run, damage):
    write(tmp_path, run, 1, 2)
    newest = tmp_path / "step-000002"
    target = newest / "trainer.pt"
    if damage == "cut":
        target.write_bytes(target.read_bytes()[:100])
    elif damage == "flip":
        weights = newest / "adapter" / "adapter_model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        target.unlink()
    elif damage == "no sum of the weights":
        sums = newest / "SHA256SUMS"
        sums.write_text("".join(line for line in sums.open() if "safetensors" not in line))
    elif damage == "a pipe":
        target.unlink()
        os.mkfifo(target)
    elif damage == "no sums":
        (newest / "SHA256SUMS").unlink()
    else:
        (newest / "SHA256SUMS").write_text("")
    found, warnings = checkpoint.find(tmp_path)
    assert found.name == "step-000001"
    assert len(warnings) == 1 and "step-000002 is corrupt" in warnings[0]


def test_a_leftover_of_a_killed_save_is_swept_away(tmp_path, run):
    (tmp_path / ".partial-000005").mkdir(parents=True)
    write(tmp_path, run, 6)
    assert not list(tmp_path.glob(".partial-*"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, run):
    write(tmp_path, run, 1)
    other = build(tiny_recipe("model.lora.rank=4"))
    with pytest.raises(DataError, match="does not fit this run"):
        checkpoint.load(tmp_path / "step-000001", other.policy)


def test_no_checkpoint_at_all(tmp_path, run):
    assert checkpoint.find(tmp_path) == (None, [])
    write(tmp_path, run, 1)
    shutil.rmtree(tmp_path / "step-000001" / "adapter")
    found, warnings = checkpoint.find(tmp_path)
    assert found is None and warnings


@pytest.mark.parametrize("kept", ["links of before", "no links", "a copy for a link", "half a link"])
def test_links_are_put_where_the_states_say(tmp_path, run, kept):
    """As a kill between a checkpoint and its links leaves them, or a copy that followed links."""
    write(tmp_path, run, 1, score=0.5, best_score=0.5, best_step=1)
    write(tmp_path, run, 2, score=0.9, best_score=0.9, best_step=2)
    for name in ("latest", "best"):
        link = tmp_path / name
        link.unlink()
        if kept == "links of before":
            link.symlink_to("step-000001")
        elif kept == "a copy for a link":
            shutil.copytree(tmp_path / "step-000001", link)
        elif kept == "half a link":
            link.with_name(f".{name}.new").symlink_to("step-000002")
    (tmp_path / ".partial-000003").mkdir()
    checkpoint.repair(tmp_path, keep_best=1)
    assert (tmp_path / "latest").readlink() == (tmp_path / "best").readlink() == Path("step-000002")
    names = ["best", "latest", "step-000001", "step-000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    write(tmp_path, run, 3, 4, score=0.9, best_score=0.9, best_step=2)  # no better than step 2, which stays
    checkpoint.repair(tmp_path, keep_best=1)
    assert (tmp_path / "best").readlink() == Path("step-000002")
    assert (tmp_path / "latest").readlink() == Path("step-000004")


def test_the_best_that_is_broken_is_no_longer_the_best(tmp_path, run):
    write(tmp_path, run, 1, score=0.5, best_score=0.5, best_step=1)
    write(tmp_path, run, 2, score=0.9, best_score=0.9, best_step=2)
    (tmp_path / "step-000002" / "trainer.pt").write_bytes(b"")
    found, [warning] = checkpoint.find(tmp_path, "best")
    assert found is None and "step-000002 is corrupt" in warning
    checkpoint.repair(tmp_path, keep_best=1)
    assert checkpoint.find(tmp_path, "best")[0].name == "step-000001"


def test_a_checkpoint_that_a_kill_left_without_its_name_is_kept_and_half_of_one_is_not(tmp_path, run):
    write(tmp_path, run, 3)
    (tmp_path / "step-000003").rename(tmp_path / ".partial-000003")  # written again, and the earlier one gone
    (tmp_path / ".partial-000004").mkdir()
    checkpoint.repair(tmp_path, keep_best=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000003"]
    assert checkpoint.find(tmp_path) == (tmp_path / "step-000003", [])


def test_folders_of_other_names_are_neither_checkpoints_nor_removed(tmp_path, run):
    write(tmp_path, run, 1)
    others = ["step-000001-copy", "step-000002.bak", "step-abc"]
    for name in others:
        shutil.copytree(tmp_path / "step-000001", tmp_path / name)
    write(tmp_path, run, 2, 3, 1_000_000)
    kept = ["latest", "step-000001-copy", "step-000002.bak", "step-000003", "step-1000000", "step-abc"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    assert checkpoint.find(tmp_path) == (tmp_path / "step-1000000", [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "it: input should be an object"),
        ('{"step": 1, "policy_version": 1, "prompts_drawn": 0, "depth": 2}', "depth: unexpected"),
        ('{"step": 1, "policy_version": 1, "prompts_drawn": 0, "score": "0.5"}', "score: input should be a valid number"),
    ],
)  # fmt: skip
def test_a_state_of_another_version_is_refused_and_said(tmp_path, run, text, said):
    write(tmp_path, run, 1)
    folder = tmp_path / "step-000001"
    (folder / "state.json").write_text(text)
    lines = [
        f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("adapter/adapter_model.safetensors", "state.json", "trainer.pt")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    with pytest.raises(DataError, match=said):
        checkpoint.repair(tmp_path, keep_best=1)
    with pytest.raises(DataError, match=said):
        checkpoint.load(folder, run.policy)


def test_without_a_best_none_is_found(tmp_path, run):
    write(tmp_path, run, 1)
    assert checkpoint.find(tmp_path, "best") == (None, [])


def test_a_checkpoint_that_was_moved_and_linked_is_written_and_removed_as_a_link(tmp_path, run):
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    write(root, run, 1)
    (root / "step-000001").rename(elsewhere)
    (root / "step-000001").symlink_to(elsewhere)
    write(root, run, 1, 2, 3)
    assert sorted(path.name for path in root.glob("step-*")) == ["step-000002", "step-000003"]
    assert (elsewhere / "trainer.pt").exists()


EXPORTED = {
    "adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "export_report.json", ".made_of.json",
}  # fmt: skip
OWNED = {  # an algorithm that owns state, and what of it must come back
    "length_preference": lambda run: [run.objective.length_lambda],
    "flowrl": lambda run: [p.clone() for p in run.objective.log_z.parameters()],
    "g2rpo_a": lambda run: run.plan.guide_length.state_dict(),
    "a_star_po": lambda run: run.plan.values.rewards,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWNED)
def test_state_that_an_algorithm_owns_comes_back_and_is_never_exported(name, tmp_path):
    """A run stopped after two steps and resumed has the λ, log Z, guidance and values of
    one that was not, bit for bit.
    """
    from lgrpo_lite.export.export import export_adapter
    from lgrpo_lite.folder.folder import RunFolder
    from lgrpo_lite.train.loop import steps
    from lgrpo_lite.train.stop import StopRequest

    settings = [f"algorithm.use={name}", "train.save_every=1", "data.eval.limit=2", "data.train.limit=100"]
    settings += ["algorithm.guide={init: 24, max: 48}"] if name == "g2rpo_a" else []
    settings += ["algorithm.value_cache={n: 2}"] if name == "a_star_po" else []

    def trained(folder, last, *, resume=False):
        run = build(tiny_recipe(*settings, f"train.steps={last}", "optim.scheduler=constant"))
        where = RunFolder(tmp_path / folder)
        where.open()
        assert steps(run, where, StopRequest(), resume=resume)
        return run

    whole = trained("whole", 3)
    trained("parts", 2)
    parts = trained("parts", 3, resume=True)
    before, after = OWNED[name](whole), OWNED[name](parts)
    if isinstance(before, list) and isinstance(before[0], torch.Tensor):
        assert all(map(torch.equal, before, after))
        assert before[-2].abs().max() > 0  # the last layer started at 0: the head has learned
    else:
        assert before == after
    assert all(map(torch.equal, whole.policy.trainable(), parts.policy.trainable()))
    head = whole.optimizer.head.state_dict() if whole.optimizer.head else None
    assert head is None or head["state"][0]["step"] == parts.optimizer.head.state_dict()["state"][0]["step"]
    exported = export_adapter(whole.policy, whole.recipe, tmp_path / "export", whole.eval_prompts)
    saved = load_file(exported / "adapter_model.safetensors")
    assert all("lora_" in key for key in saved)
    assert {p.name for p in exported.iterdir()} <= EXPORTED


# ------------------------------------------------------------------------- a kill at each change of a file


class Killed(BaseException):
    """Nothing that the run does survives it."""


CHANGES = [(os, "replace"), (os, "fsync"), (Path, "rename"), (Path, "symlink_to"), (shutil, "rmtree")]
EVERY = [
    "train.steps=2",
    "train.save_every=1",
    "train.eval_every=1",
    "data.eval.limit=2",
    "data.train.limit=40",
]


def steps_of(path, *, kill_at=None, resume=False):
    """Run the loop in a folder; True where it came to its end before the `kill_at`th change of a file."""
    from lgrpo_lite.folder.folder import RunFolder
    from lgrpo_lite.train.loop import steps
    from lgrpo_lite.train.stop import StopRequest

    count = 0

    def counted(function):
        def call(*args, **options):
            nonlocal count
            count += 1
            if count == kill_at:
                raise Killed
            return function(*args, **options)

        return call

    run = build(tiny_recipe(*EVERY))
    folder = RunFolder(path)
    folder.open()
    with pytest.MonkeyPatch.context() as patch:
        for home, name in CHANGES:
            patch.setattr(home, name, counted(getattr(home, name)))
        try:
            return steps(run, folder, StopRequest(), resume=resume)
        except Killed:
            return False
        finally:
            folder.close()
            run.reward.close()


def plain(value):
    """Tensors as their bytes, so that == compares them."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def all_of(path):
    """What a run leaves behind, less times and what a machine measures."""
    kept = {}
    for file in sorted((path / "checkpoints").iterdir()):
        kept[file.name] = str(file.readlink()) if file.is_symlink() else (file / "state.json").read_bytes()
        trainer = torch.load(file / "trainer.pt", weights_only=True)
        del trainer["rng"][
            "python"
        ]  # pytest's plugins draw from it; test_resume compares the file of a process
        kept[f"{file.name}/trainer"] = plain(trainer)
        kept[f"{file.name}/adapter"] = (file / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("metrics.jsonl", "evals.jsonl"):
        rows = [json.loads(line) for line in (path / name).read_text("utf-8").splitlines()]
        measured = ("time", "seconds", "memory", "reward_p50", "reward_p95")
        kept[name] = [{key: value for key, value in row.items() if key not in measured} for row in rows]
    return kept


EVERY_KILL = 7  # changes: each of them would take a quarter of an hour; `make chaos` draws others


@pytest.mark.slow
def test_killed_at_any_change_of_a_file_a_run_ends_with_the_same_links_states_and_bytes(tmp_path):
    assert steps_of(tmp_path / "whole")
    whole = all_of(tmp_path / "whole")
    kill_at = 1
    while not steps_of(tmp_path / f"{kill_at}", kill_at=kill_at):
        assert steps_of(tmp_path / f"{kill_at}", resume=True)
        assert all_of(tmp_path / f"{kill_at}") == whole, f"killed at change {kill_at}"
        kill_at += EVERY_KILL
    assert kill_at > 6 * EVERY_KILL
