"""Read instructions and conversations, in all forms in which people share them, as messages of role and content.

The names of the columns decide which are read, and those that are not are printed. Everything that would train a model
on nothing, or on the wrong thing, is an error or is counted and said.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.common.errors import InputError, listed
from groundup.data import instruction_tasks
from groundup.data.json_rows import GAPS, Cell, Row, decode_json, kind_of_cell, written
from groundup.data.sources import Once, load_tables
from groundup.data.tables import ArrowTable, Table
from groundup.data.text_columns import CONTENT_KEYS, ROLE_KEYS, columns_read, say_columns
from groundup.tokenization.chat import Message

CONVERSATION = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
ASKED = ("instruction", "prompt", "question", "query")
GIVEN = ("input", "context")
ANSWERED = ("output", "completion", "response", "answer", "chosen")
WANTED = "label"  # of true and false alone: whether an answer is wanted, as in TRL's unpaired preferences
SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)
FORMS = (
    "messages (or conversations); prompt and completion; question and answer; "
    "or instruction, output and perhaps input, system, history"
)

WEIGHT = "weight"
_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    "developer": "system",
}


class NoText(ValueError):  # noqa: N818 (what it says is no fault of a program)
    """A cell that cannot be read as text; the message says what it holds."""


def text_of(cell: Cell) -> str | None:
    """Return the text of a cell as it is written, None for a gap.

    A list of one text, or of parts `{"type": "text", "text": ...}` as in chat APIs, is one text. Raises `NoText` for
    anything else.
    """
    if isinstance(cell, list):
        if len(cell) > 1 and all(isinstance(part, str) for part in cell):
            raise NoText(f"a list of {len(cell)} texts")
        texts = []
        for part in cell:
            if not isinstance(part, str | dict):
                raise NoText(f"a list with {kind_of_cell(part)} in it")
            kind, text = ("text", part) if isinstance(part, str) else (part.get("type") or "text", part.get("text"))
            if not (isinstance(text, str) and str(kind).endswith("text")):
                raise NoText(f"a part of type {kind}")
            texts.append(str(text))
        return "".join(texts)
    try:
        return written(cell)
    except ValueError as error:
        raise NoText(str(error)) from error


@dataclass
class Form:
    """The column of a table that holds each thing, None where there is none, and the keys of messages not read."""

    conversation: str | None = None
    asked: str | None = None
    given: str | None = None
    answered: str | None = None
    system: str | None = None
    history: str | None = None
    family: str | None = None
    wanted: str | None = None
    pair: "Form | None" = None  # of the rows without a conversation, if other columns have a form
    pair_is_used: bool = False
    unread_keys: set[str] = field(default_factory=set)
    systems_not_read: int = 0  # of rows whose messages have another system message already

    @classmethod
    def of(cls, columns: Sequence[str], name: str) -> "Form":
        """Return the form of a table with these columns. Raises `InputError` for columns of no known form."""
        lowered = {column.strip().lower(): column for column in reversed(columns)}

        def first(names: Sequence[str]) -> str | None:
            return next((lowered[usual] for usual in names if usual in lowered), None)

        system, family = first(SYSTEM), first(("family",))
        if conversation := first(CONVERSATION):
            pair = None
            with contextlib.suppress(InputError):
                pair = cls.of([column for column in columns if column != conversation], name)
            return cls(conversation=conversation, system=system, family=family, pair=pair)
        asked, given, answered, history = first(ASKED), first(GIVEN), first(ANSWERED), first(HISTORY)
        if asked and asked.strip().lower() == "instruction":  # over a question of each row
            given = given or first(("question", "query"))
        if answered and not asked:  # pairs of input and output; or a preference whose texts hold the question too
            asked, given = (given, None) if given else (None, None)
            if not asked and answered.strip().lower() == "chosen":
                return cls(conversation=answered, system=system, family=family)
        if not (asked and answered):
            raise InputError(f"{name} has the columns {', '.join(columns)}: rows need {FORMS}")
        return cls(None, asked, given, answered, system, history, family, first((WANTED,)))

    def for_table(self, table: Table) -> "Form":
        """Return the form for a table: a label that is not of true and false alone says nothing of answers."""
        if self.wanted is not None and table.kinds(self.wanted) != {bool}:
            self.wanted = None
        return self

    @property
    def read(self) -> dict[str, str]:
        """Return the column of each thing that is read."""
        parts = {"system": self.system, "history": self.history, "messages": self.conversation, "question": self.asked}
        parts |= {"input": self.given, "answer": self.answered, "family": self.family, "wanted": self.wanted}
        own = {what: column for what, column in parts.items() if column is not None}
        return (self.pair.read if self.pair is not None and self.pair_is_used else {}) | own

    @property
    def unread(self) -> dict[str, list[str]]:
        """Return the keys that occurred in messages and were not read."""
        return {"message_keys_not_read": sorted(self.unread_keys)} if self.unread_keys else {}

    def messages(self, row: Row, joint: str) -> list[Message]:
        """Return the messages of a row; `joint` separates an instruction from its input.

        Raises `NoText` if one of them holds something else, and `InputError` (without the row) for what is no message.
        """
        if self.pair is not None and row[self.conversation or ""] is None:
            self.pair_is_used = True
            return self.pair.messages(row, joint)
        system = text_of(row[self.system]) if self.system else None
        if self.conversation:
            turns = _decoded(row[self.conversation], self.conversation) or []
            messages = [self._message(message) for message in turns]
        else:
            history = self._past(row[self.history]) if self.history else []
            asked = row[self.asked or ""]
            if not _is_conversation(asked):
                given = text_of(row[self.given]) if self.given else None
                asked = joint.join(text for text in (text_of(asked), given) if text)
            messages = [*history, *self._turn("user", asked)]
            answer = self._turn("assistant", row[self.answered or ""])
            if len(answer) > 1 and answer[: len(messages)] == messages:
                messages = []  # the answer of a preference may be the whole conversation
            messages += answer
        if system and system.strip():
            first = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
            if first is None:
                messages.insert(0, {"role": "system", "content": system})
            elif not first.strip():
                messages[0] = {"role": "system", "content": system}
            else:
                self.systems_not_read += first.strip() != system.strip()
        return messages

    def _turn(self, role: str, cell: Any) -> list[Message]:
        """Return a text as one message of `role`, and a list of messages (TRL's conversational form) as it is."""
        if _is_conversation(cell):
            return [self._message(message) for message in cell]
        return [_weighed(role, text_of(cell), None)]

    def _past(self, cell: Any) -> list[Message]:
        """Return the messages of earlier turns, given as pairs of question and answer."""
        turns = []
        for pair in _decoded(cell, "history", "pairs of question and answer") or []:
            if isinstance(pair, dict):
                turns.append(self._message(pair))
            elif isinstance(pair, list | tuple) and len(pair) == 2:
                turns += [_weighed(role, text_of(text), None) for role, text in zip(("user", "assistant"), pair)]
            else:
                raise InputError("history must be a list of pairs of question and answer")
        return turns

    def _message(self, message: Any) -> Message:
        """Return a message in our form: role and content, and a weight of 0 where the assistant is not to learn it."""
        if not isinstance(message, dict):
            raise InputError("messages must be a list of role and content")
        role = next((message[key] for key in ROLE_KEYS if message.get(key) is not None), None)
        keys = [key for key in CONTENT_KEYS if key in message]
        if not isinstance(role, str) or (not keys and not message.get("tool_calls")):
            has = ", ".join(map(str, message))
            raise InputError(f"a message needs a role and a content (or from and value), this one has {has}")
        read = {*ROLE_KEYS, *keys[:1], WEIGHT}
        self.unread_keys |= {key for key, value in message.items() if key not in read and value not in (None, [], {})}
        plain = role.strip().lower()
        content = next((message[key] for key in keys if message[key] is not None), None)
        return _weighed(_ROLES.get(plain, plain), text_of(content), message.get(WEIGHT))


def _is_conversation(cell: Cell) -> bool:
    """Return whether a cell is a list of messages, not one of parts of a text."""
    if not isinstance(cell, list) or not cell:
        return False
    return all(isinstance(item, dict) and any(item.get(key) is not None for key in ROLE_KEYS) for item in cell)


def _decoded(cell: Any, column: str, of: str = "role and content") -> list[Any] | None:
    """Return a cell's list, which may be written as JSON, as in CSV it must be; None for a gap."""
    if isinstance(cell, str) and not cell.strip():
        return None
    if isinstance(cell, str):
        try:
            cell = decode_json(cell)
        except ValueError:
            cell = ""
    if cell is not None and not isinstance(cell, list):
        raise InputError(f"{column} must be a list of {of}, in CSV one written as JSON")
    return cell


def _weighed(role: str, content: str | None, weight: Any) -> Message:
    """Return a message; an answer of weight 0 or without text gets the weight 0, so that it is read and not learnt.

    Raises `InputError` for a weight that is neither 0 nor 1.
    """
    try:
        learnt = {0.0: False, 1.0: True}[1.0 if weight is None else float(weight)]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"a message has the weight {weight}: give 1, or 0 for a message that is not trained on"
        ) from None
    silent = not learnt or not (content or "").strip()
    message: Message = {"role": role, "content": content or ""}
    return message | {WEIGHT: 0} if role == "assistant" and silent else message


