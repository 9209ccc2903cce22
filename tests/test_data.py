"""Questions and gold answers: read once, told where they are bad, drawn in an order one number resumes."""

import itertools
import json

import pytest
from support import tiny_recipe

from lgrpo_lite.arithmetic import STYLES, problems, split_of
from lgrpo_lite.config import Data, Model, Source
from lgrpo_lite.data.prompts import load, read, tokens
from lgrpo_lite.data.stream import PromptStream
from lgrpo_lite.errors import DataError
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.types import Prompt


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
        (['{"question": 7, "answer": "1"}'], ":1", "holds no text"),
        (['{"question": "q", "answer": null}'], ":1", "no gold answer"),
        (['{"question": "q", "answer": "  "}'], ":1", "no gold answer"),
    ],
)
def test_a_bad_row_is_named(tmp_path, lines, where, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(DataError, match=words) as error:
        list(read(Source(path=str(path)), "here"))
    assert error.value.where == f"{path}{where}"


@pytest.mark.parametrize(
    ("answer", "extract", "gold"),
    [
        ("so 4 * 18 = 72\n#### 1,072", "gsm8k", "1072"),
        ("72", "gsm8k", "72"),
        ("thus \\boxed{\\frac{3}{4}}", "boxed", "\\frac{3}{4}"),
        (" 72 ", "plain", "72"),
        (72, "plain", "72"),
    ],
)
def test_gold_answers(tmp_path, answer, extract, gold):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": answer, "id": "a"}), "utf-8")
    assert [(r.id, r.reference) for r in read(Source(path=str(path), answer_extract=extract), "")] == [("a", gold)]


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
    path.write_text("\n".join(json.dumps({"question": "x" * n, "answer": "1"}) for n in (5, 50, 500)), "utf-8")
    data = Data(train=[Source(path=str(path))], template="plain")
    prompts, left_out = load(data.train, data, tokenizer, 51, str)
    assert ([len(p.token_ids) for p in prompts], left_out) == ([6, 51], 1)
    with pytest.raises(DataError, match="longer than 5 tokens"):
        load(data.train, data, tokenizer, 5, str)


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
