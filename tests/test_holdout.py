"""A share of the data that is kept for the evaluation, and sources that are drawn more or less often."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lgrpo, tiny_recipe

from lgrpo_lite.checks.check import check
from lgrpo_lite.checks.describe import describe
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.data.prompts import load, part_of, read
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.folder.opening import RESOLVED, changes
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.data import Part
from lgrpo_lite.recipe.read import load_recipe, parse_recipe
from lgrpo_lite.recipe.schema import Data, Model
from lgrpo_lite.types import Prompt

ROWS = [{"question": f"{i}+{i}=?", "answer": str(2 * i)} for i in range(40)]


def written(path, rows=ROWS) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe_of(path: str, *more: str, seed: int = 0):
    data = f"data: {{train: {{path: {path}}}, holdout: 0.25, template: plain}}"
    text = f"schema: 1\nseed: {seed}\nmodel: {{id: 'builtin:tiny-math'}}\n{data}\n"
    return check(parse_recipe(text, "here", list(more)))


def questions(recipe, which: str) -> list[str]:
    rows = []
    for source in getattr(recipe.data, which):
        rows += [row.question for row in read(source, "here")]
    return rows


def test_a_share_is_held_out_by_the_seed_and_the_rest_is_trained_on(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    recipe = recipe_of(path)
    train, held_out = questions(recipe, "train"), questions(recipe, "eval")
    assert len(held_out) == 10 and len(train) == 30
    assert sorted(train + held_out) == sorted(row["question"] for row in ROWS)
    assert held_out != [row["question"] for row in ROWS][:10], "not the first rows"
    again, other = recipe_of(path), recipe_of(path, seed=1)
    assert questions(again, "eval") == held_out and set(questions(other, "eval")) != set(held_out)
    limited = recipe_of(path, "data.train.limit=8")
    assert len(questions(limited, "eval")) == 2 and len(questions(limited, "train")) == 6


def test_a_held_out_question_is_trained_on_in_no_other_row(tmp_path):
    rows = [{"question": f"{i % 5} + 1", "answer": "1"} for i in range(30)]
    recipe = recipe_of(written(tmp_path / "rows.jsonl", rows))
    train, held_out = set(questions(recipe, "train")), set(questions(recipe, "eval"))
    assert held_out and train and not train & held_out
    assert not any("flatters" in line for line in describe(recipe))


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=20), st.floats(0.01, 0.99), st.integers(0, 99)
)
def test_the_two_parts_are_all_rows_and_no_question_is_in_both(rows, share, seed):
    parts = []
    for held_out in (True, False):
        part = Part(share=share, held_out=held_out, seed=seed)
        if len(set(rows)) < 2:
            with pytest.raises(DataError, match="1 questions cannot be divided"):
                part_of(part, rows, "here", str)
            return
        parts.append(part_of(part, rows, "here", str))
    held_out, train = parts
    assert Counter(held_out + train) == Counter(rows) and not set(held_out) & set(train)
    expected = min(max(1, round(share * len(set(rows)))), len(set(rows)) - 1)
    assert len(set(held_out)) == expected


def test_what_is_held_out_is_asked_by_an_evaluation_of_the_run(tmp_path):
    from lgrpo_lite.evaluation.suites import Suite, SuiteName, lay_over, problems

    recipe = recipe_of(written(tmp_path / "rows.jsonl"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RESOLVED).write_text(recipe.to_yaml())
    kept = load_recipe(str(tmp_path / "run" / RESOLVED))  # as `eval RUN` and --resume read it
    assert changes(tmp_path / "run", recipe) == [] and changes(tmp_path / "run", check(kept)) == []
    assert changes(tmp_path / "run", recipe_of(recipe.data.train[0].path, "data.holdout=0.5"))
    suite = Suite(suite=SuiteName(name="held-out"), data=kept.data.eval)
    asked = problems(suite, lay_over(suite, kept, []), load_tokenizer(Model(id="builtin:tiny-math")), None)
    assert [prompt.text for prompt in asked.prompts] == questions(recipe, "eval")


def test_what_cannot_be_read_divides_a_source_for_an_evaluation_as_for_training(tmp_path):
    """A reward leaves some rows out; an evaluation of the run, by other rewards perhaps, has to ask the rest."""
    from lgrpo_lite.checks.check import wants_of
    from lgrpo_lite.evaluation.suites import Suite, SuiteName, lay_over, problems

    rows = [row | ({"level": 1} if i % 3 else {}) for i, row in enumerate(ROWS)]
    path = written(tmp_path / "rows.jsonl", rows)
    (tmp_path / "mine.py").write_text("def leveled(completion, level): return level")
    rewards = f"rewards=[{{use: {tmp_path}/mine.py:leveled}}]"
    recipe = recipe_of(path, "data.train.bad_rows=skip", "data.train.limit=30", rewards)
    trained = [row.question for row in read(recipe.data.train[0], "here", wants_of(recipe))]
    assert 0 < len(trained) < len(questions(recipe, "train"))
    suite = Suite(suite=SuiteName(name="held-out"), data=recipe.data.eval)
    asked = problems(suite, lay_over(suite, recipe, []), load_tokenizer(Model(id="builtin:tiny-math")), None)
    assert not {prompt.text for prompt in asked.prompts} & set(trained)


def test_a_question_that_one_source_holds_out_is_not_trained_on_in_another(tmp_path):
    from lgrpo_lite.train.build import build

    first = written(tmp_path / "a.jsonl", ROWS)
    kept = set(questions(recipe_of(first), "train"))
    second = written(tmp_path / "b.jsonl", [row for row in ROWS if row["question"] in kept])
    sources = f"data.train=[{{path: {first}}}, {{path: {second}}}]"
    recipe = recipe_of(first, sources)
    both = set(questions(recipe, "train")) & set(questions(recipe, "eval"))
    assert both, "each source is divided by itself"
    lines = describe(recipe)
    assert any("another source of data.train holds out" in line for line in lines)
    assert not any("flatters" in line for line in lines)
    run = build(recipe)
    train, held_out = ({p.text for p in prompts} for prompts in (run.prompts.prompts, run.eval_prompts))
    assert not train & held_out and len(train) == 22 and len(held_out) == 18
    assert any("another source of data.train holds out" in note for note in run.notes) and not run.warnings


def test_held_out_data_and_a_share_of_the_training_data_contradict_each_other(tmp_path):
    path = written(tmp_path / "rows.jsonl")
    with pytest.raises(ConfigError, match=r"data\.eval names others") as error:
        recipe_of(path, f"data.eval={{path: {path}}}")
    assert error.value.where.startswith("here:4")


def test_a_run_without_held_out_data_says_that_it_has_no_before_and_after(capfd):
    assert any("no before and after" in line for line in warnings(tiny_recipe("data.eval=[]")))
    assert not any("no before and after" in line for line in warnings(tiny_recipe()))
    assert lgrpo("validate", "tiny-math", "data.eval=[]") == 0
    assert "data.holdout=0.1" in capfd.readouterr().out
    assert lgrpo("validate", "tiny-math", "data.eval=[]", "data.holdout=0.1") == 0
    assert "before and after" not in capfd.readouterr().out


def prompts_of(*weights: float) -> list[Prompt]:
    return [Prompt(str(i), str(i), (i,), "", weight=weight) for i, weight in enumerate(weights)]


@pytest.mark.parametrize(
    ("weights", "epochs", "expected"),
    [
        ([1, 1, 1], 1, [1, 1, 1]),
        ([2, 2, 1], 1, [2, 2, 1]),
        ([0.5, 0.5, 1], 2, [1, 1, 2]),
        ([0.5, 0.5, 0.5, 0.5, 3], 2, [1, 1, 1, 1, 6]),
        ([2.5, 2.5, 1], 2, [5, 5, 2]),
        ([0.25] * 4, 4, [1, 1, 1, 1]),
    ],
)
def test_an_epoch_draws_a_prompt_as_often_as_its_weight(weights, epochs, expected):
    prompts = prompts_of(*weights)
    stream = PromptStream(prompts, 3)
    drawn = Counter(prompt.id for prompt in stream.draw(epochs * stream.length))
    assert [drawn[prompt.id] for prompt in prompts] == expected


def test_a_weighted_order_goes_on_from_its_place():
    prompts = prompts_of(*[0.4] * 10, *[1.3] * 10)
    whole = PromptStream(prompts, 5)
    ids = [prompt.id for prompt in whole.draw(100)]
    for place in (0, 7, 17, 50):
        again = PromptStream(prompts, 5)
        again.load_state_dict({"drawn": place, "digest": whole.digest()})
        assert [prompt.id for prompt in again.draw(100 - place)] == ids[place:]
    first = [prompt.id for prompt in whole.first(70)]
    assert first == list(dict.fromkeys(ids[:70]))
    every = [prompt.id for prompt in whole.first()]
    assert every[: len(first)] == first and sorted(every) == sorted(prompt.id for prompt in prompts)
    assert [prompt.id for prompt in whole.first(10**6)] == every


def test_equal_weights_are_the_order_there_always_was():
    plain, halves = PromptStream(prompts_of(*[1] * 9), 1), PromptStream(prompts_of(*[1.0] * 9), 1)
    import random

    order = list(range(9))
    random.Random("1/0").shuffle(order)
    assert [p.id for p in plain.draw(9)] == [p.id for p in halves.draw(9)] == [str(i) for i in order]


def test_the_weight_of_a_source_is_that_of_its_prompts(tmp_path):
    sources = [
        {"path": written(tmp_path / "a.jsonl")},
        {"path": written(tmp_path / "b.jsonl"), "weight": 0.5},
    ]
    data = Data.model_validate({"train": sources, "template": "plain"})
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    prompts, _ = load(data.train, data, tokenizer, 64, str)
    assert Counter(prompt.weight for prompt in prompts) == {1.0: 40, 0.5: 40}
    assert PromptStream(prompts, 0).length == 60


def test_a_weight_that_nothing_reads_is_refused(tmp_path, capfd):
    path = written(tmp_path / "rows.jsonl")
    assert lgrpo("validate", "tiny-math", f"data.eval=[{{path: {path}, weight: 2}}]") == 2
    assert "as often as any other" in capfd.readouterr().err
    for weights in ((0.1, 0.1), (0.1, 0.1, 5, 5, 5)):
        with pytest.raises(DataError, match=r"of the 2 questions with weight 0\.1 none"):
            PromptStream(prompts_of(*weights), 0)
    few = written(tmp_path / "few.jsonl", ROWS[:2])
    sources = f"data.train=[{{path: {path}}}, {{path: {few}, weight: 0.1}}]"
    assert lgrpo("validate", "tiny-math", sources) == 5
    assert "of the 2 questions with weight 0.1 none" in capfd.readouterr().err
