"""Generated arithmetic: the task of the embedded `tiny-math` model, for pretraining, RL and evaluation.

A problem is a chain of additions and subtractions, `47+36-58+9=?`, whose running value stays in 0..99. It can
be solved three ways, which differ in length and in how often a small model gets them right:

    direct   #### 34                                        short, a guess
    short    47+36-58=25 / 25+9=34 / #### 34                two operations a line
    steps    47+36=83 / 83-58=25 / 25+9=34 / #### 34        long, reliable

so a policy that may choose has a reason to prefer long answers, which is what λ-GRPO's token preference can
learn. `sums` asks a model that reads English: "What is 12 + 9?". Standard library only; the same seed gives
the same problems on every machine.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 16  # one problem in 16 belongs to `heldout`, decided by its text alone
STYLES = ("direct", "short", "steps")
LEAST, MOST = 2, 30  # numbers that are added in `sums`


@dataclass(frozen=True, slots=True)
class Problem:
    """`question` as the model reads it, `answer` as a decimal string, `values` the sum after each term."""

    question: str
    answer: str
    terms: tuple[str, ...]
    values: tuple[int, ...]

    def solution(self, style: str) -> str:
        """The worked answer in one of `STYLES`, ending in `#### answer`."""
        last = len(self.terms) - 1
        stride = {"direct": last, "short": 2, "steps": 1}[style]
        lines = []
        done = last if style == "direct" else 0
        while done < last:
            end = min(done + stride, last)
            before = self.values[done]
            after = self.values[end]
            operations = "".join(self.terms[done + 1 : end + 1])
            lines.append(f"{before}{operations}={after}")
            done = end
        lines.append(f"#### {self.answer}")
        return "\n".join(lines)


def split_of(question: str) -> Split:
    """The split a question belongs to: a hash of its text, so no two programs disagree and none can leak."""
    first_byte = hashlib.sha256(question.encode()).digest()[0]
    return "heldout" if first_byte % HELDOUT_SHARE == 0 else "train"


def problems(seed: int, split: Split, *, terms: tuple[int, int] = (4, 5)) -> Iterator[Problem]:
    """Endless problems of one split, without repeats of a question; `terms` is the range of chain lengths."""
    rng = random.Random(f"{seed}/{split}")
    given: set[str] = set()
    while True:
        problem = _draw(rng, rng.randint(*terms))
        question = problem.question
        if split_of(question) == split and question not in given:
            given.add(question)
            yield problem


def sums(seed: int, split: Split) -> Iterator[Problem]:
    """All sums of two numbers from LEAST to MOST of one split, in a seeded order. Both orders of a pair are
    in the same split: who knows 12 + 9 knows 9 + 12.
    """
    numbers = range(LEAST, MOST + 1)
    pairs = [(a, b) for a in numbers for b in numbers]
    random.Random(f"{seed}/{split}").shuffle(pairs)
    for a, b in pairs:
        if split_of(f"{min(a, b)}+{max(a, b)}") == split:
            yield Problem(f"What is {a} + {b}?", str(a + b), (str(a), f"+{b}"), (a, a + b))


TASKS: dict[str, Callable[[int, Split], Iterator[Problem]]] = {"arithmetic": problems, "sums": sums}


def _draw(rng: random.Random, count: int) -> Problem:
    value = rng.randint(10, 89)
    terms = [str(value)]
    values = [value]
    while len(terms) < count:
        size = rng.randint(1, 49)
        step = size * rng.choice((1, -1))
        if 0 <= value + step <= 99:
            value += step
            terms.append(f"{step:+d}")
            values.append(value)
    question = "".join(terms) + "=?"
    return Problem(question, str(value), tuple(terms), tuple(values))
