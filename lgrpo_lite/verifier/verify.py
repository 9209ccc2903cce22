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
from lgrpo_lite.verifier.tree import Node
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
    if extract == "final":
        if prediction.strip() == gold.strip():
            return Outcome.ok
        outcome = _of_prose(prediction, golden)
        if outcome is not None:
            return outcome
    for candidate in candidates(prediction, extract):
        reading = read(candidate)
        if matches(reading, golden, policy):
            return Outcome.ok
        if reading.trees or reading.choice:
            return Outcome.wrong
    return Outcome.unparsable


def _of_prose(prediction: str, golden: Reading) -> Outcome | None:
    """Of prose that marks no answer: by the gold's very words, or by the letter at its end; else None."""
    if not is_prose(prediction) or committed(prediction) is not None:
        return None
    if words(prediction) == words(golden.spelled):
        return Outcome.ok
    letter = _LAST_LETTER.search(prediction[-200:])
    if not golden.choice or letter is None:
        return None
    return Outcome.ok if letter[1] == golden.choice else Outcome.wrong


def candidates(prediction: str, extract: str) -> list[str]:
    """The answers a text may give, the first that can be read counts."""
    if extract != "final":
        answer = final_answer(prediction, extract)
        return [] if answer is None else [answer]
    marked = committed(prediction)
    if marked is not None:
        return [marked]
    answers = []
    if len(prediction) <= MAX_ANSWER and "<think>" not in prediction and not is_prose(prediction):
        answers.append(bare(prediction))
    last = final_answer(prediction)
    if last is not None:
        answers.append(last)
    return answers


@lru_cache(maxsize=512)
def gold_answer(gold: str) -> str:
    """The answer in a gold that may be a worked solution."""
    worked = "\n" in gold.strip() or is_prose(gold)
    if not worked and "boxed" not in gold and "####" not in gold:
        return gold
    marked = committed(gold)
    return gold if marked is None else marked


def matches(reading: Reading, golden: Reading, policy: Leniency) -> bool:
    """Whether two readings are the same answer: typed the same, the same choice, the same words,
    or equal trees.
    """
    if not reading.spelled:
        return False
    if _typed_the_same(reading.spelled, golden.spelled):
        return True
    letter = _choice(reading)
    if golden.choice and letter:
        return letter == golden.choice
    both_read = bool(reading.trees and golden.trees)
    if _worded(golden.spelled) and _worded(reading.spelled):
        reading_words = words(reading.spelled)
        if reading_words and reading_words == words(golden.spelled):
            return True
        if not both_read:
            return False
    if _priced(reading, golden) or _priced(golden, reading):
        return False
    if _same_trees(reading, golden, policy):
        return True
    return not both_read and agrees(reading.spelled, golden.spelled)


def _same_trees(reading: Reading, golden: Reading, policy: Leniency) -> bool:
    """Whether any of what they may mean is the same, the second reading of both left out."""
    golden_trees = golden.beside(reading)
    for tree in reading.beside(golden):
        if any(_decided_same(tree, gold, policy) for gold in golden_trees):
            return True
        golden_trees = golden.trees[:1]
    return False


def _decided_same(tree: Node, gold: Node, policy: Leniency) -> bool:
    try:
        return same(tree, gold, policy)
    except (Undecided, RecursionError):
        return False


def _typed_the_same(a: str, b: str) -> bool:
    """Whether two texts differ in spaces only, none of which parts digits: 5 5 is not 55."""
    if a == b:
        return True
    if a.replace(" ", "") != b.replace(" ", ""):
        return False
    return not re.search(r"[\d.] +[\d.]", f"{a}|{b}")


def _priced(one: Reading, other: Reading) -> bool:
    """Whether one is a price and the other counts something else: $5 is not 5 inches."""
    if not one.money or not other.trees:
        return False
    _, unit = measured(other.trees[0])
    return bool(unit) and factor(unit.split()[0], "dollar") is None


def _choice(reading: Reading) -> str | None:
    if len(reading.spelled) == 1 and reading.spelled.isalpha():
        return reading.spelled.upper()
    return reading.choice


def _worded(spelled: str) -> bool:
    """Whether an answer is words rather than a formula."""
    if not re.search("[a-zA-Z]{2,}", spelled):
        return False
    unwrapped = spelled.replace("\\text{", "").replace("}", "")
    return not re.search(r"[\\^_={}]", unwrapped)


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
    fault = _unbalanced(answer)
    if fault is not None:
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
        missing = "no closing" if depth > 0 else "no opening"
        return f"the gold answer {_short(answer)} has {missing} brace"
    return None


def _short(text: str) -> str:
    shortened = text if len(text) <= 60 else text[:57] + "..."
    return repr(shortened)
