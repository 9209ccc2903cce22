"""The verifier never raises: pairs of every kind of tree have a verdict, the same from both sides; a fault is wrong."""

import itertools
import logging
import time
from itertools import product

import pytest
from attack.kinds import KINDS, WRAPS
from hypothesis import given, settings
from hypothesis import strategies as st

from lgrpo_lite.rewards.math import math
from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier import symbolic
from lgrpo_lite.verifier import verify as verdicts
from lgrpo_lite.verifier.read import read
from lgrpo_lite.verifier.verify import faults, verify

# where the gold's side counts: digits in groups, and one answer in several forms
ONE_SIDED = ("1,234", ",\\infty", "\\infty,", "\\infty \\text{ or")


@pytest.fixture(autouse=True)
def no_fault():
    faults.clear()
    yield
    faults.clear()


def is_one_sided(*answers):
    return any(part in answer for answer in answers for part in ONE_SIDED)


def test_pairs_of_every_kind_have_a_verdict_that_is_the_same_from_both_sides():
    for one, other in product(KINDS, repeat=2):
        right = verify(one, other) == Outcome.ok
        assert is_one_sided(one, other) or right == (verify(other, one) == Outcome.ok), (one, other)
    assert not faults


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(WRAPS), st.sampled_from(KINDS), st.sampled_from(WRAPS))
def test_kinds_inside_kinds_have_a_verdict(one, wrap, other, other_wrap):
    assert verify(wrap.format(one), other_wrap.format(other)) in Outcome
    assert not faults


@pytest.mark.slow
@settings(max_examples=50_000, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(WRAPS), st.sampled_from(KINDS), st.sampled_from(WRAPS))
def test_many_kinds_inside_kinds_have_a_verdict(one, wrap, other, other_wrap):
    assert verify(wrap.format(one), other_wrap.format(other)) in Outcome
    assert not faults


def test_every_kind_of_node_is_among_them():
    found = set()
    for kind in KINDS:
        for tree in read(kind).trees:
            found.add(tree[0])
    assert {
        "n",
        "v",
        "const",
        "base",
        "inf",
        "+",
        "*",
        "/",
        "^",
        "neg",
        "pm",
        "!",
        "%",
        "call",
        "series",
        "deg",
    } <= found
    assert {
        "unit",
        "ratio",
        "rel",
        "cup",
        "cap",
        "minus",
        "empty",
        "domain",
        "set",
        "builder",
        "tuple",
        "list",
    } <= found
    assert {"matrix", "text"} <= found


@pytest.mark.parametrize("gold", ["x=3", "x<3", "x\\in(0,1)", "x \\ne 2", "x \\in \\{1,2\\}", "y = x^2"])
@pytest.mark.parametrize("answer", ["\\infty", "\\emptyset", "\\{\\}"])
def test_infinity_instead_of_a_relation_is_wrong(answer, gold):
    assert verify(f"\\boxed{{{answer}}}", gold) == Outcome.wrong
    assert not faults


def test_a_fault_inside_is_wrong_counted_and_logged_once(monkeypatch, caplog):
    def broken(reading, golden, policy):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(verdicts, "matches", broken)
    with caplog.at_level(logging.ERROR):
        assert verify("\\boxed{6}", "5") == Outcome.wrong
        assert math("\\boxed{6}", "5") == (0.0, Outcome.wrong)
    assert faults == {"IndexError": 2}
    assert len(caplog.records) == 1
    assert "IndexError" in caplog.text


LONG = 60_000


@pytest.mark.parametrize(
    "text",
    [
        "5" + "\n" * LONG, "5" + " " * LONG + "percent", "\n" * LONG + "5", "It is not " * 5000 + "5", "is the answer is 5? " * 5000,
        "]1,2[" * 9000, "Thanks! " * 7000, "```" * 20_000, "A or B, " * 7000 + "C", "$1$ or " * 8000, "不" * LONG, "x=" * 20_000 + "5",
        "<|im_start|>" * 5000 + "6", "\\boxed{1}$, $x=" * 4000, "all real numbers except " * 2000, "5\\approx" * 7000 + "5",
        "A: 5.\n" * 12_000 + "B: 6", "{x:" + "<" * 49_000 + "{}", "$a" + " " * 3900 + "b$ and $c=1$", "The answer is " + "if " * 1300,
    ],
    ids=range(20),
)  # fmt: skip
def test_long_prose_is_judged_quickly(text):
    begin = time.process_time()
    for gold in ("7", "C", "\\{1,2\\}"):
        assert verify(text, gold) != Outcome.ok
    assert time.process_time() - begin < 3  # CPU seconds; each takes a few hundredths
    assert not faults


def test_what_sympy_and_its_parser_keep_of_former_formulas_is_emptied(monkeypatch):
    from latex2sympy2_extended.antlr_parser import PSParser
    from sympy.core.cache import CACHE

    def kept():
        turns = sum(len(decision.states) for decision in PSParser.decisionsToDFA)
        return turns, sum(function.cache_info().currsize for function in CACHE)

    monkeypatch.setattr(symbolic, "_asked", itertools.count(1))
    for power in range(2, 12):
        assert symbolic.agrees(f"\\frac{{x^{power}+1}}{{y}}", f"\\frac{{1+x^{power}}}{{y}}")
    turns, results = kept()
    assert turns and results
    monkeypatch.setattr(symbolic, "_asked", itertools.count(symbolic.FORGET_AFTER))
    symbolic._forget()
    turns_left, results_left = kept()
    assert turns_left < turns / 2 and results_left < results / 2
    assert symbolic.agrees("\\sqrt{9}", "3\\sqrt{1}")
    assert not symbolic.agrees("\\sqrt{9}", "\\sqrt{10}")
