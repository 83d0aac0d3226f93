"""Rows of instructions or conversations -> ids, and which of them the assistant says: what `instruct` learns from.

    --data ──load_conversations──> messages ──chat template──> segments ──ids──> ConversationRows ──> batches

Everything that would train a model on nothing, or on the wrong thing, is an error or is counted and said.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.data import instruction_tasks
from groundup.data.conversation_forms import WEIGHT, Form, NoText, text_of
from groundup.data.sources import Once, load_tables
from groundup.data.tables import ArrowTable, Table
from groundup.data.text_columns import columns_read, say_columns
from groundup.data.windows import IGNORED
from groundup.tokenization.chat import ChatEncoder, Message

ENCODED_AT_ONCE = 1000  # conversations


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the assistant's, and the name of the family of tasks they belong to, if any."""

    messages: list[Message]
    family: str = ""
    place: str = field(default="", compare=False)  # its file and row, for messages

    @property
    def prompt(self) -> list[Message]:
        """All but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """What the assistant says last."""
        return self.messages[-1]["content"]

    @property
    def key(self) -> str:
        """What makes two rows the same question: the prompt without white space around it and without capitals."""
        return "\0".join(f"{message['role']}:{message['content'].strip().casefold()}" for message in self.prompt)


@dataclass
class RowCounts:
    """What became of the rows: how many there are, and what was done about those that are not as they should be.

    `first` has, of a count, the place and the reason of its first row.
    """

    rows: int = 0
    without_answer: int = 0
    without_question: int = 0
    no_text: int = 0
    answers_not_learnt: int = 0
    after_last_answer: int = 0
    system_not_read: int = 0
    refused: int = 0
    cut: int = 0
    cut_before_answer: int = 0
    with_special_tokens: int = 0
    first: dict[str, str] = field(default_factory=dict)

    def add(self, count: str, first: str) -> None:
        """Count one more, and keep the place and reason of the first."""
        setattr(self, count, getattr(self, count) + 1)
        self.first.setdefault(count, first)

    def numbers(self) -> dict[str, int]:
        """The counts alone."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def __add__(self, later: "RowCounts") -> "RowCounts":
        """These counts and those of what was done to the same rows, or to some of them, afterwards."""
        counts = {name: value + getattr(later, name) for name, value in self.numbers().items()}
        return RowCounts(**counts | {"rows": self.rows}, first=later.first | self.first)

    def warnings(self, context: int | None = None) -> list[str]:
        """A line for each thing that a person should know of rows that may have `context` ids."""
        limit = f"{context or 0:,} tokens (--context-length)"
        said = {
            "without_answer": "have no answer and are left out",
            "no_text": "hold something else than text and are left out",
            "without_question": "have an answer and no question: trained on as they are",
            "answers_not_learnt": "answers in them have weight 0 or no text: used as context, not trained on",
            "after_last_answer": "messages in them follow the last answer that is trained on: left out",
            "system_not_read": "have a system message of their own: the one of the column beside it is not read",
            "refused": "are refused by the chat template and left out",
            "cut_before_answer": f"do not reach their answer within {limit}: left out",
            "cut": f"are longer than {limit}: truncated within their answer",
            "with_special_tokens": "spell special tokens: read as plain text",
        }
        lines = []
        for name, what in said.items():
            if count := getattr(self, name):
                first = f" (the first: {self.first[name]})" if name in self.first else ""
                of = f"{count:,} in" if name in ("answers_not_learnt", "after_last_answer") else f"{count:,} of"
                lines.append(f"{of} {self.rows:,} rows: {what}{first}")
        return lines


def load_conversations(
    data: Sequence[str], input_joint: str, held_out: bool = False
) -> tuple[list[Conversation], RowCounts, list[dict[str, Any]]]:
    """Read `--data` as conversations, in its order, with counts and a row for each file.

    Says which columns are read and which are not; the rows of the files have both, too.

    Args:
        data: files, folders, globs, Hub datasets of rows; or `instruction-tasks`, perhaps with `:family,family`.
        input_joint: what stands between an instruction and its input.
        held_out: take of `instruction-tasks` the rows to test on.

    Raises:
        InputError: for data that cannot be read, columns of another form, and where no row has an answer.
    """
    if not data:
        raise InputError("no --data given: name a file, a folder, a glob, a Hub dataset or instruction-tasks")
    conversations, counts, sources, once = [], RowCounts(), [], Once()
    for item in data:
        if not instruction_tasks.is_tasks(item):
            tables, files = load_tables([item], once)
        elif once.new(item, item):
            tables = [(item, ArrowTable.of(instruction_tasks.load(item, held_out), item))]
            files = [{"name": item, "rows": len(tables[0][1])}]
        else:
            continue
        used = []
        for name, table in tables:
            form = Form.of(table.column_names, name)
            conversations += _read(table, form, input_joint, counts)
            used.append({"name": name} | columns_read(form.read, table) | form.unread)
        say_columns(used)
        sources += [row | _used_in(row["name"], used) for row in files]
    once.say()
    if not conversations:
        why = "".join(f"; {line}" for line in counts.warnings())
        raise InputError(f"no row of {', '.join(data)} has an answer: there is nothing to learn or to test on{why}")
    return conversations, counts, sources


