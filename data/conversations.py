"""Rows of instructions or conversations -> ids, and which of them the assistant says: what `instruct` learns from.

    --data ──load_conversations──> messages ──chat template──> segments ──ids──> ConversationRows ──> batches

Everything that would train a model on nothing, or on the wrong thing, is an error or is counted and said.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.data import instruction_tasks
from groundup.data.sources import load_tables
from groundup.data.tables import ArrowTable, Table
from groundup.data.windows import IGNORED
from groundup.tokenization.chat import ChatEncoder, Message

ENCODED_AT_ONCE = 1000  # conversations
_FORMS = "messages; prompt and completion; or instruction, output and perhaps input"


@dataclass(frozen=True)
class Conversation:
    """Messages of which the last is the assistant's, and the name of the family of tasks they belong to, if any."""

    messages: list[Message]
    family: str = ""

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
    """What became of the rows: how many there are, and what was done about those that are not as they should be."""

    rows: int = 0
    without_answer: int = 0
    cut: int = 0
    cut_before_answer: int = 0
    messages_with_special_tokens: int = 0

    def warnings(self, context: int) -> list[str]:
        """A line for each thing that a person should know of rows that may have `context` ids."""
        said = {
            "without_answer": "have no answer and are left out",
            "cut_before_answer": f"do not reach their answer within {context:,} tokens (--context-length): left out",
            "cut": f"are longer than {context:,} tokens (--context-length) and were cut within their answer",
            "messages_with_special_tokens": "messages spell special tokens; they were taken as plain text",
        }
        counts = asdict(self)
        return [f"{counts[name]:,} of {self.rows:,} rows: {what}" for name, what in said.items() if counts[name]]


def load_conversations(
    data: Sequence[str], input_joint: str, held_out: bool = False
) -> tuple[list[Conversation], RowCounts, list[dict[str, Any]]]:
    """Read `--data` as conversations, in its order, with counts and a row for each file.

    Args:
        data: files, folders, globs, Hub datasets of rows; or `instruction-tasks`, perhaps with `:family,family`.
        input_joint: what stands between an instruction and its input.
        held_out: take of `instruction-tasks` the rows to test on.

    Raises:
        InputError: for data that cannot be read, columns of another form, and where no row has an answer.
    """
    if not data:
        raise InputError("no --data given: name a file, a folder, a glob, a Hub dataset or instruction-tasks")
    tables, sources = [], []
    for item in data:
        if instruction_tasks.is_tasks(item):
            tables.append((item, ArrowTable.of(instruction_tasks.load(item, held_out), item)))
            sources.append({"name": item, "rows": len(tables[-1][1])})
        else:
            found, rows = load_tables([item])
            tables += found
            sources += rows
    conversations, counts = [], RowCounts()
    for name, table in tables:
        for number, messages, family in _messages_of(table, name, input_joint):
            counts.rows += 1
            conversation = _ending_with_an_answer(messages, family, f"{name}, row {number}")
            if conversation is None:
                counts.without_answer += 1
            else:
                conversations.append(conversation)
    if not conversations:
        raise InputError(f"no row of {', '.join(data)} has an answer: there is nothing to train on")
    return conversations, counts, sources


def _messages_of(table: Table, name: str, joint: str) -> Iterator[tuple[int, list[Message], str]]:
    """The rows' messages, numbered from 1. Raises `InputError` for columns of no known form."""
    columns = set(table.column_names)
    for number, row in table.numbered():
        family = str(row.get("family") or "")
        if "messages" in columns:
            yield number, row["messages"] or [], family
        elif {"prompt", "completion"} <= columns:
            yield number, _turn("user", row["prompt"]) + _turn("assistant", row["completion"]), family
        elif {"instruction", "output"} <= columns:
            given = row.get("input") or ""
            asked = f"{row['instruction'] or ''}{joint if given else ''}{given}"
            yield number, _turn("user", asked) + _turn("assistant", row["output"]), family
        else:
            raise InputError(f"{name} has the columns {', '.join(table.column_names)}: rows need {_FORMS}")


def _turn(role: str, content: Any) -> list[Message]:
    """A text as one message of `role`; a list of messages (TRL's conversational form) as it is."""
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def _ending_with_an_answer(messages: Any, family: str, place: str) -> Conversation | None:
    """The messages up to the last answer, None where there is none. Raises `InputError` for what is no message."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError(f"{place}: messages must be a list of role and content")
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content") or "", str):
            raise InputError(f"{place}: a message needs a role and a content, both text")
    plain = [{"role": message["role"], "content": message.get("content") or ""} for message in messages]
    while plain and not (plain[-1]["role"] == "assistant" and plain[-1]["content"].strip()):
        plain.pop()
    return Conversation(plain, family) if plain else None


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

    Returns the rows, the place of each row's conversation (those without a trained id within the context are left
    out), and the end tokens: the last special token of each answer, which a model learns to stop with.

    Raises `InputError` where an answer has no end token in what is trained, where training text and generation text
    differ, or where no id is trained at all.
    """
    encoder = ChatEncoder(tokenizer)
    special = frozenset(encoder.special.values())
    rows, places, ends = [], [], set()
    with ProgressBar("encoding", total=max(1, len(conversations))) as bar:
        for start in range(0, len(conversations), ENCODED_AT_ONCE):
            part = conversations[start : start + ENCODED_AT_ONCE]
            for offset, (ids, trained, end) in enumerate(_encoded(encoder, part, special, start)):
                ends.add(end)
                counts.cut += len(ids) > context
                if any(trained[:context]):
                    rows.append((ids[:context], trained[:context]))
                    places.append(start + offset)
                else:
                    counts.cut -= 1
                    counts.cut_before_answer += 1
            bar.update(start + len(part))
    counts.messages_with_special_tokens += encoder.forged
    if not rows:
        raise InputError(f"no token would be trained: no row reaches its answer within {context} tokens")
    return ConversationRows.from_lists(rows), places, frozenset(ends)


def _encoded(
    encoder: ChatEncoder, part: Sequence[Conversation], special: frozenset[int], start: int
) -> Iterator[tuple[list[int], list[bool], int]]:
    """The ids, marks and end token of each conversation; `start` is the place of the first, for messages."""
    segments = []
    for offset, conversation in enumerate(part):
        try:
            segments.append(encoder.segments(conversation.messages))
        except ValueError as error:
            raise InputError(f"row {start + offset + 1} cannot be trained on: {error}") from error
    encoded = iter(encoder.encode([segment.text for row in segments for segment in row]))
    for offset, row in enumerate(segments):
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
                        f"row {start + offset + 1}: the chat template trains no end token, so a model would never "
                        "learn to stop: put it inside the generation marks, or take another --layout"
                    )
        assert end is not None  # every conversation ends with an answer
        yield ids, trained, end
