"""Answers and golds: values of every kind a gold has, in LaTeX, plain and prose; answers that offer two of them;
kinds inside kinds; texts with damage; hostile ones.

`verify` never raises and counts no fault inside; where both are answers and no prose it says the same from both
sides; and no answer is right for two golds of different value.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgrpo_lite.rewards.math import math
from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.answers import committed, final_answer, last_boxed
from lgrpo_lite.verifier.verify import faults as inside
from lgrpo_lite.verifier.verify import gold_fault, verify
from lgrpo_lite.verifier.votes import normal

from .case import Told, about

from test_verifier_faults import KINDS, WRAPS, is_one_sided  # isort: skip
from test_verifier_hostile import HOSTILE  # isort: skip

COUNT, SECONDS, MEMORY = 20_000, 5.0, 400


@dataclass(frozen=True)
class Value:
    """A value by its key, and ways to write it; the first is plain."""

    key: Any
    forms: tuple[str, ...]


def _whole(draw: random.Random) -> Value:
    n = draw.randint(-99, 999)
    return Value(
        n,
        (
            f"{n}",
            f"{n}.0",
            f"${n}$",
            f"x = {n}",
            f"\\text{{{n}}}",
            f"{n}.",
            f"+{n}" if n >= 0 else f"- {-n}",
            f"\\left({n}\\right)",
            f"\\frac{{{2 * n}}}{{2}}",
        ),
    )


def _fraction(draw: random.Random) -> Value:
    top, bottom = draw.choice([1, 3, 7, 11, 13, 17]), draw.choice([2, 4, 8, 16])
    return Value(
        (top, bottom),
        (
            f"{top}/{bottom}",
            f"\\frac{{{top}}}{{{bottom}}}",
            f"\\dfrac{top}{{{bottom}}}",
            f"{top / bottom}",
            f"{top}\\div {bottom}",
            f"\\frac{{{3 * top}}}{{{3 * bottom}}}",
        ),
    )


def _root(draw: random.Random) -> Value:
    k, m = draw.randint(1, 9), draw.choice([2, 3, 5, 7])
    return Value(
        (k, m),
        (
            f"{k}\\sqrt{{{m}}}",
            f"{k}\\cdot\\sqrt {m}",
            f"\\sqrt{{{k * k * m}}}",
            f"{k}*sqrt({m})",
            f"{k}({m})^{{1/2}}",
        ),
    )


def _pi(draw: random.Random) -> Value:
    n = draw.randint(2, 40)
    return Value(n, (f"{n}\\pi", f"{n}π", f"{n}*pi", f"\\pi\\cdot {n}", f"\\frac{{{2 * n}\\pi}}{{2}}"))


def _complex(draw: random.Random) -> Value:
    a, b = draw.randint(1, 9), draw.randint(2, 9)
    return Value((a, b), (f"{a}+{b}i", f"{b}i + {a}", f"{a} + {b}\\mathrm{{i}}"))


def _polynomial(draw: random.Random) -> Value:
    a, b = draw.randint(2, 9), draw.randint(1, 9)
    return Value((a, b), (f"{a}x^2+{b}", f"{b}+{a}x^2", f"{a}x^{{2}} + {b}", f"{a}\\cdot x\\cdot x+{b}"))


def _tuple(draw: random.Random) -> Value:
    a, b = draw.randint(-9, 9), draw.randint(-9, 9)
    return Value((a, b), (f"({a},{b})", f"({a}, {b})", f"\\left({a},{b}\\right)"))


def _set(draw: random.Random) -> Value:
    a, b, c = sorted(draw.sample(range(-20, 20), 3))
    return Value(
        (a, b, c), (f"\\{{{a},{b},{c}\\}}", f"{{{c}, {a}, {b}}}", f"{a}, {b}, {c}", f"x={a}, x={b}, x={c}")
    )


def _interval(draw: random.Random) -> Value:
    a = draw.randint(-9, 5)
    b = a + draw.randint(1, 9)
    left, right = draw.choice("(["), draw.choice(")]")
    signs = "<" if left == "(" else "\\le", "<" if right == ")" else "\\le"
    return Value(
        (a, b, left, right),
        (
            f"{left}{a},{b}{right}",
            f"\\left{left}{a},{b}\\right{right}",
            f"{a}{signs[0]} x{signs[1]} {b}",
            f"x\\in {left}{a},{b}{right}",
        ),
    )


def _ray(draw: random.Random) -> Value:
    a, sign = draw.randint(-9, 9), draw.choice(["<", ">", "\\le", "\\ge"])
    return Value((a, sign), (f"x{sign} {a}", f"x {sign} {a}.0"))


def _percent(draw: random.Random) -> Value:
    n = draw.randint(2, 99)
    return Value(n, (f"{n}\\%", f"{n}%", f"{n} percent", f"{n} \\text{{ percent}}"))


def _length(draw: random.Random) -> Value:
    n = draw.randint(2, 99)
    return Value(n, (f"{n} \\text{{ cm}}", f"{n} cm", f"{n}\\,\\mathrm{{cm}}", f"{n} centimeters"))


def _letter(draw: random.Random) -> Value:
    letter = draw.choice("ABCDE")
    return Value(
        letter, (f"({letter})", letter, f"\\text{{({letter})}}", f"\\textbf{{{letter}}}", f"Option {letter}")
    )


def _word(draw: random.Random) -> Value:
    word = draw.choice(["east", "west", "yes", "no", "Monday", "isosceles", "Alice", "parabola"])
    return Value(word, (word, f"\\text{{{word}}}", f"\\textbf{{{word}}}", f"{word}."))


def _matrix(draw: random.Random) -> Value:
    cells = [draw.randint(-9, 9) for _ in range(4)]
    a, b, c, d = cells
    return Value(
        tuple(cells),
        (
            f"\\begin{{pmatrix}}{a}&{b}\\\\{c}&{d}\\end{{pmatrix}}",
            f"\\begin{{bmatrix}} {a} & {b} \\\\ {c} & {d} \\end{{bmatrix}}",
        ),
    )


def _large(draw: random.Random) -> Value:
    n = draw.randint(2, 9) * 1000 + draw.randint(0, 999)
    return Value(
        n,
        (
            f"{n}",
            f"{n:,}",
            f"{n:,}".replace(",", "{,}"),
            f"{n:,}".replace(",", "\\,"),
            f"{n // 1000}.{n % 1000:03}\\times 10^3",
        ),
    )


def _base(draw: random.Random) -> Value:
    n, base = draw.randint(10, 77), draw.choice([8, 9])
    return Value((n, base), (f"{n}_{base}", f"{n}_{{{base}}}"))


def _clock(draw: random.Random) -> Value:
    hour, minute = draw.randint(1, 11), draw.randint(10, 59)
    return Value(
        (hour, minute), (f"{hour}:{minute}", f"{hour}:{minute} pm", f"{hour}:{minute}\\text{{ p.m.}}")
    )


def _where(draw: random.Random) -> Value:
    n = draw.randint(2, 50)
    return Value(n, (f"y = {n}", f"y={n}", f"{n} = y", f"y = {n}.0"))


VALUES: tuple[Callable[[random.Random], Value], ...] = (
    _whole, _whole, _fraction, _root, _pi, _complex, _polynomial, _tuple, _set, _interval, _ray, _percent, _length, _letter, _word, _matrix,
    _large, _base, _clock, _where,
)  # fmt: skip
TWO = [
    "{a} or {b}", "{a}, {b}", "{a} and {b}", "{a}; {b}", "{a} = {b}", "x = {a} = {b}", "{a} \\approx {b}", "{a}\\ne {b}", "{a}\\to {b}", "{a} ({b})", "{a}/{b}", "{a}|{b}", "{a}\n{b}", "{a}\n\n{b}", "$ {a} $ $ {b} $",
    "\\boxed{{{a}}} or \\boxed{{{b}}}", "\\boxed{{{a}}}, \\boxed{{{b}}}", "\\boxed{{{a}}}\\boxed{{{b}}}", "\\boxed{{{a}}} and $\\boxed{{{b}}}$", "\\boxed{{{a} \\text{{ or }} {b}}}", "\\boxed{{{a},{b}}}",
    "\\boxed{{{a}={b}}}", "\\boxed{{{a}\\approx {b}}}", "\\boxed{{\\{{{a},{b}\\}}}}", "\\boxed{{\\boxed{{{a}}}{b}}}", "\\boxed{{{a}\\lor {b}}}", "\\boxed{{{a}\\\\{b}}}", "\\boxed{{{a}\\quad {b}}}", "\\boxed{{{a}}}\n#### {b}",
    "#### {a}\n#### {b}", "#### {a}\n\\boxed{{{b}}}", "<answer>{a}</answer>\n<answer>{b}</answer>", "<answer>{a}</answer> \\boxed{{{b}}}", "The answer is {a}. The answer is {b}.", "The answer is {a} or {b}.", "The answer is not {a} but {b}.",
    "The answer is {a}. Wait, {b}.", "It can't be {a}, so it is {b}.", "Either {a} or {b}", "{a} if x > 0, else {b}", "Answer: {a}\nAnswer: {b}", "**{a}** **{b}**", "The answer is {a}, which is {b}", "A: {a} B: {b}",
    "final answer {a} final answer {b}", "I think {a}, perhaps {b}", "\\boxed{{{a}}} is wrong; it is {b}", "{a} 不是 {b}", "答案是{a}或{b}", "\\boxed{{{a} \\text{{ (or }} {b})}}", "\\boxed{{\\pm {a}}}", "\\boxed{{\\cancel{{{a}}}{b}}}",
    "\\boxed{{{a}\\text{{ not }}{b}}}", "\\boxed{{\\max({a},{b})}}", "\\boxed{{\\phantom{{{a}}}{b}}}", "\\boxed{{{a}%{b}}}", "\\boxed{{{a} % {b}\n}}", "\\boxed{{{a}_{{{b}}}}}", "\\boxed{{{a}^{{}}{b}}}", "\\boxed{{{b}\\color{{white}}{a}}}",
]  # fmt: skip
ONE = [
    "{a}",
    "\\boxed{{{a}}}",
    "The answer is {a}.",
    "#### {a}",
    "<answer>{a}</answer>",
    "So $\\boxed{{{a}}}$.",
    "Therefore, {a}",
    "**Answer:** {a}",
    "{a} is the answer. Thanks!",
    "\\[\\boxed{{{a}}}\\]",
    "答案：{a}",
]
EMPTY = [
    "",
    "x",
    "\\infty",
    "\\emptyset",
    "nan",
    "any",
    "all real numbers",
    "\\boxed{}",
    "\\boxed{x}",
    "\\boxed{yes = no}",
    "\\boxed{?}",
    "\\boxed{\\ldots}",
    "\\boxed{*}",
    "\\boxed{x=x}",
    "\\mathbb{R}",
    "\\boxed{0/0}",
    "\\boxed{A,B,C,D,E}",
    "\\boxed{n}",
]
SIGNS = "\\{}()[]|$^_,.:;=<>+-*/!%&'\"#~ \n\t0123456789abxyABπ√∞≤≥×÷°−·∪∈，。（）\u200b\u202e\x00\ud800"


def prepare(folder: Path) -> None:
    inside.clear()


def attack(draw: random.Random, folder: Path, prepared: None) -> Told:
    return draw.choice([two_golds, two_golds, both_sides, both_sides, odd_text, odd_text, hostile_text])(draw)


def judged(answer: str, gold: str, faults: list[str]) -> bool:
    """Whether it is right; what must not happen goes to `faults`."""
    before = sum(inside.values())
    try:
        outcome = verify(answer, gold)
    except Exception as error:
        faults.append(f"verify raised {type(error).__name__}: {answer[:200]!r} for {gold[:200]!r}")
        return False
    if sum(inside.values()) > before:
        faults.append(f"a fault inside ({dict(inside)}): {answer[:200]!r} for {gold[:200]!r}")
    return outcome == Outcome.ok


def two_golds(draw: random.Random) -> Told:
    """Two values of a kind, and an answer that may offer both."""
    kind = draw.choice(VALUES)
    a, b = kind(draw), kind(draw)
    while a.key == b.key:
        b = kind(draw)
    template = draw.choice([*TWO, *TWO, *ONE])
    answer = (
        template.format(a=draw.choice(a.forms), b=draw.choice(b.forms))
        if draw.random() < 0.93
        else draw.choice(EMPTY)
    )
    if draw.random() < 0.2:
        answer = edited(draw, answer)
    golds = draw.choice(a.forms[:2]), draw.choice(b.forms[:2])
    about(f"{answer!r} for {golds}")
    faults: list[str] = []
    right = [judged(answer, gold, faults) for gold in golds]
    if all(right):
        faults.append(f"right for two golds: {answer!r} for {golds}")
    return Told(f"two golds: {kind.__name__[1:]} {sum(right)} right", tuple(faults), f"{right}")


def both_sides(draw: random.Random) -> Told:
    """Two answers without prose, of one value, of two, or of kinds inside kinds."""
    if draw.random() < 0.6:
        kind = draw.choice(VALUES)
        value = kind(draw)
        other = draw.choice([value, value, kind(draw), draw.choice(VALUES)(draw)])
        one, two = draw.choice(value.forms), draw.choice(other.forms)
        name = "one value" if value.key == other.key else "two values"
    else:
        one, two = (draw.choice(["{}", draw.choice(WRAPS)]).format(draw.choice(KINDS)) for _ in range(2))
        name = "kinds"
    about(f"{one!r} and {two!r}")
    faults: list[str] = []
    right, back = judged(one, two, faults), judged(two, one, faults)
    if right != back and not one_sided(one, two):
        faults.append(f"not the same from both sides: {one!r} for {two!r} is {right}")
    return Told(f"both sides: {name}, {'right' if right else 'wrong'}", tuple(faults), f"{right}, {back}")


def one_sided(one: str, two: str) -> bool:
    """Where the gold's side counts: groups of digits, several forms of one answer."""
    return is_one_sided(one, two)


