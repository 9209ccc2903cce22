"""The whole view: what it looks like in five states and three sizes, and that
nothing in a run folder can break it.

The pictures are text files under tests/snapshots, without colour. After a change that is meant:

    LGRPO_SNAPSHOTS=write python -m pytest tests/test_view.py -k snapshot     # then read them: git diff tests/snapshots
"""

import dataclasses
import io
import math
import os
import re
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lgrpo_lite.monitor.health import Health
from lgrpo_lite.monitor.tables import result_rows, result_table, title
from lgrpo_lite.monitor.tail import RunView
from lgrpo_lite.monitor.theme import wrapped
from lgrpo_lite.monitor.view import PANELS, live
from lgrpo_lite.types import StepRecord

SNAPSHOTS = Path(__file__).parent / "snapshots"
SIZES = [(80, 24), (120, 40), (200, 60)]
NOW = 1_795_320_000.0
RECIPE = yaml.safe_load("""
recipe: {name: tiny-math}
model: {id: "builtin:tiny-math", weights: fp32, max_new_tokens: 48}
rollout: {engine: transformers, prompts_per_step: 16, group_size: 8}
algorithm:
  use: length_preference
  reduce: group_token_mean
  length_preference: {lambda_init: 0.0, clamp: [-5.0, 5.0]}
  trace: null
  advantage_floor: null
optim: {updates_per_batch: 1}
train: {steps: 200, eval_every: 20}
eval: {k: 4}
""")
RESUME = "lgrpo-lite recipe tiny-math train.steps=200 --name night --resume auto"


def record(step: int, solved: float = 0.5) -> StepRecord:
    """A step whose figures follow from its number alone."""
    wave = math.sin(step * 1.7)
    mixed = round(16 * min(1.0, 4 * solved * (1 - solved)))
    right = round((16 - mixed) * solved)
    return StepRecord(
        step=step,
        policy_version=step,
        time=NOW - 2.0 * (200 - step),
        reward=solved,
        reward_std=math.sqrt(solved * (1 - solved)),
        reward_parts={"numeric": solved, "format": min(1.0, solved + 0.1)},
        solved=solved,
        reward_p50=2e-5,
        reward_p95=0.0014,
        groups=16,
        groups_mixed=mixed,
        groups_right=right,
        groups_wrong=16 - mixed - right,
        draws=1,
        length=20 + 0.08 * step + wave,
        length_right=26 + 0.05 * step,
        length_wrong=12.5 + wave,
        length_p95=44,
        length_ended=19.5,
        truncated=0.03,
        loss=-0.4455,
        grad_norm=0.426 + 0.1 * wave,
        lr=1e-3 * (1 - step / 250),
        clip_low=0.001,
        clip_high=0.004,
        ratio_max=1.0,
        entropy=0.31 - 0.001 * step + 0.01 * wave,
        disagreement=4.1e-7,
        disagreement_max=1.1e-5,
        mismatch_kl=7.5e-10,
        token_mult_error=4.1e-7,
        capped=0.0,
        length_lambda=0.9 * (1 - math.exp(-step / 60)),
        length_lambda_grad=-0.0919,
        weight_short=0.93,
        weight_median=0.998,
        weight_long=1.11,
        weight_effective=0.96,
        length_lambda_grpo=-6.02,
        credit_first=0.33,
        credit_middle=0.33,
        credit_last=0.34,
        rollout_tokens=2570,
        rollout_answers=128,
        trained_tokens=2570,
        seconds={"sync": 0.01, "rollout": 0.72, "reward": 0.02, "score": 0.01, "update": 0.33},
        memory={"weights": 2_400_000, "adapter": 400_000, "host": 812_000_000, "host_free": 13_100_000_000},
    )


def evaluation(step: int, accuracy: float) -> dict:
    spread = {"accuracy": [accuracy - 0.028, accuracy + 0.027]}
    return {
        "step": step,
        "problems": 256,
        "k": 4,
        "temperature": 1.0,
        "accuracy": accuracy,
        "stderr": 0.014,
        "greedy": accuracy - 0.05,
        "pass_at_k": min(1.0, accuracy + 0.2),
        "maj": accuracy + 0.02,
        "length": 22.0,
        "truncated": 0.0,
        "missing": 0,
        "intervals": spread,
        "seconds": 1.9,
        "time": NOW - 2.0 * (200 - step),
    }


