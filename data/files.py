"""Find, unpack and check the files that a value of `--data` names.

What exists is itself, whatever its name; only what does not exist is a pattern. Nothing is passed over silently: files
of other kinds, hidden files and links that lead nowhere are counted. Unpacked files go to the cache of `datasets`,
named by their content, so that a changed file is never mistaken for its old self and the user's folder stays as it is.
"""

import bz2
import codecs
import glob
import gzip
import lzma
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import datasets

from groundup.common.console import say
from groundup.common.errors import InputError, listed, near_file, printable, user_path
from groundup.common.files import atomic_folder, sha256_of

TEXT_KINDS = (".txt", ".text", ".md", ".rst")
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")

BLOCK_BYTES = 2**20
# How files of other formats begin, whatever their names say, and what to do about each.
_FORMATS = {
    b"%PDF-": "a PDF file: save its text first",
    b"PK\x03\x04": "a zip archive or an Office file: unpack it, or save it as text or CSV",
    b"\xd0\xcf\x11\xe0": "an Office file: save it as text or CSV",
    b"{\\rtf": "an RTF file: save it as plain text",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"SQLite format 3\0": "an SQLite database: save its rows as CSV",
    b"\x1f\x8b": "packed by gzip: let its name end in .gz",
    b"BZh91AY&SY": "packed by bzip2: let its name end in .bz2",
    b"\xfd7zXZ\0": "packed by xz: let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd: let its name end in .zst",
}
_TAR = slice(257, 262), b"ustar"
_PARTS = {  # words in the names of files that are parts of one set
    "training": re.compile(r"(?i)(?<![a-z])train(ing)?(?![a-z])"),
    "testing": re.compile(r"(?i)(?<![a-z])(test|testing|dev|val|valid|validation|eval|held.?out)(?![a-z])"),
}

Named = tuple[Path, str]  # a file, or the folder of a saved dataset, and its name below the folder that was given


def list_files(item: str) -> list[Named]:
    """Return the files that a file name, a folder or a glob names, sorted by name.

    Pass over and count files of other kinds in a folder, and under a glob that leaves the ending open. Raises
    `InputError` if there is nothing to read.
    """
    path = user_path(item)
    if path.is_dir():
        return [(path, printable(path.resolve().name))] if is_saved_dataset(path) else list_folder(path, item)
    if os.path.lexists(path):
        check_file(path, item)
        return [(path, printable(path.name))]
    if glob.has_magic(item):
        return _list_pattern(path, item)
    raise InputError(
        f"no file or folder {printable(item)}{near_file(path)}: give --data a file, folder, glob or Hub name"
    )


def check_file(path: Path, name: str) -> None:
    """Raise `InputError` if what lies at a path is no file that can be read twice: a link to nothing, a pipe."""
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
    """Return the readable files below a folder, through links to folders too, each folder once."""
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
    """Collect what is passed over below a name that was given, and say it in one line for each reason."""

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
    named = [(path, printable(path.relative_to(folder).as_posix() if folder else path.name)) for path in known]
    _say_parts(passed.item, [name for _, name in named])
    return named


def _say_parts(item: str, names: list[str]) -> None:
    """Say which files are read that look as if they were to be held out, where others are for training."""
    held_out = [name for name in names if _PARTS["testing"].search(name)]
    if held_out and any(_PARTS["training"].search(name) for name in names if name not in held_out):
        say(f"{item}: {listed(held_out, 4)} {'is' if len(held_out) == 1 else 'are'} read like the rest, as one set")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {printable(str(folder))}: {error.strerror or error}") from error


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def kind_of(path: Path) -> str | None:
    """Return the kind of a file by its name (`.jsonl` for `rows.jsonl.gz`, `.zip` for an archive), None if unknown."""
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return ".zip"
    if suffix in PACKINGS:
        suffix = Path(path.stem).suffix.lower() or ".txt"
    return suffix if suffix in TEXT_KINDS + ROW_KINDS else None


