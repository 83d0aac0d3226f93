"""Turn what `--data` names into documents: files, folders, globs, Hub datasets and `python-docs`.

    names ──find──> files ──readers──> rows ──text column──> documents ──split──> Corpus

Documents stay documents: a text file is one, a row is one. The order is that of the names given, sorted within each.
"""

import codecs
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from groundup.common.console import say
from groundup.common.errors import InputError, first_line, is_disk_full, printable, user_path
from groundup.common.errors import listed as listed_names
from groundup.common.files import sha256_of
from groundup.data import python_docs
from groundup.data.documents import Documents, FileText, Part, Share, Texts, border_of, character_begins, stretch
from groundup.data.files import (
    PACKINGS,
    ROW_KINDS,
    TEXT_KINDS,
    Named,
    check_text,
    kind_of,
    list_files,
    list_folder,
    unpack,
)
from groundup.data.tables import ArrowTable, Table, open_saved_dataset, open_table, quiet_datasets
from groundup.data.text_columns import say_columns, text_documents

PYTHON_DOCS = "python-docs"
BUILT_IN = (PYTHON_DOCS, "library-areas", "instruction-tasks")  # names that stand for no file

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+){0,2}")
_LFS_NOTE = b"version https://git-lfs.github.com/spec/"
FEW_DOCUMENTS = 10
_START_BYTES = 2**16  # of a text, to see what it may be
SAVED = "saved dataset"  # a folder that `save_to_disk` of `datasets` wrote


@dataclasses.dataclass(frozen=True)
class Source:
    """One file that `--data` led to, or one folder of a saved dataset."""

    path: Path
    name: str  # below the folder given, for messages and recipes: never an absolute path
    kind: str  # one of TEXT_KINDS or ROW_KINDS, or SAVED
    plain: Path  # where its content lies without compression
    sha256: str  # of the file as it is, compressed or not
    content: str  # the same of a member of an archive, where it is one

    def table(self) -> Table:
        """Open it as a table. Raises `InputError` for a text file, which has no columns, and if it cannot be read."""
        if self.kind == SAVED:
            return open_saved_dataset(self.plain, self.name, aloud=True)[0]
        if self.kind not in ROW_KINDS:
            raise InputError(f"{self.name} is text without columns: give {', '.join(ROW_KINDS)}")
        return open_table(self.plain, self.kind, self.name, self.content)

    def row(self) -> dict[str, Any]:
        """Return what a recipe keeps of it."""
        files = open_saved_dataset(self.plain, self.name)[1] if self.kind == SAVED else [self.path]
        return {"name": self.name, "bytes": sum(file.stat().st_size for file in files), "sha256": self.sha256}


class Once:
    """The contents seen so far: a file given again, by whatever path, pattern or name, is left out."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}
        self._again: list[str] = []

    def new(self, name: str, content: str, kind: str = "") -> bool:
        """Return whether this content was not seen before; text is text whatever its ending says."""
        key = (content, ".txt" if kind in TEXT_KINDS else kind)
        if key in self._first:
            self._again.append(f"{name} is {self._first[key]} again")
            return False
        self._first[key] = name
        return True

    def say(self) -> None:
        """Say what was left out."""
        if self._again:
            more = f", and {len(self._again) - 3:,} more" if len(self._again) > 3 else ""
            say(f"given more than once, read once: {', '.join(self._again[:3])}{more}")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents held out."""

    train: Documents
    validation: Documents
    sources: list[dict[str, Any]]  # name, bytes, sha256 of each file; name, revision of a Hub dataset
    name: str  # short, fit for a folder's name


