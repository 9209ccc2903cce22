"""The verdict on a completion: which answer it gives, and whether that is the gold answer under a policy."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.answers import MAX_ANSWER, bare, committed, final_answer, last_said, marked_in, said
from lgrpo_lite.verifier.compare import same
from lgrpo_lite.verifier.endings import shown_last
from lgrpo_lite.verifier.evaluate import Undecided
from lgrpo_lite.verifier.leniency import Leniency
from lgrpo_lite.verifier.letters import chosen_letter, opening_letter
from lgrpo_lite.verifier.measures import measured
from lgrpo_lite.verifier.notation import is_phrase
from lgrpo_lite.verifier.prose import concludes, is_prose
from lgrpo_lite.verifier.read import Reading, read
from lgrpo_lite.verifier.shown import same_shown
from lgrpo_lite.verifier.spelling import words
from lgrpo_lite.verifier.symbolic import agrees
from lgrpo_lite.verifier.tails import without_courtesy
from lgrpo_lite.verifier.tree import Node, holds
from lgrpo_lite.verifier.units import factor, multiple

DEFAULT = Leniency()
faults: Counter[str] = Counter()  # exceptions that `verify` caught in this process, by their kind
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_TWO_LETTERS = frozenset(["no", "up", "am", "pm", "on", "in"])


def verify(prediction: str, gold: str, policy: Leniency = DEFAULT, *, extract: str = "final") -> Outcome:
    """Whether the answer of `prediction` is the gold's: ok, wrong, or unparsable when it
    gives none that could be read.

    Under `final` a text that marks no answer is one itself, if it can be read. What cannot be
    decided is wrong. Never raises: a fault inside is wrong too, counted in `faults`, and logged once a kind.
    """
    try:
        return _verdict(prediction, gold, policy, extract)
    except Exception as error:  # it would leave its group instead of scoring 0, so it would be worth writing
        return _faulty(error)


def _faulty(error: Exception) -> Outcome:
    kind = type(error).__name__
    faults[kind] += 1
    if faults[kind] == 1:
        message = "the math verifier failed on an answer, which counts as wrong"
        logging.getLogger(__name__).error(message, exc_info=error)
    return Outcome.wrong


def _verdict(prediction: str, gold: str, policy: Leniency, extract: str) -> Outcome:
    if not isinstance(prediction, str) or not isinstance(gold, str):
        return Outcome.unparsable
    golden = read(gold_answer(gold))
    if not golden.spelled:
        return Outcome.unparsable
    if extract != "final":
        answer = final_answer(prediction, extract)
        return _first_read([] if answer is None else [answer], golden, policy)
    if prediction.strip() == gold.strip():
        return Outcome.ok
    text = said(prediction)
    marked = marked_in(text)
    if marked is not None:
        return _first_read([marked], golden, policy)
    text = without_courtesy(text)
    outcome = _of_prose(text, golden)
    return _first_read(_unmarked(text), golden, policy) if outcome is None else outcome


def _first_read(candidates: Iterable[str], golden: Reading, policy: Leniency) -> Outcome:
    """The verdict on the first of the answers a text may give that can be read."""
    for candidate in candidates:
        reading = read(candidate)
        if matches(reading, golden, policy):
            return Outcome.ok
        if reading.trees or reading.choice:
            return Outcome.wrong
    return Outcome.unparsable


def _of_prose(text: str, golden: Reading) -> Outcome | None:
    """Of prose that marks no answer: by the gold's very words, or the letter it chooses; else None."""
    if is_prose(text) and words(text) == words(golden.spelled):
        return Outcome.ok
    letter = chosen_letter(text) or opening_letter(text) if golden.choice else None
    if letter is None:
        return None
    return Outcome.ok if letter == golden.choice else Outcome.wrong


def _unmarked(text: str) -> Iterator[str]:
    """The answers of a text that marks none: the whole, if it is no prose, and what its last line says."""
    one_answer = len(text) <= MAX_ANSWER and _BLANK_LINE.search(text.strip()) is None
    if one_answer and (not (is_prose(text) or concludes(text)) or is_phrase(text)):
        yield bare(text)
    for last in (shown_last(text), last_said(text)):
        if last is not None:
            yield last