def answer(text: str, outcome: str, credit: float, *, trace: bool = False, cut: bool = False) -> dict:
    pieces = list(text)
    growing = [credit * (0.15 + 0.85 * (i + 1) / len(pieces)) for i in range(len(pieces))]
    return {
        "prompt_id": "p",
        "prompt": "48-41+19+10-16=?",
        "reference": "20",
        "completion": text,
        "reward": float(outcome == "ok"),
        "parts": {"numeric": float(outcome == "ok")},
        "outcome": outcome,
        "tokens": len(pieces) + 1,
        "finish_reason": "length" if cut else "stop",
        "policy_version": 1,
        "given": 0,
        "off": False,
        "pieces": pieces,
        "credit": growing if trace else [credit] * len(pieces),
    }


SAMPLES = [
    answer("48-41=7\n7+19=26\n26+10=36\n36-16=20\n#### 20", "ok", 0.94),
    answer("#### 36", "wrong", -0.71),
    answer("48-41=7\n7+19=26\n26+10=36\n36-16=20\n" + "20-0=20\n" * 12, "unparsable", -0.66, cut=True),
    answer("48-41=7\n7+19=26\n#### 26", "wrong", -0.70),
]
EVENTS = [
    {"time": NOW - 420, "attempt": 1, "kind": "note", "message": "64 rows of the training data are held out"},
    {
        "time": NOW - 419,
        "attempt": 1,
        "kind": "chosen",
        "key": "memory.layout",
        "value": "packed",
        "why": "answers differ in length",
    },
    {"time": NOW - 415, "attempt": 1, "kind": "baseline", "solved": 0.51, "answers": 128},
    {"time": NOW - 410, "attempt": 1, "kind": "saved", "step": 0, "seconds": 0.1},
]


def proof(step: int) -> dict:
    return {
        "kind": "proof",
        "time": NOW,
        "attempt": 1,
        "step": step,
        "version": step,
        "checks": [{"name": "stamp", "passed": True}],
    }


def starting() -> RunView:
    status = {
        "state": "loading",
        "step": 0,
        "progress": {"what": "loading weights", "done": 3, "of": 8, "left": 12.0},
    }
    return RunView(Path("night"), RECIPE, status, events=EVENTS[:3], now=NOW, health=Health("live"))


def learning() -> RunView:
    records = [
        record(i, 0.45 + 0.5 * (1 - math.exp(-i / 50)) * (1 + 0.02 * math.sin(i))) for i in range(1, 121)
    ]
    evals = [evaluation(i, 0.46 + 0.45 * (1 - math.exp(-i / 50))) for i in range(0, 121, 20)]
    events = [
        *EVENTS,
        proof(101),
        {"kind": "saved", "time": NOW - 5, "attempt": 1, "step": 120, "seconds": 0.2},
    ]
    status = {"state": "training", "step": 120, "phase": "rollout", "alarms": []}
    return RunView(
        Path("night"),
        RECIPE,
        status,
        records,
        [],
        evals,
        events,
        SAMPLES,
        120,
        now=NOW,
        health=Health("live"),
    )


