"""Classes of answers that are told apart by their meaning: denials, letters, lists by name, chains, notations, tails."""

import pytest

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.verify import verify

RIGHT = {
    "percent in words": [("35 percent", "35\\%"), ("35 pct", "0.35"), ("20\\text{ percent}", "\\frac15"),
        ("0.35", "35 percent"), ("12.5 per cent", "12.5%"), ("\\frac12 percent", "0.005"), ("\\boxed{20}\\%", "0.2"),
        ("The answer is 35 percent.", "0.35"), ("So it is 20 percent of the total.", "20\\%")],
    "what is said after a denial": [("The answer isn't 5. It is 6.", "6"), ("It can't be 4, so the answer is \\boxed{5}.", "5"),
        ("Since x is not 3, x is \\boxed{5}.", "5"), ("x cannot exceed \\boxed{5}.", "5"), ("The answer is not 5 but 6.", "6"),
        ("Is the answer 4? No, the answer is 5.", "5"), ("Why not? The answer is 5.", "5"),
        ("It is not hard to see that the answer is \\boxed{5}", "5"), ("They can't use 5 buses, they need 6.", "6"),
        ("$\\boxed{5}$ is not a multiple of 3.", "5"), ("The answer is $5$. Does that make sense?", "5"),
        ("There are $4\\cdot7!=\\boxed{20160}$ ways.", "20160"), ("The answer is 5 rather than 4", "5")],
    "lists by name": [("p=2, q=3", "(2,3)"), ("p=2, q=3", "(p,q)=(2,3)"), ("(p,q)=(2,3)", "p=2, q=3"),
        ("q=3, p=2", "(p,q)=(2,3)"), ("x = 2k\\pi, k \\in \\mathbb{Z}", "2k\\pi"),
        ("\\text{Alice and Bob}", "Alice, Bob"), ("(b,a)=(2,1)", "(a,b)=(1,2)"), ("x = y = 5", "x=5,y=5"),
        ("x=1,y=2 \\text{ or } x=3,y=4", "(1,2),(3,4)"), ("[1,2,3]", "1,2,3"), ("x_1 = 2, x_2 = 1", "1,2"),
        ("$x=\\boxed{1}$, $y=\\boxed{2}$", "(1,2)"), ("$m = \\boxed{1}$ and $n = \\boxed{2}$", "1,2"),
        ("The solutions are $x=1$ and $x=2$.", "1,2"), ("Here $m=221$ and $n=8$ satisfy it.", "221,8"),
        ("With $T=11$, $x=14$ is what we get.", "14")],
    "another order": [("\\text{red} + \\text{blue}", "\\text{blue} + \\text{red}"),
        ("1+2+\\cdots+n", "1 + 2 + ... + n"), ("1+2+\\ldots+n", "n+\\cdots+2+1"), ("2,4,6,\\ldots", "2,4,6,\\dots"),
        ("1+2+3+\\cdots+n", "1+2+\\cdots+n"), ("\\frac{n-(a_0+a_1+\\cdots+a_k)}{2}", "s=\\frac{n-(a_k+\\cdots+a_1+a_0)}{2}"),
        ("\\text{height}\\times\\text{base}", "\\text{base}\\times\\text{height}"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}\\begin{pmatrix}1\\\\1\\end{pmatrix}", "\\begin{pmatrix}3\\\\7\\end{pmatrix}")],
    "sets and intervals": [("]2,3[", "(2,3)"), ("[3,+\\infty[", "x\\ge 3"), ("]-1,1[ \\cup ]2,3[", "(-1,1)\\cup(2,3)"),
        ("\\mathbb{R}-\\{2\\}", "x\\ne 2"), ("\\mathbb{R}^+", "(0,\\infty)"), ("\\R", "\\mathbb{R}"),
        ("all real numbers", "\\mathbb{R}"), ("all real numbers except 0", "(-\\infty,0)\\cup(0,\\infty)"),
        ("\\text{all reals except }1\\text{ and }2", "\\mathbb{R}\\setminus\\{1,2\\}"), ("\\text{no solution}", "\\emptyset"),
        ("x\\le -1 \\cup x\\ge 1", "(-\\infty,-1]\\cup[1,\\infty)"), ("x\\in\\emptyset", "\\emptyset"),
        ("(-\\infty,-1] \\text{ or } [1,\\infty)", "(-\\infty,-1]\\cup[1,\\infty)"),
        ("x=1 \\text{ or } 2<x<3", "\\{1\\}\\cup(2,3)"), ("\\{x \\in \\mathbb{R} : x > 3\\}", "(3,\\infty)")],
    "odd roots": [("cbrt(2)", "\\sqrt[3]{2}"), ("³√2", "2^{1/3}"), ("\\root 3 \\of {2}", "\\sqrt[3]{2}"), ("(-8)^{1/3}", "-2"),
        ("\\text{the cube root of } 2", "\\sqrt[3]{2}"), ("(-27)^{2/3}", "9"), ("-(x-1)^{1/3}", "\\sqrt[3]{1-x}"),
        ("(7-5\\sqrt2)^{1/3}", "1-\\sqrt2"), ("\\frac{1}{\\sqrt[3]{2}-1}", "1+\\sqrt[3]{2}+\\sqrt[3]{4}")],
    "letters": [("It can't be A or B, so C", "C"), ("Not A, not B, hence C", "C"), ("Option C is correct.", "C"),
        ("C is the correct answer.", "C"), ("So it's C because B is wrong", "C"), ("I would choose (C).", "C"),
        ("The correct choice is (C) 12", "C"), ("Since B is too small, C", "C"), ("C)", "C"),
        ("Choice A is incorrect while choice B is correct", "B"), ("Thus the correct answer is option A.", "A")],
    "tails": [("5\n\nLet me know if you need more help.", "5"), ("So x = 5.\n\nI hope this helps!", "5"),
        ("So we have 5 apples. Hope this helps!", "5"), ("The answer is 5.\nUser: And 6? The answer is 6.", "5"),
        ("\\boxed{5}\n\nHuman: Now \\boxed{6}", "5"), ("The answer is 5.<|user|>The answer is 6", "5"),
        ("The answer is 5<end_of_turn>\n<start_of_turn>user\nthe answer is 6", "5"), ("x is 5<|im_end|>", "5"),
        ("The final result is 5.\n\nIs there anything else I can help with?", "5"), ("5\n```python\nprint(6)\n```", "5"),
        ("User: what is 3+4?\nAssistant: 7", "7"), ("```output\n42\n```", "42")],
    "Chinese prose": [("所以答案是42。", "42"), ("答案为42。", "42"), ("故答案为：$\\frac12$．", "1/2"), ("答：小明有 42 个苹果。", "42"),
        ("所以有12个苹果。", "12"), ("答案不是5，而是6。", "6"), ("故选B。", "B"), ("因此选择B", "B"), ("正确答案是（C）", "C"),
        ("A不对，选B", "B"), ("答案是42。希望对你有帮助！", "42"), ("12个", "12"), ("综上所述，最大值为 $5$。", "5")],
    "chains": [("x = 2+3 = 5", "5"), ("2+3=5", "5"), ("50\\% = 0.5", "0.5"), ("\\pi \\approx 3.14", "\\pi"),
        ("x = \\sqrt2 \\approx 1.414", "\\sqrt2"), ("A = \\pi r^2 = 9\\pi", "9\\pi"), ("5 \\approx x", "5"),
        ("4.9^2 = 24", "24"), ("k \\equiv 21 \\equiv 8 \\pmod{13}", "8 \\pmod{13}")],
    "grouped digits": [("(1,234)", "(1, 234)"), ("(1, 234)", "(1,234)"), ("(1,234)", "1,234"), ("(10,000)", "10000"),
        ("100,200", "100, 200"), ("1, 234", "\\{1,234\\}")],
    "a number that is taken up": [("We do not know y, but there are 5 apples.", "5"), ("The unknown number is 7", "7"),
        ("I cannot find more than 5 solutions, so there are 5.", "5"), ("We cannot factor it. The result is $5$.", "5"),
        ("The number $\\lambda$ is 4.49.", "4.49"), ("So he needs 5 steps.", "5")],
}  # fmt: skip

NOT_RIGHT = {
    "percent in words": [("35 percent", "3.5"), ("5 percent", "5 \\text{ cm}"), ("12\\% \\text{ of } 50", "6")],
    "denied": [("The answer isn't 5.", "5"), ("The answer isn't \\boxed{5}.", "5"), ("The answer cannot be 5.", "5"),
        ("The answer can't be \\boxed{5}", "5"), ("The answer must not be 5", "5"), ("\\boxed{5} is not the answer.", "5"),
        ("\\boxed{5} is wrong.", "5"), ("5 is not the answer", "5"), ("The value of x doesn't equal 5.", "5"),
        ("The answer cannot possibly be 5", "5"), ("It is wrong that the answer is 5.", "5"), ("I doubt the answer is 5.", "5"),
        ("I don't believe the answer is 5", "5"), ("She doesn't have 5 apples", "5"), ("The answer, 5, is wrong", "5"),
        ("The answer is no longer 5", "5"), ("The answer is anything but 5", "5"), ("$x \\ne \\boxed{5}$", "5"),
        ("There's no way the answer is 5", "5"), ("Therefore \\boxed{5} cannot be the answer.", "5"), ("\\boxed{5} does not work", "5"),
        ("\\boxed{5} is not in the domain", "5"), ("5 is too small", "5"), ("\\boxed{5} fails.", "5")],
    "asked": [("Is the answer 5?", "5"), ("Could the answer be \\boxed{5}?", "5"), ("Is it \\boxed{5}?", "5"),
        ("The answer is 5? No.", "5"), ("What if the answer is 5?", "5"), ("Should the answer be 5 or 6?", "6"), ("是不是5？", "5")],
    "lists by name": [("p=3, q=2", "(p,q)=(2,3)"), ("(b,a)=(1,2)", "(a,b)=(1,2)"), ("x=1,y=2,x=2,y=1", "(2,1),(2,1)"),
        ("Alice, Bob", "Bob and Alice"), ("2k\\pi, k=1", "2k\\pi"),
        ("(1,2,3)", "\\{1,2,3\\}"), ("[3,5]", "3,5"), ("p=3,q=5", "5,3"), ("either $5$ or $6$", "6"),
        ("The roots are $x=5$ or $x=6$.", "6"), ("x_1=2, x_2=1", "(1,2)")],
    "another order": [("\\begin{pmatrix}1\\\\1\\end{pmatrix}\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}3\\\\7\\end{pmatrix}"),
        ("1+2+\\cdots+n", "1+2+\\cdots+m"), ("1+3+\\cdots+n", "1+2+\\cdots+n"), ("1+\\cdots+n", "1+3+\\cdots+n"),
        ("6,4,2,\\ldots", "2,4,6,\\ldots"), ("1,2,\\ldots", "1,2,\\ldots,9"), ("\\ldots", "5"),
        ("\\text{red} - \\text{blue}", "\\text{blue} - \\text{red}")],
    "sets and intervals": [("]2,3]", "[2,3]"), ("[2,3[", "[2,3]"), ("\\{2,3\\}", "(2,3)"), ("x > 2 or x < 3", "(2,3)"),
        ("(1,2),(3,4)", "(1,2)\\cup(3,4)"), ("all real numbers except 1", "x \\ne 0"), ("\\mathbb{R}^2", "(0,\\infty)")],
    "odd roots": [("\\sqrt[3]{2}", "3\\sqrt{2}"), ("(-4)^{1/2}", "-2"), ("(-8)^{1/3}", "2")],
    "letters": [("It can't be A or B, so C", "B"), ("The answer can't be A or B.", "B"), ("It is not B.", "B"), ("Is it C?", "C"),
        ("We can rule out A and B", "B"), ("We eliminate A, B, and D", "D"), ("So it's C because B is wrong", "B"),
        ("He got a grade of C", "C"), ("Everything except C", "C"), ("A不对，选B", "A"), ("不选B", "B"), ("Both A and B", "A"),
        ("C? No, D.", "C"), ("e", "E"), ("AB", "ab")],
    "tails": [("So we have 5 apples.\n\nPlease let me know within 7 days.", "7"), ("Thus we get 5.\n\n```python\nx = 7\n```", "7"),
        ("The answer is 5.\nUser: And 6? The answer is 6.", "6")],
    "Chinese prose": [("答案不是 5。", "5"), ("答案不是 \\boxed{5}", "5"), ("答案是 5 吗？", "5"), ("共有 3 种方法，不是 4 种。", "4"),
        ("无法确定，有 5 个未知数", "5"), ("因此，他不需要12元", "12")],
    "chains": [("\\boxed{5 \\approx 6}", "5"), ("\\boxed{5 \\approx 6}", "6"), ("x = 6 = 5", "5"), ("x = 6 = 5", "6"),
        ("So x = 6 = 5.", "5"), ("a \\approx b", "5"), ("\\boxed{yes = no}", "yes"), ("\\boxed{yes = no}", "no"), ("5=6", "6"),
        ("2+2=5", "5"), ("2+2=5", "4"), ("\\sqrt2 \\approx 1.5", "\\sqrt2"), ("7\\approx 6.9", "7"), ("f(2) = 2^2+2 = 5", "5"),
        ("5 = x = 6", "5"), ("1000 \\approx 999", "1000")],
    "given up": [("I cannot solve this problem with 5 unknowns.", "5"), ("I don't know the answer to question 5.", "5"),
        ("I give up after 3 tries.", "3"), ("There is not enough information to decide between these 4.", "4"),
        ("The answer is unclear; there are 5 cases", "5"), ("No idea, maybe one of the 5.", "5"), ("I'm stuck at step 5", "5"),
        ("Unable to determine which of the 12 works", "12"), ("I ran out of time on problem 7", "7"),
        ("Wait, I need to check 5", "5"), ("The answer is unknown: I tried 5 values", "5")],
    "grouped digits": [("1,234", "(1,234)"), ("1234", "(1,234)"), ("1,234", "\\{1,234\\}"), ("(10,000)", "(10,0)")],
    "programs": [("5 import os", "5"), ("5; DROP TABLE answers", "5"), ("5 exec", "5"), ("int(5)", "5")],
}  # fmt: skip


def rows(table):
    found = []
    for name, pairs in table.items():
        for number, (prediction, gold) in enumerate(pairs):
            found.append(pytest.param(prediction, gold, id=f"{name} {number}"))
    return found


@pytest.mark.parametrize(("prediction", "gold"), rows(RIGHT))
def test_an_answer_is_told_by_its_meaning(prediction, gold):
    assert verify(prediction, gold) == Outcome.ok


@pytest.mark.parametrize(("prediction", "gold"), rows(NOT_RIGHT))
def test_what_only_looks_like_the_answer_is_not_right(prediction, gold):
    assert verify(prediction, gold) != Outcome.ok
