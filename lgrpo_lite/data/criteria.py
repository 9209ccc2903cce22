"""Criteria of a rubric as a data set holds them, checked one by one (RGR-GRPO, arXiv:2511.12344)."""

import json
import re
from collections.abc import Callable
from typing import Literal

from lgrpo_lite.errors import DataError, nearest
from lgrpo_lite.types import Criterion
from lgrpo_lite.verifier.plain_numbers import as_number

Rule = Literal["regex", "numeric", "unit"]
RULES: tuple[Rule, ...] = ("regex", "numeric", "unit")
CRITERION = ("text", "kind", "weight", *RULES)  # keys of a criterion in a data set
MAX_WEIGHT = 1e6  # of a criterion, so that no sum of them overflows


def criteria(items: object, column: str, place: str) -> tuple[Criterion, ...]:
    """A list of criteria, or the same as JSON in a string, which is how data sets on the Hub store it."""
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except (ValueError, RecursionError) as error:
            what = f"column {column!r} is not JSON: {error}"
            raise DataError(what, where=place, fix="a list of criteria as JSON") from None
    if not isinstance(items, list) or not items:
        fix = 'at least one criterion, e.g. [{"text": "adds the two prices", "weight": 2}]'
        raise DataError(f"column {column!r} holds no list of criteria", where=place, fix=fix)
    checked = []
    for i, item in enumerate(items, 1):
        checked.append(_criterion(item, f"criterion {i} in column {column!r}", place))
    return tuple(checked)


def _criterion(item: object, name: str, place: str) -> Criterion:
    def bad(what: str, fix: str) -> DataError:
        return DataError(f"{name}: {what}", where=place, fix=fix)

    if not isinstance(item, dict):
        raise bad("not an object", f"an object with the keys {', '.join(CRITERION)}")
    # on the Hub a key that is not there is null
    given = {key: value for key, value in item.items() if value is not None}
    for key in given:
        if key not in CRITERION:
            what = f"unknown key {key!r}{nearest(str(key), CRITERION)}"
            raise bad(what, f"use {', '.join(CRITERION)}")
    text = given.get("text")
    kind = given.get("kind", "process")
    weight = given.get("weight", 1)
    if not isinstance(text, str) or not text.strip():
        raise bad("no text", "add text: what must hold, in words")
    if kind not in ("factual", "process"):
        raise bad(f"kind {kind!r}", "one of factual, process")
    if not _is_number(weight) or not 0 < weight <= MAX_WEIGHT:
        raise bad(f"weight {weight!r}", f"a number above 0, at most {MAX_WEIGHT:g}")
    rules: list[Rule] = [rule for rule in RULES if rule in given]
    if len(rules) > 1:
        raise bad(f"{' and '.join(rules)} at once", "keep one of them, or make two criteria of it")
    if not rules:
        return Criterion(text, kind, float(weight), None, "")
    rule = rules[0]
    return Criterion(text, kind, float(weight), rule, _value(rule, given[rule], bad))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(rule: str, value: object, bad: Callable[[str, str], DataError]) -> str:
    """What a rule compares with, checked."""
    if rule == "numeric" and _is_number(value):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise bad(f"{rule} {value!r}", f"give {rule} as text")
    if rule == "numeric" and as_number(value) is None:
        raise bad(f"numeric {value!r} is no number", "e.g. 12, 0.5 or 3/4")
    if rule == "regex":
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise bad(f"the pattern is no regular expression: {error}", "mend the pattern") from None
    return value.strip() if rule == "unit" else value
