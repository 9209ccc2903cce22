"""Every named algorithm trains the tiny recipe; it asks for the passes it needs and for no other."""

import functools
import math
from itertools import product

import pytest
from support import long_but_for, slow_but_for, tiny_recipe

from lgrpo_lite.folder.folder import RunFolder
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.policy.checkpoint import State
from lgrpo_lite.recipe.algorithm import Algorithm, Section
from lgrpo_lite.recipe.schema import section_inside
from lgrpo_lite.train.build import build
from lgrpo_lite.train.evaluate import evaluate
from lgrpo_lite.train.loop import prepare_values
from lgrpo_lite.train.step import train_step
from lgrpo_lite.train.stop import StopRequest

# the policy is worse than at the start for the first dozen: it unlearns guessing before it works things out
STEPS = 40
SMALL = [
    "rollout.prompts_per_step=16", "rollout.group_size=8", f"train.steps={STEPS}", "data.train.limit=512",
    "data.eval.limit=128", "eval.k=2", "eval.greedy=false",
]  # fmt: skip
NEEDS = {  # what a row needs on this task beside its name
    "igrpo": ["algorithm.best_draft.when=wrong"],  # the embedded model cannot read a draft (docs/log.md)
    "g2rpo_a": ["algorithm.guide={init: 24, max: 48}"],
    "a_star_po": ["algorithm.value_cache={n: 2}"],
    "vineppo": ["algorithm.probe_values={k: 2, max_states: 3, only: mixed, first: group_mean}"],
    "cppo": ["rollout.max_redraw=0"],
}
OFTEN = ["grpo", "length_preference", "trace", "flowrl", "vineppo"]  # the others: make test-long


def started(name: str, tmp_path, *more: str):
    """A run that has made its pre-pass, if it has one."""
    run = build(tiny_recipe(*SMALL, f"algorithm.use={name}", *NEEDS.get(name, []), *more))
    folder = RunFolder(tmp_path / "run")
    folder.open()
    assert prepare_values(run, folder, StopRequest(), State(0, 0, 0))
    return run


@functools.cache
def at_the_start() -> float:
    return evaluate(build(tiny_recipe(*SMALL)), 0).accuracy


@pytest.mark.slow
@pytest.mark.parametrize("name", long_but_for(OFTEN, list(NAMED)))
def test_every_algorithm_learns(name, tmp_path):
    run = started(name, tmp_path)
    for step in range(1, STEPS + 1):
        record, _ = train_step(step, run)
        if record.skipped is None:
            assert math.isfinite(record.loss) and math.isfinite(record.grad_norm)
    after = evaluate(run, STEPS).accuracy
    print(f"{name}: {at_the_start():.3f} -> {after:.3f}")
    assert after >= at_the_start()


WITH_REFERENCE = {
    "grpo",
    "trace",
    "prefix_share",
    "cppo",
    "a_star_po",
    "flowrl",
    "flowrl_group",
    "g2rpo_a",
    "vineppo",
}


PASSES = [(name, 1) for name in NAMED] + [(name, 2) for name in OFTEN]


@pytest.mark.parametrize(("name", "updates"), slow_but_for(PASSES, list(product(NAMED, [1, 2]))))
def test_only_the_passes_that_are_needed(name, updates, tmp_path, monkeypatch):
    more = [
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "data.train.limit=16",
        "memory.micro_tokens=1000000",
    ]
    more += (
        [f"optim.updates_per_batch={updates}", "algorithm.surrogate=clipped"] if name == "rgr_grpo" else []
    )
    more += [f"optim.updates_per_batch={updates}"] if name != "rgr_grpo" else []
    run = started(name, tmp_path, *more)
    passes = []
    real = run.policy.logprobs
    monkeypatch.setattr(
        run.policy, "logprobs", lambda batch, **asked: passes.append(1) or real(batch, **asked)
    )
    record, _ = train_step(1, run)
    if record.skipped is None:
        assert len(passes) == updates + (updates > 1) + (name in WITH_REFERENCE)
    assert run.recipe.algorithm.needs_reference == (name in WITH_REFERENCE)


@pytest.fixture
def read(monkeypatch):
    """Which settings of an algorithm are looked at while it runs: (section, key) of every access."""
    seen = set()
    plain = Section.__getattribute__

    def recorded(self, name):
        if not name.startswith(("_", "model_")):
            seen.add((type(self), name))
        return plain(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recorded)
    return seen


def sections(section):
    yield section
    for field in section.model_fields.values():
        if inner := section_inside(field.annotation):
            yield from sections(inner)


@pytest.mark.slow
def test_every_setting_of_every_algorithm_is_read_while_it_runs(read, tmp_path):
    """Not in `check`, which compares settings: an option that neither building nor
    stepping looks at does nothing.
    """
    small = [
        "rollout.prompts_per_step=4",
        "rollout.group_size=4",
        "data.train.limit=16",
        "rollout.max_redraw=0",
    ]
    more = {
        "dapo": ["algorithm.top_entropy=0.5", "algorithm.mask_truncated=true", "algorithm.clip.dual=3"],
        "trace": ["algorithm.trace.mode=weight", "algorithm.trace.normalize=mean"],
        "bnpo_trl": ["algorithm.reduce_rows=2"],
        "rgr_grpo": ["algorithm.refine_best.when=always"],
        "vineppo": ["algorithm.probe_values={k: 2, max_states: 2}"],
    }
    ran = set()
    for name in NAMED:
        recipe = tiny_recipe(f"algorithm.use={name}", *NEEDS.get(name, []), *small, *more.get(name, []))
        read.clear()
        run, folder = build(recipe), RunFolder(tmp_path / name)
        folder.open()
        assert prepare_values(run, folder, StopRequest(), State(0, 0, 0))
        for step in range(1, 4 if name == "g2rpo_a" else 2):
            train_step(step, run)
        ran |= read
    wanted = {(s, key) for s in sections(Algorithm) for key in s.model_fields}
    # read when the row is looked up
    assert {(s.__name__, key) for s, key in wanted - ran} == {("Algorithm", "use")}
