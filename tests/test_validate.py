"""`validate`: every fault at once, with its place; and what local files say of the model."""

import json
import shutil
import time
from importlib import resources
from pathlib import Path

import pytest

from lgrpo_lite.checks.check import check
from lgrpo_lite.checks.model import check_model
from lgrpo_lite.cli.config import rows
from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import LgrpoError
from lgrpo_lite.recipe.read import load_recipe, parse_recipe
from lgrpo_lite.recipe.schema import Recipe

GOOD = "model: {id: m}\ndata: {train: {path: x.jsonl}}\n"
MANY = """
model: {id: /nowhere, max_new_tokens: 0}
data:
  train: [{path: bad.csv}, {path: none.csv}]
  eval: {path: gone.jsonl}
rollout: {temprature: 2}
algorithm: {reduce_constant: 7, kl: {coef: 0.1}}
optim: {lr: 3, learning_rate: 1}
rewards: [{use: exct}, {use: overlong, cache: 9999}]
steps: 9
"""
TOLD = {
    "model.max_new_tokens=0": 2,
    "unknown key 'rollout.temprature'": 6,
    "optim.lr=3": 8,
    "unknown key 'optim.learning_rate'": 8,
    "unknown key 'steps'": 10,
    "reduce_constant is not read": 7,
    "unknown reward 'exct'": 9,
    "cache 9999": 9,
    "no such model folder": 2,
    "no such file: none.csv": 4,
    "no such file: gone.jsonl": 5,
}


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("question,answer\n1+1,\n")
    Path("my.yaml").write_text(MANY)


