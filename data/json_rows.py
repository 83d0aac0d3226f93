"""Read JSON and JSONL a row at a time, and keep each cell of a table as it was written; an error names its line.

A library that finds a type for a column turns the one number among forty texts into forty JSON texts, 007 into 7 and a
large number into another. Here each cell is decoded alone, whatever the other rows hold.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from groundup.common.errors import InputError

# The keys that make the only object of a file a row. Any other object may be rows by name, or columns.
ROW_KEYS = {"text", "content", "document", "article", "story", "body", "sentence", "review", "passage"} | {
    *("messages", "conversations", "conversation", "prompt", "instruction", "question")
}

BUFFER = 2**20  # characters read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_LONGEST_WORD = len("-Infinity")

Cell = Any  # None, str, Number, bool, bytes, or a list or dict of them
Row = dict[str, Cell]


class Number(str):
    """A number or a time as it is written in the file, `1.0` or `007`: it can be read as text but was none."""

    __slots__ = ()


GAPS = ("nan", "none", "null", "n/a", "na", "<na>")  # how programs write that there is nothing
KINDS = {
    type(None): "nothing",
    str: "text",
    Number: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}


def written(cell: Cell) -> str | None:
    """Return the text of a cell that holds a single value, as it is written in the file; None for a gap.

    Raises `ValueError`, saying what the cell holds, for a list or the like.
    """
    if cell is None or type(cell) is str:
        return cell
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    raise ValueError(kind_of_cell(cell))


def kind_of_cell(cell: Cell) -> str:
    """Return what a cell holds, in a word for a person."""
    return KINDS[type(cell)]


def cell_of(value: Any) -> Cell:
    """Turn a value of Arrow or Python into a cell: numbers and times as they are written, 1.0 as 1, NaN as a gap."""
    if value is None or isinstance(value, str | bool | bytes):
        return value
    if isinstance(value, dict):
        return {key: cell_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cell_of(inner) for inner in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():  # as a table with gaps stores 1
            return Number(int(value))
    return Number(value)


def value_of(cell: Cell) -> Any:
    """Turn a cell back into a value that JSON can write: a number as it was written, a time or bytes as text."""
    if isinstance(cell, Number):
        try:
            return json.loads(cell)
        except ValueError:  # a time, or a number such as 007
            return str(cell)
    if isinstance(cell, dict):
        return {key: value_of(inner) for key, inner in cell.items()}
    if isinstance(cell, list):
        return [value_of(inner) for inner in cell]
    return cell.decode(errors="replace") if isinstance(cell, bytes) else cell


def read_json(path: Path, kind: str, name: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a UTF-8 file, each with the line on which it begins; `name` is for messages.

    A row is an object, or a text, which is then its column `text`. `.jsonl` has one a line, `.json` a list of them or
    one after another. Raises `InputError` for what is none of this.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        buffer = _Buffer(file, name)
        if buffer.letter() == "[":
            values = _list_in(buffer)
        elif kind == ".json":
            values = _no_single_object(buffer)
        else:
            file.seek(0)
            values = _lines(file, name)
        for line, value in values:
            row = {"text": value} if type(value) is str else value
            if not isinstance(row, dict):
                raise InputError(f"{name}, line {line}: a row is an object with names, not {kind_of_cell(value)}")
            yield line, row


def decode_json(text: str) -> Cell:
    """Return one value of JSON as cells. Raises `ValueError`."""
    return _decode(text, _after_space(text, 0))[0]


def _lines(file: IO[str], name: str) -> Iterator[tuple[int, Any]]:
    is_first = True
    for number, line in enumerate(file, 1):
        if not line.isspace():
            try:
                value, stop = _decode(line, _after_space(line, 0))
                if _after_space(line, stop) < len(line):
                    raise ValueError("Extra data after the row")
            except (ValueError, RecursionError) as error:
                if is_first and isinstance(error, json.JSONDecodeError) and error.pos >= len(line.rstrip()):
                    cure = "in .jsonl each row is one line: if rows take several, let the name end in .json"
                    raise InputError(f"cannot read {name}: line {number} ends within a row: {cure}") from error
                raise _broken(name, number, error) from error
            is_first = False
            yield number, value


def _list_in(buffer: "_Buffer") -> Iterator[tuple[int, Any]]:
    """Yield the values of a list, which must be all that the file holds."""
    buffer.place += 1
    if buffer.letter() == "]":
        buffer.place += 1
    else:
        while True:
            yield buffer.value()
            letter = buffer.letter()
            if letter not in (",", "]"):
                raise _broken(buffer.name, buffer.line, ValueError("Expecting ',' or ']' after a row"))
            buffer.place += 1
            if letter == "]":
                break
    if buffer.letter():
        raise _broken(buffer.name, buffer.line, ValueError("Extra data after the list of rows"))


def _no_single_object(buffer: "_Buffer") -> Iterator[tuple[int, Any]]:
    """Yield values one after another. Raises `InputError` for a single object that is no row."""

    def of_a_row(key: str, value: Any) -> bool:  # a text or messages: with other lists the key is a column
        conversation = isinstance(value, list) and any(isinstance(item, dict) for item in value)
        return key.lower() in ROW_KEYS and (isinstance(value, str) or conversation)

    line, first = buffer.value()
    if not buffer.letter() and isinstance(first, dict) and not any(map(of_a_row, first, first.values())):
        raise InputError(f"{buffer.name} is one object, not a list of rows: give [{{...}}, {{...}}] or a row a line")
    yield line, first
    while buffer.letter():
        yield buffer.value()


class _Buffer:
    """A file seen through a stretch of text that moves on, so that a list of any length takes little memory."""

    def __init__(self, file: IO[str], name: str) -> None:
        self.name, self.line, self.place = name, 1, 0
        self._file, self._text, self._ended = file, "", False

    def letter(self) -> str:
        """Return the next letter that is no white space; empty at the end of the file."""
        while True:
            self._go_to(_after_space(self._text, self.place))
            if self.place < len(self._text):
                return self._text[self.place]
            if not self._read_on():
                return ""

    def value(self) -> tuple[int, Any]:
        """Return the line of the next value, and the value. Raises `InputError` if there is none."""
        self.letter()
        while True:
            try:
                value, stop = _decode(self._text, self.place)
            except json.JSONDecodeError as error:
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if cut_off and self._read_on():
                    continue
                self._go_to(error.pos)
                raise _broken(self.name, self.line, error) from error
            except (ValueError, RecursionError) as error:
                raise _broken(self.name, self.line, error) from error
            line = self.line
            self._go_to(stop)
            return line, value

    def _go_to(self, place: int) -> None:
        self.line += self._text.count("\n", self.place, place)
        self.place = place

    def _read_on(self) -> bool:
        # As much again as there is, so that one long value is not decoded from its start for every block.
        block = self._file.read(max(BUFFER, len(self._text) - self.place))
        self._text, self.place = self._text[self.place :] + block, 0
        return bool(block)


def _after_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


def _broken(name: str, line: int, error: Exception) -> InputError:
    what = "values stand too deep within each other" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at").removesuffix(" starting")
    return InputError(f"cannot read {name}: line {line} is no valid JSON: {what}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} occurs twice in an object")
    return values


def _decode(text: str, place: int) -> tuple[Any, int]:
    """Return the value that begins at a place of a text, and where it ends. Raises `ValueError`."""
    value, stop = _DECODER.raw_decode(text, place)
    if _HALF.search(text, place, stop):  # of a pair, as a rule
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{error.object[error.start]!a} is half a character, which no text can hold") from error
    return value, stop


_DECODER = json.JSONDecoder(
    parse_int=Number,
    parse_float=Number,
    parse_constant=lambda word: None if word == "NaN" else Number(word),  # NaN is how pandas writes a gap
    object_pairs_hook=_object,
)
