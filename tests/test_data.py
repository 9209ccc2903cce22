"""Questions and gold answers: read once, told where they are bad, drawn in an order one number resumes."""

import itertools
import json

import pytest
from support import tiny_recipe

from lgrpo_lite.data.arithmetic import STYLES, problems, split_of, sums
from lgrpo_lite.data.prompts import Counts, Wants, load, read, same, shared, survey, tokens
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.errors import DataError
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Data, Model, Source
from lgrpo_lite.types import Criterion, Prompt


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(id="builtin:tiny-math"))


@pytest.mark.parametrize(
    ("lines", "where", "words"),
    [
        (['{"question": "q", "answer": "1"}', '{"question": "q"}'], ":2", "no column 'answer'"),
        (['{"quest": "q", "answer": "1"}'], ":1", "no column 'question'"),
        (['{"question": "q", "answer": "1"}', "", "{"], ":3", "not JSON"),
        (["[1]"], ":1", "not a JSON object"),
        (['{"question": "", "answer": "1"}'], ":1", "holds no text"),
        (['{"question": 7, "answer": "1"}'], ":1", "holds no text but a value of type int"),
        (['{"question": "q\\u0000", "answer": "1"}'], ":1", "NUL"),
        (['{"question": "q\\ud800", "answer": "1"}'], ":1", "surrogate"),
        (['{"question": [], "answer": "1"}'], ":1", "end with nobody"),
        (['{"question": ["q"], "answer": "1"}'], ":1", "'question.0' is no chat message"),
        (['{"question": [{"role": "me", "content": "q"}], "answer": "1"}'], ":1", "no chat message"),
        (
            ['{"question": [{"role": "user", "content": null}], "answer": "1"}'],
            ":1",
            "'question.0.content' holds no text",
        ),
        (['{"question": [{"role": "system", "content": "s"}], "answer": "1"}'], ":1", "end with system"),
        (
            [
                '{"question": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "answer": "1"}'
            ],
            ":1",
            "end with assistant",
        ),
        (['{"question": "q", "answer": null}'], ":1", "no gold answer"),
        (['{"question": "q", "answer": "  "}'], ":1", "no gold answer"),
        (['{"question": "q", "answer": NaN}'], ":1", "no gold answer"),
        (['{"question": "q", "answer": 1e400}'], ":1", "no gold answer"),
        (['{"question": "q", "answer": [1, 2]}'], ":1", "holds a list and not one gold answer"),
        (['{"question": "q", "answer": []}'], ":1", "holds a list and not one gold answer"),
        (['{"question": "q", "answer": "1\\u0000"}'], ":1", "NUL"),
        (['{"question": "q", "answer": ' + "9" * 5000 + "}"], ":1", "not JSON"),
        (['{"question": "q", "answer": ' + "[" * 100_000], ":1", "not JSON"),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path, lines, where, words):
    path, good = tmp_path / "rows.jsonl", '{"question": "good", "answer": "2"}'
    path.write_text("\n".join([*lines, good]), "utf-8")
    with pytest.raises(DataError, match=words) as error:
        list(read(Source(path=str(path)), "here"))
    assert error.value.where == f"{path}{where}" and error.value.fix
    counts = Counts("")
    kept = list(read(Source(path=str(path), bad_rows="skip"), "here", counts=counts))
    assert kept[-1].question == "good" and all(row.reference in ("1", "2") for row in kept)
    assert [fault.where for fault in counts.bad] == [f"{path}{where}"]


def test_a_gold_answer_that_nothing_can_be_compared_with_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"question": f"q{i}", "answer": a}) for i, a in enumerate(["1", "\\frac{1", "x" * 99])
        )
    )

    def fault(reference: str) -> str | None:
        return (
            f"{reference!r} has no closing brace"
            if "{" in reference
            else "too long"
            if len(reference) > 9
            else None
        )

    with pytest.raises(DataError, match=r"frac\{1' has no closing brace") as error:
        list(read(Source(path=str(path)), "here", Wants(fault)))
    assert error.value.where == f"{path}:2" and "bad_rows=skip" in error.value.fix
    _, (counts,) = survey([Source(path=str(path), bad_rows="skip")], str, Wants(fault))
    assert counts.rows == 1 and [f.where for f in counts.bad] == [f"{path}:2", f"{path}:3"]
    assert counts.notes() == [f"{path}: bad rows left out: 2, the first at {path}:2: {counts.bad[0].what}"]
    with pytest.raises(
        DataError, match="the data set is empty: all 3 rows were left out, the first for: never"
    ):
        survey([Source(path=str(path), bad_rows="skip")], str, Wants(lambda reference: "never"))