def load_corpus(
    data: Sequence[str], text_column: str | None = None, validation_fraction: float = 0.1, share: Share | None = None
) -> Corpus:
    """Read what `data` names and hold out its last tenth: of characters for a single document, of documents otherwise.

    With a `share` read that part of the data, and split it in itself. `python-docs` has a split of its own. Raises
    `InputError` for what is missing, unreadable or too little.
    """
    train, validation, sources = Documents([]), Documents([]), []
    others = [item for item in data if item != PYTHON_DOCS]
    if len(others) < len(data):
        if share is not None:
            raise InputError(f"--part divides files and rows, and {PYTHON_DOCS} has none: leave one of them out")
        if os.path.lexists(PYTHON_DOCS):
            say(f"{PYTHON_DOCS} is the built-in corpus; what is called so here is ./{PYTHON_DOCS}")
        docs = python_docs.load()
        train, validation = (Documents.of(docs[split]) for split in ("train", "validation"))
        sources.append(python_docs.source())
    if others or not data:
        documents, rows = load_documents(others, text_column, share)
        parts = _split(documents, validation_fraction, ", ".join(others))
        train, validation = train + parts[0], validation + parts[1]
        sources.extend(rows)
    return Corpus(train, validation, sources, short_name(data))


def load_documents(
    data: Sequence[str], text_column: str | None = None, share: Share | None = None
) -> tuple[Documents, list[dict[str, Any]]]:
    """Return all documents with text in them, unsplit, and a row for each file or dataset from which they came.

    Of `python-docs` these are the held-out ones: a model was trained on the others. A share is one of whole files where
    there are enough of them, else one of the documents. Raises `InputError` for what is missing or unreadable.
    """
    if not data:
        raise InputError("no --data given: name a file, a folder, a glob, a Hub dataset or python-docs")
    listed: list[str | Named] = []
    for item in data:
        listed.extend([item] if item == PYTHON_DOCS or is_hub_name(item) else _without_readme(list_files(item), item))
    of_files = share is not None and len(listed) >= share.count
    parts: list[Part | Documents] = []
    rows, once, empty = [], Once(), []
    doubts: dict[str, list[str]] = {}
    for entry in share.of(listed) if share is not None and of_files else listed:
        if isinstance(entry, str) and not once.new(entry, entry):
            continue
        if entry == PYTHON_DOCS:
            parts.append(Documents.of(python_docs.load()["validation"]))
            rows.append(python_docs.source())
        elif isinstance(entry, str):
            table, row = _load_hub(entry)
            part, columns = text_documents(table, text_column)
            parts.append(part)
            rows.append(row | columns)
        else:
            sources = [each for each in _open(entry[0], entry[1]) if once.new(each.name, each.content, each.kind)]
            found = [_read_file(source, text_column) for source in sources]
            for each in sources:
                if each.kind in TEXT_KINDS and (doubt := _doubt_of(each)):
                    doubts.setdefault(doubt, []).append(each.name)
            parts.extend(part for part, _ in found)
            empty += [each.name for each, (part, _) in zip(sources, found) if each.kind in TEXT_KINDS and not len(part)]
            rows.extend(_file_rows(sources, [columns for _, columns in found]))
    once.say()
    for doubt, names in doubts.items():
        say(f"{listed_names(names, 3)}: {doubt}")
    say_columns(rows)
    documents = Documents(parts)
    if len(documents) == 0:
        raise InputError(f"no text in {', '.join(data)}: every document there is empty")
    if empty:
        count = "1 file has" if len(empty) == 1 else f"{len(empty):,} files have"
        say(f"{count} no text and {'is' if len(empty) == 1 else 'are'} left out: {listed_names(empty, 4)}")
    return documents if share is None or of_files else share.of(documents), rows


def load_tables(data: Sequence[str], once: Once | None = None) -> tuple[list[tuple[str, Table]], list[dict[str, Any]]]:
    """Open files, saved or Hub datasets as tables with all their columns: (name, table) of each, and a row of origin.

    Leave out what `once` has seen. Raises `InputError` for what cannot be read, and for text files, which have no
    columns.
    """
    tables: list[tuple[str, Table]] = []
    rows = []
    for item in data:
        if is_hub_name(item):
            if once is None or once.new(item, item):
                table, row = _load_hub(item)
                tables.append((item, table))
                rows.append(row)
        else:
            sources = tables_of(find_files(item, once), item)
            tables.extend((source.name, source.table()) for source in sources)
            rows.extend(_file_rows(sources))
    return tables, rows


