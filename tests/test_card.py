"""The simulated card: its allocator, the budget beside whole passes of real shapes,
and runs that the plan foretells.
"""

import gc
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from card import GIB, Allocator, Card, Expandable, fake_policy
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import AWAY, CELLS, LONGEST, SimulatedRun, recipe_of, with_gradients
from support import long_but_for

from lgrpo_lite.layout import size_of, split
from lgrpo_lite.ops import lean
from lgrpo_lite.plan.fit import fit
from lgrpo_lite.plan.parts import MOMENTS
from lgrpo_lite.plan.plan import plan
from lgrpo_lite.policy import passes
from lgrpo_lite.policy.memory import layers_of, recompute
from lgrpo_lite.policy.prove import PROBED, probe
from lgrpo_lite.policy.shape import Shape, find_config

# ------------------------------------------------------------------------------------------- the allocator


@given(st.lists(st.tuples(st.integers(1, 64 << 20), st.integers(0, 1 << 30)), max_size=60))
@pytest.mark.parametrize("kind", [Allocator, Expandable])
def test_what_is_given_back_can_be_taken_again(kind, wishes):
    made, blocks = kind(lambda: 8 * GIB), []
    for size, which in wishes:
        if which % 3 == 0 and blocks:
            made.give_back(blocks.pop(which % len(blocks)))
        else:
            blocks.append(made.take(size))
        assert made.allocated == sum(block.size for block in blocks) <= made.reserved <= 8 * GIB
        assert made.peak >= made.allocated
    if kind is Allocator:
        cached = sum(size for sizes in made.free.values() for size, _, _ in sizes)
        assert made.allocated + cached == made.reserved
    else:
        places = sorted((block.small, block.begin, block.begin + block.size) for block in blocks)
        assert all(one[:1] != other[:1] or one[2] <= other[1] for one, other in pairwise(places))
    for block in blocks:
        made.give_back(block)
    made.empty_cache()
    assert (made.allocated, made.reserved) == (0, 0)


def test_a_full_card_gives_its_cache_back_first():
    made = Allocator(lambda: GIB)
    made.give_back(made.take(600 << 20))
    assert made.reserved == 600 << 20
    made.take(700 << 20)
    assert made.reserved == 700 << 20
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        made.take(400 << 20)


def test_a_small_tensor_pins_the_segment_that_it_lies_in():
    """Why Adam's moments are made before the first pass: a segment with one of them in
    it cannot go back to the card.
    """
    made = Allocator(lambda: 4 * GIB)
    made.give_back(made.take(GIB))
    made.take(2 << 20)  # lies in the gigabyte that was cached
    made.empty_cache()
    assert made.reserved == GIB


def test_inputs_of_recomputed_layers_leave_no_holes_in_expandable_segments():
    """14B: two inputs in each piece that an MLP's tensor left, and a third does not fit."""
    held = {}
    for kind in (Allocator, Expandable):
        made, inputs = kind(lambda: 100 * GIB), []
        for _ in range(48):
            wide = [made.take(338 << 20) for _ in range(3)]
            for block in wide:
                made.give_back(block)
            inputs.append(made.take(125 << 20))
        made.empty_cache()
        held[kind] = made.reserved / made.allocated
    assert held[Expandable] < 1.1 and held[Allocator] > 1.3


def test_what_torch_says_of_the_card():
    with Card(8 * GIB, context=GIB, expandable=False) as card:
        free, total = torch.cuda.mem_get_info()
        assert total == 8 * GIB and free < 7 * GIB
        held = card.tensor(1 << 28, dtype=torch.float32)
        assert torch.cuda.memory_allocated() > GIB and torch.cuda.mem_get_info()[0] == free - GIB
        card.map("cache", 3 * GIB)
        assert torch.cuda.mem_get_info()[0] == free - 4 * GIB
        with pytest.raises(RuntimeError, match="out of memory"):
            card.map("graphs", 3 * GIB)
        del held
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info()[0] == free - 3 * GIB
        card.map("graphs", 3 * GIB)


# ------------------------------------------------------------------------------------------- passes


SHARES = (0.0, 0.5, 0.8, 1.0)  # of the layers that are recomputed
SHAPES = ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-7B")


def peak_of(model: str, layout: str, share: float) -> tuple[int, int]:
    """Bytes beside weights, adapter and gradients at the peak of a real pass over
    FakeTensors, and as predicted.
    """
    recipe = recipe_of(model, 1024)
    shape = Shape.of(find_config(recipe.model))
    with Card(400 * GIB) as card:
        policy = fake_policy(card, recipe, layout=layout)
        policy.varlen = layout != "rows"
        layers = len(layers_of(policy.base))
        recomputed = round(share * layers)
        recompute(policy.base, recomputed)
        with_gradients(card, policy)
        batch = probe(shape.vocabulary, ((512, 1024),) * 8)
        (_, micro), *_ = split(batch, recipe.memory.micro_tokens, (layout,))
        tokens = size_of(micro, layout)(range(micro.num_sequences))
        with torch.no_grad():
            policy.logprobs(probe(shape.vocabulary))  # what is made once only
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        policy.logprobs(micro).logp.sum().backward()
        measured = torch.cuda.max_memory_allocated() - before
    keys = sum(int(micro.context[s]) + int(micro.length[s]) for s in range(micro.num_sequences)) / tokens
    run = passes.Pass(2, recipe.model.lora, gathered=False, keys=keys if layout == "shared" else 1.0)
    work = passes.work_bytes(shape, recipe, run, tokens, recomputed)
    return measured, passes.saved_bytes(shape, run, tokens, recomputed) + sum(work.values())


