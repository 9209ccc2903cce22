"""What the model reads of a question: plain, by its own template, by a file of the user's."""

import json

import pytest
from support import lgrpo, tiny_recipe
from tokenizers.processors import TemplateProcessing

from lgrpo_lite.data.prompts import load
from lgrpo_lite.data.sound import begins, check_model, ends
from lgrpo_lite.data.template import bare, check_template, first_token, tokens
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Data, Model, Source

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOTS = [{"question": "1+1", "answer": "2"}]
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


@pytest.mark.parametrize(
    ("settings", "plain", "chat"),
    [
        ({"prefill": "So: "}, "q\nSo: ", "<|user|>q<|end|><|assistant|>So: "),
        (
            {"few_shot": SHOTS},
            "1+1\n2\nq\n",
            "<|user|>1+1<|end|><|assistant|>2<|end|><|user|>q<|end|><|assistant|>",
        ),
        (
            {"few_shot": SHOTS, "system": "s", "prefill": "="},
            "s\n1+1\n2\nq\n=",
            "<|system|>s<|end|><|user|>1+1<|end|><|assistant|>2<|end|><|user|>q<|end|><|assistant|>=",
        ),
        ({"few_shot": []}, "q\n", "<|user|>q<|end|><|assistant|>"),
    ],
)
def test_examples_come_after_the_system_message_and_an_answer_may_begin(
    tmp_path, chat_tokenizer, settings, plain, chat
):
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    for template, expected in (("plain", plain), ("chat", chat), (str(file), chat)):
        data = Data.model_validate({"train": {"path": "x"}, "template": template, **settings})
        assert chat_tokenizer.decode(tokens("q", data, chat_tokenizer)) == expected
        assert "1+1" not in chat_tokenizer.decode(tokens("q", bare(data), chat_tokenizer))


def test_plain_text_begins_with_the_token_that_the_tokenizer_puts_there(tokenizer):
    """Gemma and Llama expect one before any text; Qwen has none, and this tokenizer does not use its own."""
    assert first_token(tokenizer) is None
    gemma = load_tokenizer(Model(id="builtin:tiny-math"))
    gemma.bos_token = gemma.convert_ids_to_tokens(5)
    assert first_token(gemma) is None  # it has one and uses it not
    plain = tokens("q", data_of("plain"), gemma)
    begin = f"{gemma.bos_token} $A"
    gemma.backend_tokenizer.post_processor = TemplateProcessing(
        single=begin, special_tokens=[(gemma.bos_token, 5)]
    )
    assert tokens("q", data_of("plain"), gemma) == (5, *plain)
    gemma.chat_template = CHATML  # a template brings its own
    assert 5 not in tokens("q", data_of("chat"), gemma)


THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<nothink>{% endif %}"