def text_bytes(documents: Documents) -> int:
    """Return the UTF-8 bytes of all documents."""
    return sum(map(len, documents.contents()))


def sample(documents: Documents, limit: int) -> Documents:
    """Choose documents evenly, of about `limit` bytes in all; cut a single longer one there."""
    chosen = documents[:: max(1, -(-text_bytes(documents) // limit))]
    if len(chosen) > 1 or text_bytes(chosen) <= limit:
        return chosen
    (content,) = chosen.contents()
    first = max(0, limit - 3)
    begins = np.flatnonzero(character_begins(content[first : limit + 1]))
    return Documents([Texts([stretch(content, 0, first + int(begins[-1]))])])


def sample_texts(documents: Documents, limit: int) -> Iterator[str]:
    """Return the texts of a `sample`, long ones in pieces: what to train a tokenizer on, however large the data."""
    return (piece.text for piece in sample(documents, limit).pieces())


def find_files(item: str, once: Once | None = None) -> list[Source]:
    """Find the readable files that a file name, a folder or a glob names, sorted by name and unpacked.

    In a folder, and under a glob that leaves the ending open, files of other kinds are passed over and counted. What
    `once` has seen is left out.
    """
    found = [source for path, name in list_files(item) for source in _open(path, name)]
    return [source for source in found if once is None or once.new(source.name, source.content, source.kind)]


def tables_of(sources: list[Source], item: str, texts: Sequence[str] = TEXT_KINDS) -> list[Source]:
    """Leave out texts of these kinds if there are tables beside them, such as a folder's README.md.

    Print how many they are. Without tables all of them stay.
    """
    tables = [source for source in sources if source.kind not in texts]
    if not tables or len(tables) == len(sources):
        return sources
    names = listed_names((source.name for source in sources if source.kind in texts), 4)
    passed = f"skipped {len(sources) - len(tables)} of {len(sources)} files, texts beside tables"
    say(f"{printable(item)}: {passed} ({names})")
    return tables


def check_exists(data: Sequence[str]) -> None:
    """Raise `InputError` now for a file that cannot be found when it is to be read; nothing is read."""
    for item in data:
        if item.split(":")[0] not in BUILT_IN and not is_hub_name(item):
            list_files(item)


def _open(path: Path, name: str) -> list[Source]:
    """Return the source that a file is, or those within a .zip; a file of unknown kind counts as text."""
    if path.is_dir():
        sha256 = open_saved_dataset(path, name)[0].content or ""
        return [Source(path, name, SAVED, path, sha256, sha256)]
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS_NOTE)) == _LFS_NOTE:
                note = f"{name} is not the file itself but a note of Git LFS about it"
                raise InputError(f"{note}: run `git lfs pull` first")
        sha256 = sha256_of(path)
        plain = unpack(path, sha256)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    if plain.is_dir():
        inner = [source for file, below in list_folder(plain, name) for source in _open(file, below)]
        return [dataclasses.replace(source, path=path, name=f"{name}/{source.name}", sha256=sha256) for source in inner]
    return [Source(path, name, kind_of(path) or ".txt", plain, sha256, sha256)]


def _read_file(source: Source, text_column: str | None) -> tuple[Part, dict[str, Any]]:
    """Return the documents of a file, and which of its columns they are."""
    if source.kind not in TEXT_KINDS:
        return text_documents(source.table(), text_column)
    check_text(source.plain, source.name)
    with source.plain.open("rb") as file:
        mark = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    return Texts([FileText(source.plain, mark, source.plain.stat().st_size)]), {}


def _doubt_of(source: Source) -> str | None:
    """Return a warning for a file that is read as text but may be meant as something else, else None."""
    with source.plain.open("rb") as file:
        start = file.read(_START_BYTES).decode(errors="ignore").removeprefix("\ufeff").lstrip()
    if start[:1] == "{" and _is_object(start.split("\n")[0]):
        return "read as plain text, though the lines are JSON: let the name end in .jsonl to read the rows"
    if start[:200].lower().startswith(("<!doctype html", "<html", "<?xml")):
        return "read as plain text, tags and all"
    return "read as plain text" if source.path.suffix and kind_of(source.path) is None else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _without_readme(files: list[Named], item: str) -> list[Named]:
    """Leave out the README of a folder of tables, which describes them, and say so."""
    readmes = [(path, name) for path, name in files if path.stem.lower() == "readme" and kind_of(path) in TEXT_KINDS]
    if not any(path.is_dir() or kind_of(path) in ROW_KINDS for path, _ in files):
        return files
    if readmes:
        say(f"{printable(item)}: skipped {listed_names((name for _, name in readmes), 4)} beside tables")
    return [file for file in files if file not in readmes]


def _file_rows(sources: list[Source], columns: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return a row for each file on the user's disk, with the columns read; the members of a .zip are one file."""
    rows: dict[Path, dict[str, Any]] = {}
    for source, read in itertools.zip_longest(sources, columns, fillvalue={}):
        row = source.row()
        if source.path.suffix.lower() == ".zip":
            row["name"] = printable(source.path.name)
        rows[source.path] = rows.get(source.path, {}) | row | read
    return list(rows.values())


def _split(documents: Documents, fraction: float, name: str) -> tuple[Documents, Documents]:
    if len(documents) == 1:
        (content,) = documents.contents()
        border = border_of(content, fraction)
        parts = [stretch(content, 0, border)], [stretch(content, border, len(content))]
        train, validation = (Documents([Texts(part)]) for part in parts)
    else:
        border = len(documents) - max(1, int(len(documents) * fraction))
        train, validation = documents[:border], documents[border:]
        if len(validation) < FEW_DOCUMENTS:  # of unlike sizes the last tenth may be far from a tenth of the text
            share = text_bytes(validation) / text_bytes(documents)
            if not fraction / 2 <= share <= 2 * fraction:
                last = f"{len(validation)} of {len(documents)} documents"
                say(f"held out for validation: the last {last}, {share:.1%} of the text")
    if not (len(train) and len(validation)):
        raise InputError(f"{name} has too little text to hold out a part for validation: give more")
    return train, validation


def is_hub_name(item: str) -> bool:
    """Return whether `owner/name` is meant, not a file: nothing lies there, no such folder, no ending of a file."""
    if item in BUILT_IN:
        return False
    path = user_path(item)
    if os.path.lexists(path) or path.parent.is_dir() or not _HUB_NAME.fullmatch(item):
        return False
    return path.suffix.lower() not in TEXT_KINDS + ROW_KINDS + PACKINGS


def _load_hub(item: str) -> tuple[Table, dict[str, Any]]:
    """Load `owner/name`, `owner/name:split` or `owner/name:config:split`; the split is `train` unless named."""
    name, *rest = item.split(":")
    config, split = rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"
    try:
        _ask_hub(name)
        with quiet_datasets():
            dataset: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise InputError(f"cannot load {item} from the Hub, and no such file is here: {first_line(error)}") from error
    revision = Path(dataset.cache_files[0]["filename"]).parent.name  # the cache of `datasets` goes by commit
    return ArrowTable.stored(dataset, item, f"{item} {revision}"), {"name": item, "revision": revision}


def _ask_hub(name: str) -> None:
    """Fail at once where the Hub cannot be reached and nothing is cached: `load_dataset` would wait for 25 seconds."""
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    try:
        HfApi().dataset_info(name, timeout=10)
    except HfHubHTTPError:
        return  # it answers: `load_dataset` finds the words for what is wrong
    except Exception:
        if not cached.is_dir():
            raise


def short_name(data: Sequence[str]) -> str:
    """Return a short name for `data`, fit for a folder: that of the first file or dataset, and how many more."""
    path = user_path(data[0] if data else "data")
    first = path.resolve().name if path.is_dir() else path.name.split(":")[0].split(".")[0]
    plain = re.sub(r"[^\w-]+", "-", first).strip("-")[:40] or "data"
    return plain if len(data) < 2 else f"{plain}-and-{len(data) - 1}-more"
