"""A run's exports onto the Hub: one commit, of files that are sent one by one, so that an upload that broke
goes on where it was.

`huggingface_hub.upload_folder` is not used: with hf_xet it makes several commits of a large folder, so that a
repository is half a model in between, and one more for every folder. `preupload_lfs_files` sends one file;
one that the Hub has, in a commit or not, is not sent again.
"""

import json
import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from lgrpo_lite import progress
from lgrpo_lite.errors import ConfigError, DataError, EnvironmentFault, LgrpoError
from lgrpo_lite.export.formats import Job, Made, make
from lgrpo_lite.export.serving import as_argument
from lgrpo_lite.export.stamp import CARD, files_in, foreign_in, outdated, read_stamp
from lgrpo_lite.machine.account import demand_account, malformed
from lgrpo_lite.machine.hub import ask, endpoint, reason
from lgrpo_lite.policy.fetch import MB
from lgrpo_lite.recipe.schema import Hub

# Of an earlier upload, at a place where this one has files: who loads the model would read them with it. An
# adapter_config.json beside merged weights makes transformers load the adapter's base.
READ = ("*.safetensors", "*.bin", "*.gguf", "*.json", "*.jinja", "*.model", "Modelfile")
MESSAGES = {  # of the Hub's refusals: (what, what to do)
    401: ("the Hub does not take the token any longer", "log in again with `hf auth login`, or set HF_TOKEN"),
    402: ("the account has no room for it", "make room, or name a repository of another account"),
    403: ("the token may not write to {repo}", "use one that may, or name another repository"),
    404: ("{repo} is gone, or the token may not see it", "check the name and the token"),
    429: ("the Hub was asked too often", "wait some minutes"),
}
AGAIN = "what arrived is not sent again: {again}"


@dataclass(frozen=True, slots=True)
class File:
    """A file that goes up."""

    path: str  # in the repository
    file: Path
    size: int  # bytes


def upload(job: Job) -> Made:
    """The exports that `recipe.export.hub.holds` names, as one commit of its `repo`, which is made if it is
    not there. An export that is missing or of another checkpoint is made first.

    A name that is none, or a public repository where a private one is asked for: ConfigError. A card that the
    Hub refuses: DataError. The Hub out of reach, a token that it does not take or that may not write, or an
    upload that broke: EnvironmentFault, whose fix names the command that goes on.
    """
    hub = job.recipe.export.hub
    repo = _named(hub)
    key = demand_account(os.environ, repo, _where(hub))
    told = _made_anew(job, hub.holds)
    files = to_upload(job)
    with _faults_told(job, repo):
        _demand_card(files, key)
        api = HfApi(endpoint(os.environ), token=key)
        there = _opened(api, repo, hub)
        _reach_storage(files, repo, key)
        removed = _superseded(there, files)
        additions = [CommitOperationAdd(file.path, str(file.file)) for file in files]
        _send(api, repo, additions, files)
        deletions = [CommitOperationDelete(path) for path in removed]
        summary = f"{', '.join(hub.holds)} of {job.checkpoint}"
        done = api.create_commit(repo, [*deletions, *additions], commit_message=summary)
    told += [*_left_here(job), *_about(files, there, removed)]
    facts = {"repo": repo, "commit": done.oid, "files": _as_json(files), "removed": removed}
    return Made(f"{endpoint(os.environ)}/{repo}", tuple(told), facts)


def listed(job: Job) -> Made:
    """What `upload` would send, found without a token and without the Hub. An export that it would make first
    is told, and its files are not known.
    """
    hub = job.recipe.export.hub
    repo = _named(hub)
    first = [f"{kind} is made first: {why}" for kind, why in _missing(job, hub.holds)]
    files = to_upload(job)
    rows = [f"{_size(file.size):>9}  {file.path}  ({file.file})" for file in files]
    total = _size(sum(file.size for file in files))
    lines = (*first, *rows, *_left_here(job), f"dry run: {len(files)} files, {total}; nothing was sent")
    return Made(f"{endpoint(os.environ)}/{repo}", lines, {"repo": repo, "files": _as_json(files)})


