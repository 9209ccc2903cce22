"""Words of other trainers, bare names of settings, names of algorithms: each is answered with ours."""

import json

import pytest

from lgrpo_lite.checks.check import check
from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.objective.named import NAMED, when
from lgrpo_lite.recipe import words
from lgrpo_lite.recipe.read import load_recipe, parse_recipe, recipe_names

GOOD = "model: {id: m}\ndata: {train: {path: x.jsonl}}\n"


@pytest.mark.parametrize("word", words.SETTINGS)
def test_a_word_of_another_trainer_means_settings_that_there_are(word):
    for setting in words.SETTINGS[word]:
        key, _, value = setting.partition("=")
        assert key in words.all_keys()
        if value:
            load_recipe("tiny-math", [setting])


def test_words_are_none_of_ours_and_notes_are_of_words():
    top = {key for key in words.all_keys() if "." not in key}
    assert not top & (words.SETTINGS.keys() | words.NOT_HERE.keys())
    assert words.NOTES.keys() <= words.SETTINGS.keys()
    assert not words.SETTINGS.keys() & words.NOT_HERE.keys()
    assert {row for _, rows in words.ALGORITHMS.values() for row in rows} <= NAMED.keys()
    assert all(words.plain(name) == name for name in words.ALGORITHMS)
    assert not words.ALGORITHMS.keys() & {words.plain(name) for name in NAMED}


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("num_generations=4", "write rollout.group_size=…"),
        ("max_completion_length=4", "write model.max_new_tokens=…"),
        ("learning_rate=1e-5", "write optim.lr=…"),
        ("load_in_4bit=true", "write model.weights=nf4"),
        ("model.name=x", "write model.id=…"),
        ("steps=5", "write train.steps=…"),
        ("lr=1e-5", "write optim.lr=…"),
        ("max-steps=5", "write train.steps=…"),
        ("training_args.learning_rate=1e-5", "write optim.lr=…"),
        ("trl.beta=0.1", "write algorithm.kl.coef=…"),
        ("lora.rank=4", "write model.lora.rank=…"),
        ("optim.learning_rate=1e-5", "write optim.lr=…"),
        ("num_train_epochs=3", "a run counts steps"),
        ("top_p=0.9", "answers are drawn from the policy itself"),
        ("model.lora.use_dora=true", "vLLM serves no DoRA adapter"),
        ("rollout.temprature=1", "did you mean 'temperature'"),
        ("algoritm={use: grpo}", "did you mean 'algorithm'"),
    ],
)
def test_an_unknown_key_is_answered_with_ours(override, answer):
    with pytest.raises(ConfigError) as error:
        parse_recipe(GOOD, "r.yaml", [override])
    assert answer in str(error.value)
    assert error.value.where.startswith("command line, ")


@pytest.mark.parametrize(
    ("use", "rows", "words_"),
    [
        ("lambda-grpo", ["length_preference", "prefix_share"], "2510.06870"),
        ("λ-GRPO", ["length_preference", "prefix_share"], "two papers"),
        ("grpo-lambda", ["trace"], "2510.00194"),
        ("GRPO_λ", ["trace"], "eligibility traces"),
        ("ppo", ["grpo", "vineppo"], "PPO trains a critic"),
        ("reinforce++", ["rloo"], "other answers of the group"),
        ("DPO", ["grpo"], "pairs of answers"),
        ("Dr.GRPO", ["dr_grpo"], "spelled in another way"),
        ("GRPO", ["grpo"], "spelled in another way"),
        ("grpo2", [], "did you mean 'grpo'"),
    ],
)
def test_an_algorithm_is_known_by_the_name_of_its_paper(use, rows, words_):
    with pytest.raises(ConfigError) as error:
        check(parse_recipe(GOOD, "r.yaml", [f"algorithm.use={use}"]))
    assert words_ in str(error.value)
    assert all(f"algorithm.use={row}" in error.value.fix for row in rows)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["lora"], "model.lora.rank"),
        (["temperature"], "rollout.temperature"),
        (["learning"], "optim.lr"),
        (["learning", "rate"], "optim.lr"),
        (["num-generations"], "rollout.group_size"),
        (["vram"], "recipe.min_vram_gb"),
        (["lambda-grpo"], "length_preference"),
        (["ppo"], "critic"),
        (["grpo"], "algorithm.use=grpo: GRPO (arXiv:2402.03300)"),
        (["top_k"], "answers are drawn from the policy itself"),
        (["algorithm.trace"], "algorithm.trace.lambda"),
    ],
)
def test_config_finds_by_name_by_meaning_and_by_others_words(argv, said, capsys):
    assert main(["config", *argv]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "fix"), [("zzzz", "lists all of them"), ("temprature", "eval.temperature"), ("", "")]
)
def test_config_never_prints_nothing(word, fix, capsys):
    code = main(["config", word])
    out, err = capsys.readouterr()
    assert (code == 0 and out) if not word else (code == 2 and fix in err)


