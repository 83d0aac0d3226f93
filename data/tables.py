"""Tables: rows with named cells from any kind of file or dataset, read a few at a time, each cell as it was written."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from groundup.common.errors import InputError, near
from groundup.data.json_rows import decode_json
from groundup.data.values import KINDS, Cell, Number, Row, cell_of, listed, written

_ROWS_AT_ONCE = 256
_SHORT_FLOATS = {pa.float32(): np.float32, pa.float16(): np.float16}  # 0.1 as written, not 0.10000000149011612


class Table:
    """Rows with named cells. Every reading goes through the file again, so that memory stays flat."""

    name: str
    """For messages and recipes."""
    column_names: list[str]
    """The names of all columns, in the order of their first appearance."""
    content: str | None
    """What tells this content from any other, for caches; None for a table that lies in no file."""

    doubt: str | None = None
    """Why its header may be none, where that matters only if no column is named."""

    def __len__(self) -> int:
        raise NotImplementedError

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows with all columns, None for a gap, each with the line or number by which `place` names it."""
        raise NotImplementedError

    def place(self, number: int) -> str:
        """Where a row stands, for a message."""
        raise NotImplementedError

    def kinds(self, column: str) -> set[type]:
        """Which types of cells a column has: str, Number, bool, list, dict, bytes; none for gaps alone."""
        raise NotImplementedError


def read_batches(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The batches of files that hold a stream of them each."""
    for name in files:
        with pa.OSFile(name) as file, pa.ipc.open_stream(file) as reader:
            yield from reader


def rows_of(table: Table) -> Iterator[Row]:
    """The rows without their numbers."""
    return (row for _, row in table.numbered())


def cells_of(table: Table, column: str) -> list[Cell]:
    """All cells of a column, None where there is none."""
    return [row[column] for row in rows_of(table)]


def texts_of(table: Table, column: str) -> list[str | None]:
    """All cells of a column as text, None for a gap. Raises `InputError` naming the first that is no single value."""
    texts = []
    for number, row in table.numbered():
        try:
            texts.append(written(row[column]))
        except ValueError as error:
            raise InputError(f"{table.place(number)}: column {column!r} holds {error}, no single value") from error
    return texts


def check_column(option: str, column: str | None, table: Table) -> None:
    """Raise `InputError` where a table has not the column that the user named by an option."""
    if column is not None and column not in table.column_names:
        close = near(column, table.column_names)
        raise InputError(f"{table.name} has no column {column!r}{close} for {option}: {described(table)}")


def described(table: Table) -> str:
    """What columns there are and what they hold, for a message."""
    columns = []
    for column in table.column_names:
        kinds = sorted(KINDS.get(kind, kind.__name__) for kind in table.kinds(column))
        columns.append(f"{column} ({' and '.join(kinds) or 'nothing'})")
    return f"it has {listed(columns)}"


class FileTable(Table):
    """The rows that a reader finds in a file, looked through once for its columns, its length and all its faults."""

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
        """The rows with the line of the file on which each begins."""
        names = self.column_names
        try:
            for number, row in self._rows():
                yield number, row if len(row) == len(names) else {**dict.fromkeys(names), **row}
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or error}") from error

    def place(self, number: int) -> str:
        """Where a row stands."""
        return f"{self.name}, line {number}"

    def kinds(self, column: str) -> set[type]:
        """Which types of cells a column has."""
        return self._kinds[column]


class ArrowTable(Table):
    """Rows that Arrow gives, a batch at a time: of Parquet files, saved datasets and datasets of the Hub.

    `batches` makes an iterator over all batches, of the columns that are named or of all.
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
        """The rows of any dataset."""

        def batches(columns: list[str] | None) -> Iterator[Any]:
            chosen: Any = dataset if columns is None else dataset.select_columns(columns)
            return chosen.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)

        return cls(name, dataset.features.arrow_schema, len(dataset), batches, content)

    @classmethod
    def stored(cls, dataset: datasets.Dataset, name: str, content: str) -> "ArrowTable":
        """All rows of the files of a dataset as it was loaded, which are read, not mapped."""
        files = [entry["filename"] for entry in dataset.cache_files]
        return cls(name, dataset.features.arrow_schema, len(dataset), lambda _: read_batches(files), content)

    def __len__(self) -> int:
        return self._length

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows, counted from 1."""
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
        """Where a row stands."""
        return f"{self.name}, row {number}"

    def kinds(self, column: str) -> set[type]:
        """Which types of cells a column has, by its type in the file."""
        return {str} if column in self._classes else _kinds_of(self.types[column])


def _classes_of(schema: pa.Schema, name: str) -> dict[str, list[str]]:
    """The names of the classes whose numbers stand in a column, as `datasets` writes them into a file.

    Only numbers can be such; `datasets` has no word for some other types of Arrow. Raises `InputError` for what it
    cannot read of what it wrote.
    """
    try:
        numbers = pa.schema([field for field in schema if pa.types.is_integer(field.type)], schema.metadata)
        features: Any = datasets.Features.from_arrow_schema(numbers)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read what datasets wrote into {name} about its columns: {reason[:200]}; write the file anew, or "
            "take the datasets that wrote it"
        ) from error
    return {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is one of text."""
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
    if pa.types.is_struct(kind) or pa.types.is_map(kind):
        return {dict}
    if pa.types.is_nested(kind):
        return {list}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return {bytes}
    return {Number}


def _decoded(value: Any, kind: pa.DataType) -> Cell:
    """A value of Arrow as a cell; `datasets` keeps what has no one type as JSON, which is decoded."""
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
