"""Rewards that take the text as it is: the answer as text, as a number or by a pattern, format, length."""

import re
from typing import Annotated, Literal

from annotated_types import Ge

from lgrpo_lite.types import Outcome
from lgrpo_lite.verifier.answers import final_answer
from lgrpo_lite.verifier.plain_numbers import as_number

Extract = Annotated[Literal["final", "gsm8k", "boxed"], "where the answer stands; final: anywhere usual"]
Pattern = Annotated[str, "regular expression"]
Limit = Annotated[int, Ge(1), "longest answer, tokens; left out: model.max_new_tokens"]
Cache = Annotated[int, Ge(1), "tokens before `limit` over which it falls to -1"]


def exact(completion: str, reference: str, *, extract: Extract = "final") -> tuple[float, Outcome]:
    """1 when the final answer equals the gold as text, white space aside; `unparsable` when there is none."""
    return _same(final_answer(completion, extract), reference)


def numeric(completion: str, reference: str, *, extract: Extract = "final") -> tuple[float, Outcome]:
    """1 when the final answer equals the gold as a number, exactly (0.50 = 1/2).

    A gold that is no number: as `exact`.
    """
    gold = as_number(reference)
    if gold is None:
        return exact(completion, reference, extract=extract)
    answer = final_answer(completion, extract)
    value = None if answer is None else as_number(answer)
    if value is None:
        return 0.0, Outcome.unparsable
    return (1.0, Outcome.ok) if value == gold else (0.0, Outcome.wrong)


def matches(completion: str, *, pattern: Pattern) -> tuple[float, Outcome]:
    """1 when the regular expression is found in the completion (`format`)."""
    match = re.search(pattern, completion)
    return (0.0, Outcome.wrong) if match is None else (1.0, Outcome.ok)


def regex(completion: str, reference: str, *, pattern: Pattern) -> tuple[float, Outcome]:
    """1 when the last match's first group (the whole match, where the pattern has no group) equals the gold
    as text, white space aside; `unparsable` when there is no match.
    """
    last = None
    for match in re.finditer(pattern, completion):
        last = match
    if last is None:
        return 0.0, Outcome.unparsable
    return _same(last[1] if last.re.groups else last[0], reference)


def length(completion_tokens: int, *, limit: Limit) -> tuple[float, Outcome]:
    """-n/M of n tokens, M=limit: 0 for nothing said, -1 from M on. Its weight is the price of a token."""
    return -min(1.0, completion_tokens / limit), Outcome.ok


def overlong(completion_tokens: int, *, limit: Limit, cache: Cache = 4096) -> tuple[float, Outcome]:
    """DAPO's soft penalty (arXiv:2503.14476) of n tokens, M=limit, C=cache.

    0 up to M-C, (M-C-n)/C up to M, then -1.
    """
    over = min(0, limit - cache - completion_tokens)
    return max(-1.0, over / cache), Outcome.ok


def _same(answer: str | None, reference: str) -> tuple[float, Outcome]:
    """White space aside; `unparsable` where there is no answer."""
    if answer is None:
        return 0.0, Outcome.unparsable
    equal = "".join(answer.split()) == "".join(reference.split())
    return (1.0, Outcome.ok) if equal else (0.0, Outcome.wrong)
