"""Generated arithmetic: the task of the embedded `tiny-math` model, for pretraining, RL and evaluation.

A problem is a chain of additions and subtractions, `47+36-58+9=?`, whose running value stays in 0..99. It can
be solved three ways, which differ in length and in how often a small model gets them right:

    direct   #### 34                                        short, a guess
    short    47+36-58=25 / 25+9=34 / #### 34                two operations a line
    steps    47+36=83 / 83-58=25 / 25+9=34 / #### 34        long, reliable

so a policy that may choose has a reason to prefer long answers, which is what λ-GRPO's token preference can
learn. Standard library only; the same seed gives the same problems on every machine.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 16  # one problem in 16 belongs to `heldout`, decided by its text alone
STYLES = ("direct", "short", "steps")


@dataclass(frozen=True, slots=True)
class Problem:
    """`question` as the model reads it, `answer` as a decimal string, `values` the
    running value after each term.
    """

    question: str
    answer: str
    terms: tuple[str, ...]
    values: tuple[int, ...]

    def solution(self, style: str) -> str:
        """The worked answer in one of `STYLES`, ending in `#### answer`."""
        stride = {"direct": len(self.terms), "short": 2, "steps": 1}[style]
        lines, done = [], 0
        while done < len(self.terms) - 1 and style != "direct":
            upto = min(done + stride, len(self.terms) - 1)
            lines.append(f"{self.values[done]}{''.join(self.terms[done + 1 : upto + 1])}={self.values[upto]}")
            done = upto
        return "\n".join([*lines, f"#### {self.answer}"])


def split_of(question: str) -> Split:
    """The split a question belongs to: a hash of its text,
    so no two programs can disagree and none can leak.
    """
    return "heldout" if hashlib.sha256(question.encode()).digest()[0] % HELDOUT_SHARE == 0 else "train"


def problems(seed: int, split: Split, *, terms: tuple[int, int] = (4, 5)) -> Iterator[Problem]:
    """Endless problems of one split, without repeats of a question; `terms` is the range of chain lengths."""
    rng, seen = random.Random(f"{seed}/{split}"), set()
    while True:
        problem = _draw(rng, rng.randint(*terms))
        if split_of(problem.question) == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def _draw(rng: random.Random, count: int) -> Problem:
    value = rng.randint(10, 89)
    terms, values = [str(value)], [value]
    while len(terms) < count:
        step = rng.randint(1, 49) * rng.choice((1, -1))
        if 0 <= value + step <= 99:
            value += step
            terms.append(f"{step:+d}")
            values.append(value)
    return Problem("".join(terms) + "=?", str(value), tuple(terms), tuple(values))
