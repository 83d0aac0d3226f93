"""Cutting a long sequence of ids into rows: sliding windows, packed documents, and the order that training sees."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundup.data.packing import document_borders, pack
from groundup.data.tokens import TokenStream

IGNORED = -100  # a label that no loss counts, torch's own default


class _Rows(torch.utils.data.Dataset):
    """A data set whose rows are made several at once."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> dict[str, torch.Tensor]:
        """Several rows at once, each tensor of shape (B, T), int64."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {name: rows[0] for name, rows in self.batch([index % len(self)]).items()}


class SlidingWindow(_Rows):
    """Windows of `context_length` tokens, one every `stride` tokens (default: the context length).

    Row i holds `input_ids` (T,) from position i·stride and `shift_labels` (T,), the same shifted by one: position t
    is to predict label t. The name is transformers' own for labels that are already shifted. The last window is
    filled up with `pad_id` and labels -100. With the default stride every token but the very first is a target
    exactly once; with a smaller one windows overlap and every one is a target at least once.
    """

    def __init__(
        self,
        tokens: TokenStream | npt.NDArray[Any],
        context_length: int,
        stride: int | None = None,
        pad_id: int = 0,
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
        """Several rows at once: `input_ids` and `shift_labels` of shape (B, T), int64."""
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
        return {"input_ids": torch.from_numpy(inputs), "shift_labels": torch.from_numpy(labels)}


class PackedRows(_Rows):
    """Rows of `context_length` tokens in which every document sees only itself.

    Row i holds `input_ids` and `shift_labels` as those of `SlidingWindow`, and `position_ids` (T,), which begin at 0
    again with each document: attention without a mask of its own keeps documents apart by that. Documents stand whole
    where they fit (see `packing.pack`); what was cut off one counts as a document. Every token of the stream but the
    very first is a target exactly once. The last row is filled up with `pad_id` and labels -100.
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
        """Several rows at once: `input_ids`, `shift_labels` and `position_ids` of shape (B, T), int64."""
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
            "shift_labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
        }


class BatchOrder:
    """Which rows each step sees, as a pure function of the seed, so that a resumed run goes on as if never stopped.

    Sample k of a run lies in epoch k // rows, at place k % rows of numpy's permutation for (seed, epoch): every row
    once an epoch. A batch may reach over the end of an epoch. `limit` ends the run after so many samples.
    """

    def __init__(self, rows: int, batch_rows: int, seed: int, limit: int | None = None) -> None:
        if rows < 1 or batch_rows < 1:
            raise ValueError(f"rows and batch_rows must be positive, not {rows} and {batch_rows}")
        self.rows, self.batch_rows, self.seed, self.limit = rows, batch_rows, seed, limit
        self._epochs: dict[int, npt.NDArray[np.int64]] = {}

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of step `step` (from 0), shape (batch_rows,); fewer at the `limit`, none beyond it."""
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
