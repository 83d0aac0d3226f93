"""What `--data` may be, and how it becomes documents: files, folders, globs, Hub datasets and `python-docs`.

    names ──find──> files ──readers──> rows ──text column──> documents ──split──> Corpus

Documents stay documents: a text file is one, a row is one. The order is that of the names given, sorted within each.
"""

import dataclasses
import glob
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from groundup.common.console import say
from groundup.common.errors import InputError, is_disk_full, near
from groundup.common.files import sha256_of
from groundup.data import python_docs
from groundup.data.readers import (
    PACKINGS,
    ROW_KINDS,
    TEXT_KINDS,
    check_text,
    kind_of,
    quiet_datasets,
    read_rows,
    read_texts,
    text_table,
    unpack,
)
from groundup.tokenization.pieces import cut_pieces

PYTHON_DOCS = "python-docs"

TEXT_COLUMNS = ("text", "content", "document", "article", "story", "body", "sentence", "review", "passage")

_BLOCK_BYTES = 1 << 20
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.+-]+){0,2}")


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
    """Documents to learn from and documents kept back, both with one column `text`."""

    train: datasets.Dataset
    validation: datasets.Dataset
    sources: list[dict[str, Any]]  # name, bytes, sha256 of each file; name, revision of a Hub dataset
    name: str  # short, fit for a folder's name


def load_corpus(data: Sequence[str], text_column: str | None = None, validation_fraction: float = 0.1) -> Corpus:
    """Read `data` and keep back its last tenth: of characters for a single document, of documents otherwise.

    `python-docs` has a split of its own. Raises `InputError` where something is missing, unreadable or too little.
    """
    trains, validations, sources = [], [], []
    others = [item for item in data if item != PYTHON_DOCS]
    if len(others) < len(data):
        docs = python_docs.load()
        trains.append(docs["train"].select_columns("text"))
        validations.append(docs["validation"].select_columns("text"))
        sources.append(python_docs.source())
    if others or not data:
        documents, rows = _read(others, text_column)
        train, validation = _split(documents, validation_fraction, ", ".join(others))
        trains.append(train)
        validations.append(validation)
        sources.extend(rows)
    train, validation = datasets.concatenate_datasets(trains), datasets.concatenate_datasets(validations)
    return Corpus(train, validation, sources, short_name(data))


def load_documents(data: Sequence[str], text_column: str | None = None) -> datasets.Dataset:
    """Read documents to measure on, unsplit, as a dataset with one column `text`. Raises `InputError`.

    Of `python-docs` these are the ones kept back: the others are what a model was trained on.
    """
    return _read(data, text_column)[0]


def text_bytes(documents: datasets.Dataset) -> int:
    """The UTF-8 bytes of all documents."""
    tables: Any = documents.with_format("arrow").iter(batch_size=1000)
    return sum(pc.sum(pc.binary_length(table["text"])).as_py() for table in tables)


def sample(documents: datasets.Dataset, limit: int) -> datasets.Dataset:
    """An even choice of documents, of about `limit` bytes in all; a single longer one is cut there."""
    step = max(1, -(-text_bytes(documents) // limit))
    chosen = documents.select(range(0, len(documents), step))
    if len(chosen) > 1 or text_bytes(chosen) <= limit:
        return chosen
    content = np.frombuffer(_content_of(chosen), np.uint8)
    begins = np.flatnonzero(_character_begins(content[max(0, limit - 3) : limit + 1]))
    return _cut(chosen, max(0, limit - 3) + int(begins[-1]))[0]


def sample_texts(documents: datasets.Dataset, limit: int) -> Iterator[str]:
    """The texts of a `sample`, long ones in pieces: what to train a tokenizer on, whatever the size of the data."""
    tables: Any = sample(documents, limit).with_format("arrow").iter(batch_size=256)
    for table in tables:
        for text in table["text"]:
            yield from cut_pieces(memoryview(text.as_buffer()))


def find_files(item: str) -> list[Source]:
    """The readable files that a file name, a folder or a glob stands for, sorted by name.

    In a folder, and for a glob that leaves the ending open, files of other kinds are passed over and counted.
    """
    path = Path(item).expanduser()
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)]
        return _readable(item, found, path)
    if path.is_file():
        return _named(path, path.name)
    if glob.has_magic(item):
        # pathlib's own takes no absolute pattern.
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207
        found = [match for match in matches if match.is_file()]
        if found and path.suffix and not glob.has_magic(path.suffix):
            return [source for file in found for source in _named(file, file.name)]
        return _readable(item, found, None)
    folder = path.parent
    known = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    raise InputError(f"no file or folder {item}{near(path.name, known)}: give --data a file, folder, glob or Hub name")


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)


def _readable(item: str, found: list[Path], folder: Path | None) -> list[Source]:
    known = [file for file in found if kind_of(file)]
    if not known:
        raise InputError(f"{item} holds no file to read: {', '.join(TEXT_KINDS + ROW_KINDS)}, or one of them packed")
    if len(known) < len(found):
        endings = sorted({file.suffix or "no ending" for file in set(found) - set(known)})
        count = len(found) - len(known)
        say(f"{item}: passed over {count} of {len(found)} files by their kind ({', '.join(endings[:8])})")
    names = [file.relative_to(folder).as_posix() if folder else file.name for file in known]
    return [source for file, name in zip(known, names) for source in _named(file, name)]


def _named(path: Path, name: str) -> list[Source]:
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
        inner = _readable(name, members, plain)
        return [dataclasses.replace(source, path=path, name=f"{name}/{source.name}", sha256=sha256) for source in inner]
    return [Source(path, name, kind_of(path) or ".txt", plain, sha256)]


