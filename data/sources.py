"""What `--data` may be, and how it becomes documents: files, folders, globs, Hub datasets and `python-docs`.

    names ──find──> files ──readers──> rows ──text column──> documents ──split──> Corpus

Documents stay documents: a text file is one, a row is one. The order is that of the names given, sorted within each.
"""

import codecs
import dataclasses
import glob
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from groundup.common.console import say
from groundup.common.errors import InputError, is_disk_full, near
from groundup.common.files import sha256_of
from groundup.data import python_docs
from groundup.data.documents import BLOCK_BYTES, Content, Documents, FileText, Texts, blocks, stretch
from groundup.data.parts import Share
from groundup.data.readers import (
    PACKINGS,
    ROW_KINDS,
    TEXT_KINDS,
    check_text,
    kind_of,
    parquet_head,
    quiet_datasets,
    read_parquet_batches,
    read_rows,
    unpack,
)
from groundup.data.tables import Rows

PYTHON_DOCS = "python-docs"
BUILT_IN = (PYTHON_DOCS, "library-areas", "instruction-tasks")  # names that stand for no file

TEXT_COLUMNS = ("text", "content", "document", "article", "story", "body", "sentence", "review", "passage")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+){0,2}")
FEW_DOCUMENTS = 10


@dataclasses.dataclass(frozen=True)
class Source:
    """One file that `--data` led to."""

    path: Path
    name: str  # below the folder given, for messages and recipes: never an absolute path
    kind: str  # one of TEXT_KINDS or ROW_KINDS
    plain: Path  # where its content lies without compression
    sha256: str  # of the file as it is, compressed or not


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents to learn from and documents kept back."""

    train: Documents
    validation: Documents
    sources: list[dict[str, Any]]  # name, bytes, sha256 of each file; name, revision of a Hub dataset
    name: str  # short, fit for a folder's name


def load_corpus(
    data: Sequence[str], text_column: str | None = None, validation_fraction: float = 0.1, share: Share | None = None
) -> Corpus:
    """Find what `data` names and keep back its last tenth: of characters for a single document, of documents otherwise.

    With a `share` it is that part of the data, split in itself. `python-docs` has a split of its own. Raises
    `InputError` where something is missing, unreadable or too little.
    """
    train, validation, sources = Documents([]), Documents([]), []
    others = [item for item in data if item != PYTHON_DOCS]
    if len(others) < len(data):
        if share is not None:
            raise InputError(f"--part divides files and rows, and {PYTHON_DOCS} has none: leave one of them out")
        docs = python_docs.load()
        train, validation = (Documents.of(docs[split]) for split in ("train", "validation"))
        sources.append(python_docs.source())
    if others or not data:
        documents, rows = _read(others, text_column, share)
        parts = _split(documents, validation_fraction, ", ".join(others))
        train, validation = train + parts[0], validation + parts[1]
        sources.extend(rows)
    return Corpus(train, validation, sources, short_name(data))


def load_documents(data: Sequence[str], text_column: str | None = None) -> Documents:
    """Find documents to measure on, unsplit. Raises `InputError` where something is missing or unreadable.

    Of `python-docs` these are the ones kept back: the others are what a model was trained on.
    """
    return _read(data, text_column)[0]


def load_tables(data: Sequence[str]) -> tuple[list[tuple[str, datasets.Dataset]], list[dict[str, Any]]]:
    """Read files or Hub datasets as tables with all their columns: (name, rows) of each, and where they came from.

    Raises `InputError` for what cannot be read, and for text files, which have no columns.
    """
    tables, rows = [], []
    for item in data:
        if is_hub_name(item):
            dataset, row = _load_hub(item)
            tables.append((item, dataset))
            rows.append(row)
            continue
        sources = find_files(item)
        for source in sources:
            if source.kind not in ROW_KINDS:
                raise InputError(f"{source.name} is text without columns: give {', '.join(ROW_KINDS)}")
            tables.append((source.name, read_rows(source.plain, source.kind, source.name)))
        rows.extend(_file_rows(sources))
    return tables, rows


def text_bytes(documents: Documents) -> int:
    """The UTF-8 bytes of all documents."""
    return sum(map(len, documents.contents()))


def sample(documents: Documents, limit: int) -> Documents:
    """An even choice of documents, of about `limit` bytes in all; a single longer one is cut there."""
    chosen = documents[:: max(1, -(-text_bytes(documents) // limit))]
    if len(chosen) > 1 or text_bytes(chosen) <= limit:
        return chosen
    (content,) = chosen.contents()
    first = max(0, limit - 3)
    begins = np.flatnonzero(_character_begins(content[first : limit + 1]))
    return Documents([Texts([stretch(content, 0, first + int(begins[-1]))])])


def sample_texts(documents: Documents, limit: int) -> Iterator[str]:
    """The texts of a `sample`, long ones in pieces: what to train a tokenizer on, whatever the size of the data."""
    return (piece.text for piece in sample(documents, limit).pieces())


def find_files(item: str) -> list[Source]:
    """The readable files that a file name, a folder or a glob stands for, sorted by name, unpacked where packed.

    In a folder, and for a glob that leaves the ending open, files of other kinds are passed over and counted.
    """
    return [source for path, name in _list_files(item) for source in _open(path, name)]


def check_exists(data: Sequence[str]) -> None:
    """Raise `InputError` now for a file that cannot be found when it is to be read; nothing is read."""
    for item in data:
        if item.split(":")[0] not in BUILT_IN and not is_hub_name(item):
            _list_files(item)


def _list_files(item: str) -> list[tuple[Path, str]]:
    """The files that `find_files` opens, each with its name below the folder that was given."""
    path = Path(item).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
        return _readable(item, found, path)
    if path.is_file():
        return [(path, path.name)]
    if glob.has_magic(item):
        # pathlib's own takes no absolute pattern.
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = [match for match in matches if match.is_file()]
        if found and path.suffix and not glob.has_magic(path.suffix):
            return [(file, file.name) for file in found]
        return _readable(item, found, None)
    folder = path.parent
    known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise InputError(f"no file or folder {item}{near(path.name, known)}: give --data a file, folder, glob or Hub name")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)


def _readable(item: str, found: list[Path], folder: Path | None) -> list[tuple[Path, str]]:
    known = [file for file in found if kind_of(file)]
    if not known:
        raise InputError(f"{item} holds no file to read: {', '.join(TEXT_KINDS + ROW_KINDS)}, or one of them packed")
    if len(known) < len(found):
        endings = sorted({file.suffix or "no ending" for file in set(found) - set(known)})
        count = len(found) - len(known)
        say(f"{item}: passed over {count} of {len(found)} files by their kind ({', '.join(endings[:8])})")
    return [(file, file.relative_to(folder).as_posix() if folder else file.name) for file in known]


def _open(path: Path, name: str) -> list[Source]:
    """The source a file is, or the sources within a .zip; a file of unknown kind counts as text."""
    try:
        sha256 = sha256_of(path)
        plain = unpack(path, sha256)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    if plain.is_dir():
        members = [member for member in sorted(plain.rglob("*")) if member.is_file() and not _is_hidden(member, plain)]
        inner = [source for file, below in _readable(name, members, plain) for source in _open(file, below)]
        return [dataclasses.replace(source, path=path, name=f"{name}/{source.name}", sha256=sha256) for source in inner]
    return [Source(path, name, kind_of(path) or ".txt", plain, sha256)]


def _read(
    data: Sequence[str], text_column: str | None, share: Share | None = None
) -> tuple[Documents, list[dict[str, Any]]]:
    """All documents with text in them, and a row for each file or dataset they came from.

    A share is one of whole files where there are enough of them, else one of the documents.
    """
    if not data:
        raise InputError("no --data given: name a file, a folder, a glob, a Hub dataset or python-docs")
    listed: list[str | tuple[Path, str]] = []
    for item in data:
        listed.extend([item] if item == PYTHON_DOCS or is_hub_name(item) else _list_files(item))
    of_files = share is not None and len(listed) >= share.count
    parts, rows = [], []
    for entry in share.of(listed) if share is not None and of_files else listed:
        if entry == PYTHON_DOCS:
            parts.append(Documents.of(python_docs.load()["validation"]))
            rows.append(python_docs.source())
        elif isinstance(entry, str):
            dataset, row = _load_hub(entry)
            parts.append(Rows.loaded(dataset, _column_of(dataset, text_column, entry)))
            rows.append(row)
        else:
            sources = _open(*entry)
            parts.extend(_read_files(sources, text_column))
            rows.extend(_file_rows(sources))
    documents = Documents(parts)
    if len(documents) == 0:
        raise InputError(f"no text in {', '.join(data)}: every document there is empty")
    return documents if share is None or of_files else share.of(documents), rows


def _read_files(sources: list[Source], text_column: str | None) -> Iterator[Rows | Texts]:
    for source in sources:
        if source.kind in TEXT_KINDS:
            check_text(source.plain, source.name)
            with source.plain.open("rb") as file:
                mark = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
            yield Texts([FileText(source.plain, mark, source.plain.stat().st_size)])
        elif source.kind == ".parquet":
            column = _column_of(parquet_head(source.plain, source.name), text_column, source.name)
            tables = partial(read_parquet_batches, source.plain, source.name, [column])
            yield Rows(tables, column, with_text_only=True)
        else:
            dataset = read_rows(source.plain, source.kind, source.name)
            yield Rows.loaded(dataset, _column_of(dataset, text_column, source.name))


def _file_rows(sources: list[Source]) -> list[dict[str, Any]]:
    """A row for each file on the user's disk; the members of a .zip are one file."""
    rows = {}
    for source in sources:
        name = source.name if source.path.suffix.lower() != ".zip" else source.path.name
        rows[source.path] = {"name": name, "bytes": source.path.stat().st_size, "sha256": source.sha256}
    return list(rows.values())


