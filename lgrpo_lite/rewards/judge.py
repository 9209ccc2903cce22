"""Judges: questions -> replies, None where no reply came. Here: the one over HTTP; the policy is another."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from lgrpo_lite.machine.http import Client, Refused, decoded, read_key
from lgrpo_lite.recipe.reward import Endpoint, Reward

Judge = Callable[[list[str]], list[str | None]]


def endpoint_judge(settings: Endpoint) -> Judge:
    """A judge that posts each question to {url}/chat/completions.

    A request that fails is None; one log line says how many. A key whose variable is not set:
    EnvironmentFault, at once.
    """
    key = None
    if settings.api_key_env is not None:
        where = "rewards, endpoint.api_key_env"
        key = read_key(settings.api_key_env, "the judge's", where=where, unset="endpoint.api_key_env")
    client = Client(settings.url, key=key)

    def ask(question: str) -> str | Exception:
        message = {"role": "user", "content": question}
        body = {"model": settings.model, "messages": [message], "temperature": 0}
        try:
            status, reply = client.ask("/chat/completions", body, timeout=settings.timeout)
            return _content(reply) if status == 200 else OtherStatus(f"HTTP {status}")
        except Exception as error:  # a server may fail in any way; the reward is then missing
            return error

    def judge(questions: list[str]) -> list[str | None]:
        if not questions:
            return []
        with ThreadPoolExecutor(min(settings.parallel, len(questions))) as pool:
            replies = list(pool.map(ask, questions))
        causes = Counter(_cause(reply) for reply in replies if isinstance(reply, Exception))
        if causes:
            listed = ", ".join(f"{cause} x{n}" for cause, n in causes.most_common())
            message = "judge %s: %d of %d requests failed: %s"
            counts = causes.total(), len(questions)
            logging.getLogger(__name__).warning(message, settings.model, *counts, listed)
        return [None if isinstance(reply, Exception) else reply for reply in replies]

    return judge


def missing_variables(rewards: Sequence[Reward]) -> list[str]:
    """Environment variables of the judges' keys that are not set."""
    names = []
    for reward in rewards:
        endpoint = reward.options.get("endpoint")
        if isinstance(endpoint, Endpoint) and endpoint.api_key_env:
            names.append(endpoint.api_key_env)
    return [name for name in dict.fromkeys(names) if not os.environ.get(name, "").strip()]


def _content(body: bytes) -> str:
    try:
        content = decoded(body)["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        content = None
    if not isinstance(content, str):
        raise ValueError("no chat completion")
    return content


def _cause(error: Exception) -> str:
    """The failure without any text of the server or of the request, which may hold the key."""
    if isinstance(error, OtherStatus | Refused):
        return str(error)
    return "no chat completion" if isinstance(error, ValueError) else type(error).__name__


class OtherStatus(Exception):
    """Another status than 200."""
