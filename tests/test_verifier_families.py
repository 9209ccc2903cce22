"""Answers with something free in them: a whole number, a constant, a name; and notations that say the same."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import named_pairs

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.verify import verify

Z = ", k\\in\\mathbb{Z}"
RIGHT = {
    "families": [("x=n\\pi, n \\in \\mathbb{Z}", f"x=k\\pi{Z}"), ("x=2k\\pi \\text{ or } x=(2k+1)\\pi" + Z, f"x=k\\pi{Z}"),
        ("x=\\frac{(2n+1)\\pi}{4},\\ n\\in\\mathbb{Z}", f"x=\\frac{{\\pi}}{{4}}+\\frac{{k\\pi}}{{2}}{Z}"),
        ("x=\\pm\\frac{\\pi}{4}+m\\pi, m\\in\\mathbb{Z}", f"x=\\frac{{\\pi}}{{4}}+\\frac{{k\\pi}}{{2}}{Z}"),
        ("x=(-1)^n\\frac{\\pi}{6}+n\\pi, n\\in\\mathbb{Z}", f"x=\\frac{{\\pi}}{{6}}+2k\\pi \\text{{ or }} x=\\frac{{5\\pi}}{{6}}+2k\\pi{Z}"),
        ("\\{2\\pi n \\mid n\\in\\mathbb{Z}\\}", "\\{2k\\pi : k \\in \\mathbb{Z}\\}"), ("2k\\pi", "2n\\pi, n\\in\\mathbb{Z}"),
        ("(x,y)=(5k-2, 1-2k)" + Z, "(x,y)=(3+5t,-1-2t), t\\in\\mathbb{Z}"),
        ("n=(2k-1)(2k+1), k=1,2,3,\\ldots", "n=4k^2-1, k\\in\\mathbb{Z}_{>0}"),
        ("x = k\\pi + \\frac{\\pi}{4} \\quad (k \\in \\mathbb{Z})", f"x=\\frac{{\\pi}}{{4}}+k\\pi{Z}")],
    "congruences": [("n\\equiv -4 \\pmod 7", "n \\equiv 3 \\pmod{7}"), ("n = 7k+3" + Z, "n \\equiv 3 \\pmod{7}"),
        ("$n \\equiv 10 \\ (\\mathrm{mod}\\ 7)$", "n \\equiv 3 \\pmod{7}"), ("n=7k-4" + Z, "n\\equiv 3 \\pmod 7"),
        ("n=6k\\pm1,\\ k\\in\\mathbb{Z}", "n\\equiv 1 \\text{ or } 5 \\pmod 6"), ("n\\equiv 4,1 \\pmod{5}", "n\\equiv 1,4 \\pmod{5}")],
    "counted families": [("z=2^{1/3}e^{2k\\pi i/3}, k=-1,0,1", "z=\\sqrt[3]{2} e^{2\\pi i k/3}, k=0,1,2"),
        ("z\\in\\{1,i,-1,-i\\}", "z=e^{k\\pi i/2}, k=0,1,2,3")],
    "free constants": [("y=e^{2x}(A+Bx)", "y=C_1e^{2x}+C_2xe^{2x}"), ("y=A\\cosh x+B\\sinh x", "y=C_1e^{x}+C_2e^{-x}"),
        ("y=A\\sin 3x+B\\cos 3x-\\frac19x", "y=C_1\\cos 3x+C_2\\sin 3x-\\frac{x}{9}"), ("-\\frac14\\cos 2x+C", "\\frac12\\sin^2x+C"),
        ("x/2-1/4+Ce^{-2x}", "\\frac x2-\\frac14+ce^{-2x}"), ("f(x)=kx,\\ k\\in\\mathbb{R}", "f(x)=cx,\\ c\\in\\mathbb{R}"),
        ("f(x) = cx \\text{ for any real constant } c", "f(x)=cx, c\\in\\mathbb{R}"), ("x^2+K", "x^2+C")],
    "names of a whole": [("m^2+n^2=13", "13"), ("a + b + c + d + e + f = 2k", "2k"), ("AF^2+BF^2=3R^2", "3R^2"),
        ("\\frac{V_o(s)}{V_i(s)}=\\frac{1}{1+RCs}", "\\frac{1}{RCs+1}"), ("g(x) \\in [-80, 82]", "-80\\leq g(x)\\leq 82"),
        ("Lösungen: $x_1=-2$, $x_2=9$", "x=-2 \\text{ or } x=9"), ("\\lambda=2-3i \\text{ or } \\lambda=2+3i", "\\lambda_{1,2}=2\\pm3i"),
        ("So $\\angle A = 60^\\circ$ or $120^\\circ$.", "60^\\circ, 120^\\circ"),
        ("A^n=\\begin{bmatrix}1&n\\\\0&1\\end{bmatrix}", "\\begin{pmatrix}1&n\\\\0&1\\end{pmatrix}")],
    "relations": [("|x+2y|\\le\\sqrt5", "-\\sqrt5\\le x+2y\\le\\sqrt5"), ("y''=4y", "y''-4y=0"), ("\\frac{d^2y}{dx^2}=-4y", "y''+4y=0")],
    "numbers in a base": [("2\\mathrm{A}7_{16}", "2A7_{16}"), ("(\\mathrm{A}5)_{11}", "\\text{A5}_{11}"), ("(1323)_4", "1323_{4}"),
        ("{777}_8", "777_8")],
    "columns and rows": [("(1,-2,2)^T", "\\begin{pmatrix}1\\\\-2\\\\2\\end{pmatrix}"), ("[[0,-1],[1,0]]", "\\begin{pmatrix}0&-1\\\\1&0\\end{pmatrix}"),
        ("\\langle 1,-2\\rangle", "\\begin{pmatrix}1\\\\-2\\end{pmatrix}"), ("\\begin{pmatrix}1&2\\end{pmatrix}^\\top", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\begin{bmatrix}\\frac12\\\\[4pt]3\\end{bmatrix}", "\\begin{pmatrix}1/2\\\\3\\end{pmatrix}")],
    "typing": [("4{:}30\\text{ p.m.}", "\\text{4:30 PM}"), ("\\frac{12}{5525}", "\\frac{12}{5,\\!525}"), ("\\mathrm{\\frac{3}{8}}", "\\frac38"),
        ("\\arcsin\\frac{10}{13}", "np.arcsin(10/13)"), ("\\max\\{a,b\\}", "\\max(a,b)"), ("\\operatorname{arsinh} 1", "\\ln(1+\\sqrt2)"),
        ("\\textbf{(C)}\\ \\frac{7}{3}", "C"), ("\\text{negative infinity}", "-\\infty"), ("\\text{does not exist}", "\\text{DNE}"),
        ("\\frac{7}{10", "\\frac{7}{10}"), ("(1,2) \\text{ oder } (-1,-2)", "(1,2),(-1,-2)"), ("(nπħ)²/(2mL²)", "\\frac{n^2\\pi^2\\hbar^2}{2mL^2}"),
        ("$1.60\\times 10^{-19}$ C", "1.6\\times10^{-19}\\ \\text{C}"), ("150^\\circ", "\\frac{5\\pi}{6} \\text{ rad}"),
        ("4.5\\times 10^{33}\\ \\text{erg s}^{-1}", "4.5e33"), ("864 square inches", "864 \\mbox{ inches}^2")],
    "shown at the end": [("So the values are **-2, 1+√5 and 1-√5**.", "\\{1\\pm\\sqrt{5},-2\\}"), ("The letters are **B**, **E**, and **G**.", "\\text{B, E, G}"),
        ("The order is **Softball, Kickball, Picnic**.", "\\text{Softball, Kickball, Picnic}"), ("We use it.\n\n### Final answer\ncos(58°)", "\\cos 58^\\circ"),
        ("So the sine is one half.\n\nθ ∈ {π/6, 5π/6}", "\\frac\\pi6, \\frac{5\\pi}6"), ("Then we take the root.\n\nx = \\sqrt{2}", "\\sqrt2"),
        ("The pair is **f(n) = n, g(n) = 1** (for all n).", "$f(n)=n$, $g(n)=1$"), ("Respuesta correcta: **B**", "B"),
        ("**Minimum value:** $-\\frac94$ (attained at $x=\\frac32$)", "-\\frac94"), ("### Final Answer\n\n**(C)** 18", "C"),
        ("Putting it together:\n\n$$\n\\frac12 + \\frac13 = \\frac56\n$$", "\\frac56"), ('```json\n{"work": [3], "final_answer": 84}\n```', "84"),
        ("<final_answer>2/9</final_answer></solution>", "\\frac29"), ("We get $\\boxed{7}$.\nThe final answer is positive, because both are.", "7")],
    "beside the answer": [("**Answer:** $\\frac{5}{2}$ (or 2.5)", "\\frac52"), ("It takes 12 minutes to fill the 600-litre tank.", "12"),
        ("So Marta walks \\(6 \\times 9 = 54\\) kilometres over the 9 days.", "54"), ("Hence the least is $n = 4$. $\\blacksquare$", "4"),
        ("The slope is $-\\frac23$, the negative reciprocal of $\\frac32$.", "-\\frac23"), ("We obtain 20 rather than 21, because it is shared.", "20"),
        ("The sandwich costs 370 cents. (As a check, 2·370 + 170 = 910.)", "370"), ("**A.** $x^2 + 1$", "A"), ("Final: 13/20 = 0.65 = 65%", "\\frac{13}{20}"),
        ("It is **1/8**.\n\nCommon mistake: adding, 1/2 + 1/2 = 1, which is impossible.", "1/8")],
    "read as before": [("V(1-e^{-t/(CR)})", "V(1-e^{-t/(RC)})"), ("\\frac{VC_1}{C_2+C_1}", "\\frac{C_1V}{C_1+C_2}"), ("The answer is 2(x + 1)", "2(x+1)"),
        ("Answer: 3(n - 1).", "3(n-1)"), ("x > k, k\\in\\mathbb{Z}", "k < x, k\\in\\mathbb{Z}"), ("A^T \\cdot 2", "2A^T"),
        ('{"answer": 5}\n\nThe final answer is 7.', "7"), ("x=10^{400}+k" + Z, "x=k" + Z), ("\\{" + ",".join(map(str, range(900))) + "\\}", "\\{" + ",".join(map(str, range(900)[::-1])) + "\\}")],
    "names of sets": [("x = \\frac{\\pi}{6} + k\\pi, \\ k \\in \\mathbb{Z}", "$x=k \\pi+\\frac{\\pi}{6}, k \\in \\mathbf{Z}$"),
        ("M \\cap N = \\{-2, 0, 7\\}", "\\{-2,0,7\\}")],
    "labels": [
        ("Итого $4^3 = 64$.\n\n**Ответ:** 64", "64")],
}  # fmt: skip
NOT_RIGHT = {
    "families": [(f"x=k\\pi{Z}", f"x=2k\\pi{Z}"), (f"x=2k\\pi{Z}", f"x=k\\pi{Z}"), (f"x=\\frac\\pi4+k\\pi{Z}", f"x=\\frac\\pi3+k\\pi{Z}"),
        ("x=2k\\pi \\text{ or } x=(4k+1)\\pi" + Z, f"x=k\\pi{Z}"), ("n=4k^2-1" + Z, "n=(2k-1)(2k+1), k \\in \\mathbb{N}"),
        ("(5k-2, 1+2k)" + Z, "(3+5t,-1-2t), t\\in\\mathbb{Z}"), ("x=\\pi", f"x=k\\pi{Z}"),
        ("x=3+7t,\\ y=2+5t,\\ t\\in\\mathbb{Z}", "x=3+7t,\\ y=2-5t,\\ t\\in\\mathbb{Z}"), ("x=1-2n, y=n, n\\in\\mathbb{Z}", "x=1+2n, y=n, n\\in\\mathbb{Z}"),
        ("[2k\\pi,(2k+1)\\pi]" + Z, "(2k\\pi,(2k+1)\\pi)" + Z)],
    "keys": [("C + 10^{50}", "\\ln|x|+C"), ("C + 10^{37}", "\\tan x+C"), ("C+10^{11}", "x^3+C"), ("c e^{-2x} + 10^{37}e^{-2x}", "x / 2-1 / 4+c e^{-2 x}"),
        ("C(10^{60}+x) + \\frac{x^2}{2}", "\\frac{x^2}{2} + C"), ("f(x)=icx", "f(x)=cx, c\\in\\mathbb{R}"), ("k, k\\in\\mathbb{Z}", "n"),
        ("5 \\text{ doubled}", "5")],
    "figures in words": [("-20 miles", "20\\text{ miles}"), ("2 \\text{ or } -12", "-2 \\text{ or } -12"), ("(ab + ac + bc)", "-(ab + ac + bc)"),
        ("-np.arcsin(10/13)", "np.arcsin(10/13)"), ("1 2 \\text{ gm}", "12 \\text{ gm}"), ("-sqrt(2)", "sqrt(2)"), ("infinity", "-infinity"),
        (".75 miles", "75 miles"), ("12-7 boys", "127 boys")],
    "what is no name": [("\\boxed{x=1, 4y=2}", "(1,2)"), ("x=1, y^2=2", "(1,2)"), ("\\boxed{x \\cdot 2 = 6}", "6"), ("y 7= x^2 + 2", "y = x^2 + 2")],
    "several at once": [("(A) or (B) or (C)", "A"), ("\\boxed{(B) \\text{ is wrong}}", "B"), ("5 or 500\\% or 5 cm", "5"), ("0.5 or 50", "50\\%")],
    "families that nobody declared": [("2n+3, n\\in\\mathbb{Z}", "2n+1"), ("-n, n\\in\\mathbb{Z}", "n"), ("0 \\pmod 1", "n+1"),
        ("f(n)=n+5, n\\in\\mathbb{Z}", "f(n)=n"), ("y=k\\pi" + Z, "x=k\\pi" + Z), ("10", "n = 1, 2, \\ldots, 10"),
        ("x=(-1)^{n(n+1)/2}\\pi/6+n\\pi, n\\in\\mathbb{Z}", "x=(-1)^n\\pi/6+n\\pi, n\\in\\mathbb{Z}"),
        ("x\\equiv 4 \\pmod 7, y\\equiv 3 \\pmod 7", "x\\equiv 3 \\pmod 7, y\\equiv 4 \\pmod 7"),
        ("3 \\pmod{" + "9" * 10_000 + "}", "3 \\pmod 7"), ("\\boxed{x=5000!k, x=4999!k+1, k\\in\\mathbb{Z}}", "x=k, k\\in\\mathbb{Z}")],
    "constants of another size": [("\\boxed{10^{40}C}", "y = C e^x"), ("y=10^{40}C_1 x+10^{40}C_2", "y=C_1e^x+C_2e^{-x}"),
        ("x^2/2+10^{40}C x", "x^2/2+C"), ("10^{40}C", "f(x)=cx, c\\in\\mathbb{R}")],
    "quantities": [("q=5CV(1-e^{-t/\\tau})", "q=CV(1-e^{-t/\\tau})"), ("xy-C", "xy+C"), ("x+1000q", "x+c"), ("F=-k_1x", "F=k_1x"),
        ("k_1y+k_2x", "k_1x+k_2y")],
    "what stands behind": [(f"The answer is 5 ({aside})", "5") for aside in ("or 7", "actually 7", "which is wrong", "times pi", "in base 7")]
        + [("So it is **5** (no, it is 7)", "5"), ("So it is **5** (or 7)", "5"), ("I get **5**, maybe **7**", "7"), ("## Final Answer\n**5****7**", "57"),
        ("The answer is 2(x + 1)", "2"), ("The solutions are $x=5$, the second of which is $x=7$", "5"), ("It is $5$, for which we must add 2, giving $7$", "5"),
        ("The total is 5.\nCheck: wrong, it is 7.", "5"), ("x = 5\nVerification: 5 does not satisfy the equation, so x = 7.", "5"),
        ("The minimum is 5 (if x = 2, else 7)", "5"), ("She sold 5 and the 7 apples", "5"), ("We need 5 times the 7 boxes", "5"),
        ('{"answer": 5}\n\nThe final answer is 7.', "5"), ('{"answer": 5, 7}', "5"), ('{"answer": 5 7}', "5")],
    "congruences": [("n\\equiv 4 \\pmod 7", "n\\equiv 3 \\pmod{7}"), ("n=14k+3" + Z, "n\\equiv 3 \\pmod{7}"), ("n\\equiv 3 \\pmod{14}", "n\\equiv 3 \\pmod{7}")],
    "counted families": [("z=e^{k\\pi i/2}, k=0,1,2", "z=e^{k\\pi i/2}, k=0,1,2,3")],
    "free constants": [("y=C_1e^x", "y=C_1e^x+C_2e^{-x}"), ("y=C_1e^x+C_2e^{2x}", "y=C_1e^x+C_2e^{-x}"), ("x^2+5", "x^2+C"), ("x^2", "x^2+C"),
        ("2x^2+C", "x^2+C"), ("E=2mc^2", "E=mc^2"), ("f(x)=2x", "f(x)=cx, c\\in\\mathbb{R}"), ("f(x)=c", "f(x)=cx, c\\in\\mathbb{R}"),
        ("y=Ce^{2x}", "y=Ce^{x}"), ("x^2+y^2=C", "x^2+y^2=Cx"), ("y=e^{x+C}", "y=Ce^{x}"), ("ab-c", "ab+c"), ("x^2+bx-c", "x^2+bx+c"), ("mx-c", "mx+c"), ("S-c", "S+c")],
    "names of a whole": [("x^2=4", "4"), ("2x=4", "4"), ("x^2+y^2=4", "4"), ("m+n=13", "14"), ("yes = no", "no"), ("g(x) \\in [-80, 82)", "-80\\leq g(x)\\leq 82")],
    "relations": [("|x+2y|<\\sqrt5", "-\\sqrt5\\le x+2y\\le\\sqrt5"), ("y''=-4y", "y''-4y=0"), ("y'=4y", "y''-4y=0")],
    "numbers in a base": [("2A7_{12}", "2A7_{16}"), ("\\text{A5}_{12}", "\\text{A5}_{11}"), ("1101", "1101_2"), ("115", "\\text{A5}_{11}"), ("A_{11}", "A_{12}")],
    "columns and rows": [("\\begin{pmatrix}1&-2\\end{pmatrix}", "\\begin{pmatrix}1\\\\-2\\end{pmatrix}"), ("A^TB^T", "B^TA^T")],
    "typing": [("4:30 a.m.", "\\text{4:30 p.m.}"), ("35\\text{ rad}", "35^\\circ"), ("(3,\\,125)", "3125"), ("\\max\\{a,b\\}", "\\min(a,b)"), ("864 cubic inches", "864 \\mbox{ inches}^2")],
    "shown at the end": [("The answer is wrong: **5**", "5"), ("It is not **5**.", "5"), ("We get **5**? No.", "5"),
        ("First we find **5** and then the sum is 12.", "5"), ("Then\n\nx = 5\n\nNo, that is wrong.", "5"),
        ("**Answer: 15**\n\nHmm, one of them is degenerate, so 15 is wrong. The correct count is 14.", "15"),
        ("**Answer: 15**\n\nCorrection: it is 14.", "15"), ("Hence the area is less than $25$.", "25"),
        ("**Minimum value:** $-\\frac94$ (attained at $x=\\frac32$)", "\\frac32"), ("No sé la respuesta; podría ser 40.", "40")],
    "beside the answer": [("It takes 12 minutes to fill the 600-litre tank.", "600"), ("So Marta walks 54 kilometres over the 9 days.", "9"),
        ("The final answer is $\\frac{9}{14}$, the complement of $\\frac{5}{14}$.", "\\frac{5}{14}"), ("Hence $n$ is a multiple of 6.", "6"),
        ("The sandwich costs 370 cents. (As a check, 2·370 + 170 = 910.)", "910"), ("Assume, for contradiction, that the answer is 100.", "100"),
        ("So the sum of the cubes equals 27. \\tag{8}", "8")],
}  # fmt: skip


@pytest.mark.parametrize(("prediction", "gold"), named_pairs(RIGHT))
def test_what_says_the_same_is_right(prediction, gold):
    assert verify(prediction, gold) == Outcome.ok


@pytest.mark.parametrize(("prediction", "gold"), named_pairs(NOT_RIGHT))
def test_what_says_nearly_the_same_is_not_right(prediction, gold):
    assert verify(prediction, gold) != Outcome.ok


STEPS = st.fractions(min_value=Fraction(1, 6), max_value=6, max_denominator=6)


def a_family(start: Fraction, step: Fraction, counter: str) -> str:
    return f"x=({start})+({step}){counter}, {counter}\\in\\mathbb{{Z}}"


@settings(deadline=None, max_examples=60)
@given(
    start=st.fractions(-5, 5, max_denominator=6),
    step=STEPS,
    shift=st.integers(-4, 4),
    parts=st.integers(1, 5),
)
def test_a_family_begins_anywhere_runs_either_way_and_comes_in_parts(start, step, shift, parts):
    gold = a_family(start, step, "k")
    assert verify(a_family(start + shift * step, -step, "n"), gold) == Outcome.ok
    split = [f"x=({start + i * step})+({parts * step})m" for i in range(parts)]
    assert verify(" \\text{ or } ".join(split) + ", m\\in\\mathbb{Z}", gold) == Outcome.ok
    if parts > 1:
        assert verify(" \\text{ or } ".join(split[1:]) + ", m\\in\\mathbb{Z}", gold) != Outcome.ok
    assert verify(a_family(start + step / 2, step, "n"), gold) != Outcome.ok


@settings(deadline=None, max_examples=40)
@given(a=st.integers(-3, 3), b=st.integers(-3, 3), c=st.integers(-3, 3), d=st.integers(-3, 3))
def test_two_solutions_span_what_their_combinations_span(a, b, c, d):
    answer = f"y=A(({a})e^x+({b})e^{{-2x}})+B(({c})e^x+({d})e^{{-2x}})"
    spans = a * d != b * c
    assert (verify(answer, "y=C_1e^x+C_2e^{-2x}") == Outcome.ok) == spans