def test_bad_rows_do_not_count_towards_the_limit(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(['{"question": "a", "answer": "1"}', "{", '{"question": "b", "answer": "1"}', "{"])
    )
    rows = read(Source(path=str(path), bad_rows="skip", limit=2), "here")
    assert [row.question for row in rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "extract", "gold"),
    [
        ("so 4 * 18 = 72\n#### 1,072", "gsm8k", "1072"),
        ("72", "gsm8k", "72"),
        ("thus \\boxed{\\frac{3}{4}}", "boxed", "\\frac{3}{4}"),
        (" 72 ", "plain", "72"),
        (72, "plain", "72"),
        (0, "plain", "0"),
        (-2.5, "plain", "-2.5"),
        (["3"], "plain", "3"),
        ({"input": "1"}, "plain", '{"input": "1"}'),
        ([{"input": "ž"}, {"input": "2"}], "plain", '[{"input": "ž"}, {"input": "2"}]'),
    ],
)
def test_gold_answers(tmp_path, answer, extract, gold):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": answer, "id": "a"}), "utf-8")
    assert [(r.id, r.reference) for r in read(Source(path=str(path), answer_extract=extract), "")] == [
        ("a", gold)
    ]


ROW = {"question": "q", "answer": "1", "worked": "#### 1"}
RUBRIC = [
    {"text": "gets 83", "kind": "factual", "weight": 2, "numeric": 83},
    {"text": "names the speed", "unit": " km/h ", "regex": None},  # the Hub fills keys with null
    {"text": "ends well", "regex": "#### \\d+$"},
    {"text": "half of it", "numeric": "1/2"},
    {"text": "is polite", "weight": 0.5},
]


@pytest.mark.parametrize("rubric", [RUBRIC, json.dumps(RUBRIC)], ids=["list", "JSON"])
def test_solutions_and_rubrics(tmp_path, tokenizer, rubric):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"criteria": rubric}), "utf-8")
    data = Data(train=[Source(path=str(path), solution="worked", rubric="criteria")], template="plain")
    ((prompt,), _) = load(data.train, data, tokenizer, 100, str)
    assert tokenizer.decode(prompt.solution_ids) == "#### 1"
    assert prompt.rubric == (
        Criterion("gets 83", "factual", 2.0, "numeric", "83"),
        Criterion("names the speed", "process", 1.0, "unit", "km/h"),
        Criterion("ends well", "process", 1.0, "regex", "#### \\d+$"),
        Criterion("half of it", "process", 1.0, "numeric", "1/2"),
        Criterion("is polite", "process", 0.5),
    )
    plain = Data(train=[Source(path=str(path))], template="plain")
    ((prompt,), _) = load(plain.train, plain, tokenizer, 100, str)
    assert (prompt.solution_ids, prompt.rubric) == ((), ())


