"""A folder becomes a repository on the Hub: one commit, whole or not at all, and read back afterwards.

What the client raises becomes one sentence that says what happened, what is on the Hub now and what to do.
"""

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    validate_repo_id,
)
from huggingface_hub.utils.sha import git_hash

from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError, Unavailable

MAIN = "main"
SILENCE_SECONDS = 60.0  # a server that says nothing for so long is taken for dead; the client itself waits for ever
WAITS = (1.0, 4.0)  # seconds before the second and the third try of a call that the client does not repeat itself
LONGEST_WAIT = 30.0  # seconds; a server that asks for more is left to the person
SECRET = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|"
    rb"sk-[A-Za-z0-9_-]{32,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
# What git takes as the name of a branch or a tag (git-check-ref-format), without its rarer letters.
GIT_NAME = re.compile(r"(?![-/.])(?!.*(\.\.|//|/\.|\.lock(/|$)|@\{))[\w./@+-]+(?<![/.])")

R = TypeVar("R")


@dataclass(frozen=True)
class Target:
    """Where on the Hub a folder goes."""

    repo_id: str
    private: bool = False
    branch: str | None = None
    pull_request: bool = False
    tag: str | None = None
    repo_type: str = "model"
    space_sdk: str | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for a name that no repository can have, or for wishes that exclude each other."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise InputError(f"{self.repo_id!r} is no repository's name: give OWNER/NAME ({_line(error)})") from error
        if self.repo_id.count("/") != 1:
            raise InputError(f"{self.repo_id!r} does not say whose repository it is: give OWNER/NAME")
        for option, name in (("--branch", self.branch), ("--tag", self.tag)):
            # git-check-ref-format: what git itself takes as the name of a branch or a tag
            if name is not None and not re.fullmatch(
                r"(?![-/.])(?!.*(\.\.|//|/\.|\.lock(/|$)|@\{))[\w./@+-]+(?<![/.])", name
            ):
                raise InputError(f"{option} {name!r} is no name that git takes: use letters, digits, - and .")
        if self.pull_request and (self.branch or self.tag):
            raise InputError("--pull-request goes to the main branch and has no tag yet: leave out --branch and --tag")


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub afterwards: the commit, whether it is new, and the pull request if there is one."""

    commit: str
    is_new: bool
    url: str


def push_folder(folder: Path, target: Target, message: str, is_ours: Callable[[str], bool]) -> Pushed:
    """Make a repository hold the files of `folder`, by one commit, and read them back.

    A file that `is_ours` knows by its name and that is in the repository but not in the folder is deleted by the same
    commit; any other stays. Nothing is committed when nothing has changed.

    Raises:
        InputError: for what the person can mend: token, rights, name, somebody else's push in between.
        Unavailable: where the Hub or the way to it failed.
    """
    api = HfApi(library_name="groundup")
    with _patient_client(), plain_words(target.repo_id):
        if get_token() is None:
            raise InputError("no token: make one that may write in the Hub's settings, then run `hf auth login`")
        head = _open(api, target)
        operations = _operations(api, folder, target, head, is_ours)
        commit = _commit(api, operations, target, head, message)
    is_new = commit.oid != head
    with _patient_client(), plain_words(target.repo_id, f"; commit {commit.oid[:8]} is there, whole"):
        if not commit.pr_url:
            _read_back(api, operations, target, commit.oid)
            if target.tag:
                _tag(api, target, commit.oid)
    revision = commit.oid if target.repo_type == "model" else MAIN
    url = commit.pr_url or f"{api.endpoint}/{_prefix(target)}{target.repo_id}/tree/{revision}"
    return Pushed(commit.oid, is_new, url)


# ---------------------------------------------------------------------------------------------------------------------
# The steps


def _open(api: HfApi, target: Target) -> str | None:
    """Find or make the repository and the branch; the commit that the branch stands at."""
    named: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    try:
        private = _trying(lambda: api.repo_info(**named)).private
    except RepositoryNotFoundError:
        if target.pull_request:
            raise
        say(f"making the {'private' if target.private else 'public'} repository {target.repo_id}")
        new: dict[str, Any] = {"private": True} if target.private else {}
        _trying(lambda: api.create_repo(**named, **new, space_sdk=target.space_sdk, exist_ok=True))
        private = _trying(lambda: api.repo_info(**named)).private
    if target.private and not private:
        raise InputError(f"{target.repo_id} is public already: make it private in its settings, or leave out --private")
    heads = _refs(api, target, "branches")
    branch = target.branch or MAIN
    if branch not in heads and target.branch:
        _trying(lambda: api.create_branch(**named, branch=branch, exist_ok=True))
        heads = _refs(api, target, "branches")
    return heads.get(branch)


def _refs(api: HfApi, target: Target, kind: str) -> dict[str, str]:
    refs = _trying(lambda: api.list_repo_refs(target.repo_id, repo_type=target.repo_type))
    return {ref.name: ref.target_commit for ref in getattr(refs, kind)}


def _operations(
    api: HfApi, folder: Path, target: Target, head: str | None, is_ours: Callable[[str], bool]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Every file of the folder, and the deletion of what an earlier push left."""
    added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in _files_under(folder)]
    names = {operation.path_in_repo for operation in added}
    there: dict[str, RepoFile] = {}
    if head is not None:
        tree = _trying(lambda: list(api.list_repo_tree(target.repo_id, None, **_at(target, head), recursive=True)))
        there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    gone = [CommitOperationDelete(name) for name in there if is_ours(name) and name not in names]
    if target.tag:
        is_new = bool(gone) or any(not _is_there(operation, there) for operation in added)
        _check_tag(api, target, None if is_new else head)
    return [*added, *gone]


