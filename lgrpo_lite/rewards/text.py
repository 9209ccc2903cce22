"""Rewards on a completion alone: answer against gold, exactly or as numbers, the format of an answer, and its length."""

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


def overlong(completion_tokens: int, *, limit: int, cache: int) -> tuple[float, Outcome]:
    """DAPO's soft penalty (arXiv:2503.14476) of n tokens, M=limit, C=cache: 0 up to M-C, (M-C-n)/C up to M, then -1."""
    return max(-1.0, min(0, limit - cache - completion_tokens) / cache), Outcome.ok
