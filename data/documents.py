"""Documents that are read only when they are used, a piece at a time, so that memory stays flat whatever their size.

A document is the UTF-8 of one text. Those of text files stay in their files, those of rows in the cache of `datasets`.
Both are read, not mapped: pages of a map count as memory of the process until the system wants them back.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from groundup.common.errors import InputError
from groundup.tokenization.pieces import cut_pieces

if TYPE_CHECKING:
    import datasets

BLOCK_BYTES = 2**20  # of a document looked at at once

_NO_SPACE = re.compile(rb"[^\t\n\f\r ]")  # what RE2, which Arrow uses, calls \S


@dataclass(frozen=True)
class FileText:
    """The text between two places of a UTF-8 file [bytes]; a slice of it is read when it is asked for."""

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


class Part(Protocol):
    """Some of the documents, all from one kind of place."""

    def __len__(self) -> int: ...

    def contents(self, chosen: range) -> Iterator[Content]:
        """The documents of the numbers `chosen`."""
        ...

    def pieces(self, chosen: range) -> Iterator[Piece]:
        """The pieces of these documents."""
        ...


class Texts:
    """Documents that are in memory or in text files, a file each; those without text are left out."""

    def __init__(self, contents: Iterable[Content]) -> None:
        self._contents = [content for content in contents if any(map(_NO_SPACE.search, blocks(content)))]

    def __len__(self) -> int:
        return len(self._contents)

    def contents(self, chosen: range) -> Iterator[Content]:
        """The documents of the numbers `chosen`."""
        return (self._contents[number] for number in chosen)

    def pieces(self, chosen: range) -> Iterator[Piece]:
        """The pieces of these documents."""
        return itertools.chain.from_iterable(map(pieces_of, self.contents(chosen)))


class Documents:
    """Documents in a fixed order, from one part after another; a slice of them is made without reading any."""

    def __init__(self, parts: Sequence[Part], chosen: range | None = None) -> None:
        self._parts = list(parts)
        self._chosen = range(sum(map(len, parts))) if chosen is None else chosen

    @classmethod
    def of(cls, documents: "Documents | datasets.Dataset") -> "Documents":
        """The column `text` of a dataset as documents; documents as they are."""
        if isinstance(documents, Documents):
            return documents
        from groundup.data.stored_texts import Rows  # pyarrow, which a process that only reads shards need not load

        rows: Any = Rows.of(documents, "text")
        return cls([rows])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, places: slice) -> "Documents":
        return Documents(self._parts, self._chosen[places])

    def __add__(self, others: "Documents") -> "Documents":
        return Documents([self, others])

    def contents(self, chosen: range | None = None) -> Iterator[Content]:
        """The UTF-8 of each document, or of those of the numbers `chosen`."""
        for part, inside in self._shares(chosen):
            yield from part.contents(inside)

    def pieces(self, chosen: range | None = None) -> Iterator[Piece]:
        """What to tokenise: short documents whole, long ones in the pieces of `cut_pieces`."""
        for part, inside in self._shares(chosen):
            yield from part.pieces(inside)

    def texts(self) -> Iterator[str]:
        """Each document as a string."""
        return (bytes(content[:]).decode() for content in self.contents())

    def _shares(self, chosen: range | None) -> Iterator[tuple[Part, range]]:
        """Each part with the numbers of its documents that are meant."""
        numbers = self._chosen if chosen is None else self._chosen[chosen.start : chosen.stop : chosen.step]
        begin = 0
        for part in self._parts:
            inside = inside_of(numbers, begin, begin + len(part))
            if inside:
                yield part, inside
            begin += len(part)


def blocks(content: Content, size: int = BLOCK_BYTES) -> Iterator[bytes | memoryview]:
    """A document's bytes, at most `size` of them at a time."""
    return (content[start : start + size] for start in range(0, len(content), size))


def stretch(content: Content, start: int, stop: int) -> Content:
    """The bytes of a document from `start` up to `stop`, as a document that is still to be read."""
    if isinstance(content, FileText):
        return FileText(content.path, content.start + start, content.start + stop)
    return content[start:stop]


def pieces_of(content: Content) -> Iterator[Piece]:
    """What to tokenise of one document."""
    left = len(content)
    for text in cut_pieces(content):
        size = len(text.encode())
        left -= size
        yield Piece(text, size, left == 0)


def inside_of(numbers: range, begin: int, end: int) -> range:
    """Those of `numbers` from `begin` up to `end`, counted from `begin`."""
    step = numbers.step
    first = max(0, -(-(begin - numbers.start) // step))
    last = max(first, min(len(numbers), -(-(end - numbers.start) // step)))
    inside = numbers[first:last]
    return range(inside.start - begin, inside.stop - begin, step)
