"""Tokenise documents into shards of ids: once, in parallel, read back through memory maps.

    [end of text] document 1 [end of text] document 2 ... [end of text]

so that the first token of each document is predicted from the end-of-text token, as the first token of a generated
text is. Shards are plain `.npy` files; `meta.json` beside them says what they hold. Until the last one is written they
lie in a hidden folder, with a line in `progress.jsonl` for each, and an interrupted writer goes on after the last.
"""

import bisect
import contextlib
import functools
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.common.files import atomic_write, replace_folder, sync_file, sync_folder
from groundup.data.documents import Documents, Piece, batches, blocks
from groundup.tokenization.folder import fingerprint, plain_backend
from groundup.tokenization.report import bytes_lost
from groundup.tokenization.training import PIECE_BYTES

if TYPE_CHECKING:
    import datasets

SHARD_TOKENS = 2**25  # 64 MiB of 16-bit ids: the writer holds one shard in memory
BATCH_BYTES = 2**19  # text given to the tokenizer's threads at a time; more is slower (memory is claimed and returned)

READ_TOKENS = 2**22  # tokens read from disk at once

X = TypeVar("X")
Y = TypeVar("Y")


class TokenStream:
    """The ids of many documents as one long sequence over memory-mapped shards; nothing is loaded until it is read."""

    def __init__(self, shards: Sequence[npt.NDArray[Any]], meta: dict[str, Any]) -> None:
        self.shards = list(shards)
        self.meta = meta
        self._borders = [0, *itertools.accumulate(len(shard) for shard in shards)]

    @classmethod
    def open(cls, folder: Path) -> "TokenStream":
        """Open a folder that `write_shards` wrote. Raises `InputError` when it is none or not whole."""
        meta = None
        with contextlib.suppress(OSError, ValueError):
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or "shards" not in meta:
            raise InputError(f"{folder} holds no shards of tokens: make them with `groundup prepare`")
        try:
            shards = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in meta["shards"]]
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is incomplete ({error}): remove it and prepare the data again") from error
        stream = cls(shards, meta)
        if len(stream) != meta["tokens"]:
            raise InputError(f"{folder} holds {len(stream):,} tokens, not {meta['tokens']:,}: prepare the data again")
        return stream

    @classmethod
    def joined(cls, streams: "Sequence[TokenStream]") -> "TokenStream":
        """Join streams of the same tokenizer; where two meet, only one end of text is kept."""
        first, *others = streams
        shards = [*first.shards]
        for each in others:
            shards += [each.shards[0][1:], *each.shards[1:]]
        meta = first.meta | {name: sum(each.meta[name] for each in streams) for name in ("documents", "bytes")}
        digests = "".join(each.meta["sha256"] for each in streams)
        if lost := sum(each.meta.get("lost_bytes", 0) for each in streams):
            meta["lost_bytes"] = lost
        meta |= {"tokens": sum(map(len, shards)), "sha256": hashlib.sha256(digests.encode()).hexdigest()}
        return cls(shards, meta)

    def __len__(self) -> int:
        return self._borders[-1]

    @functools.cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Count how often each id occurs in the stream, shape (highest id + 1,)."""
        counts = np.zeros(0, np.int64)
        for start in range(0, len(self), READ_TOKENS):
            more = np.bincount(self.read(start, start + READ_TOKENS), minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        return counts

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the ids from `start` up to `stop`, cut at the end of the stream like a slice."""
        stop = min(stop, len(self))
        parts = []
        while start < stop:
            shard = bisect.bisect_right(self._borders, start) - 1
            end = min(stop, self._borders[shard + 1])
            parts.append(self.shards[shard][start - self._borders[shard] : end - self._borders[shard]])
            start = end
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def gather(self, starts: npt.ArrayLike, length: int) -> npt.NDArray[np.int64]:
        """Return the `length` ids from each of `starts`, shape (B, length). Raises `IndexError` beyond the ends."""
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


def write_shards(
    documents: "Documents | datasets.Dataset", tokenizer: PreTrainedTokenizerFast, folder: Path
) -> TokenStream:
    """Tokenise documents (of a dataset, its column `text`) into `folder`, or open it if it holds the very same.

    Special tokens spelt out in a document become the ids of their characters. A document longer than `PIECE_BYTES` is
    encoded in pieces (see `cut_pieces`). The folder appears whole or not at all; a call after one that was stopped,
    even by `kill -9`, keeps the whole shards. Raises `InputError` for a tokenizer without an end-of-text token.
    """
    documents = Documents.of(documents)
    end_of_text: Any = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if end_of_text is None:
        raise InputError("the tokenizer has no end-of-text token (eos_token) to put between documents: set one")
    meta = {
        **content_of_texts(documents),
        "dtype": "uint16" if len(tokenizer) <= 2**16 else "uint32",
        "tokenizer": fingerprint(tokenizer),
        "vocab_size": len(tokenizer),
        "end_of_text": end_of_text,
    }
    if lost := bytes_lost(tokenizer, (piece.text for piece in documents.pieces())):
        meta["lost_bytes"] = lost
    with contextlib.suppress(InputError):  # for none there, or one that is not whole
        stream = TokenStream.open(folder)
        if stream.meta.items() >= meta.items():
            return stream
    with _ShardWriter(folder, meta) as writer, ProgressBar("tokenising", meta["bytes"] - writer.bytes) as bar:
        done, started, before = writer.bytes, time.perf_counter(), writer.tokens
        for first, ids, text_bytes in _encode(documents, plain_backend(tokenizer), end_of_text, writer.pieces):
            writer.write(ids, first, done)
            done += text_bytes
            speed = (writer.tokens - before) / (time.perf_counter() - started)
            bar.update(done - writer.bytes, f"{speed / 1e6:.2f} M tokens/s")
        writer.finish()
    return TokenStream.open(folder)


