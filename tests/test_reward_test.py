"""`reward test`: a right reward passes on its golds, near misses and cases; a wrong one is named, row by row."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lgrpo
from test_code import boxed

from lgrpo_lite.errors import DataError
from lgrpo_lite.recipe.reward import Reward
from lgrpo_lite.rewards.text import length, regex
from lgrpo_lite.rewards.trial import gold_cases, near_misses, read_cases
from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.plain_numbers import as_number


def written(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def case(prediction, gold, label, **more) -> dict:
    return {"prediction": prediction, "gold": gold, "label": label} | more


# ------------------------------------------------------------------------------------------- the text rewards


@pytest.mark.parametrize(
    ("pattern", "text", "gold", "value", "outcome"),
    [
        (r"<answer>(.*?)</answer>", "<answer>3</answer> no, <answer> 4 </answer>", "4", 1.0, Outcome.ok),
        (r"<answer>(.*?)</answer>", "<answer>3</answer>", "4", 0.0, Outcome.wrong),
        (r"<answer>(.*?)</answer>", "4", "4", 0.0, Outcome.unparsable),
        (r"[A-D]", "A? B? C", "C", 1.0, Outcome.ok),  # without a group: the whole match
        (r"x=(\d+)|y", "x=3 y", "3", 0.0, Outcome.unparsable),  # the last match has no such group
        ("", "", "", 1.0, Outcome.ok),
    ],
)
def test_regex(pattern, text, gold, value, outcome):
    assert regex(text, gold, pattern=pattern) == (value, outcome)


@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (1, -0.01), (50, -0.5), (100, -1.0), (1000, -1.0)])
def test_length(tokens, value):
    assert length(tokens, limit=100) == (value, Outcome.ok)


# ------------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize(
    ("gold", "misses"),
    [
        ("72", ["73", "71", "-72"]),
        ("-5", ["-6", "-4", "5"]),
        ("0", ["1", "-1"]),  # the sign of 0 is no near miss
        ("9", ["0", "10", "8", "-9"]),
        ("1,234", ["2,234", "-1,234"]),
        ("0.50", ["1.50", "-0.50"]),
        ("3/4", ["4/4", "-3/4"]),
        ("x+1", ["x+2", "x"]),
        ("x^2 - 3x + 2", ["x^2 - 4x + 2", "x^2 - 3x"]),
        ("\\frac{14}{3}", ["\\frac{15}{3}"]),
        ("(1, 2)", ["(2, 2)"]),
        ("1, 2, 3", ["2, 2, 3", "1, 2"]),
        ("x_1 + y^{12}", ["x_1"]),  # an index and an exponent stay
        ("(C)", ["(D)"]),
        ("x = -3", ["x = -4"]),
        ("Evelyn", []),
        ("", []),
    ],
)
def test_near_misses(gold, misses):
    assert near_misses(gold) == misses


@given(st.one_of(st.integers().map(str), st.fractions().map(str), st.decimals(-999, 999, places=2).map(str)))
@settings(max_examples=200, deadline=None)
def test_no_near_miss_of_a_number_is_that_number(gold):
    found = near_misses(gold)
    assert found and all(as_number(miss) != as_number(gold) for miss in found)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_near_misses_of_any_text_are_other_texts(gold):
    assert gold not in near_misses(gold)


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (Reward(use="numeric", extract="gsm8k"), "#### 4"),
        (Reward(use="numeric", extract="boxed"), "\\boxed{4}"),
        (Reward(use="regex", pattern=r"<answer>(.*?)</answer>"), "<answer>4</answer>"),
        (Reward(use="regex", pattern=r"The answer is (\d+)"), "The answer is 4"),
        (Reward(use="code"), "```python\n4\n```"),
    ],
)
def test_a_gold_is_put_into_the_form_the_reward_reads(reward, text):
    right, misses = gold_cases("4", "4", reward, "row 1")
    assert [c.prediction for c in right] == [text] and len(misses) == 3
    assert all(c.where == "row 1" and c.gold == "4" for c in (*right, *misses))


# ------------------------------------------------------------------------------------------- recipes


def test_the_packaged_recipe_passes(capsys):
    assert lgrpo("reward", "test", "tiny-math", "-n", 20) == 0
    out = capsys.readouterr().out
    assert "20 of 20 score 1" in out and re.search(r"near misses +(\d+) of \1 score 0", out)


def test_a_gold_that_does_not_score_1_is_named_with_its_row(tmp_path, capsys):
    rows = [{"question": "a", "answer": "7"}, {"question": "b", "answer": "seven } of {"}]
    path = written(tmp_path / "golds.jsonl", *rows)
    assert (
        lgrpo(
            "reward", "test", "tiny-math", f"data.train={{path: {path}}}", "rewards.0.extract=boxed", "--json"
        )
        == 6
    )
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["ok"] is False and result["command"] == "reward test"
    assert result["result"]["golds"]["golds_failed"] == 1
    assert result["result"]["golds"]["golds_shown"][0]["where"] == f"{path}:2"
    assert "1 of 2 gold answers do not score 1" in captured.err


MINE = """
def generous(completion, reference): return float(reference[0] in completion)
def blind(completion): return 1.0
def broken(completion, reference): raise RuntimeError("on purpose")
def short(completions, answer, **kwargs): return [1.0]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("generous", "near misses do not score 0"),
        ("broken", "5 of 5 gold answers do not score 1"),
        ("short", "5 of 5 gold answers do not score 1"),  # of TRL's form, and right for one answer alone
    ],
)
def test_a_reward_that_lies_is_told(tmp_path, capsys, name, words):
    (tmp_path / "mine.py").write_text(MINE)
    settings = (f"rewards.0.use={tmp_path}/mine.py:{name}", "rewards.0.extract=final")
    assert lgrpo("reward", "test", "tiny-math", "-n", 5, *settings) == 6
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "fault", "frames"),
    [
        ("broken", ":4: RuntimeError: on purpose", 1),
        ("short", ":5: ValueError: it returned 1 rewards for ", 0),
    ],
)
def test_a_fault_is_told_once_and_without_our_own_frames(tmp_path, capsys, caplog, name, fault, frames):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    use = (f"rewards.0.use={file}:{name}", "data.train={task: arithmetic, limit: 20}")
    assert lgrpo("reward", "test", "tiny-math", *use, "rewards.0.extract=final") == 6
    out = capsys.readouterr().out
    assert f"first fault    {file}{fault}" in out
    assert out.count("must score 1") == 8 and "  and 12 more" in out
    notes = [record.args[2] for record in caplog.records if "a reward failed" in record.msg]
    assert all(note.count('File "') == note.count(f'File "{file}"') == frames for note in notes)


