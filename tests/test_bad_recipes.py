"""Recipes that are nonsense or an attack: exit 2 with a place, at once, and before any file is written."""

import os
import subprocess
import sys
import time

import pytest

from lgrpo_lite.checks.check import check
from lgrpo_lite.checks.rules import warnings
from lgrpo_lite.cli.main import main
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.recipe.read import parse_recipe

GOOD = "model: {id: builtin:tiny-math}\ndata: {template: plain, train: {task: arithmetic, limit: 64}}\nrewards: [{use: exact}]\n"
NINE = "[" + ",".join(["{0}"] * 9) + "]"
BOMB = "a0: &a0 1\n" + "".join(f"a{i + 1}: &a{i + 1} {NINE.format(f'*a{i}')}\n" for i in range(9))


def refused(text, overrides=()):
    """The fault of a recipe that is refused in under a second of this process."""
    begun = time.process_time()
    with pytest.raises(ConfigError) as error:
        check(parse_recipe(text, "r.yaml", list(overrides)))
    assert time.process_time() - begun < 1
    assert error.value.exit_code == 2 and len(str(error.value).splitlines()) == 3
    assert len(str(error.value)) < 1500 and all(c.isprintable() or c == "\n" for c in str(error.value))
    return error.value


# ------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BOMB, 1, "aliases followed"),
        ("a: &a [*a]\n", 1, "aliases followed"),
        ("".join(f"key_{i}: 1\n" for i in range(600_000)), 10_000, "more than a recipe can hold"),
        ("seed: " + "[" * 300_000, 1, "inside each other"),
        ("- " * 300_000, 1, "inside each other"),
        ("a: 1\nb: 2026-99-99\n", 2, "b: '2026-99-99' is no date"),
        ("a: !!timestamp soon\n", 1, "'soon' is no date"),
        ("a:\n  b: !!int abc\n", 2, "a.b: 'abc' is no whole number"),
        ("a: !!int ''\n", 1, "'' is no whole number"),
        ("a: !!float abc\n", 1, "'abc' is no number"),
        ("a: !!bool abc\n", 1, "'abc' is no boolean"),
        ("seed: " + "9" * 5000, 1, "is no whole number"),
        ("seed: 0x" + "F" * 5000, 1, "is no whole number"),
        ("!!int x: 1\n", 1, "'x' is no whole number"),
        ("? [a, b]\n: 1\n", 1, "a key is a list"),
        (GOOD + "a: !!python/object/apply:os.system [x]\n", 4, "unknown key 'a'"),
        ("a: !!python/name:os.system x\n", 1, "could not determine a constructor"),
        ("a: 1\nb: \0\n", 2, "control characters"),
        ("a: \ud800\n", 1, "surrogates"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_a_text_that_no_recipe_is_has_a_line(text, line, words):
    fault = refused(text)
    assert words in fault.what and fault.where.startswith(f"r.yaml:{line}")


@pytest.mark.parametrize(
    "value",
    [NINE.format("&a [1]"), "2026-99-99", "!!int abc", "9" * 5000, "[" * 5000, "&a [*a]", "0x" + "F" * 5000],
    ids=lambda value: value[:12],
)
def test_a_value_on_the_command_line_is_read_as_carefully(value):
    fault = refused(GOOD, [f"seed={value}"])
    assert fault.where.startswith("command line, seed=") and len(fault.where) < 120


def test_what_is_no_file_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "long.yaml").write_bytes(b"# " + b"x" * (1 << 20))
    cases = {
        str(tmp_path / "pipe.yaml"): "not a file",
        str(tmp_path / "folder.yaml"): "not a file",
        "/dev/zero": "not a file",
        str(tmp_path / "long.yaml"): "longer than 1,048,576 bytes",
        str(tmp_path / "none.yaml"): "No such file",
        "a/" + "x" * 5000: "File name too long",
        "a/\0": "cannot read the recipe",
    }
    for path, words in cases.items():
        assert main(["validate", path]) == 2
        assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.betas=[1.5,-2]", "below, 1"),
        ("optim.betas=[0.9,1.0]", "below, 1"),
        ("optim.betas=[-0.1,0.9]", "from 0"),
        (f"seed={2**64}", "less than"),
        (f"seed={2**32}", "less than"),
        ("model.lora.rank=1000000", "less than or equal to 4096"),
        ('recipe.name="a\\0b"', "no control character"),
        ("recipe.name=" + "x" * 300, "at most 100 characters"),
        ("recipe.name=''", "at least 1"),
        ("recipe.name=../../../x", "no slash"),
        ("recipe.name=..", "no dot"),
        ("recipe.name=/etc/x", "no slash"),
        ("recipe.name=-rf", "dash"),
        ("data.train.limit=1e12", "more problems than are made"),
        ("rewards.0.weight=0", "nothing is learned"),
        ("rewards.0.weight=1e-300", "nothing is learned"),
        ("rewards=[{use: exact, weight: 0}, {use: length, weight: -1.0e-9, limit: 9}]", "nothing is learned"),
        ("model.threads=100000", "less than or equal to 1024"),
        ("rollout.temperature=1e17", "a temperature is at most 100"),
        ("eval.temperature=101", "a temperature is at most 100"),
        ("optim.lr=1e9", "less than or equal to 1"),
        ("algorithm.length_preference={lr: 1.0e+308, clamp: null}", "less than or equal to 1000"),
        ("algorithm.length_preference={lr: 100, clamp: null}", "runs away"),
        ("algorithm.length_preference={lr: 1000, clamp: [-1.0e+17, 1.0e+17]}", "runs away"),
        ("algorithm.length_preference={lambda_init: 1.0e+6, clamp: null}", "leaves one answer"),
        ("rollout.temperature=1e-6", "a temperature is 0.01 or more"),
        ("eval.temperature=1e-6", "a temperature is 0.01 or more"),
        ("rewards.0.weight=1e308", "less than or equal to"),
        ("rewards.0.timeout=1e300", "less than or equal to"),
        ("optim.weight_decay=1e308", "less than or equal to"),
        ("algorithm.clip={low: 1.0e+308, high: 0.2}", "beyond 1e+18"),
        ("algorithm.length_preference={clamp: [-1.0e+308, 1.0e+308]}", "beyond 1e+18"),
        ("optim.max_grad_norm=1" + "0" * 21, "beyond 1e+18"),
        ("rollout.server.timeout=1e300", "less than or equal to"),
    ],
)
def test_a_value_that_no_run_can_mean_is_refused(override, words):
    fault = refused(GOOD, [override, "safety.baseline_check=false"])
    key = override.partition("=")[0]
    assert words in fault.what and fault.where.startswith(f"command line, {key}=")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optim.betas=[0,0.999]", lambda recipe: recipe.optim.betas == (0, 0.999)),
        (f"seed={2**32 - 1}", lambda recipe: recipe.seed == 2**32 - 1),
        ("recipe.name=λ-GRPO 3.1_b", lambda recipe: recipe.recipe.name == "λ-GRPO 3.1_b"),
        ("eval.temperature=0", lambda recipe: recipe.eval.temperature == 0),
        ("rollout.temperature=0.01", lambda recipe: recipe.rollout.temperature == 0.01),
        ("rollout.temperature=100", lambda recipe: recipe.rollout.temperature == 100),
        ("rewards.0.weight=1e-6", lambda recipe: recipe.rewards[0].weight == 1e-6),
        ("data.train.limit=1000000", lambda recipe: recipe.data.train[0].limit == 1_000_000),
        ("rewards.0.weight=-1", lambda recipe: recipe.rewards[0].weight == -1),
    ],
)
def test_the_last_value_before_is_taken(override, read):
    assert read(check(parse_recipe(GOOD, "r.yaml", [override])))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_looking_at_a_task_of_a_million_problems_does_not_make_them(split, capsys):
    begun = time.process_time()
    settings = ["data.train.limit=1000000", f"data.train.split={split}", "data.eval=[]"]
    assert main(["validate", "tiny-math", *settings]) == 0
    assert "arithmetic: 1000000 rows" in capsys.readouterr().out
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr=0.5", True),
        ("optim.lr=0.01", False),
        ("optim.lr=1e-10", False),
        ("optim.lr=1e-300", True),
        ("optim.max_grad_norm=1e-30", True),
        ("optim.max_grad_norm=1e-6", False),
    ],
)
def test_a_value_that_learns_nothing_or_breaks_most_policies_is_warned_of(override, told):
    lines = warnings(check(parse_recipe(GOOD, "r.yaml", [override])))
    key = override.partition("=")[0]
    assert any(line.startswith(f"{key}=") for line in lines) == told


