"""Define the kinds of error, read paths as the user meant them, and suggest the nearest name for a wrong one."""

import contextlib
import difflib
import errno
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_NUMPY_WROTE_LESS = re.compile(r"\d+ requested and \d+ written")


class InputError(Exception):
    """What the user gave is wrong. The message is one line: what, where, and what to do. Exit status 2."""


# What settings are called elsewhere, without dashes, and here: the first of these that is known is meant.
_ELSEWHERE = {
    ("lr", "rate"): "learning_rate",
    ("batch_size", "bs", "per_device_train_batch_size"): "batch_tokens batch_rows batch_prompts",
    ("steps", "iters", "max_iters", "iterations"): "max_steps",
    ("epoch", "num_epochs", "num_train_epochs", "passes"): "epochs",
    ("time", "max_minutes", "budget"): "minutes",
    ("o", "output", "output_dir", "outdir", "save_dir", "save_to"): "out",
    ("d", "dataset", "input", "file", "train_file", "train_data", "corpus", "texts"): "data",
    ("test", "test_data", "val_data", "validation_data", "eval"): "eval_data",
    ("m", "name", "checkpoint", "base", "base_model", "model_name", "model_name_or_path"): "model init_from adapter",
    ("p", "text", "message", "question"): "prompt predict",
    ("n", "max_tokens", "max_length", "length", "num_tokens", "new_tokens"): "max_new_tokens",
    ("t", "temp"): "temperature",
    ("block_size", "seq_len", "sequence_length", "max_seq_length", "ctx", "context"): "context_length",
    ("layers", "n_layer", "num_layers", "depth"): "num_hidden_layers",
    ("dim", "width", "n_embd", "d_model", "embedding_size"): "hidden_size",
    ("vocab", "vocabulary", "vocabulary_size"): "vocab_size",
    ("rank", "r"): "lora_rank",
    ("peft", "adapter"): "lora",
    ("fewshot", "shots", "n_shot"): "num_fewshot",
    ("q", "silent"): "quiet",
    ("format", "type"): "to kind",
    ("hub_model_id", "repo"): "repo_id push_to",
}
_HERE = {name: here.split() for names, here in _ELSEWHERE.items() for name in names}


def near(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` when a known name is what `name` is called elsewhere or resembles it, else ""."""
    by_plain = {_plain(other): other for other in known}
    meant = [by_plain[here] for here in _HERE.get(_plain(name), ()) if here in by_plain]
    close = meant or difflib.get_close_matches(name, list(by_plain.values()), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def near_file(path: Path) -> str:
    """Return ` (did you mean 'x'?)` when something in the folder of `path` resembles its name, else an empty string."""
    return near(path.name, (entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else ())


def one_line(error: BaseException) -> str:
    """Return what an error says in one line of at most 300 characters, or its class where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, at most 300 characters, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return names with commas between them, at most `most`, and then how many more there are."""
    names = list(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or while they were handled."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, says that no space is left to write, or none allowed.

    safetensors reports it as text from Rust and numpy by the bytes that it could write, with no errno, so the text is
    looked at too.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(os.strerror(number) in str(cause) for number in (errno.ENOSPC, errno.EFBIG)):
            return True
        if isinstance(cause, OSError) and _NUMPY_WROTE_LESS.fullmatch(str(cause)):
            return True
    return False


class Interrupted(Exception):  # noqa: N818 (no error: the user asked for it)
    """The user stopped a run; its state is saved. Exit status 130. The message says how to go on."""


class Diverged(Exception):  # noqa: N818
    """The loss of a run stopped being a number. Exit status 1. The message says what to try."""


class Unavailable(Exception):  # noqa: N818 (the others here are named after what happened, too)
    """The Hub, or the way to it, did not do what was asked; nothing the user gave is wrong. Exit status 1."""


def user_path(text: str | Path) -> Path:
    """Return the path that the user means: the text itself if something has that name, else the text with `~` expanded.

    Raises `InputError` for what cannot be a path at all: a name that is too long, or one with a NUL.
    """
    path = Path(text)
    if not os.path.lexists(path):
        with contextlib.suppress(RuntimeError):  # ~nobody/x
            path = path.expanduser()
    try:
        path.lstat()
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            why = "is longer than a name can be" if isinstance(error, OSError) else "holds a NUL"
            raise InputError(f"{printable(str(text))[:60]!r}… is the name of no file: it {why}") from error
    return path


def printable(name: str) -> str:
    """Return a name that fits on one line of a message or a recipe: line ends and bytes not in UTF-8 are escaped."""
    text = os.fsencode(name).decode(errors="replace") if not name.isascii() else name
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def public_name(source: str) -> str:
    """Return a name that says no more of a path than its last part; a name on the Hub stays whole."""
    path = user_path(source)
    return printable(path.resolve().name if path.exists() or path.is_absolute() else source)


def names_of(sources: Sequence[str]) -> list[str]:
    """Return a name for each source, with the folder above where two would be the same, then with a number."""
    short = [public_name(source) for source in sources]
    names: list[str] = []
    for name, source in zip(short, sources):
        if short.count(name) > 1:
            name = f"{user_path(source).resolve().parent.name}/{name}"
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    return names
