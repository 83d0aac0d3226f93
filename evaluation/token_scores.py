"""What a model made of every single token of a text, kept on disk: the source of every measure of language.

Two files beside each other, the nats and whether the token was the likeliest. Windows that are in them are not done
again, so that an evaluation which was stopped goes on where it was, and the processes of one machine share the work.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from groundup.data.tokens import TokenStream
from groundup.evaluation.scoring import LanguageScore, bytes_by_id, comparable_bytes, score_windows
from groundup.evaluation.windows import Windows
from groundup.tokenization.token_bytes import TokenBytes

MOST_UNITS = 10_000  # units of a bootstrap; more are joined with their neighbours
FEWEST_DOCUMENTS = 20  # for an interval by document; a text of fewer is cut into blocks
BLOCKS = 100
FEWEST_BYTES = 64  # of a block: about sixteen tokens


class TokenScores:
    """The score of each token of a stream: `nats` (N,) float32, NaN where not scored yet, and `correct` (N,) bool."""

    def __init__(self, folder: Path, stream: TokenStream, special_ids: Collection[int]) -> None:
        """Open the scores in `folder`, or begin them; other scores there, of another stream's length, are dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self.stream = stream
        self.special_ids = sorted(special_ids)
        self.nats = _open(folder / "nats.npy", np.float32, len(stream), np.nan)
        self.correct = _open(folder / "correct.npy", np.bool_, len(stream), False)

    def score(
        self,
        model: PreTrainedModel,
        windows: Windows,
        *,
        batch_rows: int = 16,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        """Score the windows that are not done. `share` (k, n) takes only every n-th of them, from the k-th."""
        left = self._left(windows, windows.by_length()[share[0] :: share[1]])
        scored, nats, tokens = 0, 0.0, 0
        for batch in score_windows(
            model, self.stream, windows, left, special_ids=self.special_ids, batch_rows=batch_rows
        ):
            self.correct[batch.positions] = batch.correct
            self.nats[batch.positions] = batch.nats
            scored, nats, tokens = scored + len(batch.windows), nats + float(batch.nats.sum()), tokens + len(batch.nats)
            if progress:
                progress(scored / len(left), f"{nats / max(tokens, 1):.3f} nats/token")

    def _left(self, windows: Windows, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those windows of `numbers` of which a text target has no score."""
        missing = np.concatenate([[0], np.cumsum(np.isnan(self.nats) & self.is_text)])
        return numbers[missing[windows.stops[numbers] + 1] > missing[windows.firsts[numbers]]]

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """Which tokens of the stream count, (N,): all but special ones and the first, which nothing predicts."""
        ids = self.stream.read(0, len(self.stream))
        mask = ~np.isin(ids, self.special_ids)
        mask[:1] = False
        return mask

    def total(self, windows: Windows, token_bytes: TokenBytes | None) -> LanguageScore:
        """The sums over the whole text."""
        mask = self.is_text
        bytes_, note = comparable_bytes(self.stream, self.special_ids, token_bytes)
        nats = float(self.nats[mask].sum(dtype=np.float64))
        return LanguageScore(nats, int(mask.sum()), int(self.correct[mask].sum()), bytes_, windows.context, note)

    def by_place(self, windows: Windows) -> list[tuple[int, int, float, int]]:
        """The loss by the number of tokens a prediction could look at: (from, to, nats per token, tokens).

        The steps double: 1, 2, 3 to 4, 5 to 8, ... A model that uses its context gets better with every step.
        """
        place = np.zeros(len(self.stream), np.int64)  # how many tokens were seen before the target
        for start, stop, first in zip(windows.starts, windows.stops, windows.firsts):
            place[first : stop + 1] = np.arange(first - start, stop - start + 1)
        mask = self.is_text
        steps = np.ceil(np.log2(np.maximum(place[mask], 1))).astype(np.int64)
        nats, tokens = np.bincount(steps, self.nats[mask]), np.bincount(steps)
        nats, tokens = nats.tolist(), tokens.tolist()
        return [
            (2 ** (step - 1) + 1 if step else 1, min(2**step, windows.context), nats[step] / tokens[step], tokens[step])
            for step in range(len(tokens))
            if tokens[step]
        ]

    def by_unit(
        self, ends: npt.NDArray[np.int64], document_bytes: Sequence[int], token_bytes: TokenBytes
    ) -> "UnitSums":
        """Sums over parts of the text that a bootstrap can draw: documents, or blocks where there are few of them.

        Documents have the bytes that they have, and blocks equal shares of the text's: models with whatever tokenizers
        have the same units. A token belongs to the block that it begins in.
        """
        mask, total = self.is_text, sum(document_bytes)
        if len(document_bytes) >= FEWEST_DOCUMENTS and len(ends) == len(document_bytes) + 1:
            together = -(-len(document_bytes) // MOST_UNITS)
            kind, sizes = "documents", np.add.reduceat(document_bytes, np.arange(0, len(document_bytes), together))
            unit = (np.searchsorted(ends, np.flatnonzero(mask)) - 1) // together
        else:
            count = max(1, min(BLOCKS, total // FEWEST_BYTES))
            kind, sizes = "blocks of the text", np.diff(np.arange(count + 1) * total // count)
            ids = self.stream.read(0, len(self.stream))[mask]
            lengths = bytes_by_id(self.stream, self.special_ids, token_bytes)[ids]
            begins = np.cumsum(lengths) - lengths
            unit = np.minimum(begins * count // max(1, total), count - 1).astype(np.int64)
        nats, tokens, correct = (
            np.bincount(unit, weights, minlength=len(sizes)) for weights in (self.nats[mask], None, self.correct[mask])
        )
        lost = comparable_bytes(self.stream, self.special_ids, token_bytes)[0] is None
        return UnitSums(kind, nats, tokens, correct, None if lost else sizes)


class UnitSums:
    """What a model did on each unit of a text: arrays of one length, of nats, tokens, right guesses and bytes."""

    def __init__(
        self,
        kind: str,
        nats: npt.ArrayLike,
        tokens: npt.ArrayLike,
        correct: npt.ArrayLike,
        bytes: npt.ArrayLike | None,
    ) -> None:
        self.kind = kind
        self.nats, self.tokens, self.correct = np.asarray(nats), np.asarray(tokens), np.asarray(correct)
        self.bytes = None if bytes is None else np.asarray(bytes)

    def as_dict(self) -> dict[str, object]:
        """The same in types that JSON has; `UnitSums(**...)` takes it back."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


def _open(path: Path, dtype: type, length: int, fill: float) -> npt.NDArray:
    """A memory map of so many values: the file's, if it fits, or a new one full of `fill`."""
    try:
        known = np.load(path, mmap_mode="r+", allow_pickle=False)
        if known.shape == (length,) and known.dtype == dtype:
            return known
    except (OSError, ValueError):
        pass
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.save(file, np.full(length, fill, dtype), allow_pickle=False)
    fresh.replace(path)
    return np.load(path, mmap_mode="r+", allow_pickle=False)