KEYS = "".join(f"key_{i}: 1\n" for i in range(600_000))
LISTED = {
    "an alias bomb": (BOMB, 1, "aliases followed"),
    "600,000 keys": (KEYS, None, "longer than"),
    "a date that is none": (GOOD + "seed: 2026-99-99\n", 4, "is no date"),
    "an integer that is none": (GOOD + "seed: !!int abc\n", 4, "is no whole number"),
    "decays outside [0, 1)": (GOOD + "optim:\n  betas: [1.5, -2]\n", 5, "below, 1"),
    "a seed of 2^64": (GOOD + f"seed: {2**64}\n", 4, "less than"),
    "a rank of a million": (GOOD.replace("math}", "math, lora: {rank: 1000000}}", 1), 1, "or equal to 4096"),
    "a name with NUL": (GOOD + 'recipe:\n  name: "a\\0b"\n', 5, "no control character"),
}


@pytest.mark.parametrize("command", ["validate", "plan", "train"])
@pytest.mark.parametrize("what", LISTED)
def test_every_command_refuses_it_with_file_and_line_in_under_a_second(
    command, what, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    text, line, words = LISTED[what]
    (tmp_path / "bad.yaml").write_text(text)
    begun = time.process_time()
    assert main([command, "bad.yaml"]) == 2
    assert time.process_time() - begun < 3  # half a second on a quiet machine
    fault, place, _ = capsys.readouterr().err.splitlines()
    line = line or 1 + text[: 1 << 20].count("\n")
    assert place == f"  at  bad.yaml:{line}" and ("more than" in fault or words in fault)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--resume", "auto"]], ids=" ".join)
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "a/b", "a\0", "x" * 300, " x", ""])
def test_a_run_stays_inside_the_folder_of_runs(name, more, tmp_path, capsys):
    runs = tmp_path / "runs"
    runs.mkdir()
    assert main(["train", "tiny-math", "data.eval=[]", "--runs", str(runs), "--name", name, *more]) == 2
    assert "no name of a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


