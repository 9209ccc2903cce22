"""Evaluations: figures against an independent computation, resuming after a kill,
suites, what may not be mixed.
"""

import gzip
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import lgrpo, tiny_recipe

from lgrpo_lite.checks.check import check
from lgrpo_lite.data import arithmetic
from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.errors import ConfigError, DataError
from lgrpo_lite.evaluation.figures import Problem, Sample, estimates, figures, majority, powers, table
from lgrpo_lite.evaluation.held_out import score_of
from lgrpo_lite.evaluation.results import read_samples
from lgrpo_lite.evaluation.suites import lay_over, load_suite, problems, suite_names
from lgrpo_lite.evaluation.support import log_probs
from lgrpo_lite.recipe.read import load_recipe
from lgrpo_lite.train.build import build
from lgrpo_lite.train.evaluate import evaluate

FAST = ["model.weights=fp32", "model.threads=1"]
ARITHMETIC = ["eval", "builtin:tiny-math", "--suite", "arithmetic", *FAST]


def sample(vote: str | None, right: bool | None) -> Sample:
    outcome = "timeout" if right is None else "ok" if right else "wrong" if vote else "unparsable"
    return Sample("", 3, "stop", vote, vote, outcome, None if right is None else float(right), right)


def problem(*samples: Sample, name: str = "p", **category: str) -> Problem:
    return Problem(name, "?", "1", category, samples)


# ------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("votes", "right"),
    [
        ("aab", 1.0),
        ("abb", 0.0),
        ("ab", 1.0),  # a tie goes to the answer that came first
        ("ba", 0.0),
        ("-a", 1.0),  # no answer is no vote
        ("--", 0.0),
        ("bb?", 0.0),
        ("x", math.nan),  # the winner has no reward, and there is none at all
        ("xa", math.nan),
        ("xxa", math.nan),
    ],
)
def test_the_majority(votes, right):
    """a is right; b, ? and - are not; x is an answer whose reward is missing, - is no answer."""
    samples = [sample(None if v == "-" else v, None if v == "x" else v == "a") for v in votes]
    found = majority(problem(*samples))
    assert found == right or (math.isnan(found) and math.isnan(right))


@given(st.lists(st.lists(st.sampled_from("ab-x"), min_size=4, max_size=4), min_size=1, max_size=6))
def test_figures_are_those_of_every_subset(rows):
    """pass@j by enumerating the subsets of j samples, avg by counting; problems
    without rewards count in neither.
    """
    asked = [
        problem(*(sample(None if v == "-" else v, None if v == "x" else v == "a") for v in row))
        for row in rows
    ]
    found = figures(asked)
    scored = [[v == "a" for v in row if v != "x"] for row in rows]
    known = [marks for marks in scored if marks]
    if not known:
        assert found is None
        return
    assert found.avg.value == pytest.approx(np.mean([np.mean(m) for m in known]))
    for j, estimate in found.pass_at.items():
        subsets = [np.mean([any(s) for s in itertools.combinations(m, j)]) for m in scored if len(m) >= j]
        assert estimate.value == pytest.approx(np.mean(subsets))
        assert estimate.low - 1e-12 <= estimate.value <= estimate.high + 1e-12
    assert found.missing == sum(row.count("x") for row in rows)
    assert found.unparsable == sum(row.count("-") for row in rows) / sum(map(len, scored))
    assert powers(8) == [1, 2, 4, 8] and powers(6) == [1, 2, 4, 6] and powers(1) == [1]


def test_the_interval_is_that_of_a_mean():
    """Against the normal approximation where it holds, and the same numbers each time."""
    values = np.random.default_rng(1).random((2, 400))
    found = estimates(values)
    for row, estimate in zip(values, found, strict=True):
        width = 1.96 * row.std() / 20
        assert estimate.low == pytest.approx(row.mean() - width, abs=0.1 * width)
        assert estimate.high == pytest.approx(row.mean() + width, abs=0.1 * width)
    assert found == estimates(values) and estimates(np.full((1, 3), math.nan)) == [None]


