"""Push a folder to a repository on the Hub: one commit, whole or not at all, and read back afterwards.

A repository that was made for a push that fails is removed again; a commit whose files the Hub does not give back as
they were sent is undone. Errors of the client are told in plain words (`hub_client.py`).

The commit is made by `create_commit`: `upload_folder` makes several of a folder where hf_xet is installed.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from groundup.common.console import ProgressBar, say
from groundup.common.errors import InputError, Unavailable, one_line
from groundup.common.files import CARD_FILE, RECIPE_FILE
from groundup.publishing.hub_client import patient_client, plain_words, trying

MAIN = "main"
MODEL_FILES = ["*.json", "*.safetensors", "*.py", "*.jinja", "*.txt", CARD_FILE, RECIPE_FILE, "*.png"]
# What git takes as the name of a branch or a tag (git-check-ref-format), without its rarer letters.
GIT_NAME = re.compile(r"(?![-/.])(?!.*(\.\.|//|/\.|\.lock(/|$)|@\{))[\w./@+-]+(?<![/.])")
LEFT_EMPTY = "{}, made for this, may be left there empty: the same command goes on with it"


@dataclass(frozen=True)
class Target:
    """The destination of a folder on the Hub."""

    repo_id: str
    private: bool = False
    branch: str | None = None
    pull_request: bool = False
    tag: str | None = None
    repo_type: Literal["model", "space"] = "model"

    def __post_init__(self) -> None:
        """Raise `InputError` for a name that no repository can have, or for wishes that exclude each other."""
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise InputError(
                f"{self.repo_id!r} is no repository's name: give OWNER/NAME ({one_line(error)})"
            ) from error
        if self.repo_id.count("/") != 1:
            raise InputError(f"{self.repo_id!r} does not say whose repository it is: give OWNER/NAME")
        for option, name in (("--branch", self.branch), ("--tag", self.tag)):
            if name is not None and not GIT_NAME.fullmatch(name):
                raise InputError(f"{option} {name!r} is no name that git takes: use letters, digits, - and .")
        if self.pull_request and (self.branch or self.tag):
            raise InputError("--pull-request goes to the main branch and has no tag yet: leave out --branch and --tag")

    @property
    def named(self) -> dict[str, Any]:
        """Return the keywords by which the client names the repository."""
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}


@dataclass(frozen=True)
class Pushed:
    """The result of a push: the commit, whether it is new, and the pull request if there is one."""

    commit: str
    is_new: bool
    url: str


def push_folder(
    folder: Path, target: Target, message: str, is_ours: Callable[[str], bool], proven: Mapping[str, str] | None = None
) -> Pushed:
    """Make a repository hold the files of `folder`, by one commit, and read them back.

    A file that `is_ours` knows by its name and that is in the repository but not in the folder is deleted by the same
    commit; any other stays. Nothing is committed when nothing has changed. `proven` names the files that were looked
    at, with their sha256: nothing else is sent.

    Raises:
        InputError: for what the user can fix: token, rights, name, somebody else's push in between, files that
            changed after they were looked at.
        Unavailable: where the Hub or the way to it failed.
    """
    api = HfApi(library_name="groundup")
    with patient_client(), plain_words(target.repo_id):
        require_token()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        added = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        found = {operation.path_in_repo: operation.upload_info.sha256.hex() for operation in added}
        if proven is not None and found != proven:
            others = sorted(name for name in {*found, *proven} if found.get(name) != proven.get(name))
            raise InputError(
                f"{', '.join(others)}: not the same as when it was looked at, and nothing was published: run the same "
                "command again"
            )
        with _repository(api, target):
            head = _head(api, target)
            operations = _operations(api, added, target, head, is_ours)
            commit = _commit(api, operations, target, head, message)
            is_new = commit.oid != head
            if not commit.pr_url:
                _check_stored(api, operations, target, commit.oid, head)
    with patient_client(), plain_words(target.repo_id, f"; commit {commit.oid[:8]} is there, whole"):
        if target.tag and _refs(api, target, "tags").get(target.tag) != commit.oid:
            trying(lambda: api.create_tag(**target.named, tag=str(target.tag), revision=commit.oid))
    page = f"{target.repo_id}/tree/{commit.oid}" if target.repo_type == "model" else f"spaces/{target.repo_id}"
    return Pushed(commit.oid, is_new, commit.pr_url or f"{api.endpoint}/{page}")


def require_token() -> None:
    """Raise `InputError` where this machine has no token of the Hub."""
    if get_token() is None:
        raise InputError("no token: make one that may write in the Hub's settings, then run `hf auth login`")


def fetch_model(name: str, revision: str | None = None) -> Path:
    """Fetch a model from the Hub and return its folder. Raises `InputError` for one that the token may not see."""
    with plain_words(name, "; nothing was published"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES))


@contextlib.contextmanager
def _repository(api: HfApi, target: Target) -> Iterator[None]:
    """Make the repository unless it exists; if what follows fails, remove one that was made."""
    made = _make(api, target)
    try:
        yield
    except BaseException as error:
        if made:
            error.add_note(_remove_if_empty(api, target))
        raise


def _make(api: HfApi, target: Target) -> bool:
    """Make the repository unless it exists; return whether it was made here and nowhere else."""
    try:
        private = trying(lambda: api.repo_info(**target.named)).private
    except RepositoryNotFoundError:
        if target.pull_request:
            raise
        say(f"making the {'private' if target.private else 'public'} repository {target.repo_id}")
        new: dict[str, Any] = {"private": True} if target.private else {}
        new |= {"space_sdk": "gradio"} if target.repo_type == "space" else {}
        try:
            trying(lambda: api.create_repo(**target.named, **new))
            return True
        except HfHubHTTPError as error:
            # Made by an attempt whose answer got lost, or by somebody else: whose it is cannot be known.
            if error.response is None or error.response.status_code != 409:
                raise
        except httpx2.TransportError as error:  # no answer: it may be there all the same
            error.add_note(LEFT_EMPTY.format(target.repo_id))
            raise
        private = trying(lambda: api.repo_info(**target.named)).private
    if target.private and not private:
        raise InputError(f"{target.repo_id} is public already: make it private in its settings, or leave out --private")
    return False


def _remove_if_empty(api: HfApi, target: Target) -> str:
    """Remove a repository made a moment ago, unless it has files by now; return what is to be said."""

    def blobs(revision: str) -> dict[str, str]:
        return {path: entry.blob_id for path, entry in _tree(api, target, revision).items()}

    try:
        for head in set(_refs(api, target, "branches").values()):
            first = api.list_repo_commits(**target.named, revision=head)[-1].commit_id  # the Hub's own
            if head != first and blobs(head) != blobs(first):
                return ""
        trying(lambda: api.delete_repo(**target.named, missing_ok=True))
    except Exception:  # whatever it is, what made the push fail matters more
        return LEFT_EMPTY.format(target.repo_id)
    return f"{target.repo_id}, made for this, is removed again"


def _head(api: HfApi, target: Target) -> str | None:
    """Return the head of the branch; create a branch that does not exist."""
    heads = _refs(api, target, "branches")
    if target.branch and target.branch not in heads:
        trying(lambda: api.create_branch(**target.named, branch=str(target.branch), exist_ok=True))
        heads = _refs(api, target, "branches")
    return heads.get(target.branch or MAIN)


def _refs(api: HfApi, target: Target, kind: str) -> dict[str, str]:
    refs = trying(lambda: api.list_repo_refs(**target.named))
    return {ref.name: ref.target_commit for ref in getattr(refs, kind)}


def _operations(
    api: HfApi, added: list[CommitOperationAdd], target: Target, head: str | None, is_ours: Callable[[str], bool]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return the files to add, and the deletion of what an earlier push left.

    Raises `InputError` if the tag is at another commit: a tag is never moved.
    """
    names = {operation.path_in_repo for operation in added}
    there = {} if head is None else _tree(api, target, head)
    gone = [CommitOperationDelete(name) for name in there if is_ours(name) and name not in names]
    if target.tag:
        is_new = bool(gone) or any(not _is_there(operation, there) for operation in added)
        known = _refs(api, target, "tags").get(target.tag)
        if known not in (None, None if is_new else head):
            raise InputError(f"{target.repo_id} has a tag {target.tag} already, at {known[:8]}: choose a new one")
    return [*added, *gone]


