"""From sampled tokens to an answer, alike for every engine: where it ends, and the text that it is."""

from collections.abc import Sequence
from typing import Any

from lgrpo_lite.engines.base import SamplingParams
from lgrpo_lite.types import Completion, Prompt

Sampled = tuple[Sequence[int], Sequence[float]]  # an answer's tokens and their log-probs


def answered(
    policy: Any,
    prompt: Prompt,
    sampled: Sampled,
    given: Sequence[int],
    sampling: SamplingParams,
    *,
    version: int,
    stopped: bool = False,
) -> Completion:
    """The answer: what was given, and what was sampled up to an end token or the token that completes a stop
    string, either of which belongs to it. Its text begins with the prompt's `prefill`.

    `stopped`: the engine ended it at a stop string, whether or not its own decoding shows one here.
    """
    tokens, logp = sampled
    count = len(tokens)
    for i, token in enumerate(tokens):
        if token in policy.eos_ids:
            count, stopped = i + 1, True
            break
    at = stop_at(policy.tokenizer, tokens[:count], sampling.stop)
    if at is not None:
        count, stopped = at, True
    whole = (*given, *tokens[:count])
    text = policy.tokenizer.decode(whole, skip_special_tokens=True)
    if at is not None and not sampling.stop_shown:
        begin = len(policy.tokenizer.decode(given, skip_special_tokens=True)) if given else 0
        found = [text.find(stop, begin) for stop in sampling.stop]
        text = text[: min((place for place in found if place >= 0), default=len(text))]
    reason = "stop" if stopped else "length"
    return Completion(whole, tuple(logp[:count]), prompt.prefill + text, reason, version, given=len(given))


def stop_at(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> int | None:
    """How many tokens it takes until their text holds a stop string; None: it holds none."""
    if not stops or not _holds(tokenizer, tokens, stops):
        return None
    low, high = 1, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if _holds(tokenizer, tokens[:middle], stops):
            high = middle
        else:
            low = middle + 1
    return low


def _holds(tokenizer: Any, tokens: Sequence[int], stops: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    return any(stop in text for stop in stops)
