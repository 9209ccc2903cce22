"""The verdict on a completion: which answer it gives, and whether that is the gold answer under a policy."""

import re
from functools import lru_cache

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.answers import MAX_ANSWER, bare, committed, final_answer, is_prose
from lgrpo_lite.verifier.compare import Leniency, measured, same
from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.read import Reading, read
from lgrpo_lite.verifier.spelling import words
from lgrpo_lite.verifier.symbolic import agrees
from lgrpo_lite.verifier.units import factor

DEFAULT = Leniency()
_LAST_LETTER = re.compile(r"\b([A-J])\b[\s.)*$}]*$")


def verify(prediction: str, gold: str, policy: Leniency = DEFAULT, *, extract: str = "final") -> Outcome:
    """Whether the answer of `prediction` is the gold's: ok, wrong, or unparsable when it
    gives none that could be read.

    Under `final` a text that marks no answer is one itself, if it can be read. What cannot be
    decided is wrong. Never raises.
    """
    if not isinstance(prediction, str) or not isinstance(gold, str):
        return Outcome.unparsable
    golden = read(gold_answer(gold))
    if not golden.spelled:
        return Outcome.unparsable
    if extract == "final" and prediction.strip() == gold.strip():
        return Outcome.ok
    prose = extract == "final" and is_prose(prediction) and committed(prediction) is None
    if prose and words(prediction) == words(golden.spelled):
        return Outcome.ok
    if prose and golden.choice and (letter := _LAST_LETTER.search(prediction[-200:])):
        return Outcome.ok if letter[1] == golden.choice else Outcome.wrong
    for candidate in candidates(prediction, extract):
        reading = read(candidate)
        if matches(reading, golden, policy):
            return Outcome.ok
        if reading.trees or reading.choice:
            return Outcome.wrong
    return Outcome.unparsable


def candidates(prediction: str, extract: str) -> list[str]:
    """The answers a text may give, the first that can be read counts."""
    if extract != "final":
        found = final_answer(prediction, extract)
        return [] if found is None else [found]
    if (marked := committed(prediction)) is not None:
        return [marked]
    whole = (
        []
        if len(prediction) > MAX_ANSWER or "<think>" in prediction or is_prose(prediction)
        else [bare(prediction)]
    )
    last = final_answer(prediction)
    return [*whole, *([] if last is None else [last])]


@lru_cache(maxsize=512)
def gold_answer(gold: str) -> str:
    """The answer in a gold that may be a worked solution."""
    long = "\n" in gold.strip() or is_prose(gold)
    marked = committed(gold) if long or "boxed" in gold or "####" in gold else None
    return marked if marked is not None else gold


def matches(reading: Reading, golden: Reading, policy: Leniency) -> bool:
    """Whether two readings are the same answer: typed the same, the same choice,
    the same words, or equal trees.
    """
    if not reading.spelled:
        return False
    if reading.spelled == golden.spelled or _typed_the_same(reading.spelled, golden.spelled):
        return True
    if golden.choice and (letter := _choice(reading)):
        return letter == golden.choice
    if _worded(golden.spelled) and _worded(reading.spelled):
        if words(reading.spelled) == words(golden.spelled) != "":
            return True
        if not golden.trees or not reading.trees:
            return False
    if _priced(reading, golden) or _priced(golden, reading):
        return False
    for i, tree in enumerate(reading.beside(golden)):
        for gold in golden.trees[:1] if i else golden.beside(reading):  # never the second reading of both
            try:
                if same(tree, gold, policy):
                    return True
            except (Undecided, RecursionError):
                continue
    return not (reading.trees and golden.trees) and agrees(reading.spelled, golden.spelled)


def _typed_the_same(a: str, b: str) -> bool:
    """Whether two texts differ in spaces only, none of which parts digits: 5 5 is not 55."""
    return a.replace(" ", "") == b.replace(" ", "") and not re.search(r"[\d.] +[\d.]", f"{a}|{b}")


def _priced(one: Reading, other: Reading) -> bool:
    """Whether one is a price and the other counts something else: $5 is not 5 inches."""
    unit = measured(other.trees[0])[1] if one.money and other.trees else ""
    return bool(unit) and factor(unit.split()[0], "dollar") is None


def _choice(reading: Reading) -> str | None:
    if len(reading.spelled) == 1 and reading.spelled.isalpha():
        return reading.spelled.upper()
    return reading.choice


def _worded(spelled: str) -> bool:
    """Whether an answer is words rather than a formula."""
    return bool(re.search("[a-zA-Z]{2,}", spelled)) and not re.search(
        r"[\\^_={}]", spelled.replace("\\text{", "").replace("}", "")
    )


def gold_fault(gold: object) -> str | None:
    """Why a gold answer cannot be verified against, or None. Words are no fault:
    they are compared as words.
    """
    if not isinstance(gold, str):
        return "the gold answer is missing"
    answer = gold_answer(gold)
    if not answer.strip():
        return "the gold answer is empty"
    if len(answer) > MAX_ANSWER:
        return f"the gold answer has {len(answer):,} characters, more than {MAX_ANSWER:,}"
    if fault := _unbalanced(answer):
        return fault
    reading = read(answer)
    if not reading.spelled:
        return "the gold answer has no visible characters"
    if not reading.trees and not _worded(reading.spelled) and not reading.choice:
        return f"the gold answer {_short(answer)} cannot be read: only an answer typed the same would count"
    return None


def _unbalanced(answer: str) -> str | None:
    depth = 0
    for sign in re.findall(r"\\[{}\\]|[{}]", answer):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            break
    if depth:
        return f"the gold answer {_short(answer)} has {'no closing' if depth > 0 else 'no opening'} brace"
    return None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
