"""The date that a chat template writes is the run's, however long the run takes."""

import json
import subprocess
import sys
from datetime import datetime

import pytest
import yaml
from support import lgrpo, tiny_recipe

from lgrpo_lite.data.template import tokens
from lgrpo_lite.folder.opening import RESOLVED, changes, dated
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Data, Model, Source

# as Llama 3.1's template does it, written anew
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today: " + date_string + "\\n" }}
{%- for m in messages %}{{ m.content + "\\n" }}{% endfor %}
"""
# a process whose clock is a day ahead, wherever a template's time could come from
TOMORROW = """
import datetime, sys
import transformers.utils.chat_template_utils as theirs
import lgrpo_lite.data.template as ours
class Tomorrow(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + datetime.timedelta(days=1)
theirs.datetime = ours.datetime = Tomorrow
from lgrpo_lite.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
SMALL = [
    "train.steps=6", "train.save_every=3", "rollout.prompts_per_step=4", "rollout.group_size=4", "data.train.limit=40",
    "data.eval.limit=4", "eval.k=1", "export.formats=[adapter]", "safety.sync_proof_every=0", "safety.baseline_check=false",
    "model.max_prompt_tokens=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(id="builtin:tiny-math"))


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "llama.jinja"
    file.write_text(LLAMA)
    return file


def read_by(tokenizer, template: str, date: str | None) -> str:
    data = Data.model_validate({"train": [Source(path="x.jsonl")], "template": template, "date": date})
    return tokenizer.decode(tokens("q", data, tokenizer))


def test_a_template_reads_the_date_of_the_recipe_else_today(tokenizer, template):
    ours = load_tokenizer(Model(id="builtin:tiny-math"))
    ours.chat_template = LLAMA
    for name, reader in ((str(template), tokenizer), ("chat", ours)):
        assert "Today: 03 Feb 2021\nq" in read_by(reader, name, "2021-02-03")
        today = datetime.now().strftime("%d %b %Y")
        assert f"Today: {today}\nq" in read_by(reader, name, None)


def test_a_filter_of_a_file_is_that_of_transformers(tmp_path, tokenizer):
    file = tmp_path / "json.jinja"
    file.write_text("{{ {'q': question + '<é>'} | tojson }}")
    assert read_by(tokenizer, str(file), None) == '{"q": "q<é>"}'


@pytest.mark.parametrize(
    ("kept", "asked", "resumed", "expected", "differs"),
    [
        ("2021-02-03T04:05:06", None, True, "2021-02-03T04:05:06", False),  # the run's
        ("2021-02-03T04:05:06", "2021-02-03T04:05:06", True, "2021-02-03T04:05:06", False),
        ("2021-02-03T04:05:06", "2022-02-03", True, "2022-02-03T00:00:00", True),  # another one is refused
        (None, "2022-02-03", True, "2022-02-03T00:00:00", False),  # a run of an earlier version can be told
        (None, None, True, None, False),
        ("2021-02-03T04:05:06", None, False, None, False),  # a new run begins now
    ],
)
def test_a_run_keeps_the_date_it_began_with(tmp_path, kept, asked, resumed, expected, differs):
    recipe = tiny_recipe()
    settings = yaml.safe_load(recipe.to_yaml())
    settings["data"]["date"] = kept
    (tmp_path / RESOLVED).write_text(yaml.safe_dump(settings))
    again = tiny_recipe(*([f"data.date={asked}"] if asked else []))
    assert [line.partition(":")[0] for line in changes(tmp_path, again)] == ["data.date"] * differs
    date = dated(again, tmp_path, resumed=resumed).data.date
    assert date is not None
    assert (
        date.isoformat() == expected if expected else abs((datetime.now() - date).total_seconds()) < 86_400
    )  # of this process


def test_a_folder_of_a_version_without_some_setting_has_its_default(tmp_path):
    recipe = tiny_recipe()
    settings = yaml.safe_load(recipe.to_yaml())
    del settings["data"]["date"], settings["rollout"]["curriculum"], settings["data"]["train"][0]["bad_rows"]
    (tmp_path / RESOLVED).write_text(yaml.safe_dump(settings))
    assert changes(tmp_path, recipe) == []
    other = tiny_recipe("rollout.curriculum.use=difficulty_pool")
    assert changes(tmp_path, other) == ["rollout.curriculum.use: none -> difficulty_pool"]


@pytest.mark.parametrize("value", ["yesterday", "1234", "2026-11-27T09:30:00Z", "[2026]"])
def test_what_is_no_local_time_is_refused(value, capfd):
    assert lgrpo("validate", "tiny-math", f"data.date={value}") == 2
    assert "data.date=" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_that_goes_on_the_next_day_ends_with_the_same_bytes(tmp_path, template):
    def train(program: list[str], name: str, steps: int) -> None:
        settings = [*SMALL, f"data.template={template}", f"train.steps={steps}"]
        options = ["--runs", str(tmp_path), "--name", name, "--ui", "plain", "--resume", "auto"]
        command = [sys.executable, *program, "recipe", "tiny-math", *settings, *options]
        subprocess.run(command, check=True, capture_output=True)

    train(["-m", "lgrpo_lite"], "whole", 6)
    train(["-m", "lgrpo_lite"], "stopped", 3)
    train(["-c", TOMORROW], "stopped", 6)
    ends = []
    for name in ("whole", "stopped"):
        adapter = tmp_path / name / "checkpoints" / "step-000006" / "adapter" / "adapter_model.safetensors"
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ends.append((adapter.read_bytes(), [json.loads(row)["loss"] for row in rows]))
    assert ends[0] == ends[1]
