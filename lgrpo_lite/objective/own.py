"""Functions of a user's file in the place of a brick: what each gives is held against what a brick gives, and
what is wrong with it is a DataError at its own file and line, with what was expected.
"""

import math
from collections.abc import Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

from lgrpo_lite.errors import DataError
from lgrpo_lite.objective.advantage import Advantage, Credit
from lgrpo_lite.recipe.algorithm import Algorithm
from lgrpo_lite.recipe.plugin import blamed, is_file, line_of
from lgrpo_lite.types import Group, Rollout

if TYPE_CHECKING:  # an advantage is looked at without torch
    from torch import Tensor

    from lgrpo_lite.objective.surrogate import Surrogate, Terms

LARGEST = 1e18  # of a credit: beyond it a square leaves float32, and the gradient with it
ROWS = (
    "an advantage takes (groups, parts) and returns a list: for each group a list with a finite number for"
    " each of its rollouts, or with a list of one for each token"
)
GAIN = (
    "a surrogate takes Terms and returns (gain, counts): a tensor of Terms.logp's shape that has its"
    " gradient, and a dict of tensors of that shape"
)


def advantage(use: str, function: Advantage) -> Advantage:
    """The function itself, or one of a user's file with what it gives checked, its numbers as floats."""
    if not is_file(use):
        return function

    @wraps(function)
    def checked(groups: Sequence[Group], parts: Algorithm) -> list[list[Credit]]:
        with blamed(use, ROWS):
            rows = function(groups, parts)
        _sized(use, rows, len(groups), "rows", f"{len(groups)} groups")
        credits = []
        for number, (row, group) in enumerate(zip(rows, groups, strict=True)):
            size = len(group.rollouts)
            _sized(use, row, size, "numbers", f"the {size} rollouts of group {number}")
            answers = zip(row, group.rollouts, strict=True)
            credits.append([_credit(use, value, rollout) for value, rollout in answers])
        return credits

    return checked


def surrogate(use: str, function: "Surrogate") -> "Surrogate":
    """The function itself, or one of a user's file with what it gives checked."""
    if not is_file(use):
        return function

    @wraps(function)
    def checked(terms: "Terms") -> "tuple[Tensor, dict[str, Tensor]]":
        import torch

        with blamed(use, GAIN):
            given = function(terms)
        if not isinstance(given, tuple) or len(given) != 2:
            _refuse(use, f"gave {_kind(given)}, not (gain, counts)", GAIN)
        gain, counts = given
        _tensor(use, "gain", gain, terms)
        if terms.logp.requires_grad and not gain.requires_grad:
            _refuse(use, "gave a gain without a gradient, so nothing would be learned", GAIN)
        known = all(bool(torch.isfinite(x).all()) for x in (terms.logp, terms.x, terms.batch.advantage))
        if known and not bool(torch.isfinite(gain).all()):
            _refuse(use, "gave a gain that is not finite, of numbers that are", GAIN)
        if not isinstance(counts, dict):
            _refuse(use, f"gave {_kind(counts)} for counts, not a dict", GAIN)
        for name, values in counts.items():
            _tensor(use, f"counts[{name!r}]", values, terms)
        return gain, counts

    return checked


def demand_gradient(use: str, gradient: "Tensor | None") -> None:
    """Of the log-probs of a batch, by a surrogate's gain. None or a NaN, with which every update would be
    refused: DataError.
    """
    import torch

    if gradient is None or not bool(torch.isfinite(gradient).all()):
        _refuse(use, "gave a gain whose gradient is not finite", GAIN)


def _sized(use: str, rows: Any, size: int, what: str, of: str) -> None:
    if isinstance(rows, str | dict | set | frozenset) or not hasattr(rows, "__len__"):
        _refuse(use, f"gave {_kind(rows)}, not a list", ROWS)
    if len(rows) != size:
        _refuse(use, f"gave {len(rows)} {what} for {of}", ROWS)


def _credit(use: str, value: Any, rollout: Rollout) -> Credit:
    """A number, or one for each token of the answer."""
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):  # a tensor, an array
        value = value.tolist()
    if isinstance(value, list | tuple):
        count = len(rollout.completion.token_ids)
        _sized(use, value, count, "numbers", f"an answer of {count} tokens")
        return [_number(use, each) for each in value]
    return _number(use, value)


def _number(use: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        _refuse(use, f"gave {_kind(value)}, not a number", ROWS)
    if isinstance(value, str) or not math.isfinite(number) or abs(number) > LARGEST:
        _refuse(use, f"gave {value!r}, not a finite number within ±{LARGEST:g}", ROWS)
    return number


def _tensor(use: str, name: str, value: Any, terms: "Terms") -> None:
    from torch import Tensor

    if not isinstance(value, Tensor):
        _refuse(use, f"gave {_kind(value)} for {name}, not a tensor", GAIN)
    if value.shape != terms.logp.shape:
        shapes = f"shape {list(value.shape)}, and Terms.logp has {list(terms.logp.shape)}"
        _refuse(use, f"gave {name} of {shapes}", GAIN)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _refuse(use: str, what: str, fix: str) -> NoReturn:
    raise DataError(f"{use} {what}", where=line_of(use), fix=fix)