def test_every_fault_is_told_at_once(many, capsys):
    assert main(["validate", "my.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()
    places = dict(zip(said[::3], said[1::3], strict=True))
    assert len(places) == len(TOLD) + 1
    for what, line in TOLD.items():
        [place] = [place for error, place in places.items() if what in error]
        assert f"my.yaml:{line}" in place
    assert "  at  bad.csv:2" in places.values()
    assert all(line.startswith("  fix ") for line in said[2::3])


def test_every_fault_is_told_as_json(many, capsys):
    assert main(["validate", "my.yaml", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"] and len(told["result"]["faults"]) == len(TOLD) + 1
    assert {"what", "where", "fix"} == told["result"]["faults"][0].keys()
    assert main(["validate", "tiny-math", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and not told["result"]["faults"] and told["result"]["lines"]


def test_a_run_tells_every_fault_of_its_recipe_too(many, tmp_path, capsys):
    assert main(["train", "my.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 5  # of its schema: nothing else is looked at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.csv", "my.yaml"]


def test_a_key_has_one_fault_and_what_follows_from_one_is_no_second():
    """group_size=1 has no group to compare, no best answer and no two rewards: it is raised once."""
    with pytest.raises(LgrpoError) as error:
        check(parse_recipe(GOOD, "r.yaml", ["rollout.group_size=1", "algorithm.use=rgr_grpo"]))
    keys = [fault.key for fault in error.value.all]
    assert len(keys) == len(set(keys)) and "rollout.group_size" in keys


def test_many_faults_are_told_as_far_as_anyone_reads(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(GOOD + "".join(f"key_{i}: 1\n" for i in range(300)))
    assert main(["validate", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 61 and said[-1] == "and 281 more"


def test_a_key_that_is_no_text_is_told(capsys):
    assert main(["validate", "tiny-math", "\udcff=1"]) == 2
    assert "unexpected" not in capsys.readouterr().err


COUNTS = [
    key
    for key, type_, _, _ in rows(Recipe)
    if "int" in type_.split("|") and not key.endswith(".limit") and not key.startswith("rewards.")
]  # of a source `limit` is bounded by what there is


@pytest.mark.parametrize("key", COUNTS)
def test_no_count_is_without_a_bound(key):
    """A count that no run can mean is a typo, and memory would end over it."""
    with pytest.raises(LgrpoError) as error:
        check(load_recipe("tiny-math", [f"{key}=1000000000000"]))
    assert any(
        "less than" in fault.what and fault.where.startswith("command line, ") for fault in error.value.all
    )


@pytest.mark.parametrize("reward", ["use: code, memory_mb", "use: overlong, limit", "use: overlong, cache"])
def test_no_count_of_a_reward_is_without_a_bound(reward):
    with pytest.raises(LgrpoError) as error:
        check(load_recipe("tiny-math", [f"rewards.0={{{reward}: 1000000000000}}"]))
    assert any("less than or equal to" in fault.what for fault in error.value.all)


@pytest.mark.parametrize(
    "setting",
    [
        "rollout.prompts_per_step=1000000000",
        "model.max_new_tokens=1000000000",
        "eval.k=1000000000",
        "safety.reward_workers=1000000",
    ],
)
def test_a_count_that_no_run_can_mean_has_its_place(setting, tmp_path, capsys):
    key, _, value = setting.partition("=")
    section, name = key.split(".")
    text = (
        GOOD.replace("{id: m}", f"{{id: m, {name}: {value}}}")
        if section == "model"
        else GOOD + f"{section}:\n  {name}: {value}\n"
    )
    (tmp_path / "r.yaml").write_text(text)
    assert main(["validate", str(tmp_path / "r.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"{key}={value}: input should be less than or equal to" in said
    assert f"r.yaml:{1 if section == 'model' else 4}" in said


# ------------------------------------------------------------------------------------------- the model

TINY = Path(str(resources.files("lgrpo_lite"))) / "models" / "tiny-math"


@pytest.fixture
def folder(tmp_path):
    """The embedded model as a folder of one's own."""
    path = tmp_path / "mine"
    shutil.copytree(TINY, path)
    return path


def faults_of(*settings):
    """(what, key) of each fault of the model."""
    recipe = check(load_recipe("tiny-math", list(settings)))
    try:
        check_model(recipe)
    except LgrpoError as error:
        return [(fault.what, fault.key) for fault in error.all]
    return []


def rid(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


INDEX = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})


@pytest.mark.parametrize(
    ("change", "key", "words_"),
    [
        ([rid("config.json")], "model.id", "holds no config.json"),
        ([rid("config.json"), write("m.gguf", "GGUF")], "model.id", "but m.gguf"),
        ([rid("config.json"), write("adapter_config.json", '{"base_model_name_or_path": "Qwen/Q"}')], "model.id", "it is an adapter of Qwen/Q"),
        ([write("config.json", "{")], "model.id", "no JSON object"),
        ([rid("model.safetensors")], "model.id", "lacks weights: no .safetensors file"),
        ([write("model.safetensors.index.json", INDEX)], "model.id", "lacks weights: one.safetensors and 1 more"),
        ([rid("tokenizer.json"), rid("tokenizer_config.json")], "model.id", "holds no tokenizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_folder_that_is_no_model_says_what_it_lacks(change, key, words_, folder):
    assert faults_of(f"model.id={folder}") == []
    for step in change:
        step(folder)
    [(what, where)] = faults_of(f"model.id={folder}")
    assert words_ in what and where == key


@pytest.mark.parametrize(
    ("name", "words_"),
    [
        ("/nowhere/at/all", "no such model folder"),
        ("./mine", "no such model folder"),
        ("a/b/c", "no such model folder"),
        ("~/mine", "~ is not read here"),
        ("https://huggingface.co/Qwen/Qwen3-4B", "is a page"),
        ("no name at all", "neither a folder here nor a name"),
        ("builtin:none", "no embedded model"),
    ],
)
def test_a_name_that_is_none_is_told_before_anything_loads(name, words_):
    [(what, key)] = faults_of(f"model.id={name}")
    assert words_ in what and key == "model.id"


def test_a_file_is_no_model(folder):
    [(what, _)] = faults_of(f"model.id={folder / 'model.safetensors'}")
    assert "is a file" in what


def test_a_run_is_told_where_its_model_is(tmp_path):
    (tmp_path / "run" / "export" / "merged").mkdir(parents=True)
    (tmp_path / "run" / "export" / "merged" / "config.json").write_text("{}")
    [(what, _)] = faults_of(f"model.id={tmp_path / 'run'}")
    assert "it is a run" in what


def test_a_chat_template_is_asked_for_where_the_recipe_wants_one(folder, capsys):
    argv = ["validate", "tiny-math", f"model.id={folder}", "data.template=chat"]
    assert main(argv) == 5
    said = capsys.readouterr().err
    assert "no chat template" in said and "command line, data.template=chat" in said
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert main(argv) == 0
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert main(argv) == 0


COMMIT, OTHER = "a" * 39 + "1", "b" * 39 + "2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The Hub's cache with one model in it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    repository = tmp_path / "hub" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(TINY, repository / "snapshots" / COMMIT)
    return repository


QWEN_3B = "aa8e72537993ba99e69dfaafa59ed015b17504d1"


@pytest.mark.parametrize(
    ("name", "revision", "words_"),
    [
        ("some/model", COMMIT, None),
        ("some/model", "main", None),
        ("some/model", OTHER, None),  # the Hub may have it
        ("some/other", COMMIT, "is a commit of 'some/model', and model.id is 'some/other'"),
        ("some/other", QWEN_3B, "is a commit of 'Qwen/Qwen2.5-3B-Instruct'"),
        ("some/other", COMMIT[:7], None),
        ("some/other", "0123abc", "a part of a commit"),
    ],
)
def test_a_revision_is_one_of_the_model(name, revision, words_, cache):
    found = faults_of(f"model.id={name}", f"model.revision='{revision}'")
    assert bool(found) == (words_ is not None)
    assert all(words_ in what and key == "model.revision" for what, key in found)


READS = "{% if enable_thinking is defined %}x{% endif %}{{ messages }}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("chat_template.jinja", READS),
        ("chat_template.json", json.dumps({"chat_template": READS})),
        ("tokenizer_config.json", json.dumps({"chat_template": READS})),
    ],
)
def test_an_argument_that_the_models_template_does_not_read_is_told(file, text, folder):
    (folder / file).write_text(text)
    settings = [f"model.id={folder}", "data.template=chat"]
    assert faults_of(*settings, "data.chat_template_kwargs.enable_thinking=false") == []
    [(what, _)] = faults_of(*settings, "data.chat_template_kwargs.enable_thinkin=false")
    assert "does not read 'enable_thinkin', did you mean 'enable_thinking'?" in what


def test_offline_an_unknown_revision_is_told(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert faults_of("model.id=some/model", f"model.revision={COMMIT}") == []
    [(what, _)] = faults_of("model.id=some/model", f"model.revision={OTHER}")
    assert f"some/model at revision {OTHER} is not on this machine" in what


def test_a_folder_that_is_not_there_is_told_before_its_revision(capsys):
    assert main(["validate", "qwen3b-math", "model.id=/no/such/folder"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1 and "no such model folder" in said and "fix check the path\n" in said


@pytest.mark.parametrize("command", ["validate", "plan", "train"])
def test_another_model_does_not_keep_the_revision_of_the_recipes(command, capsys):
    argv = [command, "qwen3b-math", "model.id=Qwen/Qwen2.5-7B-Instruct"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "model.revision is a commit of 'Qwen/Qwen2.5-3B-Instruct'" in said and "qwen3b-math:7" in said
    if command == "validate":
        assert main([*argv, "model.revision=null"]) == 0
        assert main(["validate", "qwen3b-math", "model.id=Qwen/Qwen2.5-3B-Instruct"]) == 0


def test_a_model_is_looked_at_in_milliseconds(folder):
    recipe = check(load_recipe("tiny-math", [f"model.id={folder}"]))
    begun = time.process_time()
    check_model(recipe)
    assert time.process_time() - begun < 0.1


@pytest.mark.parametrize(("rows", "told"), [(3, True), (4, False)])
def test_fewer_questions_than_a_step_draws_are_told(rows, told, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "{i}+1=?", "answer": "{i + 1}"}}\n' for i in range(rows)))
    settings = [f"data.train={{path: {path}}}", "data.eval=[]", "rollout.prompts_per_step=4"]
    assert main(["validate", "tiny-math", *settings]) == 0
    said = capsys.readouterr().out
    assert ("3 questions, and a step draws 4" in said) == told and "recipe     tiny-math: " in said


@pytest.mark.parametrize(("settings", "told"), [([], False), (["model.max_new_tokens=100000"], True)])
def test_more_tokens_than_the_model_reads_are_warned_of(settings, told, capsys):
    assert main(["validate", "qwen3b-math", "data.eval=[]", *settings]) == 0
    assert ("the model's context is 32,768" in capsys.readouterr().out) == told