PASSES = [
    (model, layout, share) for model in SHAPES for layout in ("rows", "packed", "shared") for share in SHARES
]
SOME_PASSES = [
    ("Qwen/Qwen2.5-3B", "shared", 0.0),
    ("Qwen/Qwen2.5-3B", "shared", 1.0),
    ("Qwen/Qwen2.5-3B", "packed", 0.5),
    ("Qwen/Qwen2.5-7B", "rows", 0.8),
    ("Qwen/Qwen2.5-7B", "shared", 1.0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "share"), long_but_for(SOME_PASSES, PASSES))
def test_a_whole_pass_peaks_where_the_budget_says(model, layout, share):
    measured, predicted = peak_of(model, layout, share)
    assert predicted == pytest.approx(measured, rel=0.05), predicted / measured


@pytest.mark.slow
def test_a_pass_of_the_smallest_shape_peaks_where_the_budget_says():
    measured, predicted = peak_of("Qwen/Qwen2.5-1.5B", "shared", 1.0)
    assert predicted == pytest.approx(measured, rel=0.05), predicted / measured


def test_what_the_budget_counts_with_is_what_the_code_does():
    """Constants that stand in code with torch and in code without."""
    assert passes.BLOCK_ROWS == lean.ROWS
    batch = probe(64, PROBED)
    assert batch.num_sequences * (int(batch.length.max()) - 1) == passes.PROBED_TOKENS


def test_a_layer_of_3b_keeps_at_most_six_tenths_of_what_peft_keeps():
    """188 KiB a token and layer before policy/lean.py."""
    recipe = recipe_of("Qwen/Qwen2.5-3B", 1024)
    shape = Shape.of(find_config(recipe.model))
    assert passes.layer_bytes(shape, passes.Pass(2, recipe.model.lora)) <= 0.6 * 188 * 1024


# ------------------------------------------------------------------------------------------- runs


ROUNDING = GIB // 5  # what the card may have more than the plan: small things that a plan does not count


def agree(model: str, answers: int, *more: str, gib: float = 24) -> SimulatedRun:
    """The plan and the card say the same of every moment: it fits, or the same one does not."""
    recipe = recipe_of(model, answers, *more)
    said = plan(recipe, int(gib * GIB))
    run = SimulatedRun(recipe, int(gib * GIB))
    for moment, seen in run.all().items():
        assert (seen.full is None) == (said.peak(moment) <= said.capacity), (
            moment,
            seen.full,
            said.peak(moment) / GIB,
        )
        assert seen.peak <= said.peak(moment) + ROUNDING, (moment, seen.peak / GIB, said.peak(moment) / GIB)
    return run


RUNS = [*((cell,) for cell in CELLS if cell[1] == 1024), (LONGEST[-1],)]


@pytest.mark.slow
@pytest.mark.parametrize("cell", long_but_for([(CELLS[0],)], RUNS))
def test_a_run_fits_where_the_plan_says(cell):
    run = agree(*cell)
    assert (
        set(run.found) == set(MOMENTS) and run.run.notices == []
    )  # nothing had to be made smaller on the way


STORED = json.loads(
    (Path(__file__).parent.parent / "bench" / "baselines" / "moments-cpu.json").read_text("utf-8")
)["rows"]


@pytest.mark.parametrize("name", STORED)
def test_what_bench_moments_saw_is_what_the_plan_says_now(name):
    """The table of docs/memory.md: the longer runs take minutes each, so the card's side is stored."""
    row = STORED[name]
    said = plan(recipe_of(row["model"], row["answers"], *row["more"]), 24 * GIB)
    for moment, both in row["moments"].items():
        assert both["plan"] == pytest.approx(said.peak(moment) / GIB, rel=1e-3), "run bench/moments.py again"
        assert (both["full"] is None) == (said.peak(moment) <= said.capacity), moment
        assert both["card"] <= both["plan"] + ROUNDING / GIB, moment
    assert said.fits and row["shrunk"] == []


@pytest.mark.parametrize(("model", "answers"), AWAY)
def test_longer_ones_fit_only_with_activations_in_cpu_memory(model, answers):
    assert not plan(recipe_of(model, answers), 24 * GIB).fits
    settings, found = fit(recipe_of(model, answers), 24 * GIB)
    assert found.fits and {setting.key for setting in settings} == {
        "memory.offload_activations",
        "memory.checkpointing",
    }
    assert any("CPU memory" in line for line in found.warnings)


@pytest.mark.slow
def test_a_tiny_model_goes_through_every_moment():
    assert set(agree("builtin:tiny-math", 64, "model.max_prompt_tokens=64", gib=4).found) == set(MOMENTS)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "answers", "gib"), [("Qwen/Qwen2.5-7B", 12_288, 12)])
def test_a_run_that_does_not_fit_fails_where_the_plan_says(model, answers, gib):
    recipe = recipe_of(model, answers)
    said = plan(recipe, gib * GIB)
    found = SimulatedRun(recipe, gib * GIB).all()
    assert not said.fits and said.worst == "update"
    assert found["update"].full and all(
        found[moment].full is None for moment in ("start", "build", "rollout")
    )


def test_random_numbers_are_left_alone():
    before = random.getstate()
    with Card(GIB) as card:
        card.tensor(3, dtype=torch.float32)
    assert random.getstate() == before
