"""Whoever serves an exported model and asks a question gives it the tokens it read in training."""

import pytest
from support import tiny_recipe, tokenizer_of
from transformers import AutoTokenizer

from lgrpo_lite.data.served import chat_template
from lgrpo_lite.data.template import tokens
from lgrpo_lite.errors import VerificationError
from lgrpo_lite.export import export
from lgrpo_lite.export.check import demand_same_prompts
from lgrpo_lite.export.export import export_adapter
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Data
from lgrpo_lite.types import Prompt

CHATML = """  {%- if thinking is defined and thinking %}[think]{% endif %}
{% for message in messages %}<|{{ message.role }}|>{{ message['content'] }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<nothink>{% endif %}{% endif %}
"""
DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
SYSTEM = 'Say "no" — 100 % {{ sure }}, it\'s {% raw %}\n\tC:\\new 数学 \U0001f600'
SHOTS = [{"question": "1+1?", "answer": "2"}, {"question": 'a "b"?', "answer": "\\c\n"}]
FILE = "{{ bos_token }}{{ system }}|Q: {{ question }}\n{% if add_generation_prompt %}A:{% endif %}\n"
CASES = {
    "the model's own": {},
    "its own with a system message": {"system": SYSTEM},
    "its own with thinking switched off": {"chat_template_kwargs": {"enable_thinking": False}},
    "its own with examples": {"few_shot": SHOTS},
    "its own with a beginning": {"prefill": ' The "answer" is\n'},
    "all of it": {"system": SYSTEM, "few_shot": SHOTS, "prefill": "<x>", "chat_template_kwargs": {"thinking": True, "n": [1, None, {"a": "b"}]}},
    "plain": {"template": "plain"},
    "plain with a system message": {"template": "plain", "system": SYSTEM},
    "plain with examples and a beginning": {"template": "plain", "few_shot": SHOTS, "prefill": "= "},
    "a file": {"template": "FILE"},
    "a file with a system message": {"template": "FILE", "system": SYSTEM},
    "a file that reads the chat": {"template": "CHATML", "system": "s", "few_shot": SHOTS, "prefill": "p"},
}  # fmt: skip


def settings(tmp_path, **more) -> Data:
    names = {"FILE": FILE, "CHATML": CHATML}
    for name, text in names.items():
        (tmp_path / name).write_text(text, "utf-8")
    if more.get("template") in names:
        more["template"] = str(tmp_path / more["template"])
    return Data.model_validate({"train": {"task": "arithmetic"}} | more)


def read_by(template: str | None, tokenizer, messages, **more) -> tuple[int, ...]:
    """As one who serves the model has it."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, chat_template=template, **more
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bos", [False, True])
def test_a_question_reads_as_in_training(tmp_path, name, bos):
    data, tokenizer = settings(tmp_path, **CASES[name]), tokenizer_of(CHATML, bos=bos)
    template = chat_template(data, tokenizer) or tokenizer.chat_template
    for question in ("2+2?", ' "{{ x }}"\n数 \U0001f600 '):
        expected = tokens(question, data, tokenizer)
        asked = [{"role": "user", "content": question}]
        assert read_by(template, tokenizer, asked) == expected
    assert (template == CHATML) == (name == "the model's own")


def test_a_conversation_with_a_system_message_keeps_it(tmp_path):
    data, tokenizer = settings(tmp_path, system="ours", few_shot=SHOTS[:1]), tokenizer_of(CHATML)
    own = [{"role": "system", "content": "theirs"}, {"role": "user", "content": "q"}]
    text = tokenizer.decode(read_by(chat_template(data, tokenizer), tokenizer, own))
    assert "theirs" in text and "ours" not in text
    assert text.index("theirs") < text.index("1+1?") < text.index("|user|>q")


def test_who_switches_thinking_is_obeyed(tmp_path):
    data = settings(tmp_path, chat_template_kwargs={"enable_thinking": False})
    tokenizer, asked = tokenizer_of(CHATML), [{"role": "user", "content": "q"}]
    template = chat_template(data, tokenizer)
    as_trained = tokenizer.decode(read_by(template, tokenizer, asked))
    switched = tokenizer.decode(read_by(template, tokenizer, asked, enable_thinking=True))
    assert as_trained == switched + "<nothink>"


def test_a_template_that_reads_the_clock_is_compared_at_the_time_of_the_run(tmp_path):
    tokenizer = tokenizer_of(DATED)
    data = settings(tmp_path, system="s", date="2001-02-03T04:05")
    tokenizer.save_pretrained(tmp_path / "out")
    (tmp_path / "out" / "chat_template.jinja").write_text(chat_template(data, tokenizer), "utf-8")
    demand_same_prompts(tmp_path / "out", data, tokenizer, [Prompt("0", "q", (1,), "")])
    assert "03 Feb 2001" in tokenizer.decode(tokens("q", data, tokenizer))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (CHATML, "by its chat template it reads"),
        ("{{ raise_exception('no') }}", "its template fails in transformers: no"),
    ],
)
def test_an_export_that_would_read_something_else_is_refused(tmp_path, monkeypatch, wrong, what):
    recipe = tiny_recipe("data.template=plain", "data.system=Add up.")
    policy = Policy.load(recipe)
    monkeypatch.setattr(export, "chat_template", lambda data, tokenizer: wrong)
    with pytest.raises(VerificationError, match=f"would not read what the policy read: {what}") as error:
        export_adapter(policy, recipe, tmp_path / "adapter", [Prompt("0", "1+1=", (1,), "")])
    assert error.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_carries_the_template_of_its_run(tmp_path):
    recipe = tiny_recipe("data.template=plain", "data.system=Add up.")
    policy = Policy.load(recipe)
    out = export_adapter(policy, recipe, tmp_path / "adapter", [Prompt("0", "1+1=", (1,), "")])
    exported = AutoTokenizer.from_pretrained(out)
    ids = exported.apply_chat_template([{"role": "user", "content": "3+4="}], add_generation_prompt=True)
    assert tuple(ids["input_ids"]) == tokens("3+4=", recipe.data, policy.tokenizer)
