"""Judges: questions -> replies, None where no reply came. Here the one behind an HTTP
interface; the policy is another.
"""

import json
import logging
import os
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.recipe.reward import Endpoint, Reward

Judge = Callable[[list[str]], list[str | None]]
MAX_REPLY = 1 << 20  # bytes; no verdict is longer


def endpoint_judge(settings: Endpoint) -> Judge:
    """A judge that posts each question to {url}/chat/completions. A request that fails is
    None; one log line says how many.

    A key whose variable is not set: EnvironmentFault, at once.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "lgrpo-lite"}
    if settings.api_key_env is not None:
        headers["Authorization"] = f"Bearer {_key(settings.api_key_env)}"
    url = settings.url.rstrip("/") + "/chat/completions"
    opener = urllib.request.build_opener(_StayHere)

    def ask(question: str) -> str | Exception:
        body = {
            "model": settings.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
        }
        try:
            request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
            return _content(_post(opener, request, settings.timeout))
        except HTTPError as error:
            error.close()
            return error
        except Exception as error:  # a server may fail in any way; the reward is then missing
            return error

    def judge(questions: list[str]) -> list[str | None]:
        if not questions:
            return []
        with ThreadPoolExecutor(min(settings.parallel, len(questions))) as pool:
            replies = list(pool.map(ask, questions))
        failed = Counter(_cause(reply) for reply in replies if isinstance(reply, Exception))
        if failed:
            causes = ", ".join(f"{cause} x{n}" for cause, n in failed.most_common())
            message = "judge %s: %d of %d requests failed: %s"
            logging.getLogger(__name__).warning(
                message, settings.model, failed.total(), len(questions), causes
            )
        return [reply if isinstance(reply, str) else None for reply in replies]

    return judge


def missing_variables(rewards: Sequence[Reward]) -> list[str]:
    """Environment variables of the judges' keys that are not set."""
    endpoints = [reward.options.get("endpoint") for reward in rewards]
    names = dict.fromkeys(e.api_key_env for e in endpoints if isinstance(e, Endpoint) and e.api_key_env)
    return [name for name in names if not os.environ.get(name, "").strip()]


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()  # a line break inside would put the key into http.client's message
    if not key:
        fix = f"export {name}=…, or set endpoint.api_key_env=null"
        raise EnvironmentFault(
            f"the judge's key is not set: {name}", where="rewards, endpoint.api_key_env", fix=fix
        )
    return key


class _StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect is a failure: urllib would send the key along to wherever it leads."""

    def redirect_request(self, *args, **kwargs):
        return None


def _post(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float) -> bytes:
    deadline, body = time.monotonic() + timeout, b""
    with opener.open(request, timeout=timeout) as response:
        while piece := response.read1(1 << 16):
            body += piece
            if time.monotonic() > deadline:  # the socket's own timeout starts anew with every piece
                raise TimeoutError
            if len(body) > MAX_REPLY:
                raise ValueError("the reply is too long")
    return body


def _content(body: bytes) -> str:
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (LookupError, TypeError, RecursionError):
        content = None
    if not isinstance(content, str):
        raise ValueError("no chat completion")
    return content


def _cause(error: Exception) -> str:
    """The failure without any text of the server or of the request, which may hold the key."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", None)  # of a URLError
    error = reason if isinstance(reason, Exception) else error
    return "no chat completion" if isinstance(error, ValueError) else type(error).__name__