def again(job: Job) -> str:
    """The command that goes on with this upload."""
    hub = job.recipe.export.hub
    words = ["lgrpo-lite", "export", as_argument(job.run), "hub", "--repo", str(hub.repo)]
    if hub.private:
        words.append("--private")
    if hub.holds != Hub().holds:
        words += ["--holds", ",".join(hub.holds)]
    newest = (job.run / "checkpoints" / "latest").resolve().name
    if job.checkpoint != newest:
        words += ["--checkpoint", job.checkpoint.rpartition("-")[2].lstrip("0")]
    return shlex.join(words)


def to_upload(job: Job) -> list[File]:
    """The files of the exports that are there and up to date, and their places: the first export's at the top
    of the repository, the others' in folders of their kind's name.
    """
    holds = job.recipe.export.hub.holds
    missing = [kind for kind, _ in _missing(job, holds)]
    files = []
    for number, kind in enumerate(holds):
        if kind in missing:
            continue
        place = PurePosixPath(kind if number else "")
        for file in files_in(job.at(kind)):
            inside = file.relative_to(job.at(kind)).as_posix()
            files.append(File((place / inside).as_posix(), file, file.stat().st_size))
    return files


# ---------------------------------------------------------------- before anything is sent


def _named(hub: Hub) -> str:
    if hub.repo is None:
        fix = "add --repo OWNER/NAME, or set export.hub.repo in the recipe"
        raise ConfigError("no repository is named", where="export.hub.repo", fix=fix)
    why = malformed(hub.repo)
    if why is not None:
        what = f"{hub.repo!r} is no name of a repository: {why}"
        raise ConfigError(what, where=_where(hub), fix="write it as OWNER/NAME")
    if len(set(hub.holds)) < len(hub.holds):
        raise ConfigError("one of them is named twice", where="export.hub.holds", fix="name each once")
    return hub.repo


def _where(hub: Hub) -> str:
    return f"export.hub.repo={hub.repo}"


def _missing(job: Job, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, why) of the exports that are to be made before they can go up."""
    whys = [(kind, outdated(job.at(kind), kind, job.run, job.checkpoint)) for kind in kinds]
    return [(kind, why) for kind, why in whys if why is not None]


def _made_anew(job: Job, kinds: Sequence[str]) -> list[str]:
    """What was made here, told; afterwards all of them are up to date."""
    lines = []
    for kind, why in _missing(job, kinds):
        made = make(kind, job, job.at(kind))
        lines.append(f"made {kind}: {why}")
        lines += made.lines
    return lines


def _demand_card(files: Sequence[File], key: str) -> None:
    """The Hub reads a card's front matter, and refuses the commit for it: asked before hours of sending."""
    card = next((file for file in files if file.path == CARD), None)
    if card is None:
        return
    body = {"content": card.file.read_text("utf-8"), "repoType": "model"}
    status, reply = ask(os.environ, "/api/validate-yaml", body, key=key)
    if status == 400:
        what = f"the Hub refuses the front matter of {CARD}: {reply.decode('utf-8', 'replace')}"
        raise DataError(what, where=str(card.file), fix="mend its first lines, then upload again")


def _opened(api: HfApi, repo: str, hub: Hub) -> list[str]:
    """The files that the repository has; it is made if it is not there."""
    info = None
    with suppress(RepositoryNotFoundError):
        info = api.model_info(repo)
    if info is None:
        api.create_repo(repo, private=hub.private or None, exist_ok=True)  # None: as its owner has it
        return []
    if hub.private and not info.private:
        what = f"{repo} is there already and public, and a private one is asked for"
        fix = "make it private on its page, or name another, or leave private out"
        raise ConfigError(what, where=_where(hub), fix=fix)
    return [file.rfilename for file in info.siblings or ()]


def _reach_storage(files: Sequence[File], repo: str, key: str) -> None:
    """hf_xet sends large files to a host of its own, and tries for more than five minutes where that is out
    of reach: told in seconds.
    """
    without = constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None
    if without or all(file.size <= MB for file in files):
        return
    status, reply = ask(os.environ, f"/api/models/{repo}/xet-write-token/main", key=key)
    address = json.loads(reply).get("casUrl", "") if status == 200 else ""
    if not address.startswith("http"):
        return
    try:
        ask({**os.environ, "HF_ENDPOINT": address}, "/", key="none")  # any answer will do
    except OSError as error:
        why = reason({"HF_ENDPOINT": address}, error)
        fix = "connect, or set HF_HUB_DISABLE_XET=1 to send large files to the Hub itself"
        raise EnvironmentFault(f"the Hub's storage: {why}", where=address, fix=fix) from None


