"""Read rows with named cells from any kind of file or dataset, a few at a time, each cell as it was written.

No file is given to `datasets` to load: its cache goes by path and time, it takes a name with brackets or `::` for a
pattern or an address, and it decides on the types of a column.
"""

import contextlib
import errno
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import logging as hub_logging

from groundup.common.console import say
from groundup.common.errors import InputError, first_line, listed, near
from groundup.common.files import sha256_of
from groundup.data.csv_rows import find_form, read_csv
from groundup.data.files import check_text
from groundup.data.json_rows import KINDS, Cell, Number, Row, cell_of, decode_json, read_json, written

_ROWS_AT_ONCE = 256
_SHORT_FLOATS = {pa.float32(): np.float32, pa.float16(): np.float16}  # 0.1 as written, not 0.10000000149011612


class Table:
    """Rows with named cells. Every reading goes through the file again, so that memory stays flat."""

    name: str
    """Its name in messages and recipes."""
    column_names: list[str]
    """All columns, in the order of their first appearance."""
    content: str | None
    """A key of the content, for caches; None for a table that lies in no file."""

    doubt: str | None = None
    """Why its header may be a row, which matters only if no column is named."""

    def __len__(self) -> int:
        raise NotImplementedError

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows with all columns, None for a gap, each with the number that `place` takes."""
        raise NotImplementedError

    def place(self, number: int) -> str:
        """Return where a row stands, for a message."""
        raise NotImplementedError

    def kinds(self, column: str) -> set[type]:
        """Return the types of a column's cells: str, Number, bool, list, dict, bytes; none for gaps alone."""
        raise NotImplementedError


