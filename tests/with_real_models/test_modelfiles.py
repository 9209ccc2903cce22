"""The Modelfile of each family of models: its template in Go and the model's own in Jinja give the same text."""

import os
from functools import cache

import pytest
from modelfiles import CONVERSATIONS, messages, read_modelfile
from support import tiny_recipe
from transformers import AutoTokenizer

from lgrpo_lite.data.served import chat_template
from lgrpo_lite.data.template import first_token, tokens
from lgrpo_lite.export.go_chat import as_ollama_has_it, go_chat
from lgrpo_lite.export.go_template import render
from lgrpo_lite.export.ollama import modelfile
from lgrpo_lite.policy.load import load_tokenizer
from lgrpo_lite.recipe.schema import Data, Model

pytestmark = pytest.mark.skipif(
    "LGRPO_REAL_MODELS" not in os.environ, reason="needs real tokenizers: make test-real"
)
SHOTS = [{"question": "1+1?", "answer": "2"}]
SETTINGS = {
    "as it is": {},
    "a system message": {"system": "Reason in {{ steps }},\nthen \\boxed{it}."},
    "examples and a beginning": {"few_shot": SHOTS, "prefill": "Let's see: "},
    "all of it": {"system": "Be brief.", "few_shot": SHOTS, "prefill": "=\n"},
    "plain": {"template": "plain", "system": "Add up."},
}
# model, arguments of its template, and what is said of it
FAMILIES = {
    "qwen2_5": ("qwen2_5", {}, []),
    "qwen3": ("qwen3", {}, ["what was thought"]),
    "qwen3 without thinking": ("qwen3", {"enable_thinking": False}, ["what was thought"]),
    "llama3_1": ("llama3_1", {}, []),
    "gemma3": ("gemma3", {}, []),
    "smollm2": ("smollm", {}, []),
}


@pytest.fixture(scope="module")
def tokenizer_of(tokenizers, smollm):
    @cache
    def loaded(name: str):
        if name == "smollm":
            return load_tokenizer(Model(id=smollm))
        return AutoTokenizer.from_pretrained(tokenizers / name)

    return loaded


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_conversations_read_the_same(tokenizer_of, family, name):
    model, arguments, said = FAMILIES[family]
    tokenizer = tokenizer_of(model)
    given = SETTINGS[name]
    if given.get("template") != "plain":
        given = given | {"chat_template_kwargs": arguments or None}
    else:
        said = []
    data = Data.model_validate({"train": {"task": "arithmetic"}, "date": "2026-02-03T04:05"} | given)
    adds = first_token(tokenizer) is not None or model in ("llama3_1", "gemma3")  # as llama.cpp has them
    made = go_chat(data, tokenizer, begins=adds)
    plain_without = given.get("template") == "plain" and adds and first_token(tokenizer) is None
    expected_notes = [*said, *(["before every prompt"] if plain_without else [])]
    assert len(made.notes) == len(expected_notes), made.notes
    assert all(any(words in note for note in made.notes) for words in expected_notes)
    assert made.template is not None
    text, lost = modelfile(tiny_recipe(), "m", "m.gguf", made.template, ["<|im_end|>"], 512)
    [template] = read_modelfile(text)["TEMPLATE"]
    assert lost == []
    jinja = chat_template(data, tokenizer)
    first = tokenizer.bos_token if adds and not plain_without else ""
    for turns in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(
            messages(turns), tokenize=False, add_generation_prompt=True, chat_template=jinja,
            strftime_now=data.date.strftime,
        )  # fmt: skip
        assert first + render(template, as_ollama_has_it(messages(turns), data.system)) == expected
    # and what the policy read is what Ollama's runner then reads
    asked = render(template, as_ollama_has_it(messages([("user", "12+30=?")]), data.system))
    assert tuple(tokenizer(first + asked, add_special_tokens=False)["input_ids"]) == tokens(
        "12+30=?", data, tokenizer
    )


def test_ollama_takes_thoughts_out_where_the_template_of_qwen3_does(tokenizer_of):
    """Of earlier answers of an architecture qwen3 Ollama gives to a template what follows </think>."""
    tokenizer = tokenizer_of("qwen3")
    data = Data.model_validate({"train": {"task": "arithmetic"}})
    made = go_chat(data, tokenizer, begins=False)
    thought, answer = "<think>\nWell.\n</think>\n\n", "Five."
    asked = [("user", "2+3?"), ("assistant", thought + answer), ("user", "And 3+4?")]
    expected = tokenizer.apply_chat_template(messages(asked), tokenize=False, add_generation_prompt=True)
    given = [(role, text.removeprefix(thought)) for role, text in asked]
    assert render(made.template or "", as_ollama_has_it(messages(given), None)) == expected
