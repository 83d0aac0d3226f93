"""Labelled texts -> rows of ids with a label each, and rows -> batches in which little is padding."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.data.windows import IGNORED, BatchOrder

GROUPED_STEPS = 16  # steps whose rows are sorted by length together: little padding, and still a new mix each epoch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ExampleRows:
    """Ids of texts with the number of each one's label (`IGNORED` for a label that is not known), and how many texts
    were longer than the context: of those only the beginning is there."""

    ids: list[npt.NDArray[np.int32]]
    labels: npt.NDArray[np.int64]
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, places: Sequence[int] | npt.NDArray[np.int64], pad_id: int) -> Batch:
        """`input_ids` and `attention_mask` (B, T), padded on the right to the longest row, and `labels` (B,)."""
        longest = max(len(self.ids[place]) for place in places)
        ids = torch.full((len(places), longest), pad_id)
        mask = torch.zeros((len(places), longest), dtype=torch.long)
        for row, place in enumerate(places):
            length = len(self.ids[place])
            ids[row, :length] = torch.from_numpy(self.ids[place])
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.from_numpy(self.labels[places])}


def same_text(text: str) -> str:
    """What makes two texts the same row: the text without capitals, all white space a single space."""
    return " ".join(text.split()).casefold()


def encode_examples(
    texts: Sequence[str],
    labels: Sequence[str],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    context_length: int,
) -> ExampleRows:
    """The ids that `tokenizer(text, truncation=True)` gives, cut to the context: the beginning of a text is kept.

    So training sees what the saved model sees in a pipeline. A label that is not among `names` becomes `IGNORED`.
    """
    numbers = {name: number for number, name in enumerate(names)}
    encoded = tokenizer(list(texts), truncation=True, max_length=context_length)["input_ids"] if texts else []
    ids = [np.asarray(row, np.int32) for row in encoded]
    full = [place for place, row in enumerate(ids) if len(row) == context_length]
    lengths = (
        [len(row) for row in tokenizer([texts[place] for place in full], verbose=False)["input_ids"]] if full else []
    )
    cut = sum(length > context_length for length in lengths)
    return ExampleRows(ids, np.array([numbers.get(label, IGNORED) for label in labels], np.int64), cut)


def for_classifying(tokenizer: PreTrainedTokenizerFast, context_length: int) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that puts the end-of-text token before and after each text, and can pad.

    The first is what a language model saw before each text, the last is where it has seen all of it (the start and
    extract tokens of Radford et al. 2018); an empty text has tokens too. A tokenizer that marks texts in a way of its
    own (BERT's) keeps that. Text is only text: special tokens spelt out in it are not recognised. Raises `InputError`
    for a tokenizer without an end-of-text token.
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


class ExampleBatches:
    """The rows of each step, of like length, cut into micro-batches, of which this process gets only its part."""

    def __init__(
        self,
        rows: ExampleRows,
        order: BatchOrder,
        pad_id: int,
        micro_batch_tokens: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.rows, self.order, self.pad_id, self.micro_batch_tokens = rows, order, pad_id, micro_batch_tokens
        self.rank, self.processes = rank, processes
        self._lengths = np.array([len(ids) for ids in rows.ids])
        self._group: tuple[int, list[npt.NDArray[np.int64]]] = (-1, [])

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, as many on every process: a missing row is filled by one that counts nothing."""
        rows = self._rows_of(step)
        if not len(rows):
            return []
        mine = rows[self.rank :: self.processes]
        missing = -(-len(rows) // self.processes) - len(mine)
        at_once = max(1, self.micro_batch_tokens // int(self._lengths[rows].max()))
        places = np.concatenate([mine, rows[:missing]])
        batches = [self.rows.batch(places[at : at + at_once], self.pad_id) for at in range(0, len(places), at_once)]
        if missing:
            batches[-1]["labels"][-missing:] = IGNORED
        return batches

    def _rows_of(self, step: int) -> npt.NDArray[np.int64]:
        """The rows of a step: those of `GROUPED_STEPS` steps by their length, dealt out again in a new order."""
        group, within = divmod(step, GROUPED_STEPS)
        if self._group[0] != group:
            steps = range(group * GROUPED_STEPS, (group + 1) * GROUPED_STEPS)
            drawn = [rows for rows in map(self.order.indices, steps) if len(rows)]
            rows = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            parts = np.array_split(rows, len(drawn)) if drawn else []
            places = np.random.default_rng([self.order.seed, 2, group]).permutation(len(parts))
            self._group = group, [parts[place] for place in places]
        return self._group[1][within] if within < len(self._group[1]) else np.zeros(0, np.int64)