def test_golds_say_nothing_of_a_reward_that_reads_none(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    settings = (f"rewards.0.use={tmp_path}/mine.py:blind", "rewards.0.extract=final")
    assert lgrpo("reward", "test", "tiny-math", *settings) == 0
    assert "does not read the gold answer" in capsys.readouterr().err


@boxed
def test_code_is_tried_on_its_worked_solutions_and_on_programs_that_do_nothing(tmp_path, capsys):
    good = {"question": "Add.", "answer": "assert add(1, 2) == 3", "solution": "def add(a, b): return a + b"}
    bad = good | {"solution": "def add(a, b): return a - b"}
    settings = ("rewards=[{use: code}]", "data.train.solution=solution")
    path = written(tmp_path / "code.jsonl", good, bad)
    assert (
        lgrpo("reward", "test", "tiny-math", f"data.train={{path: {path}, solution: solution}}", settings[0])
        == 6
    )
    out = capsys.readouterr().out
    assert "1 of 2 score 1" in out and "6 of 6 score 0" in out and f"{path}:2" in out
    path = written(tmp_path / "faulty.jsonl", good | {"answer": "assert add(1, 2) =="})
    assert lgrpo("reward", "test", "tiny-math", f"data.train={{path: {path}}}", settings[0]) == 5
    assert f"{path}:1" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- labelled cases

ROWS = [
    case("#### 4", "4", True, tier="core", category="plain"),
    case("#### 5", "4", False, tier="core", category="plain"),
    case("#### 5", "4", True, tier="core", category="odd"),  # labelled so that the reward misses it
    case("#### 4", "4", False, tier="wild", category="odd"),  # and so that it is a false positive
    case(None, None, False),
]


def test_cases_are_counted_by_tier_and_category(tmp_path, capsys):
    path = written(tmp_path / "cases.jsonl", *ROWS)
    assert lgrpo("reward", "test", "numeric", "extract=gsm8k", "--cases", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)["result"]["cases"]
    assert (found["cases"], found["accuracy"], found["right"]) == (5, 0.6, 2)
    assert (found["false_positives"], found["false_negatives"], found["missing"]) == (1, 1, 0)
    assert found["by_tier"]["core"]["accuracy"] == 2 / 3 and found["by_tier"]["wild"]["false_positives"] == 1
    assert list(found["by_category"]) == ["odd", "plain"] and found["by_category"]["odd"]["accuracy"] == 0
    assert [row["where"] for row in found["disagreements"]] == [f"{path}:3", f"{path}:4"]
    assert 0 <= found["seconds"]["p50"] <= found["seconds"]["p95"] <= found["seconds"]["max"]
    assert lgrpo("reward", "test", "numeric", "extract=gsm8k", "--cases", path) == 0
    assert "disagreements:" in capsys.readouterr().out


def test_a_function_of_trls_form_reads_the_gold_of_a_case_as_answer(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def right(completions, answer, **more): return [float(c == a) for c, a in zip(completions, answer)]\n"
        "def asks(completions, nums): return [1.0]\n"
    )
    path = written(
        tmp_path / "cases.jsonl", case("4", "4", 1), case("5", "4", 0), case("5", "4", 0, answer="5")
    )
    assert lgrpo("reward", "test", f"{tmp_path}/mine.py:right", "--cases", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["result"]["cases"]["false_positives"] == 1
    assert lgrpo("reward", "test", f"{tmp_path}/mine.py:asks", "--cases", path) == 5
    said = capsys.readouterr().err
    assert f"the reward asks for nums, and prompt {path}:1" in said and "  at  command line\n" in said


def test_labels_may_be_numbers_and_golds_objects(tmp_path):
    rows = [case("a", {"b": 1}, 1), case("a", "é", 0)]
    read = read_cases(Path(written(tmp_path / "cases.jsonl", *rows)))
    assert [(c.label, c.gold) for c in read] == [(True, '{"b": 1}'), (False, "é")]


@pytest.mark.parametrize(("least", "code"), [("0.6", 0), ("0.61", 6)])
def test_an_accuracy_can_be_asked_for(tmp_path, least, code):
    path = written(tmp_path / "cases.jsonl", *ROWS)
    assert (
        lgrpo("reward", "test", "numeric", "extract=gsm8k", "--cases", path, "--min-accuracy", least) == code
    )


def test_a_missing_reward_is_no_verdict_and_is_counted(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import time\ndef slow(completion, reference):\n  time.sleep(1000 * (reference == '4'))\n  return 0.0"
    )
    path = written(tmp_path / "cases.jsonl", case("4", "4", True), case("4", "5", False))
    assert lgrpo("reward", "test", f"{tmp_path}/mine.py:slow", "timeout=0.5", "--cases", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)["result"]["cases"]
    assert (found["missing"], found["faults"], found["accuracy"]) == (1, {"timeout": 1}, 0.5)
    assert found["disagreements"][0]["value"] is None and found["disagreements"][0]["outcome"] == "timeout"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"prediction": "1", "gold": "1"}', "no key 'label'"),
        ('{"prediction": "1", "gold": "1", "label": "yes"}', "label 'yes' is neither true nor false"),
        ('{"prediction": ["1"], "gold": "1", "label": true}', "prediction is no text"),
        ("[" * 100_000, "not JSON"),
    ],
)  # fmt: skip
def test_a_bad_case_says_file_and_line(tmp_path, line, words):
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prediction": "1", "gold": 1, "label": true}\n\n' + line + "\n")
    with pytest.raises(DataError, match=re.escape(words)) as error:
        read_cases(path)
    assert error.value.where == f"{path}:3"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("test", "numerik"), 2, "did you mean 'numeric'"),
        (("test", "numeric"), 2, "nothing to try the reward on"),
        (("try", "numeric"), 2, "reward try"),
        (("test",), 2, "what is to be done"),
        (("test", "numeric", "extrakt=final"), 2, "did you mean 'extract'"),
        (("test", "numeric", "pattern=x", "--cases", "CASES"), 2, "reads no option 'pattern'"),
        (("test", "numeric", "--cases", "nowhere.jsonl"), 5, "cannot read the cases"),
        (("test", "tiny-math", "data.train={path: nowhere.jsonl}"), 5, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_tried_is_told(tmp_path, capsys, argv, code, words):
    argv = [written(tmp_path / "cases.jsonl", *ROWS) if word == "CASES" else word for word in argv]
    assert lgrpo("reward", *argv) == code
    assert words in capsys.readouterr().err
