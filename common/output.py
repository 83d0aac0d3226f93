"""Claim the folder that a command writes: checked and locked before any work, left as it was where that fails.

OUT/.groundup/   there while a command is at work in OUT, gone at its end: the lock, a note of who holds it, and what is
                 not whole yet. The system frees the lock when the process dies; the note that a killed command leaves
                 says that what lies beside it, though there is no recipe, was that command's. What it had whole, in
                 whole/, the next command moves up.
"""

import contextlib
import datetime
import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from groundup.common.console import say
from groundup.common.errors import InputError, is_disk_full, printable, user_path
from groundup.common.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    TOKENIZER_FILE,
    remove,
    sync_folder,
    sync_tree,
)
from groundup.common.settings import read_yaml

STATE = ".groundup"
GOING_ON = ("pretrain", "classify", "instruct", "evaluate", "prepare")  # the verbs with --resume
# No model or tokenizer loads without these, and a run that has scores has ended: moved up last, in this order.
_LAST = (TOKENIZER_FILE, CONFIG_FILE, ADAPTER_FILE, RECIPE_FILE, METRICS_FILE)
_NAME_BYTES = 100  # of a folder that is named here; file systems take 143 to 255
_PLENTY = 2**30  # bytes free on a disk that is not full
_PATIENCE = 0.1  # seconds to wait for a command that is just ending