def no_signal() -> RunView:
    """GRPO-λ on problems that are too hard, with faults of every kind."""
    trace = {"lambda": 0.99, "gamma": 1.0, "style": "both", "mode": "trace"}
    parts = RECIPE["algorithm"] | {
        "use": "trace",
        "length_preference": None,
        "trace": trace,
        "advantage_floor": -0.1,
        "reduce": "sequence_mean",
    }
    none = dict.fromkeys(
        (
            "length_lambda",
            "length_lambda_grad",
            "weight_short",
            "weight_median",
            "weight_long",
            "weight_effective",
            "length_lambda_grpo",
        )
    )
    changed = {
        "groups_wrong": 15,
        "groups_mixed": 1,
        "groups_right": 0,
        "missing": 3,
        "reward_timeouts": 2,
        "reward_crashes": 1,
        "draws": 3,
        "kl": 0.0031,
        "truncated": 0.71,
        "credit_floored": 0.4,
        "credit_first": 0.12,
        "credit_middle": 0.26,
        "credit_last": 0.62,
    }
    records = [
        dataclasses.replace(record(i, 0.01 + 0.005 * math.sin(i)), **none, **changed) for i in range(1, 38)
    ]
    samples = [
        answer("48-41=7\n7+19=26\n26+10=36\n36-16=20\n#### 20", "ok", 0.94, trace=True),
        answer("20-0=20\n" * 30, "wrong", -0.1, trace=True, cut=True),
        answer("#### 36", "wrong", -0.1, trace=True),
    ]
    alarms = [
        {
            "name": "no_signal",
            "count": 12,
            "first": 9,
            "last": 37,
            "what": "9 of 10 groups teach nothing",
            "fix": "easier data, or a larger rollout.group_size",
        },
        {
            "name": "truncation",
            "count": 30,
            "first": 8,
            "last": 37,
            "what": "71 % of the answers are cut off",
            "fix": "raise model.max_new_tokens",
        },
    ]
    warning = {
        "kind": "warning",
        "time": NOW,
        "attempt": 1,
        "message": "out of memory (CUDA): memory.micro_tokens is 8192 from here on, and the same step again",
    }
    status = {"state": "training", "step": 37, "phase": "update", "alarms": alarms}
    return RunView(
        Path("night"),
        RECIPE | {"algorithm": parts},
        status,
        records,
        [],
        [evaluation(0, 0.012)],
        [*EVENTS, proof(21), warning],
        samples,
        37,
        now=NOW,
        health=Health("live"),
    )


def crashed() -> RunView:
    run = learning()
    run.health = Health(
        "killed", "the process is gone without a word, 3 s after its last sign of life", RESUME
    )
    return run


def finished() -> RunView:
    run = learning()
    run.records += [record(i, 0.93) for i in range(121, 201)]
    run.evals += [evaluation(i, 0.93) for i in range(140, 201, 20)]
    run.status = {"state": "done", "step": 200, "exit_code": 0, "alarms": []}
    run.sampled_at, run.health = 200, Health("done")
    return run


STATES = {f.__name__: f for f in (starting, learning, no_signal, crashed, finished)}


def rendered(run: RunView, width: int, height: int, **how) -> str:
    how = {"color_system": None, "legacy_windows": False} | how
    console = Console(width=max(1, width), height=height, file=io.StringIO(), **how)
    console.print(live(run, width, height))
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------- what it looks like


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", STATES)
def test_snapshot(state, size):
    text = "\n".join(line.rstrip() for line in rendered(STATES[state](), *size).splitlines()) + "\n"
    path = SNAPSHOTS / f"{state}-{size[0]}x{size[1]}.txt"
    if os.environ.get("LGRPO_SNAPSHOTS") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("state", STATES)
def test_fills_the_terminal_and_no_more(state, size):
    lines = rendered(STATES[state](), *size).splitlines()
    assert len(lines) == size[1] and {cell_len(line) for line in lines} == {size[0]}


@pytest.mark.parametrize("state", ["starting", "no_signal", "crashed"])
@pytest.mark.parametrize("width", [1, 20, 59, 60, 75, 76, 108, 179, 180, 300])
@pytest.mark.parametrize("height", [1, 5, 11, 12, 14, 23, 36, 80])
def test_any_size_fits(state, width, height):
    lines = rendered(STATES[state](), width, height).splitlines()
    assert len(lines) <= height and max(map(cell_len, lines)) <= width
    if width >= 60 and height >= 12:
        assert len(lines) == height, "a frame fills the screen, on resize too"


@pytest.mark.parametrize("size", [*SIZES, (60, 12), (40, 10), (20, 8)])
def test_a_killed_run_names_the_command_that_goes_on(size):
    text = " ".join(rendered(crashed(), *size).replace("│", " ").split())
    assert "killed" in text and "--name night --resume auto" in text