LONG_NAMES = (
    "data.train.path={}", "data.train={{hf: '{}'}}", "data.template={}", "model.id={}", "model.id=/{}",
    "algorithm.use={}.py:f", "algorithm.surrogate={}.py:f", "rewards.0.use={}.py:f",
)  # fmt: skip


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["long", "with NUL"])
@pytest.mark.parametrize("setting", LONG_NAMES)
def test_a_name_that_no_file_can_have_is_no_file(setting, name, capsys):
    for command in ("validate", "plan"):
        assert main([command, "tiny-math", setting.format(name), "data.eval=[]"]) in (0, 2, 3, 5)
        assert "fault of lgrpo-lite" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- secrets

JUDGED = "rewards.0={use: rubric, judge: endpoint, endpoint: {model: m, url: '%s'}}"


@pytest.mark.parametrize(
    "override",
    [
        "rollout.server.url=http://user:hunter2@host:8000",
        "rollout.server.url=https://hunter2@host",
        "rollout.server.url=http://host/?api_key=hunter2",
        "rollout.server.url=ftp://a:hunter2@host",
        JUDGED % "http://user:hunter2@host/v1",
        JUDGED % "http://host/v1?api_key=hunter2",
        JUDGED % "http://host/v1#hunter2",
        "rewards.0={use: rubric, judge: endpoint, endpoint: 'http://user:hunter2@host'}",
        "rollout.server=http://user:hunter2@host",
        "rollout.server.url=[http://user:hunter2@host]",
        "model.id=https://user:hunter2@host/model",
        "data.train={hf: 'https://user:hunter2@host/set'}",
        "data.train={path: 'https://hunter2@host/rows.jsonl'}",
        "rollout.server.api_key_env=sk-hunter2",
        JUDGED % "http://host/v1', api_key_env: 'sk-hunter2",
    ],
)
def test_a_secret_in_an_address_is_refused_and_written_nowhere(override, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(GOOD)
    for command in (["validate"], ["plan"], ["train", "--runs", str(tmp_path / "runs")]):
        assert main([*command, "my.yaml", override]) == 2
    shown = "".join(capfd.readouterr())
    assert "hunter2" not in shown and ("api_key_env" in shown or "://…@host" in shown)
    assert [path.name for path in tmp_path.rglob("*")] == ["my.yaml"]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://", "http://there:port", "http://there:0", "http://a b"]
)
def test_what_is_no_address_is_refused_where_it_stands(url):
    fault = refused(GOOD + "rollout:\n  engine: vllm-server\n  server:\n" + f"    url: '{url}'\n")
    assert fault.where == "r.yaml:7" and "is no address" in fault.what


