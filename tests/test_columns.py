"""Rewards and the row: a column by its name, TRL's form of a function, and where a reward fails."""

import json
from pathlib import Path

import pytest
from support import lgrpo, tiny_recipe

from lgrpo_lite.checks.check import check, wants_of
from lgrpo_lite.checks.describe import describe
from lgrpo_lite.data.prompts import Counts, load, read, survey
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.read import parse_recipe
from lgrpo_lite.recipe.schema import Model
from lgrpo_lite.rewards.part import Tally
from lgrpo_lite.rewards.total import RewardSum
from lgrpo_lite.types import Completion, Outcome

ROWS = [
    {
        "question": "2+2?",
        "answer": "so #### 4",
        "nums": [2, 2],
        "level": "easy",
        "prompt": "its own",
        "timeout": 1,
    },
    {
        "question": "3+3?",
        "answer": "so #### 6",
        "nums": [3, 3],
        "level": "hard",
        "prompt": "its own",
        "timeout": 1,
    },
]
USER = """
import re, asyncio

def countdown(completion, nums, level):
    return float(completion == str(sum(nums))) + (level == "hard")

def optional(completion, level="none"):  # a default: an option, as ever
    return float(level == "none")

def counts(completion_tokens):
    return len(completion_tokens)

def fails(completion, nums):
    return helper(nums)

def helper(nums):
    return nums["x"]

def lazy(completion):
    return None

def others(completion, nums, **kwargs):
    return sum(nums) + len(kwargs["level"]) + len(kwargs["prompt"]) / 100

def limited(completions, timeout, **kwargs):
    return [float(timeout) for _ in completions]

class Graded:
    def __init__(self, scale=2.0):
        self.scale = scale

    def __call__(self, completions, nums, **kwargs):
        return [self.scale * sum(n) for n in nums]

graded = Graded()

def arrays(completions, nums, **kwargs):
    import numpy
    return numpy.array([sum(n) for n in nums], dtype=numpy.float32)

async def slowly(completion, nums):
    await asyncio.sleep(0)
    return sum(nums)

# --- the form of TRL, and the rewards that Unsloth's notebooks have, written anew

def answer_of(text):
    return text.split("<answer>")[-1].split("</answer>")[0].strip()

def correctness_reward_func(prompts, completions, answer, **kwargs) -> list[float]:
    responses = [completion[0]["content"] for completion in completions]
    q = prompts[0][-1]["content"]
    print("-" * 20, f"Question:\\n{q}", f"\\nAnswer:\\n{answer[0]}", f"\\nResponse:\\n{responses[0]}")
    return [2.0 if answer_of(r) == a else 0.0 for r, a in zip(responses, answer)]

def int_reward_func(completions, **kwargs) -> list[float]:
    responses = [completion[0]["content"] for completion in completions]
    return [0.5 if answer_of(r).isdigit() else 0.0 for r in responses]

def soft_format_reward_func(completions, **kwargs) -> list[float]:
    pattern = r"<reasoning>.*?</reasoning>\\s*<answer>.*?</answer>"
    matches = [re.match(pattern, completion[0]["content"], re.DOTALL) for completion in completions]
    return [0.5 if match else 0.0 for match in matches]

def as_text(completions, **kwargs):
    return [len(set(completions)) + len(completion) / 100 for completion in completions]

def columns_of(completions, prompts, completion_ids, nums, level="?", scale=1.0, **kwargs):
    assert len(prompts) == len(completion_ids) == len(nums) == len(level) == len(completions)
    return [scale * (sum(n) + sum(ids) + len(kwargs["question"][0])) for n, ids in zip(nums, completion_ids)]

async def later(completions, **kwargs):
    await asyncio.sleep(0)
    return [1.0 for _ in completions]

def some_missing(completions, **kwargs):
    return [None if "?" in c[0]["content"] else 1.0 for c in completions]

def too_few(completions, **kwargs):
    return [1.0] * (len(completions) - 1)

def one_number(completions, **kwargs):
    return 1.0

def trainers(completions, trainer_state):
    return [1.0]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(USER)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def recipe_of(use: str, template: str = "chat", **options):
    reward = json.dumps({"use": f"mine.py:{use}", **options})
    text = "schema: 1\nmodel: {id: 'builtin:tiny-math'}\n"
    data = f"data: {{template: {template}, train: {{path: rows.jsonl, answer_extract: gsm8k}}}}\n"
    return check(parse_recipe(f"{text}{data}rewards: [{reward}]\n", "here"))


def scores(recipe, *answers: str, tally: Tally | None = None):
    """Of the same answers to both rows."""
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompts, _ = load(recipe.data.train, recipe.data, tokenizer, 64, str, wants_of(recipe))
    completions = [Completion((1, 2), (0.0, 0.0), text, "stop", 0) for text in answers]
    reward = RewardSum(recipe.rewards, recipe.where)
    try:
        return reward.scores(prompts, [completions] * 2, tally=tally)
    finally:
        reward.close()


def values(rows) -> list[list[float | None]]:
    return [[score.value for score in row] for row in rows]


RIGHT = "<reasoning>\n2+2\n</reasoning>\n<answer>\n4\n</answer>"


@pytest.mark.parametrize(
    ("use", "template", "options", "answers", "expected"),
    [
        ("countdown", "chat", {}, ("4", "6"), [[1.0, 0.0], [1.0, 2.0]]),
        ("countdown", "chat", {"level": "hard"}, ("4", "6"), [[2.0, 1.0], [1.0, 2.0]]),  # an option wins
        ("optional", "chat", {}, ("4",), [[1.0], [1.0]]),
        ("correctness_reward_func", "chat", {}, (RIGHT, "4", "5"), [[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),
        ("int_reward_func", "chat", {}, (RIGHT, "x"), [[0.5, 0.0], [0.5, 0.0]]),
        ("soft_format_reward_func", "chat", {}, (RIGHT, "4"), [[0.5, 0.0], [0.5, 0.0]]),
        (
            "as_text",
            "plain",
            {},
            ("ab", "ab", "c"),
            [[2.02, 2.02, 2.01]] * 2,
        ),  # the answers of a prompt in one call
        ("as_text", "chat", {"completions": "text"}, ("ab",), [[1.02]] * 2),
        ("columns_of", "chat", {}, ("a", "b"), [[11.0, 11.0], [13.0, 13.0]]),
        ("columns_of", "chat", {"scale": 2}, ("a",), [[22.0], [26.0]]),
        ("later", "plain", {}, ("a",), [[1.0], [1.0]]),
        ("some_missing", "chat", {}, ("a", "b?"), [[1.0, None]] * 2),
        ("others", "chat", {}, ("a",), [[8.07], [10.07]]),
        ("limited", "chat", {"timeout": 7}, ("a", "b"), [[7.0, 7.0]] * 2),
        ("graded", "chat", {}, ("a",), [[8.0], [12.0]]),
        ("arrays", "chat", {}, ("a", "b"), [[4.0, 4.0], [6.0, 6.0]]),
        ("slowly", "chat", {}, ("a",), [[4.0], [6.0]]),
    ],
)
def test_a_reward_is_given_what_its_arguments_name(here, use, template, options, answers, expected):
    assert values(scores(recipe_of(use, template, **options), *answers)) == expected


@pytest.mark.parametrize(
    ("use", "line", "words"),
    [
        ("too_few", "def too_few", "it returned 1 rewards for 2 completions"),
        ("one_number", "def one_number", "it returned a float for 2 completions"),
        ("some_missing", "def some_missing", "it gave no finite number"),
        ("lazy", "def lazy", "it gave no finite number"),
        ("fails", 'return nums["x"]', "TypeError: list indices must be integers"),
        ("counts", "len(completion_tokens)", "completion_tokens is a count, a whole number"),
        ("as_text", "len(set(completions))", "TypeError: unhashable type: 'list'"),
    ],
)
def test_the_first_fault_of_a_reward_has_its_file_and_line(here, use, line, words):
    number = 1 + next(i for i, text in enumerate(USER.split("\n")) if line in text)
    tally = Tally()
    rows = scores(recipe_of(use), "a?", "b?", tally=tally)
    assert {score.outcome for row in rows for score in row} == {Outcome.error}
    assert tally.first.startswith(f"mine.py:{number}: ") and words in tally.first


def test_a_baseline_of_a_reward_that_fails_says_where(here, capfd):
    small = [
        "rollout.prompts_per_step=2",
        "rollout.group_size=2",
        "model.max_new_tokens=4",
        "model.threads=1",
    ]
    recipe = "schema: 1\nmodel: {id: 'builtin:tiny-math', weights: fp32}\n"
    rest = "data: {template: plain, train: {path: rows.jsonl}}\nrewards: [{use: 'mine.py:fails'}]\n"
    Path("my.yaml").write_text(recipe + rest)
    number = 1 + USER.split("\n").index('    return nums["x"]')
    assert lgrpo("baseline", "my.yaml", "-n", "2", *small) == 5
    error = capfd.readouterr().err
    assert f"the reward itself is at fault, first at mine.py:{number}: TypeError: list indices" in error


@pytest.mark.parametrize(
    ("use", "rows", "where", "words"),
    [
        (
            "countdown",
            [{"question": "q", "answer": "1", "nums": []}],
            "rows.jsonl:1",
            "asks for level, and the row",
        ),
        (
            "columns_of",
            [*ROWS, {"question": "q", "answer": "1"}],
            "rows.jsonl:3",
            "asks for nums, and the row",
        ),
    ],
)
def test_a_column_that_a_reward_asks_for_and_a_row_lacks_is_named(here, use, rows, where, words):
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_of(use)
    with pytest.raises(DataError, match=words) as error:
        describe(recipe)
    assert error.value.where == where and "question, answer" in error.value.fix


def test_a_reward_without_its_column_is_not_called(here):
    recipe = tiny_recipe("rewards=[{use: 'mine.py:fails'}]")
    tokenizer = load_tokenizer(recipe.model)
    prompts, _ = load(recipe.data.train, recipe.data, tokenizer, 64, str)
    reward = RewardSum(recipe.rewards, recipe.where)
    with pytest.raises(DataError, match="asks for nums, and prompt") as error:
        reward.check(prompts)
    assert "completion_tokens is a count" in error.value.fix


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("def f(completion, prompt): return 1", "f", "a column of the name prompt"),
        ("def f(completion, order): return 1", "f", ""),  # no such column
        ("def f(completion, question): return 1", "f", ""),
        ("def f(completions, prompts, **kwargs): return [1]", "f", ""),
        ("def f(completions, timeout, **kwargs): return [1]", "f", "a column of the name timeout"),
    ],
)
def test_a_column_with_a_name_that_means_something_else_is_told(here, text, name, words):
    Path("mine.py").write_text(text)
    recipe = recipe_of(name)
    _, (counts,) = survey(recipe.data.train, str, wants_of(recipe))
    assert words in counts.hidden and bool(words) == bool(counts.hidden)
    if words:
        assert counts.hidden in counts.notes() and counts.hidden.startswith("rows.jsonl:1")


def test_a_class_is_no_reward_and_its_instance_is_one(here):
    with pytest.raises(ConfigError, match="Graded' is a class") as error:
        recipe_of("Graded")
    assert "score = Graded(…)" in error.value.fix


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("x = 1\nimport sys\nsys.exit(0)\ndef f(completion): return 1\n", "mine.py:3", "SystemExit"),
        ("x = 1\ny = x.lost\ndef f(completion): return 1\n", "mine.py:2", "AttributeError"),
        ("def f(completion: return 1\n", "mine.py:1", "SyntaxError"),
        ("def g():\n    import lost\ng()\n", "mine.py:2", "No module named 'lost'"),
    ],
)
def test_a_file_that_does_not_import_is_told_at_its_line(here, text, place, words):
    Path("mine.py").write_text(text)
    with pytest.raises(DataError, match=f"mine.py does not import: .*{words}") as error:
        recipe_of("f")
    assert error.value.where == place


def test_what_only_trl_has_is_refused(here):
    with pytest.raises(ConfigError, match="trainer_state, which is a part of TRL's trainer"):
        recipe_of("trainers")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scal": 2}, "did you mean 'scale'"),
        ({"completions": "both"}, "completions='both'"),
        ({"scale": "x"}, "scale='x'"),
    ],
)
def test_an_option_of_trls_form_is_checked(here, options, words):
    with pytest.raises(ConfigError, match=words):
        recipe_of("columns_of", **options)


def test_only_the_columns_that_are_asked_for_are_kept(here):
    recipe = recipe_of("countdown")
    (source,) = recipe.data.train
    assert [set(row.columns) for row in read(source, "here", wants_of(recipe))] == [{"nums", "level"}] * 2
    everything = wants_of(recipe_of("int_reward_func"))
    rows = list(read(source, "here", everything, Counts("")))
    assert rows[0].columns == ROWS[0] | {"answer": "4"}  # the gold as it is cut out
    assert [row.columns for row in read(source, "here")] == [{}, {}]


def test_labelled_cases_hold_the_columns_of_a_reward(here, capfd):
    case = {"prediction": "4", "gold": "4", "label": True, "nums": [2, 2], "level": "easy"}
    Path("cases.jsonl").write_text(json.dumps(case) + "\n")
    assert lgrpo("reward", "test", "mine.py:countdown", "--cases", "cases.jsonl", "--min-accuracy", "1") == 0
    del case["nums"]
    Path("cases.jsonl").write_text(json.dumps(case) + "\n")
    capfd.readouterr()
    assert lgrpo("reward", "test", "mine.py:countdown", "--cases", "cases.jsonl") == 5
    assert "mine.py:4: the reward asks for nums" in capfd.readouterr().err
