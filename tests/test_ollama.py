"""Under Ollama a model reads what it read in training: its Modelfile's template, in Go, against the run's in Jinja."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from modelfiles import CONVERSATIONS, messages, read_modelfile
from support import tiny_recipe, tokenizer_of

from lgrpo_lite.data.served import chat_template
from lgrpo_lite.errors import ConfigError
from lgrpo_lite.export import gguf, gguf_report
from lgrpo_lite.export import go_chat as go_chat_module
from lgrpo_lite.export.formats import FORMATS, Job
from lgrpo_lite.export.go_chat import UNKNOWN, as_ollama_has_it, go_chat
from lgrpo_lite.export.go_template import quoted, render
from lgrpo_lite.export.ollama import held, modelfile, write_modelfile
from lgrpo_lite.export.place import placed
from lgrpo_lite.export.turns import find_turns
from lgrpo_lite.policy.policy import Policy
from lgrpo_lite.recipe.schema import Data
from lgrpo_lite.types import Prompt

GENERATED = json.loads((Path(__file__).parent / "go_template.json").read_text("utf-8"))
# forms that templates of models have, in words of our own
HEADED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
DEFAULTED = "{% if messages[0].role != 'system' %}<|system|>\nHelp {{ '{{' }}.<|end|>\n{% endif %}" + HEADED
TRIMMED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
INSIDE = (
    "{{ bos_token }}{% set begun = messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' if begun else '' %}"
    "{% for m in (messages[1:] if begun else messages) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}{{ m.content | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
BRACKETED = (  # the first question is headed otherwise, answers are not headed at all
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
THINKING = (
    HEADED + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + HEADED
NUMBERED = "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}"
REVERSED = "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SHOUTED = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}A: "
FILE = "{{ bos_token }}{{ system }}|Q: {{ question }}\n{% if add_generation_prompt %}A:{% endif %}\n"
FORMS = {
    "headed": HEADED, "defaulted": DEFAULTED, "trimmed": TRIMMED, "inside": INSIDE, "bracketed": BRACKETED,
    "thinking": THINKING, "dated": DATED, "plain": None, "a file of the question": FILE,
}  # fmt: skip
SYSTEM = 'Say "no" — 100 % {{ sure }}, it\'s {% raw %}\n\tC:\\new 数学 \u200d\U0001f600'
SHOTS = [{"question": "1+1?", "answer": "2"}, {"question": 'a "b"?', "answer": "\\c {{\n"}]
SETTINGS = {
    "as it is": {},
    "a system message": {"system": SYSTEM},
    "examples": {"few_shot": SHOTS},
    "a beginning": {"prefill": ' The "{{ answer }}" is\n'},
    "all of it": {"system": "Add up.", "few_shot": SHOTS, "prefill": "So:"},
}


def settings(tmp_path: Path, form: str, **more) -> Data:
    template = "chat"
    if form == "plain":
        template = "plain"
    if form == "a file of the question":
        file = tmp_path / "file.jinja"
        file.write_text(FILE, "utf-8")
        template = str(file)
    if form == "thinking":
        more["chat_template_kwargs"] = {"enable_thinking": False}
    fixed = {"train": {"task": "arithmetic"}, "template": template, "date": "2026-02-03T04:05"}
    return Data.model_validate(fixed | more)


@pytest.mark.parametrize("bos", [False, True], ids=["", "with a first token"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_twenty_conversations_read_the_same(tmp_path, form, name, bos):
    if form == "bracketed" and "system" in SETTINGS[name]:
        pytest.skip("refuses system messages, so no run has one")
    data, tokenizer = settings(tmp_path, form, **SETTINGS[name]), tokenizer_of(FORMS[form], bos=bos)
    made = go_chat(data, tokenizer, begins=bos)
    assert made.template is not None
    template, asked = chat_template(data, tokenizer), 0
    # as it is read back from the Modelfile
    text, _ = modelfile(tiny_recipe(), "m", "m.gguf", made.template, [], 512)
    [template_read] = read_modelfile(text)["TEMPLATE"]
    first = "<|begin|>" if bos else ""
    reads_first = bos and form in ("trimmed", "inside", "bracketed", "plain", "a file of the question")
    for turns in CONVERSATIONS:
        try:
            expected = tokenizer.apply_chat_template(
                messages(turns), tokenize=False, add_generation_prompt=True, chat_template=template,
                strftime_now=data.date.strftime,
            )  # fmt: skip
        except Exception:  # and so does the template of Go
            with pytest.raises(ValueError, match="out of range"):
                render(template_read, as_ollama_has_it(messages(turns), data.system))
            continue
        asked += 1
        got = render(template_read, as_ollama_has_it(messages(turns), data.system))
        assert expected == (first if reads_first else "") + got
    assert asked == 20 if form != "bracketed" else asked == 12
    noted = any("before every prompt" in note for note in made.notes)
    assert noted == (bos and not reads_first)


@pytest.mark.parametrize("template", [NUMBERED, REVERSED, SHOUTED], ids=["numbered", "reversed", "shouted"])
def test_a_template_of_another_form_is_left_out_and_said(tmp_path, template):
    made = go_chat(settings(tmp_path, "headed"), tokenizer_of(template, bos=False), begins=False)
    assert made.template is None and made.notes == (UNKNOWN,)


def test_a_template_that_only_a_question_of_the_run_tells_apart_is_left_out(tmp_path):
    secret = HEADED.replace("{{ m.content }}", "{{ m.content | replace('apples', 'pears') }}")
    data, tokenizer = settings(tmp_path, "headed"), tokenizer_of(secret, bos=False)
    assert go_chat(data, tokenizer, begins=False).template is not None
    assert go_chat(data, tokenizer, begins=False, questions=["3 apples?"]).template is None


@pytest.mark.parametrize("part", ["before", "after", "trimmed"])
@pytest.mark.parametrize("turn", ["system", "user", "assistant", "later"])
def test_a_turn_written_wrong_is_caught(tmp_path, monkeypatch, turn, part):
    """A planted fault in any part of what was found leaves no template."""

    def wrong(jinja):
        turns = find_turns(jinja)
        good = getattr(turns, turn)
        value = not good.trimmed if part == "trimmed" else getattr(good, part) + "x"
        return replace(turns, **{turn: replace(good, **{part: value})})

    monkeypatch.setattr(go_chat_module, "find_turns", wrong)
    made = go_chat(settings(tmp_path, "headed"), tokenizer_of(HEADED, bos=False), begins=False)
    assert made.template is None


def test_what_differs_is_said(tmp_path):
    def notes(form, template):
        return go_chat(settings(tmp_path, form), tokenizer_of(template, bos=False), begins=False).notes

    assert notes("headed", HEADED) == ()
    [dated] = notes("dated", DATED)
    assert "stays 2026-02-03" in dated
    [refusing] = notes("bracketed", BRACKETED)
    assert "refuses system messages" in refusing
    hides = HEADED.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    [thoughts] = notes("headed", hides)
    assert "what was thought" in thoughts


def test_ollama_joins_neighbours_of_one_role_and_adds_its_system_message():
    turns = messages([("user", "a"), ("user", "b"), ("assistant", "c")])
    assert [(m["Role"], m["Content"]) for m in as_ollama_has_it(turns, "s")["Messages"]] == [
        ("system", "s"), ("user", "a\n\nb"), ("assistant", "c"),
    ]  # fmt: skip
    own = messages([("system", ""), ("user", "a")])
    assert as_ollama_has_it(own, "s")["Messages"][0] == {"Role": "system", "Content": ""}


# ------------------------------------------------------------------------------------ the Modelfile


def recipe_of(*more: str):
    return tiny_recipe("model.weights=fp32", *more)


@pytest.fixture(scope="module")
def policy():
    return Policy.load(recipe_of())


def job_of(policy, recipe, run: Path) -> Job:
    prompts = [Prompt(str(n), f"{n}+{n}=", (1,), "") for n in range(3)]
    return Job(
        recipe, run, "step-1", lambda: (policy, prompts), lambda sampler: pytest.fail("scores nothing")
    )


def gguf_file(folder: Path, architecture: str = "qwen2", **more) -> str:
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "tiny.gguf", architecture)
    for key, value in more.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return "tiny.gguf"


def test_a_modelfile_says_all_of_it(tmp_path, policy):
    stops = json.dumps(["\n\nQ:", '"'])
    recipe = recipe_of(
        "data.system='Add \"up\".'", f"rollout.stop={stops}", "eval.temperature=0.7", "model.max_prompt_tokens=300"
    )  # fmt: skip
    notes = write_modelfile(job_of(policy, recipe, tmp_path / "a run"), tmp_path, gguf_file(tmp_path))
    text = (tmp_path / "Modelfile").read_text("utf-8")
    read = read_modelfile(text)
    assert notes == [] and text.startswith("# ollama create a-run -f Modelfile\n")
    assert read["FROM"] == ["./tiny.gguf"] and read["SYSTEM"] == ['Add "up".']
    end = policy.tokenizer.decode(sorted(policy.eos_ids))
    assert read["PARAMETER stop"] == [end, "\n\nQ:", '"']
    longest = -(-(300 + recipe.model.max_new_tokens) // 256) * 256
    assert read["PARAMETER num_ctx"] == [str(longest)] and longest <= 2048
    assert read["PARAMETER temperature"] == ["0.7"] and read["PARAMETER repeat_penalty"] == ["1"]
    chat = as_ollama_has_it(messages([("user", "1+1=")]), recipe.data.system)
    assert render(read["TEMPLATE"][0], chat) == 'Add "up".\n1+1=\n'


def test_the_beginning_of_an_answer_is_given_and_said(tmp_path, policy):
    recipe = recipe_of("data.prefill='= '")
    [note] = write_modelfile(job_of(policy, recipe, tmp_path), tmp_path, gguf_file(tmp_path))
    [template] = read_modelfile((tmp_path / "Modelfile").read_text("utf-8"))["TEMPLATE"]
    assert "begun with '= '" in note
    assert render(template, as_ollama_has_it(messages([("user", "q")]), None)) == "q\n= "


def test_an_architecture_that_ollama_renders_itself_is_said(tmp_path, policy):
    name = gguf_file(tmp_path, "gemma4")
    [note] = write_modelfile(job_of(policy, recipe_of(), tmp_path), tmp_path, name)
    assert "gemma4 by code of their own" in note


def test_a_context_is_no_longer_than_the_models(tmp_path, policy):
    recipe = recipe_of("model.max_prompt_tokens=4000")
    write_modelfile(job_of(policy, recipe, tmp_path), tmp_path, gguf_file(tmp_path))
    assert "PARAMETER num_ctx 2048\n" in (tmp_path / "Modelfile").read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "why"), [('a """ b', "quotes"), ("a\u200db", "a joiner"), ("a\rb", "a return")]
)
def test_what_a_modelfile_cannot_hold_is_in_the_template_alone_and_said(tmp_path, policy, text, why):
    recipe = recipe_of(f"data.system={json.dumps(text)}", f"rollout.stop=[{json.dumps(text)}]")
    notes = write_modelfile(job_of(policy, recipe, tmp_path), tmp_path, gguf_file(tmp_path))
    assert [note.partition(":")[0] for note in notes] == ["no SYSTEM", f"no PARAMETER stop for {text!r}"], why
    read = read_modelfile((tmp_path / "Modelfile").read_text("utf-8"))
    assert "SYSTEM" not in read
    assert render(read["TEMPLATE"][0], as_ollama_has_it(messages([("user", "q")]), None)) == f"{text}\nq\n"