def odd_text(draw: random.Random) -> Told:
    """Texts with damage, as an answer and as a gold."""
    value = draw.choice(VALUES)(draw)
    gold = draw.choice([draw.choice(value.forms), draw.choice(KINDS), edited(draw, draw.choice(KINDS))])
    text = draw.choice([draw.choice(ONE), draw.choice(TWO)]).format(
        a=draw.choice(value.forms), b=draw.choice(KINDS)
    )
    for _ in range(draw.randint(1, 4)):
        text = edited(draw, text)
    return everything(text, gold, "odd text")


def hostile_text(draw: random.Random) -> Told:
    text = draw.choice(HOSTILE)
    text = draw.choice(["{}", "\\boxed{{{}}}", "the answer is {}", "#### {}"]).format(
        text[: draw.choice([50, 500, 5000, 200_000])]
    )
    gold = draw.choice([draw.choice(KINDS), draw.choice(VALUES)(draw).forms[0], draw.choice(HOSTILE)[:5000]])
    return everything(text, gold, "hostile")


def everything(text: str, gold: str, name: str) -> Told:
    """All that is asked of a text on the way to a reward."""
    about(f"{text[:2000]!r} for {gold[:2000]!r}")
    faults: list[str] = []
    right = judged(text, gold, faults)
    judged(gold, text, faults)
    reward, outcome = math(text, gold)
    if (outcome == Outcome.ok) != right or reward not in (0.0, 1.0):
        faults.append(f"the reward is {reward}, {outcome}, and the verdict was {right}")
    gold_fault(text), normal(text), final_answer(text), committed(text), last_boxed(text)
    return Told(f"{name}: {outcome}", tuple(faults), f"{right}")


def edited(draw: random.Random, text: str) -> str:
    """One small change of a text."""
    place = draw.randrange(len(text) + 1)
    end = min(len(text), place + draw.randint(1, 8))
    kind = draw.randrange(5)
    if kind == 0:
        return text[:place] + text[end:]
    if kind == 1:
        return text[:place] + draw.choice(SIGNS) + text[place:]
    if kind == 2:
        return text[:end] + text[place:end] * draw.choice([1, 2, 30]) + text[end:]
    if kind == 3:
        return text[:place] + draw.choice(KINDS) + text[end:]
    return text[:place] + draw.choice(SIGNS) + text[place + 1 :]