@pytest.mark.parametrize(
    ("template", "given", "words"),
    [
        ("chat", {"enable_thinkng": False}, "did you mean 'enable_thinking'"),
        ("chat", {"thinking": False}, "does not read 'thinking'"),
        ("file", {"enable_thinkng": False}, "did you mean 'enable_thinking'"),
        ("plain", {"enable_thinking": False}, "the template plain does not read"),
        ("chat", {"messages": []}, "has messages from the chat itself"),
        ("file", {"strftime_now": 1}, "has strftime_now from the chat itself"),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_refused(
    tmp_path, chat_tokenizer, template, given, words
):
    chat_tokenizer.chat_template = THINKING
    file = tmp_path / "t.jinja"
    file.write_text(THINKING)
    name = str(file) if template == "file" else template
    data = Data.model_validate({"train": {"path": "x"}, "template": name, "chat_template_kwargs": given})
    with pytest.raises(ConfigError, match=words) as error:
        check_template(data, lambda key: key)
        check_model(data, chat_tokenizer, lambda key: key)
    assert error.value.where.startswith("data.chat_template_kwargs.")


@pytest.mark.parametrize("broken", ["{% if %}", {"tool_use": CHATML}])
def test_a_template_of_a_model_that_cannot_be_used_is_told(chat_tokenizer, broken):
    chat_tokenizer.chat_template = broken
    for given in ({"enable_thinking": False}, None):
        data = Data.model_validate(
            {"train": {"path": "x"}, "template": "chat", "chat_template_kwargs": given}
        )
        with pytest.raises(DataError, match=r"of the model cannot be used|refuses a question") as error:
            check_model(data, chat_tokenizer, str)
            tokens("q", data, chat_tokenizer)
        assert error.value.where == "data.template=chat"


def test_thinking_is_switched_by_an_argument_of_the_template(tmp_path, chat_tokenizer):
    chat_tokenizer.chat_template = THINKING
    file = tmp_path / "t.jinja"
    file.write_text(THINKING)
    for name in ("chat", str(file)):
        for thinking, expected in ((False, "<nothink>"), (True, "")):
            given = {"enable_thinking": thinking}
            data = Data.model_validate(
                {"train": {"path": "x"}, "template": name, "chat_template_kwargs": given}
            )
            check_template(data, str)
            check_model(data, chat_tokenizer, str)
            text = chat_tokenizer.decode(tokens("q", data, chat_tokenizer))
            assert text == "<|user|>q<|end|><|assistant|>" + expected


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            {"system": "s"},
            "drops the system",
        ),
        ("{{ messages[-1].content }}", {"system": "s"}, "drops the system message"),
        ("{{ messages[-1].content }}", {"few_shot": SHOTS}, r"drops what the user says \('1\+1'\)"),
        ("{{ messages[0].content }}", {"system": "s"}, r"drops what the user says \('What is"),
        ("hello", {}, r"drops what the user says \('What is"),
        (None, {}, "the model has no chat template"),
        (
            "{% if messages[0].role == 'system' %}[SYS]{% endif %}{{ messages[-1].content }}",
            {"system": "s"},
            "drops the system",
        ),
    ],
)
def test_a_template_that_loses_a_part_of_the_chat_is_refused(chat_tokenizer, template, settings, words):
    chat_tokenizer.chat_template = template
    data = Data.model_validate({"train": {"path": "x"}, "template": "chat", **settings})
    with pytest.raises(DataError, match=words) as error:
        check_model(data, chat_tokenizer, lambda key: key)
    assert "data.template=chat" in error.value.where and error.value.fix


OWN_SYSTEM = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
TWO_TURNS = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]


@pytest.mark.parametrize(
    ("template", "chat", "lost"),
    [
        (CHATML, OWN_SYSTEM, ""),
        (CHATML, TWO_TURNS, ""),
        ("{{ messages[-1].content }}", OWN_SYSTEM, "the system message"),
        ("{{ messages[-1].content }}", TWO_TURNS, r"what the user says \('q'\)"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", TWO_TURNS, "what the assistant"),
        ("{{ question }}", OWN_SYSTEM, "the system message"),
        ("{{ system }}|{{ question }}", OWN_SYSTEM, ""),
        ("{{ system }}|{{ question }}", TWO_TURNS, ""),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML, OWN_SYSTEM, ""),
    ],
)  # fmt: skip
def test_a_chat_of_a_row_is_shown_whole_or_refused(tmp_path, chat_tokenizer, template, chat, lost):
    path, file = tmp_path / "rows.jsonl", tmp_path / "t.jinja"
    row = {"question": "plain ones come first", "answer": 1}
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in (row | {"question": chat}, row | {"question": chat}))
    )
    file.write_text(template)
    data = data_of(str(file), path=str(path))
    check_model(data, chat_tokenizer, str)
    if lost:
        with pytest.raises(DataError, match=f"drops {lost}") as error:
            load(data.train, data, chat_tokenizer, 256, str)
        assert error.value.where.startswith(f"{path}:1")
    else:
        prompts, _ = load(data.train, data, chat_tokenizer, 256, str)
        text = chat_tokenizer.decode(prompts[0].token_ids)
        assert all(turn["content"] in text for turn in chat)