def _tree(api: HfApi, target: Target, revision: str) -> dict[str, RepoFile]:
    """Return every file at a revision, by its path."""
    tree = trying(lambda: list(api.list_repo_tree(**target.named, revision=revision, recursive=True)))
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _is_there(operation: CommitOperationAdd, there: dict[str, RepoFile]) -> bool:
    """Return whether the repository has a file with these bytes."""
    entry = there.get(operation.path_in_repo)
    if entry is None:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        return entry.blob_id == git_hash(file.read())


def _commit(api: HfApi, operations: list[Any], target: Target, head: str | None, message: str) -> Any:
    """Make the one commit, on top of the head that was looked at and of no other."""
    attempts = 0

    def commit() -> Any:
        nonlocal attempts
        attempts += 1
        return api.create_commit(
            **target.named,
            operations=operations,
            commit_message=message,
            revision=target.branch or MAIN,
            create_pr=target.pull_request,
            parent_commit=head,
        )

    # A second pull request would be opened if only the answer to the first had been lost.
    if target.pull_request:
        return commit()
    try:
        return trying(commit)
    except HfHubHTTPError as error:
        if attempts > 1 and error.response is not None and error.response.status_code == 412:
            # The head has moved since the first attempt, most likely by that attempt itself.
            raise Unavailable(
                f"the Hub's answer got lost, and {target.repo_id} has changed since: it has all of it, or somebody "
                "else pushed: run the same command again"
            ) from None
        raise


