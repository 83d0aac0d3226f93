"""Documents that are rows of tables: those of `datasets`, of its cache, or of files read a batch of rows at a time."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from groundup.data.documents import Content, Piece, inside_of, pieces_of
from groundup.tokenization.pieces import PIECE_BYTES


class Rows:
    """Documents that are the column `column` of tables.

    `tables` makes an iterator over all tables or record batches from the first one on, each time it is called.
    """

    def __init__(self, tables: Callable[[], Iterator[Any]], column: str, with_text_only: bool = False) -> None:
        self._tables, self._column, self._with_text_only = tables, column, with_text_only
        self._length = sum(map(len, self._arrays()))

    @classmethod
    def of(cls, dataset: datasets.Dataset, column: str) -> "Rows":
        """All rows of any dataset."""
        return cls(lambda: iter(dataset.with_format("arrow").iter(batch_size=256)), column)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def contents(self, chosen: range) -> Iterator[Content]:
        """The documents of the numbers `chosen`."""
        for array in self._slices(chosen):
            for text in array:
                yield memoryview(text.as_buffer())

    def pieces(self, chosen: range) -> Iterator[Piece]:
        """The pieces of these documents."""
        for array in self._slices(chosen):
            lengths = pc.binary_length(array).to_pylist()
            if max(lengths) <= PIECE_BYTES:
                yield from map(Piece, array.to_pylist(), lengths, itertools.repeat(True))
                continue
            for text in array:
                yield from pieces_of(memoryview(text.as_buffer()))

    def _slices(self, chosen: range) -> Iterator[pa.Array]:
        """The texts of the numbers `chosen` in arrays, none empty; reads no further than the last of them."""
        begin = 0
        for array in self._arrays():
            end = begin + len(array)
            inside = inside_of(chosen, begin, end)
            if inside:
                yield array.take(pa.array(inside)) if inside.step != 1 else array[inside.start : inside.stop]
            if end >= chosen.stop:
                return
            begin = end

    def _arrays(self) -> Iterator[pa.Array]:
        for table in self._tables():
            column = table[self._column]
            for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
                    array = array.cast(pa.string())  # a view or a dictionary
                if self._with_text_only:
                    array = array.filter(pc.fill_null(pc.match_substring_regex(array, r"\S"), False))
                yield array


def read_batches(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The batches of files that hold a stream of them each."""
    for name in files:
        with pa.OSFile(name) as file, pa.ipc.open_stream(file) as reader:
            yield from reader