@lru_cache(maxsize=512)
def gold_answer(gold: str) -> str:
    """The answer in a gold that may be a worked solution, or have a turn's end behind it."""
    if "<|" in gold:
        gold = said(gold)
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
    if reading.money and golden.money and reading.money != golden.money:  # €20 is not $20
        return False
    if _typed_the_same(reading.spelled, golden.spelled):
        return True
    letter = _choice(reading)
    if golden.choice and letter:
        return letter == golden.choice
    both_read = bool(reading.trees and golden.trees)
    if _worded(golden.spelled) and _worded(reading.spelled):
        reading_words = words(reading.spelled)
        same_figures = _figures(reading.spelled) == _figures(golden.spelled)
        if same_figures and reading_words and reading_words == words(golden.spelled):
            return not _name_two_things(reading.spelled, golden.spelled)
        items = _listed(reading.spelled)
        if items and items == _listed(golden.spelled):
            return True
        if not both_read:
            return False
    if _priced(reading, golden) or _priced(golden, reading):
        return False
    reading, golden = _in_dollars(reading, golden), _in_dollars(golden, reading)
    if _same_trees(reading, golden, policy):
        return True
    return not both_read and agrees(reading.spelled, golden.spelled)


def _same_trees(reading: Reading, golden: Reading, policy: Leniency) -> bool:
    """Whether any of what they may mean is the same, the second reading of both left out."""
    golden_trees = golden.beside(reading)
    for tree in reading.for_number(golden):
        if any(_decided_same(tree, gold, policy) for gold in golden_trees):
            return True
        golden_trees = golden.trees[:1]
    return False


def _decided_same(tree: Node, gold: Node, policy: Leniency) -> bool:
    def alike(a: Node, b: Node) -> bool:
        return same(a, b, policy)

    try:
        if holds(tree, "dots") or holds(gold, "dots"):
            return same_shown(tree, gold, alike)
        return alike(tree, gold)
    except (Undecided, RecursionError):
        return False


def _figures(spelled: str) -> list[str]:
    """Digits and signs of an answer in words, hyphens left out: -20 miles is no 20 miles, 1 2 gm no 12 gm."""
    return re.findall(r"\d+|\.(?=\d)|[+*/!]|(?<![A-Za-z])-|-(?![A-Za-z])", spelled)


def _listed(spelled: str) -> list[str]:
    """The items of a list in words, Alice and Bob, in their order; [] of anything else."""
    if re.search(r"[\d=<>^_]", spelled):
        return []
    items = [words(item) for item in re.split(r"[,;]|\band\b", spelled.replace("\\text", ""))]
    return [item for item in items if item] if len(items) > 1 else []


def _name_two_things(a: str, b: str) -> bool:
    """Whether two letters are a name in another case: AB is no ab, while No is no."""
    return len(a) == len(b) == 2 and a != b and a.lower() not in _TWO_LETTERS


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
    if not unit or multiple(unit)[0] != 1:
        return False
    return factor(unit.split()[0], "dollar") is None


def _in_dollars(one: Reading, other: Reading) -> Reading:
    """A price in dollars beside one in cents, with its unit: $0.75 is 75 cents."""
    if one.money != "$" or not other.trees or not one.trees:
        return one
    _, unit = measured(other.trees[0])
    if not unit or factor(unit, "cent") is None:
        return one
    return replace(one, trees=(("unit", one.trees[0], "dollar"),))


def _choice(reading: Reading) -> str | None:
    one_letter = len(reading.spelled) == 1 and reading.spelled.isalpha()
    if one_letter and reading.spelled not in ("e", "i"):  # which are numbers
        return reading.spelled.upper()
    bracketed = re.fullmatch(r"(?:\\text\{)?\(([a-j])\)\}?", reading.spelled)
    return bracketed[1].upper() if bracketed else reading.choice


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