# ------------------------------------------------------------------------------------------- code

OWN = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from lgrpo_lite.algorithm import Algorithm
def row(): return Algorithm(advantage="mean_only")
def gain(t): return t.logp * t.batch.advantage, {}
def advantage(groups, parts): return [g.rewards for g in groups]
def brief(completion_tokens, floor=5): return 1.0
"""
USES = {
    "an algorithm": "algorithm.use={}:row",
    "an advantage": "algorithm.advantage={}:advantage",
    "a surrogate": "algorithm.surrogate={}:gain",
    "a reward": "rewards.0={{use: '{}:brief', floor: 3}}",
}


@pytest.mark.parametrize("command", ["validate", "plan"])
@pytest.mark.parametrize("use", USES)
def test_a_recipe_that_is_only_looked_at_runs_no_code(command, use, tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    words = [command, "tiny-math", "data.eval=[]", "data.train.limit=64", USES[use].format(own)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "ran").exists()
    assert "mine.py is code of the recipe and was not run; --import" in " ".join(said.split())
    assert main([*words, "--import"]) == 0
    assert (tmp_path / "ran").exists() and "was not run" not in capsys.readouterr().out


def test_a_doctor_imports_no_recipe(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "mine.py")]) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no function 'row'"),
        ("def row(:\n", "is no Python"),
        ("row = \0", "is no Python"),
        ("(" * 5000, "is no Python"),
        (None, "no such Python file"),
    ],
)
def test_a_file_that_is_looked_at_must_name_what_is_asked_for(text, words, tmp_path, capsys):
    own = tmp_path / "mine.py"
    if text is not None:
        own.write_text(text)
    assert main(["validate", "tiny-math", f"algorithm.use={own}:row"]) == 5
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["from elsewhere import row", "from elsewhere import *", "row = make()"])
def test_a_name_may_come_from_anywhere(text, tmp_path):
    own = tmp_path / "mine.py"
    own.write_text(text)
    assert main(["validate", "tiny-math", f"algorithm.use={own}:row"]) == 0


def test_a_probe_of_own_code_asks_first(tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    assert main(["plan", "tiny-math", f"algorithm.use={own}:row", "--probe"]) == 2
    assert "add --import" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_by_the_command_in_seconds(tmp_path):
    """With the start of the interpreter, in a process whose memory is bounded."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
        "from lgrpo_lite.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "validate", str(tmp_path / "bomb.yaml")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{tmp_path}/bomb.yaml:" in done.stderr