def _used_in(name: str, used: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was read of a file; of an archive, what was of the first table in it."""
    found = next((one for one in used if one["name"] == name or one["name"].startswith(f"{name}/")), {})
    return {key: value for key, value in found.items() if key != "name"}


def _read(table: Table, form: Form, joint: str, counts: RowCounts) -> list[Conversation]:
    """The conversations of a table that end with an answer. Adds to `counts`."""
    found = []
    for number, row in table.numbered():
        counts.rows += 1
        place = table.place(number)
        try:
            messages = form.messages(row, joint)
            family = text_of(row[form.family]) if form.family else None
        except NoText as error:
            counts.add("no_text", f"{place}: {error}")
            continue
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        there = len(messages)
        while messages and not (messages[-1]["role"] == "assistant" and WEIGHT not in messages[-1]):
            messages.pop()
        if not messages:
            counts.without_answer += 1
            continue
        counts.after_last_answer += there - len(messages)
        counts.answers_not_learnt += sum(WEIGHT in message for message in messages)
        if not any(message["content"].strip() for message in messages[:-1]):
            counts.add("without_question", place)
        found.append(Conversation(messages, family or "", place))
    counts.system_not_read += form.systems_not_read
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Ids


class ConversationRows:
    """Rows of ids of different lengths, one after another in memory, with a mark on each id that is trained.

    `ids` (N,), `trained` (N,), and `borders` (rows + 1,): row i lies between borders i and i + 1.
    """

    def __init__(self, ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_], borders: npt.NDArray[np.int64]):
        self.ids, self.trained, self.borders = ids, trained, borders
        self.lengths = np.diff(borders)

    @classmethod
    def from_lists(cls, rows: Sequence[tuple[list[int], list[bool]]]) -> "ConversationRows":
        """Rows of (ids, marks)."""
        borders = np.cumsum([0, *(len(ids) for ids, _ in rows)])
        ids = np.fromiter(itertools.chain.from_iterable(ids for ids, _ in rows), np.int32, borders[-1])
        trained = np.fromiter(itertools.chain.from_iterable(marks for _, marks in rows), np.bool_, borders[-1])
        return cls(ids, trained, borders)

    @classmethod
    def open(cls, folder: Path) -> "ConversationRows":
        """What `save` wrote."""
        return cls(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("ids", "trained", "borders")))

    def save(self, folder: Path) -> None:
        """Write three `.npy` files into a new folder."""
        folder.mkdir(parents=True)
        for name in ("ids", "trained", "borders"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    def __len__(self) -> int:
        return len(self.borders) - 1

    def row(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """The ids of a row and their marks."""
        place = slice(self.borders[index], self.borders[index + 1])
        return self.ids[place], self.trained[place]

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer], pad_id: int) -> dict[str, torch.Tensor]:
        """Rows side by side, filled up on the right: `input_ids` and `shift_labels` (B, T), T that of the longest.

        Position t is to predict label t, the id after it where that one is trained, else -100. No row sees another,
        and what fills a row up stands behind all that counts, where a causal model does not look.
        """
        length = max(2, int(self.lengths[indices].max())) - 1
        inputs = np.full((len(indices), length), pad_id, np.int64)
        labels = np.full((len(indices), length), IGNORED, np.int64)
        for place, index in enumerate(indices):
            ids, trained = self.row(int(index))
            inputs[place, : len(ids) - 1] = ids[:-1]
            labels[place, : len(ids) - 1] = np.where(trained[1:], ids[1:], IGNORED)
        return {"input_ids": torch.from_numpy(inputs), "shift_labels": torch.from_numpy(labels)}

    def pairs(self, indices: Sequence[int] | npt.NDArray[np.integer], pad_id: int) -> dict[str, torch.Tensor]:
        """Rows for an encoder and a decoder: `input_ids` and `attention_mask` (B, S), `labels` (B, T).

        The last stretch of trained ids is what the decoder writes, all before it is what the encoder reads.
        """
        parts = [self.split(int(index)) for index in indices]
        source = np.full((len(parts), max(len(read) for read, _ in parts)), pad_id, np.int64)
        mask = np.zeros_like(source)
        labels = np.full((len(parts), max(len(written) for _, written in parts)), IGNORED, np.int64)
        for place, (read, written) in enumerate(parts):
            source[place, : len(read)] = read
            mask[place, : len(read)] = 1
            labels[place, : len(written)] = written
        names = ("input_ids", "attention_mask", "labels")
        return {name: torch.from_numpy(array) for name, array in zip(names, (source, mask, labels))}

    def split(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The ids of a row before its last answer, and that answer's with its end token."""
        ids, trained = self.row(index)
        stop = int(np.flatnonzero(trained)[-1]) + 1
        before = np.flatnonzero(~trained[:stop])
        start = int(before[-1]) + 1 if len(before) else 0
        return ids[:start], ids[start:stop]


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: PreTrainedTokenizerFast, context: int, counts: RowCounts
) -> tuple[ConversationRows, list[int], frozenset[int]]:
    """Turn conversations into rows of at most `context` ids. Adds to `counts`.

    Returns the rows, the place of each row's conversation (those that the template refuses, and those without a
    trained id within the context, are left out), and the end tokens: the last special token of each answer, which a
    model learns to stop with.

    Raises `InputError` where an answer has no end token in what is trained, or where no id is trained at all.
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
    """The number in `part`, the ids, marks and end token of each conversation that the template takes."""
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
