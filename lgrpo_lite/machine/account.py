"""The account that uploads to the Hub: its token, and whether it may write to a repository, known in seconds
and before anything is sent.
"""

from collections.abc import Mapping
from typing import Any

from lgrpo_lite.errors import EnvironmentFault
from lgrpo_lite.machine.http import decoded
from lgrpo_lite.machine.hub import ask, endpoint, is_offline, reason

TOKENS = "https://huggingface.co/settings/tokens"
LOG_IN = f"make a token that may write at {TOKENS}, then `hf auth login`, or export HF_TOKEN=…"
TOO_MANY = 429


def malformed(repo: str) -> str | None:
    """What is wrong with the name of a repository, by the Hub's rules; None where nothing is."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        return "it is not OWNER/NAME"
    try:
        validate_repo_id(repo)
    except HFValidationError:
        rules = "letters, digits, - _ and ., no -- or .., none of -. at an end, at most 96 characters"
        return f"the Hub takes {rules}"
    return None


def token(where: str) -> str:
    """The token that the Hub's library finds: in the environment, its file, or a notebook's secrets.
    EnvironmentFault: there is none, or one that no header can hold.
    """
    from huggingface_hub import get_token

    key = get_token()
    if key is None:
        raise EnvironmentFault(
            "an upload to the Hub needs a token, and there is none", where=where, fix=LOG_IN
        )
    if not (key.isascii() and key.isprintable()):
        what = "the token for the Hub is none: it holds a line break or the like"
        raise EnvironmentFault(what, where=where, fix=LOG_IN)
    return key


def demand_account(environment: Mapping[str, str], repo: str, where: str) -> str:
    """The token, of an account that may write to `repo` as far as the Hub tells. EnvironmentFault: none, one
    that the Hub does not take or that may only read, another owner, or the Hub is out of reach.
    """
    if is_offline(environment):
        what = "an upload needs the Hub, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE says not to ask it"
        raise EnvironmentFault(what, where=where, fix="unset it, or leave the upload out")
    key = token(where)
    try:
        status, reply = ask(environment, "/api/whoami-v2", key=key)
    except OSError as error:
        fix = "connect, or set HF_ENDPOINT to a mirror, or leave the upload out"
        raise EnvironmentFault(reason(environment, error), where=where, fix=fix) from None
    if status == TOO_MANY:
        return key  # it is asked seldom, and says so: the upload itself will tell
    if status == 401:
        what = f"{endpoint(environment)} does not take the token: it is wrong, or no longer valid"
        raise EnvironmentFault(what, where=where, fix=LOG_IN)
    if status != 200:
        what = f"{endpoint(environment)} answers HTTP {status}"
        raise EnvironmentFault(what, where=where, fix="try again later")
    _demand_writer(_account(reply), repo, where)
    return key


def _account(reply: bytes) -> dict[str, Any]:
    """What the Hub says of an account; empty where that is no object, as a mirror may have it."""
    try:
        account = decoded(reply)
    except ValueError:
        return {}
    return account if isinstance(account, dict) else {}


def _demand_writer(account: dict[str, Any], repo: str, where: str) -> None:
    access = (account.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise EnvironmentFault("the token may only read", where=where, fix=LOG_IN)
    names = [account.get("name"), *(one.get("name") for one in account.get("orgs") or ())]
    owners = [name for name in names if isinstance(name, str)]
    owner = repo.partition("/")[0]
    if owners and owner.casefold() not in [name.casefold() for name in owners]:
        what = f"the token is of {owners[0]}, who may not write to {owner}"
        fix = f"name a repository of {' or '.join(owners)}, or use a token of {owner}"
        raise EnvironmentFault(what, where=where, fix=fix)