def unpack(path: Path, sha256: str) -> Path:
    """Return where the file's content lies uncompressed: itself, or a file or folder in the cache named by `sha256`.

    Raises `InputError` for a damaged archive or a compression that this Python cannot read.
    """
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return path
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "groundup-unpacked" / sha256
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as temporary:
                if packing == ".zip":
                    _extract(path, temporary)
                else:
                    with _OPENERS[packing](path) as packed, (temporary / "content").open("wb") as plain:
                        shutil.copyfileobj(packed, plain, BLOCK_BYTES)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile, ValueError) as error:
            raise InputError(f"{path} is damaged or no {packing} file: {error}") from error
        except RuntimeError as error:  # zipfile's way to say that a password is needed
            raise InputError(f"{path} cannot be unpacked: {error}") from error
    return folder if packing == ".zip" else folder / "content"


def _extract(path: Path, folder: Path) -> None:
    """Extract the members of an archive, except links. Raises `ValueError` if two would be the same file."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        links = [member for member in members if stat.S_ISLNK(member.external_attr >> 16)]
        if links:
            names = listed((printable(link.filename) for link in links), 4)
            say(f"{printable(path.name)}: skipped {len(links)} links ({names})")
        places = [archive.extract(member, folder) for member in members if member not in links]
        if len(set(places)) < len(places):
            raise ValueError("two of its files have the same name")


def _open_zst(path: Path) -> IO[bytes]:
    try:
        import zstandard  # pyright: ignore[reportMissingImports] (optional)
    except ImportError as error:
        raise InputError(".zst files need the package zstandard: `pip install zstandard`, or unpack them") from error
    return zstandard.open(path, "rb")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst
}  # fmt: skip


def check_text(path: Path, name: str) -> None:
    """Raise `InputError` unless the file is UTF-8 text; `name` is for the message."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            if offset == 0 and (other := _format_of(block)):
                raise InputError(f"{name} is {other}")
            if offset == 0 and b"\0" in block[:8192]:
                wide = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or any(
                    half.count(0) > 0.9 * len(half) > 0 and 0 not in other
                    for half, other in ((block[::2], block[1::2]), (block[1::2], block[::2]))
                )
                what = (
                    "UTF-16 text: convert it to UTF-8"
                    if wide
                    else f"a binary file (byte {block.index(0):,} is 0): give text, JSONL, CSV or Parquet"
                )
                raise InputError(f"{name} is {what}")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise InputError(f"{name} is not UTF-8 text (byte {place:,}): convert it to UTF-8 first") from error
            offset += len(block)
    if decoder.getstate()[0]:
        raise InputError(f"{name} ends within a character (byte {offset:,}): it is not complete UTF-8 text")


def _format_of(start: bytes) -> str | None:
    """Return the format of a file that starts with these bytes and what to do about it; None if it may be text."""
    place, mark = _TAR
    if start[place] == mark:
        return "a tar archive: unpack it first"
    return next((what for begins, what in _FORMATS.items() if start.startswith(begins)), None)


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def refuse_other_content(rows: Any, items: list[str], option: str, out: Path) -> None:
    """Raise `InputError` where the items of a data option name other files now than those that `out` was made from.

    `rows` are what its recipe keeps of those: the name and sha256 of each; anything else says nothing.
    """
    known = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, dict) and row.get("sha256")]
    read = [(_last_part(str(row.get("name"))), str(row["sha256"])) for row in known]
    if read and (change := _change(read, items)):
        given = f"--{option.replace('_', '-')} {' '.join(map(printable, items))}"
        raise InputError(f"{out} {change.format(given=given)}: leave that out to go on, or choose a new --out")


def _change(read: list[tuple[str, str]], items: list[str]) -> str | None:
    """Return what tells the files that items of data name now from those read, each by name and sha256; None if none.

    A file that came is known by its kind, since files of other kinds than those read may have lain there unread, and
    by its content, since of copies one is read.
    """
    here = [item for item in items if os.path.lexists(user_path(item)) or glob.has_magic(item)]
    files = [path for item in here for path, _ in list_files(item) if path.is_file()]
    found = [(_last_part(path.name), sha256_of(path)) for path in files]
    names, contents = {name for name, _ in read}, {content for _, content in read}
    kinds = {kind_of(Path(name)) for name in names}
    for name, content in found:
        if name in names and (name, content) not in read:
            return f"was made from another {name} than {{given}} has"
        if name not in names and content not in contents and kind_of(Path(name)) in kinds:
            return f"was made without {name}, which {{given}} has now"
    gone = sorted(names - {name for name, _ in found}) if here == items else []
    return f"was made with {gone[0]}, which {{given}} has no more" if gone else None


def _last_part(name: str) -> str:
    return printable(name.rsplit("/", 1)[-1])
