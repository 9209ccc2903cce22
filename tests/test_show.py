"""`lgrpo-lite show`: the answers of a step with the credit of every token, whatever the files hold."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from run_folders import SAMPLE, sampled, written
from support import lgrpo


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of GRPO-λ, whose tokens have different credit."""
    runs = tmp_path_factory.mktemp("runs")
    small = [
        "train.steps=2",
        "rollout.prompts_per_step=4",
        "rollout.group_size=8",
        "data.eval=[]",
        "export.formats=[]",
    ]
    more = ["algorithm.use=trace", "safety.sync_proof_every=0", "safety.baseline_check=false"]
    assert lgrpo("recipe", "tiny-math", *small, *more, "--runs", runs, "--name", "one", "--ui", "none") == 0
    return runs / "one"


def test_a_real_run(trained, capfd):
    """The newest step by name; its line, its answers, marks of credit that fade along
    an answer, the shares by thirds.
    """
    assert lgrpo("show", "one", "--runs", trained.parent) == 0
    out = capfd.readouterr().out
    for words in (
        "step 2/2 | ",
        "credit = advantage × weight",
        "more likely",
        "gold",
        "ended by itself",
        "by thirds",
    ):
        assert words in out, words
    assert "\x1b" not in out and "eta" not in out
    assert "▇" in out and ("▓" in out or "▒" in out), "marks of raised and of lowered tokens"
    assert max(cell_len(line) for line in out.splitlines()[1:]) <= 120


def test_the_prompt_as_the_model_read_it(trained, capfd):
    from lgrpo_lite.policy.load import load_tokenizer
    from lgrpo_lite.recipe.schema import Model

    assert lgrpo("show", trained, "--step", "1", "--json") == 0
    rows = json.loads(capfd.readouterr().out)["result"]["completions"]
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    for row in rows:
        assert row["read"] == row["prompt"] + "\n"  # the template `plain`
        assert row["read_tokens"] == len(tokenizer(row["read"], add_special_tokens=False)["input_ids"])
    assert lgrpo("show", trained, "--step", "1", "--prompt-text") == 0
    out = capfd.readouterr().out
    for row in rows:
        assert f"[{row['read_tokens']} tokens; the answer begins here]" in out


def test_as_json(trained, capfd):
    assert lgrpo("show", trained, "--step", "1", "--json") == 0
    reply = json.loads(capfd.readouterr().out)
    rows = reply["result"]["completions"]
    assert reply["ok"] and reply["result"]["step"] == 1 and reply["result"]["record"]["step"] == 1
    assert len(rows) == 4 and all("".join(row["pieces"]) == row["completion"] for row in rows)
    told = [row["credit_thirds"] for row in rows if any(row["credit"])]
    assert told and all(sum(shares) == pytest.approx(1.0) for shares in told)


def test_one_prompt_by_number_or_id(tmp_path, capfd):
    path = written(tmp_path / "run")
    sampled(
        path,
        12,
        [
            SAMPLE,
            SAMPLE | {"prompt_id": "2", "prompt": "second"},
            SAMPLE | {"prompt_id": "x", "prompt": "3rd"},
        ],
    )
    for asked, there, away in (
        ("1", "47+36", "second"),
        ("2", "second", "3rd"),
        ("3", "3rd", "second"),
        ("x", "3rd", "47+36"),
    ):
        assert lgrpo("show", path, "--prompt", asked) == 0
        out = capfd.readouterr().out
        assert there in out and away not in out, asked
    assert lgrpo("show", path, "--prompt", "9") == 2
    assert "1 (p-1), 2 (2), 3 (x)" in capfd.readouterr().err


def test_a_step_that_kept_none_names_the_nearest(tmp_path, capfd):
    path = written(tmp_path / "run")
    for step in (3, 7, 9):
        sampled(path, step, [SAMPLE])
    (path / "completions" / "step-notes.jsonl.gz").write_text("")
    assert lgrpo("show", path, "--step", "8") == 2
    assert "nearest are 3, 7, 9, 12 (all: 3 to 12, 4 of them)" in capfd.readouterr().err
    assert lgrpo("show", path, "--step", "40") == 2
    assert "nearest are 9, 12" in capfd.readouterr().err


