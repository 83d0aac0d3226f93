"""Which stretches of a stream stand together in a row, so that no row has a gap and few documents are cut.

Best fit: a row begins with the longest document left and takes, again and again, the longest one that still fits. Where
none fits, the shortest one is cut, because that leaves the fewest tokens without what stood before them, and its tail
waits like a document. So every token is in exactly one row. After nanochat's loader, which throws such tails away.
"""

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.data.tokens import TokenStream

_READ_TOKENS = 2**22  # looked at at once


@dataclass(frozen=True)
class Packing:
    """Rows as lists of stretches: those of row i are numbers `first[i]` up to `first[i + 1]`."""

    starts: npt.NDArray[np.int64]  # where each stretch begins in the stream
    lengths: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def document_borders(stream: TokenStream, end_of_text: int) -> npt.NDArray[np.int64]:
    """Where documents begin in a stream, each with the end-of-text token before it, and as the last where it ends.

    The token at the end has nothing to predict and belongs to none.
    """
    last = len(stream) - 1
    borders = [np.array([0])]
    for start in range(0, last, _READ_TOKENS):
        ids = stream.read(start, min(start + _READ_TOKENS, last))
        borders.append(np.flatnonzero(ids == end_of_text) + start)
    return np.unique(np.concatenate([*borders, [max(0, last)]]))


def pack(borders: npt.NDArray[np.int64], row_length: int) -> Packing:
    """Rows of `row_length` tokens for documents between `borders`; only the last row may be shorter.

    Whole rows are cut off the beginning of longer documents. The same borders always give the same rows.
    """
    begins, sizes = borders[:-1], np.diff(borders)
    whole_rows = sizes // row_length
    number = np.arange(whole_rows.sum()) - np.repeat(np.cumsum(whole_rows) - whole_rows, whole_rows)  # in its document
    starts = array("q", (np.repeat(begins, whole_rows) + number * row_length).tolist())
    lengths = array("q", [row_length]) * len(starts)
    first = array("q", range(len(starts) + 1))
    waiting = _Waiting()
    for is_whole in (True, False):
        chosen = (sizes < row_length) if is_whole else (sizes >= row_length)
        waiting.add((begins + whole_rows * row_length)[chosen], (sizes % row_length)[chosen], is_whole)
    while waiting:
        room = row_length
        while room and waiting:
            start, length = waiting.take(room)
            starts.append(start)
            lengths.append(length)
            room -= length
        first.append(len(starts))
    return Packing(*(np.array(values, np.int64) for values in (starts, lengths, first)))


class _Waiting:
    """Stretches that are in no row yet, by their length; of two of the same length whole documents come first."""

    def __init__(self) -> None:
        self._whole: dict[int, array[int]] = {}
        self._tails: dict[int, array[int]] = {}
        self._there = 0  # bit n: one of length n is there

    def __bool__(self) -> bool:
        return bool(self._there)

    def add(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], are_whole: bool) -> None:
        """Add stretches; those of length 0 are none. Of the same length the first is taken first."""
        order = np.argsort(lengths[::-1], kind="stable")  # backwards, because the last is popped first
        starts, lengths = starts[::-1][order], lengths[::-1][order]
        found, at = np.unique(lengths, return_index=True)
        for length, group in zip(found.tolist(), np.split(starts, at[1:])):
            if length:
                kept = self._whole if are_whole else self._tails
                kept.setdefault(length, array("q")).extend(group.tolist())
                self._there |= 1 << length

    def take(self, room: int) -> tuple[int, int]:
        """The start and length of the longest stretch that fits into `room`, or of the beginning of the shortest."""
        fitting = self._there & ((2 << room) - 1)
        if fitting:
            length = fitting.bit_length() - 1
            return self._pop(length), length
        length = (self._there & -self._there).bit_length() - 1
        start = self._pop(length)
        self._tails.setdefault(length - room, array("q")).append(start + room)
        self._there |= 1 << (length - room)
        return start, room

    def _pop(self, length: int) -> int:
        whole, tails = self._whole.get(length), self._tails.get(length)
        start = whole.pop() if whole else tails.pop()  # type: ignore[union-attr]
        if not whole and not tails:
            self._there ^= 1 << length
        return start
