"""Rewards on the text of a completion: answer against gold, exactly or as numbers, and the format of an answer."""

import re

from lgrpo_lite.answers import as_number, final_answer
from lgrpo_lite.types import Outcome


def exact(completion: str, reference: str, *, extract: str) -> tuple[float, Outcome]:
    """1 when the final answer equals the gold as text, white space aside; `unparsable` when there is no final answer."""
    answer = final_answer(completion, extract)
    if answer is None:
        return 0.0, Outcome.unparsable
    same = "".join(answer.split()) == "".join(reference.split())
    return (1.0, Outcome.ok) if same else (0.0, Outcome.wrong)


def numeric(completion: str, reference: str, *, extract: str) -> tuple[float, Outcome]:
    """1 when the final answer equals the gold as a number, exactly (0.50 = 1/2). A gold that is no number: as `exact`."""
    gold = as_number(reference)
    if gold is None:
        return exact(completion, reference, extract=extract)
    answer = final_answer(completion, extract)
    value = None if answer is None else as_number(answer)
    if value is None:
        return 0.0, Outcome.unparsable
    return (1.0, Outcome.ok) if value == gold else (0.0, Outcome.wrong)


def matches(completion: str, *, pattern: str) -> tuple[float, Outcome]:
    """1 when the regular expression is found in the completion (`format`)."""
    found = re.search(pattern, completion) is not None
    return (1.0, Outcome.ok) if found else (0.0, Outcome.wrong)
