"""A step that runs out of memory is made again in smaller passes, and is the step it would have been."""

import functools
import gc
import itertools
import json

import pytest
import torch
from support import lgrpo, tiny_recipe

from lgrpo_lite.errors import DataError, OutOfMemory
from lgrpo_lite.layout import LAYOUT
from lgrpo_lite.policy.memory import layers_of
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.train.build import build
from lgrpo_lite.train.guard import MIN_TOKENS, NonFinite, within_memory
from lgrpo_lite.train.step import train_step


@pytest.fixture(scope="module", autouse=True)
def _quick_collection():
    """Each shrink collects garbage: what pytest has loaded by now is left out of it."""
    gc.freeze()
    yield
    gc.unfreeze()


MOST = 80  # tokens of the largest pass that the made-up memory holds


def cuda_is_full():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.5 GiB."
    )


def cpu_is_full():
    torch.empty(1 << 52)  # what torch's own allocator raises


def python_is_full():
    raise MemoryError


FULL = [cuda_is_full, cpu_is_full, python_is_full]


def tokens(batch) -> int:
    """That the model computes for it, padding included."""
    return LAYOUT[batch.layout](batch).input_ids.numel()


def holding(real, most: int, full=cuda_is_full):
    """`real` with a memory for passes of that many tokens; the pass fails when it is
    made, its random numbers are drawn.
    """

    def logprobs(batch, **asked):
        scored = real(batch, **asked)
        if tokens(batch) > most:
            full()
        return scored

    return logprobs


def failing(real, calls: set[int]):
    """`real`, but these calls of it run out of memory, the first being 1."""
    count = itertools.count(1)

    def logprobs(batch, **asked):
        scored = real(batch, **asked)
        if next(count) in calls:
            cuda_is_full()
        return scored

    return logprobs


FIXED = [
    "memory.checkpointing=false", "safety.sync_proof_every=0", "model.max_new_tokens=16",
    "algorithm.kl.coef=0.04",  # so that all answers teach
]  # fmt: skip


def started(*overrides: str, micro: int = 256):
    """A run that keeps the tokens of its passes, and the gradient of each update as one tensor with λ's."""
    run = build(tiny_recipe(f"memory.micro_tokens={micro}", *FIXED, *overrides))
    run.gradients, run.passes = [], []
    scored, real = run.policy.logprobs, run.optimizer.step
    run.policy.logprobs = lambda batch, **asked: run.passes.append(tokens(batch)) or scored(batch, **asked)

    def step():
        parts = [*run.policy.trainable(), *run.objective.parameters()]
        run.gradients.append(torch.cat([p.grad.flatten().clone() for p in parts]))
        real()

    run.optimizer.step = step
    return run


def stepped(run):
    train_step(1, run)
    return run


@functools.cache
def reference_step(*overrides: str, micro: int = 256):
    """A run after a step that had all the memory it wanted, and the random numbers that would come next."""
    return stepped(started(*overrides, micro=micro)), random_numbers()


def weights(run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in (*run.policy.trainable(), *run.objective.parameters())])


def random_numbers() -> torch.Tensor:
    return torch.get_rng_state()


# ------------------------------------------------------------------------------------------- the same step


CASES = [
    *((full, []) for full in FULL),
    (cuda_is_full, ["algorithm.use=grpo", "optim.updates_per_batch=2"]),
    (cuda_is_full, ["memory.layout=rows"]),
]


@pytest.mark.parametrize(("full", "overrides"), CASES)
def test_a_step_in_smaller_passes_is_the_same_step(full, overrides):
    roomy, after = reference_step(*overrides)
    tight = started(*overrides)
    tight.policy.logprobs = holding(tight.policy.logprobs, MOST, full)
    stepped(tight)
    assert torch.equal(random_numbers(), after)
    assert tight.micro_tokens == 64 and len(tight.notices) == 2  # 256 and 128 did not fit
    for one, other in zip(tight.gradients, roomy.gradients, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()
    small, _ = reference_step(*overrides, micro=64)
    assert torch.equal(weights(tight), weights(small))  # bit for bit that of a run that began so
    # AdamW's first steps are lr · sign of a gradient, so that those of rounding's size may go either way
    assert ((weights(tight) - weights(roomy)).abs() > 1e-6).float().mean() < 1e-3


def test_smaller_passes_stay_and_are_told_once():
    run = started()
    run.policy.logprobs = holding(run.policy.logprobs, MOST)
    train_step(1, run)
    told = list(run.notices)
    assert [line.rpartition("micro_tokens is ")[2].split()[0] for line in told] == ["128", "64"]
    assert all(
        line.startswith("out of memory (CUDA out of memory)") and "the same step again" in line
        for line in told
    )
    train_step(2, run)
    assert run.micro_tokens == 64 and run.notices == told
    assert all(tokens(micro) <= MOST for _, micro in run.split(run.objective.batch(train_step(3, run)[1])))


@pytest.mark.parametrize(
    ("micro", "share"), [(100_000, [1.0]), (100_000, [0.5, 1.0]), (MIN_TOKENS, [0.6]), (MIN_TOKENS, [1.0])]
)
def test_dropout_draws_the_same_masks_where_the_passes_are_as_many(micro, share):
    """Half of far too many tokens is still one pass; at the least number all layers are recomputed instead.

    `share`: how far the step had come by its passes, of which the first half are those of the reference.
    """
    spared, after = reference_step("model.lora.dropout=0.2", micro=micro)
    hit = started("model.lora.dropout=0.2", micro=micro)
    calls = {round(part * len(spared.passes)) for part in share}
    hit.policy.logprobs = failing(hit.policy.logprobs, calls)
    stepped(hit)
    assert len(hit.notices) == len(calls)
    assert torch.equal(random_numbers(), after)
    assert torch.equal(hit.gradients[0], spared.gradients[0]) and torch.equal(weights(hit), weights(spared))


def test_half_made_gradients_are_gone_before_the_repeat():
    run, seen, drawn = started(), [], []
    parts = [*run.policy.trainable(), *run.objective.parameters()]

    def attempt():
        seen.append([p.grad is None for p in parts])
        drawn.append(torch.rand(3).tolist())
        for parameter in parts:
            parameter.grad = torch.ones_like(parameter)
        if len(seen) < 3:
            cuda_is_full()
        return "done"

    assert within_memory(run, attempt) == "done"
    assert len(seen) == 3 and all(map(all, seen))
    assert drawn[0] == drawn[1] == drawn[2]
    assert all(p.grad.eq(1).all() for p in parts)  # of the attempt that went through


# ------------------------------------------------------------------------------------------- other ends


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), ValueError("no"), NonFinite("loss is nan"),
        DataError("a", where="b", fix="c"), KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_that_is_none_of_memory_passes_untouched(error):
    run, attempts = started(), []

    def attempt():
        attempts.append(1)
        raise error

    with pytest.raises(type(error)) as raised:
        within_memory(run, attempt)
    assert raised.value is error and len(attempts) == 1
    assert run.micro_tokens == 256 and run.notices == []
    assert not any(layer.gradient_checkpointing for layer in layers_of(run.policy.base))