def test_config_takes_no_more_room_than_its_words(capsys):
    assert main(["config", "learning"]) == 0
    assert capsys.readouterr().out.startswith("optim.lr  float  1e-05  learning rate of the policy's AdamW\n")


def test_what_config_found_as_json(capsys):
    assert main(["config", "num_generations", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["result"][0]
    assert row["key"] == "rollout.group_size" and row["default"] == "8"


@pytest.mark.parametrize(
    ("option", "setting"),
    [("--seed", "seed=…"), ("--learning-rate=1", "optim.lr=…"), ("--load-in-4bit", "model.weights=nf4")],
)
def test_a_setting_that_is_written_as_an_option_is_told_how(option, setting, capsys):
    assert main(["validate", "tiny-math", option]) == 2
    assert setting in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("argv", [["recipe"], ["algorithms"]], ids=" ".join)
def test_what_is_to_be_typed_is_never_cut(argv, width, monkeypatch, capsys):
    monkeypatch.setattr("lgrpo_lite.cli.terminal.output.WIDTH", width)
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    first = {line.split(" ")[0] for line in lines}
    assert {*(NAMED if argv == ["algorithms"] else recipe_names())} <= first
    assert "…" not in "".join(lines)
    assert max(map(len, lines[:-1])) <= width


def test_every_algorithm_has_one_plain_sentence():
    sentences = [when(name) for name in NAMED]
    assert len(set(sentences)) == len(NAMED)
    for sentence in sentences:
        assert sentence.startswith("Use this when ") and sentence.endswith(".") and len(sentence) <= 110
        assert not set(sentence) & set("Σπβ√|")


@pytest.mark.parametrize(
    ("name", "code", "words_"),
    [
        ("trace", 0, "sets algorithm.advantage_floor=-0.1"),
        ("grpo", 0, "sets algorithm.kl.coef=0.04"),
        ("lambda-grpo", 0, "two papers"),
        ("ppo", 0, "critic"),
        ("grppo", 2, "did you mean 'grpo'"),
    ],
)
def test_one_algorithm_and_what_it_sets(name, code, words_, capsys):
    assert main(["algorithms", name]) == code
    assert words_ in "".join(capsys.readouterr())
    if not code:
        assert main(["algorithms", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["ok"]


@pytest.mark.parametrize("name", NAMED)
def test_what_a_row_is_said_to_set_makes_that_row(name):
    from lgrpo_lite.cli.algorithms import _changed

    settings = [f"algorithm.{key}={value}" for key, value in _changed(name).items() if key != "use"]
    made = parse_recipe(
        GOOD, "r", ["algorithm.use=length_preference", "algorithm.length_preference=null", *settings]
    )
    row = NAMED[name]()
    assert made.algorithm.model_copy(update={"use": name, "length_preference": row.length_preference}) == row