def _superseded(there: Sequence[str], files: Sequence[File]) -> list[str]:
    """Files of the repository that would be read together with the new ones, and are not among them."""
    new = {file.path for file in files}
    places = {PurePosixPath(path).parent for path in new}
    found = []
    for path in sorted(set(there) - new):
        name = PurePosixPath(path)
        if name.parent in places and any(fnmatch(name.name, pattern) for pattern in READ):
            found.append(path)
    return found


# ---------------------------------------------------------------- sending


def _send(api: HfApi, repo: str, additions: Sequence[CommitOperationAdd], files: Sequence[File]) -> None:
    """All that the Hub keeps outside of git, each finished before the next. Together they would go in
    threads, and a Ctrl-C would wait for those.
    """
    total = sum(file.size for file in files)
    sent = 0
    for number, (addition, file) in enumerate(zip(additions, files, strict=True), 1):
        count = f"file {number} of {len(files)}, {_size(sent)} of {_size(total)} done"
        progress.told(f"uploading {file.path}, {_size(file.size)} ({count})", 0)
        api.preupload_lfs_files(repo, additions=[addition], free_memory=False)
        sent += file.size
    progress.told("uploading the commit", 0)


@contextmanager
def _faults_told(job: Job, repo: str) -> Iterator[None]:
    """Inside it whatever goes wrong on the way to the Hub becomes an error of ours. Texts of libraries are
    not quoted: they hold addresses that are signed. Nor does a log get those of every request.
    """
    requests = logging.getLogger("httpx")
    before = requests.level
    requests.setLevel(logging.WARNING)
    try:
        yield
    except LgrpoError:
        raise
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _fault(error, job, repo) from error
    finally:
        requests.setLevel(before)


def _fault(error: BaseException, job: Job, repo: str) -> EnvironmentFault:
    go_on = AGAIN.format(again=again(job))
    where = f"{endpoint(os.environ)}/{repo}"
    chain = _chain(error)
    refused = [one for one in chain if isinstance(one, HfHubHTTPError)]
    if refused:
        status, said = refused[0].response.status_code, refused[0].server_message
        what, fix = MESSAGES.get(status, ("the Hub failed", "try again later"))
        quoted = f": {said}" if said else ""
        what = f"{what.format(repo=repo)} (HTTP {status}{quoted})"
        return EnvironmentFault(what, where=where, fix=f"{fix}; {go_on}")
    broken = [one for one in chain if isinstance(one, OSError) and not isinstance(one, httpx.HTTPError)]
    if broken:
        why = reason(os.environ, broken[-1])
        if broken[-1].filename:
            why = f"{broken[-1].filename} is not read ({broken[-1].strerror})"
        return EnvironmentFault(f"the upload broke: {why}", where=where, fix=go_on)
    without = "where hf_xet is at fault, HF_HUB_DISABLE_XET=1 does without"
    what = f"the upload broke ({type(error).__name__})"
    return EnvironmentFault(what, where=where, fix=f"{go_on}; {without}; logs/ have the whole")


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what is behind it, the innermost last."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


# ---------------------------------------------------------------- told


def _left_here(job: Job) -> list[str]:
    """What lies in an export's folder and was never part of it: it does not go up."""
    lines = []
    for kind in job.recipe.export.hub.holds:
        stamp = read_stamp(job.at(kind))
        foreign = foreign_in(job.at(kind), stamp["files"]) if stamp else []
        lines += [f"stays here, the export did not make it: {kind}/{name}" for name in foreign]
    return lines


def _about(files: Sequence[File], there: Sequence[str], removed: Sequence[str]) -> list[str]:
    lines = [f"{len(files)} files, {_size(sum(file.size for file in files))}, in one commit"]
    if there:
        replaced = len(set(there) & {file.path for file in files})
        kept = len(set(there)) - replaced - len(removed)
        before = "the repository was there, and its earlier commits stay"
        lines.append(f"{before}: {replaced} of its files are replaced, {kept} untouched")
    if removed:
        lines.append(f"taken out, they would be read with the new files: {', '.join(removed)}")
    return lines


def _as_json(files: Sequence[File]) -> list[dict[str, Any]]:
    return [{"path": file.path, "file": str(file.file), "bytes": file.size} for file in files]


def _size(size: int) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1000 * MB), ("MB", MB), ("kB", 1000)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
