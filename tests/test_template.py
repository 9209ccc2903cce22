"""What the model reads of a question: plain, by its own template, by a file of the user's."""

import pytest
from support import lgrpo, tiny_recipe

from lgrpo_lite.data.prompts import load
from lgrpo_lite.data.template import check_template, tokens
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Data, Model, Source

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TURNS = (("system", "own"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(id="builtin:tiny-math"))


@pytest.fixture
def chat_tokenizer():
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    tokenizer.chat_template = CHATML
    return tokenizer


def data_of(template: str, system: str | None = None, path: str = "x.jsonl") -> Data:
    return Data(train=[Source(path=path)], template=template, system=system)


@pytest.mark.parametrize(
    ("system", "messages", "plain", "chat"),
    [
        (None, (), "q\n", "<|user|>q<|end|><|assistant|>"),
        ("s", (), "s\nq\n", "<|system|>s<|end|><|user|>q<|end|><|assistant|>"),
        ("s", (("user", "q"),), "s\nq\n", "<|system|>s<|end|><|user|>q<|end|><|assistant|>"),
        (
            "s",
            TURNS,
            "own\nq1\na1\nq2\n",
            "<|system|>own<|end|><|user|>q1<|end|><|assistant|>a1<|end|><|user|>q2<|end|><|assistant|>",
        ),
    ],
)
def test_plain_chat_and_a_file_of_the_same_template(tmp_path, chat_tokenizer, system, messages, plain, chat):
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML + "\n")
    for template, expected in (("plain", plain), ("chat", chat), (str(file), chat)):
        ids = tokens("q", data_of(template, system), chat_tokenizer, messages)
        assert chat_tokenizer.decode(ids) == expected


def test_a_file_sees_the_question_and_the_system_text(tmp_path, tokenizer):
    file = tmp_path / "own.jinja"
    file.write_text(
        "{% if system %}\n{{ system }}\n{% endif %}\nQ: {{ question | upper }}\nA:{{ bos_token }}"
    )
    bos = tokenizer.bos_token or ""
    assert tokenizer.decode(tokens("a", data_of(str(file), "s"), tokenizer)) == f"s\nQ: A\nA:{bos}"
    assert (
        tokenizer.decode(tokens("{{ 7 }} {% raw %}", data_of(str(file)), tokenizer))
        == f"Q: {{{{ 7 }}}} {{% RAW %}}\nA:{bos}"
    )


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a\n{{ question", ":2", "does not compile"),
        ("{% nope %}{{ question }}", ":1", "does not compile"),
        ("{{ quesion }}", "", "does not show the question"),
        ("", "", "does not show the question"),
    ],
)
def test_a_bad_template_is_refused_before_anything_is_loaded(tmp_path, text, line, words):
    file = tmp_path / "bad.jinja"
    file.write_text(text)
    with pytest.raises(DataError, match=words) as error:
        check_template(data_of(str(file)), lambda key: "here")
    assert error.value.where == f"{file}{line}"


@pytest.mark.parametrize("name", ["caht", "Plain", "none.jinja", ""])
def test_an_unknown_template_is_refused(name, capfd):
    with pytest.raises(ConfigError, match="no template"):
        check_template(data_of(name), lambda key: "here")
    assert lgrpo("validate", "tiny-math", f"data.template='{name}'") == 2
    assert "data.template=" in capfd.readouterr().err


@pytest.mark.parametrize(
    "attack",
    [
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__bases__ }}{{ question }}",
        "{{ question.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(999999999) %}x{% endfor %}{{ question }}",
        "{{ raise_exception('no system here') }}{{ question }}",
        "{{ 1 / 0 }}{{ question }}",
    ],
)
def test_a_template_can_neither_leave_its_sandbox_nor_end_the_run_without_words(tmp_path, tokenizer, attack):
    file = tmp_path / "attack.jinja"
    file.write_text(attack)
    with pytest.raises(DataError, match="the template refuses a question"):
        tokens("q", data_of(str(file)), tokenizer)


def test_a_model_without_system_messages_says_so(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    )
    with pytest.raises(DataError, match="no system role") as error:
        tokens("q", data_of("chat", "s"), chat_tokenizer)
    assert "data.system=null" in error.value.fix
    assert tokens("q", data_of("chat"), chat_tokenizer)


def test_a_run_reads_messages_by_a_template_file(tmp_path, tokenizer):
    from lgrpo_lite.train.build import build

    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}")
    (tmp_path / "rows.jsonl").write_text('{"chat": [{"role": "user", "content": "1+1=?"}], "answer": 2}\n')
    source = f"data.train={{path: {tmp_path}/rows.jsonl, prompt: chat}}"
    run = build(
        tiny_recipe("data.train.limit=1", source, f"data.template={tmp_path}/t.jinja", "data.eval=[]")
    )
    (prompt,) = run.prompts.prompts
    assert (prompt.text, prompt.reference, tokenizer.decode(prompt.token_ids)) == (
        "1+1=?",
        "2",
        "user=1+1=?;",
    )
    encoded = run.tools(None).encode("2+2=?")  # the same template for prompts that a rollout brick makes
    assert tokenizer.decode(encoded) == "user=2+2=?;"
    assert load(run.recipe.data.train, run.recipe.data, tokenizer, 64, str)[0][0] == prompt
