"""`lgrpo-lite chat`: its answers are those of the policy and of its base, what is drawn is how far training moved
them, and nothing that a model writes does anything to the terminal.
"""

import io
import json
import re
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from attack.screens import controls
from attack.terminal import hostile
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from support import lgrpo
from test_screen import Terminal

from lgrpo_lite.cli.terminal.talk import Flow
from lgrpo_lite.data.template import tokens
from lgrpo_lite.engines.transformers import TransformersEngine
from lgrpo_lite.errors import DataError, OutOfMemory
from lgrpo_lite.evaluation.conversation import Conversation, Growing, opened
from lgrpo_lite.models.pretrain import byte_tokenizer
from lgrpo_lite.policy.memory import room_told
from lgrpo_lite.recipe.read import load_recipe

QUESTIONS = ["41+26+15=?", "11-6-2+5=?"]
CHATML = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
SMALL = [
    "train.steps=3", "rollout.prompts_per_step=4", "rollout.group_size=8", "optim.lr=2e-3", "data.eval=[]",
    "export.formats=[]", "safety.sync_proof_every=0", "safety.baseline_check=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert lgrpo("recipe", "tiny-math", *SMALL, "--runs", runs, "--name", "a", "--ui", "none") == 0
    return runs / "a"


@pytest.fixture(scope="module")
def policy(run):
    policy = opened(load_recipe(str(run / "config.resolved.yaml")), run / "checkpoints" / "step-000003")
    policy.model.eval()
    return policy


def conversation(run, policy, *settings: str) -> Conversation:
    recipe = load_recipe(str(run / "config.resolved.yaml"), ["model.max_new_tokens=20", *settings])
    with TransformersEngine(recipe).serving(policy) as sampler:
        return Conversation(policy, sampler, recipe, seed=0)


def answered(talk: Conversation, text: str, *, base: bool = False):
    """The question as it was read, the answer, and the text as it was shown."""
    question = talk.question(text)
    shown = []
    answer = talk.answer(question, shown.append, lambda: False, base=base)
    return question, answer, "".join(shown)


def chat(monkeypatch, capsys, said: str | bytes, *argv) -> tuple[int, str, str]:
    """The command with that on stdin, which is no terminal: exit code, stdout, stderr."""
    data = said if isinstance(said, bytes) else said.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    capsys.readouterr()
    code = lgrpo("chat", *argv)
    out, err = capsys.readouterr()
    return code, out, err


def results(out: str) -> list[dict]:
    return [json.loads(line)["result"] for line in out.splitlines()]


# ------------------------------------------------------------------------------------------- what is answered


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(
    "settings", [[], ['rollout.stop=["="]'], ['rollout.stop=["="]', "rollout.stop_shown=false"]]
)
def test_greedy_answers_are_those_of_the_sampler_token_for_token(run, policy, base, settings):
    talk = conversation(run, policy, "eval.temperature=0", *settings)
    sampler = talk.sampler
    for text in QUESTIONS:
        question, answer, shown = answered(talk, text, base=base)
        assert question.prompt.token_ids == tokens(text, talk.data, policy.tokenizer)
        with sampler.reference() if base else nullcontext():
            [[expected]] = sampler.generate([question.prompt], 1, talk.sampling)
        assert (answer, shown) == (expected, expected.text)


def test_policy_and_base_differ_and_the_policy_is_itself_again_afterwards(run, policy):
    talk = conversation(run, policy)
    answers = []
    for base in (False, True, False):
        answers.append([answered(talk, text, base=base)[1].logprobs for text in QUESTIONS])
    assert answers[0] == answers[2] != answers[1]


def test_an_answer_follows_from_the_seed_and_its_number(run, policy):
    first, again = (conversation(run, policy, "eval.temperature=2") for _ in range(2))
    said = []
    for talk in (first, again):
        kept = []
        for _ in range(3):
            question, answer, _ = answered(talk, "8*9")
            talk.keep(question, answer)
            talk.reset()
            kept.append(answer.token_ids)
        said.append(kept)
    assert said[0] == said[1] and len(set(said[0])) == 3


def test_an_answer_that_is_ended_keeps_what_was_said(run, policy):
    talk = conversation(run, policy, "eval.temperature=0")
    question, whole, _ = answered(talk, "8*9")
    shown = []
    part = talk.answer(question, shown.append, lambda: len(shown) > 4)
    assert part.token_ids == whole.token_ids[:4] and part.finish_reason == "length"
    assert "".join(shown) == part.text and whole.text.startswith(part.text)
    talk.keep(question, part)
    assert talk.turns == (("user", "8*9"), ("assistant", part.text))


# ------------------------------------------------------------------------------------------- what is read


def test_the_template_renders_system_text_examples_and_all_turns(run, policy, tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    shot = "data.few_shot=[{question: 1+1, answer: '2'}]"
    talk = conversation(
        run, policy, f"data.template={file}", shot, 'data.prefill="It is "', "model.max_new_tokens=4"
    )
    question, answer, shown = answered(talk, "8*9")
    before = "<|user|>1+1<|end|>\n<|assistant|>2<|end|>\n<|user|>8*9<|end|>\n"
    assert policy.tokenizer.decode(question.prompt.token_ids) == f"{before}<|assistant|>It is "
    assert shown == answer.text and shown.startswith("It is ")
    talk.keep(question, answer)
    talk.instruct("Be short.")
    read = policy.tokenizer.decode(talk.question("9-1").prompt.token_ids)
    after = f"<|assistant|>{answer.text}<|end|>\n<|user|>9-1<|end|>\n<|assistant|>It is "
    assert read == f"<|system|>Be short.<|end|>\n{before}{after}"


def test_a_template_that_shows_no_system_text_or_loses_a_turn_is_told_and_changes_nothing(
    run, policy, tmp_path
):
    file = tmp_path / "last.jinja"
    file.write_text("{{ messages[-1].content }}>")
    talk = conversation(run, policy, f"data.template={file}", "model.max_new_tokens=4")
    with pytest.raises(DataError, match="system message"):
        talk.instruct("Be short.")
    assert talk.system is None
    question, answer, _ = answered(talk, "8*9")
    talk.keep(question, answer)
    with pytest.raises(DataError, match="what the user says"):
        talk.question("9-1")
    talk.reset()
    assert talk.question("9-1").prompt.token_ids == tuple(policy.tokenizer("9-1>")["input_ids"])


def test_the_oldest_questions_are_left_out_where_the_window_ends(run, policy):
    talk = conversation(run, policy, "eval.temperature=0")
    assert talk.window == 2048
    talk.window = 100
    for number in range(8):
        question, answer, _ = answered(talk, f"{number}+5")
        assert len(question.prompt.token_ids) + question.sampling.max_new_tokens <= 100
        talk.keep(question, answer)
    assert question.forgotten and question.turns[-1] == ("user", "7+5") and question.turns[0][0] == "user"
    alone = talk.question("7" * 80)
    assert len(alone.turns) == 1 and alone.sampling.max_new_tokens == 100 - 81
    with pytest.raises(DataError, match=r"takes 101 tokens.*reads 100"):
        talk.question("7" * 100)


# ------------------------------------------------------------------------------------------- beside the base


@torch.no_grad()
def test_how_far_a_token_moved_is_the_difference_of_both_log_probs(run, policy):
    talk = conversation(run, policy)
    question, answer, _ = answered(talk, QUESTIONS[0])
    moved = talk.moved(question, answer)
    prompt = question.prompt.token_ids
    ids = torch.tensor([[*prompt, *answer.token_ids]])
    said = ids[0, len(prompt) :, None]

    def logp():
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
        return logits.log_softmax(-1).gather(-1, said)[:, 0]

    tuned = logp()
    with policy.reference():
        base = logp()
    assert moved == pytest.approx((tuned - base).tolist(), abs=1e-4)
    assert max(map(abs, moved)) > 0.05, "a policy that did not move shows nothing"
    assert tuned.tolist() == pytest.approx(list(answer.logprobs), abs=1e-4)


def test_beside_the_base_both_are_shown_and_the_marks_are_those_of_the_differences(run, monkeypatch, capsys):
    asked = f"{QUESTIONS[0]}\n"
    more = [run, "--beside", "base"]
    code, out, _ = chat(monkeypatch, capsys, asked, *more, "--json")
    [result] = results(out)
    assert code == 0 and "".join(result["pieces"]).startswith(result["text"])
    assert len(result["moved"]) == len(result["pieces"]) == result["tokens"]
    code, out, err = chat(monkeypatch, capsys, asked, *more)
    head, base_text, rest = "base\n", result["base"]["text"], out.partition("policy\n")[2]
    assert code == 0 and out.startswith(f"{head}{base_text}\npolicy\n")
    # tiny-math's lines are short: of each one the strip of marks, where it has any
    shown = rest.splitlines()
    marks = []
    for number, line in enumerate("".join(result["pieces"]).split("\n")):
        assert shown.pop(0) == line, number
        strip = shown.pop(0) if shown and not set(shown[0]) - set(" ▁▃▅▇·░▒▓") and shown[0] else ""
        marks += [*strip.ljust(len(line)), "\n"][: len(line) + 1]
    at = 0
    for piece, value in zip(result["pieces"], result["moved"], strict=True):
        strength = min(3, int(4 * abs(value) / 2.0))
        mark = " " if abs(value) < 0.05 else ("▁▃▅▇" if value > 0 else "·░▒▓")[strength]
        for character in piece:
            assert marks[at] == ("\n" if character == "\n" else mark), (piece, value)
            at += 1
    assert f"{sum(result['moved']):+.2f} nats over {result['tokens']} tokens" in err


# ------------------------------------------------------------------------------------------- commands, a pipe


def test_commands_and_questions_through_a_pipe(run, monkeypatch, capsys):
    said = "8*9\r\n\n   \n9-1\n/reset\n8*9\n/system Be short.\n/system\n8*9\n/system -\n/help\n/quit\n1+1\n"
    code, out, err = chat(monkeypatch, capsys, said, run, "--json", "--temperature", "0")
    first, second, again, instructed = results(out)
    assert code == 0 and [r["question"] for r in (first, second, again, instructed)] == [
        "8*9",
        "9-1",
        "8*9",
        "8*9",
    ]
    read = len("8*9\n")
    assert first["read_tokens"] == again["read_tokens"] == read and first["text"] == again["text"]
    assert second["read_tokens"] == len(f"8*9\n{first['text']}\n9-1\n")
    assert instructed["read_tokens"] == len(f"Be short.\n8*9\n{again['text']}\n8*9\n")
    assert err.count("system text: Be short.") == 2 and "system text: none" in err and "/quit " in err


def test_in_a_pipe_there_is_the_answer_alone(run, monkeypatch, capsys):
    code, out, err = chat(monkeypatch, capsys, "8*9", run, "--temperature", "0")
    _, told, _ = chat(monkeypatch, capsys, "8*9", run, "--temperature", "0", "--json")
    assert code == 0 and out == results(told)[0]["text"] + "\n" and "you:" not in out + err


def test_what_is_no_utf8_is_replaced(run, monkeypatch, capsys):
    code, out, _ = chat(monkeypatch, capsys, b"8\xff9\n", run, "--json", "--max-new-tokens", "2")
    assert code == 0 and results(out)[0]["question"] == "8\ufffd9"


FAULTS = [
    ("", ["no-such-run"], 2, "no run 'no-such-run'"),
    ("", ["RUN", "--checkpoint", "77"], 5, "no usable checkpoint '77'"),
    ("", ["RUN", "--temperature", "nan"], 2, "finite"),
    ("", ["RUN", "--temperature", "-1"], 2, "eval.temperature"),
    ("", ["RUN", "--max-new-tokens", "0"], 2, "model.max_new_tokens"),
    ("", ["RUN", "--seed", "-1"], 2, "no seed"),
    ("/rest\n8*9\n", ["RUN"], 2, "no command '/rest', did you mean '/reset'?; it was not sent"),
    ("7" * 3000, ["RUN"], 5, "the question takes 3001 tokens, and the model reads 2048"),
]


@pytest.mark.parametrize(("said", "words", "code", "what"), FAULTS)
def test_what_cannot_be_is_told_in_three_lines(run, monkeypatch, capsys, said, words, code, what):
    found, out, err = chat(
        monkeypatch, capsys, said, *[str(run) if word == "RUN" else word for word in words]
    )
    assert (found, out) == (code, "") and what in err
    assert [line[:6] for line in err.splitlines()][-3:] == ["error:", "  at  ", "  fix "]


CANNOT = [
    ("model.lora=null", ["--beside", "base"], 2, "no base to switch back to"),
    ("data.template=chat", [], 5, "the model has no chat template"),
    ("model.id=/no/such/folder", [], 2, "/no/such/folder"),
    ("model.lora.rank=4", [], 5, "the checkpoint does not fit this run"),
]


@pytest.mark.parametrize(("setting", "words", "code", "what"), CANNOT)
def test_a_run_that_cannot_be_talked_to(run, tmp_path, monkeypatch, capsys, setting, words, code, what):
    recipe = load_recipe(str(run / "config.resolved.yaml"), [setting])
    (tmp_path / "config.resolved.yaml").write_text(json.dumps(recipe.model_dump(mode="json", by_alias=True)))
    (tmp_path / "STATUS.json").write_text("{}")
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    found, out, err = chat(monkeypatch, capsys, "8*9", tmp_path, *words)
    assert (found, out) == (code, "") and what in err and err.count("\n") == 3


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_memory_that_ends_is_of_the_chat(full):
    with (
        pytest.raises(OutOfMemory, match="the answer does not fit"),
        room_told("the answer", "chat", "/reset"),
    ):
        raise full
    with pytest.raises(RuntimeError, match="another"), room_told("the answer", "chat", "/reset"):
        raise RuntimeError("another")


# ------------------------------------------------------------------------------------------- text as it grows


@given(text=st.text(max_size=40), stop=st.text("ab=λ", min_size=1, max_size=3))
def test_no_half_character_and_no_text_that_is_hidden_is_given_out(text, stop):
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    growing = Growing(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), ">", [])
    given_out = [growing.text, *map(growing.add, ids)]
    assert "".join(given_out) == ">" + text.rstrip("\ufffd") == growing.text
    hiding = Growing(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), "", [stop])
    seen = "".join(map(hiding.add, ids))
    before, found, _ = text.partition(stop)
    assert (
        seen == before.rstrip("\ufffd")
        if found
        else (text.startswith(seen) and len(text) - len(seen) < len(stop) + 9)
    )


