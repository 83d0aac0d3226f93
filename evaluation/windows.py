"""Say which tokens a model sees when it predicts which: disjoint windows, overlapping ones, each document alone.

Three answers to one question, and each gives another perplexity, so each is named beside its numbers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from groundup.data.tokens import READ_TOKENS, TokenStream
from groundup.data.windows import IGNORED


@dataclass(frozen=True)
class Windows:
    """Windows over a stream: window i feeds the tokens `starts[i]` to `stops[i] - 1` and predicts one token further.

    Of its targets those from position `firsts[i]` up to `stops[i]` count; over all windows each counts once. `context`
    and `stride` are in tokens, `stride` None where windows begin at documents; `label` is for people, None for the
    headline.
    """

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    context: int
    stride: int | None
    label: str | None

    def __len__(self) -> int:
        return len(self.starts)

    def by_length(self) -> npt.NDArray[np.int64]:
        """Return the windows' numbers, longest first, so that a batch has little padding."""
        return np.argsort(self.starts - self.stops, kind="stable")

    def batch(self, stream: TokenStream, chosen: Sequence[int] | npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input ids and labels (B, T), int64; label t follows input t and is -100 where it does not count."""
        starts, stops, firsts = self.starts[chosen], self.stops[chosen], self.firsts[chosen]
        length = int((stops - starts).max())
        inputs = np.zeros((len(starts), length), np.int64)  # no counted position sees the padding
        labels = np.full((len(starts), length), IGNORED, np.int64)
        for row, (start, stop, first) in enumerate(zip(starts, stops, firsts)):
            ids = stream.read(int(start), int(stop) + 1)
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, first - start - 1 : len(ids) - 1] = ids[first - start :]
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def disjoint(tokens: int, context: int) -> Windows:
    """Return windows of `context` targets side by side over a stream of so many tokens: the headline's."""
    starts = np.arange(0, max(0, tokens - 1), max(1, context))
    return Windows(starts, np.minimum(starts + context, tokens - 1), starts + 1, context, context, None)


def strided(tokens: int, context: int, stride: int) -> Windows:
    """Return a window every `stride` tokens: later targets have at least `context` - `stride` tokens before them.

    Only the targets that no earlier window had count. With a context of `max_length` - 1 these are the windows of the
    procedure in transformers' page "Perplexity of fixed-length models". Raises `ValueError` for a stride out of range.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride must lie between 1 and the context length {context}, not {stride}")
    targets = max(0, tokens - 1)
    count = 1 + max(0, -(-(targets - context) // stride)) if targets else 0
    starts = np.arange(count) * stride
    stops = np.minimum(starts + context, targets)
    return Windows(starts, stops, np.append(1, stops[:-1] + 1)[:count], context, stride, f"one window every {stride}")


def each_document_alone(ends: npt.NDArray[np.int64], context: int) -> Windows:
    """Return windows that never see another document: `ends` are the positions of the end-of-text tokens around each.

    A document's first token is predicted from the end of text before it. In a document longer than `context` a last
    window that is short of targets reaches back for context: lm-eval's rolling windows, so the same numbers.
    """
    starts, stops, firsts = [], [], []
    for before, after in itertools.pairwise(ends.tolist()):
        for first in range(before + 1, after, context):
            stop = min(first + context - 1, after - 1)
            starts.append(max(before, stop - context))
            stops.append(stop)
            firsts.append(first)
    bounds = np.array([starts, stops, firsts], np.int64)
    return Windows(bounds[0], bounds[1], bounds[2], context, None, "each document alone")


def document_ends(stream: TokenStream, end_of_text: int) -> npt.NDArray[np.int64]:
    """Return the positions of the end-of-text tokens of a stream: one before the first document, one after each."""
    found = [
        start + np.flatnonzero(stream.read(start, start + READ_TOKENS) == end_of_text)
        for start in range(0, len(stream), READ_TOKENS)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
