"""The one error that is the user's to mend, and the suggestion of a near name."""

import difflib
import errno
import os
from collections.abc import Iterable


class InputError(Exception):
    """What the user gave is wrong. The message is one line: what, where, and what to do. Exit status 2."""


def near(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when a known name resembles `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that no space is left to write, or none allowed.

    safetensors reports it as text from Rust, with no errno, so the text is looked at too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(os.strerror(number) in str(cause) for number in (errno.ENOSPC, errno.EFBIG)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


class Interrupted(Exception):  # noqa: N818 (no error: the person asked for it)
    """The person stopped a run; its state is saved. Exit status 130. The message says how to go on."""


class Diverged(Exception):  # noqa: N818
    """The loss of a run stopped being a number. Exit status 1. The message says what to try."""


class Unavailable(Exception):  # noqa: N818 (the others here are named after what happened, too)
    """The Hub, or the way to it, did not do what was asked; nothing the user gave is wrong. Exit status 1."""
