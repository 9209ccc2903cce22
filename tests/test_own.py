"""Algorithms of one's own: what is wrong with one is told at its own line, before anything loads."""

import time

import pytest
import torch

from lgrpo_lite.checks.check import check
from lgrpo_lite.checks.tried import try_algorithm
from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import DataError
from lgrpo_lite.objective.named import NAMED
from lgrpo_lite.recipe.read import load_recipe

HEAD = """import torch
from lgrpo_lite.algorithm import Algorithm

def row():
    return Algorithm(advantage=f"{__file__}:mine")


"""
ROW = "algorithm.use={}:row"
ADVANTAGE = "algorithm.advantage={}:mine"
SURROGATE = "algorithm.surrogate={}:mine"
GAIN = "torch.exp(t.x) * t.batch.advantage"


@pytest.fixture
def tried(tmp_path):
    """Tries a recipe with a file of this text: None, or its fault."""

    def attempt(text, setting, *more):
        path = tmp_path / "mine.py"
        path.write_text(HEAD + text)
        try:
            try_algorithm(check(load_recipe("tiny-math", [setting.format(path), *more])))
        except DataError as error:
            assert error.where.startswith(f"{path}:")
            return error.what, int(error.where.rpartition(":")[2]), error.fix
        return None

    return attempt


GOOD = "def mine(groups, parts):\n    return [[r - sum(g.rewards) / len(g.rewards) for r in g.rewards] for g in groups]\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("def mine(groups, parts):\n    return [[1.0] for g in groups]\n", 8, "gave 1 numbers for the 8 rollouts of group 0"),
        ("def mine(groups, parts):\n    return [[1.0] * 8]\n", 8, "gave 1 rows for 2 groups"),
        ("def mine(groups, parts):\n    return {}\n", 8, "gave a dict, not a list"),
        ("def mine(groups, parts):\n    pass\n", 8, "gave nothing, not a list"),
        ("def mine(groups, parts):\n    return [['a'] * 8 for g in groups]\n", 8, "gave a str, not a number"),
        ("def mine(groups, parts):\n    return [[float('nan')] * 8 for g in groups]\n", 8, "not a finite number"),
        ("def mine(groups, parts):\n    return [[[1.0]] * 8 for g in groups]\n", 8, "gave 1 numbers for an answer of 3 tokens"),
        ("def mine(groups, parts):\n    x = {}\n    return x['lost']\n", 10, "raised KeyError: 'lost'"),
        ("def mine(groups, parts):\n    return [[r / sum(g.rewards) for r in g.rewards] for g in groups]\n", 9, "raised ZeroDivisionError"),
        ("def mine(groups):\n    return []\n", 8, "raised TypeError"),
        ("def mine(groups, parts):\n    return [{1.0} for g in groups]\n", 8, "gave a set, not a list"),
        ("def mine(groups, parts):\n    return [[1e30] * 8 for g in groups]\n", 8, "not a finite number within"),
        ("def mine(groups, parts):\n    import sys\n    sys.exit(0)\n", 10, "raised SystemExit"),
        ("def mine(groups, parts):\n    return [[r.score.parts['numeric'] for r in g.rollouts] for g in groups]\n", None, ""),
        (GOOD, None, ""),
        ("def mine(groups, parts):\n    return [list(torch.tensor(g.rewards)) for g in groups]\n", None, ""),
        ("def mine(groups, parts):\n    return [[[1.0] * len(r.completion.token_ids) for r in g.rollouts] for g in groups]\n", None, ""),
    ],
)  # fmt: skip
def test_an_advantage_is_blamed_on_its_own_line(text, line, words, tried):
    for setting in (ADVANTAGE, ROW):
        fault = tried(text, setting)
        if line is None:
            assert fault is None
        else:
            what, at, fix = fault
            assert words in what and at == line and "an advantage takes (groups, parts)" in fix


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        (f"return {GAIN}", 8, "gave a Tensor, not (gain, counts)"),
        (f"return ({GAIN}).sum(), {{}}", 8, "gave gain of shape []"),
        (f"return ({GAIN}).detach(), {{}}", 8, "a gain without a gradient"),
        (f"return {GAIN} / 0, {{}}", 8, "not finite"),
        ("return torch.sqrt(t.x ** 2) * t.batch.advantage, {}", 8, "whose gradient is not finite"),
        (f"return {GAIN}, None", 8, "gave nothing for counts"),
        (f"return {GAIN}, {{'clip': 1.0}}", 8, "gave a float for counts['clip']"),
        ("return t.nothing, {}", 9, "raised AttributeError"),
        (f"return {GAIN}, {{'clip': t.x}}", None, ""),
    ],
)
def test_a_surrogate_is_blamed_on_its_own_line(body, line, words, tried):
    fault = tried(f"def mine(t):\n    {body}\n", SURROGATE)
    if line is None:
        assert fault is None
    else:
        what, at, fix = fault
        assert words in what and at == line and "a surrogate takes Terms" in fix


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "def row():\n    return Algorithm(advantage='mean_sdt')\n",
            9,
            "advantage='mean_sdt': one of mean_std",
        ),
        ("def row():\n    return Algorithm(clip=3)\n", 9, "clip=3"),
        ("def row():\n    return undefined\n", 9, "raised NameError"),
        ("def row(x):\n    return Algorithm()\n", 8, "raised TypeError"),
        ("def row():\n    return 5\n", 8, "gave no algorithm, but int"),
    ],
)
def test_a_row_is_blamed_on_its_own_line(text, line, words, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + text)
    assert main(["validate", "tiny-math", ROW.format(path), "--import"]) in (2, 5)
    error, place, fix = capsys.readouterr().err.splitlines()
    assert words in error and place == f"  at  {path}:{line}" and "takes no arguments" in fix


def test_validate_tries_it_and_training_does_before_there_is_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(HEAD + "def mine(groups, parts):\n    return []\n")
    argv = ["tiny-math", ROW.format("mine.py")]
    assert main(["validate", *argv]) == 0  # it is looked at, and not run
    begun = time.process_time()
    assert main(["validate", *argv, "--import"]) == 5
    assert time.process_time() - begun < 1
    assert "gave 0 rows for 2 groups" in capsys.readouterr().err
    assert main(["train", *argv, "--ui", "none"]) == 5
    assert "mine.py:8" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("use", NAMED)
def test_the_made_up_groups_train_under_every_algorithm(use, tmp_path):
    """So that what they find is the file's fault: with functions of our own every row takes them."""
    path = tmp_path / "mine.py"
    path.write_text(HEAD + GOOD + f"\n\ndef gain(t):\n    return {GAIN}, {{}}\n")
    own = {"advantage": f"{path}:mine", "surrogate": f"{path}:gain"}
    recipe = load_recipe("tiny-math", [])
    try_algorithm(recipe.model_copy(update={"algorithm": NAMED[use]().model_copy(update=own)}))


def test_memory_that_ends_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "def mine(t):\n    raise torch.OutOfMemoryError('CUDA out of memory')\n")
    with pytest.raises(torch.OutOfMemoryError):
        try_algorithm(check(load_recipe("tiny-math", [SURROGATE.format(path)])))