@pytest.mark.parametrize(
    ("rubric", "words"),
    [
        ([], "no list of criteria"),
        ({"text": "a"}, "no list of criteria"),
        (None, "no list of criteria"),
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("7", "no list of criteria"),
        ([{"text": "a"}, "b"], "criterion 2 in column 'criteria': not an object"),
        ([{"text": "a", "wieght": 2}], "unknown key 'wieght', did you mean 'weight'"),
        ([{"kind": "factual"}], "no text"),
        ([{"text": " "}], "no text"),
        ([{"text": "a", "kind": "fact"}], "kind 'fact'"),
        ([{"text": "a", "kind": []}], "kind"),
        ([{"text": "a", "weight": 0}], "weight 0"),
        ([{"text": "a", "weight": -1}], "weight -1"),
        ([{"text": "a", "weight": "2"}], "weight '2'"),
        ([{"text": "a", "weight": True}], "weight True"),
        ([{"text": "a", "weight": float("nan")}], "weight nan"),
        ([{"text": "a", "weight": 1e308}], "weight 1e"),
        ([{"text": "a", "regex": "("}], "no regular expression"),
        ([{"text": "a", "regex": "a{99999999999999999999}"}], "no regular expression"),
        ([{"text": "a", "regex": ""}], "give regex as text"),
        ([{"text": "a", "numeric": "twelve"}], "'twelve' is no number"),
        ([{"text": "a", "numeric": True}], "give numeric as text"),
        ([{"text": "a", "numeric": float("inf")}], "is no number"),
        ([{"text": "a", "unit": 3}], "give unit as text"),
        ([{"text": "a", "unit": "km", "numeric": 3}], "numeric and unit at once"),
    ],
)
def test_a_bad_criterion_is_named(tmp_path, rubric, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(ROW | {"criteria": rubric}), "utf-8")
    with pytest.raises(DataError, match=words) as error:
        list(read(Source(path=str(path), rubric="criteria"), "here"))
    assert error.value.where == f"{path}:2" and error.value.fix


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"solution": "steps"}, "no column 'steps'"),
        ({"rubric": "steps"}, "no column 'steps'"),
        ({"solution": "number"}, "holds no text"),
        ({"solution": "blank"}, "holds no text"),
    ],
)
def test_a_bad_solution_is_named(tmp_path, source, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW | {"number": 7, "blank": " "}), "utf-8")
    with pytest.raises(DataError, match=words) as error:
        list(read(Source(path=str(path), **source), "here"))
    assert error.value.where == f"{path}:1" and error.value.fix


def test_a_task_has_solutions_and_no_rubric(tokenizer):
    data = Data(train=[Source(task="arithmetic", limit=5)], template="plain")
    prompts, _ = load(data.train, data, tokenizer, 100, str)
    made = itertools.islice(problems(0, "train"), 5)
    assert [tokenizer.decode(p.solution_ids) for p in prompts] == [p.solution("steps") for p in made]
    with pytest.raises(DataError, match="no column 'criteria'"):
        list(read(Source(task="arithmetic", rubric="criteria"), "here"))


def test_missing_file_and_empty_set(tmp_path, tokenizer):
    with pytest.raises(DataError, match="no such file"):
        list(read(Source(path=str(tmp_path / "none.jsonl")), "here"))
    (tmp_path / "empty.jsonl").write_text("\n")
    data = Data(train=[Source(path=str(tmp_path / "empty.jsonl"))], template="plain")
    with pytest.raises(DataError, match="the data set is empty"):
        load(data.train, data, tokenizer, 100, str)
    with pytest.raises(DataError, match="without data"):
        list(read(Source(), "here"))


def test_long_prompts_are_left_out_and_counted(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps({"question": "x" * n, "answer": "1"}) for n in (5, 50, 500)), "utf-8"
    )
    data = Data(train=[Source(path=str(path))], template="plain")
    prompts, (counts,) = load(data.train, data, tokenizer, 51, str)
    assert ([len(p.token_ids) for p in prompts], counts.too_long, counts.rows) == ([6, 51], 1, 3)
    with pytest.raises(DataError, match="longer than 5 tokens"):
        load(data.train, data, tokenizer, 5, str)