def read_batches(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of files that hold a stream of them each."""
    for name in files:
        with pa.OSFile(name) as file, pa.ipc.open_stream(file) as reader:
            yield from reader


def rows_of(table: Table) -> Iterator[Row]:
    """Return the rows without their numbers."""
    return (row for _, row in table.numbered())


def texts_of(table: Table, column: str) -> list[str | None]:
    """Return a column's cells as text, None for a gap. Raises `InputError` naming the first that is no single value."""
    texts = []
    for number, row in table.numbered():
        try:
            texts.append(written(row[column]))
        except ValueError as error:
            raise InputError(f"{table.place(number)}: column {column!r} holds {error}, no single value") from error
    return texts


def check_column(option: str, column: str | None, table: Table) -> None:
    """Raise `InputError` if a table lacks the column that the user named by an option."""
    if column is not None and column not in table.column_names:
        close = near(column, table.column_names)
        raise InputError(f"{table.name} has no column {column!r}{close} for {option}: {described(table)}")


def described(table: Table) -> str:
    """Return the columns and the types of their cells, for a message."""
    columns = []
    for column in table.column_names:
        kinds = sorted(KINDS.get(kind, kind.__name__) for kind in table.kinds(column))
        columns.append(f"{column} ({' and '.join(kinds) or 'nothing'})")
    return f"it has {listed(columns)}"


class FileTable(Table):
    """The rows that a reader finds in a file; a first reading finds its columns, its length and all its faults."""

    def __init__(
        self, name: str, rows: Callable[[], Iterator[tuple[int, Row]]], content: str, doubt: str | None = None
    ) -> None:
        self.name, self.content, self.doubt = name, content, doubt
        self._rows = rows
        seen: Counter[tuple[str, type]] = Counter()
        self._length = 0
        self.column_names: list[str] = []
        for _, row in self.numbered():
            self._length += 1
            seen.update([(column, cell.__class__) for column, cell in row.items()])
        self.column_names = list(dict.fromkeys(column for column, _ in seen))
        self._kinds = {
            column: {kind for of, kind in seen if of == column} - {type(None)} for column in self.column_names
        }

    def __len__(self) -> int:
        return self._length

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows with the line of the file on which each begins."""
        names = self.column_names
        try:
            for number, row in self._rows():
                yield number, row if len(row) == len(names) else {**dict.fromkeys(names), **row}
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or error}") from error

    def place(self, number: int) -> str:
        """Return where a row stands."""
        return f"{self.name}, line {number}"

    def kinds(self, column: str) -> set[type]:
        """Return the types of a column's cells."""
        return self._kinds[column]


class ArrowTable(Table):
    """Rows of Parquet files, saved datasets and datasets of the Hub, which Arrow reads a batch at a time.

    `batches` returns an iterator over all batches, of the columns named or of all.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        length: int,
        batches: Callable[[list[str] | None], Iterator[Any]],
        content: str | None = None,
    ) -> None:
        self.name, self.content, self.batches = name, content, batches
        self.column_names = list(schema.names)
        self.types = {field.name: field.type for field in schema}
        self._length = length
        twice = [column for column, count in Counter(self.column_names).items() if count > 1]
        if twice:
            raise InputError(f"{name} has two columns named {twice[0]!r}: give each a name of its own")
        self._classes = _classes_of(schema, name)

    @classmethod
    def of(cls, dataset: datasets.Dataset, name: str, content: str | None = None) -> "ArrowTable":
        """Return the rows of any dataset as a table."""

        def batches(columns: list[str] | None) -> Iterator[Any]:
            chosen: Any = dataset if columns is None else dataset.select_columns(columns)
            return chosen.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)

        return cls(name, dataset.features.arrow_schema, len(dataset), batches, content)

    @classmethod
    def stored(cls, dataset: datasets.Dataset, name: str, content: str) -> "ArrowTable":
        """Return all rows of the files of a loaded dataset as a table; the files are read, not mapped."""
        files = [entry["filename"] for entry in dataset.cache_files]
        return cls(name, dataset.features.arrow_schema, len(dataset), lambda _: read_batches(files), content)

    def __len__(self) -> int:
        return self._length

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows, counted from 1."""
        number = 0
        for batch in self.batches(None):
            columns = [self._cells(column, batch[column]) for column in batch.schema.names]
            for cells in zip(*columns):
                number += 1
                yield number, dict(zip(batch.schema.names, cells))

    def _cells(self, column: str, array: Any) -> list[Cell]:
        values = array.to_pylist()
        if (names := self._classes.get(column)) is not None:  # -1: the test sets of the Hub do not tell them
            return [None if value in (None, -1) else names[value] for value in values]
        if is_text(self.types[column]):
            return values
        return [_decoded(value, self.types[column]) for value in values]

    def place(self, number: int) -> str:
        """Return where a row stands."""
        return f"{self.name}, row {number}"

    def kinds(self, column: str) -> set[type]:
        """Return the types of a column's cells, by its type in the file."""
        return {str} if column in self._classes else _kinds_of(self.types[column])


def _classes_of(schema: pa.Schema, name: str) -> dict[str, list[str]]:
    """Return the class names of each column of class numbers, as `datasets` writes them into a file.

    Only columns of numbers are looked at, because `datasets` knows not all types of Arrow. Raises `InputError` if
    `datasets` cannot read what another version of it wrote.
    """
    try:
        numbers = pa.schema([field for field in schema if pa.types.is_integer(field.type)], schema.metadata)
        features: Any = datasets.Features.from_arrow_schema(numbers)
    except Exception as error:
        raise InputError(
            f"cannot read what datasets wrote into {name} about its columns: {first_line(error)}; write the file anew, "
            "or take the datasets that wrote it"
        ) from error
    return {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type of Arrow is one of text."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _kinds_of(kind: pa.DataType) -> set[type]:
    if isinstance(kind, pa.JsonType):
        return {dict}
    if pa.types.is_null(kind):
        return set()
    if is_text(kind):
        return {str}
    if pa.types.is_boolean(kind):
        return {bool}
    if pa.types.is_nested(kind):
        return {dict} if pa.types.is_struct(kind) or pa.types.is_map(kind) else {list}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return {bytes}
    return {Number}


def _decoded(value: Any, kind: pa.DataType) -> Cell:
    """Return a value of Arrow as a cell; decode the JSON in which `datasets` keeps values of no single type."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return decode_json(value)
    if pa.types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if pa.types.is_nested(kind) and not pa.types.is_map(kind) and not pa.types.is_union(kind):
        return [_decoded(inner, kind.value_type) for inner in value]  # type: ignore[attr-defined] (a kind of list)
    if kind in _SHORT_FLOATS:
        value = float(str(_SHORT_FLOATS[kind](value)))
    return cell_of(value)


def open_table(path: Path, kind: str, name: str, sha256: str) -> Table:
    """Open a JSON, CSV, TSV or Parquet file (`kind`); `name` is for messages, `sha256` that of the content.

    Raises `InputError` for a file that is empty or not what its name says.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty: it has no rows")
    if kind == ".parquet":
        with _parquet(path, name) as file:
            schema, length = file.schema_arrow, file.metadata.num_rows
        return ArrowTable(name, schema, length, partial(_read_parquet, path, name), sha256)
    check_text(path, name)
    if kind in (".csv", ".tsv"):
        form = find_form(path, kind, name)
        return FileTable(name, partial(read_csv, path, form), f"{sha256}{kind}", form.doubt)
    table = FileTable(name, partial(read_json, path, kind, name), f"{sha256}{kind}")
    if not len(table):
        raise InputError(f"{name} is empty: it has no rows")
    return table


def open_saved_dataset(folder: Path, name: str, aloud: bool = False) -> tuple[ArrowTable, list[Path]]:
    """Open what `save_to_disk` of `datasets` wrote: its split `train` where there are several. Return its files too.

    With `aloud` say which splits are not read. Raises `InputError` for a folder that is not whole, and for several
    splits none of which is `train`.
    """
    try:
        with quiet_datasets():
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise InputError(f"cannot read the saved dataset {name}: {first_line(error)}") from error
    if isinstance(saved, datasets.DatasetDict):
        splits = [str(split) for split in saved]
        if "train" not in splits and len(splits) != 1:
            raise InputError(f"{name} has the splits {', '.join(splits)}: give the folder of one of them")
        split = "train" if "train" in splits else splits[0]
        if aloud and (others := [other for other in splits if other != split]):
            say(f"{name}: the split {split} is read, not {', '.join(others)}")
        saved = saved[split]
    files = [Path(entry["filename"]) for entry in saved.cache_files]
    sha256 = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return ArrowTable.stored(saved, name, sha256), files


def _read_parquet(path: Path, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, a few at a time, with all columns or some.

    `datasets` would decode a row group at once, which may be the whole file.
    """
    with _parquet(path, name) as file:
        yield from file.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False)


@contextlib.contextmanager
def _parquet(path: Path, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; `name` is for messages. Raises `InputError` for a damaged file."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {name} as .parquet: {first_line(error)}") from error


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` and the Hub client from drawing bars and printing warnings of their own.

    Raises `InputError` where their cache cannot be written.
    """
    library = datasets.utils.logging
    bars = not datasets.are_progress_bars_disabled()
    levels = library.get_verbosity(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    library.set_verbosity(library.CRITICAL)
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            cache = datasets.config.HF_DATASETS_CACHE
            raise InputError(
                f"cannot write to the cache {cache}: set HF_HOME to a folder that can be written"
            ) from error
        raise
    finally:
        library.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            datasets.enable_progress_bars()
