"""Where the reward `math` finds an answer, what its options change, and which golds it names as unusable."""

import pytest

from lgrpo_lite.rewards.math import math
from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.leniency import Leniency
from lgrpo_lite.verifier.verify import gold_fault, verify

EXTRACTED = [
    ("\\boxed{12} or rather \\boxed{13}", "13"),
    ("\\boxed{5} is wrong; the correct value is \\boxed{6}", "6"),
    ("\\(\\boxed{1}\\) and \\(\\boxed{-2}\\).", "-2, 1"),
    ("\\boxed{1}, \\boxed{2}", "1,2"),
    ("\\boxed {5}", "5"),
    ("\\fbox{5}", "5"),
    ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
    ("$\\boxed{5}$. I hope it is correct. <|im_end|>\nuser: \\boxed{6}", "5"),
    ("so \\boxed{5", "5"),
    ("<answer>84</answer>", "84"),
    ("<answer> \\frac12 </answer>", "0.5"),
    ("work\n#### 1,234", "1234"),
    ("The answer is 42.", "42"),
    ("Therefore, the answer is $\\frac{1}{2}$.", "0.5"),
    ("The answer is (B).", "B"),
    ("**Answer: 42**", "42"),
    ("Final Answer: The final answer is $x = 0$. I hope it is correct.", "0"),
    ("Final Answer: The largest $n$ is 34.", "34"),
    (
        "It is \\boxed{255}. So there is $10,455. Final Answer: The final answer is $10,455$. I hope it is correct.",
        "10455",
    ),
    ("The answer is:\n$$x = 7$$", "7"),
    ("The answer is 5. The answer is not 6.", "5"),
    ("答案：42", "42"),
    ("3 * 4 = <<3*4=12>>12 cups.\nA: 12", "12"),
    ("She pays $5 for the first and $7 for the second, in all 5+7=$12.", "12"),
    ("the probability that Alice wins the game is 2/3.", "\\frac23"),
    ("We find that $x \\neq 3$.", "x \\ne 3"),
    ("Three trucks will be needed to carry the 80 stones.", "3"),
    ("thinking of \\boxed{1}</think> \\boxed{2}", "2"),
    ("7", "\\boxed{7}"),
    ("7", "First we add.\nThen the answer is $7$."),
    ("7", "3 + 4 = 7\n#### 7"),
    ("therefore I think it's B", "B"),
    ("The answer is 5, not 6.", "5"),
    ("We add the two.\nResult: `42`", "42"),
    ("Solution: 9", "9"),
    ("ans = 9", "9"),
    ("Option (C)", "C"),
]


@pytest.mark.parametrize(("text", "gold"), EXTRACTED)
def test_the_answer_is_found(text, gold):
    assert verify(text, gold) == Outcome.ok


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("<think>The answer is \\boxed{4}", "4"),
        ("<think>\\boxed{42}</think> Some other text.", "42"),
        ("The answer is not \\boxed{5}. The answer is 6", "5"),
        ("The answer is not \\boxed{5}.", "5"),
        ("The answer is 5, not 6.", "6"),
        ("\\boxed{5} or \\boxed{6}", "5"),
        ("\\boxed{1} no no \\boxed{2}", "1"),
        ("\\boxed{}", "5"),
        ("\\boxed{...}", "5"),
        ("", "5"),
        ("The answer is given in the problem.", "5"),
        ("64 + 60 = 124, then 124 + 7 = 131. The answer is 131.", "124"),
        ("5", ""),
        ("", ""),
        ("\u200b", "\u200b"),
    ],
)
def test_no_answer_or_another(text, gold):
    assert verify(text, gold) != Outcome.ok


@pytest.mark.parametrize(
    ("extract", "text", "outcome"),
    [
        ("boxed", "The answer is 5", Outcome.unparsable),
        ("boxed", "\\boxed{5}", Outcome.ok),
        ("boxed", "\\boxed{5", Outcome.unparsable),
        ("gsm8k", "\\boxed{5}", Outcome.unparsable),
        ("gsm8k", "#### 5", Outcome.ok),
        ("gsm8k", "#### 6", Outcome.wrong),
    ],
)
def test_where_the_recipe_looks(extract, text, outcome):
    options = {"units": "ignore", "percent": "either", "order": "any", "rounding": "gold"}
    assert math(text, "5", extract=extract, **options) == (float(outcome == Outcome.ok), outcome)


@pytest.mark.parametrize(
    ("policy", "prediction", "gold"),
    [
        (Leniency(units="compare"), "5 \\text{ cm}", "5"),
        (Leniency(units="compare"), "45", "45^\\circ"),
        (Leniency(percent="fraction"), "35\\%", "35"),
        (Leniency(order="same"), "3,2,1", "1,2,3"),
        (Leniency(rounding="none"), "\\sqrt{2}", "1.414"),
        (Leniency(rounding="none"), "0.0833333333333333", "\\frac{1}{12}"),
    ],
)
def test_a_choice_of_policy(policy, prediction, gold):
    assert verify(prediction, gold) == Outcome.ok
    assert verify(prediction, gold, policy) == Outcome.wrong


def test_choices_that_keep_what_is_right():
    assert verify("5 \\text{ cm}", "50 mm", Leniency(units="compare")) == Outcome.ok
    assert verify("45^\\circ", "\\frac{\\pi}{4}", Leniency(units="compare")) == Outcome.ok
    assert verify("35\\%", "0.35", Leniency(percent="fraction")) == Outcome.ok
    assert verify("\\{3,2,1\\}", "1,2,3", Leniency(order="same")) == Outcome.ok
    assert verify("0.5", "\\frac12", Leniency(rounding="none")) == Outcome.ok


@pytest.mark.parametrize(
    ("gold", "words"),
    [
        (None, "missing"),
        (7, "missing"),
        ("", "empty"),
        (" \n", "empty"),
        ("\u200b", "no visible"),
        ("\\frac{1}{2", "no closing brace"),
        ("1}", "no opening brace"),
        ("9" * 60_000, "60,000 characters"),
        ("\\mystery{3}{4}", "cannot be read"),
        ("5 +", "cannot be read"),
    ],
)
def test_a_gold_that_is_none_is_named(gold, words):
    assert words in (gold_fault(gold) or "")


@pytest.mark.parametrize(
    "gold", ["7", "\\frac12", "Petya wins.", "x \\in [0,1)", "First.\nThe answer is 7.", "\\boxed{7}", "B"]
)
def test_golds_without_fault(gold):
    assert gold_fault(gold) is None