def test_columns_inside_columns(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {
        "meta": {"truth": 7, "level": {"name": "x"}},
        "messages": [{"role": "user", "content": "q"}],
        "meta.truth.x": "whole",
    }
    path.write_text(json.dumps(row))
    for prompt, answer, expected in (
        ("messages.0.content", "meta.truth", ("q", "7")),
        ("messages", "meta.level.name", ("q", "x")),
        ("messages", "meta.truth.x", ("q", "whole")),
    ):
        (found,) = read(Source(path=str(path), prompt=prompt, answer=answer), "")
        assert (found.question, found.reference) == expected
    for absent in ("messages.1.content", "meta.truth.y", "meta.", "messages.-1", "messages.x"):
        with pytest.raises(DataError, match="no column"):
            list(read(Source(path=str(path), prompt=absent, answer="meta.truth"), ""))


def test_ids_name_one_prompt_and_repeated_questions_are_told(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"id": i, "question": q, "answer": "1"})
            for i, q in ((5, "a b"), (5, " a  b\n"), (6, "A b"))
        )
    )
    source = Source(path=str(path))
    data = Data(train=[source, source], template="plain")
    prompts, (first, second) = load(data.train, data, tokenizer, 100, str)
    assert [p.id for p in prompts] == ["5", "5#2", "6", "5#3", "5#4", "6#2"]
    assert (first.repeated, second.repeated) == (1, 3)
    assert second.notes() == [f"{path}: questions that a row before them has: 3 of 3; they are kept"]


def test_questions_of_the_evaluation_that_are_trained_on():
    assert shared(["1+1", "x "], ["2+2"]) is None and shared([], []) is None
    assert "data.eval that are in data.train too: 2 of 3;" in (
        shared(["x y", "café"], ["x  y", "cafe\u0301", "X y"]) or ""
    )
    assert same("x²") != same("x2") and same("Find A") != same("Find a")


def test_the_tokenizer_reads_any_text(tokenizer):
    for text in ("47+36=?", "žluťoučký kůň", "数学\x00\n\t", "🙂 \\frac{1}{2} <|endoftext", "  two  spaces "):
        ids = tokens(text, Data(train=[Source()], template="plain"), tokenizer)
        assert len(ids) == len((text + "\n").encode())
        assert tokenizer.decode(ids) == text + "\n"


def test_a_model_without_chat_template_says_so(tokenizer):
    with pytest.raises(DataError, match="no chat template"):
        tokens("q", Data(train=[Source()], template="chat"), tokenizer)


def test_stream_draws_all_before_any_again_and_resumes():
    prompts = [Prompt(str(i), "", (), "") for i in range(7)]
    stream = PromptStream(prompts, seed=3)
    first = [p.id for p in stream.draw(7)]
    assert sorted(first) == [p.id for p in prompts]
    rest = [p.id for p in stream.draw(10)]
    again = PromptStream(prompts, seed=3)
    again.drawn = 7
    assert [p.id for p in again.draw(10)] == rest
    assert [p.id for p in PromptStream(prompts, seed=4).draw(7)] != first


def test_sums_are_all_there_once_and_no_pair_is_in_both_splits_in_either_order():
    train, held_out = [list(sums(0, split)) for split in ("train", "heldout")]
    assert len(train) + len(held_out) == len({p.question for p in [*train, *held_out]}) == 29 * 29
    pairs = [{frozenset(p.question[8:-1].split(" + ")) for p in part} for part in (train, held_out)]
    assert not pairs[0] & pairs[1] and len(held_out) == 71
    for p in [*train, *held_out]:
        assert sum(map(int, p.question[8:-1].split(" + "))) == int(p.answer) == p.values[-1]
    assert held_out[0].solution("steps") == "29+2=31\n#### 31"


def test_arithmetic_splits_never_meet():
    train = list(itertools.islice(problems(0, "train"), 5000))
    held = list(itertools.islice(problems(0, "heldout"), 500))
    assert not {p.question for p in train} & {p.question for p in held}
    assert all(split_of(p.question) == "heldout" for p in held)
    assert len({p.question for p in train}) == len(train)
    for p in train[:200]:
        assert eval(p.question.removesuffix("=?")) == int(p.answer)
        assert len({p.solution(style) for style in STYLES}) == 3
        for style in STYLES:
            *lines, last = p.solution(style).split("\n")
            assert last == f"#### {p.answer}"
            assert all(eval(left) == int(right) for left, right in (line.split("=") for line in lines))


def test_the_recipe_trains_and_evaluates_on_different_problems():
    from lgrpo_lite.train.build import build

    run = build(tiny_recipe("data.train.limit=4096", "data.eval.limit=256"))
    assert len(run.eval_prompts) == 256
    assert not {p.text for p in run.prompts.prompts} & {p.text for p in run.eval_prompts}