class Screen:
    """A terminal of what a flow may write: it wraps at its edge as terminals do."""

    def __init__(self, width: int):
        self.width, self.rows, self.row, self.column = width, [""], 0, 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\d*[ADJK]|.|\n", text):
            self.one(part)

    def one(self, part: str) -> None:
        if part == "\n":
            self.row += 1
            self.column = 0
            self.rows += [""] * (self.row + 1 - len(self.rows))
        elif part == "\r":
            self.column = 0
        elif part[0] == "\x1b":
            count, kind = int(part[2:-1] or 1), part[-1]
            if kind == "A":
                self.row -= count
            elif kind == "D":
                self.column -= count
            else:
                self.rows[self.row] = self.rows[self.row][: self.column]
            if kind == "J":
                self.rows = self.rows[: self.row + 1]
            assert self.row >= 0 and self.column >= 0
        else:
            assert self.column < self.width - 1, "the last column stays free"
            self.rows[self.row] = self.rows[self.row][: self.column] + part
            self.column += 1


class Out(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def narrow() -> Iterator[tuple[Flow, Out]]:
    """A flow on a terminal of 12 columns and 24 rows."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "12"), ("LINES", "24")):
            patch.setenv(name, value)
        out = Out()
        yield Flow(out), out


@given(parts=st.lists(st.text("abc  \n", max_size=9), max_size=12))
def test_a_flow_moves_whole_words_to_the_next_line_however_they_come(parts):
    text = "".join(parts)
    screens = []
    for pieces in (parts, [text], list(text)):
        screen = Screen(12)
        with narrow() as (flow, out):
            for piece in pieces:
                flow.write(piece)
            written = out.getvalue()
            screen.write(written)
            screens.append([row.rstrip() for row in screen.rows])
            short = len(screen.rows) < 24
            assert flow.take_back() == short
            screen.write(out.getvalue()[len(written) :])
            assert screen.rows == [""] or not short
    assert screens[0] == screens[1] == screens[2]
    assert "".join("".join(screens[0]).split()) == "".join(text.split())
    shown = {word for row in screens[0] for word in row.split()}
    assert {word for word in text.split() if len(word) <= 11} <= shown


@given(text=st.text() | st.sampled_from(hostile(40, seed=3)), cut=st.integers(0, 20))
def test_a_flow_of_any_text_moves_the_cursor_by_its_own_sequences_only(text, cut):
    with narrow() as (flow, out):
        flow.write(text[:cut])
        flow.write(text[cut:])
        flow.end()
        written = out.getvalue()
    own = {f"\x1b[{n}D" for n in range(12)} | {"\x1b[K"}
    assert controls(written) <= own
    written.encode()


# ------------------------------------------------------------------------------------------- a terminal


LINES = """
from lgrpo_lite.cli.terminal.talk import lines
for line in lines("you: "):
    print(f"[{line}]")
"""
KEYS = [  # pressed at a prompt, and what is seen then; the last ends the lines
    [(b"\x03", b"Ctrl-C again"), (b"one\r", b"[one]"), (b"\x03", b"Ctrl-C again"), (b"\x03", b"")],
    [(b"one\r", b"[one]"), (b"\x1b[A\r", b"[one]"), (b"\x04", b"")],
]


@pytest.mark.parametrize("keys", KEYS)
def test_lines_are_asked_for_and_two_ctrl_c_or_a_ctrl_d_end_them(keys):
    terminal = Terminal([sys.executable, "-c", LINES], size=(80, 24))
    terminal.read(lambda seen: seen.endswith(b"you: "))
    for key, wanted in keys:
        time.sleep(0.5)  # a Ctrl-C between the prompt and the first look at the keys waits for the next key
        terminal.press(key)
        seen = terminal.read(lambda seen: seen.endswith(b"you: "))
        assert wanted in seen
    assert terminal.process.wait() == 0 and b"Traceback" not in terminal.seen


@pytest.mark.slow
def test_on_a_terminal_answers_stream_ctrl_c_ends_one_and_random_bytes_do_nothing(run):
    """At a temperature of 100 every byte is as likely: a real model writes control sequences."""
    command = [
        sys.executable,
        "-m",
        "lgrpo_lite",
        "chat",
        str(run),
        "--temperature",
        "100",
        "--max-new-tokens",
        "1500",
    ]
    terminal = Terminal([*command, "--beside", "base"], size=(80, 24))
    terminal.read(lambda seen: seen.endswith(b"you: "))
    for number in range(8):
        terminal.press(f"{number}+{number}\r".encode())
        seen = terminal.read(lambda seen: b"policy" in seen and len(seen.partition(b"policy")[2]) > 40)
        terminal.press(b"\x03")
        seen += terminal.read(lambda seen: seen.endswith(b"you: "))
        if b"ended by Ctrl-C" in seen and b"nats over" in seen.partition(b"ended by Ctrl-C")[2]:
            break
    else:
        raise AssertionError(terminal.seen[-3000:])
    terminal.press(b"/quit\r")
    terminal.read()
    assert terminal.process.wait() == 0 and termios.tcgetattr(terminal.other) == terminal.before
    text = terminal.seen.decode()
    own = re.compile(r"\x1b\[(?:[\d;]*m|\d*[ADJK]|\?2004[hl]|\?25[hl])|\r|\x1b\[\?1034h|\x07")
    assert {c for c in controls(text) if not own.fullmatch(c)} == set()
    for line in text.split("\n"):
        assert cell_len(seen_of(line)) <= 80, line


def seen_of(line: str) -> str:
    """What stands in a line once the words that were moved to the next one are gone from it."""
    seen = ""
    for part in re.findall(r"\x1b\[[\d;?]*[a-zA-Z]|\r|[^\x1b\r]+", line):
        if part == "\r":
            seen = ""
        elif moved := re.fullmatch(r"\x1b\[(\d+)D", part):
            end = cell_len(seen) - int(moved[1])
            while cell_len(seen) > end:
                seen = seen[:-1]
        elif part[0] != "\x1b":
            seen += part
    return seen