def _files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _at(target: Target, revision: str) -> dict[str, Any]:
    return {"repo_type": target.repo_type, "revision": revision}


def _is_there(operation: CommitOperationAdd, there: dict[str, RepoFile]) -> bool:
    """Whether the repository has a file with these bytes."""
    entry = there.get(operation.path_in_repo)
    if entry is None:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        return entry.blob_id == git_hash(file.read())


def _check_tag(api: HfApi, target: Target, commit: str | None) -> None:
    """Raise `InputError` if the tag is at another commit: a tag is never moved."""
    known = _refs(api, target, "tags").get(str(target.tag))
    if known not in (None, commit):
        raise InputError(f"{target.repo_id} has a tag {target.tag} already, at {known[:8]}: choose a new one")


def _commit(api: HfApi, operations: list[Any], target: Target, head: str | None, message: str) -> Any:
    """The one commit, on top of the head that was looked at and of no other."""

    attempts = 0

    def commit() -> Any:
        nonlocal attempts
        attempts += 1
        return api.create_commit(
            target.repo_id,
            operations,
            commit_message=message,
            repo_type=target.repo_type,
            revision=target.branch or MAIN,
            create_pr=target.pull_request,
            parent_commit=head,
        )

    # A second pull request would be opened if only the answer to the first had been lost.
    if target.pull_request:
        return commit()
    try:
        return _trying(commit)
    except HfHubHTTPError as error:
        if attempts > 1 and error.response is not None and error.response.status_code == 412:
            # The head has moved since the first attempt, most likely by that attempt itself.
            raise Unavailable(
                f"the Hub's answer got lost, and {target.repo_id} has changed since: it has all of it, or somebody "
                "else pushed: run the same command again"
            ) from None
        raise


def _read_back(api: HfApi, operations: list[Any], target: Target, commit: str) -> None:
    """Fetch every file of the commit and compare its bytes with what was sent. The client itself never does."""
    added = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    sizes, done = sum(operation.upload_info.size for operation in added), 0
    with ProgressBar("reading back", total=sizes) as bar:
        for operation in added:
            name = operation.path_in_repo
            url = hf_hub_url(target.repo_id, name, repo_type=target.repo_type, revision=commit, endpoint=api.endpoint)
            found = _trying(lambda url=url: _sha256_of_url(url, api._build_hf_headers()))
            if found != operation.upload_info.sha256.hex():
                raise Unavailable(
                    f"the Hub gives back other bytes of {name} than were sent (commit {commit[:8]}): run this again"
                )
            bar.update(done := done + operation.upload_info.size)


def _sha256_of_url(url: str, headers: dict[str, str]) -> str:
    digest = hashlib.sha256()
    with get_session().stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        for chunk in response.iter_bytes():
            digest.update(chunk)
    return digest.hexdigest()


def _tag(api: HfApi, target: Target, commit: str) -> None:
    if _refs(api, target, "tags").get(str(target.tag)) != commit:
        tag, repo_type = str(target.tag), target.repo_type
        _trying(lambda: api.create_tag(target.repo_id, tag=tag, revision=commit, repo_type=repo_type))


