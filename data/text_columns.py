"""Find the column of a table that is the text to learn from, say which it is, and give its texts as documents.

Identifiers, JSON in a text and numbers are never taken for text unasked. Of a conversation the messages are read.
The texts of files that are decoded row by row are kept in the cache, named by content.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from groundup.common.console import say
from groundup.common.errors import InputError, listed
from groundup.common.files import atomic_folder
from groundup.data.documents import Rows, batches
from groundup.data.json_rows import Cell, decode_json, kind_of_cell, written
from groundup.data.tables import (
    ArrowTable,
    Table,
    check_column,
    described,
    is_text,
    quiet_datasets,
    read_batches,
    rows_of,
)

TEXT_COLUMNS = ("text", "content", "document", "article", "story", "body", "sentence", "review", "passage")
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")  # of a message

_SAMPLE = 1000  # rows looked at
_BATCH_BYTES = 2**22
_NO_TEXT_NAMES = re.compile(
    r"(?i:(.*[ _.-])?(u?u?id|guid|key|hash|md5|sha\d*|checksum|ur[il]|link|path|filename|date|time(stamp)?|lang)s?)"
    r"|[a-z]+(Id|ID|Url|URL|Path|Date)"
)


def columns_read(read: Mapping[str, str], table: Table) -> dict[str, Any]:
    """Return what a recipe records about the columns of a table: which were read as what, and which were not.

    `read` is the column of each thing, such as `{"text": "body"}`.
    """
    return {
        "columns": dict(read),
        "columns_not_read": [name for name in table.column_names if name not in read.values()],
    }


def say_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say which columns are read and which are not, of the rows of sources: a line for all that are alike.

    Of a table whose only column is `text` there is nothing to say.
    """
    alike: dict[str, list[str]] = {}
    for row in rows:
        columns, others, keys = (row.get(key, ()) for key in ("columns", "columns_not_read", "message_keys_not_read"))
        if others or keys or any(what != of for what, of in dict(columns).items()):
            read = [what if what == name else f"{name} as {what}" for what, name in dict(columns).items()]
            line = f"reads {'the column' if len(read) == 1 else 'the columns'} {', '.join(read)}"
            line += f"; not {listed(others)}" if others else ""
            line += f"; of messages not {listed(keys)}" if keys else ""
            alike.setdefault(line, []).append(row["name"])
    for line, names in alike.items():
        say(f"{listed(names, 3)}: {line}")


def find_text_column(table: Table, without: Sequence[str] = ()) -> str:
    """Find the column of text: by its usual names, else the only one of texts, else the longest on average.

    Raises `InputError` when no column of those not named in `without` holds texts that are more than identifiers.
    """
    texts = [column for column in table.column_names if column not in without and str in table.kinds(column)]
    if not texts:
        raise InputError(f"{table.name} has no column of text: {described(table)}")
    lowered = {column.lower(): column for column in reversed(texts)}
    for usual in TEXT_COLUMNS:
        if usual in lowered:
            return lowered[usual]
    sample = list(islice(rows_of(table), _SAMPLE))
    lengths = {}
    for column in texts:
        values = [cell for row in sample if isinstance(cell := row[column], str) and cell.strip()]
        # Identifiers (words of ASCII, some with a digit or a mark) and JSON are no texts.
        as_json = all(re.fullmatch(r"\s*(\{.*\}|\[.*\])\s*", value, re.DOTALL) for value in values)
        words = all(value.isascii() and len(value.split()) == 1 for value in values)
        are_no_texts = bool(values) and (as_json or (words and any(not value.isalpha() for value in values)))
        if len(table.column_names) == 1 or not (_NO_TEXT_NAMES.fullmatch(column) or are_no_texts):
            lengths[column] = sum(map(len, values))
    if not lengths:
        raise InputError(f"which column of {table.name} holds the text? {described(table)}: give --text-column")
    return max(lengths, key=lambda column: lengths[column])


def conversation_text(cell: Cell) -> str | None:
    """Return the messages of a conversation as one text, separated by blank lines; None for any other cell.

    It may be written as JSON, as in CSV it must be.
    """
    cell = _decoded(cell)
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        return None
    said = []
    for message in cell:
        content = message.get("content", message.get("value"))
        if isinstance(content, list):  # OpenAI's parts, of which some are pictures
            content = "".join(map(_part_text, content))
        if content is not None and not isinstance(content, str):
            return None
        said.append(content or "")
    return "\n\n".join(filter(str.strip, said))


def _decoded(cell: Cell) -> Cell:
    """Return the list that a cell holds as JSON, and any other cell as it is."""
    if not (isinstance(cell, str) and cell.lstrip().startswith("[")):
        return cell
    try:
        return decode_json(cell)
    except (ValueError, RecursionError):
        return cell