def _column_of(dataset: datasets.Dataset, text_column: str | None, name: str) -> str:
    """The column with the text: the one that was named, if it is there and holds strings, else the one found."""
    column = text_column or find_text_column(dataset, name)
    if column not in dataset.column_names:
        raise InputError(f"{name} has no column {column!r}{near(column, dataset.column_names)}: {_columns(dataset)}")
    if not _is_string(dataset, column):
        raise InputError(f"column {column!r} of {name} holds no text: {_columns(dataset)}")
    return column


def find_text_column(dataset: datasets.Dataset, name: str) -> str:
    """The column that holds the text: by its usual names, else the only one of strings, else the longest on average.

    Raises `InputError` when no column holds strings; `name` stands in the message.
    """
    strings = [column for column in dataset.column_names if _is_string(dataset, column)]
    if not strings:
        raise InputError(f"{name} has no column of text: {_columns(dataset)}")
    lowered = {column.lower(): column for column in reversed(strings)}
    for usual in TEXT_COLUMNS:
        if usual in lowered:
            return lowered[usual]
    sample: Any = dataset.select_columns(strings).select(range(min(1000, len(dataset)))).to_dict()
    return max(strings, key=lambda column: sum(len(text or "") for text in sample[column]))


def _columns(dataset: datasets.Dataset) -> str:
    columns = (f"{column} ({getattr(kind, 'dtype', 'nested')})" for column, kind in dataset.features.items())
    return f"it has {', '.join(columns)}"