def test_where_there_is_nothing(tmp_path, capfd):
    path = written(tmp_path / "run", steps=0)
    assert lgrpo("show", path) == 2 and "kept no completions" in capfd.readouterr().err
    (path / "completions" / "step-000003.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    assert lgrpo("show", path) == 5 and "no completion can be read" in capfd.readouterr().err
    assert lgrpo("show", "nobody", "--runs", tmp_path) == 2


def test_a_crashed_run_and_a_step_that_is_not_in_the_metrics(tmp_path, capfd):
    path = written(tmp_path / "run", state="training", pid=2**22 + 1)
    (path / "config.resolved.yaml").unlink()
    sampled(path, 99, [SAMPLE])
    assert lgrpo("show", path) == 0
    out = capfd.readouterr().out
    assert "step 99: its line is not in metrics.jsonl" in out and "#### 83" in out


def test_marks_stand_below_their_tokens(tmp_path, capfd):
    """Raised and lowered by different marks, a token that breaks a line on both sides,
    none below a token without credit.
    """
    path = written(tmp_path / "run")
    assert lgrpo("show", path) == 0
    out = capfd.readouterr().out.splitlines()
    at = out.index("40+30=70")
    assert out[at + 1] == "▇▇▇▇▇▃▃▃"
    assert out[at + 2 : at + 4] == ["#### 83", "·····"]
    assert out[-1].split() == ["1", "right", "4", "86%", "14%", "0%"]


LONG = SAMPLE | {
    "completion": "x" * 20_000,
    "pieces": ["x"] * 20_000,
    "credit": [0.1, -0.1] * 10_000,
    "tokens": 20_000,
}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        # of an earlier version
        ({key: SAMPLE[key] for key in ("prompt", "completion", "outcome")}, "credit unknown"),
        (SAMPLE | {"credit": []}, "not trained on"),
        (SAMPLE | {"credit": [0.5] * 4}, "+0.5 on every token"),
        (SAMPLE | {"credit": [float("nan"), None, "x", [1]]}, "no credit"),
        (SAMPLE | {"credit": [1e308, -1e308, 10**400, 0]}, "▲ +1e+308 at most"),
        (SAMPLE | {"credit": 3, "pieces": None}, "credit unknown"),
        (SAMPLE | {"pieces": ["one", 2]}, "credit unknown"),
        (LONG, "20,000 tokens"),
        ({**LONG, "pieces": None}, "credit unknown"),
        (SAMPLE | {"pieces": ["y" * 20_000], "credit": [0.3]}, "yyyy"),
        (SAMPLE | {"pieces": ["\x1b[2J\x07", "\u202eevil", "\r\n", "\x9b"], "completion": ""}, "\\x1b[2J"),
        (SAMPLE | {"pieces": ["漢字" * 200, "שלום עולם", "e" + "\u0301" * 50, "👩‍👩‍👧‍👦🇫🇷"]}, "漢字"),
        (SAMPLE | {"prompt": ["a", 1], "reference": None, "reward": "high", "parts": [1], "tokens": None}, "end"),
        (SAMPLE | {"parts": {"numeric": 1.0, "format": None}, "given": 3, "off": True}, "the first 3 tokens were given"),
        (SAMPLE | {"finish_reason": "length", "outcome": "wrong"}, "cut at the limit"),
        ({}, "end unknown"),
    ],
)  # fmt: skip
def test_any_row_is_shown_or_said_in_a_word(tmp_path, capfd, row, words):
    path = written(tmp_path / "run")
    sampled(path, 12, [row])
    assert lgrpo("show", path) == 0
    out = capfd.readouterr().out
    assert words in out
    assert all(c == "\n" or c.isprintable() for c in out)
    assert max(cell_len(line) for line in out.splitlines()[1:] if "gold" not in line) <= 121
    assert lgrpo("show", path, "--json") == 0
    json.loads(capfd.readouterr().out, parse_constant=pytest.fail)


def test_nothing_of_a_long_answer_is_left_out(tmp_path, capfd):
    path = written(tmp_path / "run")
    sampled(path, 12, [LONG])
    assert lgrpo("show", path) == 0
    assert capfd.readouterr().out.count("x") == 20_000


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda x: st.lists(x, max_size=4),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(row=st.fixed_dictionaries({}, optional=dict.fromkeys(SAMPLE, JSON)))
def test_no_row_breaks_it(row):
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "run")
        sampled(path, 12, [row])
        assert lgrpo("show", path, "--debug") == 0
        assert lgrpo("show", path, "--json") == 0