@dataclass(frozen=True)
class Conversation:
    """Messages that end with the assistant's answer, and the family of tasks to which they belong, if any."""

    messages: list[Message]
    family: str = ""
    place: str = field(default="", compare=False)  # its file and row, for messages

    @property
    def prompt(self) -> list[Message]:
        """Return all messages but the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """Return what the assistant says last."""
        return self.messages[-1]["content"]

    @property
    def key(self) -> str:
        """Return what makes two rows the same question: the prompt without capitals and without space around it."""
        return "\0".join(f"{message['role']}:{message['content'].strip().casefold()}" for message in self.prompt)


@dataclass
class RowCounts:
    """What became of the rows: how many there are, and what was done about those that are not as they should be.

    `first` holds, for a count, where its first row stands and why it was counted.
    """

    rows: int = 0
    without_answer: int = 0
    not_wanted: int = 0
    answers_of_gaps: int = 0
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
        """Add one to a count, and keep where and why for the first."""
        setattr(self, count, getattr(self, count) + 1)
        self.first.setdefault(count, first)

    def numbers(self) -> dict[str, int]:
        """Return the counts alone."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def __add__(self, later: "RowCounts") -> "RowCounts":
        """Add the counts of what was done later to the same rows, or to some of them."""
        counts = {name: value + getattr(later, name) for name, value in self.numbers().items()}
        return RowCounts(**counts | {"rows": self.rows}, first=later.first | self.first)

    def warnings(self, context: int | None = None) -> list[str]:
        """Return a line for each thing that a person should know about rows that may have `context` ids."""
        limit = f"{context or 0:,} tokens (--context-length)"
        said = {
            "without_answer": "have no answer and are left out",
            "not_wanted": "have the label false, that is an answer that is not wanted: left out",
            "no_text": "hold something else than text and are left out",
            "answers_of_gaps": "have an answer such as nan or None, as programs write a gap: trained on as it is",
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
    """Read `--data` as conversations, in its order; return them with counts and a row for each file.

    Say which columns are read and which are not, and put both into the rows of the files.

    Args:
        data: files, folders, globs, Hub datasets of rows; or `instruction-tasks`, perhaps with `:family,family`.
        input_joint: what separates an instruction from its input.
        held_out: take of `instruction-tasks` the rows to test on.

    Raises:
        InputError: for data that cannot be read, for columns of no known form, and if no row has an answer.
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
            form = Form.of(table.column_names, name).for_table(table)
            conversations += _read(table, form, input_joint, counts)
            used.append({"name": name} | columns_read(form.read, table) | form.unread)
        say_columns(used)
        for row in files:  # of an archive what was read of the first table in it
            found = (one for one in used if one["name"] == row["name"] or one["name"].startswith(f"{row['name']}/"))
            sources.append(row | next(found, {}) | {"name": row["name"]})
    once.say()
    if not conversations:
        why = "".join(f"; {line}" for line in counts.warnings())
        raise InputError(f"no row of {', '.join(data)} has an answer: there is nothing to learn or to test on{why}")
    return conversations, counts, sources


def _read(table: Table, form: Form, joint: str, counts: RowCounts) -> list[Conversation]:
    """Return the conversations of a table, each up to its last answer. Add to `counts`."""
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
        if form.wanted is not None and row[form.wanted] is False:
            counts.not_wanted += 1
            continue
        there, roles = len(messages), [message["role"] for message in messages]
        while messages and not (messages[-1]["role"] == "assistant" and WEIGHT not in messages[-1]):
            messages.pop()
        if not messages:
            if roles and "assistant" not in roles:
                counts.first.setdefault("without_answer", f"{place}: its roles are {listed(dict.fromkeys(roles), 4)}")
            counts.without_answer += 1
            continue
        counts.after_last_answer += there - len(messages)
        counts.answers_not_learnt += sum(WEIGHT in message for message in messages)
        if messages[-1]["content"].strip().casefold() in GAPS:
            counts.add("answers_of_gaps", place)
        if not any(message["content"].strip() for message in messages[:-1]):
            counts.add("without_question", place)
        found.append(Conversation(messages, family or "", place))
    counts.system_not_read += form.systems_not_read
    return found