def _part_text(part: Cell) -> str:
    return str(part.get("text") or "") if isinstance(part, dict) else part if isinstance(part, str) else ""


def _keys_not_read(cell: Cell) -> set[str]:
    """Return the keys of messages beside role and text, and the types of their parts that are no text."""
    keys: set[str] = set()
    for message in _decoded(cell) or []:
        name = next((key for key in CONTENT_KEYS if key in message), "")
        read = (*ROLE_KEYS, name)
        keys |= {key for key, value in message.items() if key not in read and value not in (None, [], {})}
        if isinstance(parts := message.get(name), list):
            keys |= {f"{name} of type {part.get('type')}" for part in parts if not _part_text(part) and part}
    return keys


def text_documents(table: Table, text_column: str | None) -> tuple[Rows, dict[str, Any]]:
    """Return the texts of a table as documents, and what a recipe keeps of its columns. Count rows without text.

    Raises `InputError` where the column named is not there, where none is found, and for a cell that is no text.
    """
    check_column("--text-column", text_column, table)
    if text_column is None and table.doubt:
        raise InputError(table.doubt)
    column, read = _column(table, text_column)
    unread: list[str] = []
    if isinstance(table, ArrowTable) and is_text(table.types[column]) and read is written:
        rows = Rows(partial(table.batches, [column]), column, with_text_only=True)
    else:
        rows, unread = _stored(table, column, read)
    if empty := len(table) - len(rows):
        say(f"{table.name}: {empty:,} of {len(table):,} rows have no text in {column!r} and are left out")
    return rows, columns_read({"text": column}, table) | ({"message_keys_not_read": unread} if unread else {})


def _column(table: Table, named: str | None) -> tuple[str, Callable[[Cell], str | None]]:
    """Return the column to learn from, and the function that makes a text of its cells."""
    conversations = {column for column in table.column_names if _is_conversation(table, column)}
    if named is not None:
        if named not in conversations and str not in table.kinds(named):
            raise InputError(f"column {named!r} of {table.name} holds no text: {described(table)}")
        return named, _said_in if named in conversations else written
    usual = [column for column in table.column_names if column.lower() in TEXT_COLUMNS and str in table.kinds(column)]
    lowered = {column.lower(): column for column in conversations}
    found = next((lowered[name] for name in CONVERSATION_COLUMNS if name in lowered), None)
    if found is not None and not usual:
        return found, _said_in
    return find_text_column(table), written


def _is_conversation(table: Table, column: str) -> bool:
    as_json = column.lower() in CONVERSATION_COLUMNS and str in table.kinds(column)
    if not as_json and list not in table.kinds(column):
        return False
    cells = [row[column] for row in islice(rows_of(table), _SAMPLE)]
    return any(cells) and all(not cell or conversation_text(cell) for cell in cells)


def _said_in(cell: Cell) -> str | None:
    if not cell or (isinstance(cell, str) and not cell.strip()):
        return None
    text = conversation_text(cell)
    if text is None:
        raise ValueError(f"{kind_of_cell(cell)} that is no conversation")
    return text


def _stored(table: Table, column: str, read: Callable[[Cell], str | None]) -> tuple[Rows, list[str]]:
    """Return the texts of a column, decoded once and then read from a file in the cache, named by the content.

    Beside them are the keys of messages that are not in the texts.
    """
    assert table.content is not None  # a table that can be given by name lies in files
    key = hashlib.sha256("\0".join([table.content, column, read.__name__, "keys"]).encode()).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "groundup-texts" / key
    if not folder.is_dir():
        schema = pa.schema([("text", pa.large_string())])
        with quiet_datasets(), atomic_folder(folder) as temporary:
            unread: set[str] = set()
            with pa.OSFile(str(temporary / "texts.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for batch in batches(_texts(table, column, read, unread), len, _BATCH_BYTES):
                    writer.write_batch(pa.record_batch([pa.array(batch, pa.large_string())], schema))
            (temporary / "keys_not_read.json").write_text(json.dumps(sorted(unread)), encoding="utf-8")
    unread_keys = json.loads((folder / "keys_not_read.json").read_text(encoding="utf-8"))
    return Rows(partial(read_batches, [str(folder / "texts.arrow")]), "text"), unread_keys


def _texts(table: Table, column: str, read: Callable[[Cell], str | None], unread: set[str]) -> Iterator[str]:
    """Yield the texts that are not empty. Add to `unread` the keys of messages that are not in them."""
    for number, row in table.numbered():
        try:
            text = read(row[column])
        except ValueError as error:
            raise InputError(f"{table.place(number)}: column {column!r} holds {error}, no text") from error
        if read is _said_in:
            unread |= _keys_not_read(row[column])
        if text and not text.isspace():
            yield text