def _prefix(target: Target) -> str:
    return "" if target.repo_type == "model" else f"{target.repo_type}s/"


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def _trying(call: Callable[[], R]) -> R:
    """Call; where the Hub is busy, has a fault or cannot be reached, call again after a while, twice at most."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            response = getattr(error, "response", None)
            passing = response is not None and (response.status_code == 429 or response.status_code >= 500)
            if not passing and not isinstance(error, httpx2.TransportError):
                raise
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            wait = float(asked) if asked.isdigit() else wait
            if wait > LONGEST_WAIT:
                raise
            time.sleep(wait)
    return call()


@contextlib.contextmanager
def _patient_client() -> Iterator[None]:
    """The client with an end to its patience, and with its bars only where somebody sees them."""
    session, hidden = get_session(), are_progress_bars_disabled()
    before = session.timeout
    session.timeout = httpx2.Timeout(SILENCE_SECONDS)
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.ERROR)  # it warns of an empty commit, which is said in our own words
    if console.quiet or not console.is_terminal:
        disable_progress_bars()
    try:
        yield
    finally:
        session.timeout = before
        library.setLevel(level)
        if not hidden:
            enable_progress_bars()


@contextlib.contextmanager
def plain_words(repo_id: str, state: str = "") -> Iterator[None]:
    """What the client raises as an error of ours: what happened, what to do, and what is on the Hub now (`state`)."""
    try:
        yield
    except (InputError, Unavailable) as error:
        raise type(error)(without_secrets(str(error))) from None
    except Exception as error:
        kind, words = _explain(error, repo_id)
        if kind is None:
            raise
        # An answer that got lost leaves open which of the two it is, but never anything between them.
        either = "nothing was published" if kind is InputError else f"{repo_id} is as it was or has all of it"
        raise kind(without_secrets(words + (state or f"; {either}"))) from None  # its causes may hold the request


def _explain(error: BaseException, repo_id: str) -> tuple[type[Exception] | None, str]:
    """The kind of error of ours and what to say, for an error of the client's; None for what is our own fault."""
    causes = list(_chain(error))
    answered = next((cause for cause in causes if getattr(cause, "response", None) is not None), None)
    if isinstance(error, RepositoryNotFoundError):
        return (
            InputError,
            f"the Hub knows no repository {repo_id} that your token may see: check the name and the token",
        )
    if answered is not None:
        return _explain_status(answered.response, repo_id)  # type: ignore[attr-defined]
    if any(isinstance(cause, httpx2.TimeoutException) for cause in causes):
        return Unavailable, f"{constants.ENDPOINT} does not answer: run the same command again later"
    if any(isinstance(cause, httpx2.TransportError | ConnectionError) for cause in causes):
        return Unavailable, f"cannot reach {constants.ENDPOINT}, or it went away: run the same command again"
    if isinstance(error, ValueError):  # the card's metadata, or a file that the storage refuses
        return InputError, f"the Hub refuses what is to be published: {_line(error)}"
    return None, ""


def _explain_status(response: Any, repo_id: str) -> tuple[type[Exception], str]:
    status, said = response.status_code, _said(response)
    if status == 401:
        return InputError, "the Hub does not accept your token: run `hf auth login` with a valid one"
    if status == 403:
        return InputError, (
            f"your token may not write to {repo_id}: use one with write rights, check the owner's name, or open a "
            "--pull-request"
        )
    if status == 409:
        return Unavailable, f"{repo_id} is being changed by another operation ({said}): run the same command again"
    if status == 412:
        return InputError, (
            f"somebody pushed to {repo_id} in between: look at that commit, then run the same command again"
        )
    if status == 429:
        return Unavailable, "the Hub asks for fewer requests: run the same command again in some minutes"
    if status >= 500:
        return Unavailable, f"the Hub has a fault (status {status}): run the same command again later"
    if status == 404:
        return InputError, f"the Hub does not find what is asked of {repo_id} ({said}): check name, branch and token"
    return InputError, f"the Hub refuses what is to be published (status {status}): {said}"


def _said(response: Any) -> str:
    """What the server says of an error, in a few words."""
    with contextlib.suppress(Exception):
        content = response.json()
        texts = content.get("error") or "; ".join(item["message"] for item in content["errors"])
        return " ".join(str(texts).split())[:300]
    return response.headers.get("X-Error-Message", f"status {response.status_code}")[:300]


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def without_secrets(text: str) -> str:
    """The text with stars in the place of tokens: the one in use, and whatever looks like one."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return SECRET.sub(b"***", text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
