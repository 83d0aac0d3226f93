"""Documents to shards of ids: tokenised once, in parallel, read back through memory maps.

    [end of text] document 1 [end of text] document 2 ... [end of text]

so that the first token of each document is predicted from the end-of-text token, as the first token of a generated
text is. Shards are plain `.npy` files; `meta.json` beside them says what they hold.
"""

import bisect
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.common.files import atomic_folder
from groundup.tokenization.folder import fingerprint, plain_backend
from groundup.tokenization.pieces import PIECE_BYTES, cut_pieces

SHARD_TOKENS = 2**25  # 64 MiB of 16-bit ids: the writer holds one shard in memory
BATCH_BYTES = 2**19  # text given to the tokenizer's threads at a time; more is slower (memory is claimed and returned)

X = TypeVar("X")
Y = TypeVar("Y")
_Piece = tuple[str, int, bool]  # a text, its bytes, whether its document ends with it


class TokenStream:
    """The ids of many documents as one long sequence over memory-mapped shards; nothing is loaded until it is read."""

    def __init__(self, shards: Sequence[npt.NDArray[Any]], meta: dict[str, Any]) -> None:
        self.shards = list(shards)
        self.meta = meta
        self._borders = [0, *itertools.accumulate(len(shard) for shard in shards)]

    @classmethod
    def open(cls, folder: Path) -> "TokenStream":
        """Open a folder that `write_shards` wrote. Raises `InputError` when it is none or not whole."""
        meta = _read_meta(folder)
        if meta is None:
            raise InputError(f"{folder} holds no shards of tokens: make them with `groundup prepare`")
        try:
            shards = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in meta["shards"]]
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is not whole ({error}): remove it and prepare the data again") from error
        stream = cls(shards, meta)
        if len(stream) != meta["tokens"]:
            raise InputError(f"{folder} holds {len(stream):,} tokens, not {meta['tokens']:,}: prepare the data again")
        return stream

    def __len__(self) -> int:
        return self._borders[-1]

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids from `start` up to `stop`, cut at the end of the stream like a slice."""
        stop = min(stop, len(self))
        parts = []
        while start < stop:
            shard = bisect.bisect_right(self._borders, start) - 1
            end = min(stop, self._borders[shard + 1])
            parts.append(self.shards[shard][start - self._borders[shard] : end - self._borders[shard]])
            start = end
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def gather(self, starts: npt.ArrayLike, length: int) -> npt.NDArray[np.int64]:
        """The `length` ids from each of `starts`, shape (B, length). Raises `IndexError` beyond the ends."""
        starts = np.asarray(starts, np.int64)
        if len(starts) and (starts.min() < 0 or starts.max() + length > len(self)):
            raise IndexError(f"a window of {length} tokens lies outside the stream of {len(self):,}")
        rows = np.empty((len(starts), length), np.int64)
        first = np.searchsorted(self._borders, starts, side="right") - 1
        within = starts + length <= np.asarray(self._borders)[first + 1]
        for shard in np.unique(first[within]):
            chosen = np.flatnonzero(within & (first == shard))
            rows[chosen] = self.shards[shard][(starts[chosen] - self._borders[shard])[:, None] + np.arange(length)]
        for row in np.flatnonzero(~within):
            rows[row] = self.read(int(starts[row]), int(starts[row]) + length)
        return rows


def write_shards(documents: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, folder: Path) -> TokenStream:
    """Tokenise the column `text` of `documents` into `folder`, or open what is there if nothing has changed.

    A document's text is only text: special tokens spelt out in it become the ids of their characters. A document
    longer than `PIECE_BYTES` is encoded in pieces (see `cut_pieces`). The folder appears whole or not at all. Raises
    `InputError` for a tokenizer without an end-of-text token.
    """
    end_of_text: Any = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if end_of_text is None:
        raise InputError("the tokenizer has no end-of-text token (eos_token) to put between documents: set one")
    meta = {
        **_content(documents),
        "dtype": "uint16" if len(tokenizer) <= 2**16 else "uint32",
        "tokenizer": fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "end_of_text": end_of_text,
    }
    if known := _unchanged(folder, meta):
        return known
    with atomic_folder(folder) as temporary, ProgressBar("tokenising", total=meta["bytes"]) as bar:
        writer, done, started = _ShardWriter(temporary, meta["dtype"]), 0, time.perf_counter()
        for ids, text_bytes in _encode(documents, plain_backend(tokenizer), end_of_text):
            writer.write(ids)
            done += text_bytes
            bar.update(done, f"{writer.tokens / (time.perf_counter() - started) / 1e6:.2f} M tokens/s")
        writer.close()
        meta = {"tokens": writer.tokens, **meta, "shards": writer.names}
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return TokenStream.open(folder)


def _unchanged(folder: Path, meta: dict[str, Any]) -> TokenStream | None:
    """The shards in `folder` if they are whole and hold these documents in the ids of this tokenizer."""
    try:
        stream = TokenStream.open(folder)
    except InputError:
        return None
    return stream if stream.meta.items() >= meta.items() else None


def _encode(documents: datasets.Dataset, backend: Tokenizer, end_of_text: int) -> Iterator[tuple[list[int], int]]:
    """The ids of one batch of pieces after another with `end_of_text` around documents, and the bytes of text."""

    def encode(batch: list[_Piece]) -> tuple[list[_Piece], list[Encoding]]:
        return batch, backend.encode_batch_fast([text for text, _, _ in batch], add_special_tokens=False)

    yield [end_of_text], 0
    for batch, encodings in _one_ahead(encode, _batches(documents)):
        ids: list[int] = []
        for encoding, (_, _, ends) in zip(encodings, batch):
            ids.extend(encoding.ids)
            if ends:
                ids.append(end_of_text)
        yield ids, sum(size for _, size, _ in batch)


def _one_ahead(function: Callable[[X], Y], items: Iterable[X]) -> Iterator[Y]:
    """`map` that makes the next result in a thread while this one is used: the tokenizer lets go of Python's lock."""
    with ThreadPoolExecutor(1) as worker:
        pending = None
        for item in items:
            following = worker.submit(function, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _batches(documents: datasets.Dataset) -> Iterator[list[_Piece]]:
    """Lists of pieces of about `BATCH_BYTES` bytes."""
    batch, size = [], 0
    for piece in _pieces(documents):
        batch.append(piece)
        size += piece[1]
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(documents: datasets.Dataset) -> Iterator[_Piece]:
    tables: Any = documents.with_format("arrow").iter(batch_size=256)
    for table in tables:
        lengths = pc.binary_length(table["text"]).to_pylist()
        if max(lengths) <= PIECE_BYTES:
            yield from zip(table["text"].to_pylist(), lengths, itertools.repeat(True))
            continue
        for text in table["text"]:
            left = len(content := memoryview(text.as_buffer()))
            for piece in cut_pieces(content):
                left -= (size := len(piece.encode()))
                yield piece, size, left == 0


def _contents(documents: datasets.Dataset) -> Iterator[memoryview]:
    """The UTF-8 bytes of each document, straight from the memory map."""
    tables: Any = documents.with_format("arrow").iter(batch_size=256)
    for table in tables:
        for text in table["text"]:
            yield memoryview(text.as_buffer())


def _content(documents: datasets.Dataset) -> dict[str, Any]:
    """Number, bytes and sha256 of the documents' texts: what decides whether shards can be used again."""
    texts, lengths, total = hashlib.sha256(), hashlib.sha256(), 0
    for text in _contents(documents):
        texts.update(text)
        lengths.update(len(text).to_bytes(8, "little"))  # else moving a border between documents would go unseen
        total += len(text)
    digest = hashlib.sha256(texts.digest() + lengths.digest()).hexdigest()
    return {"documents": len(documents), "bytes": total, "sha256": digest}


def _read_meta(folder: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return meta if isinstance(meta, dict) and "shards" in meta else None


class _ShardWriter:
    """Collects ids and writes a file whenever `SHARD_TOKENS` of them are there."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.names, self.tokens = folder, [], 0
        self._buffer, self._filled = np.empty(SHARD_TOKENS, dtype), 0

    def write(self, ids: list[int]) -> None:
        fresh = np.fromiter(ids, self._buffer.dtype, len(ids))
        self.tokens += len(fresh)
        while len(fresh):
            room = fresh[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            fresh = fresh[len(room) :]
            if self._filled == len(self._buffer):
                self.close()

    def close(self) -> None:
        """Write what is collected, if anything is."""
        if self._filled:
            self.names.append(f"shard-{len(self.names):05d}.npy")
            np.save(self.folder / self.names[-1], self._buffer[: self._filled], allow_pickle=False)
            self._filled = 0
