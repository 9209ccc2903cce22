"""What a run and its checks say about their data: counts, questions twice, questions of
the evaluation, golds, settings.
"""

import json

import pytest
from support import lgrpo, tiny_recipe

from lgrpo_lite.data.curriculum import DifficultyPool
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.train.build import build

SMALL = [
    "train.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=2", "eval.k=1", "export.formats=[]",
    "safety.sync_proof_every=0", "safety.baseline_check=false", "--ui", "plain",
]  # fmt: skip


def rows(path, questions: list[str]) -> str:
    path.write_text("\n".join(json.dumps({"question": q, "answer": "2"}) for q in questions))
    return str(path)


def test_a_run_tells_what_it_left_out_and_what_it_evaluates_on(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path / "a.jsonl", ["1+1=?", "1+1=?", "2+0=?", "9" * 80])
    rows(tmp_path / "b.jsonl", ["0+2=?", "7" * 90])
    rows(tmp_path / "held.jsonl", ["1+1=?", "3-1=?", "8" * 80])
    data = "data={template: plain, train: [{path: a.jsonl}, {path: b.jsonl}], eval: {path: held.jsonl}}"
    assert lgrpo("recipe", "tiny-math", "--dry-run", data) == 0
    shown = capfd.readouterr().out
    for line in (
        "train data a.jsonl: 4 rows",
        "train data b.jsonl: 2 rows",
        "eval data  held.jsonl: 3 rows",
        "note       a.jsonl: questions that a row before them has: 1 of 4; they are kept",
        "warning    questions of data.eval that are in data.train too: 1 of 3; the evaluation flatters the run",
    ):
        assert line in shown
    assert lgrpo("recipe", "tiny-math", *SMALL, data, "--name", "x") == 0
    err = capfd.readouterr().err
    # of those that are short enough
    assert "warning: questions of data.eval that are in data.train too: 1 of 2;" in err
    assert "note: 1 prompts left out: longer than 64 tokens, in b.jsonl" in err
    events = [json.loads(line) for line in (tmp_path / "runs/x/events.jsonl").read_text().splitlines()]
    left_out = [(e["source"], e["count"], e["limit"]) for e in events if e["kind"] == "prompts_left_out"]
    assert left_out == [("a.jsonl", 1, 64), ("b.jsonl", 1, 64), ("held.jsonl", 1, 64)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["rollout.curriculum.rate=0.1"], "rate is not read by use=none"),
        (["rollout.curriculum.ordered_every=3"], "ordered_every is not read by use=none"),
        (
            ["rollout.curriculum.use=difficulty_pool", "algorithm.use=a_star_po"],
            "value_cache asks about the prompts to come",
        ),
        (["rollout.curriculum.use=easy_first"], "rollout.curriculum.use"),
    ],
)
def test_settings_of_a_curriculum_that_mean_nothing(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_recipe(*settings)


def test_a_recipe_chooses_the_order():
    assert isinstance(build(tiny_recipe("data.train.limit=8")).prompts, PromptStream)
    settings = "rollout.curriculum={use: difficulty_pool, rate: 0.25, ordered_every: 5}"
    pool = build(
        tiny_recipe(settings, "data.train.limit=30", "rollout.max_redraw=1", "algorithm.use=grpo")
    ).prompts
    assert isinstance(pool, DifficultyPool)
    assert (pool.rate, pool.every, pool.recent.maxlen) == (0.25, 5, 8)
    tiny_recipe(settings, "algorithm.use=a_star_po", "algorithm.value_cache.drop_unsolved=true")


def test_a_step_tells_the_pool_what_it_saw():
    from lgrpo_lite.train.step import train_step

    run = build(tiny_recipe("rollout.curriculum.use=difficulty_pool", "data.train.limit=30"))
    _, groups = train_step(1, run)
    assert {run.prompts.prompts[i].id for i in run.prompts.solved} == {g.prompt.id for g in groups}


def test_parquet_needs_its_package_before_anything_starts(tmp_path, monkeypatch, capfd):
    from lgrpo_lite.checks import check

    monkeypatch.setattr(
        check, "find_spec", lambda name: None if name in ("pyarrow", "datasets") else object()
    )
    for source, package in (("{path: a.parquet}", "pyarrow"), ("{hf: some/set}", "datasets")):
        assert lgrpo("recipe", "tiny-math", f"data.train={source}", "--runs", tmp_path) == 3
        err = capfd.readouterr().err
        assert f"not installed: {package}" in err and 'pip install "lgrpo-lite[' in err and ',data]"' in err
    assert not list(tmp_path.iterdir())


def test_a_gold_that_math_cannot_compare_with_stops_the_check(tmp_path, capfd):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "1"}\n{"question": "q", "answer": "\\\\frac{1"}\n')
    settings = [f"data.train={{path: {path}}}", "data.eval=[]"]
    assert lgrpo("validate", "tiny-math", *settings) == 0  # numeric compares with any text
    assert lgrpo("validate", "tiny-math", *settings, "rewards=[{use: math}]") == 5
    err = capfd.readouterr().err
    assert f"{path}:2" in err and "\\\\frac{1" in err
    assert (
        lgrpo(
            "validate",
            "tiny-math",
            f"data.train={{path: {path}, bad_rows: skip}}",
            "data.eval=[]",
            "rewards=[{use: math}]",
        )
        == 0
    )
    assert f"{path}: bad rows left out: 1, the first at {path}:2" in capfd.readouterr().out