def _encode(
    documents: Documents, backend: Tokenizer, end_of_text: int, first: int
) -> Iterator[tuple[int, list[int], int]]:
    """Yield batches of pieces from piece `first` on: the number of the first piece, the ids, the bytes of text.

    The id `end_of_text` comes before the first document and after each one.
    """

    def encode(batch: list[Piece]) -> tuple[list[Piece], list[Encoding]]:
        return batch, backend.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)

    pieces = itertools.islice(documents.pieces(), first, None)
    ids = [end_of_text] if first == 0 else []
    for batch, encodings in _one_ahead(encode, batches(pieces, lambda piece: piece.bytes, BATCH_BYTES)):
        for encoding, piece in zip(encodings, batch):
            ids.extend(encoding.ids)
            if piece.ends:
                ids.append(end_of_text)
        yield first, ids, sum(piece.bytes for piece in batch)
        first, ids = first + len(batch), []
    if ids:  # no documents at all
        yield first, ids, 0


def _one_ahead(function: Callable[[X], Y], items: Iterable[X]) -> Iterator[Y]:
    """Map, making the next result in a thread while this one is used: the tokenizer releases Python's lock."""
    with ThreadPoolExecutor(1) as worker:
        pending = None
        for item in items:
            following = worker.submit(function, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def content_of_texts(documents: Documents) -> dict[str, Any]:
    """Return number, bytes and sha256 of the documents: they decide whether what was made from them still holds."""
    texts, lengths, total = hashlib.sha256(), hashlib.sha256(), 0
    for content in documents.contents():
        for block in blocks(content):
            texts.update(block)
        lengths.update(len(content).to_bytes(8, "little"))  # else moving a border between documents would go unseen
        total += len(content)
    digest = hashlib.sha256(texts.digest() + lengths.digest()).hexdigest()
    return {"documents": len(documents), "bytes": total, "sha256": digest}


class _ShardWriter:
    """A collector of ids that writes a file whenever it has `SHARD_TOKENS` of them.

    It works in a hidden folder beside `folder` and starts from the whole shards that another writer of the same `meta`
    left there; `pieces` is the piece at which to go on, after `bytes` bytes of text.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self._target, self._folder, self._meta = folder, folder.with_name(f".{folder.name}.partial"), meta
        self._progress = self._folder / "progress.jsonl"
        self._buffer, self._filled = np.empty(SHARD_TOKENS, meta["dtype"]), 0
        self._opening = _line({"piece_bytes": PIECE_BYTES, **meta})
        rows = self._whole_shards()
        self.names = [row["name"] for row in rows]
        self.tokens = sum(row["tokens"] for row in rows)
        last = rows[-1] if rows else {"pieces": 0, "bytes": 0, "written": 0}
        self.pieces, self.bytes, self._written = last["pieces"], last["bytes"], last["written"]
        if rows:
            atomic_write(self._progress, self._opening + b"".join(map(_line, rows)))
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._progress.is_file():  # nothing to go on with
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, ids: list[int], first: int, text_bytes: int) -> None:
        """Add the ids of the batch whose first piece is number `first`, after `text_bytes` of text."""
        fresh = np.fromiter(ids, self._buffer.dtype, len(ids))[self._written :]
        used, self._written = self._written, 0
        self.tokens += len(fresh)
        while len(fresh):
            room = fresh[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(room)] = room
            self._filled += len(room)
            used += len(room)
            fresh = fresh[len(room) :]
            if self._filled == len(self._buffer):
                self._save()
                row = {"name": self.names[-1], "tokens": len(self._buffer)}
                row |= {"pieces": first, "bytes": text_bytes, "written": used}
                # The newest shard must outlive a crash, and with it where to go on after it.
                sync_file(self._folder / row["name"])
                with self._progress.open("ab") as file:
                    file.write(_line(row) if file.tell() else self._opening + _line(row))
                sync_file(self._progress)
                sync_folder(self._folder)

    def finish(self) -> None:
        """Write what is left and put the folder in its place."""
        if self._filled:
            self._save()
        meta = {"tokens": self.tokens, **self._meta, "shards": self.names}
        (self._folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        self._progress.unlink(missing_ok=True)
        replace_folder(self._folder, self._target)

    def _save(self) -> None:
        self.names.append(f"shard-{len(self.names):05d}.npy")
        np.save(self._folder / self.names[-1], self._buffer[: self._filled], allow_pickle=False)
        self._filled = 0

    def _whole_shards(self) -> list[dict[str, Any]]:
        """Return the rows of the shards that are whole, up to the first that is not; none if they are of other text."""
        try:
            lines = self._progress.read_bytes().splitlines(keepends=True)
        except OSError:
            return []
        rows = []
        if lines and lines[0] == self._opening:
            for line in itertools.takewhile(lambda line: line.endswith(b"\n"), lines[1:]):
                row, there = json.loads(line), 0
                with contextlib.suppress(OSError, ValueError):
                    there = len(np.load(self._folder / row["name"], mmap_mode="r", allow_pickle=False))
                if not row["tokens"] == there == len(self._buffer):
                    break
                rows.append(row)
        return rows


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"
