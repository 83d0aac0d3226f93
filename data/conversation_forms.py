"""The forms in which people share instructions and conversations -> messages of role and content.

Which columns a form reads is decided here, by their names; what is not read is told to whoever reads the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from groundup.common.errors import InputError
from groundup.data.json_rows import decode_json
from groundup.data.values import Cell, Row, kind_of_cell, written
from groundup.tokenization.chat import Message

CONVERSATION = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat")
ASKED = ("instruction", "prompt", "question", "query")
GIVEN = ("input", "context")
ANSWERED = ("output", "completion", "response", "answer", "chosen")
SYSTEM = ("system", "system_prompt")
HISTORY = ("history",)
FORMS = (
    "messages (or conversations); prompt and completion; question and answer; "
    "or instruction, output and perhaps input, system, history"
)

ROLE_KEYS, CONTENT_KEYS, WEIGHT = ("role", "from"), ("content", "value"), "weight"
_ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "developer": "system",
}


class NoText(ValueError):  # noqa: N818 (what it says is no fault of a program)
    """A cell holds what cannot be read as text; the message says what that is."""


def text_of(cell: Cell) -> str | None:
    """The text of a cell as it is written, None where there is none.

    A list of one text, or of parts `{"type": "text", "text": ...}` as APIs for chats have it, is one text. Raises
    `NoText` for anything else.
    """
    if isinstance(cell, list):
        if len(cell) > 1 and all(isinstance(part, str) for part in cell):
            raise NoText(f"a list of {len(cell)} texts")
        return "".join(map(_text_of_part, cell))
    try:
        return written(cell)
    except ValueError as error:
        raise NoText(str(error)) from error


def _text_of_part(part: Cell) -> str:
    if isinstance(part, str):
        return str(part)
    if not isinstance(part, dict):
        raise NoText(f"a list with {kind_of_cell(part)} in it")
    kind, text = part.get("type") or "text", part.get("text")
    if isinstance(text, str) and str(kind).endswith("text"):
        return str(text)
    raise NoText(f"a part of type {kind}")


@dataclass
class Form:
    """Which columns of a table hold what, each None where there is none; and the keys of messages that are not read."""

    conversation: str | None = None
    asked: str | None = None
    given: str | None = None
    answered: str | None = None
    system: str | None = None
    history: str | None = None
    family: str | None = None
    unread_keys: set[str] = field(default_factory=set)
    systems_not_read: int = 0  # of rows whose messages have another system message already

    @classmethod
    def of(cls, columns: Sequence[str], name: str) -> "Form":
        """The form of a table with these columns. Raises `InputError` for columns of no known form."""
        lowered = {column.strip().lower(): column for column in reversed(columns)}

        def first(names: Sequence[str]) -> str | None:
            return next((lowered[usual] for usual in names if usual in lowered), None)

        system, family = first(SYSTEM), first(("family",))
        if conversation := first(CONVERSATION):
            return cls(conversation=conversation, system=system, family=family)
        asked, given, answered, history = first(ASKED), first(GIVEN), first(ANSWERED), first(HISTORY)
        if answered and not asked:  # pairs of input and output; or a preference whose texts hold the question too
            asked, given = (given, None) if given else (None, None)
            if not asked and answered.strip().lower() == "chosen":
                return cls(conversation=answered, system=system, family=family)
        if not (asked and answered):
            raise InputError(f"{name} has the columns {', '.join(columns)}: rows need {FORMS}")
        return cls(None, asked, given, answered, system, history, family)

    @property
    def read(self) -> dict[str, str]:
        """The column of each thing that is read."""
        parts = {
            "system": self.system,
            "history": self.history,
            "messages": self.conversation,
            "question": self.asked,
            "input": self.given,
            "answer": self.answered,
            "family": self.family,
        }
        return {what: column for what, column in parts.items() if column is not None}

    @property
    def unread(self) -> dict[str, list[str]]:
        """The keys of messages that stood in some of them and were not read."""
        return {"message_keys_not_read": sorted(self.unread_keys)} if self.unread_keys else {}

    def messages(self, row: Row, joint: str) -> list[Message]:
        """The messages of a row; `joint` stands between an instruction and its input.

        Raises `NoText` where one of them holds something else, `InputError` (without the place) for what is no message.
        """
        system = text_of(row[self.system]) if self.system else None
        if self.conversation:
            messages = self._listed(row[self.conversation], self.conversation)
        else:
            history = self._past(row[self.history]) if self.history else []
            messages = [*history, *self._turn("user", self._question(row, joint))]
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

    def _question(self, row: Row, joint: str) -> Any:
        """The instruction with its input; a list of messages as it is."""
        asked = row[self.asked or ""]
        if _is_conversation(asked):
            return asked
        texts = [text_of(asked), text_of(row[self.given]) if self.given else None]
        return joint.join(text for text in texts if text)

    def _turn(self, role: str, cell: Any) -> list[Message]:
        """A text as one message of `role`; a list of messages (TRL's conversational form) as it is."""
        if _is_conversation(cell):
            return [self._message(message) for message in cell]
        return [_weighed(role, text_of(cell), None)]

    def _past(self, cell: Any) -> list[Message]:
        """Earlier turns as pairs of question and answer."""
        turns = []
        for pair in _decoded(cell, "history", "pairs of question and answer") or []:
            if isinstance(pair, dict):
                turns.append(self._message(pair))
            elif isinstance(pair, list | tuple) and len(pair) == 2:
                turns += [_weighed(role, text_of(text), None) for role, text in zip(("user", "assistant"), pair)]
            else:
                raise InputError("history must be a list of pairs of question and answer")
        return turns

    def _listed(self, cell: Any, column: str) -> list[Message]:
        return [self._message(message) for message in _decoded(cell, column) or []]

    def _message(self, message: Any) -> Message:
        """A message in our form: role and content, and a weight of 0 where the assistant is not to learn it."""
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
    """Whether a cell is a list of messages, not one of parts of a text."""
    return (
        isinstance(cell, list)
        and bool(cell)
        and all(isinstance(item, dict) and any(item.get(key) is not None for key in ROLE_KEYS) for item in cell)
    )


def _decoded(cell: Any, column: str, of: str = "role and content") -> list[Any] | None:
    """A list of a table, or one that is written as JSON, as CSV must have it."""
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
    """A message; an answer of weight 0, and one without text, keeps the weight 0: it is read and not learnt.

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
