"""Cut a long stream into rows of ids, and deal rows of every kind out in batches.

Sliding windows, packed documents, hidden tokens; the order of training, and its micro-batches.
"""

import math
from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundup.data.tokens import READ_TOKENS, TokenStream

Batch = dict[str, torch.Tensor]

IGNORED = -100  # a label that no loss counts, torch's own default
FEW_TOKENS = 256  # in a batch: fewer take a model hardly less time
MASKED_SHARE = 0.3  # of the text tokens; Warner et al. 2024, section 2.2 (after Wettig et al. 2023: more than 15 %)


class _Rows(torch.utils.data.Dataset):
    """A data set that makes several rows at once."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> dict[str, torch.Tensor]:
        """Return several rows, each tensor of shape (B, T), int64."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {name: rows[0] for name, rows in self.batch([index % len(self)]).items()}


class SlidingWindow(_Rows):
    """Windows of `context_length` tokens, one every `stride` tokens (default: the context length).

    Row i holds `input_ids` (T,) from position i·stride and `labels` (T,), the same shifted by one: position t predicts
    label t, where models of transformers shift labels themselves. The last window is padded with `pad_id` and labels
    -100. With the default stride every token but the very first is a target exactly once; with a smaller one windows
    overlap and every token is a target at least once.
    """

    def __init__(
        self, tokens: TokenStream | npt.NDArray[Any], context_length: int, stride: int | None = None, pad_id: int = 0
    ) -> None:
        self.stream = tokens if isinstance(tokens, TokenStream) else TokenStream([tokens], {})
        self.context_length, self.pad_id = context_length, pad_id
        self.stride = context_length if stride is None else stride
        if not 1 <= self.stride <= context_length:
            raise ValueError(f"stride must lie between 1 and the context length {context_length}, not {stride}")

    def __len__(self) -> int:
        targets = len(self.stream) - 1
        if targets < 1:
            return 0
        return 1 + max(0, -(-(targets - self.context_length) // self.stride))

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels` of several rows, both (B, T), int64."""
        length = self.context_length + 1
        starts = np.asarray(indices, np.int64) * self.stride
        whole = starts + length <= len(self.stream)
        rows = np.full((len(starts), length), IGNORED, np.int64)  # (B, T + 1)
        rows[whole] = self.stream.gather(starts[whole], length)
        for row in np.flatnonzero(~whole):
            ids = self.stream.read(int(starts[row]), int(starts[row]) + length)
            rows[row, : len(ids)] = ids
        inputs, labels = rows[:, :-1].copy(), rows[:, 1:].copy()
        inputs[labels == IGNORED] = self.pad_id
        return {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


class PackedRows(_Rows):
    """Rows of `context_length` tokens in which every document sees only itself.

    Row i holds `input_ids` and `labels` as `SlidingWindow` does, and `position_ids` (T,), which restart at 0 with
    each document: attention without a mask keeps documents apart by that. `pack` decides which documents share a row.
    Every token of the stream but the very first is a target exactly once. The last row is padded with `pad_id` and
    labels -100.
    """

    def __init__(
        self, tokens: TokenStream, context_length: int, end_of_text: int | None = None, pad_id: int = 0
    ) -> None:
        self.stream, self.context_length, self.pad_id = tokens, context_length, pad_id
        end = tokens.meta["end_of_text"] if end_of_text is None else end_of_text
        self.packing = pack(document_borders(tokens, end), context_length)

    def __len__(self) -> int:
        return len(self.packing.first) - 1

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` of several rows, each (B, T), int64."""
        shape = len(indices), self.context_length
        inputs, labels = np.full(shape, self.pad_id, np.int64), np.full(shape, IGNORED, np.int64)  # (B, T)
        positions = np.zeros(shape, np.int64)
        for row, index in enumerate(indices):
            at = 0
            for number in range(self.packing.first[index], self.packing.first[index + 1]):
                start, length = int(self.packing.starts[number]), int(self.packing.lengths[number])
                ids = self.stream.read(start, start + length + 1)
                inputs[row, at : at + length], labels[row, at : at + length] = ids[:-1], ids[1:]
                positions[row, at : at + length] = np.arange(length)
                at += length
            positions[row, at:] = np.arange(self.context_length - at)
        return {
            "input_ids": torch.from_numpy(inputs),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }


@dataclass(frozen=True)
class Packing:
    """Rows as lists of stretches of a stream: row i has the stretches `first[i]` up to `first[i + 1]`."""

    starts: npt.NDArray[np.int64]  # where each stretch begins in the stream
    lengths: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def document_borders(stream: TokenStream, end_of_text: int) -> npt.NDArray[np.int64]:
    """Return where documents begin in a stream, each with the end-of-text token before it; the last border is its end.

    The last token has nothing to predict and belongs to no document.
    """
    last = len(stream) - 1
    borders = [np.array([0])]
    for start in range(0, last, READ_TOKENS):
        ids = stream.read(start, min(start + READ_TOKENS, last))
        borders.append(np.flatnonzero(ids == end_of_text) + start)
    return np.unique(np.concatenate([*borders, [max(0, last)]]))


def pack(borders: npt.NDArray[np.int64], row_length: int) -> Packing:
    """Pack documents between `borders` into rows of `row_length` tokens, so that no row but the last has a gap.

    Longer documents first give whole rows. Then best fit: a row starts with the longest document left and takes the
    longest that still fits, again and again. Where none fits, the shortest is cut, because that leaves the fewest
    tokens without their context, and its tail waits like a document. So every token is in exactly one row, and the same
    borders always give the same rows. After nanochat's loader, which throws such tails away.
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
    """Stretches that are in no row yet, by length; of two of the same length a whole document comes first."""

    def __init__(self) -> None:
        self._whole: dict[int, array[int]] = {}
        self._tails: dict[int, array[int]] = {}
        self._there = 0  # bit n: one of length n is there

    def __bool__(self) -> bool:
        return bool(self._there)

    def add(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], are_whole: bool) -> None:
        """Add stretches, except those of length 0. Stretches of the same length are taken in their order."""
        order = np.argsort(lengths[::-1], kind="stable")  # backwards, because the last is popped first
        starts, lengths = starts[::-1][order], lengths[::-1][order]
        found, at = np.unique(lengths, return_index=True)
        for length, group in zip(found.tolist(), np.split(starts, at[1:])):
            if length:
                kept = self._whole if are_whole else self._tails
                kept.setdefault(length, array("q")).extend(group.tolist())
                self._there |= 1 << length

    def take(self, room: int) -> tuple[int, int]:
        """Take the longest stretch that fits `room`, else the start of the shortest one; return where and how long."""
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


class BatchOrder:
    """The rows of each step, a pure function of the seed, so that a resumed run goes on as if never stopped.

    Sample k of a run lies in epoch k // rows, at index k % rows of numpy's permutation for (seed, epoch): every row
    once an epoch. A batch may reach over the end of an epoch. `limit` ends the run after that many samples.
    """

    def __init__(self, rows: int, batch_rows: int, seed: int, limit: int | None = None) -> None:
        if rows < 1 or batch_rows < 1:
            raise ValueError(f"rows and batch_rows must be positive, not {rows} and {batch_rows}")
        self.rows, self.batch_rows, self.seed, self.limit = rows, batch_rows, seed, limit
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Return the rows of step `step` (from 0), shape (batch_rows,); fewer at the `limit`, none beyond it."""
        start, stop = step * self.batch_rows, (step + 1) * self.batch_rows
        if self.limit is not None:
            start, stop = min(start, self.limit), min(stop, self.limit)
        samples = np.arange(start, stop)
        epochs = samples // self.rows
        chosen = np.empty(len(samples), np.int64)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = self._permutation(int(epoch))[samples[epochs == epoch] % self.rows]
        return chosen

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._epochs:
            self._epochs = {known: order for known, order in self._epochs.items() if known == epoch - 1}
            self._epochs[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._epochs[epoch]


class OrderByLength:
    """Give the rows of each step of another order, with rows of similar length together: little padding.

    The rows of `steps_together` steps are sorted by length, cut into steps again, and dealt out in a new order by the
    seed: still a new mix each epoch. Within a step rows are sorted.
    """

    def __init__(self, order: BatchOrder, lengths: npt.NDArray[np.int64], steps_together: int = 1):
        self.order, self.lengths, self.steps_together = order, lengths, steps_together
        self.batch_rows = order.batch_rows
        self._group: tuple[int, list[npt.NDArray[np.int64]]] = (-1, [])

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """Return the rows of step `step` (from 0), shape (batch_rows,); none beyond the last."""
        group, within = divmod(step, self.steps_together)
        if self._group[0] != group:
            steps = range(group * self.steps_together, (group + 1) * self.steps_together)
            drawn = [rows for rows in map(self.order.indices, steps) if len(rows)]
            rows = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
            rows = rows[np.argsort(self.lengths[rows], kind="stable")]
            parts = np.array_split(rows, len(drawn)) if drawn else []
            places = np.random.default_rng([self.order.seed, 2, group]).permutation(len(parts))
            self._group = group, [parts[place] for place in places]
        return self._group[1][within] if within < len(self._group[1]) else np.zeros(0, np.int64)


class Dealer:
    """Deal the rows of each step out to all processes, and cut each one's part into micro-batches.

    Args:
        order: the rows of each step; if their lengths differ, sorted by them.
        lengths: the lengths by which rows (N,) are counted.
        micro_batch_tokens: the most tokens in a micro-batch of several rows, padding included.
        make: makes a micro-batch with `labels` of rows (B,), given with each one's number in the run (B,).
        rank, processes: which process this is, of how many.
    """

    def __init__(
        self,
        order: BatchOrder | OrderByLength,
        lengths: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]],
        micro_batch_tokens: int,
        make: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Batch],
        rank: int = 0,
        processes: int = 1,
    ):
        self.order, self.lengths, self.micro_batch_tokens, self.make = order, lengths, micro_batch_tokens, make
        self.rank, self.processes = rank, processes

    def micro_batches(self, step: int) -> list[Batch]:
        """Return this process's micro-batches of a step, as many as every other's: a row that no loss counts fills up.

        Neighbours on all processes are of similar length; the longest of them says where a micro-batch ends.
        """
        rows = self.order.indices(step)
        if not len(rows):
            return []
        missing = -len(rows) % self.processes
        dealt = np.concatenate([rows, np.repeat(rows[-1:], missing)]).reshape(-1, self.processes)
        samples = step * self.order.batch_rows + np.arange(dealt.size).reshape(dealt.shape)
        parts = by_size(np.arange(len(dealt)), self.lengths(dealt[:, -1]), self.micro_batch_tokens)
        batches = [self.make(dealt[part, self.rank], samples[part, self.rank]) for part in parts]
        if missing and self.rank >= self.processes - missing:
            batches[-1]["labels"][-1] = IGNORED
        return batches


def by_size(
    indices: npt.NDArray[Any], lengths: npt.NDArray[Any], batch_tokens: int, padding: float = 1.0
) -> list[npt.NDArray[Any]]:
    """Cut rows, which are sorted by length, into batches of at most `batch_tokens`, padding included.

    At most the share `padding` of a batch is padding, which takes a large model as long as text; batches of up to
    `FEW_TOKENS` are not cut further.
    """
    parts, start, text = [], 0, 0
    for stop in range(1, len(indices) + 1):
        text += lengths[indices[stop - 1]]
        longest = math.inf if stop == len(indices) else lengths[indices[stop]]
        padded = (stop + 1 - start) * longest
        if padded > batch_tokens or (padded > FEW_TOKENS and (1 - padding) * padded > text + longest):
            parts.append(indices[start:stop])
            start, text = stop, 0
    return parts


class Masking:
    """The tokens of a row that are hidden from an encoder, a pure function of the seed and the row's number in the run.

    Every hidden token becomes the mask (Devlin et al. 2019); keeping or replacing some of them (80 : 10 : 10) was found
    to make no difference (Wettig et al. 2023, section 5). Special tokens mark structure and are never hidden.
    """

    def __init__(self, mask_id: int, special_ids: Collection[int], seed: int):
        self.mask_id, self.seed = mask_id, seed
        self._special = torch.tensor(sorted(special_ids), dtype=torch.long)

    def apply(self, input_ids: torch.Tensor, samples: Sequence[int] | npt.NDArray[Any]) -> dict[str, torch.Tensor]:
        """Return `input_ids` with masks and `labels`, both (B, T), for ids (B, T) of which row b is `samples[b]`.

        Labels hold the hidden ids, and -100 elsewhere.
        """
        length = input_ids.size(1)
        draws = [np.random.default_rng([self.seed, int(sample)]).random(length) for sample in samples]
        hidden = torch.from_numpy(np.stack(draws) < MASKED_SHARE) & ~torch.isin(input_ids, self._special)
        return {
            "input_ids": input_ids.masked_fill(hidden, self.mask_id),
            "labels": input_ids.masked_fill(~hidden, IGNORED),
        }
