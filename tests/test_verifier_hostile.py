"""Hostile answers, properties and votes of the verifier: a verdict on any text, quickly, and no code is run."""

import os
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.answers import committed, final_answer, last_boxed
from lgrpo_lite.verifier.spelling import spell
from lgrpo_lite.verifier.verify import gold_fault, verify
from lgrpo_lite.verifier.votes import normal

DEEP = 10_000
HOSTILE = [
    "9**9**9**9", "10^{10^{10^{10}}}", "((((9!)!)!)!)!", "1000000!", "\\binom{10^9}{500000000}", "2**-10**10",
    "(-1)^{10^{10^{10}}+1/2}", "\\frac{10^{10^{10}}}{10^{10^{10}}-1}", "1.0000001^{99999999999}",
    "\\sum_{k=1}^{100000000} k^{k}", "\\int_0^1 x^{x^x}dx", "\\gcd(2^{1000000}-1,2^{999999}-1)", "x^{99999999}",
    "(x+y+z)^{5000}", "(1+x)^{5000}(1-x)^{5000}", "e^{e^{e^{e}}}", "\\sin(10^{10^{10}})", "\\frac{" * DEEP,
    "\\frac{" * DEEP + "1}{2" + "}" * DEEP, "\\sqrt{" * DEEP + "2" + "}" * DEEP, "\\boxed{" * DEEP, "{" * 50_000,
    "(" * 50_000 + "5", "\\boxed{" * DEEP + "6" + "}" * DEEP, "-" * 50_000 + "6", "\\left(" * DEEP + "6" + "\\right)" * DEEP,
    "\\begin{pmatrix}" * DEEP, "1+" * 40_000 + "1", "^" * 5000, "x" + "^{x" * 3000 + "}" * 3000, "9" * 2_000_000,
    "1" * 5_000_000, "a" * 5_000_000, "\\boxed{" + "7" * 100_000 + "}", "1," * 50_000, "\\{" + "\\sqrt2," * 4000 + "1\\}",
    "the answer is " * 50_000, "$" * 100_000, "####" * 50_000, "\\boxed{6}" * 20_000, "A: " * 50_000, "<answer>" * 20_000,
    "\x00", "5\x00 6", "\u202e6\u202c", "\ud800", "\U0001d7d8", "\\", "\\\\", "&", "_", "5^", "=5", "(5,", "\\boxed}",
    "1e999999999", "0x" + "F" * 5000, "1_{99999999999}", "0.\\overline{" + "3" * 50_000 + "}", "\\pm " * 5000 + "1",
    "0" + ",\\pm 1" * 3000, "\\log_{1}1", "0^0", "0^{-1}", "\\frac00", "\\tan(\\frac{\\pi}{2})", "\\infty-\\infty", "nan",
    "inf", "\\cup".join("(0,1)" for _ in range(3000)), ":".join("1" * 3000), "__import__('os').system('touch CANARY')",
    "exec('open(\"CANARY\",\"w\")')", "lambda: open('CANARY','w')", "limit(x**x**x,x,oo)", "nextprime(10**5000)",
    "\\boxed{__import__('os').system('touch CANARY')}", "${open('CANARY','w')}", "{{config}}", "%s%s%s%n", "`touch CANARY`",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_answers_are_refused_quickly_and_never_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin = time.process_time()
    for gold in ("5", "\\sqrt{2}+x", "1,2,3"):
        assert verify(text, gold) != Outcome.ok
        assert verify(gold, text) != Outcome.ok
    gold_fault(text), normal(text), final_answer(text), committed(text)
    assert time.process_time() - begin < 10  # CPU seconds for all of them; each takes a few hundredths
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "10^{10^{10}}",
        "((3!)!)!",
        "\\sum_{n=1}^{\\infty} \\frac{\\sin(n^n)}{n!}",
        "9" * 2_000_000,
    ],
)
def test_an_answer_too_large_to_compute_is_still_itself(text):
    assert verify(text, text) == Outcome.ok


def test_long_but_computable():
    assert verify("1" + "0" * 10_000, "10^{10000}") == Outcome.ok
    assert verify("1" + "0" * 10_000, "10^{9999}") == Outcome.wrong
    assert verify("9" * 10_000, "10^{10000}-1") == Outcome.ok
    assert (
        verify("\\{" + ",".join(map(str, range(150))) + "\\}", ",".join(map(str, reversed(range(150)))))
        == Outcome.ok
    )


