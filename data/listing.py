"""From a name of `--data` to files: what exists is itself, whatever its name; only what does not is a pattern.

Nothing is passed over without a word: files of other kinds, hidden ones and links that lead nowhere are counted.
"""

import glob
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from groundup.common.console import say
from groundup.common.errors import InputError, near, printable, user_path
from groundup.data.readers import ROW_KINDS, TEXT_KINDS, is_saved_dataset, kind_of
from groundup.data.values import listed

Named = tuple[Path, str]  # a file, or the folder of a saved dataset, and its name below the folder that was given


def list_files(item: str) -> list[Named]:
    """What a file name, a folder or a glob stands for, sorted by name.

    In a folder, and for a glob that leaves the ending open, files of other kinds are passed over and counted. Raises
    `InputError` where there is nothing to read.
    """
    path = user_path(item)
    if path.is_dir():
        return [(path, printable(path.resolve().name))] if is_saved_dataset(path) else list_folder(path, item)
    if os.path.lexists(path):
        check_file(path, item)
        return [(path, printable(path.name))]
    if glob.has_magic(item):
        return _list_pattern(path, item)
    folder = path.parent
    known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise InputError(
        f"no file or folder {printable(item)}{near(path.name, known)}: give --data a file, folder, glob or Hub name"
    )


def check_file(path: Path, name: str) -> None:
    """Raise `InputError` for what lies at a path but is no file that can be read twice: a link to nothing, a pipe."""
    name = printable(name)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            target = printable(str(path.readlink()))
            raise InputError(
                f"{name} is a link to {target}, which does not exist: fix the link or leave it out"
            ) from error
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        what = kinds.get(stat.S_IFMT(mode), "a device")
        raise InputError(f"{name} is {what}, which can be read only once: write it into a file first")


def list_folder(folder: Path, item: str) -> list[Named]:
    """The files below a folder that can be read, through links to folders too, each folder once."""
    found: list[Path] = []
    passed = _Passed(item)
    seen = {_identity(folder)}
    pending = [folder]
    while pending:
        for path in _entries(pending.pop()):
            if path.name.startswith((".", "__MACOSX")):
                passed.hidden.append(path)
            elif path.is_dir():
                if _identity(path) in seen:
                    passed.again.append(path)
                elif is_saved_dataset(path):
                    found.append(path)
                else:
                    seen.add(_identity(path))
                    pending.append(path)
            else:
                found.append(path)
    return _readable(sorted(found), folder, passed)


def _list_pattern(path: Path, item: str) -> list[Named]:
    # pathlib's own takes no absolute pattern; `**` of a link that leads back to its folder finds a file many times.
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
    first = {os.path.realpath(match): match for match in reversed(matches) if not match.is_dir()}
    found = sorted(first.values())
    if found and path.suffix and not glob.has_magic(path.suffix):
        for match in found:
            check_file(match, str(match))
        return [(match, printable(match.name)) for match in found]
    return _readable(found, None, _Passed(item))


class _Passed:
    """What is left aside below a name that was given, to be said in one line."""

    def __init__(self, item: str) -> None:
        self.item = printable(item)
        self.hidden: list[Path] = []
        self.again: list[Path] = []
        self.no_files: list[Path] = []

    def say(self, found: list[Path], known: list[Path]) -> None:
        """Say what is passed over and why."""
        if len(known) < len(found):
            endings = sorted({printable(file.suffix) or "no ending" for file in set(found) - set(known)})
            count = len(found) - len(known)
            say(f"{self.item}: skipped {count} of {len(found)} files of other types ({', '.join(endings[:8])})")
        reasons = {
            "hidden": self.hidden,
            "reached before, through a link": self.again,
            "links to nothing, pipes or devices": self.no_files,
        }
        for reason, paths in reasons.items():
            if paths:
                names = listed((printable(path.name) for path in sorted(paths)), 4)
                say(f"{self.item}: skipped {len(paths)} that are {reason} ({names})")


def _readable(found: Iterable[Path], folder: Path | None, passed: _Passed) -> list[Named]:
    files = []
    for path in found:
        (files if path.is_dir() or path.is_file() else passed.no_files).append(path)
    known = [path for path in files if path.is_dir() or kind_of(path)]
    passed.say(files, known)
    if not known:
        kinds = ", ".join(TEXT_KINDS + ROW_KINDS)
        raise InputError(f"{passed.item} holds no file to read: {kinds}, or one of them packed")
    return [(path, printable(path.relative_to(folder).as_posix() if folder else path.name)) for path in known]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {printable(str(folder))}: {error.strerror or error}") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
