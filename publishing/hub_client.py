"""Call the Hub with patience, and explain the client's errors: what happened, what is on the Hub now, what to do.

No token survives on the way: not in a message, and not in a cause that a traceback would show.
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, get_session

from groundup.common.console import console
from groundup.common.errors import InputError, Unavailable, causes, one_line

SILENCE_SECONDS = 60.0  # a server that says nothing for so long is taken for dead; the client itself waits for ever
WAITS = (1.0, 4.0)  # seconds before the second and the third try of a call that the client does not repeat itself
LONGEST_WAIT = 30.0  # seconds; a server that asks for more is left to the user

SECRET = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|"
    rb"sk-[A-Za-z0-9_-]{32,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{35})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)

R = TypeVar("R")


@contextlib.contextmanager
def plain_words(repo_id: str, state: str = "") -> Iterator[None]:
    """Turn the client's errors into ours: what happened, what to do, what is on the Hub now (`state`).

    Notes on the error (PEP 678) are told after it.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError | Unavailable):
            kind, told = type(error), str(error)
        else:
            kind, told = _explain(error, repo_id)
            if kind is None:
                raise
            # An answer that got lost leaves open which of the two it is, but never anything between them.
            either = "nothing was published" if kind is InputError else f"{repo_id} has all of it, or nothing of it"
            told += state or f"; {either}"
        notes = [note for note in getattr(error, "__notes__", []) if note]
        raise kind(without_secrets("; ".join([told, *notes]))) from None  # its causes may hold the request


def _explain(error: BaseException, repo_id: str) -> tuple[type[Exception] | None, str]:
    """Return the kind of error of ours and the words for an error of the client's; None for a fault of our own."""
    chain = list(causes(error))
    answered = next((cause for cause in chain if getattr(cause, "response", None) is not None), None)
    if isinstance(error, RepositoryNotFoundError):
        return InputError, f"the Hub knows no repository {repo_id} that your token may see: check name and token"
    if answered is not None:
        return _explain_status(answered.response, repo_id)  # type: ignore[attr-defined]
    if any(isinstance(cause, httpx2.TimeoutException) for cause in chain):
        return Unavailable, f"{constants.ENDPOINT} does not answer: run the same command again later"
    if any(isinstance(cause, httpx2.TransportError | ConnectionError) for cause in chain):
        return Unavailable, f"cannot reach {constants.ENDPOINT}, or it went away: run the same command again"
    if isinstance(error, ValueError):  # the card's metadata, or a file that the storage refuses
        return InputError, f"the Hub refuses what is to be published: {one_line(error)}"
    return None, ""


def _explain_status(response: Any, repo_id: str) -> tuple[type[Exception], str]:
    status, said = response.status_code, response.headers.get("X-Error-Message", f"status {response.status_code}")[:300]
    with contextlib.suppress(Exception):
        content = response.json()
        texts = content.get("error") or "; ".join(item["message"] for item in content["errors"])
        said = " ".join(str(texts).split())[:300]
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


def without_secrets(text: str) -> str:
    """Return the text with stars in the place of tokens: the one in use, and whatever looks like one."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return SECRET.sub(b"***", text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def trying(call: Callable[[], R]) -> R:
    """Make a call; if the Hub is busy, has a fault or cannot be reached, repeat it after a while, at most twice."""
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
def patient_client() -> Iterator[None]:
    """Limit the client's patience, and show its bars only where somebody sees them."""
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