@pytest.mark.parametrize(
    "text", ["", '"', '""', "a\n", "\n\n", 'a"\n"b', "{{ x }}", "# no comment", 'a""', "x  "]
)
def test_a_value_is_read_back_as_it_was(text):
    assert read_modelfile(f"SYSTEM {held(text)}\nPARAMETER stop {held(text)}\n") == {
        "SYSTEM": [text], "PARAMETER stop": [text],
    }  # fmt: skip


@pytest.mark.parametrize("adds", [False, True])
def test_what_the_file_says_of_the_first_token_counts(tmp_path, adds):
    recipe = recipe_of()
    policy = Policy.load(recipe)
    policy.tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    policy.tokenizer.add_bos_token = True
    notes = write_modelfile(
        job_of(policy, recipe, tmp_path), tmp_path, gguf_file(tmp_path, add_bos_token=adds)
    )
    [template] = read_modelfile((tmp_path / "Modelfile").read_text("utf-8"))["TEMPLATE"]
    text = render(template, as_ollama_has_it(messages([("user", "q")]), None))
    assert notes == [] and text == ("q\n" if adds else "<|begin|>q\n")


def test_a_modelfile_goes_beside_the_first_file_that_is_asked_for(tmp_path, policy, monkeypatch):
    """Making the GGUF itself takes llama.cpp: tests/with_gguf."""

    def made(job, out, quants, *, kind, beside):
        with placed(out, kind) as partial:
            Path(partial / gguf_file(partial)).rename(partial / f"a-run-{quants[0]}.gguf")
            (partial / "export_report.json").write_text(json.dumps({"kind": kind}))
            beside(partial)
        return {"files": [], "effect": 0.0, "warnings": []}

    monkeypatch.setattr(gguf, "export_gguf", made)
    monkeypatch.setattr(gguf_report, "table", lambda report: ["the table"])
    recipe = recipe_of("export.quant=[Q4_K_M,Q8_0]", "data.prefill='= '")
    out = FORMATS["ollama"](job_of(policy, recipe, tmp_path / "a run"), tmp_path / "out")
    assert sorted(file.name for file in out.path.iterdir()) == [
        ".made_of.json", "Modelfile", "README.md", "a-run-Q4_K_M.gguf", "export_report.json",
    ]  # fmt: skip
    assert read_modelfile((out.path / "Modelfile").read_text("utf-8"))["FROM"] == ["./a-run-Q4_K_M.gguf"]
    assert json.loads((out.path / "export_report.json").read_text()) == {"kind": "ollama"}
    assert out.lines[0] == "the table" and out.lines[1:] == tuple(out.facts["notes"]) and len(out.lines) == 2


