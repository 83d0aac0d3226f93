"""Read documents only when they are used, a piece at a time, so that memory stays flat whatever their size.

A document is the UTF-8 of one text. Texts of files stay in their files, texts of rows in the cache of `datasets`. Both
are read, not mapped: the system keeps pages of a map in the memory of the process until it wants them back. pyarrow is
imported where rows are read, because a process that only reads shards need not load it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from groundup.common.errors import InputError
from groundup.tokenization.training import PIECE_BYTES, cut_pieces

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BLOCK_BYTES = 2**20  # of a document looked at at once

X = TypeVar("X")
_NO_SPACE = re.compile(rb"[^\t\n\f\r ]")  # what RE2, which Arrow uses, calls \S


@dataclass(frozen=True)
class FileText:
    """The text between two positions of a UTF-8 file [bytes]; a slice of it is read when it is asked for."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, place: slice) -> bytes:
        first, last, _ = place.indices(len(self))
        try:
            with self.path.open("rb") as file:
                file.seek(self.start + first)
                content = file.read(last - first)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(content) < last - first:
            raise InputError(f"{self.path} has become shorter while it was read: leave it alone and start again")
        return content


Content = FileText | bytes | memoryview


class Piece(NamedTuple):
    """A stretch of a document that is tokenised at once."""

    text: str
    bytes: int
    ends: bool  # whether the document ends with it


class Part:
    """Some of the documents, all from one kind of place."""

    def __len__(self) -> int:
        raise NotImplementedError

    def contents(self, chosen: range) -> Iterator[Content]:
        """Yield the documents numbered `chosen`."""
        raise NotImplementedError

    def pieces(self, chosen: range) -> Iterator[Piece]:
        """Yield the pieces of these documents."""
        return itertools.chain.from_iterable(map(pieces_of, self.contents(chosen)))


class Texts(Part):
    """Documents in memory or in text files, one a file; those without text are left out."""

    def __init__(self, contents: Iterable[Content]) -> None:
        self._contents = [content for content in contents if any(map(_NO_SPACE.search, blocks(content)))]

    def __len__(self) -> int:
        return len(self._contents)

    def contents(self, chosen: range) -> Iterator[Content]:
        """Return the documents numbered `chosen`."""
        return (self._contents[number] for number in chosen)


class Rows(Part):
    """Documents that are the column `column` of tables.

    Each call of `tables` returns an iterator over all tables or record batches, from the first one on.
    """

    def __init__(self, tables: Callable[[], Iterator[Any]], column: str, with_text_only: bool = False) -> None:
        self._tables, self._column, self._with_text_only = tables, column, with_text_only
        self._length = sum(map(len, self._arrays()))

    @classmethod
    def of(cls, dataset: "datasets.Dataset", column: str) -> "Rows":
        """Return all rows of any dataset."""
        return cls(lambda: iter(dataset.with_format("arrow").iter(batch_size=256)), column)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def contents(self, chosen: range) -> Iterator[Content]:
        """Yield the documents numbered `chosen`."""
        for array in self._slices(chosen):
            for text in array:
                yield memoryview(text.as_buffer())

    def pieces(self, chosen: range) -> Iterator[Piece]:
        """Yield the pieces of these documents; arrays of short ones at once."""
        import pyarrow.compute as pc

        for array in self._slices(chosen):
            lengths = pc.binary_length(array).to_pylist()
            if max(lengths) <= PIECE_BYTES:
                yield from map(Piece, array.to_pylist(), lengths, itertools.repeat(True))
                continue
            for text in array:
                yield from pieces_of(memoryview(text.as_buffer()))

    def _slices(self, chosen: range) -> "Iterator[pa.Array]":
        """Yield the texts numbered `chosen` in arrays, none of them empty; read no further than the last one."""
        begin = 0
        for array in self._arrays():
            end = begin + len(array)
            inside = inside_of(chosen, begin, end)
            if inside:
                yield array.take(list(inside)) if inside.step != 1 else array[inside.start : inside.stop]
            if end >= chosen.stop:
                return
            begin = end

    def _arrays(self) -> "Iterator[pa.Array]":
        import pyarrow as pa
        import pyarrow.compute as pc

        for table in self._tables():
            column = table[self._column]
            for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
                if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
                    array = array.cast(pa.string())  # a view or a dictionary
                if self._with_text_only:
                    array = array.filter(pc.fill_null(pc.match_substring_regex(array, r"\S"), False))
                yield array