def _is_string(dataset: datasets.Dataset, column: str) -> bool:
    return getattr(dataset.features[column], "dtype", None) in ("string", "large_string", "string_view")


def _split(documents: Documents, fraction: float, name: str) -> tuple[Documents, Documents]:
    if len(documents) == 1:
        (content,) = documents.contents()
        border = _border(content, fraction)
        parts = [stretch(content, 0, border)], [stretch(content, border, len(content))]
        train, validation = (Documents([Texts(part)]) for part in parts)
    else:
        border = len(documents) - max(1, int(len(documents) * fraction))
        train, validation = documents[:border], documents[border:]
        if len(validation) < FEW_DOCUMENTS:  # of unlike sizes the last tenth may be far from a tenth of the text
            share = text_bytes(validation) / text_bytes(documents)
            if not fraction / 2 <= share <= 2 * fraction:
                last = f"{len(validation)} of {len(documents)} documents"
                say(f"kept back, to measure on: the last {last}, {share:.1%} of the text")
    if not (len(train) and len(validation)):
        raise InputError(f"too little text in {name} to keep a part back for validation: give more")
    return train, validation


def _border(content: Content, fraction: float) -> int:
    """The byte at which the character `int(length · (1 - fraction))` of a document begins.

    Found block by block: as a Python string a large text would need up to four times its size.
    """
    before = np.cumsum([0, *(int(_character_begins(block).sum()) for block in blocks(content))])
    cut = int(before[-1] * (1 - fraction))
    number = int(np.searchsorted(before, cut, side="right")) - 1
    start = number * BLOCK_BYTES
    begins = np.flatnonzero(_character_begins(content[start : start + BLOCK_BYTES]))
    return start + int(begins[cut - before[number]])


def _character_begins(content: bytes | memoryview) -> npt.NDArray[np.bool_]:
    """Which bytes of a UTF-8 text begin a character: all but 10xxxxxx."""
    return np.frombuffer(content, np.uint8) & 0xC0 != 0x80


def is_hub_name(item: str) -> bool:
    """`owner/name`, unless a file is meant: something lies there, its folder exists or its ending is a file's."""
    path = Path(item).expanduser()
    if path.exists() or path.parent.is_dir() or not _HUB_NAME.fullmatch(item):
        return False
    return path.suffix.lower() not in TEXT_KINDS + ROW_KINDS + PACKINGS


def _load_hub(item: str) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Load `owner/name`, `owner/name:split` or `owner/name:config:split`; the split is `train` unless named."""
    name, *rest = item.split(":")
    config, split = rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"
    try:
        _ask_hub(name)
        with quiet_datasets():
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load {item} from the Hub, and no such file is here: {reason}") from error
    revision = Path(dataset.cache_files[0]["filename"]).parent.name  # the cache of `datasets` goes by commit
    return dataset, {"name": item, "revision": revision}  # type: ignore[return-value]


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
    """A short name for `data`, fit for a folder: the first file's or dataset's, and how many more there are."""
    path = Path(data[0] if data else "data").expanduser()
    first = path.resolve().name if path.is_dir() else path.name.split(":")[0].split(".")[0]
    plain = re.sub(r"[^\w-]+", "-", first).strip("-")[:40] or "data"
    return plain if len(data) < 2 else f"{plain}-and-{len(data) - 1}-more"