@pytest.mark.parametrize("full", [cuda_is_full, cpu_is_full])
def test_nothing_left_to_shrink(full):
    run = started(micro=50)
    run.policy.logprobs = holding(run.policy.logprobs, 0, full)
    before = weights(run).clone()
    with pytest.raises(OutOfMemory, match="a pass of a single answer does not fit") as error:
        train_step(1, run)
    assert error.value.exit_code == 4
    assert "memory" in error.value.where and "memory.offload_activations=true" in error.value.fix
    assert run.micro_tokens == 25 and all(
        layer.gradient_checkpointing for layer in layers_of(run.policy.base)
    )
    assert [line.split(": ")[-1] for line in run.notices] == [
        "memory.micro_tokens is 25 from here on, and the same step again",
        "all layers are recomputed from here on, and the same step again",
    ]
    assert torch.equal(weights(run), before) and run.policy.version == 0


def test_layers_that_are_recomputed_already_leave_less_to_shrink():
    run = started("memory.checkpointing=true", micro=MIN_TOKENS)
    with pytest.raises(OutOfMemory):
        within_memory(run, cuda_is_full)
    assert run.notices == []


def test_what_did_not_fit_on_a_cpu_is_told():
    run = started(micro=MIN_TOKENS)
    with pytest.raises(OutOfMemory):
        within_memory(run, cpu_is_full)
    assert "allocate" in run.notices[0]


def test_an_error_without_words_leaves_no_empty_brackets():
    run = started(micro=MIN_TOKENS)
    with pytest.raises(OutOfMemory):
        within_memory(run, python_is_full)
    assert "()" not in run.notices[0]


# ------------------------------------------------------------------------------------------- a run

SMALL = [
    "train.steps=2", "train.save_every=1", "rollout.prompts_per_step=4", "rollout.group_size=4", "data.train.limit=40",
    "data.eval.limit=1", "eval.k=1", "eval.greedy=false", "export.formats=[]", "memory.micro_tokens=256", *FIXED, "--ui", "none",
]  # fmt: skip


def told(path, kind: str) -> list[dict]:
    rows = map(json.loads, (path / "events.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == kind]


def limited(monkeypatch, most: int) -> None:
    """Passes with gradient are limited: those of the update, and not those of the probes before it."""
    real = Policy.logprobs

    def logprobs(self, batch, **asked):
        own = functools.partial(real, self)
        return (holding(own, most) if torch.is_grad_enabled() else own)(batch, **asked)

    monkeypatch.setattr(Policy, "logprobs", logprobs)


def test_a_run_goes_on_and_its_events_say_so(monkeypatch, tmp_path):
    limited(monkeypatch, MOST)
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", tmp_path, "--name", "tight") == 0
    rows = told(tmp_path / "tight", "warning")
    assert [row["step"] for row in rows] == [1, 1]
    assert told(tmp_path / "tight", "proof") == []  # FIXED asks for none
    assert [
        f"memory.micro_tokens is {n} " in row["message"] for n, row in zip((128, 64), rows, strict=True)
    ] == [True] * 2
    steps = [json.loads(line) for line in (tmp_path / "tight" / "metrics.jsonl").read_text().splitlines()]
    assert [row["policy_version"] for row in steps] == [1, 2] and [row["skipped"] for row in steps] == [
        None,
        None,
    ]


def test_a_run_that_cannot_fit_ends_with_exit_4(monkeypatch, tmp_path, capfd):
    limited(monkeypatch, 0)
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", tmp_path, "--name", "full") == 4
    status = json.loads((tmp_path / "full" / "STATUS.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert "does not fit" in told(tmp_path / "full", "failed")[0]["message"]
    assert not (tmp_path / "full" / "metrics.jsonl").exists()
    err = capfd.readouterr().err
    assert (
        "error: a pass of a single answer does not fit: CUDA out of memory\n" in err
        and "Traceback" not in err
    )


def test_what_was_tried_before_giving_up_is_in_the_events(monkeypatch, tmp_path):
    limited(monkeypatch, 0)
    lgrpo("recipe", "tiny-math", *SMALL, "--runs", tmp_path, "--name", "full")
    assert [row["message"].startswith("out of memory") for row in told(tmp_path / "full", "warning")] == [
        True
    ] * 4