class Documents:
    """Documents in a fixed order, from one part after another; taking a slice reads none of them."""

    def __init__(self, parts: "Sequence[Part | Documents]", chosen: range | None = None) -> None:
        self._parts = list(parts)
        self._chosen = range(sum(map(len, parts))) if chosen is None else chosen

    @classmethod
    def of(cls, documents: "Documents | datasets.Dataset") -> "Documents":
        """Return the column `text` of a dataset as documents, and documents as they are."""
        if isinstance(documents, Documents):
            return documents
        return cls([Rows.of(documents, "text")])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, places: slice) -> "Documents":
        return Documents(self._parts, self._chosen[places])

    def __add__(self, others: "Documents") -> "Documents":
        return Documents([self, others])

    def contents(self, chosen: range | None = None) -> Iterator[Content]:
        """Yield the UTF-8 bytes of each document, or of those numbered `chosen`."""
        for part, inside in self._shares(chosen):
            yield from part.contents(inside)

    def pieces(self, chosen: range | None = None) -> Iterator[Piece]:
        """Yield what to tokenise: short documents whole, long ones in the pieces of `cut_pieces`."""
        for part, inside in self._shares(chosen):
            yield from part.pieces(inside)

    def texts(self) -> Iterator[str]:
        """Return each document as a string."""
        return (bytes(content[:]).decode() for content in self.contents())

    def _shares(self, chosen: range | None) -> "Iterator[tuple[Part | Documents, range]]":
        """Yield each part with the numbers of its documents that are meant."""
        numbers = self._chosen if chosen is None else self._chosen[chosen.start : chosen.stop : chosen.step]
        begin = 0
        for part in self._parts:
            inside = inside_of(numbers, begin, begin + len(part))
            if inside:
                yield part, inside
            begin += len(part)


def blocks(content: Content) -> Iterator[bytes | memoryview]:
    """Yield a document's bytes, at most `BLOCK_BYTES` of them at a time."""
    return (content[start : start + BLOCK_BYTES] for start in range(0, len(content), BLOCK_BYTES))


def batches(items: Iterable[X], size_of: Callable[[X], int], enough: int) -> Iterator[list[X]]:
    """Yield the items in lists, each ended as soon as the sizes of its items add up to `enough`."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= enough:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def stretch(content: Content, start: int, stop: int) -> Content:
    """Return the bytes of a document from `start` up to `stop`, as a document that is still to be read."""
    if isinstance(content, FileText):
        return FileText(content.path, content.start + start, content.start + stop)
    return content[start:stop]


def border_of(content: Content, fraction: float) -> int:
    """Return the byte at which the character `int(length · (1 - fraction))` of a document begins.

    Found block by block: as a Python string a large text would need up to four times its size.
    """
    before = np.cumsum([0, *(int(character_begins(block).sum()) for block in blocks(content))])
    cut = int(before[-1] * (1 - fraction))
    number = int(np.searchsorted(before, cut, side="right")) - 1
    start = number * BLOCK_BYTES
    begins = np.flatnonzero(character_begins(content[start : start + BLOCK_BYTES]))
    return start + int(begins[cut - before[number]])


def character_begins(content: bytes | memoryview) -> npt.NDArray[np.bool_]:
    """Return which bytes of a UTF-8 text begin a character: all but 10xxxxxx."""
    return np.frombuffer(content, np.uint8) & 0xC0 != 0x80


def same_text(text: str) -> str:
    """Return what makes two texts the same row: the text without capitals, all white space a single space."""
    return " ".join(text.split()).casefold()


def pieces_of(content: Content) -> Iterator[Piece]:
    """Yield what to tokenise of one document."""
    left = len(content)
    for text in cut_pieces(content, PIECE_BYTES):
        size = len(text.encode())
        left -= size
        yield Piece(text, size, left == 0)


def inside_of(numbers: range, begin: int, end: int) -> range:
    """Return the part of `numbers` from `begin` up to `end`, counted from `begin`."""
    step = numbers.step
    first = max(0, -(-(begin - numbers.start) // step))
    last = max(first, min(len(numbers), -(-(end - numbers.start) // step)))
    inside = numbers[first:last]
    return range(inside.start - begin, inside.stop - begin, step)


Divisible = TypeVar("Divisible", list[Any], Documents)


@dataclass(frozen=True)
class Share:
    """Part `number` of `count` of a corpus that is prepared on many machines: `--part 2/4` is the second of four."""

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Share":
        """Return the share that `I/N` names. Raises `InputError` for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        share = cls(*map(int, found.groups())) if found else None
        if share is None or not 1 <= share.number <= share.count:
            raise InputError(f"--part {text}: give I/N, the I-th of N parts, 1/N to N/N")
        return share

    @property
    def folder(self) -> str:
        """Return the name of this part's folder."""
        return f"part-{self.number:05}-of-{self.count:05}"

    @classmethod
    def of_folder(cls, name: str) -> "Share | None":
        """Return the share whose folder has this name, None if it is no such name."""
        found = re.fullmatch(r"part-(\d+)-of-(\d+)", name)
        return cls(*map(int, found.groups())) if found else None

    def of(self, whole: Divisible) -> Divisible:
        """Return this part of a sequence: a stretch as long as the others or one longer. Raises `InputError`."""
        if len(whole) < self.count:
            raise InputError(f"--part {self.number}/{self.count}: there are only {len(whole)} documents to divide")
        begin, end = (len(whole) * number // self.count for number in (self.number - 1, self.number))
        return whole[begin:end]