def _check_stored(api: HfApi, operations: list[Any], target: Target, commit: str, head: str | None) -> None:
    """Fetch every file of the commit and compare its bytes with what was sent; the client itself never does.

    A commit with damaged files is undone by another one, because others load from the branch.
    """
    with plain_words(target.repo_id, f"; commit {commit[:8]} is there, but could not be read back"):
        damaged = _damaged(api, operations, target, commit)
        if damaged is None:
            return
        if head is not None and commit != head:
            there = _tree(api, target, head)
            undone = [
                CommitOperationCopy(name, name, src_revision=head) if name in there else CommitOperationDelete(name)
                for name in (operation.path_in_repo for operation in operations)
            ]
            told = f"undo {commit[:8]}: the Hub did not store it whole"
            options = target.named | {"revision": target.branch or MAIN, "parent_commit": commit}
            trying(lambda: api.create_commit(operations=undone, commit_message=told, **options))
    raise Unavailable(
        f"the Hub gives back other bytes of {damaged} than were sent; {target.repo_id} has its former files again: "
        "run the same command again"
    )


def _damaged(api: HfApi, operations: list[Any], target: Target, commit: str) -> str | None:
    """Return the first file that the Hub twice gives back with other bytes than were sent, None where there is none."""
    added = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
    sizes, done = sum(operation.upload_info.size for operation in added), 0
    headers = api._build_hf_headers()

    def fetched(url: str) -> str:
        digest = hashlib.sha256()
        with get_session().stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                digest.update(chunk)
        return digest.hexdigest()

    with ProgressBar("reading back", total=sizes) as bar:
        for operation in added:
            name, sha256 = operation.path_in_repo, operation.upload_info.sha256.hex()
            url = hf_hub_url(**target.named, filename=name, revision=commit, endpoint=api.endpoint)
            # The second time, for what was damaged on the way here.
            if all(trying(lambda url=url: fetched(url)) != sha256 for _ in range(2)):
                return name
            bar.update(done := done + operation.upload_info.size)
    return None