def test_twelve_panels_from_100_columns_on():
    titles = (
        "lgrpo-lite",
        "─ reward ",
        "group signal",
        "token preference",
        "trace credit",
        "─ length ",
        "policy change",
        "rollout agreement",
        "optimiser",
        "─ speed ",
        "memory",
        "samples",
    )
    for size in [(80, 44), (120, 40), (200, 60)]:
        text = rendered(learning(), *size)
        assert [title for title in titles if title not in text] == []


def test_the_loss_is_no_headline():
    for size in SIZES:
        lines = [
            line for line in rendered(learning(), *size).splitlines() if "loss" in line.replace("∂loss", "")
        ]
        assert all("no measure of learning" in line for line in lines)


# ------------------------------------------------------------------------------------------- tokens


def test_without_colour_marks_carry_the_credit():
    text = rendered(no_signal(), 120, 40)
    rising = next(line for line in text.splitlines() if "▁▁▁▁▃▃" in line)
    assert rising.count("▇") > rising.count("▁") and "····" in text and "▲ +0.94" in text and "▼ -0.1" in text


def test_credit_has_colour_too():
    coloured = rendered(learning(), 120, 40, color_system="truecolor", force_terminal=True)
    assert "48;2;34;139;73" in coloured, "the strongest raised token on the strongest green"
    assert "48;2;171;47;51" in coloured or "48;2;127;36;39" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "\x1b" not in plain and all(c == "\n" or (c.isprintable()) for c in plain)
    assert plain == rendered(learning(), 120, 40), "colour adds nothing but colour"


def test_a_long_completion_is_cut_and_counted():
    run = learning()
    run.samples = [answer("word " * 4096, "ok", 0.5)]
    text = rendered(run, 120, 40)
    found = re.search(r"… \(\+([\d,]+) tokens\)", text)
    assert found and 19000 < int(found[1].replace(",", "")) < 20480
    del run.samples[0]["pieces"], run.samples[0]["credit"]
    assert re.search(r"… \(\+\d\d,\d+ characters\)", rendered(run, 120, 40))


HOSTILE = [
    "\x1b[2J\x1b[31mred\x07",
    "\u202eevil\u202c",
    "漢字かな交じり文" * 40,
    "שלום עולם " * 40,
    "مرحبا " * 40,
    "a" + "\u0301" * 3000,
    "👨‍👩‍👧‍👦🇩🇪❤️👍🏽" * 60,
    "\t\r\n\v\f" * 9,
    "\ud800",
    "\u200b" * 500,
    "[bold]markup[/bold] [/]",
    "\\" * 200,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("size", [*SIZES, (60, 12), (20, 5), (7, 3)])
def test_no_text_breaks_the_frame(text, size):
    run = learning()
    run.samples = [
        answer(text, "ok", 1.0, trace=True),
        answer(text, "wrong", -1.0),
        {"completion": text, "prompt": text, "reference": text},
    ]
    run.recipe = RECIPE | {"recipe": {"name": text}, "model": {"id": text, "weights": text}}
    run.status = {"state": text, "phase": text, "progress": {"what": text, "done": 1, "of": 2, "left": 3.0}}
    run.events = [{"kind": "warning", "message": text}, {"kind": "note", "message": text}]
    run.records[-1] = dataclasses.replace(run.records[-1], reward_parts={text: 0.5}, skipped=text)
    run.health = Health("killed", text, text)
    lines = rendered(run, *size).encode("utf-8", "replace").decode().splitlines()
    assert len(lines) <= size[1] and max(map(cell_len, lines)) <= size[0]
    assert all(c.isprintable() for line in lines for c in line) and not any(
        "cannot be drawn" in line for line in lines
    )
    if size[0] >= 60:
        assert all(cell_len(line) == size[0] and line[-1] in "│╮┤╯" for line in lines)


# ------------------------------------------------------------------------------------------- foreign files

NUMBERS = st.one_of(st.integers(-(10**400), 10**400), st.floats(), st.integers(-3, 300), st.booleans())
JUNK = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(max_size=20), st.sampled_from(HOSTILE)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(string.ascii_lowercase, max_size=8), inner, max_size=4),
    ),
    max_leaves=8,
)


