"""Encode labelled texts and conversations as rows of ids with their targets: a label, or the tokens of the answers.

texts ──encode_examples──> ExampleRows ──deal──> batches in which little is padding
conversations ──chat template──> segments ──encode_conversations──> ConversationRows ──deal──> batches
"""

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.data.conversations import Conversation, RowCounts
from groundup.data.windows import IGNORED, Batch, BatchOrder, Dealer, OrderByLength
from groundup.tokenization.chat import ChatEncoder

ENCODED_AT_ONCE = 1000  # conversations
GROUPED_STEPS = 16  # steps whose rows are sorted by length together: little padding, and still a new mix each epoch


@dataclass(frozen=True)
class ExampleRows:
    """Ids of texts with the number of each one's label."""

    ids: list[npt.NDArray[np.int32]]
    labels: npt.NDArray[np.int64]  # `IGNORED` where a label is not known
    cut: int = 0  # how many texts were longer than the context, so that only their beginning is there

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Return how many ids each row has."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    def take(self, places: Sequence[int] | npt.NDArray[np.int64]) -> "ExampleRows":
        """Return the rows at these places."""
        return ExampleRows([self.ids[place] for place in places], self.labels[places], self.cut)

    def batch(self, places: Sequence[int] | npt.NDArray[np.int64], pad_id: int) -> Batch:
        """Return `input_ids` and `attention_mask` (B, T), padded on the right to the longest row, and `labels` (B,)."""
        ids, mask = _padded([self.ids[place] for place in places], pad_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.from_numpy(self.labels[places])}

    def deal(
        self, order: BatchOrder, pad_id: int, micro_batch_tokens: int, rank: int = 0, processes: int = 1
    ) -> Dealer:
        """Deal the rows out in batches; a step's micro-batches have as many rows each, but for the last."""
        return Dealer(
            OrderByLength(order, self.lengths, GROUPED_STEPS),
            lambda rows: np.full(len(rows), self.lengths[rows].max()),
            micro_batch_tokens,
            lambda rows, _: self.batch(rows, pad_id),
            rank,
            processes,
        )


