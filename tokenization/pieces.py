"""Cut long texts into pieces: many threads can share a text then, and memory stays flat, whatever its length."""

import codecs
from collections.abc import Iterable, Iterator
from typing import Protocol

PIECE_BYTES = 2**16


class Sliceable(Protocol):
    """Bytes in memory, or bytes read when a slice of them is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes | memoryview: ...


def cut_pieces(content: Sliceable, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Cut one long UTF-8 text into strings of at most `piece_bytes` bytes.

    Each cut lies after the last line end that has no white space on either side, or, in a text without one, before
    the last single space between two words. No piece of our own or of GPT-2's and Qwen2's patterns crosses such a
    place, so the ids are those of the whole text. A tokenizer that marks the beginning of a text (SentencePiece's
    "▁"), or a stretch of `piece_bytes` without a space, may differ by a token at a cut.
    """
    start = 0
    while start < len(content):
        text, used = codecs.utf_8_decode(content[start : start + piece_bytes], "strict", False)
        if start + piece_bytes < len(content):
            text = text[: _last_border(text)]
            used = len(text.encode())
        yield text
        start += used


def _last_border(text: str) -> int:
    for mark, offset in (("\n", 1), (" ", 0)):
        at = len(text) - 1
        while (at := text.rfind(mark, 1, at)) > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + offset
    return len(text)


def pieces_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield all pieces of all texts, one after another."""
    for text in texts:
        yield from cut_pieces(text.encode())