def test_a_file_that_is_no_gguf_is_no_model(tmp_path, policy):
    (tmp_path / "tiny.gguf").write_bytes(b"no")
    with pytest.raises(ConfigError, match="cannot read"):
        write_modelfile(job_of(policy, recipe_of(), tmp_path), tmp_path, "tiny.gguf")


# ------------------------------------------------------------------------------------ Go's templates


@pytest.mark.parametrize("number", range(len(GENERATED)))
def test_our_renderer_writes_what_go_writes(number):
    """Templates, what they were given, and what Go 1.19 wrote; null: an error."""
    case = GENERATED[number]
    if case["text"] is None:
        with pytest.raises(ValueError):
            render(case["template"], case["data"])
    else:
        assert render(case["template"], case["data"]) == case["text"]


@pytest.mark.parametrize(
    "template",
    ["{{ .A | len }}", "{{ printf .A }}", "{{ with .A }}{{ end }}", "{{ end }}", "{{ if .A }}", "{{ .A", "{{ len .A }}", "{{ .A .A }}"],
)  # fmt: skip
def test_what_the_renderer_does_not_know_is_an_error(template):
    with pytest.raises(ValueError):
        render(template, {"A": "a"})


@pytest.mark.parametrize("text", [SYSTEM, "\x00\x1b\x7f\u2028\u00ad\U000e0001", "\\n\"'`", "", "{{ }}"])
def test_a_string_of_go_is_the_text(text):
    assert render(f"{{{{ {quoted(text)} }}}}", {}) == text
    assert quoted(text).isprintable()