class OutputFolder(contextlib.AbstractContextManager["OutputFolder"]):
    """A folder that this command alone writes to; made by `claim`.

    Leaving the context frees the lock and removes the folders that were not there before, if nothing is in them. A full
    disk and a folder that cannot be written to leave it as an `InputError`.

    Attributes:
        path: the folder.
        goes_on: whether it holds what an earlier command of the verb began, to go on with.
    """

    def __init__(
        self, path: Path, verb: str, resume: bool | None, is_ours: Callable[[Path], bool], is_named: bool
    ) -> None:
        self.path, self._verb, self._resume, self._is_ours = path, verb, resume, is_ours
        self._state = path / STATE
        self._lock = FileLock(self._state / "lock", timeout=_PATIENCE)
        self._new: list[Path] = []  # folders that were not there, deepest first
        self._left_by: str | None = None  # the verb that was killed here
        self._is_taken = False
        try:
            self._take(is_named)
        except BaseException:
            self._leave(is_done=False)
            raise
        self.goes_on = bool(resume) and is_ours(path)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(is_done=error is None)
        if told := error and _disk_error(error, self.path, self._resume is not None and self._verb in GOING_ON):
            raise told from error

    def take_back(self, *names: str) -> None:
        """Remove files and folders that this command wrote into the folder."""
        for name in names:
            remove(self.path / name)

    @contextlib.contextmanager
    def filled(self) -> Iterator[Path]:
        """Yield an empty folder; on leaving, sync it and move its content up, the files that make it loadable last.

        An error inside leaves the folder as it was. Raises `InputError` where the name of a file is taken by then.
        """
        new, whole = Path(tempfile.mkdtemp(prefix="new-", dir=self._state)), self._state / "whole"
        moved: list[str] = []
        try:
            yield new
            sync_tree(new)
            names = _in_order(new)
            if taken := [name for name in names if os.path.lexists(self.path / name)]:
                raise InputError(f"{self.path / taken[0]} has appeared meanwhile: choose a new --out")
            new.rename(whole)
            for name in names:
                moved.append(name)
                (whole / name).rename(self.path / name)
            sync_folder(self.path)
        except BaseException:
            self.take_back(*reversed(moved))  # what makes a folder a whole one first
            raise
        finally:
            remove(new)
            remove(whole)

    def _take(self, is_named: bool) -> None:
        """Check, make and lock the folder."""
        if not os.path.lexists(self._state):
            self._require_usable()  # before anything is touched
        self._make(is_named)
        self._hold()
        self._left_by = self._note().get("verb")
        if (self._state / "whole").is_dir():
            move_up(self._state / "whole", self.path)
            maker, self._left_by = self._left_by, None
            raise InputError(f"{self.path} has the finished output of a killed `groundup {maker}`: choose a new --out")
        self._require_usable()
        for entry in self._state.iterdir():
            if entry.name != "lock":
                remove(entry)
        note = {"verb": self._verb, "process": os.getpid(), "since": datetime.datetime.now().isoformat(" ", "seconds")}
        (self._state / "holder.json").write_text(json.dumps(note), encoding="utf-8")
        self._is_taken = True

    def _require_usable(self) -> None:
        """Raise `InputError` for a folder with something in it, unless it is this verb's to go on with."""
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is no folder: choose another --out")
        if all(entry.name == STATE for entry in self.path.iterdir()):
            return
        has_begun = self._left_by == self._verb or self._is_ours(self.path)
        if self._resume and not has_begun:
            if maker := next((verb for verb in GOING_ON if is_begun(self.path, verb)), None):
                raise InputError(f"{self.path} was made by `groundup {maker}`: resume it with that verb")
            found = f"{self.path} holds something that `{self._verb}` did not write"
            raise InputError(f"{found}{_unread(self.path / RECIPE_FILE)}: choose a new --out")
        if not self._resume:
            or_else = ", or add --resume to resume it" if has_begun and self._resume is not None else ""
            raise InputError(f"{self.path} already holds something: choose a new --out{or_else}")

    def _make(self, is_named: bool) -> None:
        """Make the folder and those above it; one that was not named must not be there."""
        self._new = list(itertools.takewhile(lambda folder: not folder.exists(), [self.path, *self.path.parents]))
        for folder in reversed(self._new):
            try:
                folder.mkdir()
            except FileExistsError as error:  # made by another command since, or a link to nothing
                if not folder.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
                if folder == self.path and not is_named:
                    self._new.clear()
                    raise

    def _hold(self) -> None:
        """Take the lock. Raises `InputError` saying who has it."""
        for attempts_left in range(9, -1, -1):
            try:
                self._state.mkdir(parents=True, exist_ok=True)
                self._lock.acquire()
                return
            except FileNotFoundError:  # the command before has just removed its folder
                if not attempts_left:
                    raise
            except Timeout:
                note, who = self._note(), "another command"
                who = "`groundup {verb}`, process {process}, since {since}".format(**note) if note else who
                message = f"{self.path} is in use by {who}: wait until it ends, or choose another --out"
                raise InputError(message) from None

    def _note(self) -> dict[str, str]:
        """Return who holds the folder, or held it when killed; empty where that is not known."""
        try:
            note = json.loads((self._state / "holder.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) and {"verb", "process", "since"} <= set(note) else {}

    def _leave(self, *, is_done: bool) -> None:
        """Free the lock, and remove what served only the work."""
        if self._lock.is_locked:
            is_unfinished = self._left_by and not is_done and not (self._is_taken and self._is_ours(self.path))
            if is_unfinished and any(entry.name != STATE for entry in self.path.iterdir()):
                remove(self._state / "lock")  # the note stays, for the next one to go on
            else:
                remove(self._state)
            self._lock.release()
            if os.name == "nt":  # where an open file cannot be removed
                remove(self._state)
        for folder in self._new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def claim(
    out: str | Path | None,
    verb: str,
    name: str,
    *,
    resume: bool | None = None,
    is_ours: Callable[[Path], bool] | None = None,
) -> OutputFolder:
    """Lock and return the folder that a verb writes to: `out`, or the first free `runs/VERB-NAME[-N]`.

    Args:
        out: a folder that is absent or empty or, with `resume`, one that the verb began.
        verb, name: what the folder is called where `out` is None.
        resume: whether to go on with what is in `out`; None for a verb that cannot.
        is_ours: tells a folder that the verb began; by its recipe where not given.

    Raises:
        InputError: for a folder that holds something else, that cannot be written to, or that another command uses.
    """
    ours = is_ours or (lambda folder: is_begun(folder, verb))
    if out is not None:
        path = given_folder(out)
        try:
            return OutputFolder(path, verb, resume, ours, is_named=True)
        except (OSError, ValueError) as error:
            raise _unwritable(path, error) from error
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name).strip("-.")
    plain = plain.encode()[:_NAME_BYTES].decode(errors="ignore") or "run"
    for number in itertools.count():
        path = Path("runs") / f"{verb}-{plain}{f'-{number}' if number else ''}"
        if os.path.lexists(path):
            continue
        try:
            return OutputFolder(path, verb, resume, ours, is_named=False)
        except (FileExistsError, InputError):  # made, or even filled, by another command since
            continue
        except (OSError, ValueError) as error:
            raise _unwritable(path, error) from error
    raise AssertionError("there are always more numbers")


def given_folder(out: str | Path) -> Path:
    """Return the folder that `--out` names. Raises `InputError` for no name, and for a home that is not there."""
    if not str(out).strip():
        raise InputError("--out is empty: name a folder, or leave --out out")
    path = user_path(out)
    try:
        str(path).encode()
    except UnicodeEncodeError:  # tokenizers and safetensors write to no other names
        raise InputError(f"--out {printable(str(path))}: the name is not UTF-8: choose another --out") from None
    if str(path).startswith("~") and not os.path.lexists(path):
        raise InputError(f"--out {out}: there is no home folder {path.parts[0]}: choose another --out")
    return path


def is_begun(folder: Path, verb: str) -> bool:
    """Return whether a folder holds the recipe of a verb of ours."""
    try:
        return read_yaml(folder / RECIPE_FILE).get("verb") == verb
    except (InputError, ValueError):
        return False


def _unread(recipe: Path) -> str:
    """Return why a recipe that is there cannot be read, in brackets; nothing if it can be, or is not there."""
    if recipe.is_file():
        try:
            read_yaml(recipe)
        except InputError as error:
            return f" (or its recipe is damaged: {error})"
    return ""


def nothing_to_resume(folder: str | Path) -> InputError:
    """Return the error for `--resume` in a folder without a run, when nothing is given to begin one."""
    return InputError(f"{folder} holds nothing to resume, and no --data is given: check --out, or give --data")


def tidy(folder: Path) -> None:
    """Remove what a command that was killed at its very end left of its lock, where none is at work in `folder`."""
    state = folder / STATE
    if state.is_dir():
        with contextlib.suppress(OSError, Timeout), FileLock(state / "lock", timeout=0):
            remove(state)


def holds_nothing(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a killed command leaves before its first file."""
    state = folder / STATE
    return folder.is_dir() and all(entry == state for entry in folder.iterdir()) and not (state / "whole").exists()


def require_unused(folder: Path) -> None:
    """Raise `InputError` where a command is at work in `folder`."""
    lock = folder / STATE / "lock"
    if lock.is_file():
        try:
            with FileLock(lock, timeout=_PATIENCE):
                pass
        except Timeout:
            raise InputError(f"{folder} is in use by another command: wait until it ends") from None


def move_up(source: Path, folder: Path, replaced: Container[str] = ()) -> None:
    """Move everything in `source` up into `folder`, the files that make it loadable last.

    A file that somebody else put there meanwhile is kept under another name, except for names in `replaced`.
    """
    for name in _in_order(source):
        target = folder / name
        if os.path.lexists(target) and name not in replaced:
            aside = next_free(target)
            target.rename(aside)
            say(f"{target} was there, and is {aside.name} now")
        (source / name).replace(target)
    sync_folder(folder)


def _in_order(folder: Path) -> list[str]:
    names = (entry.name for entry in folder.iterdir())
    return sorted(names, key=lambda name: _LAST.index(name) if name in _LAST else -1)


def next_free(path: Path) -> Path:
    """Return the first of PATH.old-1, PATH.old-2 ... that is not there: where to move what nobody may lose."""
    places = (path.with_name(f"{path.name}.old-{number}") for number in itertools.count(1))
    return next(place for place in places if not os.path.lexists(place))


def _unwritable(folder: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot write to {folder} ({reason}): choose another --out")


def _disk_error(error: BaseException, folder: Path, can_resume: bool) -> InputError | None:
    """Return one line for the user if `error` is a full disk or a folder that cannot be written to, else None."""
    if is_disk_full(error):
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        again = "add --resume" if can_resume else "give the command again"
        beyond = ", but a quota or a limit on the size of files is reached" if free > _PLENTY else ""
        left = f"{free / 1e6:.0f} MB free{beyond}"
        return InputError(f"no space left on the disk of {folder} ({left}): make room, then {again}")
    if not isinstance(error, OSError) or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    if error.filename and not Path(os.fsdecode(error.filename)).resolve().is_relative_to(folder.resolve()):
        return InputError(f"cannot open {os.fsdecode(error.filename)} ({error.strerror}): see who may read it")
    return _unwritable(folder, error)
