"""Recipes: every fault is one ConfigError (exit 2) that names the place and the nearest name."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lgrpo_lite.checks.check import check
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.read import load_recipe, parse_recipe, recipe_names

GOOD = "model: {id: m}\ndata: {train: {path: x.jsonl}}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "where", "words"),
    [
        (GOOD + "algoritm: {use: grpo}\n", [], "r.yaml:3", "did you mean 'algorithm'"),
        (GOOD + "rollout:\n  group_size: 8\n  temprature: 1\n", [], "r.yaml:5", "did you mean 'temperature'"),
        (
            GOOD + "rewards:\n  - {use: exact}\n  - {use: exact, wieght: 2}\n",
            [],
            "r.yaml:5",
            "did you mean 'weight'",
        ),
        (GOOD + "train: {steps: many}\n", [], "r.yaml:3", "steps='many'"),
        (GOOD + "train: {steps: 0}\n", [], "r.yaml:3", "greater than or equal to 1"),
        (GOOD + "seed: 1\nseed: 2\n", [], "r.yaml:4", "'seed' stands twice"),
        (GOOD + "train: {steps: 1\n", [], "r.yaml:", "not YAML"),
        ("- 1\n", [], "r.yaml", "mapping of sections"),
        ("data: {train: {path: x}}\n", [], "r.yaml", "model is missing"),
        (GOOD + "model: 3\n", [], "r.yaml:3", "stands twice"),
        (GOOD, ["train.stesp=5"], "command line, train.stesp=5", "did you mean 'steps'"),
        (GOOD, ["train.steps"], "command line", "not an override"),
        (GOOD, ["train.steps=[1"], "command line", "not YAML"),
        (GOOD, ["seed.x=1"], "command line, seed.x=1", "seed"),
        (GOOD, ["rewards.3.weight=1"], "command line", "rewards"),
        (
            GOOD,
            ["algorithm.select=top_abs"],
            "command line, algorithm.select=top_abs",
            "is a section, not 'top_abs'",
        ),
        (GOOD, ["algorithm.clip=null"], "command line, algorithm.clip=null", "keys: low, high, dual"),
        (GOOD, ["algorithm.use=grpo2"], "command line, algorithm.use=grpo2", "did you mean 'grpo'"),
        (GOOD, ["optim.lr=.inf"], "command line, optim.lr=.inf", "finite"),
        (GOOD, ["rollout.temperature=.nan"], "command line", "finite"),
        (GOOD, ["rollout.group_size=1"], "command line, rollout.group_size=1", "nothing to compare"),
        (GOOD, ["rollout.group_size=100"], "algorithm.length_preference.r", "may reach 0"),
        (GOOD, ["algorithm.use=grpo", "model.lora=null"], "algorithm.kl.coef", "needs a reference"),
        (
            GOOD,
            ["model.lora=null", "model.weights=nf4"],
            "command line, model.weights=nf4",
            "quantised weights",
        ),
        (GOOD, ["rollout.engine=vlm"], "command line, rollout.engine=vlm", "did you mean 'vllm'"),
        (GOOD, ["algorithm.length_preference.lambda_init=9"], "clamp", "outside clamp"),
        (GOOD, ["algorithm.reduce_constant=9"], "command line", "not read"),
        (GOOD, ["export.base=dequantized"], "command line", "only a quantised base"),
    ],
)
def test_faults(text, overrides, where, words):
    with pytest.raises(ConfigError) as error:
        check(parse_recipe(text, "r.yaml", overrides))
    assert error.value.exit_code == 2
    assert where in error.value.where
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 3


def test_overrides_reach_lists_switch_off_and_add_sections():
    base = GOOD + "rewards: [{use: exact}, {use: numeric}]\nmodel2: 1\n".replace("model2: 1\n", "")
    recipe = parse_recipe(
        base, "r", ["rewards.1.weight=0.5", "model.lora=null", "algorithm.trace.lambda=0.5", "optim.lr=1e-4"]
    )
    assert recipe.rewards[1].weight == 0.5
    assert recipe.model.lora is None
    assert recipe.algorithm.trace.lambda_ == 0.5
    assert recipe.optim.lr == 1e-4


def test_numbers_in_scientific_notation_are_numbers():
    assert parse_recipe(GOOD + "optim: {lr: 1e-5}\n", "r").optim.lr == 1e-5


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_name_is_a_row_and_set_keys_lie_over_it(name):
    settings = [f"algorithm.use={name}", "data.train.solution=worked"]
    plain = check(parse_recipe(GOOD, "r", settings)).algorithm
    assert plain == NAMED[name]()
    changed = check(parse_recipe(GOOD, "r", [*settings, "algorithm.rollout_correction.cap=3"])).algorithm
    assert changed.rollout_correction.cap == 3 and plain.rollout_correction.cap == 2
    assert changed.model_copy(update={"rollout_correction": plain.rollout_correction}) == plain


def test_a_part_of_a_row_is_switched_off_by_null():
    algorithm = check(parse_recipe(GOOD, "r", ["algorithm.use=trace", "algorithm.trace=null"])).algorithm
    assert algorithm.trace is None and algorithm.advantage_floor == -0.1


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_valid_and_survives_a_round_trip(name):
    recipe = check(load_recipe(name))
    again = check(parse_recipe(recipe.to_yaml(), "again"))
    assert again.to_yaml() == recipe.to_yaml()
    assert recipe.recipe.name == name


@given(text=st.text(max_size=200))
def test_no_text_crashes_the_reader(text):
    try:
        parse_recipe(text, "r")
    except ConfigError as error:
        assert error.exit_code == 2


@given(
    key=st.text(st.characters(codec="ascii", exclude_characters="="), max_size=20), value=st.text(max_size=20)
)
def test_no_override_crashes_the_reader(key, value):
    try:
        parse_recipe(GOOD, "r", [f"{key}={value}"])
    except ConfigError as error:
        assert error.exit_code == 2


def test_every_key_of_the_schema_is_read_somewhere():
    """An option that no code reads is a promise that is not kept."""
    from pathlib import Path

    import lgrpo_lite
    from lgrpo_lite.cli.config import rows
    from lgrpo_lite.recipe.reward import REWARD_KEYS
    from lgrpo_lite.recipe.schema import Recipe

    package = Path(lgrpo_lite.__file__).parent
    readers = [
        p
        for p in package.rglob("*.py")
        if p.parent.name != "recipe" and p.name not in ("config.py", "recipe.py")
    ]
    code = "\n".join(p.read_text("utf-8") for p in readers)
    only_told = {"schema", "verified"}  # schema: checked by its type; verified: shown by `recipe ls`
    leaves = {key.rsplit(".", 1)[-1] for key, type_, _, _ in rows(Recipe) if not type_.startswith("section")}
    leaves -= set(REWARD_KEYS)  # test_rewards.py shows that a reward reads each of them
    unread = {k for k in leaves - only_told if f".{k}" not in code and f".{k}_" not in code}
    assert not unread


def test_the_resolved_recipe_is_plain_yaml():
    resolved = yaml.safe_load(check(load_recipe("tiny-math")).to_yaml())
    assert resolved["algorithm"]["length_preference"]["lr"] == 0.1
    assert resolved["schema"] == 1