def test_a_table_by_category():
    asked = [problem(sample("a", i % 2 == 0), level=str(i // 4)) for i in range(8)]
    asked.append(problem(sample("a", True)))  # a problem without the column
    found = figures(asked).categories["level"]
    assert {value: (row.problems, row.avg.value) for value, row in found.items()} == {
        "0": (4, 0.5),
        "1": (4, 0.5),
    }
    json.dumps(figures(asked).to_json(), allow_nan=False)


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The embedded model on 200 problems with 8 samples each."""
    out = tmp_path_factory.mktemp("eval") / "whole"
    assert lgrpo(*ARITHMETIC, "--k", "8", "--out", out) == 0
    return out


def independent(path: Path) -> dict[str, float]:
    """avg@8, pass@8 and maj@8 from the samples file, without any code of the package."""
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    right = [[s["right"] for s in row["samples"]] for row in rows]
    voted = []
    for row in rows:
        count = Counter(s["vote"] for s in row["samples"] if s["vote"] is not None)
        order = list(dict.fromkeys(s["vote"] for s in row["samples"] if s["vote"] is not None))
        winner = min(order, key=lambda v: (-count[v], order.index(v)), default=None)
        voted.append(any(s["right"] for s in row["samples"] if s["vote"] == winner and winner is not None))
    assert {len(marks) for marks in right} == {8} and len(rows) == 200
    return {"avg": sum(map(sum, right)) / 1600, "pass": sum(map(any, right)) / 200, "maj": sum(voted) / 200}


@pytest.mark.slow
def test_two_hundred_problems_by_an_independent_computation(whole):
    result = json.loads((whole / "result.json").read_text())
    expected, found = independent(whole / "samples.jsonl"), result["figures"]
    assert found["avg"]["value"] == pytest.approx(expected["avg"], abs=1e-12)
    assert found["pass_at"]["8"]["value"] == pytest.approx(expected["pass"], abs=1e-12)
    assert found["maj"]["value"] == pytest.approx(expected["maj"], abs=1e-12)
    for row in [json.loads(line) for line in (whole / "samples.jsonl").read_text("utf-8").split("\n")[:-1]]:
        for s in row["samples"]:
            assert s["right"] == (s["text"].rpartition("####")[2].strip() == row["reference"])
            assert s["base_logp"] <= 0 and s["base_logp_mean"] == pytest.approx(s["base_logp"] / s["tokens"])


@pytest.mark.parametrize(
    "share", [pytest.param(0.0, marks=pytest.mark.slow), pytest.param(0.4, marks=pytest.mark.slow), 0.999]
)
def test_cut_anywhere_and_started_again(whole, tmp_path, share):
    """A kill leaves whole blocks and at most a piece of one; the rest is asked again, with the same answers."""
    data = (whole / "samples.jsonl").read_bytes()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "about.json").write_bytes((whole / "about.json").read_bytes())
    (tmp_path / "again" / "samples.jsonl").write_bytes(data[: int(share * len(data))])
    assert lgrpo(*ARITHMETIC, "--k", "8", "--out", tmp_path / "again") == 0
    for name in ("samples.jsonl", "result.json", "about.json", "recipe.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
def test_killed_and_started_again(whole, tmp_path):
    """The same with SIGKILL and a process of its own."""
    out = tmp_path / "killed"
    argv = [sys.executable, "-m", "lgrpo_lite", *ARITHMETIC, "--k", "8", "--out", str(out)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (
        (out / "samples.jsonl").exists() and (out / "samples.jsonl").stat().st_size
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    subprocess.run(argv, check=True, capture_output=True)
    for name in ("samples.jsonl", "result.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--k", "4"], "k: 8 -> 4"),
        (["--k", "8", "--seed", "1"], "seed: 0 -> 1"),
        (["--k", "8", "--temperature", "0.5"], "temperature: 1.0 -> 0.5"),
        (["--k", "8", "--limit", "10"], "problems: 200 -> 10"),
        (["--k", "8", "model.max_new_tokens=40"], "model.max_new_tokens: 48 -> 40"),
    ],
)
def test_other_settings_are_not_mixed_in(whole, more, words, capfd):
    before = (whole / "samples.jsonl").read_bytes()
    assert lgrpo(*ARITHMETIC, *more, "--out", whole) == 2
    assert words in capfd.readouterr().err
    assert (whole / "samples.jsonl").read_bytes() == before


def test_a_foreign_folder_is_left_alone(tmp_path, capfd):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert lgrpo(*ARITHMETIC, "--out", tmp_path) == 2
    assert "holds something else: thesis.txt" in capfd.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nobody"], "is no run and no model"),
        (["builtin:tiny-math"], "a model is evaluated on a suite"),
        (["builtin:tiny-math", "--suite", "math500"], "did you mean 'math-500'?"),
        (["builtin:tiny-math", "--suite", "arithmetic", "--k", "0"], "--k is less than 1"),
        (["builtin:tiny-math", "--suite", "arithmetic", "--seed", "-1"], "--seed -1 is no seed"),
        (["builtin:tiny-math", "--suite", "arithmetic", "--seed", str(2**32)], "is no seed"),
        (["builtin:tiny-math", "--suite", "arithmetic", "--seed", str(2**63)], "is no seed"),
        (["builtin:tiny-math", "--suite", "arithmetic", "--seed", "9" * 4000], "is no seed"),
        (
            ["builtin:tiny-math", "--suite", "arithmetic", "--k", "2", "--temperature", "0"],
            "at temperature 0",
        ),
        (["builtin:tiny-math", "--suite", "arithmetic", "--checkpoint", "5"], "a model has no checkpoints"),
        (["builtin:tiny-math", "--suite", "arithmetic", "eval.kk=1"], "unknown key 'eval.kk'"),
        (["builtin:tiny-math", "--suite-file", "none.jsonl", "data.template=plain"], "none.jsonl"),
    ],
)
def test_faults_are_named(argv, words, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lgrpo("eval", *argv, *([] if argv == ["nobody"] else FAST)) in (2, 5)
    assert words in capfd.readouterr().err


def test_greedy_on_a_file_of_problems(tmp_path, capfd):
    """--temperature 0, columns of another name, a category inside another column, JSON out."""
    made = itertools.islice(arithmetic.problems(0, "heldout"), 8)
    rows = [
        {"q": p.question, "a": p.answer, "meta": {"kind": "odd" if i % 2 else "even"}}
        for i, p in enumerate(made)
    ]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my.yaml").write_text(
        f"schema: 1\nsuite: {{name: doubles}}\ndata: {{path: '{tmp_path}/my.jsonl', prompt: q, answer: a}}\n"
        "category: [meta.kind, missing]\nprompt: {template: plain}\nmax_new_tokens: 48\n"
        "rewards: [{use: numeric, extract: gsm8k}]\n"
    )
    argv = [
        "eval",
        "builtin:tiny-math",
        "--suite-file",
        tmp_path / "my.yaml",
        "--k",
        "1",
        "--temperature",
        "0",
        *FAST,
    ]
    assert lgrpo(*argv, "--out", tmp_path / "out", "--json") == 0
    reply = json.loads(capfd.readouterr().out)
    assert reply["ok"] and reply["command"] == "eval"
    found = reply["result"]["figures"]
    assert found["problems"] == 8 and set(found["categories"]) == {"meta.kind"}
    assert {v: row["problems"] for v, row in found["categories"]["meta.kind"].items()} == {
        "even": 4,
        "odd": 4,
    }
    assert found["avg"]["value"] == found["maj"]["value"] == found["pass_at"]["1"]["value"] > 0


# ------------------------------------------------------------------------------------------- suites


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites(name):
    """Each is closed, has a source, a prompt that asks for what its checker reads,
    and makes a recipe that checks.
    """
    suite = load_suite(name, None)
    assert (
        suite.suite.name == name and suite.suite.title and suite.suite.licence != "unknown" and suite.rewards
    )
    recipe = check(lay_over(suite, load_recipe("qwen3b-math"), ["rollout.engine=transformers"]))
    assert recipe.data.eval == suite.data
    assert [r.changed() for r in recipe.rewards] == [r.changed() for r in suite.rewards]
    assert suite.prompt.system is None or "\\boxed{}" in (recipe.data.system or "")
    assert name in ("arithmetic",) or suite.data[0].hf


def test_the_sets_of_the_papers_are_there():
    assert {
        "math-500",
        "aime24",
        "amc23",
        "minerva-math",
        "olympiadbench",
        "gsm8k",
        "gpqa",
        "simpleqa",
    } <= set(suite_names())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: 1\nsuite: {name: x}\n", "data is missing"),
        ("schema: 1\nsuite: {name: x}\ndata: {path: x.jsonl, promt: q}\n", "s.yaml:3"),
        ("schema: 1\nsuite: {name: x}\ndata: {path: x.jsonl}\nchecker: []\n", "unknown key 'checker'"),
        (
            "schema: 1\nsuite: {name: x}\ndata: {path: x.jsonl}\nprompt: {question: 'Q'}\n",
            "does not ask the question",
        ),
        (
            "schema: 1\nsuite: {name: x}\ndata: {path: x}\nchoices: {wrong: [b]}\n",
            "does not show the options",
        ),
        ("schema: 1\nsuite: {name: x\n", "not YAML"),
    ],
)
def test_a_faulty_suite_names_its_line(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_suite(None, "s.yaml")
    assert words in str(error.value) and "s.yaml" in str(error.value)


def laid(suite, *more: str):
    return check(lay_over(suite, load_recipe("tiny-math"), [*more, "model.max_prompt_tokens=400"]))


def test_options_are_shuffled_once_for_all(tmp_path):
    rows = [
        {"q": f"question {i} {{choices}}", "right": f"right {i}", "b": f"wrong b {i}", "c": f"wrong c {i}"}
        for i in range(40)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"suite: {{name: c}}\ndata: {{path: '{tmp_path}/c.jsonl', prompt: q, answer: right}}\nprompt: {{template: plain, "
    text += 'question: "{question}\\n\\n{choices}"}\nchoices: {wrong: [b, c], seed: SEED}\nrewards: [{use: exact}]\n'
    tokenizer = build(tiny_recipe("data.eval=[]")).policy.tokenizer
    found = []
    for seed in (0, 0, 1):
        (tmp_path / "c.yaml").write_text(text.replace("SEED", str(seed)))
        suite = load_suite(None, str(tmp_path / "c.yaml"))
        found.append(problems(suite, laid(suite), tokenizer, None).prompts)
    assert found[0] == found[1] != found[2]
    assert set(Counter(p.reference for p in found[0])) == {"A", "B", "C"}
    for i, prompt in enumerate(found[0]):
        lines = prompt.text.split("\n")
        assert (
            lines[0] == f"question {i} {{choices}}"
            and f"{prompt.reference}) right {i}" in lines
            and len(lines) == 5
        )


def test_problems_that_are_too_long_are_told(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"question": "1+1=?", "answer": "2"}\n{"question": "' + "1" * 99 + '", "answer": "2"}\n'
    )
    suite, tokenizer = (
        load_suite(None, str(tmp_path / "p.jsonl")),
        build(tiny_recipe("data.eval=[]")).policy.tokenizer,
    )
    found = problems(suite, laid(suite, "data.template=plain"), tokenizer, None)
    assert len(found.prompts) == 2
    recipe = check(lay_over(suite, load_recipe("tiny-math"), ["model.max_prompt_tokens=20"]))
    found = problems(suite, recipe, tokenizer, None, gold_fault=lambda gold: "it is a two")
    assert (len(found.prompts), found.left_out) == (1, 1)
    assert "1 problems are longer than 20 tokens" in found.notes[0] and "it is a two" in found.notes[1]
    with pytest.raises(DataError, match="all 2 problems are longer"):
        problems(
            suite,
            check(lay_over(suite, load_recipe("tiny-math"), ["model.max_prompt_tokens=2"])),
            tokenizer,
            None,
        )


def test_a_named_suite_on_a_local_file(tmp_path):
    suite = load_suite("gsm8k", str(tmp_path / "x.jsonl"))
    assert suite.data[0].path == str(tmp_path / "x.jsonl") and suite.data[0].hf is None
    assert suite.rewards == load_suite("gsm8k", None).rewards


# ------------------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def run():
    return build(tiny_recipe("data.eval.limit=24", "eval.k=4"))


def test_the_evaluation_of_a_run_is_what_its_samples_say(run, tmp_path):
    found = evaluate(run, 7, keep=tmp_path / "evals" / "step-000007.jsonl.gz")
    asked = read_samples(tmp_path / "evals" / "step-000007.jsonl.gz")
    marks = [[s.right for s in p.samples] for p in asked]
    assert found.accuracy == pytest.approx(np.mean(marks)) and found.problems == 24
    assert found.pass_at_k == pytest.approx(np.mean([any(m) for m in marks]))
    assert found.maj == pytest.approx(np.mean(table(asked, 4)["maj"]))
    assert set(found.intervals) == {"accuracy", "pass_at_k", "maj", "greedy"}
    assert all(low <= high for low, high in found.intervals.values())
    assert [score_of(found, m) for m in ("avg", "pass", "maj", "greedy")] == [
        found.accuracy, found.pass_at_k, found.maj, found.greedy]  # fmt: skip
    bytes_ = (tmp_path / "evals" / "step-000007.jsonl.gz").read_bytes()
    assert evaluate(run, 7, keep=tmp_path / "evals" / "again.jsonl.gz") == found
    assert (tmp_path / "evals" / "again.jsonl.gz").read_bytes() == bytes_ and gzip.decompress(bytes_)


def test_log_probs_are_those_of_the_sampler(run):
    """In passes of 100 tokens, in any order: each answer gets its own sum."""
    prompts = run.eval_prompts[:8]
    with run.engine.serving(run.policy) as sampler:
        answers = sampler.generate(prompts, 3, SamplingParams(1.0, 48))
    pairs = [(p, c) for p, row in zip(prompts, answers, strict=True) for c in row]
    expected = [sum(c.logprobs) for _, c in pairs]
    assert log_probs(run.policy, pairs, 100) == pytest.approx(expected, abs=1e-3)
    assert log_probs(run.policy, pairs, 10_000) == pytest.approx(expected, abs=1e-3)


def test_no_reward_at_all_is_a_fault(tmp_path):
    (tmp_path / "r.py").write_text("def never(completion):\n    raise TimeoutError\n")
    run = build(tiny_recipe(f"rewards=[{{use: {tmp_path}/r.py:never}}]", "data.eval.limit=2"))
    with pytest.raises(DataError, match="every reward of the evaluation is missing"):
        evaluate(run, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["eval.temperature=0", "eval.k=2"], "all samples of a problem are the same"),
        (["train.keep.metric=greedy", "eval.greedy=false"], "needs greedy answers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_recipe(*settings)