def _padded(rows: Sequence[npt.NDArray[Any]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows padded on the right to the longest, at least 1, and a mask of what is no padding; both (B, T)."""
    shape = len(rows), max(1, *map(len, rows))
    padded, mask = torch.full(shape, padding), torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.from_numpy(row)
        mask[number, : len(row)] = 1
    return padded, mask


def encode_examples(
    texts: Sequence[str],
    labels: Sequence[str],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context_length: int,
) -> ExampleRows:
    """Encode each text as `tokenizer(text, truncation=True)` does, cut to the context: its beginning is kept.

    So training sees what the saved model sees in a pipeline. A label that is not among `names` becomes `IGNORED`.
    """
    numbers = {name: number for number, name in enumerate(names)}
    encoded = tokenizer(list(texts), truncation=True, max_length=context_length)["input_ids"] if texts else []
    ids = [np.asarray(row, np.int32) for row in encoded]
    full = [place for place, row in enumerate(ids) if len(row) == context_length]
    whole = tokenizer([texts[place] for place in full], verbose=False)["input_ids"] if full else []
    cut = sum(len(row) > context_length for row in whole)
    return ExampleRows(ids, np.array([numbers.get(label, IGNORED) for label in labels], np.int64), cut)


def for_classifying(tokenizer: PreTrainedTokenizerFast, context_length: int) -> PreTrainedTokenizerFast:
    """Return a copy of the tokenizer that puts the end-of-text token before and after each text, and can pad.

    The first is what a language model saw before each text, the last is where it has seen all of it (the start and
    extract tokens of Radford et al. 2018); so an empty text has tokens too. A tokenizer that marks texts in its own way
    (BERT's) keeps that. Special tokens spelt out in a text stay text. Raises `InputError` for a tokenizer without an
    end-of-text token.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if not tokenizer("")["input_ids"]:
        mark: Any = tokenizer.eos_token or tokenizer.bos_token
        if mark is None:
            raise InputError("the tokenizer has no end-of-text token (eos_token) to put around a text: set one")
        number = tokenizer.convert_tokens_to_ids(mark)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{mark} $A {mark}", pair=f"{mark} $A {mark} $B {mark}", special_tokens=[(mark, number)]
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = context_length
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True  # the second one is saved
    return tokenizer


class ConversationRows:
    """Rows of ids of different lengths, one after another in memory, with a mark on each id that is trained.

    `ids` (N,), `trained` (N,), and `borders` (rows + 1,): row i lies between borders i and i + 1.
    """

    def __init__(self, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_], borders: npt.NDArray[np.int64]):
        self.ids, self.trained, self.borders = ids, trained, borders
        self.lengths = np.diff(borders)

    @classmethod
    def from_lists(cls, rows: Sequence[tuple[list[int], list[bool]]]) -> "ConversationRows":
        """Make rows of pairs (ids, marks)."""
        borders = np.cumsum([0, *(len(ids) for ids, _ in rows)])
        ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in rows), np.int32, borders[-1])
        trained = np.fromiter(itertools.chain.from_iterable(marks for _, marks in rows), np.bool_, borders[-1])
        return cls(ids, trained, borders)

    @classmethod
    def open(cls, folder: Path) -> "ConversationRows":
        """Read what `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("ids", "trained", "borders")))

    def save(self, folder: Path) -> None:
        """Write three `.npy` files into a new folder."""
        folder.mkdir(parents=True)
        for name in ("ids", "trained", "borders"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    def __len__(self) -> int:
        return len(self.borders) - 1

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the ids of a row and their marks."""
        place = slice(self.borders[index], self.borders[index + 1])
        return self.ids[place], self.trained[place]

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer], pad_id: int) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels` (B, T) of several rows, padded on the right to the longest.

        Position t predicts label t: the next id where that is trained, else -100. Padding stands behind all that
        counts, where a causal model does not look.
        """
        rows = [self.row(int(index)) for index in indices]
        inputs, _ = _padded([ids[:-1] for ids, _ in rows], pad_id)
        labels, _ = _padded([np.where(trained[1:], ids[1:], IGNORED) for ids, trained in rows], IGNORED)
        return {"input_ids": inputs, "labels": labels}

    def pairs(self, indices: Sequence[int] | npt.NDArray[np.integer], pad_id: int) -> dict[str, torch.Tensor]:
        """Return rows for an encoder and a decoder: `input_ids` and `attention_mask` (B, S), `labels` (B, T).

        The decoder writes the last stretch of trained ids, the encoder reads all before it.
        """
        read, written = zip(*(self.split(int(index)) for index in indices))
        ids, mask = _padded(read, pad_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": _padded(written, IGNORED)[0]}

    def deal(
        self,
        order: BatchOrder,
        pad_id: int,
        micro_batch_tokens: int,
        rank: int = 0,
        processes: int = 1,
        *,
        as_pairs: bool = False,
    ) -> Dealer:
        """Deal the rows out in batches, `as_pairs` for an encoder and a decoder."""
        make = self.pairs if as_pairs else self.batch
        return Dealer(
            OrderByLength(order, self.lengths),
            lambda rows: self.lengths[rows],
            micro_batch_tokens,
            lambda rows, _: make(rows, pad_id),
            rank,
            processes,
        )

    def split(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the ids of a row before its last answer, and those of that answer with its end token."""
        ids, trained = self.row(index)
        stop = int(np.flatnonzero(trained)[-1]) + 1
        before = np.flatnonzero(~trained[:stop])
        start = int(before[-1]) + 1 if len(before) else 0
        return ids[:start], ids[start:stop]


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, context: int, counts: RowCounts
) -> tuple[ConversationRows, list[int], frozenset[int]]:
    """Turn conversations into rows of at most `context` ids. Add to `counts`.

    Conversations that the template refuses are left out, and those without a trained id within the context. Returns the
    rows, the index of each row's conversation, and the end tokens: the last special token of each answer, with which a
    model learns to stop.

    Raises `InputError` if what is trained of an answer has no end token, or if no id is trained at all.
    """
    try:
        encoder = ChatEncoder(tokenizer)
    except ValueError as error:
        raise InputError(f"these rows cannot be trained on: {error}") from error
    rows, places, ends = [], [], set()
    with ProgressBar("encoding", total=max(1, len(conversations))) as bar:
        for start in range(0, len(conversations), ENCODED_AT_ONCE):
            part = conversations[start : start + ENCODED_AT_ONCE]
            for offset, ids, trained, end in _encoded(encoder, part, counts):
                ends.add(end)
                if any(trained[:context]):
                    counts.cut += len(ids) > context
                    rows.append((ids[:context], trained[:context]))
                    places.append(start + offset)
                else:
                    counts.cut_before_answer += 1
            bar.update(start + len(part))
    counts.with_special_tokens += encoder.forged
    if not rows:
        why = "; ".join(counts.warnings(context)) or "there are no rows"
        raise InputError(f"no token would be trained: {why}")
    return ConversationRows.from_lists(rows), places, frozenset(ends)


def _encoded(
    encoder: ChatEncoder, part: Sequence[Conversation], counts: RowCounts
) -> Iterator[tuple[int, list[int], list[bool], int]]:
    """Yield the index in `part`, the ids, marks and end token of each conversation that the template takes."""
    segments = {}
    for offset, conversation in enumerate(part):
        try:
            segments[offset] = encoder.segments(conversation.messages)
        except ValueError as error:
            counts.add("refused", f"{conversation.place or f'row {offset + 1}'}, {error}")
    special = frozenset(encoder.special.values())
    encoded = iter(encoder.encode([segment.text for row in segments.values() for segment in row]))
    for offset, row in segments.items():
        ids: list[int] = []
        trained: list[bool] = []
        end = None
        for segment in row:
            piece = next(encoded)
            ids += piece
            trained += [segment.spoken] * len(piece)
            if segment.spoken:
                end = next((token for token in reversed(piece) if token in special), None)
                if end is None:
                    raise InputError(
                        f"{part[offset].place or f'row {offset + 1}'}: the chat template trains no end token, so a "
                        "model would never learn to stop: put it inside the generation marks, or take another --layout"
                    )
        assert end is not None  # every conversation ends with an answer that is learnt
        yield offset, ids, trained, end