def test_a_call_of_a_tool_is_refused_and_not_left_out(tmp_path, chat_tokenizer):
    call = {
        "role": "assistant",
        "content": "let me see",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    chat = [{"role": "user", "content": "q", "tool_calls": None}, call, {"role": "tool", "content": "4"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": chat, "answer": 1}) + "\n")
    data = data_of("chat", path=str(path))
    with pytest.raises(DataError, match=r"'question\.1' calls a tool") as error:
        load(data.train, data, chat_tokenizer, 64, str)
    assert error.value.where == f"{path}:1"


TURNS_ONLY = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
INST = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        (CHATML, {}, ()),
        (INST, {}, ()),  # what follows a question is the answer itself
        ("{{ question }}", {}, ()),  # shows no answer: nothing is known
        (TURNS_ONLY, {}, ("does not read add_generation_prompt: behind a question the model writes '<|assistant|>'",)),
        (TURNS_ONLY, {"prefill": "<|assistant|>"}, ()),
        (CHATML + "{{ raise_exception('no') }}", {}, ()),
    ],
)  # fmt: skip
def test_a_template_that_does_not_lead_to_the_answer_is_told(chat_tokenizer, template, settings, words):
    chat_tokenizer.chat_template = template
    data = Data.model_validate({"train": {"path": "x"}, "template": "chat", **settings})
    lines = begins(data, chat_tokenizer)
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))


def test_a_template_without_the_token_that_begins_a_text_is_told(chat_tokenizer):
    begin = chat_tokenizer.convert_ids_to_tokens(5)
    chat_tokenizer.add_special_tokens({"bos_token": begin})
    assert begins(data_of("chat"), chat_tokenizer) == [], "this tokenizer does not use it"
    chat_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 5)]
    )
    (line,) = begins(data_of("chat"), chat_tokenizer)
    assert f"puts {begin!r} before every text, and the template writes none" in line
    assert begins(data_of("plain"), chat_tokenizer) == []
    chat_tokenizer.chat_template = "{{ bos_token }}" + CHATML
    assert begins(data_of("chat"), chat_tokenizer) == []


def test_a_default_system_message_of_a_template_is_no_fault(chat_tokenizer):
    chat_tokenizer.chat_template = "{% if messages[0].role != 'system' %}be kind{% endif %}" + CHATML
    for system in (None, "be kind"):
        check_model(data_of("chat", system), chat_tokenizer, str)


@pytest.mark.parametrize(
    ("end", "ids", "own", "settings", "words"),
    [
        ("<|end|>", {0}, 0, {0}, ()),  # no special token of this tokenizer: nothing is known
        (0, {0}, 0, {0}, ()),
        (0, {0}, 0, set(), ()),
        (0, {0, 1}, 1, {0}, ("the tokenizer's end token is",)),
        (2, {0}, 0, {0}, ("answers would run on to the limit",)),
        (2, {0, 1}, 1, {0}, ("the tokenizer's end token is", "answers would run on to the limit")),
    ],
)
def test_end_tokens_that_contradict_each_other_are_named(chat_tokenizer, end, ids, own, settings, words):
    names = chat_tokenizer.convert_ids_to_tokens([0, 1, 2])
    chat_tokenizer.add_special_tokens({"additional_special_tokens": names})
    close = end if isinstance(end, str) else names[end]
    chat_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + close + "{% endfor %}"
    lines = ends(data_of("chat"), chat_tokenizer, ids, own, settings)
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_a_row_that_the_template_refuses_is_named(tmp_path, chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML
    )
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "good", "answer": 1}\n{"question": "bad", "answer": 1}\n')
    data = data_of("chat", path=str(path))
    with pytest.raises(DataError, match="refuses a question: no") as error:
        load(data.train, data, chat_tokenizer, 64, str)
    assert f"{path}:2" in error.value.where


def test_validate_shows_what_the_model_reads(tmp_path, capfd):
    settings = ["data.prefill='The answer is '", "data.few_shot=[{question: 1+1=?, answer: '2'}]"]
    assert lgrpo("validate", "tiny-math", "--show", "2", *settings) == 0
    out = capfd.readouterr().out
    assert out.count("  | 1+1=?\n  | 2\n") == 2 and out.count("  | The answer is \n") == 2
    assert out.count("[the answer begins here; gold '") == 2 and "prompt 2  arithmetic-train-1: " in out
    tokenizer = load_tokenizer(Model(id="builtin:tiny-math"))
    text = "\n".join(line[4:] for line in out.split("prompt 1")[1].split("\n") if line.startswith("  | "))
    count = len(
        tokenizer(text.split("The answer is ")[0] + "The answer is ", add_special_tokens=False)["input_ids"]
    )
    assert f"{count} tokens, 0 of them special" in out
    assert lgrpo("validate", "tiny-math", "--show", "0") == 2


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