def some(*keys: str):
    """A dict with any of those keys, each with anything."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, JUNK))


RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "recipe": st.one_of(JUNK, some("name")),
        "model": st.one_of(JUNK, some("id", "weights", "max_new_tokens")),
        "rollout": st.one_of(JUNK, some("engine", "group_size")),
        "train": st.one_of(JUNK, some("steps", "eval_every")),
        "log": some("completions_per_step"),
        "optim": some("updates_per_batch"),
        "algorithm": st.one_of(
            JUNK,
            some("use", "reduce", "trace", "length_preference", "advantage_floor", "probe_values"),
            st.fixed_dictionaries(
                {"length_preference": some("clamp"), "trace": some("gamma", "lambda", "style", "mode")}
            ),
        ),
    },
)
STATUSES = some("state", "phase", "progress", "stopping", "alarms", "step", "resume")
PROGRESS = st.fixed_dictionaries(
    {
        "progress": some("what", "done", "of", "left"),
        "alarms": st.lists(some("name", "count", "first", "last", "what", "fix"), max_size=3),
    }
)
EVALS = st.lists(
    st.one_of(
        some(
            "step",
            "k",
            "accuracy",
            "intervals",
            "seconds",
            "pass_at_k",
            "maj",
            "problems",
            "temperature",
            "stderr",
        ),
        st.fixed_dictionaries({"accuracy": st.floats(), "intervals": some("accuracy")}),
    ),
    max_size=3,
)
EVENT = st.one_of(
    some("kind", "step", "message"),
    st.builds(
        lambda kind, rest: rest | {"kind": kind},
        st.sampled_from(
            ["proof", "saved", "note", "warning", "chosen", "plan", "baseline", "alarm", "resumed", "failed"]
        ),
        some(
            "step",
            "checks",
            "seconds",
            "message",
            "lines",
            "solved",
            "answers",
            "key",
            "value",
            "why",
            "time",
            "attempt",
        ),
    ),
)
SAMPLE = some(
    "prompt", "reference", "completion", "reward", "outcome", "tokens", "finish_reason", "pieces", "credit"
)
PIECES = st.builds(
    lambda rest, p, c: rest | {"pieces": p, "credit": c},
    SAMPLE,
    st.lists(st.text(max_size=4), max_size=30),
    st.lists(NUMBERS, max_size=40),
)
FIELDS = dataclasses.fields(StepRecord)
FLOATS = [f.name for f in FIELDS if str(f.type) == "float | None"]
COUNTS = [f.name for f in FIELDS if f.type in (int, "int")]
RECORD = st.builds(
    StepRecord,
    **{name: st.one_of(st.none(), st.floats(), st.integers(-(10**320), 10**320)) for name in FLOATS},
    **{name: st.integers(-5, 10**320) for name in COUNTS},
    skipped=st.one_of(st.none(), st.sampled_from(HOSTILE)),
    **{
        name: st.dictionaries(
            st.sampled_from(["rollout", "update", "host", "host_free", "free", "weights", "x\x1b"]),
            st.one_of(st.floats(), st.integers(0, 10**320)),
            max_size=4,
        )
        for name in ("reward_parts", "seconds", "memory")
    },
)
HEALTHS = st.builds(
    Health,
    st.sampled_from(["starting", "live", "stuck", "silent", "killed", "done", "stopped", "failed", "?"]),
    st.sampled_from(HOSTILE),
    st.sampled_from(["", *HOSTILE]),
)


@settings(max_examples=100, deadline=None)
@given(
    recipe=RECIPES,
    status=st.one_of(STATUSES, PROGRESS),
    records=st.lists(RECORD, max_size=3),
    evals=EVALS,
    events=st.lists(EVENT, max_size=4),
    samples=st.lists(st.one_of(SAMPLE, PIECES), max_size=4),
    health=HEALTHS,
    size=st.sampled_from([*SIZES, (80, 44), (60, 12), (20, 5), (1, 1)]),
)
def test_no_run_folder_breaks_it(recipe, status, records, evals, events, samples, health, size):
    run = RunView(
        Path("x"),
        recipe,
        status,
        records,
        records[:1],
        evals,
        events,
        samples,
        3,
        ["evals.jsonl"],
        NOW,
        health,
    )
    lines = rendered(run, *size).encode("utf-8", "replace").decode().splitlines()
    assert len(lines) <= size[1] and max(map(cell_len, lines), default=0) <= size[0]
    assert not [line for line in lines if "cannot be drawn" in line], "\n".join(lines)


def test_a_panel_that_fails_costs_no_other(monkeypatch):
    monkeypatch.setitem(PANELS, "length", lambda *_: 1 / 0)
    text = rendered(learning(), 120, 40)
    assert "! cannot be drawn: ZeroDivision" in text and "0.910 ± 0.29" in text


# ------------------------------------------------------------------------------------------- tables


def test_before_and_after_of_foreign_evaluations():
    run = learning()
    run.evals = [
        {"accuracy": "high"},
        {"accuracy": 0.5},
        {"accuracy": 0.7, "intervals": {"accuracy": [0.6, "?"]}, "stderr": 0.01},
    ]
    assert result_rows(run) == [("accuracy, ? problems × ? samples", "0.500", "0.700 ± 0.010", "+0.200")]
    run.evals = [{"x": 1}]
    assert result_rows(run) == []


def table_of(run):
    console = Console(width=120, file=io.StringIO())
    console.print(result_table(run))
    return console.file.getvalue()


BEFORE, AFTER = {"step": 0, "accuracy": 0.5, "greedy": 0.25}, {"step": 20, "accuracy": 0.75, "greedy": 0.5}


@pytest.mark.parametrize(
    ("evals", "heads", "change"),
    [
        ([BEFORE], ["before"], False),
        ([BEFORE, BEFORE], ["before"], False),  # evaluated again after a kill
        ([AFTER], ["at step 20"], False),
        ([BEFORE, AFTER], ["before", "after", "change"], True),
        ([BEFORE, BEFORE, AFTER], ["before", "after", "change"], True),
    ],
)
def test_one_evaluation_is_no_before_and_after(evals, heads, change):
    run = learning()
    run.evals = evals
    text = table_of(run)
    assert all(head in text for head in heads)
    assert ("change" in text) == ("+0.250" in text) == change
    assert "+0.000" not in text


@given(
    words=st.lists(st.text("ab-_=界", min_size=1, max_size=12), min_size=1, max_size=30),
    width=st.integers(8, 60),
    most=st.integers(1, 5),
)
def test_of_a_long_text_the_beginning_and_the_last_words_stay(words, width, most):
    text = " ".join(words)
    lines = wrapped(text, width, most)
    assert len(lines) <= most and all(cell_len(line) <= width for line in lines)
    if "…" not in "".join(lines):
        assert " ".join(lines) == text
    elif max(map(cell_len, words)) <= width // 2 - 2:
        shown = " ".join(lines).split()
        assert shown[0] == words[0] and shown[-1] == words[-1] and shown.count("…") == 1


@pytest.mark.parametrize("width", [60, 76, 116])
def test_the_command_that_goes_on_is_whole_or_ends_as_it_does(width):
    command = f"go on: {RESUME.replace('train.steps=200', 'algorithm.use=trace algorithm.trace.lambda=0.9 train.steps=200')}"
    lines = wrapped(command, width, 4)
    assert " ".join(lines) == command
    assert wrapped(command, width, 1)[0].endswith("--resume auto")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ("trace", ("GRPO-λ", "arXiv:2510.00194")),
        ("length_preference", ("λ-GRPO", "arXiv:2510.06870")),
        ("bnpo_trl", ("bnpo_trl", "")),
        ("mine.py:row", ("mine.py:row", "")),
        ([1], ("[1]", "")),
    ],
)
def test_what_an_algorithm_is_called(use, words):
    assert title(RunView(Path("x"), {"algorithm": {"use": use}})) == words