def _read(data: Sequence[str], text_column: str | None) -> tuple[datasets.Dataset, list[dict[str, Any]]]:
    """All documents with text in them, and a row for each file or dataset they came from."""
    if not data:
        raise InputError("no --data given: name a file, a folder, a glob, a Hub dataset or python-docs")
    parts, rows = [], []
    for item in data:
        if item == PYTHON_DOCS:
            parts.append(python_docs.load()["validation"].select_columns("text"))
            rows.append(python_docs.source())
        elif is_hub_name(item):
            dataset, row = _load_hub(item)
            parts.append(_texts_of(dataset, text_column, item))
            rows.append(row)
        else:
            sources = find_files(item)
            parts.extend(_read_files(sources, text_column))
            rows.extend(_file_rows(sources))
    documents = datasets.concatenate_datasets([_with_text(part) for part in parts])
    if len(documents) == 0:
        raise InputError(f"no text in {', '.join(data)}: every document there is empty")
    return documents, rows


def _read_files(sources: list[Source], text_column: str | None) -> list[datasets.Dataset]:
    parts = []
    for is_text, group in itertools.groupby(sources, key=lambda source: source.kind in TEXT_KINDS):
        members = list(group)
        if is_text:
            for source in members:
                check_text(source.plain, source.name)
            content = "".join(f"{source.sha256} {source.name}\n" for source in members)
            parts.append(read_texts([source.plain for source in members], hashlib.sha256(content.encode()).hexdigest()))
        else:
            parts.extend(
                _texts_of(read_rows(item.plain, item.kind, item.name), text_column, item.name) for item in members
            )
    return parts


def _file_rows(sources: list[Source]) -> list[dict[str, Any]]:
    """A row for each file on the user's disk; the members of a .zip are one file."""
    rows = {}
    for source in sources:
        name = source.name if source.path.suffix.lower() != ".zip" else source.path.name
        rows[source.path] = {"name": name, "bytes": source.path.stat().st_size, "sha256": source.sha256}
    return list(rows.values())


def _texts_of(dataset: datasets.Dataset, text_column: str | None, name: str) -> datasets.Dataset:
    """The dataset's text column alone, as strings, under the name `text`."""
    column = text_column or find_text_column(dataset, name)
    if column not in dataset.column_names:
        raise InputError(f"{name} has no column {column!r}{near(column, dataset.column_names)}: {_columns(dataset)}")
    if not _is_string(dataset, column):
        raise InputError(f"column {column!r} of {name} holds no text: {_columns(dataset)}")
    texts = dataset.select_columns(column)
    if column != "text":
        texts = texts.rename_column(column, "text")
    if texts.features["text"] != datasets.Value("string"):
        with quiet_datasets():
            texts = texts.cast(datasets.Features({"text": datasets.Value("string")}))
    return texts


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


def _with_text(documents: datasets.Dataset) -> datasets.Dataset:
    """Leave out documents that are missing, empty or nothing but spaces."""
    tables: Any = documents.with_format("arrow").iter(batch_size=1000)
    marks = [pc.fill_null(pc.match_substring_regex(table["text"], r"\S"), False).to_numpy() for table in tables]
    keep = np.concatenate(marks) if marks else np.zeros(0, bool)
    return documents if keep.all() else documents.select(np.flatnonzero(keep), keep_in_memory=True)


def _split(documents: datasets.Dataset, fraction: float, name: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    if len(documents) == 1:
        parts = _split_text(documents, fraction)
    else:
        kept_back = max(1, int(len(documents) * fraction))
        border = len(documents) - kept_back
        parts = documents.select(range(border)), documents.select(range(border, len(documents)))
    if not all(len(_with_text(part)) for part in parts):
        raise InputError(f"too little text in {name} to keep a part back for validation: give more")
    return parts


def _split_text(documents: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Cut the single document at character `int(length · (1 - fraction))`.

    It works on the UTF-8 bytes, block by block: as a Python string a large text would need up to four times its size.
    """
    content = np.frombuffer(_content_of(documents), np.uint8)
    blocks = range(0, len(content), _BLOCK_BYTES)
    before = np.cumsum([0, *(int(_character_begins(content[at : at + _BLOCK_BYTES]).sum()) for at in blocks)])
    cut = int(before[-1] * (1 - fraction))
    block = int(np.searchsorted(before, cut, side="right")) - 1
    begins = np.flatnonzero(_character_begins(content[blocks[block] : blocks[block] + _BLOCK_BYTES]))
    return _cut(documents, blocks[block] + int(begins[cut - before[block]]))


def _cut(documents: datasets.Dataset, border: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The single document's bytes before and from `border`, as two datasets over the same memory."""
    content = _content_of(documents)
    parts = content.slice(0, border), content.slice(border)
    # Named by place: without a fingerprint `datasets` would pickle the whole text to find one.
    names = (f"{documents._fingerprint}-{place}-{border}" for place in ("before", "from"))
    return tuple(datasets.Dataset(text_table(part, [part]), fingerprint=name) for part, name in zip(parts, names))  # type: ignore


def _content_of(documents: datasets.Dataset) -> pa.Buffer:
    """The UTF-8 bytes of the single document, where the memory map has them."""
    table: Any = documents.with_format("arrow")[0]
    return table["text"][0].as_buffer()


def _character_begins(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which bytes of a UTF-8 text begin a character: all but 10xxxxxx."""
    return content & 0xC0 != 0x80


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