def test_memory_stays_small_on_hostile_answers():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from lgrpo_lite.verifier.verify import verify\n"
        "for text in ('9**9**9**9', '1000000!', '\\\\frac{' * 10000, '1' * 5_000_000, '(1+x)^{5000}'):\n"
        "    assert verify(text, '5') != 'ok'\n"
        # rusage keeps the parent's
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "assert int(peak.split()[1]) < 200_000, peak"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_sympy_is_not_imported_for_what_is_read_here():
    code = (
        "import sys; from lgrpo_lite.verifier.verify import verify\n"
        "assert verify('\\\\boxed{\\\\frac12}', '0.5') == 'ok' and verify('east', '(1,2]') == 'wrong'\n"
        "assert not {'sympy', 'mpmath', 'math_verify', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def latex(value: Fraction) -> list[str]:
    """Spellings of a fraction."""
    top, bottom = value.numerator, value.denominator
    found = [
        f"{top}/{bottom}",
        f"\\frac{{{top}}}{{{bottom}}}",
        f"\\dfrac{{{2 * top}}}{{{2 * bottom}}}",
        f"x = {top}/{bottom}",
    ]
    return found + ([f"{top}", f"{top}.0", f"{top:,}", f"${top}$"] if bottom == 1 else [])


fractions = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=500)


@given(fractions, fractions)
def test_fractions_in_every_spelling(a, b):
    for left in latex(a):
        for right in latex(b):
            assert (verify(left, right) == Outcome.ok) == (a == b) == (verify(right, left) == Outcome.ok)
    assert len({normal(text) for text in latex(a)}) == 1
    assert (normal(latex(a)[0]) == normal(latex(b)[1])) == (a == b)


@st.composite
def formulas(draw, depth=3):
    """LaTeX of a formula that has a value almost everywhere."""
    if depth == 0:
        return draw(st.sampled_from(["2", "x", "y", "\\pi", "3.5", "\\frac12", "7", "a_1"]))
    a, b = draw(formulas(depth=depth - 1)), draw(formulas(depth=depth - 1))
    form = draw(
        st.sampled_from(
            [
                "{}+{}",
                "({})({})",
                "\\frac{{{}}}{{{}+9}}",
                "\\sqrt{{({})^2}}-{}",
                "({})\\cdot ({})",
                "\\sin({})+{}",
            ]
        )
    )
    return form.format(a, b)


@settings(max_examples=60, deadline=None)
@given(formulas())
def test_a_formula_is_itself_and_nothing_near_it(formula):
    assert verify(formula, formula) == Outcome.ok
    assert verify(f"({formula})\\cdot 1 + 0", formula) == Outcome.ok
    assert verify(f"{formula} + 1", formula) == Outcome.wrong
    assert verify(formula, f"2({formula}) + 10^{{-40}} - ({formula})") == Outcome.wrong


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.text(max_size=60))
def test_any_text_has_a_verdict(prediction, gold):
    assert verify(prediction, gold) in Outcome
    assert gold_fault(gold) is None or isinstance(gold_fault(gold), str)
    assert isinstance(normal(gold), str)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="\\{}()[]|$^_,.:;=<>+-*/!%&'0123456789abxy \n", max_size=80))
def test_any_formula_like_text_has_a_verdict(text):
    assert verify(text, "5") in Outcome
    spelled = spell(text)
    if verify(text, text) != Outcome.ok:
        assert not spelled or committed(text) is not None or final_answer(text) is not None


@pytest.mark.parametrize("nothing", [None, 5, [], b"5"])
def test_what_is_no_text_is_unparsable(nothing):
    assert verify(nothing, "5") == verify("5", nothing) == Outcome.unparsable


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("\\frac{1}{2}", "0.5", True), ("1,000", "1000", True), ("x = 5", "5", True), ("\\text{Yes}", "yes", True),
        ("x^{2} + 1", "x^{2}+1", True),
        ("50\\%", "50", True), ("(1, 2)", "(1,2)", True), ("-\\frac{2}{4}", "-0.5", True),
        ("5", "6", False), ("(1,2)", "(2,1)", False),
        ("x", "X^2", False), ("east", "west", False), ("52_8", "528", False), ("\\frac{1}{23}", "\\frac{12}{3}", False),
    ],
)  # fmt: skip
def test_votes_do_not_depend_on_spelling(one, other, alike):
    assert (normal(one) == normal(other)) == alike


def test_boxes_are_found_in_linear_time():
    begin = time.process_time()
    assert last_boxed("\\boxed{" * 100_000 + "1" + "}" * 100_000) == "1"
    assert last_boxed("\\boxed{" * 100_000) is None
    assert time.process_time() - begin < 5
